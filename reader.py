"""Reads any input file of precipitation as one canonical field.

Reads    NetCDF files of precipitation on a regular (lat, lon) grid, one day (or one accumulation) a file.
Writes   nothing.

    from reader import read_field
    tp = read_field("Data/DataEval/2023_08_01.nc")    # DataArray (lat, lon), mm, north first, west to east

A value is the mean of the square cell around its node. Grids are kept as exact fractions of a degree; floats appear
only in coordinates. xarray and cftime are imported where files are opened, so that --help of a stage answers at once.
"""

import contextlib
import math
import os
import re
import zlib
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, cached_property, lru_cache
from pathlib import Path

import numpy as np

import utils
from hdf5 import refuse_other_files
from metadata import (
    AMOUNTS,
    AS_STORED,
    MAKE_DAYS,
    NOTHING,
    RAIN,
    UNITS,
    Period,
    dates,
    member_dimension,
    member_labels,
    name_times,
    other_quantity,
    own_units,
    period_of,
    refuse_other,
    said,
    seconds_of,
    settle_periods,
    text_of,
    time_bounds,
    time_roles,
    unit_factor,
)
from utils import DataError, shown, stamp, when

RAIN_NAMES = ("tp", "pr", "prcp", "precip", "precipitation", "tp_sum")
MORE_NAMES = ("precipitationcal", "tot_prec", "apcp", "apcp_surface", "rr", "pre", "prec", "ppt", "rain", "rainfall")
NO_NODES = r"projection|rotated|index|grid_|co-?lat|magnetic|corner|\bedge|\bleft|\bright"  # of degrees of cell centres
LAT_NAMES, LON_NAMES = ("lat", "latitude", "y"), ("lon", "longitude", "x")
JUMP = 20.0  # ratio of neighbouring maxima of files without units: above it metres stand beside millimetres
CODE = 100.0  # mm; from here on an amount that many cells share exactly is taken for a code for missing
PACKING_NOISE = -0.1  # mm; values from here to 0 come from packing and become 0, lower ones are an error
MAX_DAILY = 2000.0  # mm; the record for one day is 1825 mm (Foc-Foc, La Reunion, 1966)
SINGLE = 4e-5  # degrees; rounding error of a float32 coordinate near 360
MAX_CELLS = 1_000_000_000  # the whole globe at 0.01 degree holds 648 million; a damaged header claims more

# fmt: off
__all__ = [
    "MAKE_DAYS", "MAX_CELLS", "MAX_DAILY", "UNITS", "Grid", "axes_of", "canonical", "choose", "grid_of", "lay_out",
    "inspect_files", "newest", "opened", "ratio", "read_field", "refuse_code", "times_of", "to_mm", "understood",
]
# fmt: on


# ---------------------------------------------------------------- the one reader


def read_field(path, units=None, known=None, period=None, members=False):
    """Read the precipitation field of one input file, whatever its layout and units.

    Args: path: NetCDF file. units: units of its values (one of UNITS), whatever its attribute says; None: those of its
        attribute, or those decided from the values where only one reading is possible. known: units that stage 1 found,
        which its attribute must not contradict. period: as stage 1 decided; None: the file's. members: take ensembles.
    Returns: DataArray `tp` ([member,] lat, lon), float32, mm per accumulation, lat descending, lon ascending in
        [-180, 180), NaN = missing; scalar coordinates `time` and, for forecasts, `forecast_reference_time`; with
        members the coordinate `input_member` (member), what the file calls them; attribute `source`.
    Raises: DataError: names the file, what was found, what was expected and what to do.
    """
    with understood(path), opened(path) as dataset:
        return canonical(_load(dataset, path, members), path, units, dataset, known, period, members)


@contextlib.contextmanager
def understood(path):
    """What a file makes go wrong in ways that nobody foresaw (an attribute of another type) becomes a DataError."""
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception as error:
        raise DataError(
            f"{path}: not understood ({type(error).__name__}: {shown(error)}); expected a CF NetCDF file of rain, with "
            "attributes of the usual types: look at them with ncdump -h, and mend or take away the odd one"
        ) from None


def canonical(field, path=None, units=None, dataset=None, undecided=None, period=None, members=False):
    """Convert one DataArray to the form that read_field returns.

    Args: field: precipitation in any layout. path: its name gives the date where there is no time coordinate.
        units, period, members: as in read_field. dataset: its variables hold the bounds of time and cells. undecided:
        units to take where neither `units` nor an attribute gives them (known of read_field, or AS_STORED); None:
        decide them from the values.
    Raises: DataError: as read_field.
    """
    import xarray as xr

    name = str(path) if path else "the field"
    try:
        refuse_other(field)
        _refuse_packing(field)
        values, lats, lons = lay_out(field, dataset, members)
        bounds = time_bounds(field, dataset)
        time, reference = times_of(field, path, bounds)
        own = own_units(field, overridden=units)
        if own and not units and undecided not in (None, AS_STORED, own):
            raise DataError(
                f"its attribute says units {shown(own)}, PreInfo.json says {shown(undecided)}; expected one: run "
                "1create_data_lists.py again"
            )
        units = units or own or undecided or decide_units([_summary(values)])
        if units != AS_STORED and not unit_factor(units):
            raise DataError(f"units {shown(units)!r} (of PreInfo.json?): expected one of {', '.join(UNITS)}")
        period = period_of(field, units, bounds, path, period)
        values = to_mm(values, units, period.hours).astype("float32")
        grid = Grid.from_centres(lats, lons)
    except DataError as error:
        raise DataError(f"{name}: {_with_folder(error, path)}") from None
    times = {"time": time, "forecast_reference_time": reference}
    coords = {key: np.datetime64(value, "ns") for key, value in times.items() if value is not None}
    attrs = {"units": "mm", "units_in_file": units, "source": Path(path).name if path else "memory"}
    if period.hours:
        attrs |= {"period_hours": round(period.hours, 4), "period_from": period.source}
    if dataset is not None and "archive" in dataset.attrs:
        attrs["archive"] = shown(dataset.attrs["archive"])
    if values.ndim > 2:
        coords["input_member"] = "member", member_labels(field)
    dims = ("member", "lat", "lon")[-values.ndim :]
    return xr.DataArray(values, {"lat": grid.lat, "lon": grid.lon, **coords}, dims, "tp", attrs)


