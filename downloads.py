"""Turns downloads of many times into one file a day: what `1create_data_lists.py --make-days` does.

Reads    NetCDF files of hours, 3 hours or days, of forecasts by lead time, of amounts since a start, or of rates
Writes   {days folder}/YYYY_MM_DD.nc, or YYYY_MM_DD_HH_MM_DD.nc for forecasts (issued, valid): tp(time, lat, lon), mm

    from downloads import DayRule, make_days
    make_days(["downloads/era5"], "Data/DataTrain", DayRule(day_start=-8))

A value of a file is an amount from one time to another, a piece. A day is made of the pieces that fill it without a
gap; nothing is interpolated. Of each file only the slices of the day in work are read.
"""

import argparse
import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

import utils
from metadata import (
    MAKE_DAYS,
    Period,
    bounds_variable,
    dates,
    in_words,
    list_period,
    name_times,
    own_units,
    seconds_of,
    text_of,
    time_roles,
    unit_factor,
)
from reader import MAX_CELLS, axes_of, canonical, choose, newest, opened, refuse_code, understood
from utils import DataError, log, shown, stamp, when

EPOCH = np.datetime64("1970-01-01", "s")
HOUR, DAY = np.timedelta64(3600, "s"), np.timedelta64(86400, "s")
OTHER_KINDS = {  # endings of files of other kinds, and what to do with them
    (".grib", ".grb", ".grib2", ".grb2"): "GRIB becomes NetCDF by cdo -f nc4 copy IN.grib OUT.nc",
    (".h5", ".hdf5", ".he5"): "HDF5 is read where ncdump -h shows the rain with lat and lon: name it .nc; out of a "
    "group ncks -G : -g GROUP IN.h5 OUT.nc lifts it",
    (".hdf",): "HDF4 becomes NetCDF by h4tonccf IN.hdf OUT.nc",
    (".gz", ".zip", ".tar", ".tgz", ".bz2"): "unpack them first (gunzip, unzip, tar -x)",
    (".tif", ".tiff"): "GeoTIFF becomes NetCDF by gdal_translate -of netCDF IN.tif OUT.nc, with units by ncatted",
    (".zarr",): "Zarr becomes NetCDF by xarray: open_zarr(IN).to_netcdf(OUT)",
}
STAMPS = ("end", "middle", "start")
BLOCK = 16_000_000  # values read at a time: 128 MB as float64
CHUNK_CACHE = 400 * 2**20  # bytes of decompressed chunks that stay in memory between two days
WINDOWS = (24, 12)  # hours after which amounts since a start begin anew, at 00 UTC (ERA5-Land, ERA-Interim)
VERSION = 1  # raise when days come out otherwise: earlier ones are then made anew

__all__ = [
    "STAMPS",
    "DayRule",
    "add_day_arguments",
    "describe",
    "files_of",
    "how_to_convert",
    "make_days",
    "missing_days",
]


@dataclass(frozen=True)
class DayRule:
    """How days are made.

    units: of the values; None: those of the attributes. day_start: hours from 00 UTC of its date to a day's beginning
    (-8: days of Beijing time). stamps: where in its period a file without bounds has the time of an amount; auto: what
    attributes say. member: the number of the ensemble member to take.
    """

    units: str | None = None
    day_start: float = 0.0
    stamps: str = "auto"
    member: int | None = None

    @classmethod
    def of(cls, args):
        """The rule of the options of add_day_arguments and --units."""
        start = args.day_start if args.utc_offset is None else -args.utc_offset
        return cls(None if args.units == "auto" else args.units, start, args.stamps, args.member)


def add_day_arguments(parser, folder):
    """Add the options of --make-days, with the folder that days go to unless told otherwise."""
    group = parser.add_argument_group(
        "days of downloads that hold many times a file (hours, 3 hours, days, lead times)"
    )
    add, begin = group.add_argument, group.add_mutually_exclusive_group()
    add(
        "--make-days", nargs="+", default=[], metavar="DIR", help="folders of one product; one file a day is made of it"
    )
    words = "where the days go; they make the eval or obj list where its name has eval or obj, else the train list"
    add("--days-folder", default=folder, metavar="DIR", help=f"{words} (default: %(default)s)")
    words = "a day begins so many hours after 00 UTC of its date; -12: it ends at 12 UTC (20 Beijing time) of its date"
    begin.add_argument("--day-start", type=_hours, default=0.0, metavar="H", help=f"{words} (default: 0)")
    begin.add_argument("--utc-offset", type=_hours, metavar="H", help="days of local time, so many hours ahead of UTC")
    words = "where files without bounds have the time in its period: end (ERA5), middle, start; auto: as attributes say"
    add("--stamps", choices=("auto", *STAMPS), default="auto", help=f"{words}, else an error")
    add("--member", type=partial(utils.whole_number, low=0), metavar="N", help="member of an ensemble to take")


