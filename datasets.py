"""Turns canonical fields into (lr, hr) pairs: regions, the three targets, and the cache.

Reads    the JSON lists and PreInfo.json of stage 1, and through reader.py the NetCDF files they name.
Writes   only its cache of decoded fields, {data_folder}/cache/*.f32.

    from datasets import SRDataset
    lr, hr = SRDataset("Data/JsonPath", split="eval")[0]      # (5, 5) and (500, 500), mm, north first

LR is a field on coarse cells, HR the same field on fine cells. A value is the mean of the square cell around its node.
xarray and scipy are imported where they are used, so that --help of a stage answers at once.
"""

import contextlib
import hashlib
import json
import os
import zlib
from dataclasses import astuple, dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np

import utils
from metadata import MAKE_DAYS, Period, list_period, settle_periods
from reader import UNITS, Grid, canonical, grid_of, inspect_files, ratio, read_field
from settings import YOUR_DATA, check_settings, option
from utils import DataError, stamp

TARGETS = ("interpolate", "coarsen", "paired")
SPLITS = ("train", "eval", "obj")
LR_STEPS = {"train": 1.0, "eval": 1.0, "obj": 0.4}  # degrees; default cell size of the files of each list
READER_VERSION = 6  # raise when the reader's result changes: old caches are then rebuilt

# fmt: off
__all__ = [
    "DataConfig", "LRField", "PreTransforms", "SRDataset", "area_means", "area_weights", "block_mean", "cells_of",
    "coarse_archive", "doubts", "fill_nearest", "format_region", "found_settings", "interpolate", "make_pair",
    "open_list", "parse_region", "plan_pairs", "read_lr", "refuse_tied", "say_found", "trained_on", "training_command",
    "training_configs",
]
# fmt: on


# ---------------------------------------------------------------- settings


@dataclass(frozen=True)
class DataConfig:
    """Which pairs are made: where HR comes from, the region, and the two cell sizes. Stored in every checkpoint.

    Raises: DataError: a value that is not allowed, steps whose ratio is no whole number of 2 or more, or no region.
    """

    # fmt: off
    target: str = option("interpolate", "where HR comes from: interpolate the LR file (no truth!), coarsen an HR file, "
        "or paired LR and HR files", group=YOUR_DATA, choices=TARGETS)
    region: tuple | str = option((106, 110, 26, 30), "LONW LONE LATS LATN, degrees, cell centres or cell edges, or all",
        group=YOUR_DATA, type=str, metavar="BOUND")
    lr_step: float = option(1.0, "LR cell size, degrees", group=YOUR_DATA, low=1e-3, high=180)
    hr_step: float = option(0.01, "HR cell size, degrees", group=YOUR_DATA, low=1e-3, high=180)
    units: str = option("auto", "units of files without an attribute: mm, m, cm, kg m-2, ...; auto: what stage 1 found",
        group=YOUR_DATA, choices=("auto", *UNITS), metavar="UNIT")
    # fmt: on

    def __post_init__(self):
        object.__setattr__(self, "region", parse_region(self.region))
        check_settings(self)
        scale = ratio(self.lr_step) / ratio(self.hr_step)
        if scale.denominator != 1 or scale < 2:
            raise DataError(
                f"--lr-step {self.lr_step:g} and --hr-step {self.hr_step:g}: the scale, their ratio, must be a whole "
                f"number of 2 or more, and is {float(scale):g}"
            )

    @property
    def scale(self):
        """Integer upscaling factor, lr_step / hr_step."""
        return int(ratio(self.lr_step) / ratio(self.hr_step))

    @classmethod
    def for_split(cls, split, **settings):
        """The settings of a list: LR cells of 0.4 degree for `obj`, 1 degree for `train` and `eval`, or as given."""
        if split not in SPLITS:
            raise DataError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
        return cls(**{"lr_step": LR_STEPS[split], **settings})


def parse_region(region):
    """Check a region, as typed or stored: "all" (also as a list of one), or (LONW, LONE, LATS, LATN) as floats.

    Raises: DataError: other than four numbers, or bounds that are no region on the globe.
    """
    if isinstance(region, str):
        region = region.split()
    if list(region) == ["all"]:
        return "all"
    words = f"--region {' '.join(map(str, region))}"
    try:
        west, east, south, north = map(float, region)
    except (TypeError, ValueError):
        raise DataError(f"{words}: expected LONW LONE LATS LATN, or all") from None
    if not (-180 <= west < east <= 180 and -90 <= south < north <= 90):
        raise DataError(f"{words}: expected LONW < LONE in -180..180 and LATS < LATN in -90..90")
    return west, east, south, north


# ---------------------------------------------------------------- regions


def format_region(region):
    """A region as it is typed, `106 110 26 30` or `all`."""
    return region if isinstance(region, str) else " ".join(v if v == "all" else f"{float(v):g}" for v in region)