def opened(path):
    """The file as an xarray Dataset, nothing decoded but packing and missing values."""
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file; run 1create_data_lists.py again if the archive has moved")
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "no ordinary file"
        raise DataError(f"{path}: {kind}, expected a NetCDF file")
    import xarray as xr

    try:
        refuse_other_files(path)
        dataset = xr.open_dataset(path, **_open_options())
        clocks = {"time", "valid_time", "forecast_reference_time"} & set(dataset.data_vars)
        alone = [name for name in clocks if dataset[name].ndim == 0]
        return dataset.set_coords(alone) if alone else dataset  # also where no attribute `coordinates` names them
    except DataError:
        raise
    except Exception as error:  # every backend raises its own kinds for a damaged file
        raise _damaged(path, error) from None


@cache
def _open_options():
    """Options of xr.open_dataset: no times decoded, and no index made, which takes as long as reading the values."""
    import inspect

    import xarray as xr

    known = inspect.signature(xr.open_dataset).parameters
    without_index = {"create_default_indexes": False} if "create_default_indexes" in known else {}  # newer xarray
    return {"decode_times": False, "cache": False, **without_index}


KINDS = {  # how files of other kinds begin, and what turns them into NetCDF
    b"GRIB": "it is GRIB: convert it with cdo -f nc4 copy IN OUT",
    b"PK\x03\x04": "it is a ZIP archive, as the CDS packs several kinds of variables: unzip it",
    b"\x1f\x8b": "it is compressed: gunzip it",
    b"\x0e\x03\x13\x01": "it is HDF4: convert it with h4tonccf IN OUT",
    b"<": "it is a web page: the download failed, or needs a login",
    b"{": "it is text: the download failed, or needs a login",
}


def _damaged(path, error):
    """The DataError for a file that the NetCDF library cannot read."""
    words = shown((str(error).splitlines() or [type(error).__name__])[0])
    try:
        with open(path, "rb") as stream:
            start = stream.read(8)
    except OSError:
        start = b""
    words = next((kind for magic, kind in KINDS.items() if start.lstrip().startswith(magic)), words)
    if "\\" in str(path):
        words = "its name holds a backslash, which the NetCDF library does not open: rename it"
    if os.fsencode(path).decode("utf-8", "replace").encode() != os.fsencode(path):
        words = "its name is not UTF-8, which the NetCDF library does not open: rename it"
    return DataError(f"{path}: cannot be read as NetCDF ({words}); is it complete? try ncdump, or fetch it again")


# ---------------------------------------------------------------- which variable


def choose(dataset, path):
    """The precipitation variable of a dataset, not yet read: by its name, else the only field that speaks of rain.

    Raises: DataError: none or several, one that speaks of something else, a grid that is not of latitude and
        longitude, or an output of stages 3 to 5.
    """
    if {"target", "request"} <= set(dataset.attrs):
        model = f"3 or 4 with {shown(dataset.attrs['checkpoint'])}" if "checkpoint" in dataset.attrs else "5"
        raise DataError(
            f"{path}: made by stage {model}, target {shown(dataset.attrs['target'])}; expected days or forecasts to "
            "work on: keep results (--out) and inputs in folders of their own"
        )
    for names in (RAIN_NAMES, MORE_NAMES):
        found = [name for name in dataset.data_vars if str(name).lower() in names]
        if found:
            break
    else:
        fields = [n for n, var in dataset.data_vars.items() if var.dtype.kind in "fiu" and None not in _axes(var)]
        fields = fields or [name for name, var in dataset.data_vars.items() if var.ndim > 1]
        found = [name for name in fields if RAIN.search(said(dataset[name]))]
        whole = [name for name in found if not other_quantity(dataset[name])]
        found = whole if len(found) > 1 else found  # of the total and its parts the total
    if len(found) == 1:
        field = dataset[found[0]]
        with utils.named(path):
            refuse_other(field)
            _refuse_mapping(field, dataset)
        return field
    raise DataError(
        f"{path}: {'several' if found else 'no'} precipitation fields: found {_contents(dataset)}; expected one of "
        f"{', '.join(RAIN_NAMES)}, or a single variable on (lat, lon) whose name or long_name speaks of rain; if one "
        "is the rain, rename it: cdo -setname,tp -selname,NAME IN OUT"
    )


def _contents(dataset):
    """The variables of a dataset in words."""
    if not dataset.data_vars:
        return "no variable (groups are not read: ncks -G : -g GROUP IN OUT lifts one out)"
    words = [f"{name}{tuple(v.dims)} {v.attrs.get('long_name', '')}".strip() for name, v in dataset.data_vars.items()]
    return ", ".join(shown(word) for word in words[:6]) + (f" and {len(words) - 6} more" if len(words) > 6 else "")


def _load(dataset, path, members=False):
    """`choose`, in memory.

    Raises: DataError: many fields in one, too many cells, damage, or as `choose`.
    """
    field = choose(dataset, path)
    try:
        _dimensions(field, dataset, members)  # many times are told before anything is read
    except DataError as error:
        raise DataError(f"{path}: {_with_folder(error, path)}") from None
    if field.size > MAX_CELLS:
        raise DataError(f"{path}: {field.name} has {dict(field.sizes)}; expected one day, at most {MAX_CELLS:g} cells")
    if field.size > MAX_CELLS / 100:
        advice = "cut a region out first, for example with cdo sellonlatbox"
        utils.check_memory(24 * field.size, f"{path}: {field.name} of {dict(field.sizes)}", advice)
    try:  # damage inside a file shows only when its values are read
        return newest(field) if "expver" in field.dims else field.load()
    except Exception as error:
        raise _damaged(path, error) from None


