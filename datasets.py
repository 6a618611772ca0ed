"""Files, units, grids and pairs: everything between a NetCDF file on disk and an (lr, hr) pair.

Reads    any NetCDF file of precipitation on a regular (lat, lon) grid, the JSON lists and PreInfo.json of stage 1.
Writes   only its cache of decoded fields, {data_folder}/cache/*.f32.

    from datasets import SRDataset
    lr, hr = SRDataset("Data/JsonPath", split="eval")[0]      # (5, 5) and (500, 500), mm, north first

Cells, not points: a value is the mean of the square cell around its node. Grids are exact fractions of a degree;
floats appear only in the coordinates that are written.
"""

import contextlib
import hashlib
import inspect
import json
import os
import re
from dataclasses import astuple, dataclass, replace
from fractions import Fraction
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path

import cftime
import numpy as np
import torch
import xarray as xr

import utils
from utils import DataError

TARGETS = ("interpolate", "coarsen", "paired")
SPLITS = ("train", "eval", "obj")
LR_STEPS = {"train": 1.0, "eval": 1.0, "obj": 0.4}  # degrees, what each split holds unless told otherwise
READER_VERSION = 2  # raise when the reader's result changes: old caches are then rebuilt


__all__ = [
    "DataConfig",
    "Grid",
    "PreTransforms",
    "SRDataset",
    "Windows",
    "add_data_options",
    "block_mean",
    "data_options",
    "inspect_files",
    "make_pair",
    "plan_pairs",
    "format_region",
    "read_field",
    "read_lr",
]


# ---------------------------------------------------------------- settings


@dataclass(frozen=True)
class DataConfig:
    """What one pair is: where HR comes from, which region, which two steps (degrees). Stored in every checkpoint."""

    target: str = "interpolate"
    region: tuple | str = (106.0, 110.0, 26.0, 30.0)  # LONW LONE LATS LATN, or "all"
    lr_step: float = 1.0
    hr_step: float = 0.01
    units: str = "auto"

    def __post_init__(self):
        if self.target not in TARGETS:
            raise DataError(f"target {self.target!r}: expected one of {', '.join(TARGETS)}")
        if self.units not in ("auto", *UNITS):
            raise DataError(f"units {self.units!r}: expected auto or one of {', '.join(UNITS)}")
        if not all(1e-3 <= step <= 180 for step in (self.lr_step, self.hr_step)):
            raise DataError(f"lr step {self.lr_step:g} and hr step {self.hr_step:g}: expected 0.001 to 180 degrees")
        if (ratio(self.lr_step) / ratio(self.hr_step)).denominator != 1:
            raise DataError(f"lr step {self.lr_step:g} over hr step {self.hr_step:g}: the scale must be a whole number")
        if self.scale < 2:
            raise DataError(f"lr step {self.lr_step:g} and hr step {self.hr_step:g}: the scale must be 2 or more")
        if self.region != "all":
            west, east, south, north = map(float, self.region)
            if not (-180 <= west < east <= 180 and -90 <= south < north <= 90):
                raise DataError(
                    f"region {format_region(self.region)}: expected LONW < LONE in -180..180 and LATS < LATN"
                )
            object.__setattr__(self, "region", (west, east, south, north))

    @property
    def scale(self):
        """Integer upscaling factor, lr_step / hr_step."""
        return int(ratio(self.lr_step) / ratio(self.hr_step))

    @classmethod
    def for_split(cls, split, **settings):
        """The configuration of a split: `obj` is 0.4 degree, `train` and `eval` 1 degree, unless lr_step is given."""
        if split not in SPLITS:
            raise DataError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
        settings = {key: value for key, value in settings.items() if value is not None}
        return cls(**{"lr_step": LR_STEPS[split], **settings})


