"""Reads fields of the day (wind, humidity, CAPE) and brings them to the LR cells of a region: `--predictors`.

Reads    NetCDF files of fields on (time, lat, lon), at the LR step or another, for example of ERA5.
Writes   nothing.

    from predictors import Predictors, describe_predictors
    described = describe_predictors(["era5_850hPa.nc"], [(grid, "1950-08-01")], hours=24)   # in training
    wind = Predictors(["era5_850hPa.nc"], described, hours=24).on(grid, "1950-08-01")       # (P, h, w), float32

A day of rain gets the mean of all times that have its date (UTC, as both files say), rain of fewer than 24 hours the
time that is its own. Fields of rain are left out: they are the input, and could be the truth.
"""

import functools
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from datasets import area_means, area_weights, interpolate
from metadata import dates, name_times, time_roles
from reader import Grid, axes_of, lay_out, newest, opened, understood
from settings import YOUR_DATA
from static import is_rain, named_fields, near, refuse_units, units_of
from utils import DataError, check_memory, digest_of, progress, shown, stamp, when

SAMPLED = 200  # days from which mean and spread are taken

__all__ = ["Predictors", "add_field_options", "days_of", "describe_predictors"]


def add_field_options(parser):
    """The options --static and --predictors of stages 2 to 4, under the heading of the data where there is one."""
    group = next((group for group in parser._action_groups if group.title == YOUR_DATA), parser)
    add = functools.partial(group.add_argument, nargs="+", metavar="FILE", default=[])
    words = "with slopes; a model that was trained with them needs those of its region in use"
    add("--static", help=f"fields of the ground (orography, land share) at the HR step or finer, {words}")
    words = "at any steps; a model that was trained with them needs those of its days in use"
    add("--predictors", help=f"fields of the day (wind, humidity, CAPE), files or folders, {words}")


def days_of(dataset):
    """[(LR Grid, time as text)] of all files of an SRDataset."""
    times = [record["times"].get("time", "") for record in dataset.files.index]
    return [(plan.lr, time) for plan, time in zip(dataset.plans, times, strict=True)]


