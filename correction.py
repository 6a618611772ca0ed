"""Corrects the bias of forecasts before they are downscaled: quantile mapping to analysed days (`--correct`, stage 4).

Reads    two lists of stage 1: analysed days (the training list of one folder) and forecasts.
Writes   nothing.

    from correction import Correction
    mapped = Correction("Data/JsonPath", "Data/JsonPath")(forecast)    # DataArray ([member,] lat, lon), mm

A forecast of x mm becomes the amount that is as rare among the analysed days as x is among the forecasts (empirical
quantile mapping; Themessl et al. 2011, doi 10.1002/joc.2168). So dry days, drizzle and extremes are mapped in one step;
rain is never put where the forecast has none. Libraries of quantile mapping (xsdba, ibicus, bias_correction) map each
cell by itself, from years of forecasts on the grid of the analysis, and bring dask and numba, or statsmodels and
scikit-learn; none helps where there are few forecasts, on another grid. So here

- forecasts and analyses are compared at the cells of the coarser of the two, by area means;
- cells are pooled, those of the region and around it, the more of them the fewer forecasts there are;
- of the difference only what the weather of so few days cannot explain is corrected (James-Stein, positive part);
- days of other seasons are left out, and those of the forecasts that are corrected.
"""

from functools import cached_property, lru_cache

import numpy as np

import utils
from datasets import area_means, area_weights, open_list
from reader import grid_of
from utils import DataError, log

POOL = 30_000  # forecasts x cells that the quantiles are taken from; fewer where the file holds fewer
SEASON = 45  # days before and after the middle of the forecast's month
FEWEST = 30  # analysed days of the season; below, those of the whole year are taken
PAIRS = 10  # forecasts with an analysis of their own day; from here on only these are compared
MANY_DAYS = 60  # forecast days; below, it is said that they are few
LEVELS = np.append(np.linspace(0, 0.98, 50), (0.985, 0.99, 0.993, 0.995, 0.997, 0.998, 0.999))
BEYOND = 20  # values that must lie above the highest quantile

__all__ = ["Correction", "quantile_map", "shrinkage"]