# ---------------------------------------------------------------- layout


def _axis(field, names, standard, direction):
    """The dimension of `field` that is latitude (or longitude), by its CF attributes, else by its name; None if absent.

    A dimension whose attributes name something else (a projection, a rotated pole, the other axis, radians, an index)
    is not taken, whatever its name.
    """
    compass, weak = ("north", "n") if direction == "Y" else ("east", "e"), None
    own = {f"{degree}{between}{d}" for degree in ("degree", "degrees") for between in ("_", "") for d in compass}
    other = "longitude" if direction == "Y" else "latitude"
    coords = field.coords.variables
    for dim in field.dims:
        attrs = coords[dim].attrs if dim in coords else {}
        said = {key: str(attrs.get(key, "")).strip().lower() for key in ("standard_name", "axis", "units", "long_name")}
        if (
            said["standard_name"] not in (*NOTHING, standard)
            or said["axis"] not in ("", direction.lower())
            or said["units"] not in (*NOTHING, "degree", "degrees", *own)
            or re.search(NO_NODES, said["long_name"])
            or re.search(other, said["long_name"])
            or said["standard_name"] in NOTHING
            and str(dim).lower() in (other, other[:3])
        ):
            continue
        if said["standard_name"] == standard or said["axis"] or said["units"] in own:
            return dim
        if str(dim).lower() in names:
            weak = dim
    return weak


def _axes(field):
    return _axis(field, LAT_NAMES, "latitude", "Y"), _axis(field, LON_NAMES, "longitude", "X")


def _refuse_mapping(field, dataset):
    """Raise DataError where the file describes another map projection than latitude and longitude."""
    name = field.attrs.get("grid_mapping", field.encoding.get("grid_mapping"))
    others = [n for n, v in dataset.variables.items() if isinstance(v.attrs.get("grid_mapping_name"), str)]
    said = [dim for dim in _axes(field) if dim in field.coords and field.coords.variables[dim].attrs]
    names = [name] if isinstance(name, str) and name in dataset.variables else others if len(said) < 2 else []
    for name in names:
        kind = dataset.variables[name].attrs.get("grid_mapping_name")
        if kind not in (None, "latitude_longitude"):
            raise DataError(
                f"{field.name} is on a grid of mapping {shown(kind)}; expected latitude and longitude: "
                f"{_regrid(field, dataset)}"
            )


def _plane(dataset, names, compass):
    """(name, Variable) of a latitude or longitude given for each cell of two dimensions; None where there is none."""
    for name, variable in () if dataset is None else dataset.variables.items():
        attrs = {key: str(variable.attrs.get(key, "")).lower() for key in ("standard_name", "units")}
        own = re.match(f"degrees?_?{compass}", attrs["units"]) or attrs["standard_name"] == names[1]
        named = re.fullmatch(rf"x?{names[0]}(g|itude)?(_?[m0-9])?", str(name).lower())
        if (own or named) and sum(size > 1 for size in variable.shape) == 2 and variable.dtype.kind in "fiu":
            return name, variable
    return None


def _regrid(field, dataset):
    """The command that brings a file to a regular grid of latitude and longitude, in one line."""
    lat, lon = _plane(dataset, LAT_NAMES, "n"), _plane(dataset, LON_NAMES, "e")
    if lat is None or lon is None:
        return "regrid it first, for example with cdo remapcon,r3600x1800 IN OUT (the globe at 0.1 degree)"
    method = "remapcon" if "bounds" in lat[1].attrs else "remapbil"  # cdo remapcon asks for the corners of cells
    linked = all(name in field.coords for name, _ in (lat, lon))  # by the attribute `coordinates`
    link = "" if linked else f"ncatted -O -a coordinates,{field.name},o,c,'{lon[0]} {lat[0]}' IN linked.nc; "
    lat, lon = (np.asarray(v.values, "float64")[np.isfinite(v.values)] for _, v in (lat, lon))
    south, north, west, east = (float(v) for v in (lat.min(), lat.max(), lon.min(), lon.max()))
    middle = math.cos(math.radians((south + north) / 2))
    step = float(f"{math.sqrt((north - south) * (east - west) / lat.size) * min(1, middle + 0.3):.1g}") or 1.0
    first = [math.ceil(v / step) * step + step / 2 for v in (west, south)]
    size = [max(2, int((end - begin) / step)) for begin, end in zip(first, (east, north), strict=True)]
    grid = f"gridtype=lonlat\\nxsize={size[0]}\\nysize={size[1]}\\nxfirst={first[0]:.6g}\\nxinc={step:g}"
    return (
        f"regrid it first: {link}printf '{grid}\\nyfirst={first[1]:.6g}\\nyinc={step:g}\\n' > grid.txt; cdo "
        f"{method},grid.txt {'IN' if linked else 'linked.nc'} OUT"
    )


