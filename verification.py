"""Compares downscaled fields with the truth and with simple methods; makes the score table. No pictures, no colours.

Reads    NN_pre_sr.nc of stages 3 and 4 and the truth of their days.
Writes   scores.csv.

    from verification import ScoreTable
    table = ScoreTable(scale=100)
    table.add(sr, hr, lr, day="2023-08-01")           # (members, H, W), (H, W), (h, w), mm
    rows = table.rows()

`scores`, pandas, pysteps and torch are imported where they are used: they are slow to load.
"""

import contextlib
import functools
import io
import textwrap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.fft
import scipy.ndimage
import xarray as xr

from datasets import block_mean, fill_nearest
from realism import KEYS, realism_lines
from threads import allowed_cores
from utils import DataError, field_times, log, progress, read_output, when, whole_file

QQ_LEVELS = np.linspace(0.01, 0.999, 100)  # quantiles of the Q-Q plot and its RMSE; the last is 99.9 %
LEVELS = np.append(QQ_LEVELS, 0.99)  # and 99 % for its own ratio
# Bins of the histograms: 64 for each doubling of the rain, from 2**-10 to 2**11 mm, before them one for dry pixels.
# The leading bits of a float32 number its bin.
FIRST, LAST = 117 << 6, 138 << 6
EDGES = np.append(0, (np.arange(FIRST, LAST + 1, dtype=np.int32) << 17).view(np.float32).astype(np.float64))
REASONS = {
    "p99_ratio": "the observed quantile is 0",
    "p999_ratio": "the observed quantile is 0",
    "lsd_db": "a field is constant, or all have missing pixels",
    "spread_skill": "the mean of the members is exact",
    **dict.fromkeys(("sal_s", "sal_a", "sal_l"), "truth or field is always dry"),
}
MATCHED = "quantile-matched bilinear"

# Columns of the printed tables: key, title, width, meaning. One FSS stands before the last score.
SCORES = (
    ("crps", "CRPS", 7, "continuous ranked probability score, of one field its mean absolute error"),
    ("crps_low", "95 %", 13, "interval of the CRPS"),
    ("rmse", "RMSE", 7, "root mean square error"),
    ("qq_rmse", "Q-Q", 7, "RMSE of the quantiles"),
    ("p99_ratio", "P99", 6, "99 % quantile over the observed one, P99.9 likewise"),
    ("p999_ratio", "P99.9", 7, ""),
    ("lsd_db", "spectrum", 9, "distance from the observed power spectrum, dB"),
    ("spread_skill", "spread", 7, "spread of the members over the error of their mean"),
    ("conservation_mm", "means", 6, "largest difference of a block mean from the input"),
)
COMPARISONS = (
    ("fields", "fields", 8, ""),
    ("cells", "cells", 7, ""),
    ("mean_sr", "mean SR", 9, "mean of the downscaled fields"),
    ("mean_reference", "reference", 10, "mean of what they are compared with"),
    ("rmse", "RMSE", 7, "root mean square error"),
    ("bias", "bias", 7, ""),
    ("qq_rmse", "Q-Q", 7, "RMSE of the quantiles"),
    ("max_difference", "largest", 8, "largest difference"),
    ("correlation", "corr.", 7, "correlation"),
)

# fmt: off
__all__ = [
    "QuantileMatcher", "ScoreTable", "check_match", "fair_crps", "format_table", "histogram", "histogram_quantile",
    "lsd", "rainfarm", "rapsd", "sal", "score_outputs", "short_accumulation", "upsample", "wet_windows", "write_scores",
]
# fmt: on


# ---------------------------------------------------------------- evaluation days (stage 3)


def score_outputs(paths, pairs, scale, *, side=None, realism=None):
    """Score downscaled files against the truth of their days.

    The quantile-matched row is fitted on the files of other dates. Where all files are of one date it is fitted on the
    other files, and the table says so. The thresholds of FSS are 1, 10 and 50 mm, or 0.1, 1 and 5 mm where every file
    is a short accumulation.

    Args: paths: NN_pre_sr.nc in list order. pairs: sequence of (lr, hr) DataArrays (SRDataset with dataarray=True).
        side: of the wet windows that are scored, in LR cells; 0: whole fields; None: as fitting_side.
        realism: a realism.Realism for its columns, of whole fields; not where the truth is an interpolation.
    Returns: a ScoreTable.
    Raises: DataError: an output is on another grid than its truth, or of another day.
    """
    side = fitting_side(pairs, len(paths), scale) if side is None else side
    dates = [str(field_times(pairs[index][1]).get("time", index))[:10] for index in range(len(paths))]
    several = len(set(dates)) > 1
    days = dates if several else list(range(len(paths)))
    words = "files of other dates" if several else "other files, all of one date: their rain is much like the truth"
    matcher, short = QuantileMatcher(scale, note=f"fitted on the {words}"), True
    for index, day in enumerate(days):
        lr, hr = pairs[index]
        short &= short_accumulation(hr)
        for piece in _windows(lr.values, hr.values, scale, side) if side else [(lr.values, hr.values)]:
            matcher.add(*piece[:2], day=day)
    thresholds = (0.1, 1.0, 5.0) if short else (1.0, 10.0, 50.0)
    table = ScoreTable(scale, thresholds=thresholds, matcher=matcher, realism=realism, stride=7 if side else 1)
    for index, path in enumerate(progress(paths, "scoring")):
        (lr, hr), sr = pairs[index], read_output(path)
        check_match(path, sr, hr)
        add = functools.partial(table.add_windows, side=side) if side else table.add
        add(sr.values, hr.values, lr.values, day=days[index], block=index)
    return table