class Correction:
    """The quantile mapping of forecasts to analysed days: called with a forecast it gives the corrected one.

    Args: reference: folder with lists of stage 1: its training list holds the analysed days; its forecasts, where it
        has any, are what is compared with them, else those of data_folder. data_folder: folder of the forecasts that
        are corrected; their dates are left out of the analysed days. any_period: whatever the accumulation periods.
    Raises: DataError: no such lists, another accumulation period, or no analysed day of another date.
    """

    def __init__(self, reference, data_folder, any_period=False):
        self.folder, self.days = reference, open_list(reference, "train")
        own = open_list(data_folder, "obj")
        past = (utils.read_info(reference).get("files") or {}).get("obj")
        self.forecasts = open_list(reference, "obj") if past else own
        others = [archive.period for archive in (self.forecasts, own) if archive.period.differs(self.days.period)]
        if others and not any_period:
            raise DataError(
                f"--correct {reference}: the analysed days hold rain of {self.days.period.words}, the forecasts of "
                f"{others[0].words}; expected one period"
            )
        self.scored = {_date(record) for record in own.index}
        self.left_out = sum(_date(record) in self.scored for record in self.days.index)
        if self.left_out == len(self.days):
            raise DataError(
                f"--correct {reference}: every analysed day has the date of a forecast that is corrected; expected "
                "days of other dates, or the truth would shape what is compared with it"
            )
        if self.left_out:
            log(f"--correct: {self.left_out} analysed day(s) of the dates of the forecasts are left out of the fit")
        self._fitted = lru_cache(maxsize=64)(self._fit)

    @cached_property
    def identity(self):
        """What identifies it: both lists, file by file, as a digest."""
        lists = [archive.identity(i) for archive in (self.days, self.forecasts) for i in range(len(archive))]
        return f"quantile mapping {utils.digest_of(*lists, *sorted(self.scored), POOL, SEASON, LEVELS)}"

    def __call__(self, forecast):
        """The corrected forecast ([member,] lat, lon), mm, with the attribute `correction`: what it was fitted on."""
        month = int(str(forecast.time.values)[5:7]) if "time" in forecast.coords else 7
        known, wanted, weight, words = self._fitted(month, grid_of(forecast))
        values = quantile_map(forecast.values, known, wanted, weight)
        return forecast.copy(data=values.astype("float32")).assign_attrs(correction=words)

    def _fit(self, month, region):
        """Fit the mapping of a month over the cells of a Grid and around: (quantiles of the forecasts, those of the
        analysed days, share that is corrected, what it was fitted on in words); it is said once."""
        analysed = [i for i, record in enumerate(self.days.index) if _date(record) not in self.scored]
        near = [i for i in analysed if _in_season(_date(self.days.index[i]), month)]
        analysed = near if len(near) >= FEWEST else analysed
        made = [i for i, record in enumerate(self.forecasts.index) if _in_season(_date(record), month)]
        made = made or list(range(len(self.forecasts)))
        by_date = {_date(self.days.index[i]): i for i in analysed}
        both = [(i, by_date[date]) for i in made if (date := _date(self.forecasts.index[i])) in by_date]
        paired = len(both) >= PAIRS
        if paired:
            made, analysed = (list(ids) for ids in zip(*both, strict=True))
        out = max(self.days.grids[analysed[0]], self.forecasts.grids[made[0]], key=lambda grid: grid.step)
        cells = _pool(out, [self.days.grids[analysed[0]], self.forecasts.grids[made[0]]], region, len(made))
        fields = [
            _on_cells(archive, ids, out, cells) for archive, ids in ((self.forecasts, made), (self.days, analysed))
        ]
        values = [field[np.isfinite(field)] for field in fields]
        if not all(part.size for part in values):
            raise DataError(f"--correct {self.folder}: no cell holds values of forecasts and of analysed days")
        days = len({_date(self.forecasts.index[i]) for i in made})
        weight = shrinkage(*(np.nanmean(field.reshape(len(field), -1), 1) for field in fields), days, paired)
        highest = 1 - BEYOND / min(part.size for part in values)
        levels = LEVELS[: max(2, np.searchsorted(LEVELS, highest, "right"))]
        quantiles = [np.quantile(part, levels) for part in values]
        words = self._words(made, analysed, days, paired, cells, out, values, weight)
        log(f"--correct: {words}")
        if days < MANY_DAYS:
            log(
                f"NOTE: {days} forecast day(s) are few (below {MANY_DAYS}): the weather of these days cannot be told "
                "from a bias of the product but where the bias is large; past forecasts make the correction better"
            )
        return *quantiles, weight, words

    def _words(self, made, analysed, days, paired, cells, out, values, weight):
        """What a mapping was fitted on."""
        dates = [
            sorted(_date(archive.index[i]) for i in ids)
            for archive, ids in ((self.forecasts, made), (self.days, analysed))
        ]
        what = "the analysed days of the same dates" if paired else f"{len(analysed)} analysed days"
        return (
            f"quantile mapping of {len(made)} forecast(s) of {days} date(s), {dates[0][0]} to {dates[0][-1]}, to {what}"
            f", {dates[1][0]} to {dates[1][-1]} of {self.folder}, over {cells[0].size * cells[1].size} cells of "
            f"{float(out.step):g} degree; mean {values[0].mean():.3g} to {values[1].mean():.3g} mm, at least 0.1 mm in "
            f"{100 * (values[0] >= 0.1).mean():.3g} to {100 * (values[1] >= 0.1).mean():.3g} % of the cells; "
            f"{100 * weight:.0f} % of the difference is corrected, the rest may be the weather of these days"
        )


def quantile_map(values, known, wanted, weight=1.0):
    """Map amounts by quantiles: what is known[k] becomes wanted[k], linear between them; NaN and dry stay so.

    Above the highest quantile the ratio of the two highest holds.

    Args: values: array, mm. known, wanted (K,): quantiles of the same levels, ascending. weight: share of the change
        that is made, 0 to 1.
    Returns: an array like values, float64, mm, not negative.
    """
    values = np.asarray(values, "float64")
    top = wanted[-1] / known[-1] if known[-1] > 0 else 1.0
    mapped = np.where(values > known[-1], values * top, np.interp(values, known, wanted))
    return np.where(values > 0, values + weight * (mapped - values), values)