def resolve_region(grid, config):
    """Find the LR cells that a region covers in a file's grid.

    The bounds may be cell centres of the file (these cells are included whole), its cell edges, or centres of LR cells.
    They are tried in this order, and the first meaning that gives whole LR cells is taken.

    Returns: (Grid of LR cells, what the bounds were taken for, in words).
    Raises: DataError: none gives whole LR cells (names the nearest region that does), or the file does not cover it.
    """
    step = ratio(config.lr_step)
    if config.region == "all":
        lr = grid.coarsen(step)
        if not (lr.rows and lr.cols):
            raise DataError(f"the file covers {grid.extent}, less than one cell of {config.lr_step:g} degree")
        return lr, "all"
    west, east, south, north = map(ratio, config.region)
    for words, half, lattice in (
        ("centres of the file's cells", grid.step / 2, True),
        ("edges of the file's cells", 0, True),
        (f"centres of {config.lr_step:g} degree cells", step / 2, grid.step <= step),
    ):
        rows, cols = (north - south + 2 * half) / step, (east - west + 2 * half) / step
        lr = Grid(north + half, west - half, step, int(rows), int(cols))
        on_file = all(((a - b) / grid.step).denominator == 1 for a, b in ((lr.north, grid.north), (lr.west, grid.west)))
        if rows.denominator == 1 == cols.denominator and (on_file or not lattice):
            if not grid.holds(lr):
                raise DataError(
                    f"region {format_region(config.region)} (cells over {lr.extent}) is not inside the file, which "
                    f"covers {grid.extent}; give another --region, or all"
                )
            return lr, words
    raise DataError(
        f"region {format_region(config.region)} holds no whole number of {config.lr_step:g} degree cells of a file "
        f"over {grid.extent} at {float(grid.step):g} degree; the nearest that does: --region "
        f"{nearest_region(grid, config)}, or --region all"
    )


def nearest_region(grid, config):
    """The region nearest to the one in `config` that holds whole LR cells of the file, as it is typed."""
    step, unit = ratio(config.lr_step), min(grid.step, ratio(config.lr_step))
    half = step / 2 if grid.step > step else 0  # LR cells finer than the file's: bounds are LR centres
    west, east, south, north = map(ratio, config.region)

    def fit(low, high, first, last):
        count = min(max(1, round((high - low) / step)), int((last - first) / step))
        start = first + max(0, min(round((low - first) / unit), int((last - first - count * step) / unit))) * unit
        return start + half, start + count * step - half

    return format_region((*fit(west, east, grid.west, grid.east), *fit(south, north, grid.south, grid.north)))


# ---------------------------------------------------------------- fields on other cells