def add_data_options(parser, lr_words):
    """The fields of DataConfig as options: --target, --region, --lr-step (lr_words: its default), --hr-step, --units."""
    config = DataConfig()
    parser.add_argument(
        "--target",
        choices=TARGETS,
        default=config.target,
        help="where HR comes from: interpolate the LR file (no truth!), coarsen an HR file, or paired LR and HR files "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--region",
        nargs="+",
        default=config.region,
        metavar="BOUND",
        help=f"LONW LONE LATS LATN in degrees, cell centres or cell edges, or all (default: {format_region(config.region)})",
    )
    parser.add_argument("--lr-step", type=float, metavar="X", help=f"LR cell size, degrees (default: {lr_words})")
    parser.add_argument(
        "--hr-step",
        type=float,
        metavar="X",
        default=config.hr_step,
        help="HR cell size, degrees (default: %(default)s)",
    )
    parser.add_argument(
        "--units",
        metavar="UNIT",
        default=config.units,
        help="units of files without an attribute: mm, m, cm, kg m-2, ... (default: %(default)s, what stage 1 found)",
    )


def data_options(args):
    """What add_data_options took, as fields of DataConfig; lr_step is None where it was not typed."""
    typed = {name: getattr(args, name) for name in ("target", "lr_step", "hr_step", "units")}
    return {**typed, "region": utils.parse_region(args.region)}


# ---------------------------------------------------------------- grids


def format_region(region):
    """`106 110 26 30`, as it is typed."""
    return region if isinstance(region, str) else " ".join(f"{float(v):g}" for v in region)


def resolve_region(grid, config):
    """The LR cells that a region names in a file's grid.

    Bounds may be cell centres of the file (the cells named are included whole), its cell edges, or centres of LR cells,
    tried in this order; the first that holds whole LR cells wins.

    Returns: (Grid of LR cells, how the bounds were read).
    Raises: DataError: none fits (names the nearest region that does), or the file does not cover it.
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
                    f"region {format_region(config.region)} (cells over {lr.extent}) is not inside the file, which covers "
                    f"{grid.extent}; give another --region, or all"
                )
            return lr, words
    raise DataError(
        f"region {format_region(config.region)} holds no whole number of {config.lr_step:g} degree cells of a file over "
        f"{grid.extent} at {float(grid.step):g} degree; the nearest that does: --region {nearest_region(grid, config)}"
    )


def nearest_region(grid, config):
    """Bounds near the given ones that hold whole LR cells of the file, as typed."""
    step, unit = ratio(config.lr_step), min(grid.step, ratio(config.lr_step))
    half = step / 2 if grid.step > step else 0  # below the file's step only LR centres are read
    west, east, south, north = map(ratio, config.region)

    def fit(low, high, first, last):
        count = min(max(1, round((high - low) / step)), int((last - first) / step))
        start = first + max(0, min(round((low - first) / unit), int((last - first - count * step) / unit))) * unit
        return start + half, start + count * step - half

    return format_region((*fit(west, east, grid.west, grid.east), *fit(south, north, grid.south, grid.north)))


# ---------------------------------------------------------------- the one reader


# ---------------------------------------------------------------- units and values


# ---------------------------------------------------------------- pairs


def block_mean(field, factor):
    """Mean of the valid pixels of factor x factor blocks; missing where fewer than half are valid.

    Args: field (..., H, W), mm, NaN = missing; factor divides H and W.
    Returns: (..., H / factor, W / factor), mm, in the precision of `field`.
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


@dataclass(frozen=True)
class Plan:
    """How files on one grid become pairs. `kind` is what the file is: `lr`, `hr`, or `coarser` than LR.

    `hr` is the grid of every output: the LR cells refined, or with region `all` the whole file, where pixels of an
    incomplete LR cell at the south and east edges are missing.
    """

    source: Grid
    lr: Grid
    hr: Grid
    kind: str
    words: str
    config: DataConfig

    @property
    def origin(self):
        """(row, column) of the first LR cell, counted from the pole and from 180 W: the same cell whatever the region."""
        return int((90 - self.lr.north) / self.lr.step), int((self.lr.west + 180) / self.lr.step)

    @cached_property
    def core(self):
        """The HR cells under LR cells."""
        return self.lr.refine(self.config.scale)


