"""Baselines, scores and the score table of downscaled fields; no pictures.

Reads    NN_pre_sr.nc of stages 3 and 4 and the truth of their days.
Writes   scores.csv.

    from verification import ScoreTable
    table = ScoreTable(scale=100)
    table.add(sr, hr, lr, day="2023-08-01")           # (members, H, W), (H, W), (h, w), mm
    rows = table.rows()
"""

import contextlib
import csv
import functools
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import scipy.fft
import scipy.ndimage
import xarray as xr

from utils import DataError, field_times, log, progress, read_output, when, whole_file

QQ_LEVELS = np.append(np.linspace(0.01, 0.999, 100), 0.99)  # of the Q-Q scores, then 99 % for its own ratio
# Histogram bins by the leading bits of a float32, 64 to the octave from 2**-10 to 2**11 mm; the first is dry.
FIRST, LAST = 117 << 6, 138 << 6
EDGES = np.append(0, (np.arange(FIRST, LAST + 1, dtype=np.int32) << 17).view(np.float32).astype(np.float64))
REASONS = {
    "p99_ratio": "the observed quantile is 0",
    "p999_ratio": "the observed quantile is 0",
    "lsd_db": "a field without variance, or all with missing pixels",
    "spread_skill": "the mean is exact",
    **dict.fromkeys(("sal_s", "sal_a", "sal_l"), "truth or field is always dry"),
}
MATCHED = "quantile-matched bilinear"

__all__ = ["ScoreTable", "compare_forecasts", "format_table", "score_outputs", "write_scores"]


# ---------------------------------------------------------------- the score table of a run


def score_outputs(paths, pairs, scale, *, side=None):
    """ScoreTable of downscaled files beside the truth of their days.

    Quantile matching is fitted on the files of other dates, where all are of one date on the other files (and the table
    says which), never on the one that it maps, and on wet windows where those are scored. The thresholds of FSS are 1,
    10 and 50 mm, or 0.1, 1 and 5 mm where the wettest thousandth of every day is below 20 mm (short accumulations).

    Args: paths: NN_pre_sr.nc in list order. pairs: sequence of (lr, hr) DataArrays (SRDataset with dataarray=True).
        side: score wet windows of this side in LR cells; 0: whole fields; None: whole fields or, where the truth has gaps,
            windows of 4 cells from x100 on and of 8 below, as the published radar bars.
    Raises: DataError: an output is on another grid than its truth, or of another day.
    """
    if side is None:
        side = (4 if scale >= 100 else 8) * bool(pairs[0][1].isnull().any())
    dates = [str(field_times(pairs[index][1]).get("time", index))[:10] for index in range(len(paths))]
    several = len(set(dates)) > 1
    days = dates if several else list(range(len(paths)))
    words = "files of other dates" if several else "other files, all of one date: rain much like the truth's"
    matcher, low = QuantileMatcher(scale, note=f"fitted on the {words}"), True
    for index, day in enumerate(days):
        lr, hr = pairs[index]
        low &= levels_for(hr) is SHORT
        for piece in _windows(lr.values, hr.values, scale, side) if side else [(lr.values, hr.values)]:
            matcher.add(*piece[:2], day=day)
    table = ScoreTable(
        scale, thresholds=(0.1, 1.0, 5.0) if low else (1.0, 10.0, 50.0), matcher=matcher, stride=7 if side else 1
    )
    for index, path in enumerate(progress(paths, "scoring")):
        (lr, hr), sr = pairs[index], read_output(path)
        check_match(path, sr, hr)
        if side:
            table.add_windows(sr.values, hr.values, lr.values, day=days[index], side=side, block=index)
        else:
            table.add(sr.values, hr.values, lr.values, day=days[index], block=index)
    return table


def check_match(path, sr, hr):
    """Raises DataError where an output and its truth differ in cells or in valid time: scores of two days, or of two
    places, would be believed."""
    for name in ("lat", "lon"):
        if sr.sizes[name] != hr.sizes[name] or np.abs(sr[name].values - hr[name].values).max() > 1e-4:
            raise DataError(
                f"{path}: {name} {span(sr[name])} is not the truth's {span(hr[name])}; made from another list or region?"
            )
    if "time" in sr.coords and "time" in hr.coords and sr.time.values != hr.time.values:
        raise DataError(
            f"{path}: is of {when(sr.time.values)}, its place in the list of {when(hr.time.values)}; run the stage again"
        )


