"""The shell scripts of jobs/ explain themselves and hold no Python; report.py makes their tables from scores.csv."""

import csv
import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

CASE = "radar_x40"
NAMES = "nearest", "bilinear", "RainFARM", "ensemble mean", "one member", "ensemble"
KEYS = (
    *("rmse", "crps", "crps_low", "crps_high", "qq_rmse", "p99_ratio", "p999_ratio", "lsd_db"),
    *("fss_0.1mm_2px", "fss_1mm_6px", "fss_5mm_12px", "sal_s", "sal_a", "sal_l", "spread_skill", "conservation_mm"),
)
HELPFUL = *(f"jobs/{name}.sh" for name in ("environment", "quickstart", "ablation", "results")), "tests/run.sh"


def report(*argv, cwd=ROOT, options=()):
    """What jobs/report.py prints and says, and its exit code, in a process of its own."""
    command = [sys.executable, *options, str(ROOT / "jobs/report.py"), *map(str, argv)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, encoding="utf-8")


def write_csv(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def made_scores():
    """A score of each row and column that no other has: row 1 (bilinear) holds 1.01, 1.02 ... in the order of KEYS."""
    rows = [{"name": name} | {key: row + (1 + k) / 100 for k, key in enumerate(KEYS)} for row, name in enumerate(NAMES)]
    for row in rows[:2] + rows[3:5]:
        row["spread_skill"] = float("nan")  # of one field
    rows[2]["conservation_mm"], rows[5]["conservation_mm"] = 3e-9, 1.4e-6
    return rows


# ---------------------------------------------------------------- packages


def test_a_missing_package_is_one_line_and_needs_no_other_package():
    assert report("packages", "csv", "json", options=("-S", "-I")).returncode == 0
    done = report("packages", "csv", "nonsuch_a", "nonsuch_b", options=("-S", "-I"))
    assert done.returncode == 1 and not done.stdout and done.stderr.count("\n") == 1
    assert "lacks nonsuch_a, nonsuch_b; install the rest: bash jobs/environment.sh" in done.stderr
    done = report("packages", "nonsuch", "--advice", "pip install nonsuch")
    assert done.returncode == 1 and done.stderr.endswith("lacks nonsuch; pip install nonsuch\n")


# ---------------------------------------------------------------- tables


def test_quickstart_prints_the_scores_of_days_and_forecasts(tmp_path):
    write_csv(tmp_path / "ResultEval/scores.csv", made_scores())
    forecasts = [{"name": "skill: analysed day", "mean_sr": 11.254, "mean_reference": 13.14, "qq_rmse": 4.2}]
    write_csv(tmp_path / "ResultObj/scores.csv", forecasts)
    lines = report("quickstart", tmp_path).stdout.splitlines()
    assert "GENERATED" in lines[0] and "not observations" in lines[0]
    assert lines[1].split("  ")[-1] == "block means" and max(map(len, lines)) <= 100
    assert "CRPS         RMSE     Q-Q RMSE        P99.9 spectrum, dB" in lines[1]
    assert lines[2].split() == ["bilinear", "1.02", "1.01", "1.05", "1.07", "1.08", "1.16"]
    assert lines[3].startswith("ours, mean ") and lines[4].startswith("ours, members ")
    assert lines[4].split()[2:] == ["5.02", "5.01", "5.05", "5.07", "5.08", "1.4e-06"]
    assert lines[-1] == "forecasts x40, skill: analysed day: mean 11.25 against 13.14 mm, Q-Q RMSE 4.2 mm"


def test_ablation_prints_a_row_for_each_variant(tmp_path):
    for name, weights in (("wide", 30_000), ("recipe", 10_000)):
        torch.save({"generator": {"a": torch.zeros(weights)}, "step": 538}, tmp_path / f"{name}.pth")
        write_csv(tmp_path / name / "scores.csv", made_scores())
    (tmp_path / "lists").mkdir()
    lines = report("ablation", tmp_path).stdout.splitlines()[1:]
    assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1
    assert lines[2] == "| recipe | 0.01 M | 538 | 5.02 | 5.08 | 5.07 | 5.15 | 1.4e-06 |"
    assert lines[3].startswith("| wide | 0.03 M |")


@pytest.fixture
def documents(tmp_path):
    """The three documents that results go into, around an old table and an old line; and new scores in out/."""
    (tmp_path / "Data/SavedModels").mkdir(parents=True)
    table = f"before\n<!-- scores {CASE} -->\n| old |\n<!-- end {CASE} -->\nafter\n"
    (tmp_path / "Data/SavedModels/README.md").write_text(table, encoding="utf-8")
    for name, words in (("README.md", "radar"), ("README.zh-CN.md", "雷达")):
        line = f"before\n| `{CASE}` | {words} | old | old | old | old |\nafter\n"
        (tmp_path / name).write_text(line, encoding="utf-8")
    write_csv(tmp_path / "out" / CASE / "scores.csv", made_scores())
    return tmp_path


def test_results_go_between_the_marks_and_into_the_line_of_both_readmes(documents):
    done = report("readme", "out", CASE, cwd=documents)
    assert done.returncode == 0, done.stderr
    lines = (documents / "Data/SavedModels/README.md").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "before" and lines[-1] == "after" and "old" not in "".join(lines)
    table = lines[2:-2]
    assert len(table) == 2 + len(NAMES) and len({line.count("|") for line in table}) == 1
    assert table[0].split(" | ")[7] == "FSS 1 mm, 6 px"
    first = (
        "| nearest | 0.010 | 0.020 [0.030, 0.040] | 0.050 | 0.06 | 0.07 | 0.08 | 0.100 | 0.12, 0.13, 0.14 |  | 0.2 |"
    )
    assert table[2] == first
    assert table[-1].startswith("| **ensemble** | 5.010 | 5.020 [") and table[-1].endswith(" | 5.15 | 1e-06 |")
    for name, words in (("README.md", "radar"), ("README.zh-CN.md", "雷达")):
        assert (documents / name).read_text(encoding="utf-8").splitlines() == [
            "before",
            f"| `{CASE}` | {words} | 1.020, 2.020, **5.020** | 1.08, 2.08, **5.08** | 1.07, 2.07, **5.07** "
            "| 1.2, 3e-09, **1e-06** |",
            "after",
        ]


@pytest.mark.parametrize(
    "name, words",
    [
        ("Data/SavedModels/README.md", "expected <!-- scores radar_x40 -->"),
        ("README.md", "begins with | `radar_x40` |"),
        ("README.zh-CN.md", "found 0"),
    ],
)
def test_a_document_without_its_place_is_named_and_nothing_is_written(documents, name, words):
    (documents / name).write_text("no marks\n", encoding="utf-8")
    before = {path: path.read_bytes() for path in documents.rglob("*.md")}
    done = report("readme", "out", CASE, cwd=documents)
    assert done.returncode == 1 and done.stderr.startswith(f"error: {name}: ") and words in done.stderr
    assert before == {path: path.read_bytes() for path in documents.rglob("*.md")}


def test_realism_follows_in_both_tables_where_it_was_scored(documents):
    rows = made_scores()
    for row in rows:
        row |= {"judges": float("nan"), "seams": 1.25, "streaks_fine": 0.911, "streaks_broad": 0.87, "directions": 0.5}
    rows[-1]["judges"], rows[0]["streaks_broad"] = 0.655, float("nan")
    write_csv(documents / "out" / CASE / "scores.csv", rows)
    assert report("readme", "out", CASE, cwd=documents).returncode == 0
    table = (documents / "Data/SavedModels/README.md").read_text(encoding="utf-8").splitlines()[2:-2]
    assert len({line.count("|") for line in table}) == 1
    assert table[0].endswith(" | block means | judges | seams | streaks | directions |")
    assert table[2].endswith(" |  | 1.25 | 0.91 | 0.50 |") and table[-1].endswith(" | 0.66 | 1.25 | 0.91/0.87 | 0.50 |")
    torch.save({"generator": {"a": torch.zeros(9)}, "step": 1}, documents / "out" / f"{CASE}.pth")
    lines = report("ablation", documents / "out").stdout.splitlines()[1:]
    assert lines[0].endswith(" | block means | judges | seams | streaks | directions |")
    assert lines[2].endswith(" | 0.66 | 1.25 | 0.91/0.87 | 0.50 |") and len({line.count("|") for line in lines}) == 1


def test_missing_scores_are_named():
    done = report("quickstart", "nowhere")
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "nowhere" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_line_of_a_case_holds_the_figures_of_its_table():
    details = (ROOT / "Data/SavedModels/README.md").read_text(encoding="utf-8")
    for case in ("radar_x100", CASE, "china_x4"):
        table = re.search(rf"<!-- scores {case} -->\n((?:.*\n)*?)<!-- end {case} -->", details)[1].splitlines()
        rows = {cells[0].strip("|* "): cells for cells in (line.split(" | ") for line in table)}
        columns = [
            [rows[name][at].split(" [")[0].rstrip(" |") for name in ("bilinear", "RainFARM", "ensemble")]
            for at in (2, 6, 5, 10)
        ]
        cells = [f"{bilinear}, {rainfarm}, **{ours}**" for bilinear, rainfarm, ours in columns]
        for name in ("README.md", "README.zh-CN.md"):
            lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
            line = next(line for line in lines if line.startswith(f"| `{case}` |"))
            assert line.rstrip(" |").split(" | ")[2:] == cells, (name, case)


# ---------------------------------------------------------------- shell


@pytest.mark.parametrize("script", HELPFUL)
def test_help_is_all_that_help_does(script, tmp_path):
    """No environment is made: VENV names a folder that is not there."""
    env = os.environ | {"VENV": str(tmp_path / "venv")}
    done = subprocess.run(["bash", script, "--help"], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr and f"bash {script}" in done.stdout
    assert not list(tmp_path.iterdir())


def test_shell_scripts_hold_no_python():
    for path in (*ROOT.glob("jobs/*.*"), ROOT / "tests/run.sh", ROOT / ".ci/run"):
        if path.suffix in (".sh", ".slurm", ".pbs", ""):
            assert not re.search(r"python\S* (-c|- )|<<-?'?PY", path.read_text(encoding="utf-8")), path


def test_the_first_new_enough_python_is_found(tmp_path):
    for name, version in (("old", "Python 3.9.18"), ("two", "Python 2.7.18"), ("new", "Python 3.12.1")):
        path = tmp_path / name
        path.write_text(f'#!/bin/sh\necho "{version}"\n')
        path.chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def find(names):
        command = ["bash", "-c", "set -euo pipefail; source jobs/environment.sh; find_python"]
        return subprocess.run(command, cwd=ROOT, env=env | {"PYTHON": names}, capture_output=True, text=True)

    assert find("nonsuch old two new").stdout == "new\n"
    done = find("nonsuch old two")
    assert done.returncode == 1 and "no Python 3.10 or newer found (looked for nonsuch old two)" in done.stderr


def test_the_quickstart_refuses_minutes_that_are_no_number(tmp_path):
    for name in ("python", "pip"):  # an environment that does nothing
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text("#!/bin/sh\n")
        (tmp_path / "bin" / name).chmod(0o755)
    env = os.environ | {"VENV": str(tmp_path), "MINUTES": "soon"}
    done = subprocess.run(["bash", "jobs/quickstart.sh"], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 2 and "MINUTES=soon: expected a number" in done.stderr
