"""Compares downscaled fields with their own input and with analysed days, at the cells of both (stages 3 and 4).

Reads    NN_pre_sr.nc and the evaluation list of stage 1.
Writes   scores.csv.

    from forecasts import compare_forecasts, forecast_cells
    rows = compare_forecasts(forecast_cells(paths, inputs, {"2023-08-12": analysed}))
"""

import contextlib
from pathlib import Path

import numpy as np
import xarray as xr

from datasets import area_means, area_weights, open_list
from limits import noted
from utils import LISTS, DataError, log, read_output
from verification import QQ_LEVELS, format_table, write_scores

# fmt: off
__all__ = [
    "NoCell", "analysed_days", "compare_cells", "compare_forecasts", "compare_uncorrected", "forecast_cells",
    "pair_cells", "report",
]
# fmt: on


def report(out, paths, inputs, analyses, uncorrected=None):
    """Compare downscaled fields with their own input and with analysed days: print the table, write {out}/scores.csv.

    Args: paths, inputs, analyses: of forecast_cells. uncorrected: the inputs before their bias was corrected, or None.
    Returns: what forecast_cells does, for the pictures.
    """
    cells = forecast_cells(paths, inputs, analyses)
    if not cells:
        log("every cell of the input is missing: nothing to compare")
        return cells
    rows = noted(compare_forecasts(cells), paths)
    if uncorrected and "analysed day" in cells:
        rows += compare_uncorrected(uncorrected, analyses)
    write_scores(Path(out) / "scores.csv", rows)
    log(format_table(rows))
    skill = "; skill: the forecast against the analysed day" * (len(rows) > 1)
    log(f"(at block means. consistency: what went in comes out, no test of the detail below the cells{skill})")
    return cells


def analysed_days(data_folder):
    """Read the days of the evaluation list, to compare forecasts with: {date "YYYY-MM-DD": DataArray}, mm.

    Without an evaluation list it says so and returns {}. A date that occurs more than once is left out, and named.
    """
    try:
        archive = open_list(data_folder, "eval")
    except DataError as error:
        there = (Path(data_folder) / LISTS["eval"]).exists()
        why = f"the evaluation list cannot be used ({error})" if there else "no evaluation list"
        log(f"{why}, so the forecasts are compared with their own input only")
        return {}
    days, twice = {}, set()
    for field in map(archive.field, range(len(archive))):
        date = str(field.time.values)[:10]
        twice |= {date} & days.keys()
        days[date] = field
    if twice:
        log(f"several analysed days of {', '.join(sorted(twice))}: expected one a date, so none of them is compared")
    return {date: field for date, field in days.items() if date not in twice}


def forecast_cells(paths, inputs, analyses):
    """Pair each downscaled forecast with its own input, and with the analysed day of its date where there is one.

    Members made from an ensemble are paired with the input member that they were made from. Where files have different
    numbers of members the first of each are compared with the analysed day, as many as all have.

    Args: paths: NN_pre_sr.nc. inputs: their LR DataArrays, mm, in the same order. analyses: {date: DataArray}, mm.
    Returns: {"own input": results of pair_cells, "analysed day": the same}; without the latter, and saying so, where no
        date fits or no analysed cell lies whole inside.
    """
    cells = {"own input": [], "analysed day": []}
    for path, lr in zip(paths, inputs, strict=True):
        sr = read_output(path)
        step = int(sr.attrs["scale"]) * _spacing(sr) if "scale" in sr.attrs else None
        pairs = [pair_cells(*beside, step=step) for beside in _by_input(sr, lr)]  # also of one row of cells
        cells["own input"].append(tuple(np.concatenate(values, -1) for values in zip(*pairs, strict=True)))
        if str(sr.time.values)[:10] in analyses:
            with contextlib.suppress(NoCell):
                cells["analysed day"].append(pair_cells(sr, analyses[str(sr.time.values)[:10]]))
    if analyses and not cells["analysed day"]:
        log("no analysed day has the date of a forecast and a whole cell inside it: compared with their own input only")
    numbers = {len(members) for members, _ in cells["analysed day"]}
    if len(numbers) > 1:
        least = min(numbers)
        log(f"forecasts of {', '.join(map(str, sorted(numbers)))} members: the first {least} of each are compared")
        cells["analysed day"] = [(members[:least], truth) for members, truth in cells["analysed day"]]
    return {name: pairs for name, pairs in cells.items() if sum(known.size for _, known in pairs)}


