"""What two or more stages share: messages, lists, training helpers, checkpoints, NetCDF output, scores and pictures.

Reads and writes  Data/JsonPath/*.json, Data/SavedModels/*.pth, NN_pre_*.nc, scores.csv and PNG pictures. Imports none of ours.

    from utils import load_checkpoint
    state = load_checkpoint("Data/SavedModels/pre_srgan_x100.pth")
"""

import argparse
import contextlib
import csv
import functools
import hashlib
import io
import itertools
import json
import os
import shutil
import signal
import sys
import textwrap
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import netCDF4
import numpy as np
import scipy.fft
import scipy.ndimage
import torch
import xarray as xr
from matplotlib import colormaps, colors
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator
from scores.continuous import additive_bias, correlation, rmse
from scores.probability import crps_for_ensemble
from tqdm import tqdm

VERSION = "0.1.0"
CHECKPOINT_FORMAT = 2
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
# One rain scale for every map, mm: of days, and of accumulations of an hour or less. Dry is white, missing grey, and
# the colours (viridis, reversed) are read the same with every colour vision and in print.
DAILY, SHORT = (0.1, 1, 2, 5, 10, 25, 50, 100, 250), (0.02, 0.1, 0.2, 0.5, 1, 2, 5, 10, 25, 50)
STYLES = {
    "observed": ("black", "-"),
    "nearest": ("#999999", ":"),
    "bilinear": ("#E69F00", "--"),
    "bicubic": ("#56B4E9", "--"),
    "quantile-matched bilinear": ("#CC79A7", "-."),
    "RainFARM": ("#009E73", "-"),
    "ensemble mean": ("#0072B2", "--"),
    "one member": ("#0072B2", ":"),
    "ensemble": ("#D55E00", "-"),
}
MATCHED = "quantile-matched bilinear"
LISTS = {"train": "PreTrain.json", "eval": "PreEval.json", "obj": "PreObj.json"}
INFO = "PreInfo.json"
JSON_FOLDER = "Data/JsonPath"  # where the lists are unless told otherwise
LOG_EVERY = 60  # seconds between the lines of long work in a batch log
MANY = 10**9  # the largest seed, and more than any other whole number that is typed needs
SUFFIXES = (".nc", ".nc4", ".cdf")  # of the files that stage 1 looks at, in small or capital letters

__all__ = [
    "DAILY",
    "MANY",
    "QQ_LEVELS",
    "SHORT",
    "AverageMeter",
    "Damaged",
    "DataError",
    "NetCDFWriter",
    "QuantileMatcher",
    "ScoreTable",
    "add_data_arguments",
    "adjust_learning_rate",
    "check_match",
    "choose_outputs",
    "clip_gradient",
    "close_up",
    "compare_cells",
    "compare_forecasts",
    "create_data_lists",
    "default_checkpoint",
    "digest",
    "digest_of",
    "downscale_args",
    "downscale_list",
    "fair_crps",
    "field_times",
    "find_checkpoint",
    "format_table",
    "histogram",
    "histogram_quantile",
    "levels_for",
    "load_checkpoint",
    "log",
    "lsd",
    "netcdf_files",
    "open_checkpoint",
    "pair_cells",
    "part_of",
    "parse_region",
    "plot_maps",
    "plot_qq",
    "plot_scores",
    "plot_sites",
    "plot_windows",
    "previous_checkpoint",
    "progress",
    "rainfarm",
    "rapsd",
    "read_info",
    "reading",
    "read_list",
    "read_output",
    "run_stage",
    "sal",
    "save_checkpoint",
    "save_figure",
    "score_outputs",
    "set_aside",
    "upsample",
    "wet_windows",
    "when",
    "whole_file",
    "whole_number",
    "write_field",
    "write_json",
    "write_scores",
    "writing",
]


# ---------------------------------------------------------------- messages


class DataError(ValueError):
    """Something the person at the terminal can mend: says where, what was found, what was expected and what to do."""


class Damaged(DataError):
    """A checkpoint that is missing, cut short or overwritten: the one before it may stand in."""


def run_stage(main):
    """Run a script's main: its faults become one line on stderr and an exit code, never a traceback; SIGTERM and SIGUSR1
    (a scheduler's) end it as Ctrl-C does, with what is half written removed, and 128 + the signal's number."""
    sys.stdout.reconfigure(errors="backslashreplace")  # names of files in a terminal that cannot show them
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    try:
        sys.exit(main())
    except DataError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error.filename or 'output'}: {error.strerror or error}")
    except KeyboardInterrupt:
        sys.exit(130)


def log(*words):
    """A line of progress on stdout, at once (batch logs are read while they grow); a reader that is gone ends no run."""
    try:
        print(*words, flush=True)
    except BrokenPipeError:  # `| tee`, which the same Ctrl-C ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def when(time):
    """A time in words, to the minute; a day without its midnight."""
    return str(time)[:16].removesuffix("T00:00")


def progress(items, words, total=None):
    """Items with a progress bar on a terminal; in a batch log with a line a minute, and none for short work."""
    if items is None or sys.stderr.isatty():
        return tqdm(items, desc=words, total=total, dynamic_ncols=True, leave=False, disable=not sys.stderr.isatty())
    return _spoken(items, words)


def _spoken(items, words):
    """Items, and a line of the log where a minute has gone by since the last."""
    began = said = time.monotonic()
    for done, item in enumerate(items):
        if time.monotonic() - said > LOG_EVERY:
            said = time.monotonic()
            log(f"{words}: {done} of {len(items)} after {(said - began) / 60:.1f} min")
        yield item


# ---------------------------------------------------------------- whole files


@contextlib.contextmanager
def whole_file(path):
    """A path to write beside `path`; renamed to it when the block ends well, removed when it does not.

    Raises: DataError: no folder can be made there, no file be written, or the disk is full.
    """
    path = Path(path)
    part = part_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        part.touch()
        yield part
        with part.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(part, path)
    except OSError as error:
        if error.filename is not None and Path(os.fsdecode(error.filename)) not in (part, path, *path.parents):
            raise  # of something that was read
        raise DataError(f"{path}: cannot be written ({_full(path) or error.strerror or error}); {_KEPT}") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def part_of(path):
    """Where this process writes what is to become `path`: a name that tells whose it is once the process is killed."""
    return path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.part")


@contextlib.contextmanager
def writing(path):
    """What netCDF4 and torch make of a disk that takes no more becomes a DataError that names the file."""
    try:
        yield
    except RuntimeError as error:
        words = (str(error).splitlines() or [""])[0][:120]
        raise DataError(f"{path}: cannot be written ({_full(path) or words}); {_KEPT}") from None


def _full(path):
    """Words for a full disk, which NetCDF reports as anything but that; "" where there is room."""
    folder = next((folder for folder in Path(path).absolute().parents if folder.is_dir()), "/")
    return "No space left on device" if shutil.disk_usage(folder).free < 2**20 else ""


