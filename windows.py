"""Cuts the training windows of a dataset: which places are drawn, and that they hold no missing pixel.

Reads and writes  nothing itself; the pairs are those of datasets.SRDataset.

    from windows import Windows
    batch = Windows(dataset, sides=(4, 6), crop=2).batch(step=0, size=4)   # lr, hr, box, weight ...
"""

from pathlib import Path

import numpy as np

from utils import DataError

__all__ = ["Windows", "window_sides"]


def window_sides(train, config, coarse=False):
    """Sides in LR cells: (of the crop that is made, (smallest, largest) of what is seen; None: the whole region).

    A coarse step makes twice the side, with as many cells around it.
    """
    crop = train.crop and max(1, round(train.crop / config.scale))
    sides = tuple(side * max(crop, 1) + coarse * crop for side in train.window) or None
    return crop * (1 + coarse), sides


class Windows:
    """Random training windows of a dataset, without missing pixels.

    A window is a rectangle of LR cells, all of which the network sees; HR is given for a crop of it, so that a step can
    hold many independent pieces of rain. LR is the block mean of HR, or with paired files the LR file's own cells.

    Each window is one of CANDIDATES random places, drawn with probability proportional to the square root of the mean
    rain of its crop. The network is given this mean; to draw by single wet pixels of HR would change the distribution
    of HR given LR. The sample's `weight` is proportional to the inverse of that probability (importance sampling), so
    that the network sees heavy rain more often, and its loss still is the mean over all places.

    Every draw depends on (seed, step, sample) alone: a resumed run, and any number of processes, see the same windows.
    Validation (`part="valid"`) takes the last days of a long list, whole, else the easternmost columns; training the
    rest.

    Args: dataset: SRDataset. sides: (smallest, largest) side of a window in LR cells, rows and columns drawn each step;
        None: the whole region. crop: side of the crop in LR cells, 0 for the whole window. part: train or valid.
        valid_share: share held out for validation. turn: turn and flip at random; False for a fixed region, for
        fields that have directions (north must stay north) and for validation. amounts: rain is scaled by a random
        factor of at most this, either way (1: never). seed: of draws. maps: {plan.core: static fields (S, H, W) on it},
        cut as HR, and predictors: fields of the day (P, h, w) on the LR cells of each file; both with turn=False.
    """

    CANDIDATES, LONG_LIST = 48, 20

    def __init__(
        self,
        dataset,
        *,
        sides=None,
        crop=0,
        part="train",
        valid_share=0.1,
        turn=True,
        amounts=1.0,
        seed=0,
        maps=None,
        predictors=None,
    ):
        self.maps, self.predictors = maps, predictors
        self.dataset, self.sides, self.crop, self.part = dataset, sides, crop, part
        self.turn, self.amounts, self.seed, self.scale = turn, amounts, seed, dataset.config.scale
        count = len(dataset)
        by_time = count >= self.LONG_LIST
        held = max(1, round(count * valid_share)) if valid_share and by_time else 0
        self.files = range(count - held, count) if held and part == "valid" else range(count - held)
        self.strip = valid_share if not by_time and sides is not None else 0.0
        self.smallest = tuple(min(getattr(p.lr, side) for p in dataset.plans) for side in ("rows", "cols"))

    def batch(self, step, size, first=0, count=None):
        """Draw the samples first .. first + count of the `size` samples of a training step.

        Returns: dict of lr (n, 1, h, w), hr (n, 1, H, W), mm, float32; box (r0, r1, c0, c1), the crop in LR cells that
            hr covers; weight (n,) of each sample in the loss; source, the files' names; maps (n, S, h * scale,
            w * scale) and predictors (n, P, h, w), or None.
        Raises: DataError: no window without missing pixels.
        """
        rng = np.random.default_rng([self.seed, step, self.part == "valid"])
        h, w = (
            self.smallest
            if self.sides is None
            else (int(min(rng.integers(self.sides[0], self.sides[1] + 1), n)) for n in self.smallest)
        )
        ch, cw = (min(self.crop or n, n) for n in (h, w))
        r0, c0 = int(rng.integers(h - ch + 1)), int(rng.integers(w - cw + 1))
        box = (r0, r0 + ch, c0, c0 + cw)
        drawn = [self._draw(step, k, (h, w), box) for k in range(first, first + (size if count is None else count))]
        lr, hr = (np.stack([pair[k] for pair in drawn])[:, None] for k in (0, 1))
        maps = np.stack([pair[4] for pair in drawn]) if self.maps else None
        day = np.stack([pair[5] for pair in drawn]) if self.predictors else None
        if self.turn:
            lr, hr, box = _turned(lr, hr, box, rng)
        weight = np.array([pair[3] for pair in drawn], np.float32)
        source = [pair[2] for pair in drawn]
        return {"lr": lr, "hr": hr, "maps": maps, "predictors": day, "box": box, "weight": weight, "source": source}

    def _draw(self, step, sample, shape, box):
        """(lr, hr of the crop, file name, weight, maps or None, predictors or None) of one sample."""
        rng = np.random.default_rng([self.seed, step, self.part == "valid", sample])
        top, bottom, left, right = (n * self.scale for n in box)
        for _ in range(100):
            place = self._choose(rng, shape, (top, bottom, left, right))
            pair = place and self._cut(*place, shape)
            if pair:
                lr, window = pair
                factor = np.float32(self.amounts ** rng.uniform(-1, 1))
                hr = window[top:bottom, left:right] * factor
                weight = self._chance(0.5) / self._chance(hr.mean())
                maps = self.maps and self._cut_maps(*place, shape)
                day = self.predictors and self._cut_predictors(*place, shape)
                return lr * factor, hr, Path(self.dataset.files.paths[place[0]]).name, weight, maps, day
        raise DataError(
            f"no window of {shape[0]} x {shape[1]} LR cells without missing pixels in the {self.dataset.split} list; "
            "expected larger gap-free areas, or smaller windows: --window 1 1 with a smaller --crop"
        )

    def _choose(self, rng, shape, crop):
        """Draw a place, as (file, first row, first column); None where pixels are missing in every candidate.

        Args: shape: of the window, LR cells. crop: (top, bottom, left, right) of the crop in the window, pixels.
        """
        files, rows, cols = self._places(rng, shape, self.CANDIDATES)
        top, bottom, left, right = crop
        amounts = np.empty(len(files))
        for i in np.unique(files):
            own = files == i
            amounts[own] = self.dataset.amounts(i, rows[own] + top, cols[own] + left, (bottom - top, right - left))
            if self.dataset.truth is not None:  # LR has gaps of its own
                gaps, s = np.isnan(self.dataset.lr(i)), self.scale
                places = zip(rows[own] // s, cols[own] // s, strict=True)
                amounts[own] += [np.nan if gaps[r:, c:][: shape[0], : shape[1]].any() else 0.0 for r, c in places]
        chances = np.nan_to_num(self._chance(amounts))
        if chances.sum() == 0:
            return None
        k = rng.choice(len(files), p=chances / chances.sum())
        return int(files[k]), int(rows[k]), int(cols[k])

    def _cut(self, i, row, col, shape):
        """(LR, HR) of the window of file i whose first pixel is (row, col); None where one of its pixels is missing."""
        s, (h, w) = self.scale, shape
        window = self.dataset.crop(i, slice(row, row + h * s), slice(col, col + w * s))
        # Not block_mean, with which a draw takes 20 % longer: float32, whole rows first, NaN if any pixel is missing.
        means = window.reshape(h, s, -1).sum(1).reshape(h, w, s).sum(2) / s**2
        lr = means if self.dataset.truth is None else self.dataset.lr(i)[row // s :, col // s :][:h, :w]
        return (lr, window) if np.isfinite(means).all() and np.isfinite(lr).all() else None

    def _cut_maps(self, i, row, col, shape):
        """Static fields (S, H, W) of that window, a view."""
        h, w = (n * self.scale for n in shape)
        return self.maps[self.dataset.plans[i].core][:, row : row + h, col : col + w]

    def _cut_predictors(self, i, row, col, shape):
        """Fields of the day (P, h, w) on the LR cells of that window, interpolated where it begins within a cell."""
        (r, down), (c, across) = divmod(row, self.scale), divmod(col, self.scale)
        part = self.predictors[i][:, r : r + shape[0] + bool(down), c : c + shape[1] + bool(across)]
        if down:
            part = part[:, :-1] + np.float32(down / self.scale) * (part[:, 1:] - part[:, :-1])
        if across:
            part = part[..., :-1] + np.float32(across / self.scale) * (part[..., 1:] - part[..., :-1])
        return part

    def _chance(self, amount):
        """How likely a place with this mean rain, mm, is drawn: its square root, and a little for dry places."""
        return np.sqrt(amount) + 0.01

    def _places(self, rng, shape, count):
        """Draw random windows of all files: arrays (files, first rows, first columns), in pixels.

        Where files hold HR a window may begin at any pixel, else at whole LR cells.
        """
        files, draws = rng.choice(self.files, count), rng.random((count, 2))
        rooms = {i: self._room(i, shape) for i in np.unique(files).tolist()}
        rows, first, columns, unit = np.array([rooms[i] for i in files.tolist()]).T
        return files, (draws[:, 0] * rows).astype(int) * unit, (first + (draws[:, 1] * columns).astype(int)) * unit

    def _room(self, i, shape):
        """Where windows of file i may begin: (number of rows, first column, number of columns, unit in pixels)."""
        plan = self.dataset.plans[i]
        unit = 1 if plan.kind == "hr" else self.scale
        height, width, rows, cols = (n * self.scale // unit for n in (*plan.lr.shape, *shape))
        first, last, edge = 0, width - cols, int(width * (1 - self.strip))
        if self.strip:
            first, last = (min(edge, last), last) if self.part == "valid" else (0, max(0, min(last, edge - cols)))
        return height - rows + 1, first, last - first + 1, unit


def _turned(lr, hr, box, rng):
    """Flip and transpose a batch at random, and its box with it: rain has no preferred direction at these scales."""
    (r0, r1, c0, c1), (h, w) = box, lr.shape[-2:]
    if rng.random() < 0.5:
        lr, hr, (c0, c1) = lr[..., ::-1], hr[..., ::-1], (w - c1, w - c0)
    if rng.random() < 0.5:
        lr, hr, (r0, r1) = lr[..., ::-1, :], hr[..., ::-1, :], (h - r1, h - r0)
    if rng.random() < 0.5:
        lr, hr, (r0, r1, c0, c1) = lr.swapaxes(-1, -2), hr.swapaxes(-1, -2), (c0, c1, r0, r1)
    return lr.copy(), hr.copy(), (r0, r1, c0, c1)  # ascontiguousarray leaves axes of 1 with negative strides
