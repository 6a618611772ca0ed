"""Reads any input file of precipitation as one canonical field.

Reads    NetCDF files of precipitation on a regular (lat, lon) grid, one day (or one accumulation) a file.
Writes   nothing.

    from reader import read_field
    tp = read_field("Data/DataEval/2023_08_01.nc")    # DataArray (lat, lon), mm, north first, west to east

A value is the mean of the square cell around its node. Grids are kept as exact fractions of a degree; floats appear
only in coordinates. xarray and cftime are imported where files are opened, so that --help of a stage answers at once.
"""

import os
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, cached_property, lru_cache
from pathlib import Path

import numpy as np

import utils
from utils import DataError

RAIN_NAMES = ("tp", "pr", "prcp", "precip", "precipitation", "tp_sum")
LAT_NAMES, LON_NAMES = ("lat", "latitude", "y"), ("lon", "longitude", "x")
JUMP = 20.0  # ratio of neighbouring maxima of files without units: above it metres stand beside millimetres
PACKING_NOISE = -0.1  # mm; values from here to 0 come from packing and become 0, lower ones are an error
MAX_DAILY = 2000.0  # mm; the record for one day is 1825 mm (Foc-Foc, La Reunion, 1966)
SINGLE = 4e-5  # degrees; rounding error of a float32 coordinate near 360
MAX_CELLS = 1_000_000_000  # the whole globe at 0.01 degree holds 648 million; a damaged header claims more
AS_STORED = "as stored"  # stands for units not decided yet: the values are kept as the file stores them
AMOUNTS = {"mm": 1.0, "cm": 10.0, "m": 1000.0, "kg m-2": 1.0}  # to mm
RATES = {"kg m-2 s-1": 1.0, "mm s-1": 1.0, "mm h-1": 1 / 3600, "mm day-1": 1 / 86400, "m s-1": 1000.0}  # to mm / s
UNITS = (*AMOUNTS, *RATES)

__all__ = ["UNITS", "Grid", "canonical", "grid_of", "inspect_files", "ratio", "read_field", "stamp"]


# ---------------------------------------------------------------- the one reader


def read_field(path, units=None):
    """Read the precipitation field of one input file, whatever its layout and units.

    Args: path: NetCDF file. units: units of its values (one of UNITS); None: those of its attribute, or those decided
        from the values where only one reading is possible.
    Returns: DataArray `tp` (lat, lon), float32, mm per accumulation, lat descending, lon ascending in [-180, 180),
        NaN = missing; scalar coordinates `time` and, for forecasts, `forecast_reference_time`; attribute `source`.
    Raises: DataError: names the file, what was found, what was expected and what to do.
    """
    with _open(path) as dataset:
        return canonical(_pick(dataset, path), path, units, dataset)


def canonical(field, path=None, units=None, dataset=None, undecided=None):
    """Convert one DataArray to the form that read_field returns.

    Args: field: precipitation in any layout. path: its name gives the date where there is no time coordinate.
        units: as in read_field. dataset: its variables hold the time bounds. undecided: units to take where neither
        `units` nor an attribute gives them; None: decide them from the values.
    Raises: DataError: as read_field.
    """
    import xarray as xr

    name = str(path) if path else "the field"
    try:
        time, reference = _field_times(field, path)
        values, lats, lons = _lay_out(field)
        units = units or _own_units(field) or undecided or decide_units([_summary(values)])
        if units not in (*UNITS, AS_STORED):
            raise DataError(f"units {units!r} (of PreInfo.json?): expected one of {', '.join(UNITS)}")
        values = _to_mm(values, units, dataset, path).astype("float32")
        grid = Grid.from_centres(lats, lons)
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
    times = {"time": time, "forecast_reference_time": reference}
    coords = {key: np.datetime64(value, "ns") for key, value in times.items() if value is not None}
    attrs = {"units": "mm", "units_in_file": units, "source": Path(path).name if path else "memory"}
    if dataset is not None and "archive" in dataset.attrs:
        attrs["archive"] = str(dataset.attrs["archive"])
    return xr.DataArray(values, {"lat": grid.lat, "lon": grid.lon, **coords}, ("lat", "lon"), "tp", attrs)