@lru_cache(maxsize=64)
def plan_pairs(grid, config):
    """The Plan of a file's grid under the step rule.

    Raises: DataError: the file's step is neither lr_step nor hr_step (nor coarser, with `interpolate`), or the region
        does not fit.
    """
    kind = {ratio(config.lr_step): "lr", ratio(config.hr_step): "hr"}.get(grid.step)
    if kind is None and grid.step > ratio(config.lr_step) and config.target == "interpolate":
        kind = "coarser"
    if kind is None:
        raise DataError(
            f"the file's step is {float(grid.step):g} degree; target {config.target} with --lr-step {config.lr_step:g} --hr-step "
            f"{config.hr_step:g} takes files at one of these two steps"
            + (" or coarser" if config.target == "interpolate" else "")
            + f"; a model for such files: {_fitting_command(grid, config)}"
        )
    lr, words = resolve_region(grid, config)
    hr = lr.refine(config.scale)
    if config.region == "all":
        hr = grid.coarsen(ratio(config.hr_step))
    return Plan(grid, lr, hr, kind, words, config)


def _fitting_command(grid, config):
    """The 2train.py command of a model that takes files of this grid: as LR where a whole scale allows it, else as HR."""
    step, hr = grid.step, ratio(config.hr_step)
    if step <= hr or (step / hr).denominator != 1:
        hr = step if step <= hr else step / max(2, round(step / hr))
    lr = step if step > hr else step * max(2, round(ratio(config.lr_step) / step))
    return f"python 2train.py --target {config.target} --lr-step {float(lr):g} --hr-step {float(hr):g}"


@lru_cache(maxsize=4096)
def _window(grid, other):
    """grid.window(other), remembered: windows are drawn by the thousand."""
    return grid.window(other)


@lru_cache(maxsize=64)
def _places(source, out):
    """Where the cell centres of `out` lie between those of `source`, the last value held beyond the edge.

    Returns: (above, down, left, across): for rows the index of the centre before each, and float32 weights (H, 2) of it
        and the next; for columns the index, and the weights as a matrix (W, w) from the first index on.
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
    """Bilinear interpolation between cell centres; a pixel is missing where the cell that holds it is.

    Args: field (h, w) on grid `source`. out: Grid inside it. rows, cols: the part of `out` to make.
    Returns: (H, W) float32 on that part.
    """
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
    """`part` at `down` between its rows above and above + 1, and at `across` between its columns.

    Strip by strip of the rows between the same two: so small a product stays in the processor's cache and in this thread.
    """
    along = part @ across.T
    made = np.empty((len(above), len(across)), "float32")
    for k, (start, end) in enumerate(pairwise(np.searchsorted(above, range(above[-1] + 2)).tolist())):
        np.matmul(down[start:end], along[k : k + 2], out=made[start:end])
    return made


def lr_of(field, plan):
    """LR (h, w), mm: the file's own nodes, or the block mean of HR where the file is finer or coarser than LR."""
    if plan.kind == "lr":
        return np.array(field[_window(plan.source, plan.lr)], "float32")
    if plan.kind == "hr":
        return block_mean(field[_window(plan.source, plan.core)], plan.config.scale)
    return block_mean(interpolate(field, plan.source, plan.core), plan.config.scale)


def hr_of(field, plan):
    """HR (H, W), mm, on plan.hr: the file itself where it is HR, its interpolation with `interpolate`, else None."""
    if plan.kind == "hr":
        return np.array(field[_window(plan.source, plan.hr)], "float32")
    return interpolate(field, plan.source, plan.hr) if plan.config.target == "interpolate" else None