def describe_predictors(files, days, hours):
    """Find all fields of files for a training, each with its mean and standard deviation over LR cells and days.

    Args: files: NetCDF files or folders of them. days: [(LR Grid, time as text)]. hours: of accumulation, or None.
    Returns: tuple of dicts of plain values, for GeneratorConfig.predictor_fields: name, units, mean, std.
    Raises: DataError: as Predictors.
    """
    raw = Predictors(files, None, hours)
    raw.refuse_absent(time for _, time in days)
    sampled = days[:: -(-len(days) // SAMPLED)]
    sums = np.zeros((3, len(raw.described)))
    for grid, time in progress(sampled, "reading predictors"):
        values = raw.on(grid, time).astype("float64")
        sums += np.ones(len(values)), values.mean((1, 2)), (values**2).mean((1, 2))
    mean = sums[1] / sums[0]
    spread = np.sqrt(np.maximum(sums[2] / sums[0] - mean**2, 0))
    spread = np.where(spread > 1e-6 * np.abs(mean), spread, 1.0)  # of a constant field 0, but for rounding
    return tuple(
        field | {"mean": float(m), "std": float(s)} for field, m, s in zip(raw.described, mean, spread, strict=True)
    )


class Predictors:
    """The fields of the day that a generator was trained with, from files for the days at hand.

    Args: files: NetCDF files or folders of them. described: of describe_predictors, as the checkpoint holds it; None:
        all fields of the files, as they are. hours: over which rain is accumulated; None: taken for a day.
    Raises: DataError: a field is not in the files or in other units, a file without such fields, a time that is there
        twice, or rain of more than a day.
    """

    def __init__(self, files, described, hours):
        if hours and hours > 24:
            raise DataError(f"--predictors: rain of {hours:g} hours; expected rain of a day, or of less")
        self.files, self.whole_days = [Path(file).as_posix() for file in files], not hours or hours == 24
        self.fields = _fields_of(_listed(files), self._key)
        if described is None:
            described = [
                {"name": field.name, "units": field.units, "mean": 0.0, "std": 1.0} for field in self.fields.values()
            ]
        self.described = described
        for wanted in described:
            field = self.fields.get(wanted["name"])
            if field is None:
                raise DataError(self._without(wanted["name"]))
            refuse_units(field.path, field.name, field.units, wanted["units"])

    def _key(self, time):
        """What times of rain and of predictors must share, as text: the date, or the minute."""
        return str(np.datetime64(time).astype(f"M8[{'D' if self.whole_days else 'm'}]"))

    def _without(self, name):
        there = ", ".join(f"{field.name} ({field.units})" for field in self.fields.values())
        return (
            f"the model was trained with predictors; {name} is not in {', '.join(self.files)}, which hold(s) {there}: "
            "give the same fields of the days at hand with --predictors FILE [FILE ...]"
        )

    @property
    def identity(self):
        """What identifies the fields: their names, and a digest of the files' names, sizes and times of change."""
        names = [field["name"] for field in self.described]
        files = sorted({path for name in names for path in self.fields[name].clocks})
        stamps = digest_of(*((Path(path).name, *stamp(path)) for path in files))
        return f"{named_fields(self.described)} of {len(files)} file(s), {stamps}"

    def refuse_absent(self, times):
        """Raise DataError where a field is not there at one of these times (text), or only for a part of its day."""
        wanted = sorted({self._key(time) for time in times})
        for field in map(self.fields.get, (field["name"] for field in self.described)):
            absent = [key for key in wanted if len(field.times.get(key, ())) < field.daily]
            if absent:
                held = f"{min(field.times)} to {max(field.times)}" if field.times else "none"
                part = field.times.get(absent[0])
                part = f", {len(part)} of {field.daily} times a day there" if part else ""
                raise DataError(
                    f"{field.path}: {field.name} is missing for {len(absent)} of {len(wanted)} times of rain, first "
                    f"{absent[0]}{part}; its times go from {held}: give the files of all days with --predictors "
                    f"({'a day of rain takes all times of its date' if self.whole_days else 'at the time of the rain'})"
                )

    def on(self, grid, time):
        """The fields on the cells of a Grid at a time (text), (P, h, w), float32, less their mean over their spread.

        Finer fields are averaged over the cells, others interpolated between their nodes.

        Raises: DataError: a field that is not there at that time, does not cover the cells, or is missing in one.
        """
        self.refuse_absent([time])
        made, read = np.empty((len(self.described), *grid.shape), "float32"), self._read(self._key(time), grid)
        for k, wanted in enumerate(self.described):
            field, (values, source) = self.fields[wanted["name"]], read[wanted["name"]]
            if source.step > grid.step:
                values = interpolate(values, source, grid)
            else:
                nodes = (grid.lat, source.lat), (grid.lon, source.lon)
                steps = float(grid.step), float(source.step)
                values = area_means(values, *(area_weights(of, steps[0], by, steps[1]) for of, by in nodes))
            if not np.isfinite(values).all():
                row, col = np.argwhere(~np.isfinite(values))[0]
                raise DataError(
                    f"{field.path}: {field.name} of {self._key(time)} is missing in {(~np.isfinite(values)).sum()} LR "
                    f"cells of {grid.extent}, first at {grid.lat[row]:g} N, {grid.lon[col]:g} E; expected a value "
                    "everywhere: fill it, for example with cdo setmisstonn IN OUT"
                )
            made[k] = (values - wanted["mean"]) / wanted["std"]
        return made

    def of_days(self, days):
        """The fields of all days of a training, [(P, h, w)]; arguments as describe_predictors.

        Raises: DataError: they do not fit into memory, or as `on`.
        """
        numbers = len(self.described) * sum(grid.rows * grid.cols for grid, _ in days)
        check_memory(4 * numbers, f"--predictors: {numbers:,} values of all days", "give fewer of them, or a --region")
        self.refuse_absent(time for _, time in days)
        return [self.on(grid, time) for grid, time in progress(days, "reading predictors")]

    def _read(self, key, grid):
        """{name: (values (lat, lon) around a Grid, the mean of the field's times; their Grid)}; each file is opened
        once."""
        places = defaultdict(lambda: defaultdict(list))
        for name in (wanted["name"] for wanted in self.described):
            for path, place in self.fields[name].times[key]:
                places[path][name].append(place)
        sums, grids = defaultdict(float), {}
        for path, fields in places.items():
            with understood(path), opened(path) as dataset:
                for name, chosen in fields.items():
                    values, grids[name] = _mean(dataset, name, self.fields[name].clocks[path], chosen, grid, path)
                    sums[name] = sums[name] + values * len(chosen) / len(self.fields[name].times[key])
        return {name: (sums[name], grids[name]) for name in sums}


def _mean(dataset, name, clock, places, grid, path):
    """(Mean over some places along the clock of a field around a Grid, (lat, lon); its own Grid).

    Raises: DataError: the field does not cover the Grid.
    """
    part, whole = near(dataset, name, grid)
    if part is not None:
        field = part[name].isel({clock: places}) if clock else part[name]
        field = newest(field) if "expver" in field.dims else field
        field = field.mean(clock, skipna=False, keep_attrs=True) if clock else field
        values, lats, lons = lay_out(field, part)
        source = Grid.from_centres(lats, lons)
    if part is None or not source.holds(grid):
        raise DataError(
            f"{path}: {name} covers {whole} (nodes), not all of {grid.extent}; give predictors of the region at hand, "
            "or another --region"
        )
    return values, source


class _Field:
    """One field of files: its name and units, and where each of its times is.

    times: {key: [(path, place along the clock)]}; clocks: {path: dimension of its times, None for a single one}.
    """

    def __init__(self, path, name, units):
        self.path, self.name, self.units = path, name, units
        self.times, self.clocks = defaultdict(list), {}

    @property
    def daily(self):
        """How many times most keys have: a day with fewer is not whole."""
        return Counter(map(len, self.times.values())).most_common(1)[0][0]


def _listed(files):
    """The files, and all NetCDF files of those that are folders, by name."""
    found = []
    for file in map(Path, files):
        inside = sorted(path for path in file.glob("*.nc") if path.is_file()) if file.is_dir() else [file]
        if not inside:
            raise DataError(f"{file}: no file *.nc in this folder; expected predictors, fields on (time, lat, lon)")
        found += [path.as_posix() for path in inside]
    return found


def _fields_of(files, key):
    """{name: _Field} of all fields of files that have a time, but not of rain.

    Args: key: function of a time, see Predictors._key.
    """
    fields, seen = {}, {}
    for path in files if len(files) < 20 else progress(files, "looking at predictors"):
        found, refusal = 0, "no field on (time, lat, lon)"
        with understood(path), opened(path) as dataset:
            for name, variable in dataset.data_vars.items():
                if variable.dtype.kind not in "fiu" or sum(size > 1 for size in variable.shape) < 2:
                    continue
                try:
                    axes = axes_of(variable, dataset)
                    if is_rain(variable):
                        raise DataError(f"{name} speaks of rain, which is no predictor")
                    clock, times = _times(variable, axes, path)
                except DataError as error:
                    refusal = error
                    continue
                found += 1
                units = units_of(variable)
                field = fields.setdefault(str(name), _Field(path, str(name), units))
                if units != field.units:
                    raise DataError(
                        f"{path}: {name} in units {shown(units)!r}, in {field.path} {shown(field.units)!r}; expected "
                        "one unit: convert the values of one"
                    )
                field.clocks[path] = clock
                for place, time in enumerate(times):
                    if (name, time) in seen:
                        raise DataError(
                            f"{path}: {name} of {when(time)} is also in {seen[name, time]}; expected each time once"
                        )
                    seen[name, time] = path
                    field.times[key(time)].append((path, place))
        if not found:
            raise DataError(f"{path}: {refusal}; expected predictors such as wind or humidity, with their times")
    return fields


def _times(variable, axes, path):
    """(dimension of the times of a field, or None for a single one; its times).

    Raises: DataError: no time, or more dimensions than a time, latitude and longitude.
    """
    roles = [name for name, role in time_roles(variable).items() if role == "valid"]
    clocks = [name for name in roles if variable.coords.variables[name].ndim < 2]
    name = next((name for name in ("valid_time", "time", *clocks) if name in clocks), None)
    if name is None:
        named = name_times(Path(path).stem)
        if named is None:
            raise DataError(f"{variable.name} has no time; expected valid times, or a file name that is a date")
        clock, times = None, [named[0].astype("M8[s]")]
    else:
        coordinate = variable.coords.variables[name]
        clock, times = next(iter(coordinate.dims), None), dates(coordinate, name)
        clock = clock if clock in variable.dims else None
    for dim, size in variable.sizes.items():
        if size > 1 and dim not in (*axes, clock, "expver"):
            raise DataError(
                f"{variable.name} has {size} fields along {shown(dim)}; expected one at each time: choose a level with "
                f"cdo sellevel, or the mean of members with cdo ensmean; in general ncks -d {shown(dim)},0 IN OUT"
            )
    return clock, [np.datetime64(time, "s") for time in times]