def block_mean(field, factor):
    """Mean of the valid pixels of each block of factor x factor; missing where fewer than half are valid.

    Args: field (..., H, W), mm, NaN = missing; factor divides H and W.
    Returns: (..., H / factor, W / factor), mm, in the precision of `field`; sums are taken in float64.
    Raises: ValueError: a side is not a multiple of factor.
    """
    *lead, h, w = field.shape
    if h % factor or w % factor:
        raise ValueError(f"block_mean: field is {h} x {w}, not a multiple of {factor}")
    blocks = field.reshape(*lead, h // factor, factor, w // factor, factor)
    mean = blocks.mean((-3, -1), dtype="float64")
    if np.isnan(mean).any():
        share = np.isfinite(blocks).mean((-3, -1))
        total = np.nansum(blocks, (-3, -1), dtype="float64") / factor**2
        mean = np.where(share >= 0.5, total / np.maximum(share, 1e-9), np.nan)
    return mean.astype(np.result_type(field, "float32"))


def area_weights(cells, step, pixels, pixel_step):
    """Share of each cell that each pixel covers, along one axis: (n, m), whose rows are 1 in all where a cell is whole.

    Args: cells (n,) and pixels (m,): centres, degrees; step, pixel_step: their sizes.
    """
    low = np.maximum(cells[:, None] - step / 2, pixels - pixel_step / 2)
    high = np.minimum(cells[:, None] + step / 2, pixels + pixel_step / 2)
    return np.clip(high - low, 0, None) / step


def area_means(values, down, across):
    """Means (..., n, m) of values (..., H, W) by area_weights of rows and of columns; NaN where a part is missing."""
    whole = down @ np.isfinite(values) @ across.T > 1 - 1e-6
    return np.where(whole, down @ np.nan_to_num(values) @ across.T, np.nan)


@lru_cache(maxsize=64)
def _places(source, out):
    """Weights of the bilinear interpolation from grid `source` to grid `out`; the last value holds beyond the edge.

    Returns: (above, down, left, across): for each row of `out` the index of the source row above its centre, and the
        weights (H, 2) of that row and the next; for each column the index of the source column to the left, and the
        weights as a matrix (W, w), whose first column is source column left[0]. Weights are float32.
    """

    def axis(first, count, out_first, out_count):
        half, step = Fraction(1, 2), out.step / source.step
        at = [(out_first - first) / source.step + (k + half) * step - half for k in range(out_count)]
        at = np.clip(np.array(at, "float64"), 0, count - 1)
        before = np.minimum(np.floor(at).astype(int), count - 2)
        return before, np.stack([1 - (at - before), at - before], 1).astype("float32")

    above, down = axis(-source.north, source.rows, -out.north, out.rows)
    left, shares = axis(source.west, source.cols, out.west, out.cols)
    across = np.zeros((out.cols, left[-1] + 2 - left[0]), "float32")
    for k in (0, 1):
        across[np.arange(out.cols), left - left[0] + k] = shares[:, k]
    return above, down, left, across


def interpolate(field, source, out, rows=slice(None), cols=slice(None)):
    """Interpolate a field bilinearly between its cell centres; a pixel is missing where the cell around it is.

    Args: field ([M,] h, w) on grid `source`. out: finer Grid inside it. rows, cols: the part of `out` that is wanted.
    Returns: ([M,] H, W), float32, on that part.
    """
    if field.ndim > 2:
        return np.stack([interpolate(part, source, out, rows, cols) for part in field])
    above, down, left, across = _places(source, out)
    above, down, across = above[rows], down[rows], across[cols]
    top, first = above[0], left[0]
    part = np.asarray(field[top : above[-1] + 2, first : first + across.shape[1]], "float32")
    valid = np.isfinite(part)
    if valid.all():
        return _between(part, above - top, down, across)
    share = _between(valid.astype("float32"), above - top, down, across)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = _between(np.where(valid, part, 0), above - top, down, across) / share
    own = valid[above - top + (down[:, 1] > 0.5)][:, across.argmax(1)]
    return np.where(own, mean, np.nan).astype("float32")


def _between(part, above, down, across):
    """Apply the weights of _places: `down` to rows above and above + 1 of `part`, `across` to its columns.

    The output rows between the same two rows of `part` are made together: such a small matrix product stays in the
    processor's cache and in this thread.
    """
    along = part @ across.T
    made = np.empty((len(above), len(across)), "float32")
    for k, (start, end) in enumerate(pairwise(np.searchsorted(above, range(above[-1] + 2)).tolist())):
        np.matmul(down[start:end], along[k : k + 2], out=made[start:end])
    return made


def fill_nearest(field):
    """Give each missing cell the value of the nearest valid cell; 0 everywhere where no cell is valid.

    Args: field (h, w), NaN = missing. Returns: (h, w), float64.
    """
    from scipy.ndimage import distance_transform_edt

    valid = np.isfinite(field)
    if not valid.any():
        return np.zeros(field.shape)
    nearest = distance_transform_edt(~valid, return_distances=False, return_indices=True)
    return field[tuple(nearest)].astype("float64")


# ---------------------------------------------------------------- pairs


@dataclass(frozen=True)
class Plan:
    """How files on one grid become pairs: which cells are LR, which are HR, and which of them the file holds.

    source: the file's grid. lr: the LR cells of the region. hr: the HR cells of every output, which refine the LR
    cells; with region `all` they are those of the whole file, and pixels of an incomplete LR cell at its south and
    east edges are missing. kind: what the file holds, `lr`, `hr` or cells `coarser` than LR. words: what the bounds of
    the region were taken for.
    """

    source: Grid
    lr: Grid
    hr: Grid
    kind: str
    words: str
    config: DataConfig

    @property
    def interpolated(self):
        """True where HR is an interpolation of the input, so that it verifies nothing below the LR cell."""
        return self.config.target == "interpolate" and self.kind != "hr"

    @cached_property
    def core(self):
        """The HR cells under LR cells."""
        return self.lr.refine(self.config.scale)


@lru_cache(maxsize=64)
def plan_pairs(grid, config):
    """Decide how files on this grid become pairs: the Plan.

    Raises: DataError: the file's step is neither lr_step nor hr_step (nor coarser, with `interpolate`), or the region
        does not fit.
    """
    kind = {ratio(config.lr_step): "lr", ratio(config.hr_step): "hr"}.get(grid.step)
    if kind is None and grid.step > ratio(config.lr_step) and config.target == "interpolate":
        kind = "coarser"
    if kind is None:
        raise DataError(
            f"the file's step is {float(grid.step):g} degree; target {config.target} with --lr-step "
            f"{config.lr_step:g} --hr-step {config.hr_step:g} takes files at one of these two steps"
            + (" or coarser" if config.target == "interpolate" else "")
            + f"; a model for such files: {_fitting_command(grid, config)}"
        )
    lr, words = resolve_region(grid, config)
    hr = lr.refine(config.scale)
    if config.region == "all":
        hr = grid.coarsen(ratio(config.hr_step))
    return Plan(grid, lr, hr, kind, words, config)


def _fitting_command(grid, config):
    """The 2train.py command that trains a model for files of this grid: as LR if the scale is whole, else as HR."""
    step, hr = grid.step, ratio(config.hr_step)
    if step <= hr or (step / hr).denominator != 1:
        hr = step if step <= hr else step / max(2, round(step / hr))
    lr = step if step > hr else step * max(2, round(ratio(config.lr_step) / step))
    return f"python 2train.py --target {config.target} --lr-step {float(lr):g} --hr-step {float(hr):g}"


@lru_cache(maxsize=4096)
def _window(grid, other):
    """grid.window(other), kept, since training asks for it thousands of times."""
    return grid.window(other)


def lr_of(field, plan):
    """LR ([M,] h, w), mm, of a file's field: its own cells, or the block mean of HR where its cells are finer or
    coarser."""
    if plan.kind == "lr":
        return np.array(field[(..., *_window(plan.source, plan.lr))], "float32")
    if plan.kind == "hr":
        return block_mean(field[(..., *_window(plan.source, plan.core))], plan.config.scale)
    return block_mean(interpolate(field, plan.source, plan.core), plan.config.scale)


def hr_of(field, plan):
    """HR ([M,] H, W), mm, of a file's field: its own cells where they are HR, with `interpolate` interpolated, else
    None."""
    if plan.kind == "hr":
        return np.array(field[(..., *_window(plan.source, plan.hr))], "float32")
    return interpolate(field, plan.source, plan.hr) if plan.config.target == "interpolate" else None


def make_pair(tp, config):
    """Make the pair (lr, hr) of one canonical field, as DataArrays.

    Raises: DataError: the settings give this field no HR, or the region does not fit.
    """
    plan = _guarded(tp.attrs["source"], plan_pairs, grid_of(tp), config)
    hr = hr_of(tp.values, plan)
    if hr is None:
        raise _no_truth(tp.attrs["source"], plan)
    return label(lr_of(tp.values, plan), plan.lr, tp, config), label(hr, plan.hr, tp, config)


def _no_truth(name, plan):
    """The DataError for a file of LR cells where the target needs HR from files."""
    return DataError(
        f"{name}: holds {float(plan.source.step):g} degree cells, so there is no truth for target "
        f"{plan.config.target}; use files at {plan.config.hr_step:g} degree, --lr-step with a multiple of "
        f"{float(plan.source.step):g}, or target interpolate"
    )


def _no_pairs(data_folder, split):
    """The DataError for a list without truth where the target is `paired`."""
    return DataError(
        f"{data_folder}: the {split} list holds no pairs; give stage 1 --{split}-folders and --{split}-hr-folders"
    )


def label(values, grid, like, config=None):
    """Make `values` ([M,] H, W) on `grid` a DataArray `tp` with times, members, units and source of `like`."""
    import xarray as xr

    names = ("time", "forecast_reference_time", "input_member")
    coords = {name: like.coords[name] for name in names if name in like.coords}
    attrs = {key: like.attrs[key] for key in ("units", "source", "archive") if key in like.attrs}
    if config:
        attrs.update(target=config.target, scale=config.scale)
    dims = ("member", "lat", "lon")[-values.ndim :]
    return xr.DataArray(values, {"lat": grid.lat, "lon": grid.lon, **coords}, dims, "tp", attrs)


def _guarded(name, function, *args):
    """Call function(*args) and put the file's name before the message of its DataError."""
    with utils.named(name):
        return function(*args)


class PreTransforms:
    """Makes the pair of one DataArray, as SRDataset does: `lr_pre, hr_pre = PreTransforms(split="train")(pre)`.

    Args: split: train, eval or obj. settings: fields of DataConfig that differ from the split's.
    """

    def __init__(self, split, **settings):
        self.config = DataConfig.for_split(split, **settings)

    def __call__(self, pre):
        units = None if self.config.units == "auto" else self.config.units
        return make_pair(canonical(pre, pre.encoding.get("source"), units), self.config)


# ---------------------------------------------------------------- lists of files


class Archive:
    """The fields of a list, decoded once into one float32 file (the cache) that is mapped into memory.

    The name of the cache is a digest of what it was made from (path, size, modification time and units of each file),
    so a changed file makes a new cache. It is written under another name and renamed, so several processes may build it
    at once. Each field carries a checksum, which is compared when it is first used: a damaged cache is made again.

    Args: paths: list of files. units: of _units_found, or one for all. folder: where the cache is kept.
        name: what its file name begins with. periods: {path: Period} that stage 1 found or was told. members: files may
        hold ensembles (else they are refused).
    """

    def __init__(self, paths, units, folder, name, periods=None, members=False):
        self.paths, self.checked, self.periods, self.members = list(paths), set(), periods or {}, members
        self.units = _units_for(self.paths, units, members)
        files = [[p, *stamp(p), *self.units[p], str(self.periods.get(p))] for p in map(_existing, self.paths)]
        key = json.dumps([READER_VERSION, files])
        self.stem = Path(folder) / "cache" / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
        self.index, self.data = _load_cache(self.stem, len(self.paths)) or self._build()

    def _build(self):
        """Decode file by file into the cache, so that memory holds one field, however long the list is."""
        stem = self.stem
        part = utils.part_of(stem.with_suffix(".f32"))
        try:
            stem.parent.mkdir(parents=True, exist_ok=True)
            for old in stem.parent.glob(f"{stem.name.split('-')[0]}-*"):
                if old.stem != stem.name:
                    old.unlink(missing_ok=True)
            part.unlink(missing_ok=True)
            with part.open("xb") as file:  # made here, never through a link
                index = self._decode(f"decoding into {stem.parent}", file.write)
                file.flush(), os.fsync(file.fileno())  # or a crash could leave zeros under the final name
            if quicker := _load_cache(stem, len(self.paths)):  # of another process; a third may be reading it
                return quicker
            os.replace(part, stem.with_suffix(".f32"))
        except OSError as error:
            utils.log(f"no cache kept in {stem.parent}: {error}; the files are decoded again next time")
            blocks = []
            index = self._decode("decoding into memory", blocks.append)
            return index, np.frombuffer(b"".join(blocks), np.float32)
        finally:
            with contextlib.suppress(OSError):
                part.unlink()
        utils.write_json(stem.with_suffix(".json"), index)
        return _load_cache(stem, len(self.paths))

    def _decode(self, words, write):
        """Decode every file, hand its bytes to `write`, and return the index.

        Returns: for each file where its bytes begin, its grid, attributes and times, a checksum of its values, and one
            of all that; plain values.
        """
        index, offset = [], 0
        for path in utils.progress(self.paths, words):
            units, typed = self.units[path]
            how = {"period": self.periods.get(path), "members": self.members}
            tp = read_field(path, *((units,) if typed else (None, units)), **how)
            times = {k: str(tp.coords[k].values) for k in ("time", "forecast_reference_time") if k in tp.coords}
            grid = [str(v) for v in astuple(grid_of(tp))]
            labels = tp.input_member.values.tolist() if "member" in tp.dims else None
            block = np.ascontiguousarray(tp.values).tobytes()
            about = {"attrs": tp.attrs, "times": times, "members": labels, "values": zlib.crc32(block)}
            index.append({"offset": offset, "grid": grid, **about})
            index[-1]["checksum"] = _checksum(index[-1], block)
            write(block)
            offset += tp.size
        return index

    def __len__(self):
        return len(self.paths)

    @cached_property
    def grids(self):
        """The Grid of each file."""
        return [Grid(*map(Fraction, r["grid"][:3]), *map(int, r["grid"][3:])) for r in self.index]

    @cached_property
    def period(self):
        """The Period of the list, as stage 1 found it or was told; else, of a list made by hand, as its files say.

        Raises: DataError: a list that mixes periods.
        """
        records = [
            {
                "path": path,
                **{name: r["times"].get(name, "")[:16] for name in ("time", "forecast_reference_time")},
                "period": r["attrs"].get("period_hours"),
                "period_from": r["attrs"].get("period_from", ""),
            }
            for path, r in zip(self.paths, self.index, strict=True)
        ]
        records, faults = settle_periods(records)
        if faults:
            raise DataError(faults[0])
        return list_period(records)

    def values(self, i):
        """Values of file i, ([M,] H, W), float32, mm; a view of the cache."""
        grid, start, labels = self.grids[i], self.index[i]["offset"], self.index[i]["members"]
        values = self.data[start : start + grid.rows * grid.cols * len(labels or "1")]
        if i not in self.checked and _checksum(self.index[i], values) != self.index[i]["checksum"]:
            utils.log(f"{self.stem}.f32: damaged, not what was written; it is made again")
            for kind in (".json", ".f32"):
                self.stem.with_suffix(kind).unlink(missing_ok=True)
            self.index, self.data = self._build()
            self.__dict__.pop("grids", None)
            return self.values(i)
        self.checked.add(i)
        return values.reshape(grid.shape if labels is None else (len(labels), *grid.shape))

    def time(self, i):
        """The valid time of file i to the minute, as text; empty where it has none."""
        return self.index[i]["times"].get("time", "")[:16]

    def identity(self, i):
        """What identifies file i: its name, size, modification time and units, as text."""
        size, mtime_ns = stamp(self.paths[i])
        return f"{Path(self.paths[i]).name} {size} {mtime_ns} {self.index[i]['attrs']['units_in_file']}"

    def field(self, i):
        """File i as a canonical DataArray."""
        import xarray as xr

        values, record, grid = self.values(i), self.index[i], self.grids[i]
        coords = {name: np.datetime64(value, "ns") for name, value in record["times"].items()}
        if record["members"] is not None:
            coords["input_member"] = "member", record["members"]
        dims = ("member", "lat", "lon")[-values.ndim :]
        return xr.DataArray(values, {"lat": grid.lat, "lon": grid.lon, **coords}, dims, "tp", record["attrs"])


def _existing(path):
    """The path itself. Raises DataError where no such file exists."""
    if not os.path.isfile(path):
        raise DataError(
            f"{path}: is in the list but not on disk; run 1create_data_lists.py again, from the folder the list was "
            "made in"
        )
    return path


def _checksum(record, values):
    """Of a field in the cache and of what the index says of it."""
    about = json.dumps({key: value for key, value in record.items() if key != "checksum"}, sort_keys=True, default=str)
    return zlib.crc32(values, zlib.crc32(about.encode()))


def _load_cache(stem, count):
    """(index, memory map) of the cache at `stem`, or None where it does not hold `count` whole fields."""
    try:
        index = json.loads(stem.with_suffix(".json").read_text())
        data = np.memmap(stem.with_suffix(".f32"), np.float32, "r").view(np.ndarray)
        cells = [int(r["grid"][3]) * int(r["grid"][4]) * len(r["members"] or "1") for r in index if r["checksum"]]
        whole = len(cells) == count and sum(cells) == data.size
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None
    return (index, data) if whole else None


def _units_for(paths, known, members=False):
    """{path: (units, True where they were typed)} of all files: as stage 1 found them.

    Where it did not see a file as it is now all are decided anew, together, but those whose units were typed.

    Args: known: of _units_found, or units that were typed for all.
    """
    if isinstance(known, str):
        return dict.fromkeys(paths, (known, True))
    if all(path in known for path in paths):
        return known
    typed = {path: known[path] for path in paths if known.get(path, ("", False))[1]}
    records, faults = inspect_files([path for path in paths if path not in typed], members=members)
    if faults:
        raise DataError(faults[0])
    return typed | {record["path"]: (record["units"], False) for record in records}


def open_list(data_folder, split, part="lr", units="auto"):
    """Open one list of stage 1 as an Archive; part `hr` is the truth of paired entries, None where there is none."""
    entries, info = utils.read_list(data_folder, split), utils.read_info(data_folder)
    paths = [entry[part] if isinstance(entry, dict) else entry if part == "lr" else None for entry in entries]
    if None in paths:
        return None
    paths = [Path(path).as_posix() for path in paths]
    records = _records_of(info.get("files", {}), f"{split}_hr" if part == "hr" else split, paths)
    periods = {r["path"]: Period(r["period"], r["period_from"]) for r in records if r.get("period")}
    units = _units_found(records) if units == "auto" else units
    return Archive(paths, units, data_folder, f"{split}_{part}", periods, members=split == "obj")


def trained_on(dataset):
    """Which days and places a generator is trained on, for its checkpoint: plain values.

    Returns: {"digest": of the values, valid times and extents of all files, in their order, "days": {"west east south
        north" of the cells that are used, degrees: [valid time to the minute, ...]}}.
    """
    days, archives = {}, [dataset.files] if dataset.truth is None else [dataset.files, dataset.truth]
    for i, plan in enumerate(dataset.plans):
        area = " ".join(f"{edge:g}" for edge in plan.lr.edges)
        days.setdefault(area, []).append(dataset.files.time(i))
    known = [[r["values"], r["times"], r["grid"]] for archive in archives for r in archive.index]
    return {"digest": hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16], "days": days}