_KEPT = "a file of that name from before is as it was. Make room, or write elsewhere"


@functools.cache
def _sweep(folder):
    """Remove what killed processes left in a folder: those of this machine that are no more; of others after a day."""
    for part in folder.glob(".*.part"):
        node, _, pid = part.name.removesuffix(".part").rpartition(".")
        with contextlib.suppress(OSError):
            here = node.endswith(f".{os.uname().nodename}") and pid.isdigit()
            if not _alive(int(pid)) if here else time.time() - part.stat().st_mtime > 86400:
                part.unlink()


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    return True


def write_json(path, content):
    """JSON, whole or not at all. Names of files that are not UTF-8 are kept by escapes, which JSON reads back."""
    with whole_file(path) as part:
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        part.write_bytes(text.encode("utf-8", "backslashreplace"))


# ---------------------------------------------------------------- lists


def create_data_lists(
    train_folders=(),
    eval_folders=(),
    output_folder="Data/JsonPath",
    obj_folders=(),
    train_hr_folders=(),
    eval_hr_folders=(),
    *,
    min_size=2,
    inspect=None,
    skip_bad=False,
):
    """Write the JSON lists of stage 1 and PreInfo.json, in date order.

    Args: *_folders: folders of NetCDF files; a list without folders is not written. *_hr_folders: truth, paired with the
        LR days by time. min_size: files whose grid has fewer rows or columns are left out and named. inspect: callable
        paths -> (records, faults), datasets.inspect_files in stage 1; None: only names and header sizes are looked at.
        skip_bad: leave bad files out instead of refusing.
    Returns: PreInfo's content, with `left_out` (messages) and `unpaired`.
    Raises: DataError: folders without files, bad files (unless skip_bad), no pair.
    """
    folders = {"train": train_folders, "eval": eval_folders, "obj": obj_folders}
    truths = {"train": train_hr_folders, "eval": eval_hr_folders, "obj": ()}
    try:
        info = {"files": {}, "folders": {}, **read_info(output_folder), "left_out": []}
    except DataError as error:
        log(f"{error} (what it said of other lists is lost)")
        info = {"files": {}, "folders": {}, "left_out": []}
    look = functools.partial(
        _inspect_folders, inspect=inspect, min_size=min_size, skip_bad=skip_bad, left_out=info["left_out"]
    )
    entries = {}
    for split in LISTS:
        if folders[split]:
            entries[split] = _list_split(split, folders[split], truths[split], look, info)
        elif truths[split]:
            raise DataError(f"--{split}-hr-folders needs --{split}-folders: the LR days that the truth is paired with")
    for split, paths in entries.items():
        write_json(Path(output_folder) / LISTS[split], paths)
    write_json(Path(output_folder) / INFO, info)
    return info


def _list_split(split, folders, truths, look, info):
    """Entries of one list; what was found goes into `info`. look: folders -> records."""
    records = look(folders)
    info["files"][split], info["folders"][split] = records, [Path(f).as_posix() for f in folders]
    info["files"].pop(f"{split}_hr", None)
    if not truths:
        return [record["path"] for record in records]
    truth = info["files"][f"{split}_hr"] = look(truths)
    entries = _pair_by_time(records, truth, split)
    paired = {path for pair in entries for path in pair.values()}
    info["left_out"] += [
        f"{r['path']}: no partner of its time ({r['time']})" for r in (*records, *truth) if r["path"] not in paired
    ]
    return entries


def _inspect_folders(folders, *, inspect, min_size, skip_bad, left_out):
    """Records of the NetCDF files in the folders; faults are raised together or, with skip_bad, added to left_out."""
    paths = []
    for folder in folders:
        if not Path(folder).is_dir():
            raise DataError(f"{folder}: no such folder")
        inside, others = netcdf_files(folder)
        also = f"{', '.join(others[:5])}{' ...' if len(others) > 5 else ''}"
        if not inside:
            raise DataError(f"{folder}: holds no .nc file" + (f" (only {also})" if others else ""))
        if others:
            left_out.append(f"{folder}: {len(others)} that are not named {', '.join(SUFFIXES)}: {also}")
        paths += [p.as_posix() for p in inside]
    records, faults = (inspect or inspect_headers)(paths)
    if faults and not skip_bad:
        shown = "\n  ".join(faults[:20]) + (f"\n  and {len(faults) - 20} more" if len(faults) > 20 else "")
        raise DataError(
            f"{len(faults)} of {len(paths)} files cannot be used (leave them out with --skip-bad):\n  {shown}"
        )
    small = [r for r in records if min(r["rows"], r["cols"]) < min_size]
    left_out += faults + [
        f"{r['path']}: {r['rows']} x {r['cols']} cells, fewer than --min-size {min_size}" for r in small
    ]
    records = [r for r in records if r not in small]
    if not records:
        raise DataError(
            f"{', '.join(map(str, folders))}: no usable file" + "".join(f"\n  {words}" for words in left_out[:20])
        )
    return records


def netcdf_files(folder):
    """(paths that are named as NetCDF, names of what else is there) of a folder, hidden files and subfolders' files aside."""
    there = sorted(p for p in Path(folder).iterdir() if not p.name.startswith("."))
    inside = [p for p in there if p.suffix.lower() in SUFFIXES]
    return inside, [p.name for p in there if p not in inside]


def inspect_headers(paths):
    """Records (path, rows, cols; no time, no units) from the headers alone, for lists made outside stage 1."""
    records, faults = [], []
    for path in paths:
        try:
            with netCDF4.Dataset(path) as file:
                rows, cols = sorted((len(d) for d in file.dimensions.values()), reverse=True)[1::-1]
            records.append({"path": path, "rows": rows, "cols": cols, "time": "", "units": None})
        except (OSError, ValueError) as error:
            faults.append(f"{path}: cannot be read as a NetCDF grid ({error})")
    return records, faults


def _pair_by_time(records, truth, split):
    """[{"lr": path, "hr": path}] of the times that both have."""
    by_time = {}
    for record in truth:
        if by_time.setdefault(record["time"], record["path"]) != record["path"]:
            raise DataError(
                f"{split}: two truths of {record['time']}: {by_time[record['time']]} and {record['path']}; expected one, take one away"
            )
    pairs = [{"lr": r["path"], "hr": by_time[r["time"]]} for r in records if r["time"] in by_time]
    if not pairs:
        raise DataError(
            f"{split}: no LR file and truth share a time (LR {records[0]['time']} to {records[-1]['time']}, "
            f"truth {truth[0]['time']} to {truth[-1]['time']})"
        )
    return pairs