def make_pair(tp, config):
    """(lr, hr) DataArrays of one canonical field. Raises DataError where the settings give it no HR."""
    plan = _guarded(tp.attrs["source"], plan_pairs, grid_of(tp), config)
    hr = hr_of(tp.values, plan)
    if hr is None:
        raise DataError(
            f"{tp.attrs['source']}: holds {float(plan.source.step):g} degree cells, so there is no truth for target {config.target}; "
            "use target interpolate, or files at the HR step"
        )
    return label(lr_of(tp.values, plan), plan.lr, tp, config), label(hr, plan.hr, tp, config)


def label(values, grid, like, config=None):
    """`values` on `grid` as a DataArray `tp` with the times and the source of `like`."""
    times = {name: like.coords[name] for name in ("time", "forecast_reference_time") if name in like.coords}
    attrs = {key: like.attrs[key] for key in ("units", "source", "archive") if key in like.attrs}
    if config:
        attrs.update(target=config.target, scale=config.scale)
    return xr.DataArray(values, {"lat": grid.lat, "lon": grid.lon, **times}, ("lat", "lon"), "tp", attrs)


def _guarded(name, function, *args):
    """function(*args), its DataError led by the file's name."""
    try:
        return function(*args)
    except DataError as error:
        raise DataError(f"{name}: {error}") from None


class PreTransforms:
    """The pair of one DataArray, as the dataset gives it: `lr_pre, hr_pre = PreTransforms(split="train")(pre)`.

    Args: split: train, eval or obj. settings: fields of DataConfig that differ from the split's.
    """

    def __init__(self, split, **settings):
        self.config = DataConfig.for_split(split, **settings)

    def __call__(self, pre):
        units = None if self.config.units == "auto" else self.config.units
        return make_pair(canonical(pre, pre.encoding.get("source"), units), self.config)


# ---------------------------------------------------------------- lists of files


class Archive:
    """The fields of a list, decoded once into one memory-mapped float32 file.

    The file's name is a digest of what it was made from (path, size, modification time, units), so a changed file
    makes a new cache; it is written beside and renamed, so several processes may build it at once.

    Args: paths: list of files. units: {path: units} of PreInfo.json. folder: where the cache lives.
    """

    def __init__(self, paths, units, folder, name):
        self.paths = list(paths)
        units = _units_for(self.paths, units)
        key = json.dumps(
            [
                READER_VERSION,
                [[p, *_stamp(p), units[p]] for p in map(_existing, self.paths)],
            ]
        )
        stem = Path(folder) / "cache" / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
        self.index, self.data = _load_cache(stem, len(self.paths)) or self._build(stem, units)

    def _build(self, stem, units):
        """Decode file by file straight into the cache: memory holds one field, however long the list."""
        part = utils.part_of(stem.with_suffix(".f32"))
        try:
            stem.parent.mkdir(parents=True, exist_ok=True)
            for old in stem.parent.glob(f"{stem.name.split('-')[0]}-*"):
                if old.stem != stem.name:
                    old.unlink(missing_ok=True)
            with part.open("wb") as file:
                index = self._decode(units, f"decoding into {stem.parent}", file.write)
                file.flush(), os.fsync(file.fileno())  # or a crash could leave zeros under the final name
            quicker = _load_cache(
                stem, len(self.paths)
            )  # another process made it, and others may be reading it on a shared disk
            if quicker:
                return quicker
            os.replace(part, stem.with_suffix(".f32"))
        except OSError as error:
            utils.log(f"no cache kept in {stem.parent}: {error}; the files are decoded again next time")
            blocks = []
            index = self._decode(units, "decoding into memory", blocks.append)
            return index, np.frombuffer(b"".join(blocks), np.float32)
        finally:
            with contextlib.suppress(OSError):
                part.unlink()
        utils.write_json(stem.with_suffix(".json"), index)
        return _load_cache(stem, len(self.paths))

    def _decode(self, units, words, write):
        """Give each field's bytes to `write`; returns the index: where each begins, its grid, attributes and times."""
        index, offset = [], 0
        for path in utils.progress(self.paths, words):
            tp = read_field(path, units[path])
            times = {k: str(tp.coords[k].values) for k in ("time", "forecast_reference_time") if k in tp.coords}
            grid = [str(v) for v in astuple(grid_of(tp))]
            index.append({"offset": offset, "grid": grid, "attrs": tp.attrs, "times": times})
            write(np.ascontiguousarray(tp.values).tobytes())
            offset += tp.size
        return index

    def __len__(self):
        return len(self.paths)

    @cached_property
    def grids(self):
        """One Grid a file."""
        return [Grid(*map(Fraction, r["grid"][:3]), *map(int, r["grid"][3:])) for r in self.index]

    def values(self, i):
        """(H, W) float32, mm, a view on the cache."""
        grid, start = self.grids[i], self.index[i]["offset"]
        return self.data[start : start + grid.rows * grid.cols].reshape(grid.shape)

    def identity(self, i):
        """File i in words: name, size, date and the units it is read in."""
        size, mtime_ns = _stamp(self.paths[i])
        return f"{Path(self.paths[i]).name} {size} {mtime_ns} {self.index[i]['attrs']['units_in_file']}"

    def field(self, i):
        """File i as a canonical DataArray."""
        record, grid = self.index[i], self.grids[i]
        times = {name: np.datetime64(value, "ns") for name, value in record["times"].items()}
        return xr.DataArray(
            self.values(i), {"lat": grid.lat, "lon": grid.lon, **times}, ("lat", "lon"), "tp", record["attrs"]
        )


