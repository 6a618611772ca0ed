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
import re
from collections import defaultdict
from pathlib import Path

import numpy as np

from datasets import area_means, area_weights, interpolate
from metadata import bounds_variable, dates, seconds_of, text_of, time_bounds, time_roles
from reader import Grid, axes_of, lay_out, newest, opened, times_of, understood
from settings import YOUR_DATA
from static import is_rain, named_fields, near, refuse_units, units_of
from utils import DataError, check_memory, digest_of, log, named, netcdf_files, progress, shown, stamp, when

SAMPLED = 200  # days from which mean and spread are taken
FAR = 100  # standard deviations: another unit, or another quantity
LARGEST, CODES = 1e15, (-9999, -999, 9999, 99999, -32768, -32767)  # no weather; codes for missing values
LEVEL = re.compile("lev|isobar|pressure|height|depth|altitude|hybrid|sigma", re.I)  # in the name of a coordinate

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
    return [(plan.lr, dataset.files.time(i)) for i, plan in enumerate(dataset.plans)]


def describe_predictors(files, days, hours):
    """Find all fields of files for a training, each with its mean and standard deviation over LR cells and days.

    Args: files: NetCDF files or folders of them. days: [(LR Grid, time as text)]. hours: of accumulation, or None.
    Returns: tuple of dicts of plain values, for GeneratorConfig.predictor_fields: name (with its level), units, mean,
        std, and times, how many there are of a day.
    Raises: DataError: as Predictors.
    """
    raw = Predictors(files, None, hours)
    for words in raw.left_out:
        log(f"left out of --predictors: {words}")
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
        self.fields, self.left_out = _fields_of(_listed(files), self._key)
        if described is None:
            plain = {"mean": 0.0, "std": 1.0}
            described = [{"name": f.name, "units": f.units, "times": f.daily, **plain} for f in self.fields.values()]
        self.described = described
        for wanted in described:
            field = self.fields.get(wanted["name"])
            if field is None:
                raise DataError(self._without(wanted["name"]))
            refuse_units(field.path, field.variable, field.units, wanted["units"])
            if field.daily == 1 < wanted["times"]:
                log(
                    f"WARNING: {field.path}: {field.name} has one time a day, the model was trained with the mean of "
                    f"{wanted['times']} a day; expected such means (cdo daymean)"
                )

    def _key(self, time):
        """What times of rain and of predictors must share, as text: the date, or the minute."""
        return str(np.datetime64(time).astype(f"M8[{'D' if self.whole_days else 'm'}]"))

    def _without(self, name):
        there = ", ".join(f"{field.name} ({field.units})" for field in self.fields.values())
        found = f"{name} is not in {', '.join(self.files)}, which hold(s) {there}" if there else "none was given"
        return (
            f"the model was trained with predictors {named_fields(self.described)}; {found}: give the same fields of "
            "the days at hand with --predictors FILE [FILE ...]"
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
        for described in self.described:
            field = self.fields[described["name"]]
            whole = max(field.daily, described["times"]) if field.daily > 1 else 1
            absent = [key for key in wanted if len(field.times.get(key, ())) != whole]
            if absent:
                part = field.times.get(absent[0])
                part = f", {len(part)} of {whole} times a day there" if part else ""
                raise DataError(
                    f"{', '.join(self.files)}: {field.name} is missing for {len(absent)} of {len(wanted)} times of "
                    f"rain, first {absent[0]}{part}; its times go from {min(field.times)} to {max(field.times)}: give "
                    "the files of all days with --predictors "
                    f"({'a day of rain takes all times of its date' if self.whole_days else 'at the time of the rain'})"
                )

    def on(self, grid, time):
        """The fields on the cells of a Grid at a time (text), (P, h, w), float32, less their mean over their spread.

        Finer fields are averaged over the cells, others interpolated between their nodes.

        Raises: DataError: a field that is not there at that time, does not cover the cells, is missing in one, or is
            far from all that training can have had.
        """
        self.refuse_absent([time])
        made, read = np.empty((len(self.described), *grid.shape), "float32"), self._read(self._key(time), grid)
        for k, wanted in enumerate(self.described):
            name, (values, source) = wanted["name"], read[wanted["name"]]
            where = f"{self.fields[name].times[self._key(time)][0][0]}: {name} of {self._key(time)}"
            if source.step > grid.step:
                values = interpolate(values, source, grid)
            else:
                nodes = (grid.lat, source.lat), (grid.lon, source.lon)
                steps = float(grid.step), float(source.step)
                values = area_means(values, *(area_weights(of, steps[0], by, steps[1]) for of, by in nodes))
            if not np.isfinite(values).all():
                row, col = np.argwhere(~np.isfinite(values))[0]
                raise DataError(
                    f"{where} is missing in {(~np.isfinite(values)).sum()} LR cells of {grid.extent}, first at "
                    f"{grid.lat[row]:g} N, {grid.lon[col]:g} E; expected a value everywhere: fill it, for example with "
                    "cdo setmisstonn IN OUT"
                )
            made[k] = (values - wanted["mean"]) / wanted["std"]
            if (far := np.abs(made[k]).max()) > FAR and wanted["std"] != 1:
                raise DataError(
                    f"{where} is up to {far:.3g} standard deviations from its mean in training ({wanted['mean']:.4g}, "
                    f"{wanted['std']:.4g} {wanted['units']}); expected the same quantity in the same units"
                )
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
            with understood(path), named(path), opened(path) as dataset:
                for name, chosen in fields.items():
                    field = self.fields[name]
                    values, source = _mean(dataset, field.variable, field.clocks[path], chosen, grid)
                    if grids.setdefault(name, source) != source:
                        raise DataError(f"{name} of {key} is on another grid in another file; expected one grid a day")
                    sums[name] = sums[name] + values * len(chosen) / len(field.times[key])
        return {name: (sums[name], grids[name]) for name in sums}


def _mean(dataset, name, clock, places, grid):
    """(Mean over some places along the clock of a field around a Grid, (lat, lon); its own Grid).

    Raises: DataError: the field does not cover the Grid, or holds codes.
    """
    part, whole = near(dataset, name, grid)
    if part is not None:
        field = part[name].isel({clock: places}) if clock else part[name]
        field = newest(field) if "expver" in field.dims else field.load()
        if (codes := field.values[np.isin(field.values, CODES) | (np.abs(field.values) > LARGEST)]).size:
            raise DataError(
                f"{name} holds {codes[0]:g} in {codes.size} cell(s): a code for missing? cdo setctomiss,{codes[0]:g} "
                "IN OUT makes such cells missing, cdo setmisstonn IN OUT fills them"
            )
        field = field.mean(clock, skipna=False, keep_attrs=True) if clock else field
        values, lats, lons = lay_out(field, part)
        source = Grid.from_centres(lats, lons)
    if part is None or not source.holds(grid):
        raise DataError(
            f"{name} covers {whole} (nodes), not all of {grid.extent}; give predictors of the region at hand, or "
            "another --region"
        )
    return values, source


class _Field:
    """One field of files: its name and level, its variable and units, and where each of its times is.

    times: {key: [(path, place along the clock)]}; clocks: {path: dimension of its times, None for a single one}.
    """

    def __init__(self, path, name, variable, units):
        self.path, self.name, self.variable, self.units = path, name, variable, units
        self.times, self.clocks = defaultdict(list), {}

    @functools.cached_property  # asked for every day, when all times are known
    def daily(self):
        """How many times a whole day has: the most that any has."""
        return max(map(len, self.times.values()))


def _listed(files):
    """The files, and all NetCDF files below those that are folders, by name.

    Raises: DataError: no such file, or a folder without any.
    """
    found = []
    for file in map(Path, files):
        inside = [file]
        if file.is_dir():
            folders = [file, *sorted(path for path in file.rglob("*") if path.is_dir())]
            inside = [path for folder in folders for path in netcdf_files(folder)[0] if path.is_file()]
        if not inside or not file.exists():
            what = "no file *.nc in this folder" if file.exists() else "no such file"
            raise DataError(f"{file}: {what}; expected predictors, fields on (time, lat, lon), after --predictors")
        found += [path.as_posix() for path in inside]
    return found


def _fields_of(files, key):
    """({name: _Field} of all fields of files that have a time, but not of rain; words of those not taken, each once).

    Args: key: function of a time, see Predictors._key.
    """
    fields, seen, left_out = {}, {}, {}
    for path in files if len(files) < 20 else progress(files, "looking at predictors"):
        found, refusals = 0, []
        with understood(path), named(path), opened(path) as dataset:
            for variable in dataset.data_vars.values():
                if variable.dtype.kind not in "fiu" or sum(size > 1 for size in variable.shape) < 2:
                    continue
                try:
                    axes = axes_of(variable, dataset)
                    if is_rain(variable):
                        raise DataError(f"{variable.name} speaks of rain, which is no predictor")
                    if {"flag_values", "flag_meanings"} & set(variable.attrs):
                        raise DataError(f"{variable.name} holds codes (flags), no amounts")
                    clock, times = _times(variable, axes, dataset, path)
                except DataError as error:
                    refusals.append(str(error))
                    continue
                found += 1
                name, units = f"{variable.name}{_level(variable, axes)}", units_of(variable)
                field = fields.setdefault(name, _Field(path, name, str(variable.name), units))
                if units != field.units:
                    raise DataError(
                        f"{name} in units {shown(units)!r}, in {field.path} {shown(field.units)!r}; expected one unit: "
                        "convert the values of one"
                    )
                field.clocks[path] = clock
                for place, time in enumerate(times):
                    if (name, time) in seen:
                        raise DataError(
                            f"{name} of {when(time)} is also in {seen[name, time]}; expected each time once"
                        )
                    seen[name, time] = path
                    field.times[key(time)].append((path, place))
            if not found:
                why = "; ".join(dict.fromkeys(refusals[:3])) or "no field on (time, lat, lon)"
                raise DataError(f"{why}; expected predictors such as wind or humidity, with their times")
        left_out |= dict.fromkeys(refusals)
    return fields, list(left_out)


def _level(variable, axes):
    """The level of a field in words, ` at pressure_level 850 hPa`; "" where it has none."""
    words = []
    for name, coordinate in variable.coords.variables.items():
        vertical = "positive" in coordinate.attrs or str(coordinate.attrs.get("axis", "")).upper() == "Z"
        if (
            coordinate.size == 1
            and coordinate.dtype.kind in "fiu"
            and name not in axes
            and (vertical or LEVEL.search(str(name)))
        ):
            value = float(np.ravel(coordinate.values)[0])
            words.append(f" at {name} {value:g} {text_of(coordinate.attrs, 'units')}".rstrip())
    return "".join(sorted(words))


def _times(variable, axes, dataset, path):
    """(dimension of the times of a field, or None for a single one; its times, at the beginning of what they mean).

    Raises: DataError: no time, more dimensions than a time, latitude and longitude, or means of more than a day.
    """
    coords, roles = variable.coords.variables, time_roles(variable)
    longer = [dim for dim, size in variable.sizes.items() if size != 1 and dim not in (*axes, "expver")]
    along = {name: role for name, role in roles.items() if set(longer) & set(coords[name].dims)}
    clock = longer[0] if len(longer) == 1 and along else None
    if longer and clock is None:
        dim = next((dim for dim in longer if not any(dim in coords[name].dims for name in along)), longer[-1])
        raise DataError(
            f"{variable.name} has {variable.sizes[dim]} fields along {shown(dim)}; expected one at each time: choose a "
            f"level with cdo sellevel, or the mean of members with cdo ensmean; else ncks -d {shown(dim)},0 IN OUT"
        )
    if not clock:
        bounds = time_bounds(variable, dataset)
        _refuse_long(variable, bounds.seconds if bounds else 0)
        time = times_of(variable, path, bounds)[0]
        return None, [np.datetime64(time, "s")]
    of = {role: name for name, role in reversed(along.items())}
    of |= {"valid": next((n for n in ("valid_time", "time") if along.get(n) == "valid"), of.get("valid"))}
    if not variable.sizes[clock]:
        raise DataError(f"{variable.name} has no time, its {shown(clock)} is empty")
    if of["valid"]:
        times = dates(coords[of["valid"]], of["valid"])
    else:  # lead times after one issue
        issued = [name for name, role in roles.items() if role != "period" and coords[name].size == 1]
        if "period" not in of or not issued:
            raise DataError(f"{variable.name} has no time along {shown(clock)}; expected valid times")
        times = dates(coords[issued[0]], issued[0]) + seconds_of(coords[of["period"]]).astype("m8[s]")
    name, bounds = bounds_variable(variable, dataset)
    if name and bounds.shape == (len(times), 2):
        begin, end = np.sort(dates(bounds, name).reshape(-1, 2), 1).T
        _refuse_long(variable, float((end - begin).max() / np.timedelta64(1, "s")))
        times = np.where(times >= end, begin, times)
    return clock, [np.datetime64(time, "s") for time in times]


def _refuse_long(variable, seconds):
    """Raise DataError where each value of a field is the mean of more than a day."""
    if seconds > 1.5 * 86_400:
        raise DataError(
            f"{variable.name} is given for {seconds / 86_400:g} days at a time by its time bounds; expected a value or "
            "more each day"
        )