def read_list(data_folder, split):
    """Entries of one list of stage 1: paths, or {"lr": path, "hr": path}.

    Raises: DataError: no such list (names stage 1), or not a list of paths.
    """
    path = Path(data_folder) / LISTS[split]
    if not path.is_file():
        where = "" if Path(data_folder) == Path(JSON_FOLDER) else f" --output-folder {data_folder}"
        raise DataError(
            f"{path}: no such list; run 1create_data_lists.py{where} first, with files in Data/Data{split.title()} or --{split}-folders"
        )
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error}); run 1create_data_lists.py again") from None
    fine = (
        isinstance(entries, list)
        and entries
        and all(
            isinstance(e, str) or isinstance(e, dict) and isinstance(e.get("lr"), str) and isinstance(e.get("hr"), str)
            for e in entries
        )
    )
    if not fine or len({isinstance(e, dict) for e in entries}) != 1:
        raise DataError(
            f'{path}: expected a JSON array of paths, or of {{"lr": path, "hr": path}}; run 1create_data_lists.py again'
        )
    paths = [path for e in entries for path in (e.values() if isinstance(e, dict) else [e])]
    windows = next((p for p in paths if "\\" in p and not os.path.exists(p)), None)
    if windows:
        raise DataError(
            f"{path}: holds a Windows path ({windows}); expected forward slashes: run 1create_data_lists.py again on this machine"
        )
    return entries


def read_info(data_folder):
    """PreInfo.json as stage 1 wrote it; empty where there is none (hand-made lists)."""
    path = Path(data_folder) / INFO
    try:
        info = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error}); run 1create_data_lists.py again") from None
    files = info.get("files", {}) if isinstance(info, dict) else None
    if not (isinstance(files, dict) and all(isinstance(records, list) for records in files.values())) or not all(
        isinstance(r, dict)
        and isinstance(r.get("path"), str)
        and isinstance(r.get("step", 1), (int, float))
        and "units" in r
        for records in files.values()
        for r in records
    ):
        raise DataError(f"{path}: not what 1create_data_lists.py writes; run it again")
    return info


# ---------------------------------------------------------------- training helpers


class AverageMeter:
    """The latest value and the running mean of a quantity: val, avg, sum, count."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.val, self.avg, self.sum, self.count = 0.0, 0.0, 0.0, 0

    def update(self, val, n=1):
        """Add a mean `val` over `n` samples."""
        self.val = val
        self.sum += val * n
        self.count += n
        self.avg = self.sum / self.count


def clip_gradient(optimizer, grad_clip):
    """Clamp every gradient of an optimiser to [-grad_clip, grad_clip], in place."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad.clamp_(-grad_clip, grad_clip)


def adjust_learning_rate(optimizer, shrink_factor):
    """Multiply the learning rate of every group of an optimiser by `shrink_factor`."""
    for group in optimizer.param_groups:
        group["lr"] *= shrink_factor


# ---------------------------------------------------------------- checkpoints


def save_checkpoint(path, state):
    """A checkpoint of plain tensors and plain Python: written beside, read back, then renamed; the one before it stays
    as `{path}.previous` until the next."""
    path = Path(path)
    with whole_file(path) as part:
        with writing(path):
            torch.save({"format": CHECKPOINT_FORMAT, "version": VERSION, **state}, part)
        load_checkpoint(part)
        if path.exists():
            previous = previous_checkpoint(path)
            previous.unlink(missing_ok=True)
            try:
                os.link(path, previous)
            except OSError:  # a file system without hard links: until the new one is in place, the previous stands in
                os.replace(path, previous)


def previous_checkpoint(path):
    """Where save_checkpoint keeps the one before."""
    return Path(f"{path}.previous")


def load_checkpoint(path, map_location="cpu"):
    """The dict of save_checkpoint.

    Raises: Damaged: no such file, or not the bytes that were written. DataError: not a checkpoint of this program, code
        inside, or another format.
    """
    path = Path(path)
    if path.is_dir():
        raise DataError(f"{path}: a folder; expected a checkpoint or export, a file that 2train.py writes")
    if not path.is_file():
        raise Damaged(f"{path}: no such checkpoint; 2train.py makes it")
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not look at the checksums
            broken = archive.testzip()
    except PermissionError:
        raise
    except Exception as error:  # a damaged directory of the archive raises many kinds
        broken = (str(error).splitlines() or ["empty"])[0][:160]
    if broken:
        raise Damaged(
            f"{path}: not a checkpoint that can be loaded: cut short, overwritten, or another kind of file ({broken})"
        )
    try:
        state = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # zip, pickle and storage faults each raise their own kind
        raise DataError(
            f"{path}: not a checkpoint that can be loaded safely ({(str(error).splitlines() or ['empty'])[0][:160]}); "
            "expected plain tensors and settings, as 2train.py writes them"
        ) from None
    if not isinstance(state, dict) or state.get("format") != CHECKPOINT_FORMAT:
        found = state.get("format", "none") if isinstance(state, dict) else type(state).__name__
        raise DataError(
            f"{path}: checkpoint format {found}, expected {CHECKPOINT_FORMAT}; train again with this version of 2train.py"
        )
    return state


def open_checkpoint(path):
    """(path, state) of a checkpoint; where it is missing or damaged, of the one before it, saying so.

    Raises: DataError: as load_checkpoint, also of the one before it.
    """
    previous = previous_checkpoint(path)
    try:
        return Path(path), load_checkpoint(path)
    except Damaged as error:
        if not previous.is_file():
            raise
        try:
            state = load_checkpoint(previous)
        except DataError as other:
            raise DataError(f"{error}; nor can the one before it: {other}; train again, without --resume") from None
        log(f"{error}; taking the one before it, {previous}")
        return previous, state


@contextlib.contextmanager
def reading(path):
    """What goes wrong inside with the contents of a checkpoint becomes a DataError that names it."""
    try:
        yield
    except DataError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        words = " ".join((str(error).splitlines() or [""])[:3])[:240]
        raise DataError(
            f"{path}: not a whole checkpoint of this version ({type(error).__name__}: {words}); expected what 2train.py writes"
        ) from None


def default_checkpoint(target, scale, folder="Data/SavedModels"):
    """Where 2train.py keeps the model of a target and scale, and stages 3 and 4 look for it."""
    return Path(folder) / (f"pre_srgan_x{scale}.pth" if target == "interpolate" else f"pre_srgan_{target}_x{scale}.pth")