def _by_input(sr, lr):
    """(members, input) for each input member; one pair where the input is no ensemble."""
    if "member" not in lr.dims:
        return [(sr, lr)]
    labels = lr.input_member.values.tolist()
    return [(sr.isel(member=sr.input_member.values == label), lr.isel(member=k)) for k, label in enumerate(labels)]


def compare_forecasts(cells):
    """Score downscaled fields against their own input (consistency) and against analysed days (skill).

    Args: cells: of forecast_cells. Returns: a row of compare_cells for each reference.
    """
    names = {"own input": "consistency: own input", "analysed day": "skill: analysed day"}
    return [compare_cells(names[reference], pairs) for reference, pairs in cells.items()]


def compare_uncorrected(inputs, analyses):
    """Score forecasts as their files have them against analysed days: what a correction is to be measured by.

    Args: inputs: LR DataArrays, mm. analyses: {date: DataArray}, mm. Returns: a list of one row of compare_cells.
    """
    pairs = []
    for lr in inputs:
        if (date := str(lr.time.values)[:10]) in analyses:
            with contextlib.suppress(NoCell):
                pairs.append(pair_cells(lr, analyses[date]))
    least = min(len(members) for members, _ in pairs)
    return [compare_cells("before correction", [(members[:least], truth) for members, truth in pairs])]


class NoCell(ValueError):
    """No cell of the reference lies whole inside the downscaled field."""


def pair_cells(sr, reference, *, step=None):
    """Average downscaled rain over the cells of a coarse field that lie whole inside it; cells match by coordinates.

    Args: sr ([member,] lat, lon) and reference (lat, lon), DataArrays, mm; step: the reference's cell size in degrees
        (default: the spacing of its nodes).
    Returns: (M, n) means and (n,) values of the reference, mm: the cells without missing pixels.
    Raises: ValueError: the valid dates differ. NoCell: no reference cell lies whole inside.
    """
    if "time" in sr.coords and "time" in reference.coords:
        dates = [np.datetime64(field.time.values, "D") for field in (sr, reference)]
        if dates[0] != dates[1]:
            raise ValueError(f"pair_cells: SR is valid on {dates[0]}, the reference on {dates[1]}")
    step, pixel = step or _spacing(reference), _spacing(sr)
    weights = [area_weights(reference[d].values, step, sr[d].values, pixel) for d in ("lat", "lon")]
    rows, cols = (np.flatnonzero(axis.sum(1) > 1 - 1e-6) for axis in weights)
    if not (len(rows) and len(cols)):
        raise NoCell(f"pair_cells: no cell of {step:g} degrees of the reference lies whole inside SR")
    pixels = sr.transpose(..., "lat", "lon").values.astype(np.float64)
    means = area_means(pixels, weights[0][rows], weights[1][cols]).reshape(-1, len(rows) * len(cols))
    truth = reference.transpose("lat", "lon").values[np.ix_(rows, cols)].ravel().astype(np.float64)
    present = np.isfinite(means).all(0) & np.isfinite(truth)
    return means[:, present], truth[present]


def _spacing(field):
    """Degrees between the rows of a DataArray."""
    return float(np.abs(np.diff(field.lat)).mean())


def compare_cells(name, pairs):
    """Score forecasts against a reference at its cells, all forecasts pooled: one row, in mm.

    RMSE, bias and correlation are of the members' mean; Q-Q RMSE over 1 .. 99.9 % is the mean over members.

    Args: name: must say what the reference is: the forecast's own input or the analysed day. pairs: of pair_cells.
    """
    from scores.continuous import additive_bias, correlation, rmse

    members, truth = (np.concatenate(values, -1) for values in zip(*pairs, strict=True))
    mean, obs = xr.DataArray(members.mean(0), dims="cell"), xr.DataArray(truth, dims="cell")
    gap = np.quantile(members, QQ_LEVELS, axis=1).T - np.quantile(truth, QQ_LEVELS)
    return {
        "name": name,
        "fields": len(pairs),
        "cells": truth.size,
        "mean_sr": float(mean.mean()),
        "mean_reference": float(obs.mean()),
        "rmse": float(rmse(mean, obs)),
        "bias": float(additive_bias(mean, obs)),
        "qq_rmse": float(np.sqrt((gap**2).mean(1)).mean()),
        "max_difference": float(np.abs(members - truth).max()),
        "correlation": float(correlation.pearsonr(mean, obs)),
    }
