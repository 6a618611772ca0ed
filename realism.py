"""Asks whether downscaled rain looks like real rain: judges, seams, streaks and directions. No pictures, no files.

Reads    fields in memory, mm, NaN = missing: truth (H, W) and members (M, H, W) at the HR grid.
Returns  numbers; those of the score table are collected day by day by Realism.

    from realism import realism_scores
    realism_scores([hr], [sr], scale=100)             # lists of (H, W) and of (M, H, W), mm

    judges      area under the ROC curve of small networks that tell made patches from real ones; 0.5 best, 1 worst
    seams       jumps across the edges of LR cells over jumps elsewhere, made over real; 1 best
    streaks     how strongly texture lies along one direction, fine and broad, made over real; 1 best
    directions  error of the members' directions over that of fields without any; 0 best, above 1 worse than none

torch is imported where the judges are trained: it is slow to load.
"""

import functools
import textwrap
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from scipy.ndimage import binary_dilation, gaussian_filter1d

from threads import Threads, allowed_cores
from utils import progress

STREAKS = ((2, 32), (6, 48))  # fine and broad: width of the gradient, and of the Gaussian that gathers it, pixels
BLOCK, BLOCK_SIGMA = 64, 4  # side of the blocks of `directions`, and width of its gradient, pixels
WET = 0.1  # mm; texture is that of pixels above it
GAP = 12  # pixels around a missing one that do not enter the streaks
KEYS = ("judges", "seams", "streaks_fine", "streaks_broad", "directions")
COLUMNS = (  # of the printed table: key, title, width, meaning
    ("judges", "judges", 8, "how well small networks tell made patches from real ones, 0.5 not at all, 1 always"),
    ("seams", "seams", 7, "jumps across the edges of LR cells over jumps elsewhere"),
    ("streaks_fine", "streaks", 11, "how strongly texture lies along one direction, fine/broad"),
    ("directions", "directions", 12, "error of the members' directions over that of none, 0 best, above 1 no skill"),
)
LEAST_BLOCKS, LEAST_PATCHES = 8, 64  # with fewer the score table's directions and all judges are blank

# fmt: off
__all__ = [
    "KEYS", "STREAKS", "Patches", "Realism", "coherence", "direction_sums", "directions", "judged", "judges",
    "realism_lines", "realism_scores", "seam_sums", "seams", "texture", "texture_ratios", "texture_sums",
]
# fmt: on


# ---------------------------------------------------------------- all four


def realism_scores(truth, members, scale, *, seed=0, **options):
    """Score members against real rain by all four measures.

    Args: truth: list of (H, W), mm. members: list of (M, H, W), mm. scale: HR pixels along an LR cell. options: of
        judges.
    Returns: {key of KEYS: score}, NaN where a measure has no wet place to look at. Streaks are those of the first
        members; seams, judges and directions are those of all.
    """
    made = sum(_row_sums(sr, scale) for sr in members)
    return {
        "judges": judges(truth, members, seed=seed, **options),
        **texture_ratios(made, texture_sums(truth, scale)),
        "directions": directions(truth, members),
    }


def _row_sums(members, scale):
    """texture_sums of the members (M, H, W) of a day: seams of all, streaks of the first."""
    return np.concatenate([seam_sums([members], scale), texture_sums(members[:1], scale)[4:]])