def digest(path):
    """First 16 hex digits of a file's SHA-256."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def find_checkpoint(rank, name, folder="Data/SavedModels", *, given=None):
    """(path, state) of the checkpoint that is given, else of the one in `folder` that fits a list best; says so where
    several do.

    Args: rank: callable state -> how well it fits (0 best), raising DataError where it does not. name: the list.
    Raises: DataError: none fits, with the reason of each.
    """
    if given:
        return open_checkpoint(given)
    fitting, reasons = [], []
    kept = {Path(str(path).removesuffix(".previous")) for path in Path(folder).glob("pre_srgan*_x*.pth*")}
    for path in sorted(path for path in kept if path.suffix == ".pth"):
        try:
            with reading(path):
                found, state = open_checkpoint(path)
                fitting.append((rank(state), found.name, found, state))
        except DataError as error:
            reasons.append(f"{path.name}: {error}")
    if not fitting:
        raise DataError(
            f"no checkpoint in {folder} fits the {name} list"
            + "".join(f"\n  {words}" for words in reasons or ["it holds none"])
            + "\n  train one with 2train.py, or name another with --checkpoint"
        )
    fitting.sort(key=lambda found: found[:2])
    if len(fitting) > 1:
        log(
            f"{len(fitting)} checkpoints fit the {name} list; taking {fitting[0][1]}, choose another with --checkpoint: "
            + ", ".join(found[1] for found in fitting[1:])
        )
    return fitting[0][2:]


# ---------------------------------------------------------------- NetCDF output


class NetCDFWriter:
    """A CF-1.11 file of `tp`, written in pieces, whole or not at all.

    Args: path. lat, lon: cell centres. times: {"time": datetime64, "forecast_reference_time": datetime64}. members: None
        for tp(lat, lon), N for tp(member, lat, lon). attrs: global attributes.
    Use: `with NetCDFWriter(...) as out: out.put(values, rows, cols)`; what is never put is missing.
    """

    def __init__(self, path, lat, lon, times, members=None, **attrs):
        self.path, self.lat, self.lon, self.times, self.members, self.attrs = (
            Path(path),
            lat,
            lon,
            times,
            members,
            attrs,
        )

    def __enter__(self):
        with writing(self.path), contextlib.ExitStack() as stack:
            part = stack.enter_context(whole_file(self.path))
            self.file = stack.enter_context(netCDF4.Dataset(part, "w"))
            self._describe()
            self.stack = stack.pop_all()
        return self

    def _describe(self):
        """Attributes, coordinates, and `tp` itself."""
        about = {"Conventions": "CF-1.11", "history": f"written by precipitation downscaling {VERSION}", **self.attrs}
        self.file.setncatts({key: value for key, value in about.items() if value not in (None, "")})
        shape = {"lat": len(self.lat), "lon": len(self.lon)}
        chunks = [min(512, n) for n in shape.values()]
        if self.members:
            shape, chunks = {"member": self.members, **shape}, [1, *chunks]
        for name, size in shape.items():
            self.file.createDimension(name, size)
        self._coordinates()
        packing = {"zlib": True, "complevel": 2, "shuffle": True, "chunksizes": chunks}
        self.tp = self.file.createVariable("tp", "f4", tuple(shape), fill_value=np.float32(np.nan), **packing)
        self.tp.setncatts(
            {
                "units": "mm",
                "standard_name": "lwe_thickness_of_precipitation_amount",
                "long_name": "precipitation accumulation",
                "cell_methods": "area: mean" + (" time: sum" if "time" in self.times else ""),
            }
        )
        if self.times:
            self.tp.coordinates = " ".join(self.times)

    def _coordinates(self):
        """Cell centres, members and times, each with its attributes."""
        for name, direction, standard, axis in (("lat", "north", "latitude", "Y"), ("lon", "east", "longitude", "X")):
            words = {"standard_name": standard, "long_name": f"{standard} of cell centre", "axis": axis}
            self._variable(name, "f8", (name,), getattr(self, name), units=f"degrees_{direction}", **words)
        if self.members:
            words = {"standard_name": "realization", "long_name": "ensemble member"}
            self._variable("member", "i4", ("member",), np.arange(self.members), units="1", **words)
        for name, value in self.times.items():
            seconds = np.datetime64(value, "s") - np.datetime64("1900-01-01T00:00:00", "s")
            words = {"standard_name": name, "long_name": name.replace("_", " ")}
            self._variable(
                name,
                "f8",
                (),
                seconds / np.timedelta64(1, "s"),  # whole, so read back to the second; hours would round 0.4 h
                units="seconds since 1900-01-01 00:00:00",
                calendar="standard",
                units_metadata="leap_seconds: unknown",
                **words,
                **({"axis": "T"} if name == "time" else {}),
            )

    def _variable(self, name, kind, dims, values, **attrs):
        variable = self.file.createVariable(name, kind, dims)
        variable[...] = values
        variable.setncatts(attrs)

    def put(self, values, rows=slice(None), cols=slice(None)):
        """Values ([member,] h, w) of these rows and columns."""
        with writing(self.path):
            self.tp[(Ellipsis, rows, cols)] = values

    def __exit__(self, *error):
        with writing(self.path):
            return self.stack.__exit__(*error)


def field_times(tp):
    """{"time": ..., "forecast_reference_time": ...}, those that a DataArray carries."""
    return {name: tp.coords[name].values for name in ("time", "forecast_reference_time") if name in tp.coords}


def write_field(path, tp, **attrs):
    """One DataArray `tp` ([member,] lat, lon) as CF-1.11 NetCDF4; its attributes and `attrs` become global ones."""
    members = tp.sizes.get("member")
    kept = {key: value for key, value in tp.attrs.items() if key != "units"}
    with NetCDFWriter(path, tp.lat.values, tp.lon.values, field_times(tp), members, **{**kept, **attrs}) as out:
        out.put(tp.values)


def finished(path, request):
    """True where `path` is a whole output made by the same request (the digest of everything that shaped it). Its values
    are read, for compressed ones carry a checksum."""
    try:
        with netCDF4.Dataset(path) as file:
            same = getattr(file, "request", None) == request
            for row in range(0, file["tp"].shape[-2] if same else 0, 512):
                file["tp"][..., row : row + 512, :]
            return same
    except Exception:  # damage shows as many kinds; the file is made anew, and this one moved aside
        return False


def choose_outputs(out, requests, known, overwrite, derived=()):
    """Which outputs of a run are to be made: those that are not there whole from the same request, or all of them.

    What stands in their place, and what a longer earlier list left, is first moved to Historical_Records; with it
    what was derived from all of them.

    Args: out: folder. requests: {file name: request} of this shard. known: {pattern: file names} of the whole list.
        derived: names of score tables and folders of pictures.
    Returns: set of file names.
    """
    out = Path(out)
    todo = {name for name, request in requests.items() if overwrite or not finished(out / name, request)}
    stale = {path.name for kind, names in known.items() for path in out.glob(kind) if path.name not in names}
    moved = [out / name for name in sorted(todo | stale) if (out / name).exists()]
    set_aside(moved + [out / name for name in derived] if moved else [])
    if len(todo) < len(requests):
        log(
            f"{len(requests) - len(todo)} of {len(requests)} outputs in {out} are whole and of this request: kept "
            "(--overwrite makes them anew)"
        )
    return todo


def set_aside(paths, records="Data/DataResults/Historical_Records"):
    """Move earlier results of another run (files, folders) to {records}/{folder}_{time}/, keeping their names."""
    paths = [Path(p) for p in paths if Path(p).exists()]
    if paths:
        name = f"{paths[0].resolve().parent.name}_{time.strftime('%Y%m%d_%H%M%S')}_{os.getpid()}"
        target = next(
            t for k in itertools.count() if not (t := Path(records) / (f"{name}_{k}" if k else name)).exists()
        )
        target.mkdir(parents=True)
        for path in paths:
            with contextlib.suppress(FileNotFoundError):  # another shard moved it
                shutil.move(path, target / path.name, copy_function=_copy)  # also to another disk
        log(f"moved {len(paths)} earlier results to {target}")


def _copy(source, target):
    with whole_file(target) as part:
        shutil.copy2(source, part)


# ---------------------------------------------------------------- what stages have in common


def add_data_arguments(parser):
    """--version and --data-folder, which stages 2 to 5 have."""
    parser.add_argument("--version", action="version", version=f"%(prog)s {VERSION}")
    parser.add_argument(
        "--data-folder", default=JSON_FOLDER, metavar="DIR", help="where stage 1 wrote its lists (default: %(default)s)"
    )


def parse_region(region):
    """`--region` as DataConfig takes it: "all", or four floats."""
    if region in ("all", ["all"]):
        return "all"
    try:
        west, east, south, north = map(float, region)
    except (TypeError, ValueError):
        raise DataError(f"--region {' '.join(map(str, region))}: expected LONW LONE LATS LATN, or all") from None
    return west, east, south, north


def downscale_args(description, out, argv=None, extend=None):
    """The options of stages 3 and 4; `extend(parser)` adds those of one of them."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_arguments(parser)
    parser.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="a checkpoint or export of 2train.py (default: the one in Data/SavedModels that fits the list)",
    )
    parser.add_argument("--out", metavar="DIR", default=out, help="folder of the results (default: %(default)s)")
    parser.add_argument(
        "--members", type=whole_number, metavar="N", default=1, help="ensemble members a field (default: %(default)s)"
    )
    parser.add_argument(
        "--seed",
        type=functools.partial(whole_number, low=0, high=MANY),
        metavar="N",
        default=0,
        help="one seed gives one ensemble, whatever the tiles and machines (default: %(default)s)",
    )
    parser.add_argument(
        "--region",
        nargs="+",
        metavar="BOUND",
        help="LONW LONE LATS LATN in degrees, or all (default: the checkpoint's)",
    )
    parser.add_argument(
        "--units",
        metavar="UNIT",
        default="auto",
        help="units of files without an attribute (default: what stage 1 found)",
    )
    parser.add_argument(
        "--tile",
        type=whole_number,
        metavar="N",
        help="side of a tile in LR cells; bounds the memory (default: about 1.5 million HR pixels)",
    )
    parser.add_argument(
        "--shard",
        type=parse_shard,
        default=(0, 1),
        metavar="I/N",
        help="do every N-th field from the I-th on (job arrays)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="make again what is already there from the same request"
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute (default: %(default)s)"
    )
    parser.add_argument("--plots", action="store_true", help="also draw maps and Q-Q plots as PNG beside the results")
    if extend:
        extend(parser)
    args = parser.parse_args(argv)
    args.region = parse_region(args.region) if args.region else None
    return args