def lay_out(field, dataset=None, members=False):
    """Turn a field north up, west to east: (values ([member,] lat, lon), lats, lons in [-180, 180)), all float64.

    The nodes are the middles of the cells that lat and lon bounds give, where there are any.

    Raises: DataError: dimensions other than latitude and longitude, or nodes that are not ordered degrees.
    """
    lat, lon, extra = _dimensions(field, dataset, members)
    lats, lons = (np.asarray(field.coords.variables[dim].values, "float64") for dim in (lat, lon))
    for name, nodes, limit in (("latitude", lats, 90), ("longitude", lons, 360)):
        if not np.isfinite(nodes).all() or np.abs(nodes).max(initial=0) > limit + 1e-4:
            raise DataError(f"{name} holds values that are no {name}s (limit {limit}); expected degrees")
    if dataset is not None:
        lats, lons = _middles(lats, lat, dataset), _middles(lons, lon, dataset)
    shape = *(field.sizes[dim] for dim in extra if field.sizes[dim] > 1), len(lats), len(lons)
    values = np.asarray(field.variable.transpose(*extra, lat, lon).values, "float64").reshape(shape)
    lons = np.where(lons >= 180 - 1e-6, lons - 360, np.where(lons < -180 - 1e-6, lons + 360, lons))
    rows, cols = np.argsort(-lats, kind="stable"), np.argsort(lons, kind="stable")
    values, lats, lons = values[..., rows, :][..., cols], lats[rows], lons[cols]
    if len(lons) > 1 and lons[1] - lons[0] < 1e-6 and np.array_equal(values[..., 0], values[..., 1], equal_nan=True):
        values, lons = values[..., 1:], lons[1:]  # a global file whose first and last column are the same place
    for name, nodes, order in (("latitude", lats, rows), ("longitude", lons, cols)):
        if len(np.unique(nodes)) < len(nodes):
            raise DataError(f"{name} holds the same value twice; expected each node once")
        jumps = np.count_nonzero(np.abs(np.diff(order)) != 1)
        if jumps > (name == "longitude"):  # one jump in longitude: the file began at another meridian
            raise DataError(f"{name} is neither ascending nor descending; expected ordered nodes")
    return values, lats, lons


def _refuse_packing(field):
    """Raise DataError where a field's packing makes one value of all, or its fill value missing cells of dry ones."""
    scale, offset = (np.ravel(field.encoding.get(key, n))[0] for key, n in (("scale_factor", 1), ("add_offset", 0)))
    if scale == 0:
        raise DataError(f"scale_factor {scale} makes {offset} of every value; expected another number")
    for key in ("_FillValue", "missing_value"):
        codes = np.ravel(field.encoding.get(key, np.nan))
        if codes.dtype.kind in "iuf" and (codes * scale + offset == 0).any() and np.isnan(field.values).any():
            raise DataError(
                f"{key} {codes[0]} stands for 0 mm, so dry cells count as missing; expected a code that no rain has: "
                "take the attribute away, for example with ncatted -a "
                f"{key},{shown(field.name or 'tp')},d,, FILE"
            )


def _middles(nodes, dim, dataset):
    """The middles of the cells that a coordinate's bounds give; the nodes themselves where it has no bounds.

    A half cell that ends at a pole keeps its node.

    Raises: DataError: bounds that are missing, of uneven size, or away from their nodes.
    """
    variables = dataset.variables
    said = variables[dim].attrs.get("bounds") if dim in variables else None
    names = (said, f"{dim}_bnds", f"{dim}_bounds", f"{str(dim)[:3]}_bnds", f"{str(dim)[:3]}_bounds", f"bounds_{dim}")
    name = next((n for n in names if isinstance(n, str) and n in variables), None)
    if name is None or len(nodes) < 2 or variables[name].shape != (len(nodes), 2):
        return nodes
    low, high = np.sort(np.asarray(variables[name].values, "float64"), axis=1).T
    low, high = np.where(high - low > 180, high, low), np.where(high - low > 180, low + 360, high)
    middles = nodes + ((low + high) / 2 - nodes + 180) % 360 - 180
    step, width = float(np.median(np.abs(np.diff(nodes)))), high - low
    slack = 1e-2 * step + SINGLE
    polar = (np.abs(np.abs(nodes) - 90) < slack) & (width < 0.75 * step)
    fits = polar | (np.abs(width - step) < slack) & (np.abs(middles - nodes) < step / 2 + slack)
    if not fits.all():
        k = int(np.argmin(fits))
        raise DataError(
            f"{shown(name)} gives {low[k]:g} to {high[k]:g} for the node {nodes[k]:g} of {shown(dim)}, where nodes are "
            f"{step:g} degree apart; expected cells that touch: take wrong bounds away, for example with ncks -x -v "
            f"{shown(name)} IN OUT"
        )
    return nodes if (polar | (np.abs(middles - nodes) < slack)).all() else np.where(polar, nodes, middles)


def _dimensions(field, dataset=None, members=False):
    """(latitude, longitude, the other dimensions, each of size 1 but, with members, that of an ensemble), by name.

    Raises: DataError: several fields in one, or as axes_of.
    """
    lat, lon = axes_of(field, dataset)
    extra = {dim: size for dim, size in field.sizes.items() if dim not in (lat, lon)}
    allowed = "expver", member_dimension(field) if members else None
    if any(size != 1 and dim not in allowed for dim, size in extra.items()):
        raise DataError(_many(field, extra))
    return lat, lon, tuple(extra)


def newest(field):
    """A field of ERA5 without its dimension expver, in memory: the final version (1) where it is there, else 5."""
    order = np.argsort(field.coords["expver"].values.astype(str)) if "expver" in field.coords else slice(None)
    final, *others = field.transpose("expver", ...).load()[order]
    for other in others:
        final = final.fillna(other)
    return final.drop_vars("expver", errors="ignore")


