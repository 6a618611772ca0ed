"""Reads fields of the ground (orography, land share) and brings them to the HR cells of a region: `--static`.

Reads    NetCDF files of fields on (lat, lon), at the HR step or finer.
Writes   nothing.

    from static import StaticFields, describe_fields
    described = describe_fields(["static.nc"], [grid])        # in training: all fields of the files
    maps = StaticFields(["static.nc"], described).on(grid)    # (S, H, W), mean 0 and spread 1 over the training region

Orography brings its slopes to the east and to the north with it: which side of a mountain is wet depends on the wind.
So windows of such a training are not turned or flipped.
"""

import math
import re
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from metadata import RAIN, said, text_of
from reader import MORE_NAMES, RAIN_NAMES, Grid, axes_of, lay_out, opened, understood
from utils import DataError, named, shown, stamp

OROGRAPHY = ("orog", "oro", "orography", "topo", "topography", "elev", "elevation", "altitude", "hgt", "hsurf", "dem")
SAME_UNITS = {"": "1", "-": "1", "(0 - 1)": "1", "fraction": "1", "dimensionless": "1"}
SAME_UNITS |= dict.fromkeys(("metre", "meter", "metres", "meters", "gpm"), "m")
PARTS_OF_RAIN = (
    "cp", "lsp", "crr", "lsrr", "csf", "lsf", "sf", "mtpr", "mcpr", "mlspr", "avg_tprate", "avg_cpr", "avg_lsprate",
    "prate", "cprat", "acpcp", "ncpcp", "prectot", "prectotcorr",
)  # fmt: skip
METRES = 111_195.0  # of one degree of latitude
KEPT = 8  # regions whose maps are kept

# fmt: off
__all__ = [
    "StaticFields", "describe_fields", "is_rain", "named_fields", "near",
    "orography_on", "refuse_units", "units_of",
]
# fmt: on


def named_fields(described):
    """Fields of a checkpoint in words: `orog (m), lsm (1)`; what is made of others is left out."""
    return ", ".join(f"{field['name']} ({field['units']})" for field in described if "of" not in field)


def describe_fields(files, grids):
    """Find all static fields of files for a training, each with its mean and standard deviation over the HR cells.

    Args: files: NetCDF files. grids: HR Grid of each training region.
    Returns: tuple of dicts of plain values, for GeneratorConfig.static_fields: name, units, mean, std; of a slope also
        `of`, the name of its orography, and `towards`, east or north.
    Raises: DataError: no field, one that speaks of rain, two of one name, or as StaticFields.
    """
    described = []
    for field in _fields_of(files).values():
        described.append({"name": field.name, "units": field.units, "mean": 0.0, "std": 1.0})
        for side in ("east", "north") if field.is_height else ():
            slope = {"name": f"slope of {field.name} to the {side}", "of": field.name, "towards": side}
            described.append({**slope, "units": "1", "mean": 0.0, "std": 1.0})
    raw = StaticFields(files, described)
    values = [np.concatenate([raw.on(grid)[k].ravel() for grid in dict.fromkeys(grids)]) for k in range(len(described))]
    spread = [float(part.std(dtype="float64")) for part in values]  # of a constant field 0
    return tuple(
        field | {"mean": float(part.mean(dtype="float64")), "std": std or 1.0}
        for field, part, std in zip(described, values, spread, strict=True)
    )


class StaticFields:
    """The static fields that a generator was trained with, from files for the region at hand.

    Args: files: NetCDF files. described: of describe_fields, as the checkpoint holds it.
    Raises: DataError: a field is not in the files, or in other units.
    """

    def __init__(self, files, described):
        self.files, self.described = [Path(file).as_posix() for file in files], described
        self.fields = {name: field for name, field in _fields_of(files).items() if name in _needed(described)}
        for wanted in described:
            field = self.fields.get(wanted.get("of", wanted["name"]))
            if field is None:
                raise DataError(_absent(self.files, described))
            if "of" not in wanted:
                refuse_units(field.path, field.name, field.units, wanted["units"])
        self.on = lru_cache(maxsize=KEPT)(self._on)

    @cached_property
    def identity(self):
        """What identifies the fields: names, files, and the files' sizes and times of change, as text."""
        return "; ".join(
            f"{name} of {Path(field.path).name} {' '.join(map(str, stamp(field.path)))}"
            for name, field in sorted(self.fields.items())
        )

    def _on(self, grid):
        """The fields on the cells of a Grid, (S, H, W), float32, less their mean and over their standard deviation.

        Raises: DataError: a field that does not cover these cells, is coarser, or is missing somewhere.
        """
        maps, cache = np.empty((len(self.described), *grid.shape), "float32"), {}
        for k, wanted in enumerate(self.described):
            name = wanted.get("of", wanted["name"])
            if name not in cache:
                cache = {name: self.fields[name].on(grid)}
            values, inner, wide = cache[name]
            values = _slope(values, wide, wanted["towards"]) if "of" in wanted else values
            maps[k] = (values[inner] - wanted["mean"]) / wanted["std"]
        return maps


