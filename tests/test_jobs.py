"""The shell scripts of jobs/ explain themselves and hold no Python; report.py makes their tables from scores.csv."""

import csv
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import xarray as xr
from conftest import DATA, ROOT, needs_data, run, stage
from torch.utils.tensorboard import SummaryWriter

import plots
from downscaling import downscale_parser
from forecasts import pair_cells
from reader import inspect_files, read_field

CASE = "daily_x40"
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


def with_realism(rows):
    """The rows with columns of realism; judges looked at RainFARM and the ensemble alone."""
    for row in rows:
        row |= {"judges": float("nan"), "seams": 1.25, "streaks_fine": 0.911, "streaks_broad": 0.87, "directions": 0.5}
    rows[2]["judges"], rows[-1]["judges"], rows[0]["streaks_broad"] = 0.999, 0.655, float("nan")
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


def test_the_curve_of_a_training_is_drawn_and_a_folder_without_events_is_named(tmp_path):
    with SummaryWriter(tmp_path / "events") as board:
        for step in (4, 2):
            for name in ("valid/crps", "valid/mae_bilinear", "Loss_c", "Loss_d"):
                board.add_scalar(name, 1 / step, step)
    figure = plots.plot_training(tmp_path / "events")
    lines = {line.get_label(): line for ax in figure.axes for line in ax.lines}
    assert set(lines) == {"members", "bilinear", "Loss_c", "Loss_d"}
    assert list(lines["members"].get_xdata()) == [2, 4] and list(lines["members"].get_ydata()) == [0.5, 0.25]
    done = report("curve", tmp_path / "events", tmp_path / "curve.png")
    assert done.returncode == 0 and (tmp_path / "curve.png").stat().st_size > 5000, done.stderr
    done = report("curve", tmp_path, tmp_path / "other.png")
    assert done.returncode == 1 and f"error: {tmp_path}: no curves" in done.stderr and done.stderr.count("\n") == 1


def test_ablation_prints_the_mean_of_each_variants_seeds(tmp_path):
    for name, weights, step, more in (
        ("no-flow-0", 30_000, 500, 0.0),
        ("recipe-0", 10_000, 538, 0.0),
        ("recipe-1", 10_000, 540, 0.02),
    ):
        torch.save({"generator": {"a": torch.zeros(weights)}, "step": step}, tmp_path / f"{name}.pth")
        rows = with_realism(made_scores())
        rows[-1]["crps"] += more
        write_csv(tmp_path / name / "scores.csv", rows)
    for name in ("lists", "other"):  # no seed in the name
        write_csv(tmp_path / name / "scores.csv", made_scores())
    lines = report("ablation", tmp_path).stdout.splitlines()[1:]
    assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1
    titles = ["weights", "seeds", "steps", "CRPS", "spectrum, dB", "P99.9", "judges", "seams", "streaks", "directions"]
    assert lines[0] == f"| {' | '.join(['', *titles, 'spread/skill'])} |".replace("|  |", "| |")
    figures = "5.08 | 5.07 | 0.66 | 1.25 | 0.91/0.87 | 0.50 | 5.15 |"
    assert lines[2] == f"| recipe | 0.01 M | 2 | 539 | 5.030 [5.020, 5.040] | {figures}"  # first, whatever its name
    assert lines[3] == f"| no-flow | 0.03 M | 1 | 500 | 5.020 | {figures}"


def test_an_ablation_without_scores_and_without_realism(tmp_path):
    done = report("ablation", tmp_path)
    assert done.returncode == 1 and "expected folders VARIANT-SEED with scores.csv" in done.stderr
    rows = made_scores()[:-1]
    rows[-1] = {**rows[-1], "name": "one member"}  # without noise no row is called "ensemble"
    write_csv(tmp_path / "no-noise-0/scores.csv", rows)
    torch.save({"generator": {"a": torch.zeros(9)}, "step": 1}, tmp_path / "no-noise-0.pth")
    assert report("ablation", tmp_path).stdout.splitlines()[3].endswith("| 4.07 |  |  |  |  |  |")


@pytest.fixture
def documents(tmp_path):
    """The three documents that results go into, around an old table and an old line; and new scores in out/."""
    (tmp_path / "Data/SavedModels").mkdir(parents=True)
    table = f"before\n<!-- scores {CASE} -->\n| old |\n<!-- end {CASE} -->\nafter\n"
    (tmp_path / "Data/SavedModels/README.md").write_text(table, encoding="utf-8")
    for name, words in (("README.md", "daily rain"), ("README.zh-CN.md", "日降水")):
        line = f"before\n| `{CASE}` | {words} | old | old | old | old | old | old | old | old |\nafter\n"
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
    for name, words in (("README.md", "daily rain"), ("README.zh-CN.md", "日降水")):
        assert (documents / name).read_text(encoding="utf-8").splitlines() == [
            "before",
            f"| `{CASE}` | {words} | 1.020, 2.020, **5.020** | 1.08, 2.08, **5.08** | 1.07, 2.07, **5.07** "
            "| - | - | - | - | 1.2, 3e-09, **1e-06** |",
            "after",
        ]