def axes_of(field, dataset=None):
    """(latitude, longitude), the dimensions of a field by name.

    Raises: DataError: no latitude or longitude with a coordinate of numbers in degrees.
    """
    lat, lon = _axes(field)
    if lat is None or lon is None or lat not in field.coords or lon not in field.coords:
        words = dict.fromkeys(field.dims, "no coordinate")
        for dim in words.keys() & field.coords.keys():
            attrs = field.coords.variables[dim].attrs
            told = ("standard_name", "axis", "units", "long_name")
            words[dim] = " ".join(str(attrs[key]) for key in told if key in attrs)
        there = ", ".join(f"{shown(dim)} ({shown(about)})" for dim, about in words.items())
        raise DataError(
            f"{field.name or 'field'} has dimensions {there or 'none'}; expected latitude and longitude in degrees, "
            f"each with a coordinate; {_regrid(field, dataset)}"
        )
    for name, what in ((field.name, field), *((dim, field.coords.variables[dim]) for dim in (lat, lon))):
        if what.dtype.kind not in "fiu":
            raise DataError(f"{name} holds {what.dtype}, expected numbers")
        if name in (lat, lon) and what.dims != (name,):
            raise DataError(f"{shown(name)} lies on dimensions {shown(what.dims)}, expected its own: {shown(name)}")
    if (
        not field.coords.variables[lat].attrs
        and not field.coords.variables[lon].attrs
        and (lat.lower(), lon.lower()) == ("y", "x")
    ):
        axes = [np.asarray(field.coords.variables[dim].values, "float64") for dim in (lat, lon)]
        counted = all(np.array_equal(nodes - nodes[:1], np.arange(len(nodes))) and nodes[0] in (0, 1) for nodes in axes)
        if counted or _plane(dataset, LAT_NAMES, "n") is not None:
            raise DataError(
                f"{field.name or 'field'} has dimensions y and x that count cells; expected latitude and longitude in "
                f"degrees; {_regrid(field, dataset)}"
            )
    return lat, lon


def _with_folder(error, path):
    """The words of an error whose command takes FOLDER, with the folder of the file and one for days."""
    folder = shown(Path(path or "FOLDER/x.nc").parent.as_posix())
    return str(error).replace("FOLDER", f"{folder} --days-folder {folder}_days")


def _many(field, extra):
    """What to say of a file with several fields: how many, of what, from when to when, and the command that helps."""
    name = field.name or "field"
    roles = time_roles(field)
    clock = next((dim for dim in extra if dim in roles and extra[dim] > 1), None)
    for dim, size in extra.items():
        if size > 1 and dim != clock and dim not in ("time", "step", "valid_time", "expver"):
            inside = field.coords.variables[dim].values[:5] if dim in field.coords else range(size)
            return (
                f"{name} has {extra}: {size} fields along {shown(dim)} ({shown(', '.join(map(str, inside)), 40)}); "
                f"expected one field a file: choose one with {MAKE_DAYS} FOLDER --member NUMBER"
                if dim == member_dimension(field)
                else f"{name} has {extra}: {size} fields along {shown(dim)}; expected one field a file: take one out, "
                f"for example with ncks -d {shown(dim)},0 IN OUT"
            )
    span = ""
    if clock and roles[clock] != "period":
        try:
            times = dates(field.coords.variables[clock], clock)
            span = f", from {when(times[0])} to {when(times[-1])}"
        except DataError:
            pass
    what = f"{max(extra.values())} {'times' if clock else 'fields'}{span}"
    return f"{name} has {extra}: {what}; expected one field a file: {MAKE_DAYS} FOLDER makes days of it"


# ---------------------------------------------------------------- times


def times_of(field, path=None, bounds=None):
    """(valid time, forecast reference time or None) of a field, from its time coordinates, else from the file's name.

    An accumulation whose time is the end of its bounds has the date of their beginning.

    Raises: DataError: neither gives a date, or they give different ones.
    """
    roles = time_roles(field)
    of = {
        role: [n for n, r in roles.items() if r == role and field.coords.variables[n].size == 1]
        for role in roles.values()
    }
    reference = next((t for n in of.get("reference", ()) if (t := _decode(field, n)) is not None), None)
    valid = {name: t for name in of.get("valid", ()) if (t := _decode(field, name)) is not None}
    time = valid.get("valid_time", valid.get("time", next(iter(valid.values()), None)))
    if reference is None and "valid_time" in valid and "time" in valid and valid["time"] < time:
        reference = valid["time"]
    if time is None and reference is not None and of.get("period"):
        time = reference + np.timedelta64(round(seconds_of(field.coords.variables[of["period"][0]])[0]), "s")
    if reference is not None and reference == time:
        reference = None  # an analysis
    named = name_times(Path(path).stem) if path else None
    if named and named[1] is not None and (time, reference) in ((named[1], None), (None, named[1])):
        return named  # a forecast whose only time is the one it was issued at
    if time is None and named is None and path:
        raise DataError(
            "no decodable time coordinate, and the name is not a date; expected a name like 1950_08_01.nc (a day), "
            "2023_08_11_18_08_12_china.nc (issued, valid) or 2019_06_10_0024.nc"
        )
    if time is None:
        return named or (None, reference)
    stated = [time]
    if bounds and bounds.begin is not None:
        stated += [bounds.begin, bounds.end]
        half = np.timedelta64(12, "h")
        if not bounds.begin - half <= time <= bounds.end + half:
            raise DataError(
                f"its time is {when(time)}, and {shown(bounds.name)} gives {when(bounds.begin)} to {when(bounds.end)}; "
                "expected a time within its bounds: take the wrong one away, for example with ncks -x -v "
                f"{shown(bounds.name)} IN OUT"
            )
        time = bounds.begin if time >= bounds.end else time
    if named and named[0].astype("M8[D]") not in [t.astype("M8[D]") for t in stated]:
        raise DataError(_disagreement(named[0], stated))
    return time, reference


def _disagreement(named, stated):
    """What to say of a file whose name gives another date than its time coordinate."""
    days = (stated[0].astype("M8[D]") - named.astype("M8[D]")).astype(int)
    words = f"its name says {when(named)}, its time coordinate {when(stated[0])}; expected one date"
    if days == 1 and stated[0] == stated[0].astype("M8[D]"):
        return (
            f"{words}: where the coordinate is the end of the day that the name gives (ERA5-Land at 00 UTC), "
            f"{MAKE_DAYS} FOLDER --stamps end writes days with one date"
        )
    return f"{words}: rename it, or take the wrong coordinate away, for example with ncks -x -v time IN OUT"