def _open(path):
    """The file as an xarray Dataset, nothing decoded but packing and missing values."""
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file; run 1create_data_lists.py again if the archive has moved")
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "no ordinary file"
        raise DataError(f"{path}: {kind}, expected a NetCDF file")
    import xarray as xr

    try:
        return xr.open_dataset(path, **_open_options())
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


def _damaged(path, error):
    """The DataError for a file that the NetCDF library cannot read."""
    words = (str(error).splitlines() or [type(error).__name__])[0][:120]
    if "\\" in str(path):
        words = "its name holds a backslash, which the NetCDF library does not open: rename it"
    if str(path).encode("utf-8", "replace") != os.fsencode(path):
        words = "its name is not UTF-8, which the NetCDF library does not open: rename it"
    return DataError(f"{path}: cannot be read as NetCDF ({words}); is it complete? try ncdump, or fetch it again")


def _axis(field, names, standard, direction):
    """The dimension of `field` that is latitude (or longitude), found by its name or its CF attributes; None if absent.

    A dimension whose attributes name something else (a projection, a rotated pole, the other axis, radians) is not
    taken, whatever its name.
    """
    compass = ("north", "n") if direction == "Y" else ("east", "e")
    own = {f"{degree}_{d}" for degree in ("degree", "degrees") for d in compass}
    for dim in field.dims:
        attrs = field[dim].attrs if dim in field.coords else {}
        said = {key: str(attrs.get(key, "")).strip().lower() for key in ("standard_name", "axis", "units")}
        if (
            said["standard_name"] not in ("", standard)
            or said["axis"] not in ("", direction.lower())
            or said["units"] not in ("", "degree", "degrees", *own)
        ):
            continue
        if dim.lower() in names or said["standard_name"] == standard or said["axis"] or said["units"] in own:
            return dim
    return None


def _axes(field):
    return _axis(field, LAT_NAMES, "latitude", "Y"), _axis(field, LON_NAMES, "longitude", "X")


def _pick(dataset, path):
    """The precipitation variable of a dataset, in memory: one of RAIN_NAMES, else the only field on (lat, lon).

    Raises: DataError: none or several, a projected grid, too many cells, or an output of stages 3 and 4.
    """
    if {"checkpoint", "request"} <= set(dataset.attrs):
        raise DataError(
            f"{path}: made by stage 3 or 4 with {dataset.attrs['checkpoint']}; expected days or forecasts to work on: "
            "keep results (--out) and inputs in folders of their own"
        )
    named = [name for name in dataset.data_vars if name.lower() in RAIN_NAMES]
    fields = [name for name, var in dataset.data_vars.items() if None not in _axes(var) and var.dtype.kind in "fiu"]
    found = named or fields
    if len(found) == 1:
        field = dataset[found[0]]
        mapping = field.attrs.get("grid_mapping", field.encoding.get("grid_mapping"))
        kind = dataset[mapping].attrs.get("grid_mapping_name") if mapping in dataset.variables else None
        if kind not in (None, "latitude_longitude"):
            raise DataError(
                f"{path}: {found[0]} is on a grid of mapping {kind}; expected latitude and longitude: regrid it, for "
                "example with cdo remapbil"
            )
        if field.size > MAX_CELLS:
            raise DataError(
                f"{path}: {found[0]} has {dict(field.sizes)}; expected one day, at most {MAX_CELLS:g} cells"
            )
        try:  # damage inside a file shows only when its values are read
            return field.load()
        except Exception as error:
            raise _damaged(path, error) from None
    there = (
        ", ".join(f"{name}{tuple(var.dims)}" for name, var in dataset.data_vars.items())
        or "no variable (groups are not read)"
    )
    raise DataError(
        f"{path}: {'several' if found else 'no'} precipitation fields: found {there}; expected one of "
        f"{', '.join(RAIN_NAMES)}, or a single variable on (lat, lon); rename it, for example with ncrename or "
        "cdo -setname,tp"
    )