def span(axis):
    """First, last and number of nodes, in words."""
    return f"{float(axis[0]):g}..{float(axis[-1]):g} ({axis.size})"


def compare_forecasts(paths, inputs, analyses):
    """Rows of compare_cells: forecasts against their own input, and against the analysed days of the same dates.

    Args: paths: NN_pre_sr.nc. inputs: their LR DataArrays. analyses: {date "YYYY-MM-DD": DataArray} of analysed days.
    """
    outputs = [read_output(path) for path in paths]
    rows = [
        compare_cells("consistency: own input", [pair_cells(sr, lr) for sr, lr in zip(outputs, inputs, strict=True)])
    ]
    dated = [(sr, analyses.get(str(sr.time.values)[:10])) for sr in outputs]
    pairs = [pair_cells(sr, day) for sr, day in dated if day is not None]
    rows += [compare_cells("skill: analysed day", pairs)] if pairs else []
    return rows


def pair_cells(sr, reference, *, step=None):
    """Downscaled rain and a coarse field on the reference cells that lie whole inside SR, matched by coordinates.

    Args: sr ([member,] lat, lon) and reference (lat, lon), DataArrays, mm; step: the reference's cell size in degrees
        (default: the spacing of its nodes).
    Returns: (M, n) and (n,), mm: the cells without missing pixels.
    Raises: ValueError: the valid dates differ, or no reference cell lies whole inside.
    """
    if "time" in sr.coords and "time" in reference.coords:
        dates = [np.datetime64(field.time.values, "D") for field in (sr, reference)]
        if dates[0] != dates[1]:
            raise ValueError(f"pair_cells: SR is valid on {dates[0]}, the reference on {dates[1]}")
    step = step or float(np.abs(np.diff(reference.lat)).mean())
    (wy, rows), (wx, cols) = (_cell_weights(sr[d].values, reference[d].values, step) for d in ("lat", "lon"))
    if not (len(rows) and len(cols)):
        raise ValueError(f"pair_cells: no cell of {step:g} degrees of the reference lies whole inside SR")
    pixels = sr.transpose(..., "lat", "lon").values.astype(np.float64)
    whole = wy @ np.isfinite(pixels) @ wx.T > 1 - 1e-9
    means = np.where(whole, wy @ np.nan_to_num(pixels) @ wx.T, np.nan).reshape(-1, len(rows) * len(cols))
    truth = reference.transpose("lat", "lon").values[np.ix_(rows, cols)].ravel().astype(np.float64)
    present = np.isfinite(means).all(0) & np.isfinite(truth)
    return means[:, present], truth[present]


def compare_cells(name, pairs):
    """One row, in mm, for forecasts against a reference, from a list of results of pair_cells, pooled.

    Its name must say what the reference is: the forecast's own input (consistency) or the analysed day (skill). RMSE,
    bias and correlation are of the members' mean; Q-Q RMSE over 1 .. 99.9 % is the mean over members.
    """
    members, truth = (np.concatenate(values, -1) for values in zip(*pairs, strict=True))
    mean, obs = xr.DataArray(members.mean(0), dims="cell"), xr.DataArray(truth, dims="cell")
    gap = np.quantile(members, QQ_LEVELS[:-1], axis=1).T - np.quantile(truth, QQ_LEVELS[:-1])
    return {
        "name": name,
        "forecasts": len(pairs),
        "cells": truth.size,
        "mean_sr": float(mean.mean()),
        "mean_reference": float(obs.mean()),
        "rmse": float(rmse(mean, obs)),
        "bias": float(additive_bias(mean, obs)),
        "qq_rmse": float(np.sqrt((gap**2).mean(1)).mean()),
        "max_difference": float(np.abs(members - truth).max()),
        "correlation": float(correlation.pearsonr(mean, obs)),
    }


def _cell_weights(pixels, nodes, step):
    """Averaging weights (cells, pixels) onto cells of `step` around nodes, and the index of the nodes whole inside."""
    inside = np.abs(pixels - nodes[:, None]) < step / 2
    number = round(step / np.abs(np.diff(pixels)).mean())
    whole = np.flatnonzero(inside.sum(1) == number)
    return inside[whole] / number, whole