def fitting_side(pairs, count, scale):
    """The side of the windows to score, in LR cells; 0, whole fields, where neither truth nor input has gaps.

    4 cells from x100 on, 8 from x20 on (as in the published radar scores), 16 below, so that a window holds a spectrum;
    half or a quarter of that where gaps leave no room for it.
    """
    usual = (4 if scale >= 100 else 8 if scale >= 20 else 16) * any(bool(field.isnull().any()) for field in pairs[0])
    for side in (usual, usual // 2, usual // 4) if usual else ():
        days = ([field.values for field in pairs[k]] for k in range(count))
        if any(next(_windows(*day, scale, side), None) for day in days):
            return side
    return usual


def short_accumulation(field):
    """Tell whether a field looks like rain of an hour or less: its 99.9 % quantile is below 20 mm.

    Args: field (lat, lon), mm, NaN = missing; one without valid pixels counts as short.
    """
    return not float(np.nanquantile(field, 0.999)) >= 20


def check_match(path, sr, hr):
    """Check that an output and its truth have the same cells and the same time: else two days would be compared.

    Raises: DataError: they differ; it names both.
    """
    for name in ("lat", "lon"):
        if sr.sizes[name] != hr.sizes[name] or np.abs(sr[name].values - hr[name].values).max() > 1e-4:
            raise DataError(
                f"{path}: {name} {_span(sr[name])} is not the truth's {_span(hr[name])}; "
                "made from another list or region?"
            )
    if "time" in sr.coords and "time" in hr.coords and sr.time.values != hr.time.values:
        raise DataError(
            f"{path}: holds {when(sr.time.values)}, but its place in the list is that of {when(hr.time.values)}; "
            "run the stage again"
        )


def _span(axis):
    """First, last and number of nodes, in words."""
    return f"{float(axis[0]):g}..{float(axis[-1]):g} ({axis.size})"


def wet_windows(hr, side):
    """Find windows of `side` pixels, half a window apart, without missing pixels and with more than 3 % of them wet.

    Wet is more than 0.02 mm, counted on every fourth pixel, as in the published radar scores.

    Args: hr (H, W), mm. Yields: (rows, columns), slices.
    """
    for i in range(0, hr.shape[0] - side + 1, max(1, side // 2)):
        for j in range(0, hr.shape[1] - side + 1, max(1, side // 2)):
            window = hr[i : i + side, j : j + side]
            if np.isfinite(window).all() and (window[::4, ::4] > 0.02).mean() > 0.03:
                yield slice(i, i + side), slice(j, j + side)


def _windows(lr, hr, scale, side):
    """(lr, hr, slices of hr) of the wet windows, `side` LR cells wide, without gaps in either."""
    for r, c in wet_windows(_under(lr, hr[: len(lr) * scale, : lr.shape[1] * scale], scale), side * scale):
        yield lr[r.start // scale : r.stop // scale, c.start // scale : c.stop // scale], hr[r, c], (r, c)


# ---------------------------------------------------------------- rows as text and as a file


def format_table(rows, *, target=None):
    """Make a printed table of rows of scores or comparisons, mm; no line is longer than 100 characters.

    It shows the scores of SCORES or COMPARISONS and one FSS; scores.csv has all of them.

    Args: rows: of ScoreTable.rows or compare_forecasts. target: where the truth comes from; with "interpolate" the
        title warns that the truth is an interpolation of the input.
    """
    first = rows[0]
    title = f"Scores (target {target})" if target else "Scores"
    if "pixels" in first:
        title += " of {fields} fields, {pixels} pixels, {blocks} blocks for the 95 % intervals".format(**first)
    lines = [title]
    if target == "interpolate":
        lines += _wrapped(
            "The truth here is an INTERPOLATION OF THE INPUT: interpolation wins by construction, and rain below the "
            "LR cell is not verified."
        )
    columns = _columns(first)
    edge = max(len(row["name"]) for row in rows)
    lines.append(" " * edge + "".join(f"{name:>{width}s}" for _, name, width, _ in columns))
    for row in rows:
        lines.append(
            f"{row['name']:{edge}s}" + "".join(f"{_figure(row, key):>{width}s}" for key, _, width, _ in columns)
        )
    legend = [f"{name}: {meaning}" for _, name, _, meaning in columns if meaning]
    if "crps" in first:
        legend.append("best is 1 for P99, P99.9, spread and FSS, 0 for the others; scores.csv has more scores")
    lines += _wrapped(f"(mm; {'; '.join(legend)})") + realism_lines(rows, edge)
    return "\n".join(lines + _notes(rows, [key for key, *_ in columns] + [*KEYS]))


def _notes(rows, shown):
    """Lines of what the rows say about themselves; words about scores that are not shown are left out."""
    rows_of = {}
    for row in rows:
        for words in filter(None, row.get("note", "").split("; ")):
            key = words.split(":")[0]
            if key in shown or key not in row:
                rows_of.setdefault(words, []).append(row["name"])
    return [
        line
        for words, names in rows_of.items()
        for line in _wrapped(f"{'all rows' if len(names) == len(rows) else ', '.join(names)}: {words}", "  ")
    ]


def _columns(row):
    """The columns to print of rows like this one: (key, title, width, meaning or "") each."""
    columns = [column for column in (SCORES if "crps" in row else COMPARISONS) if column[0] in row]
    windows = [key for key in row if key.startswith("fss_") and key.endswith("px")]
    if windows:
        key = windows[len(windows) // 2]
        amount, window = key.removeprefix("fss_").removesuffix("px").split("mm_")
        meaning = f"fractions skill score of rain above {amount} mm in windows of {window} x {window} pixels"
        columns.insert(-1, (key, "FSS", 6, meaning))
    return columns


def _figure(row, key):
    """One score as a printed table shows it."""
    if key == "crps_low":
        return f"{row['crps_low']:.3g}..{row['crps_high']:.3g}"
    value = row[key]
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0e}" if 0 < abs(value) < 1e-3 else f"{value:.3g}"


def _wrapped(words, indent=""):
    indents = {"initial_indent": indent, "subsequent_indent": indent + "  "}
    return textwrap.wrap(words, 100, break_on_hyphens=False, **indents)


def write_scores(path, rows):
    """Write rows of scores as CSV, whole or not at all; a score that is not defined is "nan"."""
    import pandas

    with whole_file(path) as part:
        pandas.DataFrame(rows).to_csv(part, index=False, na_rep="nan", encoding="utf-8")
    log(f"wrote {path}")


# ---------------------------------------------------------------- simple methods to compare with


def upsample(lr, scale, method):
    """Interpolate lr (h, w), mm, between cell centres; beyond the outer centres the outer values hold.

    For a missing cell (NaN) the nearest valid one stands in; its own pixels stay missing.

    Args: method: "nearest", "bilinear", or "bicubic" (Keys 1981, a = -0.75; what falls below 0 becomes 0).
    Returns: (h * scale, w * scale), float32, mm.
    """
    if method == "nearest":
        return _spread(lr, scale).astype(np.float32)
    import torch

    cells = torch.from_numpy(fill_nearest(lr))[None, None]  # (1, 1, h, w)
    field = torch.nn.functional.interpolate(cells, scale_factor=scale, mode=method, align_corners=False)[0, 0]
    return np.where(_spread(np.isfinite(lr), scale), field.clamp(min=0).numpy(), np.nan).astype(np.float32)


def _spread(cells, scale):
    return cells.repeat(scale, 0).repeat(scale, 1)


def _under(lr, hr, scale):
    """Truth (H, W) without the pixels whose LR cell is missing: no output has them."""
    return hr if np.isfinite(lr).all() else np.where(_spread(np.isfinite(lr), scale), hr, np.nan)


def rainfarm(lr, scale, *, members, seed):
    """Make RainFARM members (Rebora et al. 2006) with pysteps, with the spectral slope of lr, or 2 where it has none.

    Returns: (members, h * scale, w * scale) float32, mm, missing where lr (h, w) is; None without pysteps.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # pysteps greets on import
            from pysteps.downscaling.rainfarm import downscale
    except ImportError:
        return None
    filled, state = fill_nearest(lr), np.random.get_state()  # pysteps draws from the global state
    fields = np.zeros((members, lr.shape[0] * scale, lr.shape[1] * scale), np.float32)
    np.random.seed(seed)
    try:
        for field in fields if filled.any() else ():
            try:
                with np.errstate(divide="ignore"):
                    field[:] = downscale(filled, scale)
            except (ValueError, TypeError, np.linalg.LinAlgError):  # constant, or too few cells
                field[:] = downscale(filled, scale, alpha=2.0)
    finally:
        np.random.set_state(state)
    return np.where(_spread(np.isfinite(lr), scale), fields, np.float32(np.nan))


class QuantileMatcher:
    """Gives bilinear fields the rain amounts of the truth (quantile mapping, Panofsky and Brier 1968).

    A day is mapped with the quantiles of all other days, never with its own.

    note: what the table shall say of the fit.
    """

    def __init__(self, scale, *, note=""):
        self.scale, self.note, self.days = scale, note, {}

    def add(self, lr, hr, *, day):
        """Learn from lr (h, w) and hr (H, W), mm, of a day (any hashable): training days, or all days to be scored."""
        bilinear = upsample(lr, self.scale, "bilinear")
        pair = np.stack([bilinear, hr[: len(bilinear), : bilinear.shape[1]]])
        self.days[day] = self.days.get(day, 0) + histogram(pair[:, np.isfinite(pair).all(0)])

    def map(self, field, *, day):
        """Map a field (H, W), mm, to the rain amounts of HR on all days but `day`; all NaN without another day."""
        others = [counts for key, counts in self.days.items() if key != day]
        if not others:
            return np.full_like(field, np.nan)
        counts = sum(others)
        source, target = (np.append(0, np.cumsum(c)) / c.sum() for c in counts)
        top = EDGES[np.flatnonzero(counts[1])[-1] + 1]  # nothing beyond what HR ever held
        mapped = np.interp(np.interp(field, EDGES, source), target, np.minimum(EDGES, top))
        dry = (mapped < EDGES[1]) | (field <= 0)  # dry stays dry, NaN stays NaN
        return np.where(dry, 0, mapped).astype(np.float32)


# ---------------------------------------------------------------- scores


def fair_crps(members, truth):
    """Fair CRPS (Ferro 2014) of members (M, n) against truth (n,), mm -> (n,); of one member, its absolute error."""
    if len(members) == 1:
        return np.abs(members[0] - truth)
    from scores.probability import crps_for_ensemble

    fields = xr.DataArray(members, dims=("member", "n")), xr.DataArray(truth, dims="n")
    return crps_for_ensemble(*fields, "member", method="fair", preserve_dims="all").values


def rapsd(field):
    """Radially averaged power spectrum (Ruzanski and Chandrasekar 2011) of fields (..., H, W) without missing pixels.

    Returns: (..., n // 2), n = min(H, W): wavenumbers 0 .. n / 2 - 1 over the shorter side.
    """
    bins, weight, count = _wavenumbers(*field.shape[-2:])
    power = np.abs(scipy.fft.rfft2(field.astype(np.float64))) ** 2 * weight
    spectra = np.stack([np.bincount(bins, row, len(count)) for row in power.reshape(-1, bins.size)]) / count
    return spectra.reshape(*field.shape[:-2], -1)[..., : min(field.shape[-2:]) // 2]


@functools.lru_cache(maxsize=4)
def _wavenumbers(h, w):
    """Radial bin of each coefficient of rfft2, how often it counts in the whole spectrum, and the size of each bin."""
    n, kx = min(h, w), np.arange(w // 2 + 1)
    ky = np.minimum(np.arange(h), h - np.arange(h))
    bins = np.floor(np.hypot(ky[:, None] * (n / h), kx * (n / w))).astype(int).ravel()
    weight = np.where((kx == 0) | (2 * kx == w), 1.0, 2.0)
    return bins, weight, np.bincount(bins, np.broadcast_to(weight, (h, weight.size)).ravel())


def lsd(spectrum, truth):
    """Log-spectral distance of two spectra of rapsd in dB, wavenumbers 1 and up; NaN where one has no power there."""
    if len(truth) < 2 or min((s[1:] / max(s[0], 1e-30)).min() for s in (spectrum, truth)) < 1e-26:
        return np.nan  # no more than the rounding of a double
    return float(np.sqrt(np.mean((10 * np.log10(spectrum[1:] / truth[1:])) ** 2)))


def histogram(values):
    """Count the values (M, n), mm, in each bin between EDGES: (M, bins)."""
    codes = np.clip((np.ascontiguousarray(values, np.float32).view(np.int32) >> 17) - FIRST + 1, 0, LAST - FIRST)
    return np.stack([np.bincount(row, minlength=LAST - FIRST + 1).astype(np.int32) for row in codes])


def histogram_quantile(counts, levels):
    """Quantiles (M, levels), mm, from histograms (M, bins): linear within a bin, 0 in the dry bin, NaN if empty."""
    rows = [
        np.interp(levels * (row.sum() - 1) + 0.5, np.append(0, np.cumsum(row)), EDGES)
        if row.any()
        else np.full(len(levels), np.nan)
        for row in counts
    ]
    return np.where(np.stack(rows) < EDGES[1], 0, rows)


def sal(sr, hr):
    """Structure, amplitude and location errors (SAL, Wernli et al. 2008) of sr against hr (H, W), mm.

    Missing pixels are taken as dry. A rain object is connected rain (also over corners) of at least 1/15 of the 95 %
    quantile of the wet pixels (Wernli et al. 2009).

    Returns: S (-2 .. 2), above 0: objects too large or flat; A (-2 .. 2), above 0: too much rain; L (0 .. 2): distance
        of the rain from its true place, as a share of the domain's diagonal. S and L are NaN where a field is dry.
    """
    return _sal(_objects(np.nan_to_num(sr)), _objects(np.nan_to_num(hr)), hr.shape)


def _objects(field):
    """What SAL needs of a field (H, W), mm, without NaN.

    Returns: (scaled volume of its rain objects, their mean distance from the centre of mass of all rain, weighted by
        the objects' rain, that centre (2,), mean rain); the first three are NaN for a dry field.
    """
    total, wet = field.sum(dtype=np.float64), field[field > 0]
    if not wet.size:
        return np.nan, np.nan, np.full(2, np.nan), 0.0
    labels, number = scipy.ndimage.label(field >= np.quantile(wet, 0.95) / 15, np.ones((3, 3)))
    rain, inside = field.astype(np.float64), labels.ravel().astype(np.intp)  # label 0 is what lies outside
    y, x = (np.arange(n, dtype=np.float64) for n in field.shape)
    mass, *moments = (np.bincount(inside, part.ravel())[1:] for part in (rain, rain * y[:, None], rain * x))
    peaks = np.zeros(number + 1, field.dtype)
    np.maximum.at(peaks, inside, field.ravel())
    centre = np.array([rain.sum(1) @ y, rain.sum(0) @ x]) / total
    distances = np.hypot(*(moment / mass - c for moment, c in zip(moments, centre, strict=True)))
    return (mass**2 / peaks[1:]).sum() / mass.sum(), (mass * distances).sum() / mass.sum(), centre, total / field.size


def _sal(one, two, shape):
    """S, A and L from two results of _objects on fields of this shape."""
    (volume1, distance1, centre1, mean1), (volume2, distance2, centre2, mean2) = one, two
    location = (np.hypot(*(centre1 - centre2)) + 2 * abs(distance1 - distance2)) / np.hypot(*shape)
    return 2 * (volume1 - volume2) / (volume1 + volume2), 2 * (mean1 - mean2) / max(mean1 + mean2, 1e-30), location


def _fss(totals, observed):
    """Fractions skill score (Roberts and Lean 2008), (thresholds, windows), from sums of squared event shares.

    The event share of an ensemble is the mean over its members (Schwartz et al. 2010).

    Args: totals: sums of made x made ("fss") and made x observed ("cross"). observed: of observed x observed.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return 1 - (totals["fss"] + observed - 2 * totals["cross"]) / (totals["fss"] + observed)


# ---------------------------------------------------------------- what one field adds to the table


class Truth(NamedTuple):
    """What every row of one day is compared with."""

    hr: np.ndarray  # (H, W), mm
    ok: np.ndarray  # (H, W), true where the pixel is scored
    shares: list  # of DayTerms.shares
    objects: tuple  # of _objects


@dataclass(frozen=True)
class DayTerms:
    """Sums over the pixels of one day, from which the scores of many days are made.

    Args: scale: HR pixels along an LR cell. thresholds: mm, of FSS and reliability. windows: sides of the FSS windows,
        pixels.
    """

    scale: int
    thresholds: tuple
    windows: tuple

    @property
    def labels(self):
        """Names of the FSS scores, in the order of their values."""
        return [f"fss_{t:g}mm_{k}px" for t in self.thresholds for k in self.windows]

    def shares(self, field, ok):
        """Share of events around each pixel: [threshold][window] of (H, W), from members (M, H, W)."""
        events = [(field >= t).sum(0, dtype=np.float32) * ok / len(field) for t in self.thresholds]
        return [
            [
                scipy.ndimage.uniform_filter(event, k, mode="constant") if k > 1 and event.any() else event
                for k in self.windows
            ]
            for event in events
        ]

    def field(self, field, ok, shares, stride):
        """Terms of a field (M, H, W) alone; `shares` is its own, every stride-th pixel enters the quantiles."""
        values = field[:, ok][:, ::stride]
        terms = {
            "values": values,
            "histogram": histogram(values),
            "fss": np.array([[np.vdot(a, a) for a in row] for row in shares], np.float64),
        }
        return terms | ({"spectrum": rapsd(field).mean(0)} if ok.all() else {})

    def row(self, field, truth, lr, stride):
        """Terms of a field (M, H, W) beside the Truth of its day and its input lr (h, w)."""
        hr, ok, observed, objects = truth
        shares, values = self.shares(field, ok), field[:, ok]
        gaps = np.abs([_sal(_objects(np.where(ok, member, 0)), objects, hr.shape) for member in field])
        gaps = gaps[np.isfinite(gaps).all(1)]  # of the members that are not dry
        error = values.mean(0) - hr[ok]
        variance = values.var(0, ddof=1) if len(values) > 1 else np.zeros(1)
        sums = ok, error, error**2, fair_crps(values, hr[ok]), variance
        cross = [[np.vdot(a, b) for a, b in zip(*rows, strict=True)] for rows in zip(shares, observed, strict=True)]
        means = np.stack([block_mean(member.astype(np.float64), self.scale) for member in field])
        return self.field(field, ok, shares, stride) | {
            "sums": np.array([term.sum(dtype=np.float64) for term in sums]),
            "cross": np.array(cross, np.float64),
            "sal": np.append(gaps.mean(0), 1) if len(gaps) else np.zeros(4),
            "conservation": float(np.abs(means - lr)[:, np.isfinite(lr)].max(initial=0)),
        }

    def ranks(self, values, truth, random):
        """Rank histogram, ties (dry pixels) broken at random (Hamill 2001), and counts for the reliability diagram.

        Args: values (M, n), truth (n,), mm. random: a NumPy generator.
        Returns: {"ranks": (M + 1,), "reliability": (thresholds, M + 1, 2): pixels by the number of members with the
            event, and those of them where it was observed}.
        """
        members = len(values)
        ranks = (values < truth).sum(0) + random.integers(0, (values == truth).sum(0) + 1)
        votes = [((values >= t).sum(0), truth >= t) for t in self.thresholds]
        counts = [[np.bincount(v, minlength=members + 1), np.bincount(v, event, members + 1)] for v, event in votes]
        return {
            "ranks": np.bincount(ranks, minlength=members + 1),
            "reliability": np.array(counts).transpose(0, 2, 1),
        }


# ---------------------------------------------------------------- what is kept of many days


class PixelSample:
    """Pixel values kept for exact quantiles: every stride-th pixel; beyond `limit` values, every third of them stays.

    values: {row name: [(M, n) of each day]}.
    """

    def __init__(self, stride, limit):
        self.stride, self.limit, self.values = stride, limit, {}

    def add(self, name, values):
        """Keep the values (M, n), mm, of a day, taken with the present stride."""
        self.values.setdefault(name, []).append(values)

    def thin(self):
        """Drop two of three values where there are more than `limit`."""
        if sum(v.size for days in self.values.values() for v in days) > self.limit:
            self.stride *= 3
            self.values = {name: [v[:, ::3].copy() for v in days] for name, days in self.values.items()}

    def quantiles(self, name):
        """Quantiles (M, levels), mm, of a row at LEVELS; NaN where no pixel was added."""
        values = np.concatenate(self.values[name], 1)
        if not values.size:
            return np.full((len(values), len(LEVELS)), np.nan)
        return np.quantile(values, LEVELS, axis=1).T


class BlockSums:
    """Sums of terms for each bootstrap block; beyond `limit` blocks neighbours are joined.

    blocks: {block: {(row name, term): sum}}.
    """

    def __init__(self, limit):
        self.limit, self.blocks = limit, {}

    def add(self, block, name, terms):
        """Add the terms {name: array} of a row to a block."""
        self._join(self.blocks.setdefault(block, {}), {(name, key): value for key, value in terms.items()})

    def thin(self):
        """Join neighbouring blocks in pairs where there are more than `limit`."""
        if len(self.blocks) > self.limit:
            keys = list(self.blocks)
            for one, two in zip(keys[::2], keys[1::2], strict=False):
                self._join(self.blocks[one], self.blocks.pop(two))

    def weights(self, resamples, seed):
        """How often each block counts (1 + resamples, blocks): once, then as often as it is drawn (Efron 1979).

        One block alone is not drawn from: (1, 1).
        """
        number = len(self.blocks)
        if number < 2:
            return np.ones((1, number))
        draws = np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), size=resamples)
        return np.concatenate([np.ones((1, number)), draws])

    def totals(self, name, weights):
        """Weighted sums of a row over the blocks: {term: (len(weights), ...)}."""
        zeros = {
            key: np.zeros_like(value)
            for block in self.blocks.values()
            for key, value in block.items()
            if key[0] == name
        }
        return {
            key[1]: np.tensordot(weights, np.stack([block.get(key, zero) for block in self.blocks.values()]), 1)
            for key, zero in zeros.items()
        }

    @staticmethod
    def _join(block, terms):
        for key, value in terms.items():
            block[key] = block[key] + value if key in block else value


# ---------------------------------------------------------------- the score table


class ScoreTable:
    """Scores of downscaled days beside simple methods: add() days or add_windows(), then read rows() and curves().

    Init, accumulate, compute as in pySTEPS (Pulkkinen et al. 2019): sums and histograms are kept, and pixel values for
    the quantiles. Every row is scored on the same pixels: those where truth and LR cell are both present. Quantiles,
    spectra and SAL (mean absolute S, A and L of the fields where neither truth nor member is dry) are means over
    members.

    Args: scale: HR pixels along an LR cell. thresholds: mm, of FSS and reliability. fss_scales: sides of the FSS
        windows, pixels (default 1, sqrt(scale), scale). matcher: QuantileMatcher for its row. realism: Realism for its
        columns. rainfarm_members: 0 for no row. stride: every stride-th pixel enters the quantiles (7 in the published
        radar scores). limit: kept pixel values; beyond it, every third stays. max_blocks: beyond it, neighbouring
        bootstrap blocks are joined.
    """

    def __init__(
        self,
        scale,
        *,
        thresholds=(1.0, 10.0, 50.0),
        fss_scales=None,
        matcher=None,
        realism=None,
        rainfarm_members=4,
        stride=1,
        seed=0,
        limit=2**26,
        max_blocks=256,
    ):
        windows = fss_scales or sorted({1, round(scale**0.5), scale})
        self.terms = DayTerms(scale, tuple(thresholds), tuple(windows))
        self.matcher, self.realism, self.rainfarm_members, self.seed = matcher, realism, rainfarm_members, seed
        self.sample, self.sums = PixelSample(stride, limit), BlockSums(max_blocks)
        self.conservation = {}  # largest difference of block means from LR, mm, by row name
        self.shape, self.fields, self.days = None, 0, 0  # (members, H, W) of a field, and how many were added

    def add(self, sr, hr, lr, *, day, block=None):
        """Add a day: sr (M, H, W) or (H, W), hr (H, W), lr (h, w), mm, NaN = missing.

        Pixels beyond the whole LR cells, counted from the north-west corner, are left out.

        Args: day: names it for the matcher. block: names it for the bootstrap (default: day).
        Raises: ValueError: shapes fit neither each other nor the first day's; SR missing where LR and HR are present.
        """
        sr, hr, lr = self._cut(sr, hr, lr)
        self._add(sr, hr, lr, self._look(sr, hr, lr), day, day if block is None else block)

    def _add(self, sr, hr, lr, farm, day, block):
        """add() a field, or a window of one, and the same of its RainFARM members."""
        ok, stride = self._check(sr, hr, lr), self.sample.stride
        shares = self.terms.shares(hr[None], ok)
        truth = Truth(hr, ok, shares, _objects(np.where(ok, hr, 0)))
        self._keep(block, "observed", self.terms.field(hr[None], ok, shares, stride))
        fields = self._methods(sr, lr, farm, day)
        with ThreadPoolExecutor(min(2, allowed_cores())) as pool:  # more threads would need more memory
            rows = pool.map(lambda field: self.terms.row(field, truth, lr, stride), fields.values())
            for name, terms in zip(fields, rows, strict=True):
                self._keep(block, name, terms)
        if len(sr) > 1:
            random = np.random.default_rng([self.seed, self.fields])
            self.sums.add(block, "ranks", self.terms.ranks(sr[:, ok], hr[ok], random))
        self.fields += 1
        self.sample.thin()
        self.sums.thin()

    def add_windows(self, sr, hr, lr, *, day, side, block=None):
        """Add the wet windows, `side` LR cells wide, of one file (as in add), each on its own; returns their number.

        Windows overlap by half, so those that begin in the same square of one window's side are one bootstrap block:
        as blocks of their own, one pixel would count as four independent ones.
        """
        number, scale, (sr, hr, lr) = 0, self.terms.scale, self._cut(sr, hr, lr)
        farm = self._look(sr, hr, lr)
        for lr_window, hr_window, (r, c) in _windows(lr, hr, scale, side):
            place = (day if block is None else block, r.start // (side * scale), c.start // (side * scale))
            self._add(sr[:, r, c], hr_window, lr_window, farm if farm is None else farm[:, r, c], day, place)
            number += 1
        return number

    def rows(self, *, resamples=500, level=0.95):
        """Make the rows of the table, a dict each: every score, the ends `_low`, `_high` of its interval, and a note.

        Intervals are by bootstrap over blocks; the note says why a score is NaN. A distance of two distributions (Q-Q
        RMSE, spectra) is never 0 in a resample: its interval leans high. Without a field there are no rows.
        """
        if not self.fields:
            return []
        weights, ends = self.sums.weights(resamples, self.seed), (0.5 - level / 2, 0.5 + level / 2)
        observed, truth = self.sums.totals("observed", weights), self.sample.quantiles("observed")
        return [self._row(name, weights, observed, truth, ends) for name in self.conservation]

    def curves(self, *, resamples=200, level=0.95):
        """Collect what the pictures show.

        Returns: {"rows": for "observed" and each row quantiles with band, exceedance, spectrum and FSS; "levels" of the
            quantiles; "edges" of the exceedance, mm; "thresholds", "fss_scales", "fields", "blocks", "pixels"; with two
            members or more "ranks" (M + 1,) and "reliability" (T, M + 1, 2)}.
        """
        weights, ends = self.sums.weights(resamples, self.seed), (0.5 - level / 2, 0.5 + level / 2)
        observed = self.sums.totals("observed", weights)["fss"][0]
        rows, pixels = {}, 0
        for name in self.sample.values:
            totals = self.sums.totals(name, weights)
            rows[name] = _curve(totals, observed, self.sample.quantiles(name), ends)
            pixels = int(totals["sums"][0][0]) if "sums" in totals else 0
        return {
            "levels": QQ_LEVELS,
            "edges": EDGES[1:],
            "thresholds": self.terms.thresholds,
            "fss_scales": self.terms.windows,
            "fields": self.fields,
            "blocks": len(self.sums.blocks),
            "pixels": pixels,
            "rows": rows,
            **_pick(self.sums.totals("ranks", weights), 0),
        }

    def _cut(self, sr, hr, lr):
        """sr (M, H, W), hr and lr, cut to whole LR cells."""
        scale, sr, hr, lr = self.terms.scale, np.asarray(sr, np.float32), np.asarray(hr, np.float32), np.asarray(lr)
        sr, rows, cols = sr[None] if sr.ndim == 2 else sr, len(lr) * scale, lr.shape[1] * scale
        if sr.shape[1:] != hr.shape or hr.shape[0] < rows or hr.shape[1] < cols:
            raise ValueError(
                f"scores: SR {sr.shape} and truth {hr.shape} must share a grid that holds the {lr.shape} "
                f"LR cells of {scale} pixels ({rows} x {cols})"
            )
        return sr[:, :rows, :cols], hr[:rows, :cols], lr

    def _check(self, sr, hr, lr):
        """The pixels to score, (H, W)."""
        if self.shape not in (None, sr.shape):
            raise ValueError(f"scores: members and grid are {sr.shape}, before they were {self.shape}")
        self.shape, ok = sr.shape, np.isfinite(hr) & _spread(np.isfinite(lr), self.terms.scale)
        if not np.isfinite(sr[:, ok]).all():
            raise ValueError("scores: SR is missing where its LR cell and the truth are present")
        return ok

    def _look(self, sr, hr, lr):
        """Add a whole day to the realism; returns its RainFARM members or None."""
        farm, self.days = None, self.days + 1
        if self.rainfarm_members:
            farm = rainfarm(lr, self.terms.scale, members=self.rainfarm_members, seed=self.seed + self.days - 1)
        if self.realism is not None:
            rows = {"bilinear": upsample(lr, self.terms.scale, "bilinear")[None]}
            rows |= {"RainFARM": farm} if farm is not None else {}
            rows |= {"one member": sr[:1]} | ({"ensemble": sr} if len(sr) > 1 else {})
            judged = [name for name in ("RainFARM", [*rows][-1]) if name in rows]
            self.realism.add(_under(lr, hr, self.terms.scale), rows, judged=judged)
        return farm

    def _methods(self, sr, lr, farm, day):
        """The fields of every row, {name: (M, H, W)}: the simple methods, then the model's."""
        scale = self.terms.scale
        fields = {method: upsample(lr, scale, method)[None] for method in ("nearest", "bilinear", "bicubic")}
        if self.matcher is not None:
            fields[MATCHED] = self.matcher.map(fields["bilinear"], day=day)
        fields["RainFARM"] = farm
        if len(sr) > 1:
            fields |= {"ensemble mean": sr.mean(0, keepdims=True), "one member": sr[:1], "ensemble": sr}
        else:
            fields["one member"] = sr
        return {name: field for name, field in fields.items() if field is not None}

    def _keep(self, block, name, terms):
        self.sample.add(name, terms.pop("values"))
        if "conservation" in terms:
            self.conservation[name] = float(np.maximum(terms.pop("conservation"), self.conservation.get(name, 0)))
        self.sums.add(block, name, terms)

    def _row(self, name, weights, observed, truth, ends):
        """A row of the table; observed and truth: totals and quantiles of the truth, ends: levels of the interval."""
        totals, exact, labels = self.sums.totals(name, weights), self.sample.quantiles(name), self.terms.labels
        point = _scores(_pick(totals, 0), _pick(observed, 0), exact, truth, labels)
        draws = [
            _scores(
                _pick(totals, b),
                _pick(observed, b),
                *(histogram_quantile(t["histogram"][b], LEVELS) for t in (totals, observed)),
                labels,
            )
            for b in range(1, len(weights))
        ]
        pixels = int(totals["sums"][0][0])
        reasons = _reasons(point, len(exact), pixels)
        if name == MATCHED and self.matcher.note and np.isfinite(point["crps"]):
            reasons.add(self.matcher.note)
        if len(weights) < 2:
            reasons.add("no intervals from one block")
        looked = {} if self.realism is None else self.realism.scores(name)
        reasons |= self.realism.reasons(name) if looked else set()
        return (
            _with_intervals(name, point, draws, ends)
            | looked
            | {
                "conservation_mm": self.conservation[name],
                "pixels": pixels,
                "fields": self.fields,
                "blocks": len(self.sums.blocks),
                "note": "; ".join(sorted(reasons)),
            }
        )


# ---------------------------------------------------------------- rows and curves from sums


def _scores(totals, observed, quantiles, truth, labels):
    """Scores of a row from its sums, its quantiles (M, levels) and those of the truth (1, levels), at LEVELS."""
    n, error, square, crps, variance = totals["sums"]
    members, gap = len(quantiles), (quantiles - truth)[:, : len(QQ_LEVELS)]
    with np.errstate(invalid="ignore", divide="ignore"):
        rmse, ratio = np.sqrt(square / n), quantiles.mean(0) / truth[0]
        scores = {
            "rmse": rmse,
            "bias": error / n,
            "crps": crps / n,
            "qq_rmse": np.sqrt((gap**2).mean(1)).mean(),
            "p99_ratio": ratio[-1],
            "p999_ratio": ratio[-2],
            "lsd_db": lsd(totals["spectrum"], observed["spectrum"]) if "spectrum" in totals else np.nan,
            # spread with the factor of Fortin et al. (2014): 1 for a reliable ensemble of any size
            "spread_skill": np.sqrt(variance / n * (members + 1) / members) / rmse if members > 1 else np.nan,
        }
        scores |= dict(zip(("sal_s", "sal_a", "sal_l"), totals["sal"][:3] / totals["sal"][3], strict=True))
    scores |= dict(zip(labels, _fss(totals, observed["fss"]).flat, strict=True))
    return {key: float(value) if np.isfinite([value, square]).all() else np.nan for key, value in scores.items()}


def _with_intervals(name, point, draws, ends):
    """A row with each score and the ends of its interval, the quantiles `ends` of the scores of the resamples."""
    row = {"name": name}
    for key, value in point.items():
        drawn = [d[key] for d in draws if np.isfinite(d[key])] if np.isfinite(value) else []
        low, high = np.quantile(drawn, ends) if drawn else (np.nan, np.nan)
        row |= {key: value, f"{key}_low": float(low), f"{key}_high": float(high)}
    return row


def _reasons(point, members, pixels):
    """Why scores of a row are NaN, a set of words."""
    if not np.isfinite(point["crps"]):
        return {"no other day to fit on" if pixels else "no pixel present in truth and input"}
    missing = [key for key, value in point.items() if not np.isfinite(value) and (key != "spread_skill" or members > 1)]
    return {f"{key}: {REASONS.get(key, 'no event')}" for key in missing}


def _curve(totals, observed, quantiles, ends):
    """What the pictures show of one row; observed: the truth's squared event shares, ends: levels of the band."""
    drawn = [histogram_quantile(counts, QQ_LEVELS).mean(0) for counts in totals["histogram"][1:]]
    counts = totals["histogram"][0].sum(0)
    return {
        "quantiles": quantiles[:, : len(QQ_LEVELS)].mean(0),
        "band": np.quantile(drawn, ends, axis=0) if drawn else None,
        "exceedance": 1 - np.cumsum(counts) / max(counts.sum(), 1),  # share of pixels >= edges
        "spectrum": totals["spectrum"][0] if "spectrum" in totals else None,
        "fss": _fss(_pick(totals, 0), observed) if "cross" in totals else None,
    }


def _pick(totals, index):
    return {stat: value[index] for stat, value in totals.items()}