def _existing(path):
    if not os.path.isfile(path):
        raise DataError(
            f"{path}: is in the list but not on disk; run 1create_data_lists.py again, from the folder the list was made in"
        )
    return path


def _load_cache(stem, count):
    """(index, memory map) of a complete cache of so many files, else None."""
    try:
        index = json.loads(stem.with_suffix(".json").read_text())
        data = np.memmap(stem.with_suffix(".f32"), np.float32, "r").view(np.ndarray)
        whole = len(index) == count and sum(int(r["grid"][3]) * int(r["grid"][4]) for r in index) == data.size
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None
    return (index, data) if whole else None


def _units_for(paths, known):
    """{path: units}: as stage 1 found them; of files it did not see, decided here from all."""
    if isinstance(known, str):
        return dict.fromkeys(paths, known)
    if all(path in known for path in paths):
        return known
    records, faults = inspect_files(paths)
    if faults:
        raise DataError(faults[0])
    return {record["path"]: record["units"] for record in records} | known


def open_list(data_folder, split, part="lr", units="auto"):
    """The Archive of one list of stage 1; part `hr` is the truth of paired entries, None where the list has none."""
    entries, info = utils.read_list(data_folder, split), utils.read_info(data_folder)
    paths = [entry[part] if isinstance(entry, dict) else entry if part == "lr" else None for entry in entries]
    if None in paths:
        return None
    found = info.get("files", {})
    own = (
        f"{split}_hr" if part == "hr" else split
    )  # last: a file in several lists may have been listed with other --units
    records = [r for key in sorted(found, key=lambda key: key == own) for r in found[key] if r["units"]]
    known = {r["path"]: r["units"] for r in records if not _rewritten(r)}
    return Archive(
        [Path(p).as_posix() for p in paths], known if units == "auto" else units, data_folder, f"{split}_{part}"
    )


def _rewritten(record):
    """True where a file whose attribute said its units is no longer the file that stage 1 saw."""
    if record.get("units_from") != "attribute" or not os.path.isfile(
        record["path"]
    ):  # an absent one is told where it is opened
        return False
    return (record.get("size"), record.get("mtime_ns")) != _stamp(record["path"])