def _lay_out(field):
    """Turn a field north up and west to east: (values (lat, lon), latitudes, longitudes in [-180, 180)), float64.

    Raises: DataError: dimensions other than latitude and longitude, or nodes that are not ordered degrees.
    """
    lat, lon, extra = _dimensions(field)
    lats, lons = (np.asarray(field[dim].values, "float64") for dim in (lat, lon))
    for name, nodes, limit in (("latitude", lats, 90), ("longitude", lons, 360)):
        if not np.isfinite(nodes).all() or np.abs(nodes).max(initial=0) > limit + 1e-4:
            raise DataError(f"{name} holds values that are no {name}s (limit {limit}); expected degrees")
    values = np.asarray(field.variable.transpose(*extra, lat, lon).values, "float64").reshape(len(lats), len(lons))
    lons = np.where(lons >= 180 - 1e-6, lons - 360, np.where(lons < -180 - 1e-6, lons + 360, lons))
    rows, cols = np.argsort(-lats, kind="stable"), np.argsort(lons, kind="stable")
    values, lats, lons = values[rows][:, cols], lats[rows], lons[cols]
    if len(lons) > 1 and lons[1] - lons[0] < 1e-6 and np.array_equal(values[:, 0], values[:, 1], equal_nan=True):
        values, lons = values[:, 1:], lons[1:]  # a global file whose first and last column are the same place
    for name, nodes, order in (("latitude", lats, rows), ("longitude", lons, cols)):
        if len(np.unique(nodes)) < len(nodes):
            raise DataError(f"{name} holds the same value twice; expected each node once")
        jumps = np.count_nonzero(np.abs(np.diff(order)) != 1)
        if jumps > (name == "longitude"):  # one jump in longitude: the file began at another meridian
            raise DataError(f"{name} is neither ascending nor descending; expected ordered nodes")
    return values, lats, lons


def _dimensions(field):
    """(latitude, longitude, the other dimensions, each of size 1) of a field, by name.

    Raises: DataError: no latitude or longitude with a coordinate of numbers, or several fields in one.
    """
    lat, lon = _axes(field)
    if lat is None or lon is None or lat not in field.coords or lon not in field.coords:
        words = dict.fromkeys(field.dims, "no coordinate")
        for dim in words.keys() & field.coords.keys():
            attrs = field[dim].attrs
            words[dim] = " ".join(str(attrs[key]) for key in ("standard_name", "axis", "units") if key in attrs)
        there = ", ".join(f"{dim} ({about})" for dim, about in words.items())
        raise DataError(
            f"{field.name or 'field'} has dimensions {there or 'none'}; expected latitude and longitude in degrees, "
            "each with a coordinate; regrid a projected file, for example with cdo remapbil"
        )
    for what in (field, field[lat], field[lon]):
        if what.dtype.kind not in "fiu":
            raise DataError(f"{what.name} holds {what.dtype}, expected numbers")
    extra = {dim: size for dim, size in field.sizes.items() if dim not in (lat, lon)}
    if any(size != 1 for size in extra.values()):
        raise DataError(
            f"{field.name or 'field'} has {extra}; expected one field a file: split it, for example with cdo splitsel,1"
        )
    return lat, lon, tuple(extra)


# ---------------------------------------------------------------- times


def _field_times(field, path=None):
    """(valid time, forecast reference time or None) of a field, from its time coordinate, else from the file's name.

    Raises: DataError: neither gives a date.
    """
    reference = _decode(field, "forecast_reference_time")
    valid, plain = _decode(field, "valid_time"), _decode(field, "time")
    time = plain if valid is None else valid
    named = _name_times(Path(path).stem) if path else None
    if named and named[1] is not None and reference is None and valid is None and plain == named[1]:
        return named  # a forecast whose only time is the one it was issued at
    if time is None and named is None and path:
        raise DataError(
            "no decodable time coordinate, and the name is not a date; expected a name like 1950_08_01.nc (a day), "
            "2023_08_11_18_08_12_china.nc (issued, valid) or 2019_06_10_0024.nc"
        )
    return (time, reference) if time is not None else named or (None, None)