def whole_number(text, low=1, high=None):
    """argparse type: a whole number of 1 (or `low`) or more, at most `high`."""
    if not text.isdigit() or int(text) < low or high is not None and int(text) > high:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected a whole number of {low} " + ("or more" if high is None else f"to {high}")
        )
    return int(text)


def parse_shard(text):
    """argparse type: `I/N` as (I, N), 0 <= I < N."""
    part, _, parts = text.partition("/")
    if not (part.isdigit() and parts.isdigit() and int(part) < int(parts)):
        raise argparse.ArgumentTypeError(f"{text!r}: expected I/N with 0 <= I < N, for example 0/4")
    return int(part), int(parts)


def downscale_list(fields, predict, args, checkpoint_digest, config):
    """Downscale every LR field of a list into {args.out}/NN_pre_sr.nc, tile by tile; HR is not among the arguments.

    A whole output of the same request (checkpoint, seed, members, input file, region) is kept, unless args.overwrite;
    another run's is moved to Historical_Records first.

    Args: fields: LRField objects (datasets.read_lr). predict: callable (lr (h, w) mm, day, origin) -> tiles (rows, cols,
        (members, H, W)). args: downscale_args. config: the DataConfig.
    Returns: the paths of this shard, in list order.
    """
    made = {"checkpoint": checkpoint_digest, "seed": args.seed, "target": config.target, "scale": config.scale}
    mine = {f"{field.index:02d}_pre_sr.nc": field for field in fields if field.index % args.shard[1] == args.shard[0]}
    requests = {name: digest_of(made, args.members, field.identity) for name, field in mine.items()}
    known = {"*_pre_sr.nc": {f"{field.index:02d}_pre_sr.nc" for field in fields}}
    known = known if args.shard[0] == 0 else {}  # one process of an array moves what a longer list left
    todo = choose_outputs(args.out, requests, known, args.overwrite, ("scores.csv", "plots"))
    for name in progress([name for name in mine if name in todo], "downscaling"):
        _downscale_one(mine[name], Path(args.out) / name, predict, args.members, {**made, "request": requests[name]})
    return [Path(args.out) / name for name in mine]