def read_lr(data_folder, split, config, state=None):
    """The LR fields of a list, as LRField objects, and nothing else: HR ends here.

    Args: state: the checkpoint, where its generator may be tied to one region.
    Raises: DataError: a file that the step rule or the region refuses, before the first is made.
    """
    archive = open_list(data_folder, split, units=config.units)
    plans = [_guarded(path, plan_pairs, grid, config) for path, grid in zip(archive.paths, archive.grids, strict=True)]
    tied = (state or {}).get("region_cells")
    for path, plan in zip(archive.paths, plans, strict=True):
        if tied and cells_of(plan.lr) != list(tied):
            raise DataError(
                f"{path}: the generator is tied to the region it was trained on ({tied[2]} x {tied[3]} cells from {tied[0]} N, "
                f"{tied[1]} E), not to {plan.lr.extent}; leave --region out, or train without position channels"
            )
    return [LRField(archive, i, plan) for i, plan in enumerate(plans)]


def cells_of(grid):
    """A grid in plain values, as a checkpoint that is tied to one region keeps it."""
    return [str(grid.north), str(grid.west), grid.rows, grid.cols]


class LRField:
    """One LR field of a list, decoded when it is asked for: index, plan, values() -> DataArray."""

    def __init__(self, archive, index, plan):
        self.archive, self.index, self.plan = archive, index, plan

    @property
    def identity(self):
        """What the field is made from, in words: file, its size, date and units, and the LR cells taken."""
        return f"{self.archive.identity(self.index)} {self.plan.lr} {self.plan.hr}"

    def values(self):
        return label(lr_of(self.archive.values(self.index), self.plan), self.plan.lr, self.archive.field(self.index))