def _name_times(stem):
    """(valid time, forecast reference time or None) that a file name gives, or None where it gives no date.

    A forecast whose valid month comes before its month of issue is valid in the next year: 2023_12_31_18_01_01_x.
    """
    parts = re.match(
        r"(\d{4})[_-](\d\d)[_-](\d\d)(?:[_-](\d\d)[_-](\d\d)[_-](\d\d)(?!\d)|[_-](\d\d)(\d\d)(?!\d))?(?!\d)", stem
    )
    parts = parts or re.fullmatch(r"(\d{4})(\d\d)(\d\d)()()()()()", stem)
    if not parts:
        return None
    year, month, day, hour, valid_month, valid_day, clock_hour, clock_minute = parts.groups()
    if not 1678 <= int(year) < 2261:
        return None
    try:
        issued = np.datetime64(f"{year}-{month}-{day}T{hour or clock_hour or '00'}:{clock_minute or '00'}", "ns")
        if not valid_month:
            return issued, None
        valid = np.datetime64(f"{int(year) + (valid_month < month)}-{valid_month}-{valid_day}", "ns")
    except ValueError:
        return None
    return valid, issued


def _decode(field, name):
    """The time of a coordinate as datetime64, encoded by CF or decoded already; None where it is not one time.

    Raises: DataError: an encoded time that is no date, or one outside 1678 to 2261.
    """
    if name not in field.coords or field[name].size != 1:
        return None
    coordinate, value = field[name], field[name].values.reshape(-1)[0]
    if np.issubdtype(coordinate.dtype, np.datetime64):
        return value if not np.isnat(value) else None
    import cftime

    units, calendar = str(coordinate.attrs.get("units", "")), str(coordinate.attrs.get("calendar", "standard"))
    if isinstance(value, cftime.datetime):
        date, calendar = value, value.calendar
    elif " since " in units:
        try:
            date = cftime.num2date(float(value), units, calendar)
            date.isoformat()
            if calendar == "julian":  # the same days under other dates, 13 days behind
                date = date.change_calendar("standard")
        except (ValueError, OverflowError, TypeError, AttributeError):  # a missing value decodes to a masked one
            raise DataError(
                f"{name} {value} in {units!r} (calendar {calendar}) is no date; expected a number, "
                "like 0 in 'days since 2023-08-01'"
            ) from None
    else:
        return None
    if not 1678 <= date.year < 2262:
        raise DataError(
            f"{name} is in the year {date.year}; expected 1678 to 2261, what NetCDF tools hold to the nanosecond"
        )
    try:  # a date of a model calendar is kept as it stands; 30 February cannot be
        return np.datetime64(date.isoformat()[:19], "ns")
    except ValueError:
        raise DataError(
            f"{name} {date.isoformat()} of calendar {calendar} is no day of the Gregorian calendar"
        ) from None


# ---------------------------------------------------------------- units and values


def _own_units(field):
    """The units that a field's attributes give, one of UNITS; None where they give none.

    Raises: DataError: attributes that are not understood, contradict each other, or contradict the values.
    """
    units, name = _unit_name(field.attrs.get("units")), str(field.attrs.get("standard_name", ""))
    if name and not re.search("precip|rain|snow", name):
        raise DataError(
            f"standard_name {name} is no rain; expected precipitation: choose another variable, or give its units with "
            "--units"
        )
    if units not in RATES and name.endswith(("_flux", "_rate")):
        raise DataError(
            f"standard_name {name} is a rate, units {units or 'there are none'}; give its units with --units"
        )
    limit = np.ravel(field.attrs.get("valid_max", field.attrs.get("valid_range", np.inf)))[-1]
    if isinstance(limit, np.integer) and "scale_factor" in field.encoding:  # of the packed values
        limit = limit * field.encoding["scale_factor"] + field.encoding.get("add_offset", 0)
    highest = np.nanmax(field.values, initial=0)
    if isinstance(limit, (int, float, np.number)) and highest > limit * (1 + 1e-6):
        raise DataError(
            f"holds {highest:g}, above its own valid_max (or valid_range) {limit:g}; make such cells missing, for "
            f"example with cdo setrtomiss,{limit:g},1e30"
        )
    return units