def _decode(field, name):
    """The time of a coordinate as datetime64, encoded by CF or decoded already; None where it is not one time.

    Raises: DataError: as `dates`.
    """
    coordinate = field.coords.variables[name]
    if coordinate.size != 1 or not (
        coordinate.dtype.kind in "MO" or " since " in str(coordinate.attrs.get("units", ""))
    ):
        return None
    (value,) = dates(coordinate, name)
    return None if np.isnat(value) else value


# ---------------------------------------------------------------- units and values


def _summary(values):
    """(maximum, sum, count, minimum) of the valid values, from which the units of a folder are decided."""
    valid = values[np.isfinite(values)]
    return float(valid.max(initial=0)), float(valid.sum(dtype="float64")), int(valid.size), float(valid.min(initial=0))


def _plateau(values):
    """(number of cells that hold the maximum exactly, the highest value below it)."""
    top = np.nanmax(values)
    return int(np.count_nonzero(values == top)), float(values.max(initial=0, where=values < top))


def refuse_code(values, factor, field):
    """Raise DataError where one of many fields that become a day holds a code for missing cells, as _codes says.

    Args: values: as stored. factor: to mm.
    """
    top = values.max(initial=0, where=np.isfinite(values))
    if top * factor < CODE:
        return
    cells, below = _plateau(np.where(np.isfinite(values), values, 0))
    if cells >= max(3, 1e-3 * values.size) and top > 2 * below:
        raise DataError(
            f"{field.encoding.get('source', field.name)}: {cells} cell(s) of one time hold exactly {top:g}, the "
            f"largest amount below is {below:.4g}: a code for missing? cdo setctomiss,{top:g} IN OUT makes such cells "
            "missing"
        )


def decide_units(summaries):
    """Decide from the values of all files together whether files without units are in metres or in millimetres.

    A daily total in metres stays below 2 (2,000 mm); days in millimetres pass 2 wherever it rains.

    Args: summaries: _summary of each file.
    Raises: DataError: the values could be either.
    """
    maximum, total, count = max(s[0] for s in summaries), sum(s[1] for s in summaries), sum(s[2] for s in summaries)
    if maximum >= MAX_DAILY / 1000:
        return "mm"
    if len(summaries) > 1 and maximum >= 0.005 and total / max(count, 1) < 0.1:
        return "m"
    raise DataError(
        f"no units attribute, and {len(summaries)} file(s) with a maximum of {maximum:g} could be in metres or in "
        "millimetres; say which with --units m or --units mm"
    )


def _one_unit(bare):
    """Refuse a folder where files in metres seem to stand beside files in millimetres, all without units.

    The sorted maxima of the files then jump from below 2 to much more. Maxima below 0.001 are not compared: such a
    day is dry in either unit.

    Args: bare: records (path, summary) of the files without units.
    Raises: DataError: names the files on both sides of the jump.
    """
    found = sorted((record["summary"][0], record["path"]) for record in bare if record["summary"][0] >= 0.001)
    for (low, path), (high, other) in zip(found, found[1:], strict=False):
        if low < MAX_DAILY / 1000 and high >= max(JUMP * low, 0.3):
            raise DataError(
                f"no units attribute, and maxima that jump from {low:g} ({Path(path).name}) to {high:g} "
                f"({Path(other).name}): metres beside millimetres, or dry days? Give the files their units, for "
                "example with ncatted -a units,tp,c,c,m FILE, or say what all are in with --units m or --units mm"
            )


def to_mm(values, units, hours=None):
    """Convert values to mm and check them: packing noise becomes 0, NaN stays missing.

    With units AS_STORED they are only checked for being finite. Args: hours: the period of a rate.

    Raises: DataError: a cell that is infinite, more negative than packing noise or above MAX_DAILY; every cell missing.
    """
    factor = 1.0
    if units == AS_STORED:
        mm, bad = values, np.abs(values) > 1e38  # infinite, also once they are float32
    else:
        factor, rate = unit_factor(units)
        factor *= hours * 3600 if rate else 1
        mm = values * factor
        with np.errstate(invalid="ignore"):
            bad = np.isinf(mm) | (mm < PACKING_NOISE) | (mm > MAX_DAILY)
    if bad.any():
        *member, row, col = where = np.argwhere(bad)[0]
        value, words = values[tuple(where)], f"member {member[0]}, " if member else ""
        if value < 0:  # a little below 0: made by interpolation; far below: a code
            low, close = PACKING_NOISE / factor, value * factor > -10
            command = f"cdo {'setrtoc' if close else 'setrtomiss'},-1e30,{low:g}{',0' if close else ''} IN OUT"
            advice = f"{command} makes such cells {'0' if close else 'missing'}"
        else:
            advice = "wrong units? override with --units"
        raise DataError(
            f"{words}row {row} from the north, column {col} from the west holds {value:g} {units} ({bad.sum()} "
            f"such cell(s)); expected 0 to {MAX_DAILY:g} mm, NaN for missing; {advice}"
        )
    if not np.isfinite(mm).any():
        raise DataError("every value is missing; expected a field of rain")
    return mm if units == AS_STORED else np.where(mm < 0, 0.0, mm)


# ---------------------------------------------------------------- folders of files


def inspect_files(paths, units="auto", period=None, valid_max=None, members=False):
    """Read every file once and decide the units of those that give none.

    Args: paths: list of files. units: `auto` or one of UNITS. period: hours; None: as each file says, or their
        spacing. valid_max: the largest rain, mm; None: up to MAX_DAILY, but no missing code. members: take ensembles.
    Returns: (records, faults): records of plain values (path, size, mtime_ns, time, forecast_reference_time, units,
        units_from, step, rows, cols, archive, variable, long_name, edges, period in hours or None, period_from,
        checksum of the values, mean and maximum in mm, missing share) of good files by date; messages of bad ones.
    """
    records, faults = [], []
    for path in utils.progress(paths, "reading"):
        try:
            records.append(_inspect(path, None if units == "auto" else units, period, members))
        except DataError as error:
            faults.append(str(error))
    records, more = _decide_bare(records)
    records = sorted(map(_told, records), key=lambda r: (r["time"], r["forecast_reference_time"] or "", r["path"]))
    records, codes = _codes(records, valid_max)
    records, mixed = settle_periods(records)
    return records, faults + more + codes + mixed