class SRDataset(torch.utils.data.Dataset):
    """Pairs of one list of stage 1.

    Args: data_folder: where the lists are. split: train, eval or obj. dataarray: give DataArrays instead of arrays.
        settings: fields of DataConfig that differ from the split's (target, region, lr_step, hr_step, units).
    Item: (lr (h, w), hr (H, W)), float32, mm, north first, NaN = missing.
    """

    LINES = 12  # looked at each way to judge how wet a place is

    def __init__(self, data_folder, split, dataarray=False, **settings):
        self.config, self.dataarray, self.split = DataConfig.for_split(split, **settings), dataarray, split
        self.files = open_list(data_folder, split, units=self.config.units)
        self.truth = open_list(data_folder, split, "hr", self.config.units)
        if self.config.target == "paired" and self.truth is None:
            raise DataError(
                f"{data_folder}: the {split} list holds no pairs; give stage 1 --{split}-folders and --{split}-hr-folders"
            )
        self.plans = [
            _guarded(p, plan_pairs, g, self.config) for p, g in zip(self.files.paths, self.files.grids, strict=True)
        ]

    def __len__(self):
        return len(self.files)

    def identity(self, i):
        """What pair i is made from, in words."""
        files = [self.files] if self.truth is None else [self.files, self.truth]
        return f"{' '.join(archive.identity(i) for archive in files)} {self.plans[i]}"

    def _truth(self, i, grid):
        """HR of file i on `grid`, as a view where a file holds it, else None (it is then an interpolation)."""
        plan = self.plans[i]
        if self.truth is not None:
            return self.truth.values(i)[_guarded(self.truth.paths[i], _window, self.truth.grids[i], grid)]
        if plan.kind == "hr":
            return self.files.values(i)[_window(plan.source, grid)]
        if self.config.target != "interpolate":
            raise DataError(
                f"{self.files.paths[i]}: holds {float(plan.source.step):g} degree cells, so there is no truth for target "
                f"{self.config.target}; use files at {self.config.hr_step:g} degree, or target interpolate"
            )
        return None

    def hr(self, i):
        """HR of file i on plan.hr, float32 (H, W)."""
        plan, values = self.plans[i], self._truth(i, self.plans[i].hr)
        return (
            interpolate(self.files.values(i), plan.source, plan.hr) if values is None else np.array(values, "float32")
        )

    def crop(self, i, rows, cols):
        """HR of file i on these rows and columns of the LR cells' area, plan.core (slices; pixel numbers where it is interpolated);
        float32, maybe a view."""
        plan, values = self.plans[i], self._truth(i, self.plans[i].core)
        return (
            interpolate(self.files.values(i), plan.source, plan.core, rows, cols)
            if values is None
            else values[rows, cols]
        )

    def amounts(self, i, rows, cols, sides):
        """Mean rain of rectangles in plan.core, mm, from some dozen lines each way; NaN where a pixel looked at is missing.

        Args: i: file. rows, cols (n,): their north-west pixels. sides: (height, width), pixels. Returns: (n,).
        """
        values = self._truth(i, self.plans[i].core)
        down, across = (np.arange(0, side, max(1, side // self.LINES)) for side in sides)
        if values is None:
            return np.array([self.crop(i, r + down, c + across).mean() for r, c in zip(rows, cols, strict=True)])
        return values[(rows[:, None] + down)[:, :, None], (cols[:, None] + across)[:, None]].mean((1, 2))

    def lr(self, i):
        """LR of file i on plan.lr, float32 (h, w)."""
        return lr_of(self.files.values(i), self.plans[i])

    def __getitem__(self, i):
        plan = self.plans[i]
        lr, hr = self.lr(i), self.hr(i)
        if not self.dataarray:
            return lr, hr
        like = self.files.field(i)
        return label(lr, plan.lr, like, self.config), label(hr, plan.hr, like, self.config)


# ---------------------------------------------------------------- training windows


class Windows:
    """Random training windows of a dataset: LR is the block mean of HR, no pixel is missing.

    The trunk of the network sees a whole window of LR cells; HR is given for a crop of it, so a step holds many
    independent pieces of rain. Every draw depends on (seed, step, sample) alone: a resumed run, and any number of
    processes, see the same windows. Places are drawn among `CANDIDATES` random ones by the root of their crop's mean: by
    what the network is given, never by how wet HR is, which would bend p(HR | LR). Each sample's `weight` takes that
    chance out again (importance sampling): heavy rain is seen more often, and no single storm rules a step.
    Held out for validation (`part="valid"`): the last days of a long list, else the easternmost columns.

    Args: dataset: SRDataset. sides: (smallest, largest) side of a window in LR cells, rows and columns drawn each step;
        None: the whole region. crop: side of the crop in LR cells, 0 for the whole window. valid_share: share held
        out. wet: choose wet places. turn: turn and flip. amounts: largest factor on the amounts (1: none).
    """

    CANDIDATES, LONG_LIST = 48, 20

    def __init__(
        self, dataset, *, sides=None, crop=0, part="train", valid_share=0.1, wet=True, turn=True, amounts=1.0, seed=0
    ):
        self.dataset, self.sides, self.crop, self.part, self.wet = dataset, sides, crop, part, wet
        self.turn, self.amounts, self.seed, self.scale = turn, amounts, seed, dataset.config.scale
        count = len(dataset)
        by_time = count >= self.LONG_LIST
        held = max(1, round(count * valid_share)) if valid_share and by_time else 0
        self.files = range(count - held, count) if held and part == "valid" else range(count - held)
        self.strip = valid_share if not by_time and sides is not None else 0.0
        self.smallest = tuple(min(getattr(p.lr, side) for p in dataset.plans) for side in ("rows", "cols"))

    def batch(self, step, size, first=0, count=None):
        """Samples first .. first + count of the `size` samples of a step.

        Returns: dict of lr (n, 1, h, w), hr (n, 1, H, W), mm, float32; box (r0, r1, c0, c1), the crop in LR cells that
            hr covers; weight (n,), what each sample's loss counts; source, the files' names.
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
        if self.turn:
            lr, hr, box = _turned(lr, hr, box, rng)
        weight = np.array([pair[3] for pair in drawn], np.float32)
        return {"lr": lr, "hr": hr, "box": box, "weight": weight, "source": [pair[2] for pair in drawn]}

    def _draw(self, step, sample, shape, box):
        """(lr, hr of the crop, file name) of one sample."""
        rng, s = np.random.default_rng([self.seed, step, self.part == "valid", sample]), self.scale
        top, bottom, left, right = (n * s for n in box)
        for _ in range(100):
            files, rows, cols = self._places(rng, shape, self.CANDIDATES if self.wet else 1)
            amounts = np.empty(len(files))
            for i in np.unique(files):
                amounts[files == i] = self.dataset.amounts(
                    i, rows[files == i] + top, cols[files == i] + left, (bottom - top, right - left)
                )
            weights = np.nan_to_num(self._chance(amounts))
            if weights.sum() == 0:
                continue
            chosen = rng.choice(len(files), p=weights / weights.sum())
            i, r, c = int(files[chosen]), int(rows[chosen]), int(cols[chosen])
            window = self.dataset.crop(i, slice(r, r + shape[0] * s), slice(c, c + shape[1] * s))
            lines = window.reshape(shape[0], s, -1).sum(1)  # whole rows first: quicker than block by block
            means = lines.reshape(*shape, s).sum(2) / s**2  # NaN where a pixel is missing
            lr = means if self.dataset.truth is None else self.dataset.lr(i)[r // s :, c // s :][: shape[0], : shape[1]]
            if np.isfinite(means).all() and np.isfinite(lr).all():
                factor = np.float32(self.amounts ** rng.uniform(-1, 1))
                source = Path(self.dataset.files.paths[i]).name
                hr = window[top:bottom, left:right] * factor
                return lr * factor, hr, source, self._chance(0.5) / self._chance(hr.mean()) if self.wet else 1.0
        raise DataError(
            f"no window of {shape[0]} x {shape[1]} LR cells without missing pixels in the {self.dataset.split} list; "
            "expected larger gap-free areas, or smaller windows, for example --window 2 3"
        )

    def _chance(self, amount):
        """Relative chance of a place with this mean, mm; dry ones are seldom looked at."""
        return np.sqrt(amount) + 0.01

    def _places(self, rng, shape, count):
        """(files, first rows, first columns), arrays: random windows of LR cells, at any pixel where HR is real."""
        files, draws = rng.choice(self.files, count), rng.random((count, 2))
        rooms = {i: self._room(i, shape) for i in np.unique(files).tolist()}
        rows, first, columns, unit = np.array([rooms[i] for i in files.tolist()]).T
        return files, (draws[:, 0] * rows).astype(int) * unit, (first + (draws[:, 1] * columns).astype(int)) * unit

    def _room(self, i, shape):
        """Where windows of file i may begin: (rows to choose from, first column, columns to choose from, unit in pixels)."""
        plan = self.dataset.plans[i]
        unit = 1 if plan.kind == "hr" else self.scale
        height, width, rows, cols = (n * self.scale // unit for n in (*plan.lr.shape, *shape))
        first, last, edge = 0, width - cols, int(width * (1 - self.strip))
        if self.strip:
            first, last = (min(edge, last), last) if self.part == "valid" else (0, max(0, min(last, edge - cols)))
        return height - rows + 1, first, last - first + 1, unit


def _turned(lr, hr, box, rng):
    """A batch turned and flipped at random, its box with it: rain has no preferred direction at these scales."""
    r0, r1, c0, c1 = box
    h, w = lr.shape[-2:]
    if rng.random() < 0.5:
        lr, hr, (c0, c1) = lr[..., ::-1], hr[..., ::-1], (w - c1, w - c0)
    if rng.random() < 0.5:
        lr, hr, (r0, r1) = lr[..., ::-1, :], hr[..., ::-1, :], (h - r1, h - r0)
    if rng.random() < 0.5:
        lr, hr, (r0, r1, c0, c1) = lr.swapaxes(-1, -2), hr.swapaxes(-1, -2), (c0, c1, r0, r1)
    return np.ascontiguousarray(lr), np.ascontiguousarray(hr), (r0, r1, c0, c1)
