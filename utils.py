"""What every stage uses: messages, whole files, lists, checkpoints and NetCDF output. Imports none of ours.

Reads and writes  Data/JsonPath/*.json, Data/SavedModels/*.pth and NN_pre_*.nc.

    from utils import load_checkpoint
    state = load_checkpoint("Data/SavedModels/pre_srgan_x100.pth")
"""

import argparse
import contextlib
import fcntl
import functools
import hashlib
import itertools
import json
import math
import os
import re
import resource
import shutil
import signal
import sys
import time
import zipfile
from pathlib import Path

import numpy as np

VERSION = "0.1.0"
CHECKPOINT_FORMAT = 5
OUTPUT_FORMAT = 3  # of NN_pre_*.nc; raise when NetCDFWriter writes them otherwise: earlier outputs are then made anew
LISTS = {"train": "PreTrain.json", "eval": "PreEval.json", "obj": "PreObj.json"}
INFO = "PreInfo.json"
JSON_FOLDER = "Data/JsonPath"  # where the lists are unless told otherwise
LOG_EVERY = 60  # seconds between the lines of long work in a batch log
MANY = 10**9  # the largest seed, and more than any other whole number that is typed needs
LESS = "ask for less: fewer --members, a smaller --tile, --batch, --crop or network"
BLANKS = "\t\xa0\u3000"  # that str.isprintable does not take
SUFFIXES = (".nc", ".nc4", ".cdf")  # of the files that stage 1 looks at, in small or capital letters

# fmt: off
__all__ = [
    "AverageMeter", "Damaged", "DataError", "NetCDFWriter", "add_data_arguments", "adjust_learning_rate", "alone",
    "check_memory", "choose_outputs", "clip_gradient", "create_data_lists", "default_checkpoint", "digest", "digest_of",
    "field_times", "load_checkpoint", "log", "named", "netcdf_files", "open_checkpoint", "part_of", "positive",
    "previous_checkpoint", "progress",
    "read_info", "read_list", "read_output", "reading", "run_stage", "save_checkpoint", "set_aside", "shown", "stamp",
    "threads", "when", "whole_file", "whole_number", "write_field", "write_json", "write_lists", "writing",
]
# fmt: on


# ---------------------------------------------------------------- messages


class DataError(ValueError):
    """Something the person at the terminal can mend: says where, what was found, what was expected and what to do."""


class Damaged(DataError):
    """A checkpoint that is missing, cut short or overwritten: the one before it may stand in."""


def run_stage(main):
    """Run a script's main and end the process with its exit code; an error becomes one line on stderr, not a traceback.

    SIGTERM and SIGUSR1 (a scheduler's) end it as Ctrl-C does: half-written files are removed, and the exit code is 128
    plus the signal's number.
    """
    _open_streams()
    sys.stdout.reconfigure(errors="backslashreplace")  # names of files in a terminal that cannot show them
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    try:
        sys.exit(main())
    except DataError as error:
        sys.exit(plain(f"error: {error}"))
    except OSError as error:
        sys.exit(plain(f"error: {error.filename or 'output'}: {error.strerror or error}"))
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not re.search("allocate|out of memory", str(error)):
            raise
        words = (str(error).splitlines() or [""])[0][:200]
        sys.exit(plain(f"error: memory does not suffice ({words}); {LESS}"))
    except KeyboardInterrupt:
        sys.exit(130)


