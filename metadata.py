"""What the attributes and the name of a rain file say: which quantity, units, times and period. Reads no values.

Reads and writes  nothing: it is given fields (DataArrays) and texts.

    from metadata import unit_factor
    unit_factor("kg m**-2 s**-1")    # (1.0, True): to mm/s, for it is a rate
"""

import argparse
import math
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from utils import DataError, shown

# words that speak of rain
RAIN = re.compile("precip|rain(?!bow)|prcp|niederschlag|pluie|lluvia|降水|降雨|雨量", re.I)
PART = re.compile(  # words that speak of a part of the rain, or of a figure about it
    r"(?<!non.)convective|large.?scale|stratiform|snow|graupel|\bhail|freezing|error(?!.{0,3}correct)|uncertaint|"
    r"quality (?:index|flag|code)|\bflag|probab|anomal|percentile|quantile|\bmaximum|\bminimum|deviation|"
    r"frequency of|duration|number of|evapo|climatolog(?!y (?:project|cent))|"
    r"precipitable|content of|water (?:content|path)|total column|intercept|throughfall|deficit|excess|erosivity|"
    r"antecedent|spread|variance|median|interquartile|\bnormals?\b|\bbias(?![ _-]?(?:correct|adjust))|\bcounts?\b|"
    r"difference|increment|tendency|\bchange (?:in|of|over)\b|return (?:level|period)|\blog(?:10|arithm)?(?: of|\()|"
    r"\btrend|\w+ root of",
    re.I,
)
MANY_DAYS = re.compile(
    r"\b(monthly|season|annual|yearly|dekad|decad|pentad|weekly|month|year)|since (?:the )?\d* ?(?:"
    "jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)",
    re.I,
)
METHODS = ("sum", "mean", "point", "average")  # of cell_methods that leave rain; in space without the sum
OTHER = re.compile(  # words that speak of something else, where none speaks of rain
    "temperature|pressure|wind|humidity|vapou?r|evapo|snow|hail|graupel|cloud|radiation|soil|"
    "geopotential|height|visibility|run.?off|column|heat|latitude|longitude|ozone|elevation|orography|error|quality",
    re.I,
)
NOTHING = ("", "unknown", "none", "undefined", "-")  # texts of attributes that say nothing: all ERA5 files have them
SPEAKING = ("standard_name", "long_name", "description", "GRIB_name", "GRIB_cfName")
MODIFIERS = "standard_error|number_of_observations|status_flag|detection_minimum"  # of CF standard names
LONGEST = 240  # days from the issue of a forecast to the day it is valid for, those of seasons included
AS_STORED = "as stored"  # stands for units not decided yet: the values are kept as the file stores them
AMOUNTS = {"mm": 1.0, "cm": 10.0, "m": 1000.0, "kg m-2": 1.0}  # to mm
RATES = {"kg m-2 s-1": 1.0, "mm s-1": 1.0, "mm h-1": 1 / 3600, "mm day-1": 1 / 86400, "m s-1": 1000.0}  # to mm / s
UNITS = (*AMOUNTS, *RATES)
TIME_UNITS = {"nanosecond": 1e-9, "second": 1, "sec": 1, "s": 1, "minute": 60, "min": 60, "hour": 3600, "hr": 3600}
TIME_UNITS |= {"h": 3600, "day": 86400, "d": 86400}
STEP_UNITS = {"s": 1 / 3600, "m": 1 / 60, "h": 1, "d": 24, "0": 1 / 60, "1": 1, "2": 24, "10": 3, "11": 6, "12": 12}
STEP_UNITS |= {"13": 1 / 3600, "254": 1 / 3600}  # of GRIB_stepUnits in hours, by GRIB's code or letter
MEMBERS = re.compile("number|member|realization|ens", re.I)  # in the name of the dimension of an ensemble
MAKE_DAYS = "python 1create_data_lists.py --make-days"  # the command that turns files of many times into days
BASE = {  # unit: powers of length, mass and time, and its size in m, kg, s
    **dict.fromkeys(("m", "meter", "metre"), (1, 0, 0, 1.0)),
    **dict.fromkeys(("l", "liter", "litre"), (3, 0, 0, 1e-3)),
    **dict.fromkeys(("g", "gram", "gramme"), (0, 1, 0, 1e-3)),
    **{name: (0, 0, 1, size) for name, size in TIME_UNITS.items()},
}
PREFIXES = {"m": 1e-3, "milli": 1e-3, "c": 1e-2, "centi": 1e-2, "d": 0.1, "deci": 0.1, "k": 1e3, "kilo": 1e3}
FACTOR = re.compile(r"\s*(/)?\s*(\d+(?:\.\d+)?)?\s*([a-z]+)(?:\s?(-\d+)|(\d+))?")  # of a unit: /3h, m-2, 0.1 mm