class Realism:
    """The realism of the score table's rows: add() days, then read scores() and reasons() of each row.

    It keeps sums and, of the rows that judges look at, a bounded number of patches: memory does not grow with days.

    Args: scale: HR pixels along an LR cell. judges, steps: judges of each such row, and steps of one's training: a
        minute of one core for each row. seed: of patches and judges.
    """

    def __init__(self, scale, *, judges=2, steps=300, seed=0):
        self.scale, self.judges, self.steps, self.seed = scale, judges, steps, seed
        self.real, self.texture, self.directions = np.zeros(8), {}, {}
        self.patches, self.areas, self.longest = {}, {}, 0

    def add(self, truth, rows, judged=()):
        """Add a day: truth (H, W) and the members (M, H, W) of each row, {name: members}, mm, NaN = missing.

        Args: judged: names of the rows that judges look at, the slowest measure; the same every day.
        """
        self.real += texture_sums([truth], self.scale)
        self.longest = max(self.longest, min(truth.shape))
        with ThreadPoolExecutor(min(2, allowed_cores())) as pool:
            texture = pool.map(lambda members: _row_sums(members, self.scale), rows.values())
            real = _block_directions(truth)
            found = pool.map(lambda members: _direction_sums(real, members), rows.values())
            for name, sums, errors in zip(rows, texture, found, strict=True):
                self.texture[name] = self.texture.get(name, 0) + sums
                self.directions[name] = self.directions.get(name, 0) + errors
        present = np.isfinite(truth)
        for name in judged:
            present = present & np.isfinite(rows[name]).all(0)
        for number, name in enumerate(("", *judged)):  # the first are the real ones
            patches = self.patches.setdefault(name, Patches(seed=[self.seed, number]))
            patches.add(rows[name] if name else truth[None], present)
        self.areas.clear()

    def scores(self, name):
        """The scores of a row, {key of KEYS: float}; NaN where they were not asked for or reasons() has a word."""
        if name not in self.texture:
            return dict.fromkeys(KEYS, np.nan)
        if name in self.patches and name not in self.areas:
            self.areas[name] = judged(
                self.patches[""], self.patches[name], judges=self.judges, steps=self.steps, seed=self.seed
            )
        score, none, blocks = self.directions[name]
        return {
            "judges": self.areas.get(name, np.nan),
            **texture_ratios(self.texture[name], self.real),
            "directions": float(score / none) if blocks >= LEAST_BLOCKS else np.nan,
        }

    def reasons(self, name):
        """Why scores of a row are blank, a set of words."""
        if name not in self.texture:
            return set()
        scores, words = self.scores(name), set()
        if name in self.patches and np.isnan(scores["judges"]):
            words.add(f"judges: {self.patches[''].missing() or self.patches[name].missing()}")
        if np.isnan(scores["seams"]):
            words.add("seams: no rain across the edges of LR cells and elsewhere")
        for key, (_, gather) in zip(KEYS[2:4], STREAKS, strict=True):
            if np.isnan(scores[key]):
                short = f"{self.longest} pixels are too short for them, {4 * gather} are needed"
                words.add(f"{key.replace('_', ', ')}: {short if self.longest < 4 * gather else 'no wet pixel'}")
        if np.isnan(scores["directions"]):
            number = int(self.directions[name][2])
            words.add(f"directions: {number} of at least {LEAST_BLOCKS} wet blocks of {BLOCK} pixels")
        return words


def realism_lines(rows, edge):
    """Lines of text with the realism of the rows of a score table that have any; names take `edge` characters."""
    rows = [row for row in rows if any(np.isfinite(row.get(key, np.nan)) for key in KEYS)]
    if not rows:
        return []
    lines = [f"{'Realism':{edge}s}" + "".join(f"{title:>{width}s}" for _, title, width, _ in COLUMNS)]
    for row in rows:
        figures = {key: f"{row[key]:.2f}" if np.isfinite(row[key]) else "" for key in KEYS}
        figures["streaks_fine"] = "/".join(filter(None, (figures[key] for key in KEYS[2:4])))
        cells = "".join(f"{figures[key]:>{width}s}" for key, _, width, _ in COLUMNS)
        lines.append(f"{row['name']:{edge}s}{cells}".rstrip())
    legend = "; ".join(f"{title}: {meaning}" for _, title, _, meaning in COLUMNS)
    return lines + textwrap.wrap(f"({legend}; seams and streaks made over real, 1 best)", 100, subsequent_indent="  ")


# ---------------------------------------------------------------- seams and streaks, as sums that can be added up


def texture(truth, members, scale):
    """Seams and streaks of all members, made over real: {"seams", "streaks_fine", "streaks_broad"}.

    Args: truth: list of (H, W), mm. members: list of (M, H, W), mm. scale: HR pixels along an LR cell.
    """
    fields = [member for window in members for member in window]
    return texture_ratios(texture_sums(fields, scale), texture_sums(truth, scale))


def texture_sums(fields, scale):
    """Sums from which texture_ratios makes seams and streaks; those of several windows or processes can be added.

    Args: fields: list of (H, W), mm, NaN = missing. scale: HR pixels along an LR cell.
    Returns: (8,) float64: sum and number of jumps across LR cell edges, sum and number of jumps elsewhere; then, fine
        and broad, the sum of coherence times trace and the sum of traces. A field shorter than four times the width
        that gathers adds nothing to the streaks: its tensor would be one of its mirror images.
    """
    total = np.concatenate([seam_sums(fields, scale), np.zeros(2 * len(STREAKS))])
    for k, (sigma, gather) in enumerate(STREAKS):
        wide = [field for field in fields if min(np.shape(field)) >= 4 * gather]
        total[4 + 2 * k : 6 + 2 * k] = coherence_sums(wide, sigma, gather)
    return total


