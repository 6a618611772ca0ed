"""Killed anywhere, on a full disk, in a read-only folder: all stages lose nothing and say what happened.

    python -m pytest tests/test_survival.py               # the short version, about two minutes
    KILLS=60 python -m pytest -s tests/test_survival.py   # 60 random kills of training, 60 of stages 3 to 5

Every run is a fork of this process, which has imported everything. Pictures are drawn empty: drawn in full they would
take most of so short a run, and catch most of the kills.
"""

import contextlib
import hashlib
import json
import mmap
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from functools import partial
from types import SimpleNamespace

import netCDF4
import numpy as np
import pytest
import torch
from conftest import TRAIN, same, stage
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

import plots
import training
import utils
import validation
import verification

KILLS = int(os.environ.get("KILLS", 6))
PLACES = ("beginning", "step", "validation", "save")
place = mmap.mmap(-1, 1)  # where a child is, an index into PLACES; shared with it


pipes, spoken = {}, []  # {child: where it speaks into}, and all that was said


def fork(number, argv, folder, before=None):
    """Start a stage as a child process in `folder`. Returns its process id."""
    stage(number)
    place[0] = 0
    sys.stdout.flush(), sys.stderr.flush()
    read, write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write)
        pipes[pid] = read
        return pid
    code = 99  # what no stage ends with
    try:
        os.chdir(folder)
        os.dup2(write, 1), os.dup2(write, 2)
        sys.stdout, sys.stderr = (os.fdopen(k, "w", closefd=False) for k in (1, 2))
        sys.argv = [f"{number}.py", *map(str, argv)]
        signal.signal(signal.SIGINT, signal.default_int_handler)
        simplify(number)
        if before:
            before()
        utils.run_stage(stage(number)["main"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def simplify(number):
    """In a child: empty pictures, no RainFARM, and `place` says where training is."""
    utils._sweep.cache_clear()
    SummaryWriter.add_figure = lambda *args: None
    verification.rainfarm = lambda *args, **kwargs: None
    for name in ("plot_maps", "plot_members", "plot_scores", "plot_qq"):
        setattr(plots, name, lambda *args, **kwargs: Figure(figsize=(1, 1)))
    if number == 2:
        parts = (training, "train_step", 1), (validation.Validator, "validate", 2), (utils, "save_checkpoint", 3)
        for owner, name, index in parts:
            setattr(owner, name, marked(getattr(owner, name), index))


def marked(function, index):
    def inside(*args, **kwargs):
        place[0] = index
        try:
            return function(*args, **kwargs)
        finally:
            place[0] = 0

    return inside


def end(pid, seconds=None):
    """Wait for a child, and kill it after `seconds`. Returns its exit code, None where it was killed."""
    if seconds is not None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
    with os.fdopen(pipes.pop(pid), errors="replace") as pipe:
        spoken.append(pipe.read())
    assert "Traceback" not in spoken[-1], spoken[-1][-3000:]
    _, status = os.waitpid(pid, 0)
    assert os.WIFEXITED(status) or os.WTERMSIG(status) == signal.SIGKILL, spoken[-1][-2000:]
    return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else None


def words():
    """All that the children of a test said."""
    return "".join(spoken)


@pytest.fixture(autouse=True)
def silence():
    spoken.clear()


@pytest.fixture(scope="module")
def home(project, tmp_path_factory):
    """A copy of the small project for children to work in."""
    return copy(project.home, tmp_path_factory.mktemp("kills"))


def copy(home, folder):
    """A copy of a project without what other tests have moved aside."""
    return shutil.copytree(home, folder / "home", ignore=shutil.ignore_patterns("Historical_Records"))


# ---------------------------------------------------------------- training


def train(path, home, before=None):
    argv = [*TRAIN, "--checkpoint", path, "--runs", path.parent / "runs", "--resume"]
    return fork(2, argv, home, before)


@pytest.fixture(scope="module")
def unbroken(home):
    """The checkpoint of a run that nobody killed, and the seconds it took."""
    path, started = home / "unbroken/a.pth", time.monotonic()
    assert end(train(path, home)) == 0, words()[-2000:]
    assert utils.load_checkpoint(path)["step"] == 7
    return SimpleNamespace(path=path, seconds=time.monotonic() - started)


def check_kept(path, step):
    """After a kill: what is there is whole, and no step that was kept is lost. Returns the step that is kept."""
    kept = [p for p in (path, utils.previous_checkpoint(path)) if p.exists()]
    steps = [utils.load_checkpoint(p)["step"] for p in kept]
    assert max(steps, default=0) >= step
    return max(steps, default=0)


def test_training_killed_at_random_moments_ends_with_the_same_weights(home, unbroken):
    """Chains of kills and restarts, each until a run lives to its end, with the weights of the unbroken run."""
    rng, path, survived, chains, where = np.random.default_rng(KILLS), home / "random/a.pth", 0, 0, Counter()
    while survived < KILLS or path.parent.exists():
        if not path.parent.exists():  # a new chain decodes its files anew
            shutil.rmtree(home / "Data/JsonPath/cache", ignore_errors=True)
        step = check_kept(path, 0)
        last = survived >= KILLS
        code = end(train(path, home), None if last else rng.uniform(0, unbroken.seconds))
        if code is None:
            survived += 1
            where[PLACES[place[0]]] += 1
            check_kept(path, step)
            continue
        assert code == 0, words()[-2000:]
        same(path, unbroken.path)
        assert sorted(p.name for p in path.parent.iterdir()) == ["a.pth", "a.pth.previous", "runs"]  # no half file
        chains += 1
        shutil.rmtree(path.parent)
    print(f"\ntraining: {survived} kills survived, {chains} times the same weights; killed in {dict(where)}")
    assert KILLS < 50 or all(where[name] for name in PLACES[1:])


def killing(owner, name, nth, after=False):
    """Have a child killed at the nth call of a function: before it, or after it has returned."""

    def patch():
        plain, calls = getattr(owner, name), []

        def deadly(*args, **kwargs):
            calls.append(1)
            result = plain(*args, **kwargs) if after or len(calls) < nth else None
            if len(calls) == nth:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(owner, name, deadly)

    return patch


def half_written():
    """Have a child killed when half of its second checkpoint is on disk."""
    plain, calls = torch.save, []

    def deadly(state, part):
        plain(state, part)
        calls.append(1)
        if len(calls) == 2:
            os.truncate(part, os.path.getsize(part) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = deadly


def no_links():
    """A file system without hard links, and a kill where the previous checkpoint alone has a name."""

    def link(*args):
        raise PermissionError(1, "Operation not permitted")

    os.link = link
    killing(os, "replace", 3)()  # the first checkpoint; the second moves it away, and comes


MOMENTS = {  # in the order of a run of seven steps that keeps 2, 4, 6 and 7
    "only the previous has a name": no_links,
    "half a checkpoint written": half_written,
    "written, not read back": killing(torch, "load", 2),
    "before the previous is kept": killing(os, "link", 1),
    "the last is the previous too": killing(os, "link", 1, after=True),
    "before the new one has its name": killing(os, "replace", 1),
    "after the new one has its name": killing(os, "replace", 1, after=True),
    "between the updates of the two networks": killing(training, "update", 2),
    "in a validation": killing(verification, "rapsd", 1),
}


def test_training_killed_at_the_worst_moments_ends_with_the_same_weights(home, unbroken):
    path, step = home / "worst/a.pth", 0
    for moment, patch in MOMENTS.items():
        assert end(train(path, home, patch)) is None, f"{moment}: was never reached\n{words()[-2000:]}"
        step = check_kept(path, step)
    assert step == 6 and end(train(path, home)) == 0, words()[-2000:]
    assert f"taking the one before it, {path}.previous" in words()
    same(path, unbroken.path)
    assert sorted(p.name for p in path.parent.iterdir()) == ["a.pth", "a.pth.previous", "runs"]


# ---------------------------------------------------------------- stages 3, 4 and 5


def results(folder):
    """{file: digest of its bytes} of what has its final name."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix not in (".part", ".lock")]
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


STAGES = {
    3: ["--members", 3, "--plots"],
    4: ["--members", 2, "--plots"],
    5: ["--split", "eval", "--hr-step", 0.1],
}


def downscale(number, project, home, out, *more):
    model = {3: ["--checkpoint", project.x10], 4: ["--checkpoint", project.x4], 5: []}[number]
    return fork(number, [*STAGES[number], *model, "--out", out, *more], home)


@pytest.mark.parametrize("number", STAGES)
def test_a_stage_killed_at_random_moments_ends_with_the_same_files(project, home, number):
    started = time.monotonic()
    assert end(downscale(number, project, home, home / f"whole{number}")) == 0, words()[-2000:]
    seconds, expected = time.monotonic() - started, results(home / f"whole{number}")
    assert len(expected) >= 6
    kills = -(-KILLS // 3)
    rng, out, survived, chains = np.random.default_rng([KILLS, number]), home / f"killed{number}", 0, 0
    while survived < kills or out.exists():
        before = results(out) if out.exists() else {}
        code = end(downscale(number, project, home, out), None if survived >= kills else rng.uniform(0, seconds))
        after = results(out) if out.exists() else {}
        assert after.items() <= expected.items() and before.keys() <= after.keys()  # whole and right; none lost
        if code is None:
            survived += 1
            continue
        assert code == 0 and after == expected, words()[-2000:]
        assert not list(out.rglob(".*")), "half files stayed"
        chains += 1
        shutil.rmtree(out)
    assert not list((home / "Data/DataResults/Historical_Records").glob(f"killed{number}*"))
    print(f"\nstage {number}: {survived} kills survived, {chains} times the same files, none lost")


def test_overwrite_moves_the_earlier_run_aside_and_makes_it_again(project, home):
    out, records = home / "again5", home / "Data/DataResults/Historical_Records"
    assert end(downscale(5, project, home, out)) == 0
    made, before = results(out), (out / "00_pre_hr.nc").stat().st_mtime_ns
    (out / "07_pre_hr.nc").write_bytes((out / "00_pre_hr.nc").read_bytes())  # of a longer list
    (out / "01_pre_lr.nc").write_bytes((out / "01_pre_lr.nc").read_bytes()[:-100])  # damaged
    assert end(downscale(5, project, home, out)) == 0
    assert results(out) == made and (out / "00_pre_hr.nc").stat().st_mtime_ns == before
    (moved,) = records.glob("again5_*")
    assert sorted(p.name for p in moved.iterdir()) == ["01_pre_lr.nc", "07_pre_hr.nc"]
    shutil.rmtree(moved)
    assert end(downscale(5, project, home, out, "--overwrite")) == 0
    (moved,) = records.glob("again5_*")
    assert results(out) == made == results(moved) and (out / "00_pre_hr.nc").stat().st_mtime_ns > before


# ---------------------------------------------------------------- signals that can be answered


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_one_signal_ends_stage_3_cleanly(project, home, number):
    """The second of three fields is half written: exit code 128 + N (130 of Ctrl-C), and the same command goes on."""
    out, calls = home / f"signal{number}", []
    plain = utils.NetCDFWriter.put

    def patch():
        def put(self, *args):
            calls.append(1)
            if len(calls) == 2:
                os.kill(os.getpid(), number)
            plain(self, *args)

        utils.NetCDFWriter.put = put

    argv = ["--checkpoint", project.x10, "--out", out, "--no-scores"]
    assert end(fork(3, argv, home, patch)) == 128 + number, words()
    assert [p.name for p in out.iterdir()] == ["00_pre_sr.nc"]
    first = (out / "00_pre_sr.nc").stat().st_mtime_ns
    assert end(fork(3, argv, home)) == 0
    assert len(list(out.iterdir())) == 3 and (out / "00_pre_sr.nc").stat().st_mtime_ns == first


def test_a_closed_pipe_ends_no_run(home, unbroken):
    """`| tee`, ended by the same Ctrl-C: the checkpoint is written all the same, and the exit code is the signal's."""
    path = home / "pipe/a.pth"

    def patch():
        read, write = os.pipe()
        os.close(read)
        os.dup2(write, 1)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        plain = training.train_step

        def train_step(state, loader):
            if state.step == 3:
                os.kill(os.getpid(), signal.SIGINT)
            return plain(state, loader)

        training.train_step = train_step

    assert end(train(path, home, patch)) == 130, words()
    assert utils.load_checkpoint(path)["step"] == 4
    assert end(train(path, home)) == 0
    same(path, unbroken.path)


# ---------------------------------------------------------------- full disks and read-only folders


def say(number, argv, folder, before=None):
    """What a stage says at its end in `folder`: None, or one line."""
    code = end(fork(number, argv, folder, before))
    assert code in (0, 1), spoken[-1][-2000:]
    return spoken[-1].splitlines()[-1] if code else None


COMMANDS = {
    1: [],
    2: [*TRAIN, "--checkpoint", "Data/SavedModels/pre_srgan_x10.pth", "--resume"],
    3: ["--checkpoint", "Data/SavedModels/pre_srgan_x10.pth", "--plots", "--overwrite"],
    4: ["--checkpoint", "Data/SavedModels/pre_srgan_x4.pth", "--overwrite"],
    5: ["--split", "eval", "--hr-step", 0.1, "--overwrite"],
}


@pytest.fixture(scope="module")
def made(project, unbroken, tmp_path_factory):
    """A copy of the small project with the results of stages 3, 4 and 5, and a checkpoint that can be gone on with."""
    folder = copy(project.home, tmp_path_factory.mktemp("made"))
    for number in (3, 4, 5):
        assert say(number, COMMANDS[number], folder) is None
    shutil.copy(unbroken.path, folder / "Data/SavedModels/pre_srgan_x10.pth")
    shutil.rmtree(folder / "Data/JsonPath/cache")
    shutil.rmtree(folder / "Data/JsonHr")
    return folder


@pytest.fixture
def small_disk(made, tmp_path):
    """The project on a disk of its own, of which `fill(free)` leaves so many bytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=192m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("a disk of its own needs root; test_over_a_quota does without")

    def fill(free):
        (disk / "ballast").unlink(missing_ok=True)
        with (disk / "ballast").open("wb") as ballast:
            ballast.write(bytes(max(0, shutil.disk_usage(disk).free - free)))

    try:
        yield SimpleNamespace(home=shutil.copytree(made, disk / "home"), disk=disk, fill=fill)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def check_nothing_lost(before, home):
    """Every earlier file is still there, in its place or moved aside, and what has a final name is whole."""
    after = results(home)
    assert not set(before.values()) - set(after.values())
    for name in after:
        if name.endswith(".nc") and "Data/DataResults" in name:
            with netCDF4.Dataset(home / name) as file:
                assert np.isfinite(file["tp"][...]).all()
        elif name.endswith(".json"):
            json.loads((home / name).read_text())
        elif name.endswith((".pth", ".previous")):
            utils.load_checkpoint(home / name)
    assert not list(home.rglob(".*.part"))


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_on_a_full_disk(small_disk, number):
    before, refused = results(small_disk.home), 0
    for free in (0, 8_000, 60_000, 300_000):
        small_disk.fill(free)
        said = say(number, COMMANDS[number], small_disk.home)
        refused += said is not None
        assert said is None or said.startswith("error: ") and "No space left" in said, said
        check_nothing_lost(before, small_disk.home)
    assert refused
    small_disk.fill(100_000_000)
    assert say(number, COMMANDS[number], small_disk.home) is None


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_over_a_quota(made, tmp_path, number):
    """No file may grow beyond a few kB."""
    home = shutil.copytree(made, tmp_path / "home")
    before = results(home)
    for limit in (100, 12_000):
        quota = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit))
        said = say(number, COMMANDS[number], home, quota)
        assert said is None or said.startswith("error: ") and "cannot be written" in said, said
        check_nothing_lost(before, home)
        assert said or limit > 100


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_in_a_read_only_folder(made, tmp_path, number):
    home = shutil.copytree(made, tmp_path / "home")
    before = results(home)
    with read_only(home):
        said = say(number, COMMANDS[number], home)
    assert said.startswith("error: ") and ("Read-only" in said or "Permission denied" in said), said
    check_nothing_lost(before, home)
    assert results(home) == before


@contextlib.contextmanager
def read_only(folder):
    """Nobody can write below `folder`; root is stopped by a read-only mount."""
    if os.geteuid():
        for path in (folder, *folder.rglob("*/")):
            path.chmod(0o555)
        yield
        for path in (folder, *folder.rglob("*/")):
            path.chmod(0o755)
        return
    for command in (["mount", "--bind", folder, folder], ["mount", "-o", "remount,bind,ro", folder]):
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("root cannot mount here, and writes everywhere")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_a_file_in_the_place_of_a_folder(made, tmp_path, number):
    home = shutil.copytree(made, tmp_path / "home")
    (home / "taken").write_text("a file")
    before = results(home)
    where = {1: ["--output-folder"], 2: ["--runs"]}.get(number, ["--out"])
    said = say(number, [*COMMANDS[number], *where, "taken/inside"], home)
    assert said.startswith("error: ") and "taken" in said and ("Not a directory" in said or "File exists" in said), said
    check_nothing_lost(before, home)


# ---------------------------------------------------------------- damaged checkpoints

DAMAGE = {
    "truncated": lambda data: data[: len(data) // 2],
    "the end is missing": lambda data: data[:-1],
    "empty": lambda data: b"",
    "all zero": lambda data: bytes(len(data)),
    "a block of zeros": lambda data: data[: len(data) // 2] + bytes(4096) + data[len(data) // 2 + 4096 :],
    "one bit": lambda data: data[: len(data) // 3] + bytes([data[len(data) // 3] ^ 16]) + data[len(data) // 3 + 1 :],
    "garbage": lambda data: np.random.default_rng(0).bytes(len(data)),
    "text": lambda data: b"<html>404 not found</html>",
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(home, unbroken, tmp_path, kind):
    """In --resume (then as if nothing had happened) and in stages 3 and 4; two damaged ones are one error."""
    path, previous = tmp_path / "run/a.pth", tmp_path / "run/a.pth.previous"
    path.parent.mkdir()
    shutil.copy(f"{unbroken.path}.previous", previous)
    path.write_bytes(DAMAGE[kind](unbroken.path.read_bytes()))
    argv = ["--checkpoint", path, "--out", tmp_path / "out", "--no-scores"]
    assert end(fork(3, argv, home)) == 0, words()[-2000:]
    assert end(train(path, home)) == 0, words()[-2000:]
    assert words().count(f"{path}: not a checkpoint that can be loaded") == 2
    assert words().count(f"taking the one before it, {previous}") == 2
    assert f"{previous}: going on from step 6 of 7" in words() and "moved 1 earlier results" in words()
    same(path, unbroken.path)
    assert utils.load_checkpoint(previous)["step"] == 6
    for damaged in (path, previous):
        damaged.write_bytes(DAMAGE[kind](damaged.read_bytes()))
    before = results(tmp_path)
    spoken.clear()
    for pid in (train(path, home), fork(3, argv, home)):
        assert end(pid) == 1
    (first, second) = [line for line in words().splitlines() if line.startswith("error: ")]
    assert first == second and str(previous) in first and "train again, without --resume" in first
    assert results(tmp_path) == before


def test_stage_4_finds_the_one_before_a_damaged_checkpoint(made, tmp_path):
    home = shutil.copytree(made, tmp_path / "home")
    model = home / "Data/SavedModels/pre_srgan_x4.pth"
    model.write_bytes(model.read_bytes()[:1000])
    assert say(4, ["--out", "new"], home) is None
    assert f"taking the one before it, {model.relative_to(home)}.previous" in words()