@pytest.mark.parametrize(
    "name, words",
    [
        ("Data/SavedModels/README.md", "expected <!-- scores daily_x40 -->"),
        ("README.md", "begins with | `daily_x40` |"),
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
    write_csv(documents / "out" / CASE / "scores.csv", with_realism(made_scores()))
    assert report("readme", "out", CASE, cwd=documents).returncode == 0
    table = (documents / "Data/SavedModels/README.md").read_text(encoding="utf-8").splitlines()[2:-2]
    assert len({line.count("|") for line in table}) == 1
    assert table[0].endswith(" | block means | judges | seams | streaks | directions |")
    assert table[2].endswith(" |  | 1.25 | 0.91 | 0.50 |") and table[-1].endswith(" | 0.66 | 1.25 | 0.91/0.87 | 0.50 |")
    for name in ("README.md", "README.zh-CN.md"):
        line = (documents / name).read_text(encoding="utf-8").splitlines()[1]
        assert line.split(" | ")[5:9] == [
            "-, 1.00, **0.66**",
            "1.25, 1.25, **1.25**",
            "0.91/0.87, 0.91/0.87, **0.91/0.87**",
            "0.50, 0.50, **0.50**",
        ]


def cell(figures):
    """Three figures as a line of the READMEs shows them."""
    *others, ours = (text or "-" for text in figures)
    return ", ".join([*others, f"**{ours}**"]) if {*others, ours} != {"-"} else "-"


@pytest.mark.parametrize("case", ["daily_x100", CASE, "china_x4"])
def test_the_line_of_a_case_holds_the_figures_of_its_table(case):
    """Columns that the table has not, as realism on small fields, are a dash."""
    details = (ROOT / "Data/SavedModels/README.md").read_text(encoding="utf-8")
    table = re.search(rf"<!-- scores {case} -->\n((?:.*\n)*?)<!-- end {case} -->", details)[1].splitlines()
    head, _, *lines = [[words.strip() for words in line.strip("|").split("|")] for line in table]
    rows = {cells[0].strip("*"): dict(zip(head, cells, strict=True)) for cells in lines}
    titles = ("CRPS [95 %]", "spectrum, dB", "P99.9", "judges", "seams", "streaks", "directions", "block means")
    three = [rows[name] for name in ("bilinear", "RainFARM", "ensemble")]
    cells = [cell([row.get(title, "").split(" [")[0] for row in three]) for title in titles]
    for name in ("README.md", "README.zh-CN.md"):
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        line = next(line for line in lines if line.startswith(f"| `{case}` |"))
        assert line.removesuffix(" |").split(" | ")[2:] == cells, name


# ---------------------------------------------------------------- the sample

SAMPLE = ROOT / "Data/Sample"


def test_the_sample_is_small_whole_and_of_days(tmp_path, capsys):
    """Real rain on whole degrees without gaps, light and heavy; what stands in for forecasts are its block means."""
    files = sorted(SAMPLE.glob("Data*/2016_*.nc"))
    assert len(files) == 9 and sum(path.stat().st_size for path in files) < 1.6e6
    for path in files:
        field, (record,) = read_field(path), inspect_files([path])[0]
        assert record["period"] == 24 and record["missing"] == 0 and field.max() > 25
        with xr.open_dataset(path) as file:
            assert "public domain" in file.attrs["license"] and "MRMS" in file.attrs["source"]
        if path.parent.name == "DataObj":
            fine = read_field(SAMPLE / "DataEval" / path.name)
            np.testing.assert_allclose(pair_cells(fine, field)[0][0], field.values.ravel(), atol=1e-4)
            assert field.shape == (11, 11) and "no forecast" in field.attrs["archive"]
        else:
            edges = (field.lat[0] + 0.005, field.lat[-1] - 0.005, field.lon[0] - 0.005, field.lon[-1] + 0.005)
            assert np.allclose(edges, np.round(edges)) and field.min() == 0
    lists = [
        word for name in ("train", "eval", "obj") for word in (f"--{name}-folders", SAMPLE / f"Data{name.title()}")
    ]
    run(1, *lists, "--output-folder", tmp_path)
    assert "24 h (time_bnds)" in capsys.readouterr().out


@needs_data
def test_the_sample_is_cut_from_the_archive_again(tmp_path):
    command = [sys.executable, ROOT / "jobs/sample.py", DATA / "daily", "--out", tmp_path]
    assert not subprocess.run(command, capture_output=True).returncode
    for path in sorted(SAMPLE.glob("Data*/2016_*.nc")):
        with xr.open_dataset(path) as kept, xr.open_dataset(tmp_path / path.relative_to(SAMPLE)) as made:
            xr.testing.assert_identical(kept.load(), made.load())


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


def run_script(name, *words, tmp_path, python="", **variables):
    """Run a script of jobs/ in an environment whose pip does nothing, and whose python runs the shell lines given."""
    (tmp_path / "bin").mkdir(exist_ok=True)
    for program, lines in (("python", python), ("pip", "")):
        (tmp_path / "bin" / program).write_text(f"#!/bin/sh\n{lines}\n")
        (tmp_path / "bin" / program).chmod(0o755)
    env = os.environ | {"VENV": str(tmp_path), "OUT": str(tmp_path / "out"), **variables}
    return subprocess.run(["bash", f"jobs/{name}", *words], cwd=ROOT, env=env, capture_output=True, text=True)


def test_the_quickstart_refuses_minutes_that_are_no_number(tmp_path):
    done = run_script("quickstart.sh", tmp_path=tmp_path, MINUTES="soon")
    assert done.returncode == 2 and "MINUTES=soon: expected a number" in done.stderr


def test_the_quickstart_begins_with_the_shipped_model_and_each_command_is_understood(tmp_path):
    """Its commands, run by a python that only writes them down, name files that are there and known options."""
    script = (ROOT / "jobs/quickstart.sh").read_text(encoding="utf-8")
    for folder in ("jobs", "Data/Sample", "venv/bin"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("quickstart.sh", "environment.sh"):
        shutil.copy(ROOT / "jobs" / name, tmp_path / "jobs")
    shutil.copy(ROOT / "requirements.txt", tmp_path)
    for program in ("python", "pip"):
        (tmp_path / "venv/bin" / program).write_text('#!/bin/sh\necho "$*" >>log\n')
        (tmp_path / "venv/bin" / program).chmod(0o755)
    env = os.environ | {"VENV": str(tmp_path / "venv")}
    done = subprocess.run(["bash", "jobs/quickstart.sh"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    commands = [line.split() for line in (tmp_path / "log").read_text().splitlines() if not line.startswith("-m pip")]
    assert [words[0][0] for words in commands] == ["1", "3", "2", "j", "4", "5", "5", "-"]
    for words in commands:
        if words[0][0].isdigit():
            parse = stage(words[0][0]).get("parse_args", downscale_parser("", "").parse_args)
            parse(words[1:])
        for word in words:
            assert (
                not word.startswith(("Data/SavedModels/", "Data/Sample/DataE", "Data/Sample/DataO"))
                or (ROOT / word).exists()
            )
    first = done.stdout.index("first result after")
    assert "3downscale_eval.py" in done.stdout[:first] and "2train.py" in done.stdout[first:]
    assert "plots/members.png" in done.stdout[first:].splitlines()[1] and done.stdout.count("took ") == len(commands)
    assert "--make-sample" not in script


def test_the_ablation_trains_and_scores_each_variant_with_each_seed(tmp_path):
    """Two at a time; one that fails is named, and the others are made and tabled."""
    (tmp_path / "out").mkdir()
    log = tmp_path / "log"
    lines = f"""echo "$*" >>{log}\ncase "$*" in *no-noise-5.pth*) echo broken; exit 3 ;; esac"""
    names = "recipe", "no-flow", "no-room", "no-noise"
    done = run_script(
        "ablation.sh", *names, tmp_path=tmp_path, python=lines, PARALLEL="2", SEEDS="4 5", VALID="held/out"
    )
    commands = [line for line in log.read_text().splitlines() if not line.startswith("-m pip")]
    trained = {re.search(r"out/([\w-]+)\.pth", line)[1]: line for line in commands if "2train.py" in line}
    assert set(trained) == {f"{name}-{seed}" for name in names for seed in (4, 5)}
    assert trained["no-flow-5"].endswith("--set directed=false") and "--seed 5 " in trained["no-flow-5"]
    assert "--max-minutes 6" in trained["recipe-4"] and trained["no-room-4"].endswith("--stage-blocks 0 0 0 0")
    assert sum("3downscale_eval.py" in line for line in commands) == 7 and "--eval-folders held/out" in commands[0]
    assert commands[-1] == f"jobs/report.py ablation {tmp_path}/out"
    assert done.returncode == 1 and done.stderr.endswith(f"no-noise, seed 5: see {tmp_path}/out/no-noise-5.log\n")
    assert (tmp_path / "out/no-noise-5.log").read_text() == "broken\n"


@pytest.mark.parametrize(
    "name, words, variables",
    [
        ("ablation.sh", "no-such", {}),
        ("ablation.sh", "recipe", {"SEEDS": "a b"}),
        ("results.sh", "radar_x40", {}),
    ],
)
def test_scripts_refuse_what_they_do_not_know(tmp_path, name, words, variables):
    done = run_script(name, words, tmp_path=tmp_path, **variables)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "expected" in done.stderr


def test_every_change_of_the_ablation_is_an_option_of_stage_2():
    text = (ROOT / "jobs/ablation.sh").read_text(encoding="utf-8")
    changes = re.findall(r'^ +\[([\w-]+)\]="(.*)"$', text, re.M)
    assert len(changes) == 10 and all(f"#   {name} " in text for name, _ in changes)
    for _, words in changes:
        stage(2)["parse_args"](words.split())