def texture_ratios(made, real):
    """Seams and streaks, made over real, from two results of texture_sums; NaN where nothing was wet.

    Returns: {"seams", "streaks_fine", "streaks_broad"}, floats, 1 where made is as real.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        edge, other, *streaks = np.divide(made[::2], made[1::2]) / np.divide(real[::2], real[1::2])
        ratios = np.array([edge / other, *streaks])
    return {key: float(ratio) if np.isfinite(ratio) else np.nan for key, ratio in zip(KEYS[1:4], ratios, strict=True)}


def seams(fields, scale):
    """Mean jump of log rain across the edges of LR cells over the mean jump elsewhere; NaN where nothing is wet.

    Args: fields: list of (..., H, W), mm, NaN = missing. scale: HR pixels along an LR cell, counted from the
        north-west corner.
    Returns: a float; divided by that of real rain, 1 is no seam.
    """
    edge, edges, other, others = seam_sums(fields, scale)
    return float(edge / edges / (other / others)) if edges and other else np.nan


def seam_sums(fields, scale):
    """Sum and number of jumps of log10(1 + 10 mm) across LR cell edges, then of those elsewhere: (4,) float64.

    A jump of 0, as between dry pixels, does not count.
    """
    sums = np.zeros(4)
    for field in fields:
        rain = np.log10(1 + 10 * np.asarray(field))
        for axis in (-1, -2):
            jumps = np.moveaxis(np.abs(np.diff(rain, axis=axis)), axis, -1)
            at_edge = np.arange(1, jumps.shape[-1] + 1) % scale == 0
            for k, part in enumerate((jumps[..., at_edge], jumps[..., ~at_edge])):
                part = part[part > 0]  # NaN is not
                sums[2 * k : 2 * k + 2] += part.sum(dtype=np.float64), part.size
    return sums


def coherence(fields, sigma, gather):
    """Mean coherence of the structure tensor of log rain (Bigun and Granlund 1987): 0 no direction, 1 one alone.

    (l1 - l2) / (l1 + l2) of the tensor's eigenvalues, weighted by their sum, over wet pixels without gaps near.

    Args: fields: list of (H, W), mm, NaN = missing. sigma: width of the gradient, pixels. gather: width of the Gaussian
        that gathers the tensor, pixels.
    Returns: a float, NaN where nothing is wet; divided by that of real rain, 1 is as streaky as real rain.
    """
    total, weight = coherence_sums(fields, sigma, gather)
    return float(total / weight) if weight else np.nan


def coherence_sums(fields, sigma, gather):
    """Sum of coherence times trace and sum of traces, on every fourth pixel: (2,) float64."""
    sums = np.zeros(2)
    for field in fields:
        field = np.asarray(field)
        present = np.isfinite(field)
        a, b, c = (_gathered(part, gather) for part in _tensor(field, present, sigma))
        trace = a + c
        near = present if present.all() else ~binary_dilation(~present, iterations=GAP)
        use = ((field > WET) & near)[::4, ::4] & (trace > 1e-9)
        sums += np.hypot(a - c, 2 * b)[use].sum(dtype=np.float64), trace[use].sum(dtype=np.float64)
    return sums


def _tensor(field, present, sigma):
    """The structure tensor's parts xx, xy and yy (H, W) of log rain, a missing pixel taken as dry."""
    rain = np.log10(1 + 10 * np.where(present, field, 0)).astype(np.float32)
    gy, gx = (_smoothed(_smoothed(rain, sigma, b).T, sigma, a).T for b, a in ((1, 0), (0, 1)))
    return gx * gx, gx * gy, gy * gy


def _smoothed(field, sigma, order):
    """gaussian_filter1d down the columns of a float32 field, as products with a band of its weights: a third of the
    time for wide Gaussians."""
    weights, reach = _band(sigma, order)
    rows, size = len(field), len(weights)
    wide = np.pad(field, ((reach, reach), (0, 0)), "symmetric")
    parts = [slice(k, min(k + size, rows)) for k in range(0, rows, size)]
    return np.concatenate(
        [
            weights[: p.stop - p.start, : p.stop - p.start + 2 * reach] @ wide[p.start : p.stop + 2 * reach]
            for p in parts
        ]
    )


@functools.lru_cache(maxsize=8)
def _band(sigma, order, size=256):
    """Weights (size, size + 2 reach) of gaussian_filter1d for `size` rows and `reach` rows on each side; and reach."""
    reach = int(4 * sigma + 0.5)
    impulse = np.zeros(4 * reach + 1)
    impulse[2 * reach] = 1
    kernel = gaussian_filter1d(impulse, sigma, order=order)[reach : 3 * reach + 1][::-1]
    matrix = np.zeros((size, size + 2 * reach), np.float32)
    for k in range(size):
        matrix[k, k : k + len(kernel)] = kernel
    return matrix, reach