def _records_of(found, own, paths):
    """The records of these files in PreInfo.json; of a file in several lists that of the list `own`.

    Raises: DataError: a file that has changed since its period was typed.
    """
    records = {r["path"]: r for name in sorted(found, key=lambda name: name == own) for r in found[name]}
    records = [records[path] for path in paths if path in records]
    for record in records:
        if record.get("period_from") == "--period" and not record.get("period"):
            raise _changed(record, "period", "")
    return records


def _units_found(records):
    """{path: (units, True where they were typed)} that stage 1 found in files that are as it saw them.

    Args: records: of _records_of; a file may be in several lists, listed with other --units.
    Raises: DataError: a file that has changed since its units were typed.
    """
    for record in records:
        if record["units"] is None and record.get("units_from") == "--units":
            raise _changed(record, "units", ", or say them here with --units")
    return {r["path"]: (r["units"], r.get("units_from") == "--units") for r in records if r["units"]}


def _changed(record, what, more):
    return DataError(
        f"{record['path']}: changed since stage 1 was told its {what}; run 1create_data_lists.py again{more}"
    )


def read_lr(data_folder, split, config, region_cells=None):
    """The LR fields of a list, as LRField objects; no HR is read.

    Args: region_cells: the LR cells that the generator is tied to (see cells_of), as its checkpoint stores them; None:
        it works anywhere.
    Raises: DataError: a file that the step rule or the region refuses, before any field is decoded.
    """
    archive = open_list(data_folder, split, units=config.units)
    fields = [LRField(archive, i, plan) for i, plan in enumerate(_plans(archive, config))]
    for path, field in zip(archive.paths, fields, strict=True):
        _guarded(path, refuse_tied, field.plan.lr, region_cells)
    return fields