def format_table(rows, *, target=None):
    """Rows of scores or comparisons as text, in mm; a title for `target` "interpolate" says what its truth is."""
    counts = {key: rows[0][key] for key in ("fields", "pixels", "blocks") if key in rows[0]}
    lines = [f"Scores (target {target})" if target else "Scores"]
    if counts:
        lines[0] += " of {fields} fields, {pixels} pixels, {blocks} blocks for the 95 % intervals".format(**counts)
    if target == "interpolate":
        lines += [
            "The truth here is an INTERPOLATION OF THE INPUT: interpolation wins by construction, and rain below "
            "the LR cell is not verified."
        ]
    keys = [key for key in rows[0] if key not in ("name", "note", *counts) and not key.endswith(("_low", "_high"))]
    ranges = [key for key in ("rmse", "crps", "p99_ratio", "p999_ratio", "lsd_db") if f"{key}_low" in rows[0]]
    scores = [{k: f"{row[k]:.4g}" if isinstance(row[k], float) else str(row[k]) for k in keys} for row in rows]
    spans = [{f"{key} 95 %": f"{row[f'{key}_low']:.3g}..{row[f'{key}_high']:.3g}" for key in ranges} for row in rows]
    windows = [key for key in keys if "px" in key]
    for part, texts in (
        ([key for key in keys if key not in windows], scores),
        (windows, scores),
        (list(spans[0]), spans),
    ):
        widths = [max(9, len(key), *(len(text[key]) for text in texts)) for key in part]
        table = [("", part)]
        table += [(row["name"], [text[key] for key in part]) for row, text in zip(rows, texts, strict=True)]
        for name, cells in table if part else ():
            lines.append(f"{name:26s}" + "  ".join(f"{cell:>{n}s}" for cell, n in zip(cells, widths, strict=True)))
    if "crps" in keys:
        lines += [
            "(mm; CRPS of one field is its mean absolute error; best is 1 for ratios, FSS and spread_skill, 0 for all others)"
        ]
    return "\n".join(lines + [f"  {row['name']}: {row['note']}" for row in rows if row.get("note")])