# fmt: off
__all__ = [
    "AMOUNTS", "AS_STORED", "MAKE_DAYS", "NOTHING", "Period", "RAIN", "RATES", "UNITS", "bounds_variable",
    "dates", "in_words", "list_period", "member_dimension", "member_labels", "name_times", "other_quantity",
    "own_units", "parse_period", "period_of", "refuse_other", "said", "seconds_of", "settle_periods", "text_of",
    "time_bounds", "time_roles", "unit_factor",
]
# fmt: on


# ---------------------------------------------------------------- which quantity


def text_of(attrs, name):
    """An attribute as text, "" where it says nothing."""
    text = str(attrs.get(name, "")).strip()
    return "" if text.lower() in NOTHING else text


def said(field):
    """What a field's name and attributes say it is."""
    return " ".join([str(field.name), *(text_of(field.attrs, key) for key in SPEAKING)])


def other_quantity(field):
    """What a field says it is, where that is not an amount or a rate of precipitation; "" where nothing does.

    A standard_name with blanks is none of CF's (CHIRPS has "convective precipitation rate"): only its rain counts.
    """
    standard = text_of(field.attrs, "standard_name").lower()
    if standard:
        is_name = re.fullmatch(rf"[a-z0-9_]+( ({MODIFIERS}))?", standard)
        rain = RAIN.search(standard) or standard in ("tp", "pr", "pre", "prec", "rr", "ppt")
        if not rain or is_name and (PART.search(standard.replace("_", " ")) or " " in standard):
            return f"standard_name {shown(standard)}"
    for key in SPEAKING[1:]:
        text = text_of(field.attrs, key)
        spoken = (PART if RAIN.search(text) else OTHER).findall(text)
        parts = {re.sub(r"\W", " ", word.lower()) for word in spoken}
        if {"convective"} < parts and parts <= {"convective", "large scale", "stratiform"}:
            parts = set()  # "total (convective and large-scale)" is the whole
        if parts == {"snow"} and re.search("rain|total precip|liquid", text, re.I):
            parts = set()  # so is "rain and snow"
        if parts:
            return f"{key} {shown(text)!r}"
    return ""


def refuse_other(field):
    """Raise DataError where a field says that it is no total of rain, whatever its name and units."""
    words = other_quantity(field)
    if not words:
        text = re.sub(r"\([^()]*\)", "", text_of(field.attrs, "cell_methods"))
        for axes, kind, within in re.findall(r"((?:\w+: *)+)(\w+)((?: +(?:within|over) +\w+)?)", text):
            known = METHODS if "time:" in axes else METHODS[1:]
            if kind not in known or "time:" in axes and "over" in within:
                words = f"cell_methods {shown(field.attrs['cell_methods'])!r}"
    if not words and {"flag_values", "flag_masks", "flag_meanings"} & set(field.attrs):
        words = next(f"{key} (codes)" for key in field.attrs if key.startswith("flag_"))
    time = next((field.coords.variables[name] for name in ("time", "valid_time") if name in field.coords), None)
    if not words and time is not None and "climatology" in time.attrs:
        words = "a time with climatology bounds (a mean over years)"
    if words:
        raise DataError(
            f"{shown(field.name or 'field')} is no rain by its {words}; expected total precipitation of one day: "
            "choose another variable; if that attribute is wrong, take it away, for example with ncatted -a "
            f"{words.split()[0]},{shown(field.name or 'tp')},d,, FILE"
        )


# ---------------------------------------------------------------- members of an ensemble


def member_dimension(field):
    """The dimension of a field that counts the members of an ensemble, two or more of them; None where there is none.

    CF gives it the standard name realization or axis E; without both its name says so.
    """
    for dim, size in field.sizes.items():
        attrs = field.coords.variables[dim].attrs if dim in field.coords else {}
        words = str(attrs.get("standard_name", "")).lower(), str(attrs.get("axis", "")).upper()
        if size > 1 and (words[0] == "realization" or words[1] == "E" or MEMBERS.search(str(dim))):
            return dim
    return None