def _told(record):
    """A record with its mean, maximum (mm) and missing share instead of its sums in the file's units."""
    highest, total, count, _ = record.pop("summary")
    factor = AMOUNTS[record["units"]] if record["units_from"] == "values" else 1.0
    mean, missing = total / max(count, 1) * factor, 1 - count / (record["rows"] * record["cols"] * record["members"])
    cells, below = record["plateau"]
    record["plateau"] = cells, cells / max(count, 1), below * factor
    return {**record, "mean": round(mean, 4), "maximum": round(highest * factor, 3), "missing": round(missing, 5)}


def _codes(records, valid_max):
    """Take away records whose maximum is no rain: (those that are good, faults).

    It is above valid_max; or nobody typed valid_max and it is a code for missing cells (255, 999): of at least CODE mm
    and exactly the same in many cells, or in a few (or in files) with no amount between half of it and it.
    """
    alone = Counter(r["maximum"] for r in records if r["maximum"] > 2 * r["plateau"][2])
    good, faults = [], []
    for record in records:
        (cells, share, below), value = record.pop("plateau"), record["maximum"]
        several = cells >= 3 or alone[value] >= 3
        if valid_max is not None and value > valid_max:
            words = f"{cells} cell(s) hold {value:g} mm; expected at most {valid_max:g} (--valid-max)"
        elif (
            valid_max is None
            and value >= CODE
            and (cells >= max(3, 1e-3 * cells / share) or several and value > 2 * below)
        ):
            words = (
                f"{cells} cell(s) ({100 * share:.2g} %) hold exactly {value:g} mm, the largest amount below is "
                f"{below:.4g}: a code for missing? If it is rain, list the files with --valid-max {value:g}"
            )
        else:
            good.append(record)
            continue
        stored = value / AMOUNTS.get(record["units"], math.nan)
        advice = f"; cdo setctomiss,{stored:g} IN OUT makes such cells missing" if stored > 0 else ""
        faults.append(f"{record['path']}: {words}{advice}")
    return good, faults


def _decide_bare(records):
    """Decide the units of the files that give none, and check their values: (records that are good, faults).

    Where the units cannot be decided no record is left.
    """
    faults, possible = [], []
    for record in records:
        high, low = record["summary"][0], record["summary"][3]
        if record["units"] == AS_STORED and (high > MAX_DAILY or low < PACKING_NOISE):  # impossible in either unit
            faults.append(
                f"{record['path']}: values from {low:g} to {high:g}, no units attribute; expected 0 to {MAX_DAILY:g} "
                "mm, NaN for missing (an undeclared fill value? set _FillValue, for example with cdo setmissval)"
            )
        else:
            possible.append(record)
    bare = [record for record in possible if record["units"] == AS_STORED]
    if not bare:
        return possible, faults
    try:
        _one_unit(bare)
        decided = decide_units([record["summary"] for record in bare])
    except DataError as error:
        return [], [*faults, f"{Path(bare[0]['path']).parent}: {error}"]
    for record in bare:
        record.update(units=decided, units_from="values")
        high, low = record["summary"][0] * AMOUNTS[decided], record["summary"][3] * AMOUNTS[decided]
        if low < PACKING_NOISE or high > MAX_DAILY:
            faults.append(
                f"{record['path']}: values from {low:g} to {high:g} mm (read as {decided}); expected 0 to "
                f"{MAX_DAILY:g} mm, NaN for missing; wrong units? override with --units"
            )
            possible.remove(record)
    return possible, faults


def _inspect(path, units, hours=None, members=False):
    """The record of one file; its units are AS_STORED where neither `units` nor an attribute gives them."""
    with understood(path), opened(path) as dataset:
        field = _load(dataset, path, members)
        period = Period(hours, "--period") if hours else None
        tp = canonical(field, path, units, dataset, undecided=AS_STORED, period=period, members=members)
    (size, mtime_ns), grid, reference = stamp(path), grid_of(tp), tp.coords.get("forecast_reference_time")
    return {
        "path": Path(path).as_posix(),
        "size": size,
        "mtime_ns": mtime_ns,
        "time": str(tp.time.values)[:16],
        "forecast_reference_time": None if reference is None else str(reference.values)[:16],
        "units": tp.attrs["units_in_file"],
        "units_from": "--units" if units else "attribute",
        "step": float(grid.step),
        "rows": grid.rows,
        "cols": grid.cols,
        "archive": tp.attrs.get("archive", ""),
        "variable": shown(field.name),
        "long_name": shown(text_of(field.attrs, "long_name")),
        "edges": list(grid.edges),
        "members": tp.sizes.get("member", 1),
        "period": tp.attrs.get("period_hours"),
        "period_from": tp.attrs.get("period_from", ""),
        "checksum": zlib.crc32(np.ascontiguousarray(tp.values)),
        "summary": _summary(tp.values),
        "plateau": _plateau(tp.values),
    }


# ---------------------------------------------------------------- grids