def orography_on(files, lat, lon):
    """The orography of files on cells of these centres (north first), m, (H, W); None where no file holds any.

    Raises: DataError: as StaticFields.on.
    """
    fields = [field for field in _fields_of(files).values() if field.is_height]
    if not fields:
        return None
    values, inner, _ = fields[0].on(Grid.from_centres(lat, lon))
    return values[inner]


def units_of(variable):
    """The units of a field in lower case, one word for those that mean the same."""
    units = re.sub(r"\*\*|\^", "", text_of(variable.attrs, "units").strip().lower())
    units = re.sub(r" ?/ ?([a-z]+)(\d*)", lambda part: f" {part[1]}-{part[2] or 1}", units)  # m/s is m s-1
    return SAME_UNITS.get(units, units)


def refuse_units(path, name, units, wanted):
    """Raise DataError where a field has other units than the model was trained with."""
    if units != wanted:
        raise DataError(
            f"{path}: {name} has units {shown(units)!r}, the model was trained with {wanted!r}; convert the values, or "
            f"where the attribute alone is wrong, set it: ncatted -a units,{name},o,c,'{wanted}' {path}"
        )


def is_rain(variable):
    """True where a variable speaks of rain or snowfall, or of a part of them, by its name or its attributes."""
    spoken = " ".join(text_of(variable.attrs, key) for key in ("standard_name", "long_name"))
    if re.search("precipitable|content", spoken, re.I):
        return False
    called = str(variable.name).lower() in (*RAIN_NAMES, *MORE_NAMES, *PARTS_OF_RAIN)
    called = called and not re.search("pressure|temperature|humidity|wind", spoken, re.I)
    return called or bool(RAIN.search(said(variable)) or re.search("snow ?fall", said(variable), re.I))


def _needed(described):
    """Names of the fields that files must hold."""
    return {field.get("of", field["name"]) for field in described}


def _absent(files, described):
    there = ", ".join(f"{name} ({field.units})" for name, field in _fields_of(files).items())
    found = f"{', '.join(files)} hold {there}" if files else "none was given"
    return (
        f"the model was trained with static fields {named_fields(described)}; {found}: give these fields of the region "
        "at hand with --static FILE [FILE ...]"
    )


# ---------------------------------------------------------------- one field of a file


class _Field:
    """One field on (lat, lon) of a file: its name, its units, and its values on the cells that are asked for."""

    def __init__(self, path, variable):
        self.path, self.name = path, str(variable.name)
        self.units = units_of(variable)
        standard = text_of(variable.attrs, "standard_name").strip().lower()
        self.is_height = standard == "surface_altitude" or self.name.lower() in OROGRAPHY
        if self.is_height and self.units != "m":
            raise DataError(
                f"{path}: {self.name} is orography in units {shown(self.units)!r}, expected m (slopes are made from "
                f"it); set a wrong attribute with ncatted -a units,{self.name},o,c,m {path}"
            )
        if is_rain(variable):
            raise DataError(
                f"{path}: {self.name} speaks of rain, which is no static field; expected orography, land share or "
                "other fields that stay as they are"
            )

    def on(self, grid):
        """(values on `grid` and, where the file holds it, a cell around; slices of `grid` in them; their Grid).

        Raises: DataError: as StaticFields.on.
        """
        values, source, whole = self._part(grid)
        if source.step > grid.step:
            raise DataError(
                f"{self.path}: {self.name} has cells of {float(source.step):g} degree; expected the HR step, "
                f"{float(grid.step):g} degree, or finer: take a finer file, or interpolate it first"
            )
        if not source.holds(grid):
            raise self._elsewhere(grid, whole)
        top, bottom = (min(1, int(gap / grid.step)) for gap in (source.north - grid.north, grid.south - source.south))
        left, right = (min(1, int(gap / grid.step)) for gap in (grid.west - source.west, source.east - grid.east))
        north, west = grid.north + top * grid.step, grid.west - left * grid.step
        wide = Grid(north, west, grid.step, grid.rows + top + bottom, grid.cols + left + right)
        values = _means(values, (source.north - north) / source.step, grid.step / source.step, wide.rows)
        values = _means(values.T, (west - source.west) / source.step, grid.step / source.step, wide.cols).T
        inner = slice(top, top + grid.rows), slice(left, left + grid.cols)
        if np.isnan(values[inner]).any():
            row, col = np.argwhere(np.isnan(values[inner]))[0]
            raise DataError(
                f"{self.path}: {self.name} is missing in {np.isnan(values[inner]).sum()} cells of {grid.extent}, first "
                f"at {grid.lat[row]:g} N, {grid.lon[col]:g} E; expected a value everywhere: fill it, for example over "
                "sea with cdo setmisstoc,0 IN OUT"
            )
        if np.isnan(values).any():  # of the cells around alone
            return values[inner], (slice(None), slice(None)), grid
        return values, inner, wide

    def _part(self, grid):
        """The field around a Grid, float64, north first, its own Grid there, and what the file covers, in words."""
        with understood(self.path), named(self.path), opened(self.path) as dataset:
            part, whole = near(dataset, self.name, grid)
            if part is None:
                raise self._elsewhere(grid, whole)
            values, lats, lons = lay_out(part[self.name], part)
            return values, Grid.from_centres(lats, lons), whole

    def _elsewhere(self, grid, whole):
        return DataError(
            f"{self.path}: {self.name} covers {whole} (cell centres), not all of {grid.extent}; give fields of the "
            "region at hand with --static, or another --region"
        )