def member_labels(field):
    """What a field calls the members of its ensemble: whole numbers or texts, 0, 1, ... where it says nothing.

    Raises: DataError: two members of one name.
    """
    dim = member_dimension(field)
    labels = field.coords.variables[dim].values if dim in field.coords else np.arange(field.sizes[dim])
    if labels.dtype.kind == "f" and (labels == np.round(labels)).all():
        labels = labels.astype("int64")
    if labels.dtype.kind not in "iu":
        labels = np.array([label.decode() if isinstance(label, bytes) else str(label) for label in labels.tolist()])
    if len(set(labels.tolist())) < len(labels):
        raise DataError(f"{dim} names a member twice; expected each once: {shown(str(labels.tolist()))}")
    return labels


# ---------------------------------------------------------------- times


def time_roles(field):
    """{coordinate: role} of the times of a field: `valid`, `reference` (a forecast's issue) or `period` (lead time).

    Attributes come before names: GRIB readers write the issue as `time`, and the lead as `step`.
    """
    roles = {}
    for name, coordinate in field.coords.variables.items():
        standard, long_name = (text_of(coordinate.attrs, key).lower() for key in ("standard_name", "long_name"))
        if standard == "forecast_reference_time" or "initial time" in long_name:
            roles[name] = "reference"
        elif standard == "forecast_period" or name in ("step", "forecast_period", "leadtime", "lead_time"):
            roles[name] = "period"
        elif name == "forecast_reference_time":
            roles[name] = "reference"
        elif standard == "time" or name in ("valid_time", "time") or _is_clock(coordinate):
            roles[name] = "valid"
    return roles


def _is_clock(coordinate):
    return coordinate.dtype.kind == "M" or " since " in str(coordinate.attrs.get("units", ""))


def name_times(stem):
    """(valid time, forecast reference time or None) that a file name gives, or None where it gives no date, or two.

    A forecast whose valid month comes before its month of issue is valid in the next year: 2023_12_31_18_01_01_x.

    Raises: DataError: a forecast that is valid before its issue, or LONGEST days later.
    """
    parts = re.match(
        r"(\d{4})[_-](\d\d)[_-](\d\d)(?:[_-](\d\d)[_-](\d\d)[_-](\d\d)(?!\d)|[_T-](\d\d)(\d\d)?(?![_-]?\d))?(?!\d)",
        stem,
    )
    parts = parts or re.fullmatch(r"(\d{4})(\d\d)(\d\d)()()()()()", stem)
    if not parts or re.match(r"[_-]+(to[_-]+)?(\d{4}[_-]?\d\d|\d\d[_-]\d\d)", stem[parts.end() :]):
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
    if not 0 <= (valid.astype("M8[D]") - issued.astype("M8[D]")).astype(int) <= LONGEST:
        raise DataError(
            f"its name says a forecast issued {str(issued)[:10]} and valid on {valid_month}-"
            f"{valid_day}; expected YYYY_MM_DD_HH_MM_DD, issued and valid, the latter 0 to {LONGEST} days later: "
            "rename it"
        )
    return valid, issued


def dates(coordinate, name):
    """The times of a coordinate as datetime64[s], (N,), encoded by CF or decoded already.

    Raises: DataError: an encoded time that is no date, or one outside 1678 to 2261.
    """
    values = np.asarray(coordinate.values).reshape(-1)
    if values.dtype.kind == "M":
        return values.astype("M8[s]")
    import datetime

    import cftime

    units, calendar = str(coordinate.attrs.get("units", "")), str(coordinate.attrs.get("calendar", "standard"))
    if values.dtype.kind == "O" and isinstance(values[0], cftime.datetime):
        found, calendar = list(values), values[0].calendar
    else:
        try:
            found = [cftime.num2date(value, units, calendar) for value in values.astype("float64")]
            found = [date + datetime.timedelta(seconds=0.5) for date in found]  # cut to the second below
            if calendar == "julian" and not re.search("UTC|1970-0?1-0?1|1980-0?1-0?6", units):  # IMERG's is Gregorian
                found = [date.change_calendar("standard") for date in found]  # the same days, 13 days behind
        except (ValueError, OverflowError, TypeError, AttributeError):  # a missing value decodes to a masked one
            raise DataError(
                f"{name} {shown(values[:3])} in {shown(units)!r} (calendar {shown(calendar)}) is no date; expected a "
                "number, like 0 in 'days since 2023-08-01'"
            ) from None
    year = next((date.year for date in found if not 1678 <= date.year < 2262), None)
    if year is not None:
        raise DataError(
            f"{name} is in the year {year}; expected 1678 to 2261, what NetCDF tools hold to the nanosecond"
        )
    try:  # a date of a model calendar is kept as it stands; 30 February cannot be
        return np.array([np.datetime64(date.isoformat()[:19], "s") for date in found], "M8[s]")
    except ValueError:
        raise DataError(
            f"{name} {found[0].isoformat()} of calendar {calendar} is no day of the Gregorian calendar"
        ) from None