def _hours(text):
    """argparse type: hours of a day, -23 to 23, also parts of hours."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not -23 <= number <= 23:
        raise argparse.ArgumentTypeError(f"{text!r}: expected hours from -23 to 23")
    return number


@dataclass
class Source:
    """What the header of a file says: its variable, units, and what is said of time in its attributes."""

    path: str
    variable: str
    long_name: str
    units: str
    step_type: str
    nodes: tuple  # bytes of latitudes and longitudes
    chunk_bytes: int
    values: list


@dataclass
class Value:
    """One field of a file, the amount from `begin` to `end`; with `less`, what it has more than that earlier value.

    index: positions along the dimensions that are not latitude and longitude. version: ERA5's expver.
    """

    source: Source
    index: tuple
    time: object  # as the file stamps it
    begin: object = None
    end: object = None
    issued: object = None
    version: str = ""
    less: object = None


def make_days(folders, out, rule=None, skip_bad=False):
    """Make one file a day of all files in `folders` and print each decision; days of unchanged files are kept.

    Args: out: folder of the days. rule: DayRule. skip_bad: leave out files that cannot be read, naming them.
    Returns: paths of the days.
    Raises: DataError: no whole day, or a choice that is the user's; it names the option.
    """
    rule, out = rule or DayRule(), Path(out)
    if out.resolve() in [Path(folder).resolve() for folder in folders]:
        raise DataError(f"{out}: holds the downloads; expected another folder for the days: name it with --days-folder")
    paths, others = files_of(folders)
    for words in others:
        log(f"left out: {words}")
    sources = _headers(paths, rule, skip_bad)
    slow = next((source for source in sources if source.chunk_bytes > CHUNK_CACHE), None)
    if slow:
        log(f"{slow.path}: stored in chunks of many times, so each day takes long; nccopy -c time/24 makes it quick")
    values = _unique(sources)
    words = _set_periods(values, rule)
    log(f"{', '.join(map(str, folders))}: {_about(values)}; {words}")
    days, left_out = _days(values, rule)
    for line in left_out:
        log(line)
    if not days:
        raise DataError(f"{', '.join(map(str, folders))}: no whole day; found {_about(values)}; {words}")
    return _write_days(days, out, rule, words)


# ---------------------------------------------------------------- headers


def files_of(folders):
    """utils.find_files; where a folder holds other kinds of files, its error says how to make NetCDF of them."""
    try:
        return utils.find_files(folders)
    except DataError as error:
        names = [path.name for folder in folders if Path(folder).is_dir() for path in Path(folder).iterdir()]
        raise DataError(f"{error}{how_to_convert(names)}") from None


def how_to_convert(names):
    """Words on how to make NetCDF of files of other kinds, with a colon before; "" where none is known."""
    for suffixes, words in OTHER_KINDS.items():
        if any(name.lower().endswith(suffixes) for name in names):
            return f": {words}"
    return ""


def _headers(paths, rule, skip_bad):
    """The Source of every file; all are on one grid.

    Raises: DataError: files that cannot be read (unless skip_bad), or two grids.
    """
    sources = []
    for path in utils.progress(paths, "reading headers"):
        try:
            with understood(path), opened(path) as dataset:
                sources.append(_header(dataset, path, rule))
        except DataError as error:
            words = str(error) if str(error).startswith(str(path)) else f"{path}: {error}"
            if not skip_bad:
                raise DataError(f"{words} (--skip-bad leaves such files out)") from None
            log(f"left out: {words}")
    if not sources:
        raise DataError("no file can be read; nothing is left to make days of")
    for source in sources:
        if source.nodes != sources[0].nodes:
            raise DataError(
                f"{source.path}: another grid than {sources[0].path}; expected one: lay each in a folder of its own"
            )
    return sources


def _header(dataset, path, rule):
    """The Source of one open file."""
    field = choose(dataset, path)
    lat, lon = axes_of(field, dataset)
    fixed, free = _fixed(field, lat, lon, rule), [d for d in field.dims if d not in (lat, lon)]
    free = [dim for dim in free if dim not in fixed and dim != "expver"]
    if field.sizes[lat] * field.sizes[lon] > MAX_CELLS:
        raise DataError(f"{field.name} has {dict(field.sizes)}; expected at most {MAX_CELLS:g} cells")
    first = field.isel({dim: 0 for dim in field.dims if dim not in (lat, lon)})
    units = rule.units or own_units(first)
    if units is None:
        raise DataError(f"{field.name} has no units attribute; say which with --units, for example --units m")
    nodes = tuple(np.asarray(field.coords.variables[dim].values, "float64").tobytes() for dim in (lat, lon))
    about = shown(text_of(field.attrs, "long_name"))
    source = Source(
        Path(path).as_posix(), str(field.name), about, units, text_of(field.attrs, "GRIB_stepType"), nodes, 0, []
    )
    source.chunk_bytes = _chunk_bytes(field, free)
    source.values = _values(source, field, dataset, free, fixed)
    return source


def _fixed(field, lat, lon, rule):
    """{dimension: position} of dimensions that hold no times: those of size 1, and the member that was chosen.

    Raises: DataError: several fields along a dimension that is no time, or no such member.
    """
    fixed, roles = {}, time_roles(field)
    for dim, size in field.sizes.items():
        if dim in (lat, lon, "expver") or dim in roles:
            continue
        numbers = (
            [str(v) for v in field.coords.variables[dim].values] if dim in field.coords else list(map(str, range(size)))
        )
        if size == 1:
            fixed[dim] = 0
        elif rule.member is not None and str(rule.member) in numbers:
            fixed[dim] = numbers.index(str(rule.member))
        else:
            found = "no such member" if rule.member is not None else f"{size} fields"
            raise DataError(
                f"{field.name} has {found} along {shown(dim)} ({shown(', '.join(numbers))}); expected one: choose it "
                f"with --member, for example --member {numbers[0]}"
            )
    return fixed


def _chunk_bytes(field, free):
    """Bytes that one row of chunks along time takes once decompressed; 0 where the file is not chunked."""
    chunks = field.encoding.get("chunksizes")
    if not chunks or not free:
        return 0
    length = {dim: -(-size // step) * step for dim, size, step in zip(field.dims, field.shape, chunks, strict=True)}
    length[free[-1]] = chunks[field.dims.index(free[-1])]
    return int(np.prod([float(n) for n in length.values()]) * field.encoding.get("dtype", field.dtype).itemsize)


def _values(source, field, dataset, free, fixed):
    """The Values of a file: one for each time, or each issue and lead time.

    Raises: DataError: no time coordinate, or one that is no date.
    """
    roles, coords = time_roles(field), field.coords.variables
    of = {role: [n for n, r in roles.items() if r == role and coords[n].ndim <= 1] for role in roles.values()}
    valid = sorted(of.get("valid", []), key=lambda n: (n not in free, n != "valid_time"))
    issue, lead = next(iter(of.get("reference", [])), None), next(iter(of.get("period", [])), None)
    lead = lead if lead in free or lead and coords[lead].ndim == 0 and not valid else None
    clock = issue if issue in free or lead and issue else next(iter(valid), None)
    named = name_times(Path(source.path).stem)
    if clock is None and named and named[1] is None and not free:
        return [Value(source, tuple(fixed.items()), named[0].astype("M8[s]"))]
    if clock is None or any(dim not in (clock, lead, *coords[clock].dims) for dim in free):
        raise DataError(
            f"{field.name} has dimensions {dict(field.sizes)} and no time coordinate; expected one, or one time a file "
            "and a name like 2023_08_01_0600.nc"
        )
    times, steps = dates(coords[clock], clock), seconds_of(coords[lead]) if lead else np.zeros(1)
    if not np.isfinite(steps).all():
        raise DataError(f"{lead} has units {shown(coords[lead].attrs.get('units', ''))!r}; expected hours or days")
    issued = dates(coords[issue], issue)[0] if issue and issue != clock and coords[issue].size == 1 else None
    bounds = _bounds(field, dataset, len(times)) if len(steps) == 1 else None
    versions = coords["expver"].values.reshape(-1) if "expver" in coords and "expver" not in field.dims else [""]
    values = []
    for i, time in enumerate(times):
        for k, step in enumerate(steps):
            place = {
                **fixed,
                **dict.fromkeys(coords[clock].dims, i),
                **(dict.fromkeys(coords[lead].dims, k) if lead else {}),
            }
            value = Value(
                source, tuple(sorted(place.items())), time, issued=issued, version=str(versions[i % len(versions)])
            )
            if lead is not None and steps.any():
                value.issued, value.time = time, time + np.timedelta64(round(step), "s")
            if bounds is not None:
                value.begin, value.end = bounds[i]
            values.append(value)
    return values


def _bounds(field, dataset, count):
    """Start and end of each time, (count, 2), of the file's bounds; None where it has none of any length.

    Raises: DataError: bounds that are no dates.
    """
    name, variable = bounds_variable(field, dataset)
    if name is None or variable.size != 2 * count:
        return None
    found = np.sort(dates(variable, name).reshape(count, 2), axis=1)
    return found if (found[:, 1] > found[:, 0]).all() else None


# ---------------------------------------------------------------- from when to when


def _set_periods(values, rule):
    """Give every value its begin, end and predecessor, by lead times, bounds, or the spacing of its list; says how.

    Raises: DataError: a period or a stamp that nothing says.
    """
    values = sorted(values, key=lambda v: (v.issued or v.time, v.time))
    if all(value.begin is not None for value in values):
        nested = _nested(values)
        _join_short(values)
        return f"bounds give each period ({_span(values)}{', since a start' if nested else ''})"
    if all(value.issued is not None for value in values):
        return _by_lead(values)
    if any(value.issued is not None or value.begin is not None for value in values):
        raise DataError(
            "some files have bounds or lead times and others have none; lay each kind in a folder of its own"
        )
    gaps = np.diff(np.unique([value.time for value in values])).astype("int64")
    if not len(gaps):
        raise DataError(
            f"{values[0].source.path}: holds one time and no bounds; expected several times to make days of"
        )
    spacing = np.timedelta64(Counter(gaps.tolist()).most_common(1)[0][0], "s")
    if spacing > DAY:
        raise DataError(
            f"{values[0].source.path}: times are {spacing / DAY:g} days apart; expected days, hours or less"
        )
    stamps, why = _stamps(values, spacing, rule)
    shift = {"end": spacing, "middle": spacing / 2, "start": np.timedelta64(0, "s")}[stamps]
    for value in values:
        value.begin = value.time - shift
        value.end = value.begin + spacing
    window = _window(values, spacing) if stamps == "end" else None
    since = f"; amounts since the start of {window}: differences are taken" if window else ""
    return f"one time each {spacing / HOUR:g} h at the {stamps} of its period ({why}){since}"


def _stamps(values, spacing, rule):
    """(end, middle or start, what says so): where in its period a value has its time.

    Raises: DataError: nothing says so.
    """
    if rule.stamps != "auto":
        return rule.stamps, "--stamps"
    hours = {int((value.time - value.time.astype("M8[D]")) / np.timedelta64(1, "s")) for value in values}
    source = values[0].source
    if spacing < DAY and source.step_type in ("accum", "avg"):
        return "end", f"GRIB_stepType {source.step_type}"
    half = int(spacing / np.timedelta64(2, "s"))
    if spacing <= DAY and all(hour % (2 * half) == half for hour in hours):
        return "middle", "times lie half a step after the full hour or day"
    if spacing == DAY and hours == {0} and not source.step_type:
        return "start", "a daily file without bounds: its dates are those of the days"
    asks = (
        "daily amounts at 00 UTC of ERA5-Land are those of the day before (--stamps end), the daily statistics of the "
        "CDS those of their own date (--stamps start)"
        if spacing == DAY
        else "say it with --stamps end or --stamps start, as the product's documents have it"
    )
    raise DataError(
        f"{source.path}: nothing in the file says whether {when(values[0].time)} is the start or the end of its "
        f"{spacing / HOUR:g} hours; {asks}"
    )


def _nested(values):
    """Make differences of amounts whose bounds share a start; True where there are any."""
    last, nested = {}, False
    for value in sorted(values, key=lambda v: (v.begin, v.end)):
        before = last.get((value.issued, value.begin))
        last[value.issued, value.begin] = value
        if before is not None and before.end < value.end:
            value.less, nested = before, True
    for value in values:
        if value.less is not None:
            value.begin = value.less.end
    return nested


def _by_lead(values):
    """Periods of forecasts by lead time: from one step to the next; differences where amounts grow since the start."""
    by_issue = defaultdict(list)
    for value in values:
        by_issue[value.issued].append(value)
    for issued, steps in by_issue.items():
        steps.sort(key=lambda value: value.time)
        length = steps[1].time - steps[0].time if len(steps) > 1 else steps[0].time - issued
        for before, value in zip([None, *steps], steps, strict=False):
            value.end = value.time
            value.begin = before.time if before else max(issued, value.time - length)
    since = not unit_factor(values[0].source.units)[1] and _grows(list(by_issue.values()))
    if since:
        for issued, steps in by_issue.items():
            steps[0].begin = issued
            for before, value in zip(steps, steps[1:], strict=False):
                value.less = before
    lead = max(value.end - value.issued for value in values)
    _join_short(values)
    words = "amounts since the start of each forecast: differences are taken" if since else "amounts of each step"
    return f"{len(by_issue)} forecasts of up to {lead / HOUR:g} h ({_span(values)}), {words}"


def _join_short(values):
    """Forget the issues of short forecasts that follow one another, as those of ERA5-Land: their hours are analyses."""
    values = [value for value in values if value.end > value.begin]
    short = all(value.issued is not None and value.end - value.issued <= DAY for value in values)
    if short and len({value.begin for value in values}) == len(values):
        for value in values:
            value.issued = None


def _window(values, spacing):
    """Since when amounts grow, in words, each then made a difference; None for amounts of their own.

    ERA5-Land gives the rain since 00 UTC at each hour, under the attributes that ERA5 has for the rain of the hour.
    """
    if unit_factor(values[0].source.units)[1] or spacing > 6 * HOUR:
        return None
    series = sorted(values, key=lambda v: v.time)
    if len(series) > 3 and _grows([series[:3000]]):  # a forecast, or a single day
        _differences(series, series[0].begin)
        return f"{when(series[0].begin)}"
    for hours in WINDOWS:
        groups = defaultdict(list)
        for value in values:
            groups[(value.begin - EPOCH) // (hours * HOUR)].append(value)
        full = [sorted(group, key=lambda v: v.time) for group in groups.values() if len(group) > 3]
        if full and _grows(full):
            for group in groups.values():
                group.sort(key=lambda v: v.time)
                _differences(group, EPOCH + (group[0].begin - EPOCH) // (hours * HOUR) * (hours * HOUR))
            return f"each {hours} hours, 00 UTC on"
    return None


def _differences(group, start):
    """Make each amount since `start` the one since the value before it."""
    for before, value in zip([None, *group], group, strict=False):
        value.less, value.begin = (before, before.end) if before else (None, start)


def _grows(groups, enough=3):
    """True where amounts never fall within a group: in all cells of the wet ones among the first groups.

    The rain of single hours falls again somewhere within hours; amounts since a start cannot. What packing may round
    away is no fall. Without any rain both are the same.
    """
    wet = 0
    for group in groups[:40]:
        before = None
        for value in group:
            now = _read(value.source, [(value.index, 1.0)])
            slack = 1e-4 * np.nanmax(np.abs(now), initial=0)
            if before is not None and (before - now > slack + 1e-4 * np.nanmax(np.abs(before), initial=0)).any():
                return False
            before = now
        wet += bool(np.nanmax(before, initial=0) > 0)
        if wet == enough:
            break
    return wet > 0


def _about(values):
    """What a download holds, in words: variable, units, number of times, from when to when."""
    source, ends = values[0].source, [v.end if v.end is not None else v.time for v in values]
    files = len({value.source.path for value in values})
    name = f"{source.variable} ({source.long_name})" if source.long_name else source.variable
    first = min(v.begin if v.begin is not None else v.time for v in values)
    return f"{name} in {source.units}, {len(values)} times from {when(first)} to {when(max(ends))} in {files} file(s)"


def _span(values):
    """The lengths of the periods of values, in words."""
    hours = sorted({(value.end - value.begin) / HOUR for value in values})
    return f"{hours[0]:g} h" if len(hours) == 1 else f"{hours[0]:g} to {hours[-1]:g} h"


# ---------------------------------------------------------------- days


def _unique(sources):
    """The values of all files, each time once: ERA5's final version before its preliminary one (expver 1, 5).

    Raises: DataError: two files give other amounts for one time.
    """
    kept = {}
    for value in (value for source in sources for value in source.values):
        key = (value.issued, value.time, value.begin, value.end)
        other = kept.setdefault(key, value)
        if other is value:
            continue
        if value.version != other.version:
            kept[key] = min(value, other, key=lambda v: v.version)
            continue
        scales = [unit_factor(v.source.units) for v in (other, value)]
        one, two = (
            _read(v.source, [(v.index, factor * (3600 if rate else 1))])
            for v, (factor, rate) in zip((other, value), scales, strict=True)
        )
        if not np.allclose(one, two, rtol=1e-3, atol=1e-2, equal_nan=True):  # mm (mm/h); packing differs by file
            raise DataError(
                f"{value.source.path} and {other.source.path}: other amounts for {when(value.time)}; expected "
                "each time once: take one of them away"
            )
    return list(kept.values())


def _days(values, rule):
    """({(issued, day): values that fill it}, lines about days that are left out)."""
    shift, groups = np.timedelta64(round(rule.day_start * 3600), "s"), defaultdict(list)
    for value in values:
        if value.end > value.begin:  # not the zero at the start of a forecast
            groups[value.issued, (value.begin - shift).astype("M8[D]")].append(value)
    days, part = {}, []
    for issued, day in sorted(groups, key=lambda key: (key[0] or key[1], key[1])):
        group, start = sorted(groups[issued, day], key=lambda v: v.begin), day.astype("M8[s]") + shift
        reached = start
        for value in group:
            reached = value.end if value.begin == reached and value.end <= start + DAY else reached
        if reached == start + DAY and sum((v.end - v.begin) / HOUR for v in group) == 24:
            days[issued, day] = group
            continue
        hours = sum((min(v.end, start + DAY) - v.begin) / HOUR for v in group)
        cut = " that cross its end" if any(v.end > start + DAY for v in group) else ""
        part.append(f"{f'{when(issued)} for ' if issued else ''}{day} ({hours:g} of 24 h{cut})")
    more = f" and {len(part) - 10} more" if len(part) > 10 else ""
    return days, [f"left out: {len(part)} incomplete days: {', '.join(part[:10])}{more}"] if part else []


def _write_days(days, out, rule, words):
    """Write each day that is not there from the same files and rule; the paths of all.

    Raises: DataError: a file of that name that is not ours, or values that are no rain.
    """
    made, paths = 0, []
    for key in utils.progress(list(days), "making days"):
        issued, day = key
        text = str(issued)[:13].replace("-", "_").replace("T", "_") + f"_{str(day)[5:]}" if issued else str(day)
        path = out / f"{text.replace('-', '_')}.nc"
        begin = day.astype("M8[s]") + np.timedelta64(round(rule.day_start * 3600), "s")
        request = _request(days[key], begin)
        if not utils.finished(path, request):
            _refuse_foreign(path)
            _write_day(path, days[key], issued, day, begin, f"{words}; day from {when(begin)} UTC", request)
            made += 1
        paths.append(path)
    _open.cache_clear()
    first, last = (str(end(day for _, day in days)) for end in (min, max))
    start = f"{rule.day_start:+g} h from 00 UTC of their date"
    log(f"{out}: made {made} days, kept {len(days) - made}; {first} to {last}, beginning {start}")
    others = {path.name for path in utils.netcdf_files(out)[0]} - {path.name for path in paths}
    if others:
        log(f"{out}: holds {len(others)} other files too, for example {sorted(others)[0]}")
    return paths


def _request(values, begin):
    """A digest of all that a day is made from: files with their size and time, places in them, and the rule."""
    files = {value.source.path: stamp(value.source.path) for value in _all(values)}
    places = [(Path(v.source.path).name, v.index, str(v.begin), v.source.units) for v in _all(values)]
    return utils.digest_of("day", VERSION, begin, sorted((Path(p).name, s) for p, s in files.items()), places)


def _all(values):
    """Values and those they are differences from."""
    return [v for value in values for v in (value, value.less) if v is not None]


def _refuse_foreign(path):
    """Raise DataError where a file stands in the place of a day that --make-days did not write."""
    import netCDF4

    if not path.exists():
        return
    try:
        with netCDF4.Dataset(path) as file:
            ours = "day_rule" in file.ncattrs()
    except OSError:
        ours = False
    if not ours:
        raise DataError(f"{path}: is there already and was not made by --make-days; name another --days-folder")


def _write_day(path, values, issued, day, begin, words, request):
    """Sum the values of a day and write it.

    Raises: DataError: values that are no rain.
    """
    weights = defaultdict(Counter)  # of each place in each file; of differences most cancel and are not read
    for value in values:
        factor, rate = unit_factor(value.source.units)
        weight = factor * ((value.end - value.begin) / np.timedelta64(1, "s") if rate else 1.0)
        weights[value.source.path][value.index] += weight
        if value.less is not None:
            weights[value.less.source.path][value.less.index] -= weight
    sources, total = {v.source.path: v.source for v in _all(values)}, 0.0
    for name, terms in weights.items():
        total = total + _read(sources[name], [(index, w) for index, w in terms.items() if w])
    dataset, field, lat, lon = _open(values[0].source.path, values[0].source.chunk_bytes)
    plane = field.isel({dim: 0 for dim in field.dims if dim not in (lat, lon)}, drop=True).transpose(lat, lon)
    times = [name for name in plane.coords if name not in (lat, lon)]
    plane = plane.drop_vars(times).copy(data=total)
    plane.attrs = {"units": "mm"}
    bounds = {bounds_variable(field, dataset)[0], "time_bnds", "time_bounds"} & set(dataset.variables)
    try:
        tp = canonical(plane, units="mm", dataset=dataset.drop_vars(bounds))
    except DataError as error:
        raise DataError(f"{values[0].source.path}: the day {day}: {error}") from None
    files = sorted(Path(name).name for name in weights)
    attrs = {"source": ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")}
    attrs |= {"units_in_file": values[0].source.units, "day_rule": words, "request": request}
    clock = {"time": max(begin, day.astype("M8[s]"))}  # its date is the day's, also where the day begins before
    clock |= {"forecast_reference_time": issued} if issued is not None else {}
    with utils.NetCDFWriter(path, tp.lat.values, tp.lon.values, clock, **attrs) as output:
        output.put(tp.values)
        output.file.createDimension("nv", 2)
        bounds = output.file.createVariable("time_bnds", "f8", ("time", "nv"))
        bounds[0] = (np.array([begin, begin + DAY]) - np.datetime64("1900-01-01", "s")).astype("float64")
        output.file["time"].bounds = "time_bnds"


# ---------------------------------------------------------------- slices


@lru_cache(maxsize=3)
def _open(path, chunk_bytes):
    """(dataset, field, latitude, longitude) of a file that keeps two rows of its chunks decompressed."""
    import netCDF4

    before = netCDF4.get_chunk_cache()
    netCDF4.set_chunk_cache(max(before[0], min(2 * chunk_bytes, CHUNK_CACHE)), 10007, before[2])
    try:
        dataset = opened(path)
        field = choose(dataset, path)
        return dataset, field, *axes_of(field, dataset)
    finally:
        netCDF4.set_chunk_cache(*before)


def _read(source, terms):
    """The weighted sum of fields of a file, (lat, lon) as stored, float64; of `expver` the first version that is there.

    Args: terms: [(index, weight)]. Neighbours along one dimension are read together, BLOCK values at a time.
    """
    _, field, lat, lon = _open(source.path, source.chunk_bytes)
    cells, total, run = field.sizes[lat] * field.sizes[lon], 0.0, []
    most = max(1, BLOCK // (cells * field.sizes.get("expver", 1)))
    for index, weight in [*sorted(terms), (None, None)]:
        if run and (index is None or len(run) == most or not _follows(run[-1][0], index)):
            total = total + _read_run(field, lat, lon, run)
            run = []
        run.append((index, weight))
    return total


def _follows(index, other):
    """True where one place is the next along a single dimension."""
    apart = [(b - a) for (_, a), (_, b) in zip(index, other, strict=True) if a != b]
    return apart == [1]


def _read_run(field, lat, lon, run):
    """The weighted sum of neighbouring fields."""
    first, last = dict(run[0][0]), dict(run[-1][0])
    along = next((dim for dim in first if first[dim] != last[dim]), None)
    place = {dim: slice(i, last[dim] + 1) if dim == along else i for dim, i in first.items()}
    part = field.isel(place)
    try:
        part = newest(part) if "expver" in part.dims else part
        values = part.transpose(*filter(None, [along]), lat, lon).values.astype("float64")
    except (OSError, RuntimeError, ValueError) as error:
        words = shown((str(error).splitlines() or [type(error).__name__])[0])
        raise DataError(
            f"{field.encoding.get('source', field.name)}: cannot be read ({words}); fetch it again"
        ) from None
    planes = values.reshape(len(run), *values.shape[-2:])
    for (_, weight), plane in zip(run, planes, strict=True):
        refuse_code(plane, abs(weight), field)
    return np.tensordot([weight for _, weight in run], planes, 1)


# ---------------------------------------------------------------- what lists hold


def describe(lists):
    """What each list holds, in lines: files, dates, steps and units, then a table, then what may be wrong.

    Args: lists: {name: records of inspect_files}.
    """
    rows = [("", "variable", "period", "cell edges", "mean", "maximum", "missing")]
    lines, odd = [], []
    for name, records in lists.items():
        steps = Counter(
            f"{r['step']:g} degree ({r['rows']} x {r['cols']}"
            + (f", {r['members']} members)" if r["members"] > 1 else ")")
            for r in records
        )
        units = Counter(f"{r['units']} (from {r['units_from']})" for r in records)
        archives = sorted({r["archive"] for r in records if r["archive"]})
        label = f"; {', '.join(archives).upper()}" if archives else ""
        dates = f"{when(records[0]['time'])} to {when(records[-1]['time'])}"
        lines.append(f"{name}: {len(records)} files, {dates}; {', '.join(steps)}; units {', '.join(units)}{label}")
        rows.append((name, *_row(records)))
        odd += [f"  {name}: {words}" for words in _odd(records)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    periods = {name: list_period(records) for name, records in lists.items()}
    if any(one.differs(other) for one in periods.values() for other in periods.values()):
        words = ", ".join(f"{name} {period.words}" for name, period in periods.items())
        odd.append(f"  NOTE: lists of different periods: {words}; a model of one is refused for the others")
    odd += [f"  {words}" for words in _trained_on(lists)]
    return [*lines, *(f"  {line}" for line in table), *odd]


def _trained_on(lists):
    """Which evaluation days are training days of the same places, in words: scores on them are no test."""
    areas = {}
    for record in lists.get("train", []):
        areas.setdefault(record["time"], []).append(record["edges"])
    both = [
        when(record["time"])
        for record in lists.get("eval", [])
        if any(utils.overlap(record["edges"], area) for area in areas.get(record["time"], ()))
    ]
    if both:
        more = " ..." if both[5:] else ""
        yield (
            f"NOTE: {len(both)} evaluation days are training days of the same places, so that scores on them are no "
            f"test: {', '.join(both[:5])}{more}"
        )


def _row(records):
    """Variable, period, cell edges, mean, maximum and missing share of a list, in words."""
    names = {f"{r['variable']} ({r['long_name']})" if r["long_name"] else r["variable"] for r in records}
    periods = {Period(r["period"], r["period_from"]).words for r in records}
    areas = {tuple(r["edges"]) for r in records}
    mean, missing = (np.mean([r[key] for r in records]) for key in ("mean", "missing"))
    words = [
        f"{sorted(found)[0]}{f' and {len(found) - 1} more' if len(found) > 1 else ''}" for found in (names, periods)
    ]
    area = utils.extent_in_words(areas.pop()) if len(areas) == 1 else f"{len(areas)} areas"
    return *words, area, f"{mean:.3g} mm", f"{max(r['maximum'] for r in records):.3g} mm", f"{100 * missing:.3g} %"


def _odd(records):
    """What may be wrong with a list, in words."""
    times = [record["time"] for record in records]
    twice = [when(time) for time, count in Counter(times).items() if count > 1]
    gaps = missing_days(times), "days are missing between days of the same month"
    for found, words in ((twice, "times occur more than once"), gaps):
        if found:
            yield f"{len(found)} {words}: {', '.join(found[:5])}{' ...' if len(found) > 5 else ''}"
    sums = Counter(r["checksum"] for r in records if r["maximum"] > 0)
    if same := [r["path"] for r in records if sums[r["checksum"]] > 1 and r["maximum"] > 0]:
        names = ", ".join(shown(Path(path).name) for path in same[:5])
        yield f"NOTE: {len(same)} files hold the same values as another: {names}{' ...' if same[5:] else ''}"
    if len({r["step"] for r in records}) > 1 or len({r["archive"] for r in records if r["archive"]}) > 1:
        yield "NOTE: files of different steps or archives in one list"
    if len({r["variable"] for r in records}) > 1:
        yield f"NOTE: several variables in one list: {', '.join(sorted({r['variable'] for r in records}))}"
    short = [r["period"] for r in records if r["period"] and r["period"] < 20.5]
    known = sum(bool(r["period"]) for r in records)
    if known < len(records):
        few = f"of {len(records) - known} of {len(records)} files " if known else ""
        yield f"NOTE: the period {few}is unknown, so no model of another is refused; --period 24h says it"
    if short:
        folder = shown(Path(records[0]["path"]).parent.as_posix())
        command = f"{MAKE_DAYS} {folder} --days-folder {folder}_days"
        yield f"NOTE: amounts over {in_words(short[0])}, not of days; {command} makes days"
    if len(records) > 9 and max(r["maximum"] for r in records) < 1:
        yield "NOTE: no amount reaches 1 mm in all files: are the units right? --units says others"
    starts = np.unique(np.array(times, "M8[D]"))
    if len(starts) > 2 and np.diff(starts).astype(int).min() >= 28:
        yield "NOTE: files are a month or more apart: means of months hold no days"
    if np.mean([r["missing"] for r in records]) > 0.5:
        yield "NOTE: more than half of all values are missing"


def missing_days(times):
    """Days without a file between the first and the last day of each month that has any."""
    days = np.unique(np.array(times, "datetime64[D]"))
    months = np.split(days, np.flatnonzero(np.diff(days.astype("datetime64[M]")).astype(int)) + 1)
    return [str(day) for day in np.setdiff1d(np.concatenate([np.arange(m[0], m[-1]) for m in months]), days)]