def refuse_tied(grid, region_cells):
    """Raise DataError where a generator is tied to other LR cells (region_cells, as cells_of; None: to none)."""
    if region_cells and cells_of(grid) != list(region_cells):
        north, west, rows, cols = region_cells
        raise DataError(
            f"the generator is tied to the region it was trained on ({rows} x {cols} cells from {north} N, {west} E), "
            f"not to {grid.extent}; leave --region out, or train without position channels"
        )


def _plans(archive, config):
    """The Plan of each file. Raises DataError, with the file's name, where one does not fit the settings."""
    return [_guarded(path, plan_pairs, grid, config) for path, grid in zip(archive.paths, archive.grids, strict=True)]


def cells_of(grid):
    """The edges and size of a grid as plain values [north, west, rows, cols], for a checkpoint tied to one region."""
    return [str(grid.north), str(grid.west), grid.rows, grid.cols]


class LRField:
    """One LR field of a list: its index in the list, its Plan, and its values when they are asked for.

    in_training: a model that is used for it was trained on it. correction: a function that corrects its bias, with an
    `identity`, or None.
    """

    in_training, correction = False, None

    def __init__(self, archive, index, plan):
        self.archive, self.index, self.plan = archive, index, plan

    @property
    def identity(self):
        """What identifies the field: its file (see Archive.identity) and the cells that are taken, as text."""
        words = f" {self.correction.identity}" if self.correction else ""
        return f"{self.archive.identity(self.index)} {self.plan.lr} {self.plan.hr}{words}"

    def seen(self, trained):
        """True where cells of this field, at its time, are among those of `trained_on`."""
        time = self.archive.time(self.index)
        areas = [([float(edge) for edge in area.split()], times) for area, times in trained.get("days", {}).items()]
        return any(time in times and utils.overlap(self.plan.lr.edges, edges) for edges, times in areas)

    def values(self):
        """The field as a DataArray `tp` ([member,] lat, lon), mm, corrected where there is a correction."""
        return self.correction(self.raw()) if self.correction else self.raw()

    def raw(self):
        """The field as its file has it, as `values`."""
        return label(lr_of(self.archive.values(self.index), self.plan), self.plan.lr, self.archive.field(self.index))