def seconds_of(coordinate):
    """A coordinate of durations (lead times, bounds) in seconds, (N,); NaN where its unit is not understood."""
    values = np.asarray(coordinate.values).reshape(-1)
    if values.dtype.kind == "m":
        return values / np.timedelta64(1, "s")
    if values.dtype.kind not in "iuf":
        return np.full(values.shape, np.nan)
    return values * _seconds_in(str(coordinate.attrs.get("units") or "").split(" since")[0].strip().lower())


@dataclass(frozen=True)
class Bounds:
    """Time bounds of one field: their variable, seconds from start to end (NaN: not understood), and their dates."""

    name: str
    seconds: float
    words: str
    begin: object = None
    end: object = None


def bounds_variable(field, dataset):
    """(name, Variable of start and end) of the bounds of a field's time; (None, None) where the file has none.

    The variable carries the unit and calendar of its time where it has none of its own, as CF rules.
    """
    variables = {} if dataset is None else dataset.variables
    clock = next((n for n, role in time_roles(field).items() if role == "valid" and n in variables), "time")
    attrs = variables[clock].attrs if clock in variables else {}
    for name in (attrs.get("bounds"), f"{clock}_bnds", f"{clock}_bounds", "time_bnds", "time_bounds"):
        if isinstance(name, str) and name in variables:
            variable = variables[name]
            units = variable.attrs.get("units") or attrs.get("units", "")
            calendar = variable.attrs.get("calendar") or attrs.get("calendar", "standard")
            about = {} if variable.dtype.kind == "M" else {"units": str(units), "calendar": str(calendar)}
            return name, type(variable)(variable.dims, variable.values, about)
    return None, None


def time_bounds(field, dataset):
    """The Bounds of the time of one field; None where the file has none."""
    name, variable = bounds_variable(field, dataset)
    if name is None:
        return None
    unit, decoded = str(variable.attrs.get("units", "")), variable.dtype.kind == "M"
    spans = variable.values.reshape(-1).astype("M8[s]").astype("int64") if decoded else seconds_of(variable)
    words = f"{shown(variable.values.ravel()[:4])} in {shown(unit.split(' since')[0]) or 'no unit'}"
    found = float(np.ptp(spans)) if spans.size == 2 else np.nan
    if not found > 0 or " since " not in unit and not decoded:
        return Bounds(name, found, words)
    ends = dates(variable, name)
    return Bounds(name, found, words, ends.min(), ends.max())


# ---------------------------------------------------------------- periods


@dataclass(frozen=True)
class Period:
    """The hours over which rain fell (None: unknown), and what says so."""

    hours: float | None = None
    source: str = ""

    @property
    def words(self):
        """`24 h (time_bnds)`, `24 min (--period)`, or `unknown`."""
        return f"{in_words(self.hours)} ({shown(self.source)})" if self.hours else "unknown"

    @classmethod
    def of(cls, attrs):
        """The period in the attributes of a canonical field."""
        return cls(attrs.get("period_hours"), attrs.get("period_from", ""))

    def differs(self, other):
        """True where both periods are known and are not the same."""
        return bool(self.hours and other.hours and rounded(self.hours) != rounded(other.hours))


def in_words(hours):
    """A period in words, `24 h` or `24 min`."""
    return f"{hours:g} h" if hours >= 1 else f"{round(hours * 60, 3):g} min"


def rounded(hours):
    """A period in hours; that of a day where bounds stop at the day's last stamp, as those of cdo daysum do."""
    return 24.0 if 20.5 < hours < 25.5 else round(hours, 2)