def write_scores(path, rows):
    """Write rows (dicts) as CSV, whole or not at all."""
    with whole_file(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
    log(f"wrote {path}")


# ---------------------------------------------------------------- baselines


def upsample(lr, scale, method):
    """Interpolate lr (h, w), mm, between cell centres, edges held; the result (h * scale, w * scale) is float32, mm.

    method: "nearest", "bilinear", or "bicubic" (Keys 1981, a = -0.75 as in torch; what falls below 0 becomes 0).
    For a missing cell (NaN) the nearest valid one stands in; its own pixels stay missing.
    """
    if method == "nearest":
        return _spread(lr, scale).astype(np.float32)
    wy, wx = (_interpolation_weights(n, scale, method) for n in lr.shape)
    field = np.maximum(wy @ _fill_nearest(lr) @ wx.T, 0)
    return np.where(_spread(np.isfinite(lr), scale), field, np.nan).astype(np.float32)


def _interpolation_weights(n, scale, method):
    """(n * scale, n) weights of interpolation between cell centres along one axis, edges held."""
    x, a = (np.arange(n * scale) + 0.5) / scale - 0.5, -0.75
    weights = np.zeros((n * scale, n))
    for k in range(-1, 3):
        node = np.floor(x).astype(int) + k
        t = np.abs(x - node)
        near, far = (a + 2) * t**3 - (a + 3) * t**2 + 1, a * (t**3 - 5 * t**2 + 8 * t - 4)
        w = {"bilinear": np.maximum(1 - t, 0), "bicubic": np.where(t <= 1, near, np.where(t < 2, far, 0))}[method]
        np.add.at(weights, (np.arange(n * scale), np.clip(node, 0, n - 1)), w)
    return weights


def _fill_nearest(lr):
    """lr (h, w) with missing cells from the nearest valid one; 0 where there is none."""
    if not np.isfinite(lr).any():
        return np.zeros(lr.shape)
    nearest = scipy.ndimage.distance_transform_edt(~np.isfinite(lr), return_distances=False, return_indices=True)
    return lr[tuple(nearest)].astype(np.float64)


def _spread(cells, scale):
    return cells.repeat(scale, 0).repeat(scale, 1)


def rainfarm(lr, scale, *, members, seed):
    """RainFARM (Rebora et al. 2006) by pysteps, with the spectral slope of lr (2 where lr, mm, shows none).

    Returns: (members, h * scale, w * scale) float32, mm, missing where lr (h, w) is; None without pysteps.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # pysteps greets on import
            from pysteps.downscaling.rainfarm import downscale
    except ImportError:
        return None
    filled, state = _fill_nearest(lr), np.random.get_state()  # pysteps draws from the global state
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
    """Quantile mapping of bilinear fields onto HR (Panofsky and Brier 1968), never fitted on the day it maps.

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
        """field (H, W), mm, with the rain amounts of HR on all days but `day`; all NaN where there is no other day."""
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
    """Counts (M, bins) of values (M, n), mm, between EDGES, 64 bins a power of two."""
    codes = np.clip((np.ascontiguousarray(values, np.float32).view(np.int32) >> 17) - FIRST + 1, 0, LAST - FIRST)
    return np.stack([np.bincount(row, minlength=LAST - FIRST + 1).astype(np.int32) for row in codes])


def histogram_quantile(counts, levels):
    """(M, levels) of counts (M, bins), linear within a bin, the dry bin 0; NaN without a count."""
    rows = [
        np.interp(levels * (row.sum() - 1) + 0.5, np.append(0, np.cumsum(row)), EDGES)
        if row.any()
        else np.full(len(levels), np.nan)
        for row in counts
    ]
    return np.where(np.stack(rows) < EDGES[1], 0, rows)


def sal(sr, hr):
    """Structure, amplitude and location errors (Wernli et al. 2008) of sr against hr (H, W), mm, missing taken as dry.

    Objects are what reaches 1/15 of the 95 % quantile of the wet pixels (Wernli et al. 2009), corners joined. S (-2 .. 2)
    above 0: objects too large or flat; A (-2 .. 2) above 0: too much rain; L (0 .. 2): misplaced, as a share of the
    domain's diagonal. S and L are NaN where a field is dry.
    """
    return _sal(_objects(np.nan_to_num(sr)), _objects(np.nan_to_num(hr)), hr.shape)


def _objects(field):
    """Of a field (H, W), mm, without NaN: scaled volume of its rain objects, their mean distance from its centre of mass
    weighted by their rain, that centre (2,), and its mean; NaN for what a dry field does not have."""
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
    """Fractions skill score (Roberts and Lean 2008), (T, scales); members as shares of events (Schwartz et al. 2010)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return 1 - (totals["fss"] + observed - 2 * totals["cross"]) / (totals["fss"] + observed)


def wet_windows(hr, side):
    """Slices (rows, columns) of windows of `side` pixels, half a window apart, with no missing pixel and over 3 % wet.

    Wet is more than 0.02 mm, counted on every fourth pixel, as in the published bars.
    """
    for i in range(0, hr.shape[0] - side + 1, max(1, side // 2)):
        for j in range(0, hr.shape[1] - side + 1, max(1, side // 2)):
            window = hr[i : i + side, j : j + side]
            if np.isfinite(window).all() and (window[::4, ::4] > 0.02).mean() > 0.03:
                yield slice(i, i + side), slice(j, j + side)


def _windows(lr, hr, scale, side):
    """(lr, hr, slices of hr) of the wet windows, `side` LR cells wide, among the whole LR cells."""
    for r, c in wet_windows(hr[: len(lr) * scale, : lr.shape[1] * scale], side * scale):
        yield lr[r.start // scale : r.stop // scale, c.start // scale : c.stop // scale], hr[r, c], (r, c)


# ---------------------------------------------------------------- ScoreTable


class ScoreTable:
    """Scores of downscaled days beside baselines: add() days or add_windows(), then read rows() and curves().

    Init, accumulate, compute as in pySTEPS (Pulkkinen et al. 2019): only sums and histograms are kept, and pixel values
    for the quantiles; beyond `limit` numbers every third pixel of them stays. Every row is scored on the same pixels:
    those where truth and LR cell are both present. Quantiles, spectra and SAL (mean absolute S, A and L of the fields
    where neither truth nor member is dry) are means over members.

    Args: scale: HR pixels along an LR cell. thresholds: mm, of FSS and reliability. fss_scales: sides of the FSS
        windows, pixels (default 1, sqrt(scale), scale). matcher: QuantileMatcher for its row. rainfarm_members: 0 for
        no row. stride: every stride-th pixel enters the quantiles (the published radar bars take 7). max_blocks:
        beyond it, neighbouring bootstrap blocks are joined.
    """

    def __init__(
        self,
        scale,
        *,
        thresholds=(1.0, 10.0, 50.0),
        fss_scales=None,
        matcher=None,
        rainfarm_members=4,
        stride=1,
        seed=0,
        limit=2**26,
        max_blocks=256,
    ):
        self.scale, self.thresholds, self.matcher, self.stride = scale, tuple(thresholds), matcher, stride
        self.fss_scales = tuple(fss_scales or sorted({1, round(scale**0.5), scale}))
        self.rainfarm_members, self.seed, self.limit, self.max_blocks = rainfarm_members, seed, limit, max_blocks
        self.blocks, self.samples, self.conservation, self.shape, self.fields = {}, {}, {}, None, 0

    def add(self, sr, hr, lr, *, day, block=None):
        """Add a day: sr (M, H, W) or (H, W), hr (H, W), lr (h, w), mm, NaN = missing.

        day names it for the matcher, block (default: day) for the bootstrap. Pixels beyond the whole LR cells, counted
        from the north-west corner, are left out.
        Raises: ValueError: shapes fit neither each other nor the first day's; SR missing where LR and HR are present.
        """
        sr, hr, lr, ok = self._check(np.asarray(sr, np.float32), np.asarray(hr, np.float32), np.asarray(lr))
        store = self.blocks.setdefault(day if block is None else block, {})
        observed, smooth = self._field_terms(hr[None], hr[None, ok], ok)
        truth, names, fields = (
            (hr, smooth, _objects(np.where(ok, hr, 0))),
            *zip(*self._methods(sr, lr, day), strict=True),
        )
        with ThreadPoolExecutor(2) as pool:  # NumPy leaves the interpreter alone; more at once would take more memory
            rows = pool.map(functools.partial(self._row_terms, truth=truth, lr=lr, ok=ok), fields)
            for name, terms in (("observed", observed), *zip(names, rows, strict=True)):
                self.samples.setdefault(name, []).append(terms.pop("values"))
                if "gap" in terms:
                    self.conservation[name] = float(np.maximum(terms.pop("gap"), self.conservation.get(name, 0)))
                _join(store, {(name, key): value for key, value in terms.items()})
        if len(sr) > 1:
            self._add_ranks(store, sr[:, ok], hr[ok])
        self.fields += 1
        if sum(v.size for sample in self.samples.values() for v in sample) > self.limit:
            self.stride *= 3
            self.samples = {name: [v[:, ::3].copy() for v in sample] for name, sample in self.samples.items()}
        if len(self.blocks) > self.max_blocks:
            keys = list(self.blocks)
            for one, two in zip(keys[::2], keys[1::2], strict=False):
                _join(self.blocks[one], self.blocks.pop(two))

    def add_windows(self, sr, hr, lr, *, day, side, block=None):
        """Add the wet windows, `side` LR cells wide, of one file (as in add), each on its own; returns their number.

        Windows overlap by half, so those that begin in the same square of one window's side are one bootstrap block:
        blocks of one degree would count a pixel as four independent ones.
        """
        number, pixels = 0, side * self.scale
        for lr_window, hr_window, (r, c) in _windows(lr, hr, self.scale, side):
            place = (day if block is None else block, r.start // pixels, c.start // pixels)
            self.add(sr[..., r, c], hr_window, lr_window, day=day, block=place)
            number += 1
        return number

    def rows(self, *, resamples=500, level=0.95):
        """A dict a row: every score, its `_low` and `_high` by bootstrap over blocks, and in `note` why one is NaN.

        A distance of two distributions (Q-Q RMSE, spectra) is never 0 in a resample: its interval leans high.
        """
        weights = self._draws(resamples)
        observed = self._totals("observed", weights)
        return [self._row(name, weights, observed, (0.5 - level / 2, 0.5 + level / 2)) for name in self.conservation]

    def curves(self, *, resamples=200, level=0.95):
        """What the pictures need: for "observed" and each row quantiles with band, exceedance, spectrum and FSS."""
        weights, levels = self._draws(resamples), QQ_LEVELS[:-1]
        curves = {
            "levels": levels,
            "edges": EDGES[1:],
            "thresholds": self.thresholds,
            "fss_scales": self.fss_scales,
            "fields": self.fields,
            "blocks": len(self.blocks),
            "pixels": 0,
            "rows": {},
        }
        observed = self._totals("observed", weights)
        for name in self.samples:
            totals = self._totals(name, weights)
            drawn = [histogram_quantile(counts, levels).mean(0) for counts in totals["histogram"][1:]]
            counts = totals["histogram"][0].sum(0)
            curves["rows"][name] = {
                "quantiles": self._quantiles(name)[:, :-1].mean(0),
                "band": np.quantile(drawn, (0.5 - level / 2, 0.5 + level / 2), axis=0) if drawn else None,
                "exceedance": 1 - np.cumsum(counts) / max(counts.sum(), 1),  # share of pixels >= edges
                "spectrum": totals["spectrum"][0] if "spectrum" in totals else None,
                "fss": _fss(_pick(totals, 0), observed["fss"][0]) if "cross" in totals else None,
            }
            curves["pixels"] = int(totals["sums"][0][0]) if "sums" in totals else 0
        return curves | _pick(self._totals("ranks", weights), 0)  # ranks (M + 1), reliability (T, M + 1, 2)

    def _check(self, sr, hr, lr):
        sr, rows, cols = sr[None] if sr.ndim == 2 else sr, len(lr) * self.scale, lr.shape[1] * self.scale
        if sr.shape[1:] != hr.shape or hr.shape[0] < rows or hr.shape[1] < cols:
            raise ValueError(
                f"scores: SR {sr.shape} and truth {hr.shape} must share a grid that holds the {lr.shape} "
                f"LR cells of {self.scale} pixels ({rows} x {cols})"
            )
        if self.shape not in (None, (len(sr), rows, cols)):
            raise ValueError(f"scores: members and grid are {(len(sr), rows, cols)}, before they were {self.shape}")
        self.shape, sr, hr = (len(sr), rows, cols), sr[:, :rows, :cols], hr[:rows, :cols]
        ok = np.isfinite(hr) & _spread(np.isfinite(lr), self.scale)
        if not np.isfinite(sr[:, ok]).all():
            raise ValueError("scores: SR is missing where its LR cell and the truth are present")
        return sr, hr, lr, ok

    def _methods(self, sr, lr, day):
        fields = {method: upsample(lr, self.scale, method)[None] for method in ("nearest", "bilinear", "bicubic")}
        if self.matcher is not None:
            fields[MATCHED] = self.matcher.map(fields["bilinear"], day=day)
        if self.rainfarm_members:
            fields["RainFARM"] = rainfarm(lr, self.scale, members=self.rainfarm_members, seed=self.seed + self.fields)
        if len(sr) > 1:
            fields |= {"ensemble mean": sr.mean(0, keepdims=True), "one member": sr[:1], "ensemble": sr}
        else:
            fields["one member"] = sr
        return [(name, field) for name, field in fields.items() if field is not None]

    def _field_terms(self, field, values, ok):
        """({values, histogram, spectrum and FSS terms} of field (M, H, W), its smoothed event shares [threshold][scale]).

        values: field[:, ok].
        """
        values = values[:, :: self.stride]
        shares = [(field >= t).sum(0, dtype=np.float32) * ok / len(field) for t in self.thresholds]
        smooth = [
            [
                scipy.ndimage.uniform_filter(share, k, mode="constant") if k > 1 and share.any() else share
                for k in self.fss_scales
            ]
            for share in shares
        ]
        terms = {
            "values": values,
            "histogram": histogram(values),
            "fss": np.array([[np.vdot(a, a) for a in row] for row in smooth], np.float64),
        }
        if ok.all():
            terms["spectrum"] = rapsd(field).mean(0)
        return terms, smooth

    def _row_terms(self, field, *, truth, lr, ok):
        """What a day adds to the row of field (M, H, W); truth: hr, its smoothed event shares and its rain objects."""
        hr, shares, objects = truth
        values, (h, w) = field[:, ok], lr.shape
        kept, smooth = self._field_terms(field, values, ok)
        gaps = np.abs([_sal(_objects(np.where(ok, member, 0)), objects, hr.shape) for member in field])
        gaps = gaps[np.isfinite(gaps).all(1)]  # of the members that are not dry
        error = values.mean(0) - hr[ok]
        variance = values.var(0, ddof=1) if len(values) > 1 else np.zeros(1)
        terms = ok, error, error**2, fair_crps(values, hr[ok]), variance
        cross = [[np.vdot(a, b) for a, b in zip(*rows, strict=True)] for rows in zip(smooth, shares, strict=True)]
        means = field.reshape(-1, h, self.scale, w, self.scale).mean((2, 4), dtype=np.float64)
        return kept | {
            "sums": np.array([term.sum(dtype=np.float64) for term in terms]),
            "cross": np.array(cross, np.float64),
            "sal": np.append(gaps.mean(0), 1) if len(gaps) else np.zeros(4),
            "gap": np.abs(means - lr)[:, np.isfinite(lr)].max(initial=0),
        }

    def _add_ranks(self, store, values, truth):
        """Rank histogram, ties (dry pixels) broken at random (Hamill 2001), and counts for the reliability diagram."""
        members, random = len(values), np.random.default_rng([self.seed, self.fields])
        ranks = (values < truth).sum(0) + random.integers(0, (values == truth).sum(0) + 1)
        votes = [((values >= t).sum(0), truth >= t) for t in self.thresholds]
        counts = [[np.bincount(v, minlength=members + 1), np.bincount(v, event, members + 1)] for v, event in votes]
        _join(
            store,
            {
                ("ranks", "ranks"): np.bincount(ranks, minlength=members + 1),
                ("ranks", "reliability"): np.array(counts).transpose(0, 2, 1),
            },
        )

    def _draws(self, resamples):
        """(1 + resamples, blocks): each block once, then as often as drawn (Efron 1979); no draws of one block."""
        number = len(self.blocks)
        if number < 2:
            return np.ones((1, number))
        draws = np.random.default_rng(self.seed).multinomial(number, np.full(number, 1 / number), size=resamples)
        return np.concatenate([np.ones((1, number)), draws])

    def _totals(self, name, weights):
        zeros = {
            key: np.zeros_like(value)
            for store in self.blocks.values()
            for key, value in store.items()
            if key[0] == name
        }
        return {
            key[1]: np.tensordot(weights, np.stack([store.get(key, zero) for store in self.blocks.values()]), 1)
            for key, zero in zeros.items()
        }

    def _quantiles(self, name):
        """(M, levels), mm, at QQ_LEVELS; NaN where no pixel was added."""
        values = np.concatenate(self.samples[name], 1)
        if not values.size:
            return np.full((len(values), len(QQ_LEVELS)), np.nan)
        return np.quantile(values, QQ_LEVELS, axis=1).T

    def _row(self, name, weights, observed, ends):
        totals = self._totals(name, weights)
        labels = [f"{t:g}mm_{k}px" for t in self.thresholds for k in self.fss_scales]
        exact, truth = self._quantiles(name), self._quantiles("observed")
        point = _summary(_pick(totals, 0), _pick(observed, 0), exact, truth, labels)
        draws = [
            _summary(
                _pick(totals, b),
                _pick(observed, b),
                *(histogram_quantile(t["histogram"][b], QQ_LEVELS) for t in (totals, observed)),
                labels,
            )
            for b in range(1, len(weights))
        ]
        row, reasons = {"name": name}, set()
        for key, value in point.items():
            drawn = [d[key] for d in draws if np.isfinite(d[key])] if np.isfinite(value) else []
            low, high = np.quantile(drawn, ends) if drawn else (np.nan, np.nan)
            row |= {key: value, f"{key}_low": float(low), f"{key}_high": float(high)}
            if not np.isfinite(value) and (key != "spread_skill" or len(exact) > 1):
                reasons.add(f"{key}: {REASONS.get(key, 'no event')}")
        if not np.isfinite(point["crps"]):
            reasons = {"no other day to fit on" if totals["sums"][0][0] else "no pixel present in truth and input"}
        elif name == MATCHED and self.matcher.note:
            reasons.add(self.matcher.note)
        if len(weights) < 2:
            reasons.add("no intervals from one block")
        return row | {
            "conservation_mm": self.conservation[name],
            "pixels": int(totals["sums"][0][0]),
            "fields": self.fields,
            "blocks": len(self.blocks),
            "note": "; ".join(sorted(reasons)),
        }


def _summary(totals, observed, quantiles, truth, labels):
    """Scores of a row from its sums, its quantiles (M, levels) and those of the truth (1, levels), at QQ_LEVELS."""
    n, error, square, crps, variance = totals["sums"]
    members, gap = len(quantiles), (quantiles - truth)[:, :-1]
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
    scores |= {f"fss_{label}": value for label, value in zip(labels, _fss(totals, observed["fss"]).flat, strict=True)}
    return {key: float(value) if np.isfinite([value, square]).all() else np.nan for key, value in scores.items()}


def _join(store, stats):
    for key, value in stats.items():
        store[key] = store[key] + value if key in store else value


def _pick(totals, index):
    return {stat: value[index] for stat, value in totals.items()}