def digest_of(*words):
    """16 hex digits that stand for everything said."""
    return hashlib.sha256(" ".join(map(str, words)).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _downscale_one(field, path, predict, members, attrs):
    lr, plan, started = field.values(), field.plan, time.monotonic()
    times, known = field_times(lr), np.isfinite(lr.values)
    names = {"title": "Downscaled precipitation", "source_file": lr.attrs["source"], "archive": lr.attrs.get("archive")}
    with NetCDFWriter(
        path, plan.hr.lat, plan.hr.lon, times, members if members > 1 else None, **names, **attrs
    ) as writer:
        for rows, cols, sr in predict(lr.values, day=str(times.get("time", field.index)), origin=plan.origin):
            cells = known[tuple(slice(k.start // attrs["scale"], k.stop // attrs["scale"]) for k in (rows, cols))]
            if np.isfinite(sr).sum() != cells.sum() * members * attrs["scale"] ** 2:
                raise DataError(
                    f"{path}: the generator made values that are not finite from {lr.attrs['source']}, which holds none there; "
                    "its training has diverged: take an earlier checkpoint, or train again"
                )
            writer.put(sr if members > 1 else sr[0], rows, cols)
    log(
        f"{path}  {when(times.get('time', ''))}  from {lr.attrs['source']}  LR mean {np.nanmean(lr.values):.2f} mm  "
        f"{time.monotonic() - started:.1f} s"
    )


# ---------------------------------------------------------------- baselines and scores


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


def read_output(path):
    """`tp` of one output of stages 3 to 5, in memory. Raises DataError: not there."""
    if not Path(path).is_file():
        raise DataError(f"{path}: no such output; stages 3 and 4 (pre_sr) or 5 (pre_lr, pre_hr) make it")
    with xr.open_dataset(path) as file:
        return file["tp"].load().assign_attrs(file.attrs)


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


def write_scores(path, rows):
    """Write rows (dicts) as CSV, whole or not at all."""
    with whole_file(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
    log(f"wrote {path}")


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


def _join(store, stats):
    for key, value in stats.items():
        store[key] = store[key] + value if key in store else value


def _pick(totals, index):
    return {stat: value[index] for stat, value in totals.items()}


@functools.lru_cache(maxsize=4)
def _wavenumbers(h, w):
    """Radial bin of each coefficient of rfft2, how often it counts in the whole spectrum, and the size of each bin."""
    n, kx = min(h, w), np.arange(w // 2 + 1)
    ky = np.minimum(np.arange(h), h - np.arange(h))
    bins = np.floor(np.hypot(ky[:, None] * (n / h), kx * (n / w))).astype(int).ravel()
    weight = np.where((kx == 0) | (2 * kx == w), 1.0, 2.0)
    return bins, weight, np.bincount(bins, np.broadcast_to(weight, (h, weight.size)).ravel())


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


def _cell_weights(pixels, nodes, step):
    """Averaging weights (cells, pixels) onto cells of `step` around nodes, and the index of the nodes whole inside."""
    inside = np.abs(pixels - nodes[:, None]) < step / 2
    number = round(step / np.abs(np.diff(pixels)).mean())
    whole = np.flatnonzero(inside.sum(1) == number)
    return inside[whole] / number, whole


# ---------------------------------------------------------------- pictures


def close_up(lr, sr, hr=None, *, pixels=400):
    """The wettest window of about `pixels` a side, on whole LR cells and without missing pixels where there is one.

    Args: lr, sr and hr: DataArrays, mm, as read_output gives them (north first). pixels: a domain that is not 2.5 times
        as long stays whole.
    Returns: (lr, sr, hr) on the window.
    """
    scale = int(sr.attrs["scale"])
    if max(sr.sizes["lat"], sr.sizes["lon"]) < 2.5 * pixels:
        return lr, sr, hr
    side = [min(max(1, round(pixels / scale)), n) for n in lr.shape]
    cells, (h, w) = lr.values.astype(np.float64), lr.shape
    gaps = 0 if hr is None else 0 * hr.values[: h * scale, : w * scale].reshape(h, scale, w, scale).sum((1, 3))
    for wanted in (cells + gaps, cells, np.nan_to_num(cells)):
        means = np.lib.stride_tricks.sliding_window_view(wanted, side).mean((2, 3))
        if np.isfinite(means).any():
            break
    r, c = np.unravel_index(np.nanargmax(means), means.shape)

    def part(field, k):
        return field.isel(lat=slice(r * k, (r + side[0]) * k), lon=slice(c * k, (c + side[1]) * k))

    return part(lr, 1), part(sr, scale), hr if hr is None else part(hr, scale)


def levels_for(*fields):
    """DAILY, or SHORT where the wettest thousandth of every field is below 20 mm."""
    return DAILY if any(float(np.nanquantile(field, 0.999)) >= 20 for field in fields) else SHORT


def plot_maps(lr, sr, hr=None, *, caption="", levels=DAILY, members=3):
    """Maps of the input, the truth if there is one, members, their mean and spread (standard deviation), north up.

    Args: lr (lat, lon), sr ([member,] lat, lon), hr (lat, lon): DataArrays, mm, NaN = missing. caption: what the files
        do not say of themselves. levels: DAILY or SHORT, mm.
    Returns: a matplotlib Figure; save_figure writes it.
    """
    panels = {"input (LR)": lr}
    if hr is not None:
        panels["no truth: input interpolated (HR)" if hr.attrs.get("target") == "interpolate" else "truth (HR)"] = hr
    if "member" in sr.dims:
        panels |= {f"member {m + 1}": sr.isel(member=m) for m in range(min(members, sr.sizes["member"]))}
        panels |= {"mean of members": sr.mean("member"), "spread of members": sr.std("member", ddof=1)}
    else:
        panels["downscaled (SR)"] = sr
    (south, north), (west, east) = (_ends(lr[d].values) for d in ("lat", "lon"))
    height = (north - south) / (east - west) * _stretch(south, north)
    columns = min(len(panels), (3 if len(panels) in (5, 6) else 4) if height < 2 else 7)
    size = (3.4, 3 * height + 0.75) if height < 2 else (9 / height + 0.6, 9.6)
    figure, axes = _figure(-(-len(panels) // columns), columns, size)
    colours = _rain_colours(levels)
    for ax, (title, field) in zip(axes.flat, panels.items(), strict=False):
        image = _draw_map(ax, field, title, colours)
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    figure.colorbar(image, ax=axes, format="%g", label="rain, mm", aspect=40, pad=0.02)
    said = [when(sr.time.values)] if "time" in sr.coords else []
    said += [sr.attrs[key] for key in ("source", "source_file") if sr.attrs.get(key)]
    said.append(
        f"{sr.sizes['lat']} x {sr.sizes['lon']} pixels"
        + (f", {sr.sizes['member']} members" if "member" in sr.dims else "")
    )
    return _sign(figure, "; ".join([caption] * bool(caption) + said), sr.attrs.get("archive"))


def plot_windows(lr, hr, members, *, levels=None):
    """Input, truth and members of one training window: lr (h, w), hr (H, W), members (M, H, W), mm, tensors or arrays."""
    lr, hr, members = (
        np.asarray(a.detach().cpu() if hasattr(a, "detach") else a, np.float32) for a in (lr, hr, members)
    )
    colours = _rain_colours(levels or (DAILY if np.nanmax(hr) > SHORT[-1] else SHORT))
    panels = {"input": lr, "truth": hr} | {f"member {m + 1}": field for m, field in enumerate(members[:3])}
    figure, axes = _figure(1, len(panels), (3, 3))
    for ax, (title, field) in zip(axes.flat, panels.items(), strict=True):
        image = ax.imshow(field, cmap=colours[0], norm=colours[1], interpolation="nearest")
        ax.set(title=title, xticks=[], yticks=[])
    figure.colorbar(image, ax=axes, format="%g", label="rain, mm")
    return figure


def plot_qq(truth, members, *, caption="", archive=None, names=("truth", "downscaled")):
    """Pooled Q-Q plot of members (M, ...) against truth (...), mm, on log axes, each member a line: quantiles 1 to
    99.9 %, or every value where there are fewer than 200."""
    figure, axes = _figure(1, 1, (5.2, 5.2))
    truth, members = np.asarray(truth).ravel(), np.asarray(members).reshape(len(members), -1)
    number = int(np.isfinite(truth).sum())
    levels, words = QQ_LEVELS[:-1], "quantiles 1 to 99.9 % of {} values a member, mm"
    if number < 200:
        levels, words = np.linspace(0, 1, number), "all {} values of a member, sorted, mm"
    quantiles = [np.nanquantile(values, levels) for values in (truth, *members)]
    lines = {f"{names[1]} {m + 1}": values for m, values in enumerate(quantiles[1:])}
    ax = axes.flat[0]
    _qq(ax, quantiles[0], lines, names, marker="." if number < 200 else "", title="Q-Q")
    if len(lines) > 1:  # one colour, so one label
        ax.legend(ax.lines[1:2], [f"{names[1]}, {len(lines)} members"], fontsize=8)
    return _sign(figure, f"{caption}; {words.format(number)}", archive)


def plot_sites(sr, reference, *, caption="", archive=None, names=("reference", "downscaled")):
    """Q-Q plot at every site, laid out as on the map, axes linear up to the first tick and logarithmic beyond.

    Args: sr and reference (n, lat, lon), DataArrays, mm, on the same sites (lat, lon of sr are the titles): the values
        of a site, sorted, or 200 quantiles (least to largest) where there are more.
    """
    (n, h, w), top = sr.shape, float(max(np.nanmax(sr), np.nanmax(reference), 0.2)) * 1.3
    size = max(9 / max(h, w), 0.85)
    figure, axes = _figure(h, w, (size, size), layout=None)
    width, height = figure.get_size_inches()
    figure.subplots_adjust(
        left=0.75 / width, right=1 - 0.1 / width, top=1 - 0.45 / height, bottom=0.95 / height, wspace=0.15, hspace=0.4
    )
    first = 1 if top > 20 else 0.1
    ticks = [0, *(10.0**k for k in range(-1, 4) if first <= 10.0**k < top)]
    for i, j in np.ndindex(h, w):
        ax, pair = axes[i, j], np.stack([field.values[:, i, j] for field in (reference, sr)])
        pair = pair[:, np.isfinite(pair).all(0)]
        ax.plot([0, top], [0, top], color="0.6", lw=0.7)
        if pair.size:
            points = np.quantile(pair, np.linspace(0, 1, min(pair.shape[1], 200)), axis=1)
            ax.plot(*points.T, ".", ms=3, color=STYLES["ensemble"][0])
        else:
            ax.text(0.5, 0.5, "missing", fontsize=6, color="0.5", ha="center", va="center", transform=ax.transAxes)
        ax.set_xscale("symlog", linthresh=first)
        ax.set_yscale("symlog", linthresh=first)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(FixedLocator(ticks))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter("{x:g}")
        ax.set(xlim=(-0.05 * first, top), ylim=(-0.05 * first, top), aspect="equal")
        ax.set_title(_place(sr.lat[i], sr.lon[j]), fontsize=6, pad=2)
        ax.tick_params(labelsize=6, labelleft=j == 0, labelbottom=i == h - 1, length=2)
    figure.supxlabel(f"{names[0]}, mm", fontsize=9, y=0.35 / height)
    figure.supylabel(f"{names[1]}, mm", fontsize=9, x=0.1 / width)
    return _sign(figure, f"{caption}; up to {n} values at each of {h * w} sites, sorted", archive)


def plot_scores(curves, *, caption="", archive=None):
    """Q-Q with bootstrap band, exceedance, spectra, FSS, rank histogram and reliability, from ScoreTable.curves()."""
    figure, axes = _figure(2, 3, (4.8, 4.2))
    rows, observed = curves["rows"], curves["rows"]["observed"]
    best = "ensemble" if "ensemble" in rows else "one member"
    names = [name for name in STYLES if name in rows and name not in {"one member", best}] + [best]
    lines = {name: rows[name]["quantiles"] for name in names if name != "observed"}
    _qq(axes[0, 0], observed["quantiles"], lines, ("truth", "downscaled"), rows[best]["band"], title="Q-Q, 1 to 99.9 %")
    axes[0, 0].get_legend().remove()
    _exceedance(axes[0, 1], curves["edges"], {name: rows[name]["exceedance"] for name in names})
    _spectra(axes[0, 2], {name: rows[name]["spectrum"] for name in names if rows[name]["spectrum"] is not None})
    shown = {name: rows[name]["fss"] for name in ("nearest", "RainFARM", best) if name in rows}
    _scales(axes[1, 0], curves["fss_scales"], curves["thresholds"], shown)
    _ranks(axes[1, 1], curves.get("ranks"))
    _reliability(axes[1, 2], curves.get("reliability"), curves["thresholds"])
    keys = [axes[0, 1].lines[0], *axes[0, 0].lines[1:]]
    figure.legend(keys, ["truth", *lines], loc="outside upper left", ncols=len(keys), fontsize=8, frameon=False)
    words = f"{curves['fields']} fields, {curves['pixels']} pixels; band of the Q-Q: 95 %, bootstrap over {curves['blocks']} blocks"
    return _sign(figure, f"{caption}; {words}; points of the reliability: 50 pixels or more", archive)


def save_figure(figure, path):
    """Write a Figure as PNG, whole or not at all; returns the path."""
    with whole_file(path) as part:
        figure.savefig(part, format="png", dpi=110)
    return Path(path)


def _figure(rows, columns, size, layout="constrained"):
    figure = Figure(figsize=(size[0] * columns + 0.8, size[1] * rows + 0.5), layout=layout)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _sign(figure, caption, archive):
    """Set the caption below a figure, and the label of a generated archive above it."""
    width, height = figure.get_size_inches()
    text = textwrap.fill(caption.lstrip("; "), max(40, int(17 * width)))
    figure.text(0.04 / width, 0.04 / height, text, fontsize=7.5, va="bottom")
    if figure.get_layout_engine() is not None:
        bottom = (0.1 + 0.14 * (text.count("\n") + 1)) / height
        figure.get_layout_engine().set(rect=(0, bottom, 1, 1 - bottom - (0.25 if archive else 0.06) / height))
    if archive and "generated" in str(archive).lower():
        figure.text(
            0.995, 0.995, "GENERATED SAMPLE, not observations", color="#D55E00", weight="bold", ha="right", va="top"
        )
    return figure


def _rain_colours(levels):
    colour = colormaps["viridis_r"].resampled(len(levels)).with_extremes(under="white", over="black", bad="0.75")
    return colour, colors.BoundaryNorm(levels, len(levels), extend="max")


def _draw_map(ax, field, title, colours):
    field = field.transpose("lat", "lon").sortby("lat", ascending=False)
    (south, north), (west, east) = (_ends(field[d].values) for d in ("lat", "lon"))
    image = ax.imshow(
        field.values,
        cmap=colours[0],
        norm=colours[1],
        extent=(west, east, south, north),
        interpolation="nearest",
        aspect=_stretch(south, north),
    )
    for x, y in _outlines():
        ax.plot(x, y, color="0.25", lw=0.6)
    ax.set(xlim=(west, east), ylim=(south, north))
    ax.set_xlabel("degrees east", fontsize=8)
    ax.set_ylabel("degrees north", fontsize=8)
    ax.set_title(f"{title}\nmean {float(field.mean()):.2f}, max {float(field.max()):.1f} mm", fontsize=8)
    ax.locator_params(axis="x", nbins=4, prune="upper")
    ax.label_outer()
    return image


def _ends(centres):
    half = abs(centres[-1] - centres[0]) / max(len(centres) - 1, 1) / 2 or 0.5
    return centres.min() - half, centres.max() + half


def _stretch(south, north):
    """How much longer a degree of latitude is than one of longitude, between two latitudes."""
    return 1 / max(np.cos(np.radians((south + north) / 2)), 0.1)


@functools.lru_cache(maxsize=1)
def _outlines():
    """Coast and border lines, as (lon, lat), from what cartopy holds on this machine: nothing is fetched."""
    try:
        import cartopy
        from cartopy.io.shapereader import Reader
    except ImportError:
        return []
    roots = [cartopy.config.get(key) for key in ("pre_existing_data_dir", "data_dir", "repo_data_dir")]
    names = ("physical/ne_50m_coastline.shp", "cultural/ne_50m_admin_0_boundary_lines_land.shp")
    found = [
        next((f for root in roots if root and (f := Path(root, "shapefiles/natural_earth", name)).exists()), None)
        for name in names
    ]
    if None in found:
        log(
            "maps lack coastlines or borders: cartopy's are not on this machine (cartopy_feature_download physical cultural)"
        )
    try:
        shapes = [shape for file in found if file for shape in Reader(str(file)).geometries()]
        return [line.xy for shape in shapes for line in getattr(shape, "geoms", [shape])]
    except Exception as error:  # a broken installation must not cost the picture
        log(f"maps lack coastlines: cartopy cannot read its own ({error})")
        return []


def _place(lat, lon):
    return f"{abs(float(lat)):g}{'N' if lat >= 0 else 'S'} {abs(float(lon)):g}{'E' if lon >= 0 else 'W'}"


def _qq(ax, observed, lines, names, band=None, *, marker="", title):
    top = 1.3 * np.nanmax(np.concatenate([[1.0], observed, *lines.values()]))  # a site may be missing every day
    floor = 0.1 if top > 20 else 0.02
    ax.plot([floor, top], [floor, top], color="0.6", lw=0.8)
    for name, quantiles in lines.items():
        colour, style = STYLES.get(name, (STYLES["ensemble"][0], "-"))
        ax.plot(observed, quantiles, color=colour, ls=style, marker=marker, lw=1.2, label=name)
    if band is not None:
        ax.fill_between(observed, *band, color=colour, alpha=0.25, lw=0)  # of the last line
    ax.set(
        xscale="log",
        yscale="log",
        xlim=(floor, top),
        ylim=(floor, top),
        aspect="equal",
        title=title,
        xlabel=f"{names[0]}, mm",
        ylabel=f"{names[1]}, mm",
    )
    _plain(ax)
    ax.legend(fontsize=8)


def _plain(ax, axes="xy"):
    """Plain numbers at the whole decades of log axes."""
    for name in axes:
        getattr(ax, f"{name}axis").set_major_formatter("{x:g}")
        getattr(ax, f"{name}axis").set_minor_formatter("")


def _exceedance(ax, edges, lines):
    for name, share in lines.items():
        ax.plot(edges, share, color=STYLES[name][0], ls=STYLES[name][1], lw=1.2)
    positive = lines["observed"][lines["observed"] > 0]
    top = 1.5 * max(edges[min(len(positive), len(edges) - 1)], 1)
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="rain, mm",
        ylabel="share of pixels at or above",
        title="exceedance",
        xlim=(0.1 if top > 75 else 0.02, top),
        ylim=(positive.min(initial=1) / 3, 1),
    )
    _plain(ax, "x")


def _spectra(ax, lines):
    for name, power in lines.items():
        ax.plot(np.arange(1, len(power)), power[1:], color=STYLES[name][0], ls=STYLES[name][1], lw=1.2)
    pixels = 2 * max(map(len, lines.values()), default=0)
    ax.set(xscale="log", yscale="log", title="spectra", ylabel="power, mm²", xlabel=f"waves over {pixels} pixels")
    _plain(ax, "x")
    if not lines:
        ax.text(0.5, 0.5, "every field has missing pixels", ha="center", transform=ax.transAxes)


def _scales(ax, scales, thresholds, lines):
    """FSS (T, scales) of each row: colour as everywhere, a marker a threshold."""
    for t, threshold in enumerate(thresholds):
        for name, fss in lines.items():
            ax.plot(scales, fss[t], marker="osd"[t % 3], ls=STYLES[name][1], color=STYLES[name][0], lw=1.2, ms=5)
        ax.plot([], [], marker="osd"[t % 3], ls="", color="0.3", label=f"{threshold:g} mm")
    ax.set(xscale="log", ylim=(-0.03, 1.03), xlabel="window, pixels", ylabel="FSS", title="fractions skill score")
    ax.set_xticks(scales, [f"{k:g}" for k in scales])
    ax.set_xticks([], minor=True)
    ax.legend(fontsize=8, title="at or above", title_fontsize=8)


def _ranks(ax, ranks):
    ax.set(title="rank of the truth", xlabel="members below it", ylabel="frequency, 1 where reliable")
    if ranks is None:
        ax.text(0.5, 0.5, "needs an ensemble: --members 2 or more", ha="center", transform=ax.transAxes)
        return
    ax.bar(np.arange(len(ranks)), ranks / max(ranks.sum(), 1) * len(ranks), color=STYLES["ensemble mean"][0])
    ax.axhline(1, color="0.3", lw=0.8)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def _reliability(ax, reliability, thresholds):
    ax.plot([0, 1], [0, 1], color="0.6", lw=0.8)
    ax.set(
        title="reliability",
        xlabel="share of members with the event",
        ylabel="observed frequency",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    for t, counts in enumerate(() if reliability is None else reliability):
        enough = counts[:, 0] >= 50  # fewer pixels than this are noise
        share = np.linspace(0, 1, len(counts))[enough]
        ax.plot(
            share,
            counts[enough, 1] / counts[enough, 0],
            marker="osd"[t % 3],
            label=f"{thresholds[t]:g} mm",
            color=("#0072B2", "#D55E00", "#009E73")[t % 3],
        )
    if reliability is not None:
        ax.legend(fontsize=8, title="at or above", title_fontsize=8)
    else:
        ax.text(0.5, 0.5, "needs an ensemble: --members 2 or more", ha="center", transform=ax.transAxes)