def parse_period(text):
    """Convert a period as it is typed (24h, 1d, 24min) to hours.

    Raises: argparse.ArgumentTypeError: no length of time, or more than a day.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([a-z]+)", text.strip().lower())
    hours = float(found[1]) * _seconds_in(found[2]) / 3600 if found else math.nan
    if not 0 < hours <= 24:
        raise argparse.ArgumentTypeError(f"{text!r}: expected up to a day, with its unit: 24h, 1d, 6h, 24min")
    return round(hours, 4)


def _seconds_in(word):
    """Seconds in one of a unit of time; NaN where it is not understood."""
    return TIME_UNITS.get(word, TIME_UNITS.get(word.removesuffix("s"), math.nan))


def period_of(field, units, bounds, path, decided=None):
    """The Period of a field's rain; its hours are None where nothing says it.

    Args: decided: the Period that stage 1 decided, which is taken where a rate does not need more.
    Raises: DataError: sources that contradict each other, more than a day, bounds that are not understood, or a rate
        without a period.
    """
    rate = units != AS_STORED and unit_factor(units)[1]
    if decided and (decided.hours or not rate):
        return decided
    if bounds and (np.isnan(bounds.seconds) or rate and not bounds.seconds > 0):
        start = f"units {units} are a rate, and " if rate else ""
        raise DataError(
            f"{start}{shown(bounds.name)} gives no period: {bounds.words}; expected start and end, and a time unit of "
            "seconds, minutes, hours or days"
        )
    stated = [Period(bounds.seconds / 3600, bounds.name)] if bounds and bounds.seconds > 0 else []
    stated += _stated_periods(field)
    found, interval = stated[0] if stated else _weak_period(field, units, rate, path), _interval(field)
    odd = [other for other in stated[1:] if found.differs(other)]
    if found.hours and interval and interval > 1.05 * found.hours:  # nothing is summed over less than its parts
        odd.append(Period(interval, "cell_methods"))
    if odd:
        raise DataError(
            f"{shown(found.source)} says amounts over {in_words(found.hours)}, {odd[0].source} over "
            f"{in_words(odd[0].hours)}; expected one period: take the wrong attribute away, or say which it is with "
            "--period in stage 1, for example --period 24h"
        )
    if found.hours and found.hours > 1.05 * 24:
        many = f"{found.source} span {found.hours / 24:g} days" if found.hours < math.inf else found.source
        raise DataError(
            f"{many}; expected a file a day (or less): a mean or a sum of many days "
            "holds no days any more; take the daily or hourly files of the product"
        )
    if not found.hours and rate:
        raise DataError(
            f"units {units} are a rate and the file does not say over which period; add time bounds, give amounts, or "
            "say it with --period in stage 1, for example --period 24h"
        )
    return found


def _stated_periods(field):
    """The Periods that attributes state, all of which must agree: GRIB_stepRange, and the words of long_name."""
    about = text_of(field.attrs, "long_name")
    hours = 24.0 if re.search(r"\bdaily\b", about, re.I) else _spoken(about)
    found = Period(_step_range(field.attrs), "GRIB_stepRange"), Period(hours, "long_name")
    return [period for period in found if period.hours]


def _step_range(attrs):
    """Hours of GRIB_stepRange, `0-24` or `0m-30m`; None where there is no range of steps.

    Raises: DataError: one that is not understood.
    """
    text, unit = str(attrs.get("GRIB_stepRange", "")).lower(), str(attrs.get("GRIB_stepUnits", "h")).lower()
    if "-" not in text:
        return None
    found = re.fullmatch(r"(\d+)([smhd]?)-(\d+)([smhd]?)", text)
    first, own, last, after = found.groups() if found else ("nan", "", "nan", "")
    first, last = (float(n) * STEP_UNITS.get(of or after or unit, math.nan) for n, of in ((first, own), (last, after)))
    if not last >= first:
        raise DataError(
            f"GRIB_stepRange {shown(text)!r} in GRIB_stepUnits {shown(unit)!r} gives no period; expected first and "
            "last step, like 0-24 or 0m-30m"
        )
    return last - first


def _spoken(text):
    """Hours of the first period that a text speaks of (`24-hour total`, `3 hourly`, `mm/3h`); None where none."""
    found = re.search(r"(?<![\d-])(\d+)[ -]?(h|hour|hr|min|minute)(?:s|ly)?\b", text)
    return float(found[1]) / (60 if found[2].startswith("min") else 1) if found else None


def _weak_period(field, units, rate, path):
    """The Period that units, other attributes or the name suggest.

    A day's name is no evidence where cell_methods sums values of less than a day: such a file may be a day or not.
    """
    about, average = text_of(field.attrs, "long_name"), text_of(field.attrs, "avg_period")
    if rate and re.search(r"\bd(ay)?s?(-1)?$", units):
        return Period(24.0, "units")
    if MANY_DAYS.search(about) and not re.search("hour", about, re.I) or re.match(r"\d{4}-(?!00)", average):
        return Period(math.inf, "its attributes: amounts of a month or more")
    if text_of(field.attrs, "time_step") == "day" or "-01 00:00:00" in average:
        return Period(24.0, "attributes")
    if hours := _spoken(units):
        return Period(hours, "units")
    interval = _interval(field)
    if interval is not None and interval > 20:  # sums of days or more, and nothing longer is taken
        return Period(interval, "cell_methods")
    stem = Path(path).stem if path else ""
    clock = re.match(r"\d{4}[_-]\d\d[_-]\d\d[_T-]\d\d(\d\d)?(?![_-]?\d)", stem)  # 2019_06_10_00: a time, no day
    return Period(24.0, "name") if name_times(stem) and not clock and interval is None else Period()


def _interval(field):
    """Hours between the values that cell_methods says were summed, as `time: sum (interval: 2 min)`; None: not said.

    It is the least that the period can be, not the period itself (CF 7.3.2): radar totals of 24 minutes have 2.
    """
    text = text_of(field.attrs, "cell_methods").lower()
    found = re.search(r"time: *\w+[^:]*\(interval: *(\d+(?:\.\d+)?) *([a-z]+)", text)
    if not found or re.match("week|month|season|year|decade", found[2]):
        return math.inf if found else None
    return float(found[1]) * _seconds_in(found[2]) / 3600


def settle_periods(records):
    """Give files of unknown period the spacing of their list: (records of one period, faults).

    The spacing counts where no file of the same issue states its period. The name of a day is no evidence where times
    are closer than a day, nor where all are further apart and equally so (weeks, months). Periods that differ are a
    fault of the files that are fewer.
    """
    for issued in {record["forecast_reference_time"] for record in records}:
        group = [record for record in records if record["forecast_reference_time"] == issued]
        gaps = np.diff(np.unique(np.array([record["time"] for record in group], "M8[m]"))).astype(int) / 60
        if not gaps.size or any(record["period_from"] not in ("", "name") for record in group):
            continue
        least, regular = float(gaps.min()), gaps.size > 1 and gaps.max() < 1.2 * gaps.min()
        for record in group:
            if least < 22.5 or least == 24:
                record.update(period=least, period_from="spacing of the list")
            elif regular:
                record.update(period=None, period_from="")
    known = Counter(rounded(record["period"]) for record in records if record["period"])
    if len(known) < 2:
        return records, []
    usual = known.most_common(1)[0][0]
    most = next(record for record in records if record["period"] and rounded(record["period"]) == usual)
    odd = [record for record in records if record["period"] and rounded(record["period"]) != usual]
    faults = [
        f"{record['path']}: amounts over {_said(record)}, but {most['path']} and most files of the list over "
        f"{_said(most)}; expected one period: list them apart, make days of them with {MAKE_DAYS}, or, where what the "
        "files say is wrong, give --period"
        for record in odd
    ]
    return [record for record in records if record not in odd], faults


def _said(record):
    return Period(record["period"], record["period_from"]).words


def list_period(records):
    """The Period of a list whose records settle_periods left: of several sources the most frequent.

    Files of unknown period do not count where others are known.
    """
    known = Counter((rounded(r["period"]), r["period_from"]) for r in records if r.get("period"))
    return Period(*known.most_common(1)[0][0]) if known else Period()


# ---------------------------------------------------------------- units


def own_units(field, overridden=None):
    """The units that a field's attributes give, of UNITS or what unit_factor understands; None where they give none.

    Args: overridden: units that the user gives instead; only units of another quantity are refused then.
    Raises: DataError: attributes that are not understood, contradict each other, or contradict the values.
    """
    text, standard = text_of(field.attrs, "units"), text_of(field.attrs, "standard_name").lower()
    other = re.fullmatch(
        r"(deg(ree)?s?[ _]?)?(k|c|kelvin|celsius)|%|percent|[hk]?pa|[kmg]?[jw]( ?m.*)?|dbz?", text.lower()
    )
    if other or re.match(r"m *\*{0,2}\^?2 ", text):
        raise DataError(f"units {shown(text)!r} are not understood as rain; choose another variable")
    units = _unit_name(text)
    if text and units is None and not overridden:
        raise DataError(
            f"units {shown(text)!r} are not understood; expected one of {', '.join(UNITS)}; override with --units"
        )
    if not overridden and not (units and unit_factor(units)[1]) and standard.endswith(("_flux", "_rate")):
        raise DataError(
            f"standard_name {shown(standard)} is a rate, units {units or 'there are none'}; give its units with --units"
        )
    mean = re.search(r"time: *(mean|average)", text_of(field.attrs, "cell_methods"))
    if not overridden and units and not unit_factor(units)[1] and mean:
        raise DataError(
            f"cell_methods {shown(field.attrs['cell_methods'])!r} is a mean and units {units} are an amount; expected "
            "the sum of a day; say what the values are with --units, for example --units mm"
        )
    limit = np.ravel(field.attrs.get("valid_max", field.attrs.get("valid_range", np.inf)))
    limit = limit[-1] if limit.size and limit.dtype.kind in "iuf" else np.inf
    if isinstance(limit, np.integer) and "scale_factor" in field.encoding:  # of the packed values
        limit = limit * field.encoding["scale_factor"] + field.encoding.get("add_offset", 0)
    highest = np.nanmax(field.values, initial=0)
    if highest > limit * (1 + 1e-6):
        raise DataError(
            f"holds {highest:g}, above its own valid_max (or valid_range) {limit:g}; make such cells missing, for "
            f"example with cdo setrtomiss,{limit:g},1e30"
        )
    return units


def _unit_name(text):
    """Convert a units attribute to one of UNITS ("metres" to "m", "kg/m2" to "kg m-2"), else to itself.

    None where it is empty or not understood.
    """
    found = unit_factor(text) if text else None
    if not found:
        return None
    table = RATES if found[1] else AMOUNTS
    same = [name for name, size in table.items() if abs(size / found[0] - 1) < 1e-9]
    return next((name for name in same if ("kg" in name) == ("g" in text.lower())), same[0] if same else shown(text))


@lru_cache(maxsize=256)
def unit_factor(text):
    """(factor, rate) of units as people write them: to mm, or to mm/s where it is a rate; None: not those of rain.

    Lengths, volumes and masses of water on an area, with or without a time: "kg m**-2 s**-1", "L/m²", "mm/3h".
    """
    for kind, table in ((False, AMOUNTS), (True, RATES)):
        if text in table:
            return table[text], kind
    words = unicodedata.normalize("NFKC", str(text)).replace("\u2212", "-").lower().strip()
    words = re.sub(r"\s*\(?(of )?(water|lwe|h2o)( equivalent)?\)?(?= |/|$)", "", re.sub(r"\bper\b", "/", words))
    words = re.sub(r"\*\*|\^", "", words)
    words = re.sub(r"[·*×]|(?<=[a-z\d])\.(?=[a-z])", " ", words)
    words = re.sub(r"/\s*\(([^()]*)\)", lambda m: "".join(f"/{f[0].strip()}" for f in FACTOR.finditer(m[1])), words)
    words = words.replace("(", "").replace(")", "").strip()
    if not re.fullmatch(rf"(?:{FACTOR.pattern}(?=[\s/]|$))+", words) or len(words) > 40:
        return None
    powers, factor = np.zeros(3, int), 1.0
    for over, number, word, negative, positive in FACTOR.findall(words):
        unit, power = _unit_word(word), int(negative or positive or 1) * (-1 if over else 1)
        if unit is None or abs(power) > 9:
            return None
        powers, factor = powers + np.array(unit[:3]) * power, factor * (float(number or 1) * unit[3]) ** power
    scale = {(1, 0): 1000.0, (-2, 1): 1.0}.get((powers[0], powers[1]))
    return (factor * scale, powers[2] == -1) if scale and powers[2] in (0, -1) else None


def _unit_word(word):
    """(length, mass, time, size) of one unit, with its prefix or plural; None where it is unknown."""
    for prefix, size in {"": 1.0, **PREFIXES}.items():
        for stem in (word, word.removesuffix("s")):
            base = BASE.get(stem[len(prefix) :]) if stem.startswith(prefix) else None
            if base and (not prefix or not base[2]):
                return (*base[:3], size * base[3])
    return None