def _open_streams():
    """Lay /dev/null where a stream is closed (`>&-`): else the first file opened would take its place."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "r" if name == "stdin" else "w", closefd=False))


def shown(text, width=80):
    """Text of a file as a message shows it: printable, one line, at most `width` characters."""
    text = plain(" ".join(str(text)[: 8 * width].split()))
    return text if len(text) <= width else text[: width - 3] + "..."


def plain(text, longest=2000):
    """Text for a terminal: what is not printable (escape sequences) is spelt out, long lines lose their middle.

    Bytes of names that are not UTF-8 are left to the stream, which spells them out.
    """

    def spell(c):
        if c.isprintable() or c in BLANKS or "\ud800" <= c < "\ue000":
            return c
        return c.encode("unicode_escape").decode()

    lines = str(text).split("\n")
    short = (line if len(line) <= longest else f"{line[: longest // 2]} ... {line[-longest // 4 :]}" for line in lines)
    return "\n".join("".join(map(spell, line)) for line in short)


def log(*words):
    """Print a line on stdout at once: batch logs are read while they grow. A closed pipe does not end the run."""
    try:
        print(*map(plain, words), flush=True)
    except BrokenPipeError:  # `| tee`, which the same Ctrl-C ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def when(time):
    """A time in words, to the minute; a day without its midnight."""
    return str(time)[:16].removesuffix("T00:00")


def extent_in_words(edges):
    """Outer edges (west, east, south, north), degrees, in words: `105.5..110.5 E, 25.5..30.5 N`."""
    west, east, south, north = edges
    return f"{west:g}..{east:g} E, {south:g}..{north:g} N"


def overlap(one, other):
    """True where two areas, each (west, east, south, north), degrees, have cells in common."""
    return one[0] < other[1] and other[0] < one[1] and one[2] < other[3] and other[2] < one[3]


def progress(items, words, total=None, initial=0):
    """Items with a progress bar on a terminal; in a batch log with a line a minute, and none for short work.

    With items None: what takes update(), set_postfix() and close(); the last of the words names one of `total` pieces.
    """
    if sys.stderr.isatty() and sys.stdout.isatty():
        from tqdm import tqdm

        return tqdm(items, desc=words, total=total, initial=initial, dynamic_ncols=True, leave=False)
    return _Spoken(words, total, initial) if items is None else _spoken(items, words)


class _Spoken:
    """A progress bar for a log: a line a minute with what is done, the pace of that minute and the time left."""

    def __init__(self, words, total, initial):
        self.words, self.total, self.done, self.before, self.said = words, total, initial, initial, time.monotonic()

    def update(self):
        self.done, now = self.done + 1, time.monotonic()
        if now - self.said >= LOG_EVERY:
            pace, unit = (now - self.said) / (self.done - self.before), self.words.split()[-1]
            left = max(self.total - self.done, 0) * pace / 60
            log(f"{self.words} {self.done} of {self.total}, {pace:.2g} s a {unit}, {left:.1f} min left")
            self.before, self.said = self.done, now

    def set_postfix(self, *args, **words):
        """The bar's; the log has its own lines of losses."""

    def close(self):
        """The bar's."""


def _spoken(items, words):
    """Items, and a line of the log where a minute has gone by since the last."""
    began = said = time.monotonic()
    for done, item in enumerate(items):
        if time.monotonic() - said > LOG_EVERY:
            said = time.monotonic()
            log(f"{words}: {done} of {len(items)} after {(said - began) / 60:.1f} min")
        yield item


def free_memory():
    """Bytes that this process may still take, by the machine, its control group and its limits; inf where unknown."""
    found = [math.inf]
    with contextlib.suppress(OSError, ValueError, IndexError):
        found.append(int(re.search(r"MemAvailable: *(\d+)", Path("/proc/meminfo").read_text())[1]) * 1024)
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # "max": no limit
            found.append(int((Path("/sys/fs/cgroup") / name).read_text()))
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return min([*found, limit] if limit != resource.RLIM_INFINITY else found)


def check_memory(size, words, advice, free=None):
    """Raise DataError where `size` bytes are more than there are: before they are asked for, and the process killed.

    Args: free: bytes that there are; None: of main memory.
    """
    free = free_memory() if free is None else free
    if size > free:
        raise DataError(f"{words} takes {size / 2**30:.3g} GiB of memory, {free / 2**30:.3g} are free; {advice}")


@contextlib.contextmanager
def named(name):
    """A DataError from inside gets the name of its file in front, where it does not begin with it."""
    try:
        yield
    except DataError as error:
        raise error if str(error).startswith(f"{name}: ") else DataError(f"{name}: {error}") from None


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
        part.unlink(missing_ok=True)
        part.touch(exist_ok=False)  # made here, never through a link that somebody laid in its place
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