def _unit_name(text):
    """Convert a units attribute to one of UNITS ("metres" to "m", "kg/m2" to "kg m-2"); None where it is empty.

    Raises: DataError: an attribute that is not understood.
    """
    if text is None or not str(text).strip():
        return None
    words = re.sub(r"\*\*|\^", "", re.sub(r"\s+", " ", str(text).strip()))
    words = words.replace("kg/m2/s", "kg m-2 s-1").replace("kg/m2", "kg m-2").replace("kg m-2/s", "kg m-2 s-1")
    words = re.sub(r"\s*of water( equivalent)?$", "", re.sub(r"/\s*(s|h|hr|hour|d|day)$", r" \1-1", words))
    words = re.sub(r"(millimet(er|re)s?)", "mm", re.sub(r"(centimet(er|re)s?)", "cm", words))
    words = re.sub(r"\bmet(er|re)s?\b", "m", words)
    words = re.sub(r"(?:h|hr|hour)-1$", "h-1", re.sub(r"(?:d|day)-1$", "day-1", words))
    if words not in UNITS:
        raise DataError(f"units {text!r} are not understood; expected one of {', '.join(UNITS)}; override with --units")
    return words


def _summary(values):
    """(maximum, sum, count, minimum) of the valid values, from which the units of a folder are decided."""
    valid = values[np.isfinite(values)]
    return float(valid.max(initial=0)), float(valid.sum(dtype="float64")), int(valid.size), float(valid.min(initial=0))


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


def _to_mm(values, units, dataset, path):
    """Convert values to mm and check them: packing noise becomes 0, NaN stays missing.

    With units AS_STORED they are only checked for being finite.

    Raises: DataError: a cell that is infinite, more negative than packing noise or above MAX_DAILY; every cell missing;
        time bounds of more than a day.
    """
    bounds = name, seconds, _ = _bounds(dataset)
    if seconds > 1.05 * 86400:
        raise DataError(
            f"{name} span {seconds / 86400:g} days; expected a file a day (or less): cut it, for example with cdo "
            "splitsel,1"
        )
    if units == AS_STORED:
        mm, bad = values, np.abs(values) > 1e38  # infinite, also once they are float32
    else:
        mm = values * (AMOUNTS[units] if units in AMOUNTS else RATES[units] * _period(units, bounds, path))
        with np.errstate(invalid="ignore"):
            bad = np.isinf(mm) | (mm < PACKING_NOISE) | (mm > MAX_DAILY)
    if bad.any():
        row, col = np.argwhere(bad)[0]
        raise DataError(
            f"row {row} from the north, column {col} from the west holds {values[row, col]:g} {units} ({bad.sum()} "
            f"such cell(s)); expected 0 to {MAX_DAILY:g} mm, NaN for missing; "
            + (
                "a code for no data? cdo setrtomiss,-1e30,-0.1 IN OUT makes it missing"
                if values[row, col] < 0
                else "wrong units? override with --units"
            )
        )
    if not np.isfinite(mm).any():
        raise DataError("every value is missing; expected a field of rain")
    return mm if units == AS_STORED else np.where(mm < 0, 0.0, mm)