def near(dataset, name, grid):
    """The part of a dataset around a Grid, by the axes of one of its fields, and what the field covers, in words.

    Returns: (Dataset, or None where fewer than two of its rows or columns are near; text).
    """
    lat, lon = axes_of(dataset[name], dataset)
    lats, lons = (np.asarray(dataset.variables[dim].values, "float64") for dim in (lat, lon))
    reach = float(grid.step) + 2 * max(float(np.abs(np.diff(nodes)).max(initial=0)) for nodes in (lats, lons))
    lons = (lons + 180) % 360 - 180
    whole = f"{lons.min():g}..{lons.max():g} E, {lats.min():g}..{lats.max():g} N"
    rows = (lats > float(grid.south) - reach) & (lats < float(grid.north) + reach)
    cols = (lons > float(grid.west) - reach) & (lons < float(grid.east) + reach)
    if min(rows.sum(), cols.sum()) < 2:
        return None, whole
    return dataset.isel({lat: np.flatnonzero(rows), lon: np.flatnonzero(cols)}), whole


def _fields_of(files):
    """{name: _Field} of all fields on (lat, lon) of files.

    Raises: DataError: a file without such a field, or two fields of one name.
    """
    fields = {}
    for path in files:
        found, refusal = [], None
        with understood(path), opened(path) as dataset:
            for variable in dataset.data_vars.values():
                if variable.dtype.kind not in "fiu" or sum(size > 1 for size in variable.shape) != 2:
                    continue
                try:
                    axes_of(variable, dataset)
                except DataError as error:
                    refusal = error
                    continue
                found.append(_Field(Path(path).as_posix(), variable))
        if not found:
            raise DataError(f"{path}: {refusal or 'no field on (lat, lon)'}; expected static fields such as orography")
        for field in found:
            if field.name in fields:
                raise DataError(f"{field.name} is in {fields[field.name].path} and in {path}; expected each field once")
            fields[field.name] = field
    return fields


# ---------------------------------------------------------------- on other cells


def _means(field, first, ratio, count):
    """Area means along the first axis, over `count` cells that are `ratio` rows wide and begin `first` rows from 0.

    Each sum takes its own rows alone, so a cell is the same whatever region is asked for. first, ratio: Fractions.
    """
    starts = [first + ratio * k for k in range(count)]
    below = np.array([math.floor(start) for start in starts])
    inside = np.array([float(start % 1) for start in starts])
    total = np.zeros((count, field.shape[1]))
    for k in range(math.ceil(ratio) + 1):
        share = np.clip(np.minimum(inside + float(ratio), k + 1) - np.maximum(inside, k), 0, 1)
        rows = field[np.minimum(below + k, len(field) - 1)]
        total += np.where(share[:, None] > 1e-9, share[:, None] * rows, 0.0)
    return total / float(ratio)


def _slope(height, grid, towards):
    """Slope of heights (H, W), m, on a Grid towards east or north: rise over distance, without unit."""
    down, across = np.gradient(height, float(grid.step) * METRES)
    return -down if towards == "north" else across / np.cos(np.deg2rad(grid.lat))[:, None]