def _gathered(field, gather):
    """Every fourth pixel of gaussian_filter(field, gather), as two matrix products: a twentieth of its time."""
    rows, columns = (_gaussian(n, gather) for n in field.shape)
    return rows @ field @ columns.T


@functools.lru_cache(maxsize=8)
def _gaussian(n, sigma):
    """Weights (n / 4, n) of every fourth pixel of a Gaussian filter to four widths, mirrored at the ends."""
    reach = int(4 * sigma + 0.5)
    steps = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (steps / sigma) ** 2)
    centres = np.arange(0, n, 4)[:, None]
    places = (centres + steps) % (2 * n)
    places = np.where(places < n, places, 2 * n - 1 - places)
    matrix = np.zeros((len(centres), n))
    np.add.at(matrix, (np.arange(len(centres))[:, None], places), weights / weights.sum())
    return matrix.astype(np.float32)


# ---------------------------------------------------------------- directions


def directions(truth, members):
    """Fair energy score (Gneiting and Raftery 2007) of the members' directions over that of fields without any.

    A block's direction is coherence times (cos, sin) of twice its angle, in blocks of 64 pixels that are wet (more than
    half above 0.1 mm) and without gaps. One and the same direction everywhere, streaky as it is, scores no better than
    none.

    Args: truth: list of (H, W), mm, NaN = missing. members: list of (M, H, W), mm.
    Returns: a float: 0 is exact, below 1 is skill, above 1 is worse than no direction; NaN without a wet block.
    """
    score, none, blocks = sum((direction_sums(*pair) for pair in zip(truth, members, strict=True)), np.zeros(3))
    return float(score / none) if blocks else np.nan


def direction_sums(truth, members):
    """Energy score of the members (M, H, W), that of no direction, and number of wet blocks of (H, W): (3,) float64."""
    return _direction_sums(_block_directions(np.asarray(truth)), members)


def _direction_sums(truth, members):
    """direction_sums, of what _block_directions found in the truth."""
    real, use = truth
    made = [_block_directions(np.asarray(member))[0] for member in members]

    def far(one, two):
        return np.hypot(*(one - two))[use].sum(dtype=np.float64)

    pairs = [far(made[i], made[j]) for i in range(len(made)) for j in range(i)]
    score = np.mean([far(member, real) for member in made]) - (np.mean(pairs) / 2 if pairs else 0)
    return np.array([score, far(real, 0 * real), use.sum()])