def _period(units, bounds, path):
    """Seconds over which a rate is accumulated: those of its time bounds, else one day where the file's name is a day.

    Args: bounds: as _bounds returns them.
    Raises: DataError: bounds that give no period, or neither bounds nor a name that is a day.
    """
    name, seconds, found = bounds
    if name and not seconds > 0:
        raise DataError(
            f"units {units} are a rate, and {name} gives no period: {found}; "
            "expected start and end, and a time unit of seconds, minutes, hours or days"
        )
    if name:
        return seconds
    stem = Path(path).stem if path else ""
    times = _name_times(stem)
    clock = re.match(r"\d{4}[_-]\d\d[_-]\d\d[_-]\d{4}(?!\d)", stem)  # 2019_06_10_0000: a time of day, not a day
    if units == "mm day-1" or (times and not clock):
        return 86400.0
    raise DataError(
        f"units {units} are a rate and the file does not say over which period; add time bounds, or give amounts"
    )


def _bounds(dataset):
    """(name, seconds from start to end, description) of a dataset's time bounds.

    Seconds are NaN where the bounds are not understood; the name is None where there are no bounds.
    """
    variables = {} if dataset is None else dataset.variables
    time = variables["time"].attrs if "time" in variables else {}
    for name in (time.get("bounds"), "time_bnds", "time_bounds"):
        if name in variables:
            unit = str(variables[name].attrs.get("units") or time.get("units", "")).split(" since")[0].strip()
            seconds = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}.get(unit.lower().rstrip("s"), np.nan)
            values = np.asarray(variables[name].values)
            span = float(np.ptp(values.astype("float64"))) if values.dtype.kind in "iuf" else np.nan
            return name, span * seconds, f"{values.ravel()} in {unit or 'no unit'}"
    return None, np.nan, ""


# ---------------------------------------------------------------- folders of files


def inspect_files(paths, units="auto"):
    """Read every file once and decide the units of those that give none.

    Args: paths: list of files. units: `auto` or one of UNITS.
    Returns: (records, faults): records of plain values (path, size, mtime_ns, time, forecast_reference_time, units,
        units_from, step, rows, cols, archive) of the good files in date order; faults: messages of the bad ones.
    """
    records, faults = [], []
    for path in utils.progress(paths, "reading"):
        try:
            records.append(_inspect(path, None if units == "auto" else units))
        except DataError as error:
            faults.append(str(error))
    records, more = _decide_bare(records)
    records = [{key: value for key, value in record.items() if key != "summary"} for record in records]
    return sorted(records, key=lambda r: (r["time"], r["forecast_reference_time"] or "", r["path"])), faults + more


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


def _inspect(path, units):
    """The record of one file; its units are AS_STORED where neither `units` nor an attribute gives them."""
    with _open(path) as dataset:
        tp = canonical(_pick(dataset, path), path, units, dataset, undecided=AS_STORED)
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
        "summary": _summary(tp.values),
    }


def stamp(path):
    """(size, modification time in ns) of a file, by which a later change is noticed."""
    stat = os.stat(path)
    return stat.st_size, stat.st_mtime_ns


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
    def lat(self):
        """Cell centres, degrees north, descending."""
        return centres(self.north, -self.step, self.rows)

    @property
    def lon(self):
        """Cell centres, degrees east, ascending."""
        return centres(self.west, self.step, self.cols)

    @property
    def extent(self):
        """The outer edges as text, `105.5..110.5 E, 25.5..30.5 N`."""
        return f"{float(self.west):g}..{float(self.east):g} E, {float(self.south):g}..{float(self.north):g} N"

    def refine(self, scale):
        """The grid of the same extent with cells `scale` times finer."""
        return Grid(self.north, self.west, self.step / scale, self.rows * scale, self.cols * scale)

    def coarsen(self, step):
        """The grid of whole cells of `step` degrees from the north-west corner on; an incomplete rest is left out."""
        return Grid(self.north, self.west, step, int(self.rows * self.step / step), int(self.cols * self.step / step))

    def holds(self, other):
        """True where `other` lies inside this extent."""
        return (
            self.west <= other.west
            and other.east <= self.east
            and self.south <= other.south
            and other.north <= self.north
        )

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