class SRDataset:
    """The (lr, hr) pairs of one list of stage 1; a map-style dataset, which torch's DataLoader takes as it is.

    Args: data_folder: where the lists are. split: train, eval or obj. dataarray: give DataArrays instead of arrays.
        settings: fields of DataConfig that differ from the split's (target, region, lr_step, hr_step, units).
    Item: (lr (h, w), hr (H, W)), float32, mm, north first, NaN = missing.
    """

    LINES = 12  # rows and columns of a rectangle that are sampled to estimate its mean rain

    def __init__(self, data_folder, split, dataarray=False, **settings):
        self.config, self.dataarray, self.split = DataConfig.for_split(split, **settings), dataarray, split
        self.data_folder, self.files = data_folder, open_list(data_folder, split, units=self.config.units)
        self.truth = open_list(data_folder, split, "hr", self.config.units)
        if self.config.target == "paired" and self.truth is None:
            raise _no_pairs(data_folder, split)
        if self.truth is not None:
            words = f"{data_folder}: LR files of the {split} list", "their truth"
            _same_period(words, self.files.period, self.truth.period)
        self.plans = _plans(self.files, self.config)

    def __len__(self):
        return len(self.files)

    def identity(self, i):
        """What identifies pair i: its files and how they become a pair, as text."""
        files = [self.files] if self.truth is None else [self.files, self.truth]
        return f"{' '.join(archive.identity(i) for archive in files)} {self.plans[i]}"

    def _truth(self, i, grid):
        """HR of file i on `grid`, a view of what a file holds; None where HR is an interpolation of LR."""
        plan = self.plans[i]
        if self.truth is not None:
            return self.truth.values(i)[_guarded(self.truth.paths[i], _window, self.truth.grids[i], grid)]
        if plan.kind == "hr":
            return self.files.values(i)[(..., *_window(plan.source, grid))]
        if self.config.target != "interpolate":
            raise _no_truth(self.files.paths[i], plan)
        return None

    def hr(self, i):
        """HR of file i on plan.hr, (H, W), float32, mm."""
        plan, values = self.plans[i], self._truth(i, self.plans[i].hr)
        if values is None:
            return interpolate(self.files.values(i), plan.source, plan.hr)
        return np.array(values, "float32")

    def crop(self, i, rows, cols):
        """HR of file i on these rows and columns of plan.core, float32, mm; may be a view.

        Args: rows, cols: slices, or, where HR is an interpolation, also arrays of pixel numbers.
        """
        plan, values = self.plans[i], self._truth(i, self.plans[i].core)
        if values is None:
            return interpolate(self.files.values(i), plan.source, plan.core, rows, cols)
        return values[rows, cols]

    def amounts(self, i, rows, cols, sides):
        """Estimate the mean rain of rectangles in plan.core, mm, from some LINES rows and columns of each.

        Args: i: file. rows, cols (n,): their north-west pixels. sides: (height, width), pixels.
        Returns: (n,); NaN where a pixel that was looked at is missing.
        """
        values = self._truth(i, self.plans[i].core)
        down, across = (np.arange(0, side, max(1, side // self.LINES)) for side in sides)
        if values is None:
            return np.array([self.crop(i, r + down, c + across).mean() for r, c in zip(rows, cols, strict=True)])
        return values[(rows[:, None] + down)[:, :, None], (cols[:, None] + across)[:, None]].mean((1, 2))

    def lr(self, i):
        """LR of file i on plan.lr, (h, w), float32, mm."""
        return lr_of(self.files.values(i), self.plans[i])

    def __getitem__(self, i):
        plan = self.plans[i]
        lr, hr = self.lr(i), self.hr(i)
        if not self.dataarray:
            return lr, hr
        like = self.files.field(i)
        return label(lr, plan.lr, like, self.config), label(hr, plan.hr, like, self.config)


def _same_period(names, one, other):
    """Raise DataError where two lists hold rain of different Periods; `names` are theirs in the message."""
    if one.differs(other):
        raise DataError(
            f"{names[0]} hold rain of {one.words}, {names[1]} of {other.words}; expected one period: list files of "
            f"the same period, make days of them with {MAKE_DAYS}, or, where the files are wrong, give stage 1 --period"
        )


def doubts(dataset, count=12):
    """What speaks against the truth of pairs, in words: amounts of another size, or rain that is elsewhere.

    Block means of the truth are compared with LR of the same time on some pairs. Where the truth of the next or of the
    last pair of the list, or turned upside down or left to right, resembles LR more, one of the two is wrong.
    """
    if dataset.truth is None or len(dataset) < 3:
        return
    scale, cells = dataset.config.scale, {}
    for i in np.unique(np.linspace(1, len(dataset) - 2, count).astype(int)).tolist():
        core, lr = dataset.plans[i].core, dataset.lr(i)
        if not dataset.plans[i - 1].core == core == dataset.plans[i + 1].core:
            continue
        before, own, after = (block_mean(dataset._truth(k, core), scale) for k in (i - 1, i, i + 1))
        kinds = {"": own, "of the pair before": before, "of the next pair": after}
        kinds |= {"turned upside down": own[::-1], "turned left to right": own[:, ::-1]}
        for words, truth in kinds.items():
            cells.setdefault(words, []).append(np.log1p(np.stack([lr, truth]).reshape(2, -1)))
    joined = {words: np.concatenate(parts, 1) for words, parts in cells.items()}
    joined = {words: both[:, np.isfinite(both).all(0)] for words, both in joined.items()}
    if not joined or min(both.shape[1] for both in joined.values()) < 30:
        return
    lr, truth = np.expm1(joined[""]).mean(1)
    if not 1 / 3 < truth / max(lr, 1e-9) < 3:
        yield f"the truth of some pairs has a mean of {truth:.3g} mm where LR has {lr:.3g} mm: units, or a period?"
    with np.errstate(invalid="ignore", divide="ignore"):
        alike = {words: float(np.corrcoef(both)[0, 1]) for words, both in joined.items()}
    best = max(alike, key=lambda words: np.nan_to_num(alike[words]))
    if alike[best] > np.nan_to_num(alike[""]) + 0.1:
        yield (
            f"LR resembles the truth {best} (correlation {alike[best]:.2f}) more than the truth of its own time and "
            f"place ({alike['']:.2f}): are times and directions of both right?"
        )


def coarse_archive(folder, dataset, grid):
    """The SRDataset of another archive, whose files have the step of the coarser grid of training.

    Args: folder: its lists of stage 1. dataset: SRDataset of the training. grid: pixels along an LR cell at the coarser
        grid; 0 or False: this training has no coarse steps, or static fields.
    Raises: DataError: no such grid, or files that do not fit.
    """
    if not grid:
        raise DataError(
            f"--set coarse_archive={folder}: this training makes no coarse steps, or has static fields or "
            "predictors, which the archive has not; leave it out"
        )
    lr_step = dataset.config.lr_step
    settings = {"lr_step": lr_step, "hr_step": float(f"{lr_step / grid:.9g}")}
    archive = SRDataset(folder, "train", target="coarsen", region="all", **settings)
    words = f"--set coarse_archive={folder}: its files", "those of the training"
    _same_period(words, archive.files.period, dataset.files.period)
    return archive


# ---------------------------------------------------------------- settings that the files decide


def training_configs(data_folder, typed):
    """The DataConfig of each model to train: what was typed, completed by what stage 1 found, which is said.

    With `interpolate` and no LR step one model for each step of the evaluation days and forecasts, else of the
    training days.

    Args: typed: fields of DataConfig that were given.
    Raises: DataError: all that is missing, with a whole command that would do.
    """
    target, hr_step = typed.get("target", DataConfig.target), typed.get("hr_step", DataConfig.hr_step)
    if target == "paired" and any(isinstance(entry, str) for entry in utils.read_list(data_folder, "train")):
        raise _no_pairs(data_folder, "train")
    found, extent = found_settings(data_folder, "train", typed)
    coarser = [step for name in ("eval", "obj") for step in _steps(data_folder, name) if step > hr_step]
    if target == "interpolate" and "lr_step" not in typed and coarser:
        found.pop("lr_step", None)
        steps = sorted(set(coarser), reverse=True)
    elif "lr_step" in typed | found and (target != "paired" or "hr_step" in typed | found):
        steps = [(typed | found)["lr_step"]]
    else:
        raise _what_is_missing(data_folder, typed, found)
    say_found(data_folder, "train", found, extent)
    return [DataConfig(**{**typed, **found, "lr_step": step}) for step in steps]


def training_command(data_folder, split):
    """The 2train.py command that trains a model for the files of a list, in words where stage 1 must run first."""
    where = "" if Path(data_folder) == Path(utils.JSON_FOLDER) else f" --data-folder {data_folder}"
    train, grid = _steps(data_folder, "train"), open_list(data_folder, split).grids[0]
    step, fine = float(grid.step), train[0] if train and train[0] < float(grid.step) else DataConfig.hr_step
    target = "coarsen" if step <= fine or fine in train else "interpolate"  # the training files are truth, or not
    command = _fitting_command(grid, DataConfig(target, lr_step=100 * fine, hr_step=fine))
    words = "" if train else " (with training days, which 1create_data_lists.py --train-folders lists)"
    return command.replace("2train.py", f"2train.py{where}") + words


def found_settings(data_folder, split, typed):
    """What the files of a list decide among the settings that were not typed, where they allow one answer only.

    The files' step is hr_step with `coarsen`, lr_step with `interpolate`; with `paired` LR and truth give one each.
    Where the default region is not inside the files the region is `all`.

    Returns: (fields of DataConfig, extent of files that do not hold the default region or None).
    """
    target, found = typed.get("target", DataConfig.target), {}
    low, high = (steps[0] if len(steps := _steps(data_folder, name)) == 1 else 0 for name in (split, f"{split}_hr"))
    if target == "paired":
        found = {"lr_step": low, "hr_step": high}
    elif target == "coarsen" and low < typed.get("lr_step", 180 if split == "train" else LR_STEPS[split]):
        found = {"hr_step": low}
    elif target == "interpolate" and low > typed.get("hr_step", DataConfig.hr_step):
        found = {"lr_step": low}
    found = {name: step for name, step in found.items() if step and name not in typed}
    if "region" in typed:
        return found, None
    west, east, south, north = DataConfig.region
    grids = open_list(data_folder, split, units=typed.get("units", "auto")).grids
    inside = (g.west <= west and east <= g.east and g.south <= south and north <= g.north for g in grids)
    extent = next((grid.extent for grid, held in zip(grids, inside, strict=True) if not held), None)
    return found | ({"region": "all"} if extent else {}), extent


def say_found(data_folder, split, found, extent):
    """Print what found_settings decided, where it is not the default, as options, and why the region is another."""
    default = DataConfig.for_split(split)
    if found := {name: value for name, value in found.items() if value != getattr(default, name)}:
        why = f" (they cover {extent}, not the default region {format_region(DataConfig.region)})" if extent else ""
        utils.log(f"from the files of {Path(data_folder) / utils.LISTS[split]}: {_typed(found)}{why}")


def _what_is_missing(data_folder, typed, found):
    """The DataError that names every setting that 2train.py lacks, and a command that would do."""
    settings, holds = {"target": DataConfig.target} | typed | found, []
    for name, words in (("train", "files"), ("train_hr", "truth")):
        if steps := _steps(data_folder, name):
            holds.append(f"{words} of {', '.join(f'{step:g}' for step in steps)} degree")
    hr_step = settings.get("hr_step", DataConfig.hr_step)
    names = ["--lr-step, the LR cell size in degrees"] * ("lr_step" not in settings)
    if settings["target"] == "paired" and "hr_step" not in settings:
        names.append("--hr-step, the HR cell size in degrees")
    elif settings["target"] == "interpolate" and max(_steps(data_folder, "train"), default=180) <= hr_step:
        settings["target"], hr_step = "coarsen", max(_steps(data_folder, "train"))
        holds.append("none coarser to interpolate: coarsen takes them as truth")
    scales = {step: ratio(step) / ratio(hr_step) for step in (*LR_STEPS.values(), 4 * hr_step)}
    step = next(step for step, scale in scales.items() if scale.denominator == 1 and 2 <= scale <= 100)
    example = {"target": settings["target"], "lr_step": step} | settings
    if names[1:] or "hr_step" in typed:
        example["hr_step"] = hr_step
    elif "hr_step" in found:
        del example["hr_step"]
    try:
        resolve_region(open_list(data_folder, "train").grids[0], DataConfig(**example | {"hr_step": hr_step}))
    except DataError:
        example["region"] = "all"
    where = "" if Path(data_folder) == Path(utils.JSON_FOLDER) else f" --data-folder {data_folder}"
    return DataError(
        f"--target {settings['target']} needs {' and '.join(names)}; {Path(data_folder) / utils.LISTS['train']} holds "
        f"{', '.join(holds) or 'files whose step stage 1 did not write down'}; for example\n"
        f"  python 2train.py{where} {_typed(example)}"
    )


def _steps(data_folder, name):
    """The cell sizes that PreInfo.json says of the files of a list, degrees."""
    records = utils.read_info(data_folder).get("files", {}).get(name, [])
    return sorted({record["step"] for record in records if record.get("step")})


def _typed(settings):
    """Fields of DataConfig as the options that are typed for them."""
    words = {name: format_region(v) if name == "region" else v for name, v in settings.items()}
    return " ".join(
        f"--{name.replace('_', '-')} {f'{v:g}' if isinstance(v, float) else v}" for name, v in words.items()
    )