def _block_directions(field):
    """Directions (2, h, w) of the blocks of a field (H, W), and which are wet and without gaps (h, w)."""
    h, w = (n // BLOCK for n in field.shape)
    present = np.isfinite(field)
    xx, xy, yy, wet, whole = (
        part[: h * BLOCK, : w * BLOCK].reshape(h, BLOCK, w, BLOCK).mean((1, 3))
        for part in (*_tensor(field, present, BLOCK_SIGMA), field > WET, present)
    )
    return np.stack([xx - yy, 2 * xy]) / (xx + yy + 1e-9), (whole == 1) & (wet > 0.5)


# ---------------------------------------------------------------- judges


def judges(truth, members, *, patch=64, wet=WET, judges=3, steps=300, seed=0):
    """Classifier two-sample test (Lopez-Paz and Oquab 2017): can small networks tell made patches from real ones?

    Each judge is trained on patches of the north-western half of the domain, each divided by its own mean, so that
    texture alone counts, and asked about patches of the other half.

    Args: truth: list of (H, W), mm, NaN = missing. members: list of (M, H, W), mm. patch: side, pixels. wet: mm; a
        patch is wet where more than a fifth of it is above this. judges, steps: how many, and steps of each one's
        training.
    Returns: mean area under their ROC curves: 0.5 nobody can tell, 1 always; NaN where wet patches are too few, as
        Patches.missing says.
    """
    real, made = (Patches(patch, wet, seed=[seed, k]) for k in range(2))
    for hr, sr in zip(truth, members, strict=True):
        present = np.isfinite(hr) & np.isfinite(sr).all(0)
        real.add(hr[None], present)
        made.add(sr, present)
    return judged(real, made, judges=judges, steps=steps, seed=seed)


class Patches:
    """A bounded number of wet patches without missing pixels, drawn evenly from the days that are added.

    Half 0 is the north or the west of the domain, whichever side is longer, half 1 the other.

    Args: side: pixels. wet: mm. limits: how many are kept of each half. seed: of the draws.
    """

    def __init__(self, side=64, wet=WET, *, limits=(2048, 1024), seed=0):
        self.side, self.wet, self.limits = side, wet, limits
        self.random, self.seen, self.kept, self.largest = np.random.default_rng(seed), [0, 0], ([], []), (0, 0)

    def add(self, fields, present):
        """Draw patches from a day's fields (M, H, W), mm, where `present` (H, W) has no gap."""
        shape = present.shape
        axis, self.largest = int(shape[1] > shape[0]), max(self.largest, shape)
        half = shape[axis] // 2
        for part, (first, last) in enumerate(((0, half), (half, shape[axis]))):
            ends = [[0, n - self.side] for n in shape]
            ends[axis] = [first, last - self.side]
            if all(high >= low for low, high in ends):
                self._draw(part, fields, present, ends)

    def missing(self):
        """Why there are too few patches to judge, in words; empty where there are enough."""
        if not any(self.seen):
            h, w = self.largest
            return f"no wet patch of {self.side} pixels without gaps in the halves of {h} x {w} pixels"
        if min(self.seen) < LEAST_PATCHES:
            return (
                f"{self.seen[0]} and {self.seen[1]} wet patches of {self.side} pixels were found in the two halves, "
                f"{LEAST_PATCHES} are needed"
            )
        return ""

    def batch(self, part, number, random):
        """Draw (number, side, side) of a half, turned at random: log10(1 + 10 x rain over its mean)."""
        chosen = (self.kept[part][k] for k in random.integers(len(self.kept[part]), size=number))
        return np.stack([x[:: random.choice([-1, 1]), :: random.choice([-1, 1])] for x in chosen])

    def _draw(self, part, fields, present, ends):
        """Try 4096 places, and keep each wet patch of all days with the same chance (Vitter 1985)."""
        windows = np.lib.stride_tricks.sliding_window_view(fields, (self.side, self.side), axis=(1, 2))
        whole = np.lib.stride_tricks.sliding_window_view(present, (self.side, self.side))
        kept, limit = self.kept[part], self.limits[part]
        for _ in range(16):
            y, x = (self.random.integers(low, high + 1, 256) for low, high in ends)
            patches = windows[self.random.integers(len(fields), size=256), y, x]
            good = whole[y, x].all((1, 2)) & ((patches > self.wet).mean((1, 2)) > 0.2)
            for rain in patches[good]:
                self.seen[part] += 1
                place = len(kept) if len(kept) < limit else self.random.integers(self.seen[part])
                if place < limit:
                    kept[place : place + 1] = [np.log10(1 + 10 * rain / max(float(rain.mean()), 1e-3))]


def judged(real, made, *, judges=3, steps=300, seed=0):
    """Mean area under the ROC curve of judges of two Patches; NaN where either has too few."""
    if real.missing() or made.missing():
        return np.nan
    threads = Threads(None, "judge's step")
    return float(np.mean([_judge(real, made, steps, seed + k, threads) for k in range(judges)]))


def _judge(real, made, steps, seed, threads):
    """Train one judge on half 0 of the patches and return the area under its ROC curve on half 1."""
    import torch

    random = np.random.default_rng(seed)

    def batch(part):
        patches = np.concatenate([kind.batch(part, 16, random) for kind in (real, made)])
        return torch.from_numpy(patches.astype(np.float32))[:, None], torch.tensor([1.0] * 16 + [0.0] * 16)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _network().to(memory_format=torch.channels_last)  # a third faster
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    for step in progress(range(steps), "judging"):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / steps)
        patches, kind = batch(0)
        with threads.piece():
            loss = torch.nn.functional.binary_cross_entropy_with_logits(network(patches)[:, 0], kind)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        logits = np.stack([network(batch(1)[0])[:, 0].numpy() for _ in range(24)])
    one, two = logits[:, :16].reshape(-1, 1), logits[:, 16:].ravel()
    return float((one > two).mean() + 0.5 * (one == two).mean())


def _network():
    """A judge: (N, 1, side, side) to (N, 1) logits, above 0 where it takes a patch for real."""
    from torch import nn

    layers, before = [], 1
    for k, channels in enumerate((16, 32, 48, 64, 64)):
        kernel, stride = (4, 2) if k else (3, 1)
        layers += [nn.Conv2d(before, channels, kernel, stride, 1), nn.LeakyReLU(0.2)]
        before = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 1))