@dataclass(frozen=True)
class Grid:
    """A grid of square cells: its north and west outer edges and its step, exact fractions of a degree, and its size.

    Rows run from north to south.
    """

    north: Fraction
    west: Fraction
    step: Fraction
    rows: int
    cols: int

    @cached_property
    def _hash(self):
        return hash((self.north, self.west, self.step, self.rows, self.cols))

    def __hash__(self):  # hashing fractions is slow, and the caches of this program are looked up by grid
        return self._hash

    @property
    def south(self):
        return self.north - self.rows * self.step

    @property
    def east(self):
        return self.west + self.cols * self.step

    @property
    def shape(self):
        return self.rows, self.cols

    @property
    def origin(self):
        """(row, column) of the first cell, counted from the pole and from 180 W, so independent of the region."""
        return int((90 - self.north) / self.step), int((self.west + 180) / self.step)

    @property
    def lat(self):
        """Cell centres, degrees north, descending."""
        return centres(self.north, -self.step, self.rows)

    @property
    def lon(self):
        """Cell centres, degrees east, ascending."""
        return centres(self.west, self.step, self.cols)

    @property
    def edges(self):
        """The outer edges (west, east, south, north), degrees."""
        return tuple(map(float, (self.west, self.east, self.south, self.north)))

    @property
    def extent(self):
        """The outer edges in words."""
        return utils.extent_in_words(self.edges)

    def refine(self, scale):
        """The grid of the same extent with cells `scale` times finer."""
        return Grid(self.north, self.west, self.step / scale, self.rows * scale, self.cols * scale)

    def coarsen(self, step):
        """The grid of whole cells of `step` degrees from the north-west corner on; an incomplete rest is left out."""
        return Grid(self.north, self.west, step, int(self.rows * self.step / step), int(self.cols * self.step / step))

    def holds(self, other):
        """True where `other` lies inside this extent."""
        across = self.west <= other.west and other.east <= self.east
        return across and self.south <= other.south and other.north <= self.north

    def window(self, other):
        """The row and column slices of this grid that `other`, a part of it, covers.

        Raises: DataError: `other` has other cells or reaches beyond this grid.
        """
        row, col = (self.north - other.north) / self.step, (other.west - self.west) / self.step
        if self.step != other.step or row.denominator != 1 or col.denominator != 1 or not self.holds(other):
            raise DataError(
                f"cells over {other.extent} at {float(other.step):g} degree are not cells of the grid over "
                f"{self.extent} at {float(self.step):g} degree"
            )
        return slice(int(row), int(row) + other.rows), slice(int(col), int(col) + other.cols)

    @classmethod
    def from_centres(cls, lat, lon):
        """The grid that has these cell centres (floats, degrees), lat descending and lon ascending.

        Raises: DataError: fewer than two nodes, irregular spacing, or cells that are not square.
        """
        return _grid_of_nodes(*(np.asarray(nodes, "float64").tobytes() for nodes in (lat, lon)))


@lru_cache(maxsize=64)
def _grid_of_nodes(lat, lon):
    """Grid.from_centres of the bytes of float64 nodes, kept for the next of thousands of files on the same grid."""
    lat, lon = (np.frombuffer(nodes, "float64") for nodes in (lat, lon))
    step_lat, step_lon = regular_step(-lat, "lat"), regular_step(lon, "lon")
    if step_lat != step_lon:
        raise DataError(
            f"steps of lat ({float(step_lat):g}) and lon ({float(step_lon):g} degree) differ; "
            "expected square cells: regrid the file, for example with cdo remapcon"
        )
    north, west = snap(lat[0], step_lat) + step_lat / 2, snap(lon[0], step_lat) - step_lat / 2
    return Grid(north, west, step_lat, len(lat), len(lon))


def grid_of(tp):
    """The Grid of a canonical field."""
    return Grid.from_centres(tp.lat.values, tp.lon.values)


def ratio(value):
    """Convert a step or bound in degrees to the fraction that was meant (0.4 to 2/5, 0.0083333 to 1/120)."""
    return value if isinstance(value, Fraction) else Fraction(float(value)).limit_denominator(7200)


def simplest(low, high):
    """The fraction with the smallest denominator between low and high, 0 < low < high."""
    whole = -(-low // 1)
    return Fraction(whole) if whole <= high else whole - 1 + 1 / simplest(1 / (high - whole + 1), 1 / (low - whole + 1))


def snap(value, step):
    """Convert a node's coordinate to an exact fraction: the nearest eighth of a step, where rounding explains the rest.

    Files with float32 coordinates miss their own lattice a little.
    """
    eighth = round(Fraction(float(value)) / step * 8) * step / 8
    slack = max(1e-6 * abs(value), SINGLE) + 1e-3 * float(step)
    return eighth if abs(float(eighth) - value) < slack else ratio(value)


def centres(edge, step, count):
    """`count` cell centres from an outer edge on, degrees, made from exact integers and rounded to 1e-6 degree."""
    start, scale = edge + step / 2, (edge + step / 2).denominator * step.denominator
    index = int(start * scale) + np.arange(count) * int(step * scale)
    return np.round(index / scale, 6)


def regular_step(nodes, name):
    """The spacing of ascending nodes as a fraction of a degree.

    Raises: DataError: fewer than two nodes, or more than one spacing.
    """
    if len(nodes) < 2:
        raise DataError(f"{name} has {len(nodes)} node(s); expected a grid of at least 2 x 2 cells")
    gaps = np.diff(nodes)
    mean, blur = Fraction(float(nodes[-1] - nodes[0])) / len(gaps), Fraction(SINGLE) / len(gaps)
    step = simplest(mean - blur, mean + blur).limit_denominator(7200) if mean > blur else ratio(mean)
    slack = max(1e-6 * np.abs(nodes).max(), SINGLE) + 1e-3 * float(step)  # float32 coordinates of a fine grid
    if step <= 0 or np.abs(gaps - float(step)).max() > slack:
        k = int(np.abs(gaps - float(step)).argmax())
        raise DataError(
            f"{name} is not regular: {abs(nodes[k]):g} to {abs(nodes[k + 1]):g} where the mean step is "
            f"{float(step):g} degree; expected one step (a region across 180 degrees must be cut in two)"
        )
    return step
