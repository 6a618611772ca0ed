"""The house itself: imports go downwards only, rooms and functions stay small, --help is quick and has few options."""

import ast
import subprocess
import sys
import time

import pytest
from conftest import ROOT, stage

FLOORS = {
    "utils": 0,
    "limits": 1,
    "hdf5": 1,
    "metadata": 1,
    "operations": 1,
    "settings": 1,
    "reader": 1,
    "threads": 1,
    "datasets": 2,
    "downloads": 2,
    "models": 2,
    "static": 2,
    "windows": 2,
    "correction": 3,
    "critic": 3,
    "forecasts": 3,
    "realism": 3,
    "verification": 3,
    "plots": 3,
    "predictors": 3,
    "downscaling": 3,
    "tiles": 3,
    "processes": 3,
    "validation": 3,
    "training": 3,
}
BESIDE = {
    ("verification", "realism"),
    ("validation", "realism"),
    ("validation", "verification"),
    ("training", "validation"),
    ("training", "critic"),
    ("training", "processes"),
    ("reader", "metadata"),
    ("reader", "hdf5"),
    ("limits", "metadata"),
    ("downscaling", "tiles"),
    ("downscaling", "predictors"),
    ("training", "predictors"),
    ("training", "plots"),
    ("plots", "verification"),
    ("forecasts", "verification"),
}  # on one floor, one way only
STAGES = sorted(path.name for path in ROOT.glob("[1-5]*.py"))
HEAVY = {"torch", "torchvision", "scores", "matplotlib", "pysteps", "tensorboard"}


def tree(name):
    return ast.parse((ROOT / name).read_text(encoding="utf-8"))


def imports(node):
    """Names of the modules that are imported anywhere below a node."""
    for part in ast.walk(node):
        if isinstance(part, ast.Import):
            yield from (alias.name.split(".")[0] for alias in part.names)
        elif isinstance(part, ast.ImportFrom):
            yield part.module.split(".")[0]


@pytest.mark.parametrize("room", FLOORS)
def test_no_room_imports_upwards(room):
    """Also inside functions; rooms of one floor only where BESIDE says so."""
    for other in set(imports(tree(f"{room}.py"))):
        assert not other[0].isdigit(), f"{room} imports the stage {other}"
        if other in FLOORS:
            assert FLOORS[other] < FLOORS[room] or (room, other) in BESIDE, f"{room} imports {other}"


def test_stages_do_not_import_one_another_and_every_room_is_known():
    assert {path.stem for path in ROOT.glob("*.py")} == {*FLOORS, *(name.removesuffix(".py") for name in STAGES)}
    for name in STAGES:
        assert not any(other[0].isdigit() for other in imports(tree(name)))


@pytest.mark.parametrize("name", [*STAGES, *(f"{room}.py" for room in FLOORS)])
def test_rooms_and_functions_stay_small(name):
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    assert len(lines) <= (130 if name in STAGES else 1000)
    assert max(map(len, lines)) <= 120
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno + 1 < 60, f"{name}: {node.name}"


@pytest.mark.parametrize("name", STAGES)
def test_help_comes_without_the_heavy_packages(name):
    code = (
        "import runpy, sys\n"
        f"try: runpy.run_path({str(ROOT / name)!r}, run_name='__main__')\n"
        "except SystemExit: print(*{m.split('.')[0] for m in sys.modules})"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "usage:" in done.stdout and not HEAVY & set(done.stdout.splitlines()[-1].split())
    assert time.monotonic() - began < 10  # far above what it takes, also on a busy machine


def test_training_has_at_most_40_options_and_each_says_its_default(capsys):
    with pytest.raises(SystemExit):
        stage(2)["main"](["--help"])
    text = capsys.readouterr().out
    options = [line for line in text.splitlines() if line.startswith("  -")]
    assert 30 < len(options) <= 40