@contextlib.contextmanager
def alone(lock, path, shared=""):
    """Hold a lock while a run writes to `path`, so that no second run mixes its results with these.

    Args: lock: the lock's file, in a folder that is made where needed. path: what is written to, for messages.
        shared: text; processes that give the same one (the shards of one run) hold the lock together.
    Raises: DataError: another process holds it (names it and its start), or nothing can be written there.
    """
    lock = Path(lock)
    made = [folder for folder in lock.parents if not folder.exists()]
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        held = _lock(lock, path, shared)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error}); write elsewhere") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # not while another shard holds it
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock.unlink()
        os.close(held)
        with contextlib.suppress(OSError):  # what was written keeps its folder
            for folder in made:
                folder.rmdir()


def _lock(lock, path, shared):
    """The open, locked file of `alone`: its descriptor."""
    words = f"process {os.getpid()} on {os.uname().nodename}, since {time.strftime('%Y-%m-%d %H:%M')}"
    for _ in range(50):  # a shard that has just begun holds it a moment for itself
        held = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(held, lock):
                os.truncate(held, 0), os.write(held, json.dumps({"shared": shared, "words": words}).encode())
                fcntl.flock(held, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
                return held
        except BlockingIOError:
            try:
                other = dict(json.loads(os.pread(held, 4096, 0)))
            except (ValueError, TypeError):  # not written yet
                other = {}
            with contextlib.suppress(BlockingIOError):
                if shared and other.get("shared") == shared:
                    fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    if _is_at(held, lock):
                        return held
            if not shared or other and other.get("shared") != shared:
                os.close(held)
                raise DataError(
                    f"{path}: another run writes there ({shown(other.get('words', 'it has just begun'))}); wait until "
                    "it has ended, or write elsewhere"
                ) from None
            time.sleep(0.1)
        except OSError as error:
            log(f"{path}: no lock can be held there ({error.strerror}): start no second run that writes to it")
            return held
        os.close(held)
    raise DataError(f"{path}: another run has just begun to write there; wait until it has ended, or write elsewhere")


def _is_at(held, path):
    """False where the file of a descriptor was removed by the run that held it before."""
    try:
        return os.path.samestat(os.fstat(held), os.stat(path))
    except FileNotFoundError:
        return False


def write_json(path, content):
    """JSON, whole or not at all. Names of files that are not UTF-8 are kept by escapes, which JSON reads back."""
    with whole_file(path) as part:
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        part.write_bytes(text.encode("utf-8", "backslashreplace"))


# ---------------------------------------------------------------- lists


def create_data_lists(train_folders=(), eval_folders=(), output_folder=JSON_FOLDER, obj_folders=(), *, min_size=2):
    """Write the JSON lists from file names and grid sizes alone; stage 1 also reads every value, dates and units.

    Args: *_folders: folders of NetCDF files; a list without folders is not written. min_size: smallest number of rows
        and columns of a grid; files with fewer are left out and named.
    Returns: PreInfo's content, with `left_out` (messages).
    Raises: DataError: a folder without files, or a file that is no NetCDF grid.
    """
    folders = {"train": train_folders, "eval": eval_folders, "obj": obj_folders}
    records, left_out = {}, []
    for split, given in folders.items():
        if given:
            paths, notes = find_files(given)
            records[split], small = usable(*inspect_headers(paths), given, min_size=min_size)
            left_out += notes + small
    return write_lists(output_folder, records, folders, left_out)


def write_lists(output_folder, records, folders, left_out=()):
    """Write one JSON list for each of train, eval and obj that has records, and PreInfo.json with all that was found.

    Args: records: {"train": [record, ...], ...} in the order of the list; `train_hr` and `eval_hr` hold the truth that
        LR days are paired with by time. folders: {"train": [folder, ...], ...}. left_out: messages about files that
        were not taken.
    Returns: PreInfo's content, with `left_out`.
    Raises: DataError: no pair, or two truths of one time.
    """
    info = {"files": {}, "folders": {}}
    try:
        info |= _stored_info(output_folder)
    except DataError as error:
        log(f"{error} (what it said of other lists is lost)")
    info["left_out"], lists = list(left_out), {}
    for split in [name for name in LISTS if name in records]:
        found, truth = records[split], records.get(f"{split}_hr")
        info["files"][split], info["folders"][split] = found, [Path(f).as_posix() for f in folders[split]]
        info["files"].pop(f"{split}_hr", None)
        lists[split] = [record["path"] for record in found]
        if truth:
            info["files"][f"{split}_hr"] = truth
            lists[split] = _pair_by_time(found, truth, split)
            paired = {path for pair in lists[split] for path in pair.values()}
            alone = [record for record in (*found, *truth) if record["path"] not in paired]
            info["left_out"] += [f"{r['path']}: no partner of its time ({r['time']})" for r in alone]
    for split, entries in lists.items():  # now that all are known to be good
        write_json(Path(output_folder) / LISTS[split], entries)
    write_json(Path(output_folder) / INFO, info)
    return info


def find_files(folders):
    """(paths of the NetCDF files in these folders, messages about files of other names).

    Raises: DataError: no such folder, or none of its files is named as NetCDF.
    """
    paths, notes = [], []
    for folder in folders:
        if not Path(folder).is_dir():
            raise DataError(f"{folder}: no such folder")
        inside, others = netcdf_files(folder)
        also = f"{', '.join(others[:5])}{' ...' if len(others) > 5 else ''}"
        if not inside:
            raise DataError(f"{folder}: holds no .nc file" + (f" (only {also})" if others else ""))
        if others:
            notes.append(f"{folder}: {len(others)} that are not named {', '.join(SUFFIXES)}: {also}")
        paths += [path.as_posix() for path in inside]
    return list(dict.fromkeys(paths)), notes  # a folder may be given twice


def netcdf_files(folder):
    """List a folder: (paths named as NetCDF, names of what else is there), without hidden files and subfolders."""
    there = sorted(p for p in Path(folder).iterdir() if not p.name.startswith("."))
    inside = [p for p in there if p.suffix.lower() in SUFFIXES]
    return inside, [p.name for p in there if p not in inside]


def usable(records, faults, folders, *, min_size=2, skip_bad=False):
    """(records of the files to list, messages about those left out).

    Args: records and faults: of reader.inspect_files or inspect_headers. skip_bad: leave bad files out.
    Raises: DataError: bad files (unless skip_bad), or no file is left.
    """
    if faults and not skip_bad:
        shown = "\n  ".join(faults[:20]) + (f"\n  and {len(faults) - 20} more" if len(faults) > 20 else "")
        number = len(records) + len(faults)
        raise DataError(f"{len(faults)} of {number} files cannot be used (leave them out with --skip-bad):\n  {shown}")
    small = [r for r in records if min(r["rows"], r["cols"]) < min_size]
    words = [f"{r['path']}: {r['rows']} x {r['cols']} cells, fewer than --min-size {min_size}" for r in small]
    kept = [r for r in records if r not in small]
    if not kept:
        reasons = "".join(f"\n  {reason}" for reason in [*faults, *words][:20])
        raise DataError(f"{', '.join(map(str, folders))}: no usable file{reasons}")
    return kept, faults + words


def inspect_headers(paths):
    """Records (path, rows, cols; no time, no units) from the headers alone, for lists made outside stage 1."""
    import netCDF4

    records, faults = [], []
    for path in paths:
        try:
            with netCDF4.Dataset(path) as file:
                rows, cols = sorted((len(d) for d in file.dimensions.values()), reverse=True)[1::-1]
            size, mtime_ns = stamp(path)
            record = {"path": path, "size": size, "mtime_ns": mtime_ns, "rows": rows, "cols": cols}
            records.append({**record, "time": "", "units": None})
        except (OSError, ValueError) as error:
            faults.append(f"{path}: cannot be read as a NetCDF grid ({error})")
    return records, faults


def _pair_by_time(records, truth, split):
    """[{"lr": path, "hr": path}] of the times that both have."""
    by_time = {}
    for record in truth:
        if by_time.setdefault(record["time"], record["path"]) != record["path"]:
            raise DataError(
                f"{split}: two truths of {record['time']}: {by_time[record['time']]} and {record['path']}; "
                "expected one, take one away"
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
            f"{path}: no such list; run 1create_data_lists.py{where} first, with files in Data/Data{split.title()} or "
            f"--{split}-folders"
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
            f"{path}: holds a Windows path ({windows}); expected forward slashes: run 1create_data_lists.py again on "
            "this machine"
        )
    return entries


def read_info(data_folder):
    """What PreInfo.json says of files that are as stage 1 saw them; empty where there is none (hand-made lists).

    No conclusion outlives its file: of one of another size or time only `path`, `units_from` and `period_from` are
    left, `units` is None, and it is said once.
    """
    info, changed = _stored_info(data_folder), []
    for records in info.get("files", {}).values():
        for k, record in enumerate(records):
            path = record["path"]
            if os.path.isfile(path) and (record.get("size"), record.get("mtime_ns")) != stamp(path):
                changed.append(path)
                told = {name: record.get(name) for name in ("units_from", "period_from")}
                records[k] = {"path": path, "units": None, **told}
    if changed:
        more = f" and {len(changed) - 1} more" if changed[1:] else ""
        _say_once(
            f"{Path(data_folder) / INFO}: {changed[0]}{more} changed since stage 1; what it found in them is decided "
            "anew (1create_data_lists.py writes it down again)"
        )
    return info


def stamp(path):
    """(size, modification time in ns) of a file, by which a later change is noticed."""
    stat = os.stat(path)
    return stat.st_size, stat.st_mtime_ns


@functools.cache
def _say_once(words):
    log(words)


def _stored_info(data_folder):
    """PreInfo.json as stage 1 wrote it."""
    path = Path(data_folder) / INFO
    try:
        info = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error}); run 1create_data_lists.py again") from None
    files = info.get("files", {}) if isinstance(info, dict) else None
    if not (isinstance(files, dict) and all(isinstance(records, list) for records in files.values())) or not all(
        isinstance(r, dict)
        and isinstance(r.get("path"), str)
        and all(isinstance(r.get(name) or 1, (int, float)) for name in ("step", "period"))
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


def save_checkpoint(path, state, *, keep=True):
    """A checkpoint of plain tensors and plain Python: written beside, read back, then renamed; with `keep` the one
    before it stays as `{path}.previous` until the next."""
    path = Path(path)
    with whole_file(path) as part:
        with writing(path):
            import torch

            torch.save({"format": CHECKPOINT_FORMAT, "version": VERSION, **state}, part)
        load_checkpoint(part)
        if keep and path.exists():
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
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: no ordinary file; expected a checkpoint or export, which 2train.py writes")
    if not path.is_file():
        raise Damaged(f"{path}: no such checkpoint; 2train.py makes it")
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not look at the checksums
            claimed, size = sum(record.file_size for record in archive.infolist()), path.stat().st_size
            broken = f"records of {claimed} bytes in a file of {size}" if claimed > size else archive.testzip()
    except PermissionError:
        raise
    except Exception as error:  # a damaged directory of the archive raises many kinds
        broken = (str(error).splitlines() or ["empty"])[0][:160]
    if broken:
        raise Damaged(
            f"{path}: not a checkpoint that can be loaded: cut short, overwritten, or another kind of file ({broken})"
        )
    import torch

    try:
        state = torch.load(path, map_location=map_location, weights_only=True)
    except Exception:  # zip, pickle and storage faults each raise their own kind, in words of many lines
        raise DataError(
            f"{path}: not a checkpoint that can be loaded safely: it holds more than tensors, numbers and text (a "
            "NumPy object, a pickled class, or code); expected plain tensors and settings, as 2train.py writes them"
        ) from None
    if isinstance(state, dict) and state and all(map(torch.is_tensor, state.values())):
        names = " of a DataParallel model" if all(str(name).startswith("module.") for name in state) else ""
        raise DataError(
            f"{path}: weights alone{names}, without the settings to use them; expected a checkpoint or export "
            "of 2train.py"
        )
    if not isinstance(state, dict) or state.get("format") != CHECKPOINT_FORMAT:
        found = shown(state.get("format", "none") if isinstance(state, dict) else type(state).__name__)
        raise DataError(
            f"{path}: checkpoint format {found}, expected {CHECKPOINT_FORMAT}; train again with this version of "
            "2train.py"
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
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        words = " ".join((str(error).splitlines() or [""])[:3])[:240]
        raise DataError(
            f"{path}: not a whole checkpoint of this version ({type(error).__name__}: {words}); "
            "expected what 2train.py writes"
        ) from None


def default_checkpoint(target, scale, folder="Data/SavedModels"):
    """Where 2train.py keeps the model of a target and scale, and stages 3 and 4 look for it."""
    return Path(folder) / (f"pre_srgan_x{scale}.pth" if target == "interpolate" else f"pre_srgan_{target}_x{scale}.pth")


def digest(path):
    """First 16 hex digits of a file's SHA-256."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


# ---------------------------------------------------------------- NetCDF output

MEMBER_COORDINATES = {  # coordinates along the dimension `member`, and their attributes
    "input_member": {"long_name": "member of the input ensemble that it was made from"},
    "noise_member": {"long_name": "number of the noise that it was made with, from 0 on for each input member"},
}


class NetCDFWriter:
    """A CF-1.11 file of `tp`([time,] [member,] lat, lon), written in pieces, whole or not at all.

    `time` is an unlimited dimension of length 1, so that `cdo mergetime`, `ncrcat` and `xr.open_mfdataset` join files;
    read_output drops it again. A field without a time has no such dimension.

    Args: path. lat, lon: cell centres. times: {"time": datetime64, "forecast_reference_time": datetime64}.
        members: None for no such dimension, else their number, or {name: values} of coordinates along it. attrs:
        global attributes.
    Use: `with NetCDFWriter(...) as out: out.put(values, rows, cols)`; what is never put is missing. Compressed in this
        thread: the HDF5 library of netCDF4 is not made for two, also where one reads and one writes (it crashed).
    """

    def __init__(self, path, lat, lon, times, members=None, **attrs):
        self.path, self.lat, self.lon, self.times, self.attrs = Path(path), lat, lon, times, attrs
        self.named = members if isinstance(members, dict) else {}
        self.members = len(next(iter(self.named.values()))) if self.named else members
        self.record = ("time",) if "time" in times else ()

    def __enter__(self):
        with writing(self.path), contextlib.ExitStack() as stack:
            part = stack.enter_context(whole_file(self.path))
            import netCDF4

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
        if "time" in self.times:
            shape, chunks = {"time": None, **shape}, [1, *chunks]
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
        beside = [*self.named, *(name for name in self.times if name != "time")]
        if beside:
            self.tp.coordinates = " ".join(beside)

    def _coordinates(self):
        """Cell centres, members and times, each with its attributes."""
        for name, direction, standard, axis in (("lat", "north", "latitude", "Y"), ("lon", "east", "longitude", "X")):
            words = {"standard_name": standard, "long_name": f"{standard} of cell centre", "axis": axis}
            self._variable(name, "f8", (name,), getattr(self, name), units=f"degrees_{direction}", **words)
        if self.members:
            words = {"standard_name": "realization", "long_name": "ensemble member"}
            self._variable("member", "i4", ("member",), np.arange(self.members), units="1", **words)
        for name, values in self.named.items():
            values, words = np.asarray(values), MEMBER_COORDINATES[name]
            kind, units = ("i4", {"units": "1"}) if values.dtype.kind in "iu" else (str, {})
            self._variable(name, kind, ("member",), values.astype(object if kind is str else kind), **words, **units)
        for name, value in self.times.items():
            seconds = np.datetime64(value, "s") - np.datetime64("1900-01-01T00:00:00", "s")
            words = {"standard_name": name, "long_name": name.replace("_", " ")}
            self._variable(
                name,
                "f8",
                self.record,  # the issue time too: of a scalar, ncrcat would give the first file's to all
                seconds / np.timedelta64(1, "s"),  # whole, so read back to the second; hours would round 0.4 h
                units="seconds since 1900-01-01 00:00:00",
                calendar="standard",
                units_metadata="leap_seconds: unknown",
                **words,
                **({"axis": "T"} if name == "time" else {}),
            )

    def _variable(self, name, kind, dims, values, **attrs):
        variable = self.file.createVariable(name, kind, dims, chunksizes=[32] if dims == ("time",) else None)
        variable[[0] if dims == ("time",) else ...] = values
        variable.setncatts(attrs)

    def put(self, values, rows=slice(None), cols=slice(None), members=slice(None)):
        """Values ([member,] h, w) of these rows and columns, and of these members where there is that dimension."""
        with writing(self.path):
            self.tp[(*[0] * len(self.record), *[members] * bool(self.members), rows, cols)] = values

    def __exit__(self, *error):
        with writing(self.path):
            return self.stack.__exit__(*error)


def field_times(tp):
    """{"time": ..., "forecast_reference_time": ...}, those that a DataArray carries."""
    return {name: tp.coords[name].values for name in ("time", "forecast_reference_time") if name in tp.coords}


def write_field(path, tp, **attrs):
    """One DataArray `tp` ([member,] lat, lon) as CF-1.11 NetCDF4; its attributes and `attrs` become global ones."""
    named = {name: tp.coords[name].values for name in MEMBER_COORDINATES if name in tp.coords}
    members = named or tp.sizes.get("member")
    kept = {key: value for key, value in tp.attrs.items() if key != "units"}
    with NetCDFWriter(path, tp.lat.values, tp.lon.values, field_times(tp), members, **{**kept, **attrs}) as out:
        out.put(tp.values)


def finished(path, request):
    """True where `path` is a whole output of the same request, a digest of all that shaped it.

    All values are read: compressed ones carry a checksum.
    """
    import netCDF4

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

    Args: out: folder. requests: {file name: request} of this shard. known: {pattern: file names} of the whole list.
        derived: names of score tables and folders of pictures.
    Returns: (set of file names, earlier results to set aside once the first new one is ready: what stands in their
        place, what a longer earlier list left, and what was derived from all of them).
    """
    out = Path(out)
    todo = {name for name, request in requests.items() if overwrite or not finished(out / name, request)}
    stale = {path.name for kind, names in known.items() for path in out.glob(kind) if path.name not in names}
    moved = [out / name for name in sorted(todo | stale) if (out / name).exists()]
    moved += [out / name for name in derived] if moved else []
    if len(todo) < len(requests):
        log(
            f"{len(requests) - len(todo)} of {len(requests)} outputs in {out} are whole and of this request: kept "
            "(--overwrite makes them anew)"
        )
    return todo, moved


def set_aside(paths, records="Data/DataResults/Historical_Records"):
    """Move earlier results of another run (files, folders) to {records}/{folder}_{time}/, and empty their list."""
    earlier, paths = paths, [Path(p) for p in paths if Path(p).exists()]
    earlier.clear()
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


def add_data_arguments(parser, default=JSON_FOLDER):
    """--version and --data-folder, which stages 2 to 5 have; `default` None tells whether the folder was typed."""
    parser.add_argument("--version", action="version", version=f"%(prog)s {VERSION}")
    words = f"where stage 1 wrote its lists (default: {JSON_FOLDER})"
    parser.add_argument("--data-folder", default=default, metavar="DIR", help=words)


def whole_number(text, low=1, high=MANY):
    """argparse type: a whole number from 1 (or `low`) to `high`."""
    if not (text.isdecimal() and len(text) < 20 and low <= int(text) <= high):
        raise argparse.ArgumentTypeError(f"{text[:40]!r}: expected a whole number from {low} to {high}")
    return int(text)


def threads(text):
    """argparse type: a number of threads."""
    return whole_number(text, high=1024)


def positive(text, high=MANY):
    """argparse type: a finite number above 0, at most `high`."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= high:
        raise argparse.ArgumentTypeError(f"{text[:40]!r}: expected a number above 0, at most {high:g}")
    return number


def digest_of(*words):
    """16 hex digits that stand for an output: all that shaped it, as said here, and OUTPUT_FORMAT."""
    text = " ".join(map(str, (*words, OUTPUT_FORMAT)))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def read_output(path):
    """`tp` ([member,] lat, lon) of one output of stages 3 to 5, in memory; its time is a scalar coordinate.

    Raises: DataError: not there.
    """
    if not Path(path).is_file():
        raise DataError(f"{path}: no such output; stages 3 and 4 (pre_sr) or 5 (pre_lr, pre_hr) make it")
    import xarray as xr

    with xr.open_dataset(path) as file:
        tp = file["tp"].load().assign_attrs(file.attrs)
    return tp.isel(time=0) if "time" in tp.dims else tp