def shrinkage(forecast, analysed, days, paired):
    """Share of the difference of two means that the weather of a few days does not explain, 0 to 1.

    1 - s^2 / d^2, not below 0 (the positive-part estimator of James and Stein 1961): d is the difference of the
    logarithms of both means, s how much such means of `days` days differ by weather alone: in the analysed days, or,
    paired, how much d differs among the days.

    Args: forecast, analysed (n,): mean rain of each field, mm, in date order. days: number of forecast dates. paired:
        both are of the same dates.
    """
    if not forecast.mean() > 0 or not analysed.mean() > 0:
        return 0.0
    difference = np.log(analysed.mean() / forecast.mean())
    if paired:
        ratios = np.log(np.maximum(analysed, 1e-3) / np.maximum(forecast, 1e-3))
        spread = ratios.std(ddof=1) / np.sqrt(len(ratios))
    else:
        length = max(1, min(days, len(analysed) // 10))  # consecutive days share their weather
        blocks = analysed[: len(analysed) // length * length].reshape(-1, length).mean(1)
        spread = np.log(np.maximum(blocks, 1e-3)).std() * np.sqrt(length / days)
    return float(max(0.0, 1 - spread**2 / max(difference**2, 1e-12)))


def _date(record):
    """The date YYYY-MM-DD of a file in the index of an Archive."""
    return record["times"].get("time", "")[:10]


def _in_season(date, month):
    """True where a date lies within SEASON days of the middle of a month, whatever the year."""
    apart = abs((np.datetime64(date) - np.datetime64(f"{date[:4]}-{month:02d}-15")).astype(int)) if date else 0
    return min(apart, 365 - apart) <= SEASON


def _weights(out, grid):
    """Area weights of Grid `grid` on the rows, and on the columns, of Grid `out`."""
    steps = float(out.step), float(grid.step)
    return [area_weights(own, steps[0], other, steps[1]) for own, other in ((out.lat, grid.lat), (out.lon, grid.lon))]


def _pool(out, grids, region, fields):
    """(rows, columns) of Grid `out` that all grids hold, around the region, so many that the fields make POOL values.

    Raises: DataError: the grids share no whole cell.
    """
    inside = [[weights.sum(1) > 1 - 1e-6 for weights in _weights(out, grid)] for grid in grids]
    rows, cols = (np.flatnonzero(np.logical_and.reduce(axis)) for axis in zip(*inside, strict=True))
    if not (rows.size and cols.size):
        raise DataError(
            f"--correct: forecasts over {grids[1].extent} and analysed days over {grids[0].extent} share no whole cell"
        )
    away = [
        np.maximum(np.abs(nodes - (high + low) / 2) - (high - low) / 2, 0)
        for nodes, low, high in (
            (out.lat[rows], float(region.south), float(region.north)),
            (out.lon[cols], float(region.west), float(region.east)),
        )
    ]
    for reach in sorted({0.0, *away[0], *away[1]}):
        near = rows[away[0] <= reach], cols[away[1] <= reach]
        if near[0].size * near[1].size * fields >= POOL:
            return near
    return rows, cols


def _on_cells(archive, ids, out, cells):
    """Area means of files of an Archive on rows and columns of a Grid: (n, [M,] rows, columns), float32; NaN where a
    part is missing."""
    weights, fields = {}, []
    for i in ids:
        grid, values = archive.grids[i], archive.values(i)
        if grid not in weights:
            weights[grid] = [axis[own] for axis, own in zip(_weights(out, grid), cells, strict=True)]
        fields.append(area_means(values, *weights[grid]).astype("float32"))
    shapes = {field.shape for field in fields}
    if len(shapes) > 1:  # ensembles of different sizes: their first members
        least = min(field.shape[0] if field.ndim > 2 else 1 for field in fields)
        fields = [field[:least] if field.ndim > 2 else field[None] for field in fields]
    return np.stack(fields)
