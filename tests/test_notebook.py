"""The notebook, run headless on small runs: what it shows are the numbers of the files and of the score table."""

import csv
import os
import re
import shutil
from types import SimpleNamespace
from unittest.mock import MagicMock

import nbformat
import numpy as np
import pytest
import torch
import xarray as xr
from conftest import ROOT, read_out, run
from nbconvert.preprocessors import CellExecutionError, ExecutePreprocessor

import datasets
import plots
import training

NOTEBOOK = ROOT / "Eval_Correctness.ipynb"


def execute(home, run_folder, monkeypatch):
    """The text and the number of pictures that the notebook shows for a run, with `home` as current folder."""
    monkeypatch.setenv("RUN", str(run_folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    ExecutePreprocessor(timeout=300, kernel_name="python3").preprocess(notebook, {"metadata": {"path": str(home)}})
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    text = "".join(output.text for output in shown if output.output_type == "stream" and output.name == "stdout")
    return text, sum("image/png" in output.get("data", {}) for output in shown)


def numbers(text, name, part=0):
    """The numbers of the table row that begins with `name`, of its part-th appearance."""
    line = [line for line in text.splitlines() if line.startswith(name)][part]
    return [float(word) for word in line[len(name) :].replace("..", " ").split()]


@pytest.fixture(scope="module")
def evaluated(project, tmp_path_factory):
    """A run of the small project as stages 5, 3 and 4 leave it: its folder, with both target interpolate models."""
    folder = tmp_path_factory.mktemp("run")
    shutil.copytree(project.lists, folder / "JsonPath")
    before = os.getcwd()
    os.chdir(project.home)
    try:
        for split, number, model in (("eval", 3, project.x10), ("obj", 4, project.x4)):
            out = folder / f"DataResults/Result{split.title()}"
            run(5, "--split", split, "--hr-step", 0.1, "--out", out)
            run(number, "--checkpoint", model, "--out", out, "--members", 3)
    finally:
        os.chdir(before)
    return folder


def test_numbers_shown_are_those_of_the_files(project, evaluated, monkeypatch):
    text, pictures = execute(project.home, evaluated, monkeypatch)
    assert pictures == 8  # maps, two Q-Q at sites, scores; maps, sites, pooled Q-Q, mistakes
    assert "INTERPOLATION OF THE INPUT" in text
    assert "GENERATED" not in text
    assert float(re.search(r"block means from the input (\S+) mm \(25 sites, 3 times, 3 members\)", text)[1]) < 1e-3

    with (evaluated / "DataResults/ResultEval/scores.csv").open(encoding="utf-8") as file:
        scores = {row["name"]: row for row in csv.DictReader(file)}
    for name in ("bilinear", "ensemble  "):  # the table of stage 3, to the printed digits
        expected = [
            float(scores[name.strip()][key])
            for key in ("crps", "crps_low", "crps_high", "rmse", "qq_rmse", "p99_ratio")
        ]
        assert numbers(text, name)[:6] == pytest.approx(expected, rel=6e-3, abs=1e-6)

    lr, sr = (
        [read_out(p) for p in sorted((evaluated / "DataResults/ResultObj").glob(f"*_{kind}.nc"))]
        for kind in ("lr", "sr")
    )
    consistency = numbers(text, "consistency: own input")
    assert consistency[:2] == [3, 363]
    assert consistency[3] == pytest.approx(np.mean([field.mean() for field in lr]), rel=6e-3)  # mm, not metres
    assert consistency[6] < 1e-3
    assert "no analysed day of these dates" in text

    truth = np.stack([field.values for field in lr]).astype("float64")
    made = np.stack([datasets.block_mean(field.values[0].astype("float64"), 4) for field in sr])
    for name, wrong in (("metres taken for mm", made / 1000), ("mirrored north-south", made[:, ::-1])):
        assert numbers(text, name)[3] == pytest.approx(np.sqrt(((wrong - truth) ** 2).mean()), rel=6e-3)
    assert numbers(text, "mirrored north-south")[4] < 1e-3 < numbers(text, "metres taken for mm")[4]


def test_generated_archive_with_truth_and_without_forecasts(project, tmp_path, monkeypatch):
    out = tmp_path / "DataResults/ResultEval"
    monkeypatch.chdir(project.home)
    options = ("--data-folder", project.hr_lists, "--out", out)
    run(5, "--split", "eval", *options, "--target", "coarsen", "--lr-step", 1, "--hr-step", 0.1)
    run(3, "--checkpoint", project.coarsen, *options)
    for path in out.glob("*.nc"):
        with xr.open_dataset(path) as file:
            file = file.load()
        file.assign_attrs(archive="generated sample").to_netcdf(path)
    text, pictures = execute(project.home, tmp_path, monkeypatch)
    assert pictures == 4
    assert "target coarsen" in text
    assert "INTERPOLATION" not in text
    assert "GENERATED SAMPLE" in text
    assert "nothing to show from here on" in text


def test_days_without_truth_say_so_whatever_the_model_was_trained_on(project, tmp_path, monkeypatch):
    """A model of real rain on days at its LR step: stage 5 can only interpolate them, and that is no truth."""
    out = tmp_path / "DataResults/ResultEval"
    monkeypatch.chdir(project.home)
    run(5, "--split", "eval", "--hr-step", 0.1, "--out", out)
    run(3, "--checkpoint", project.coarsen, "--out", out, "--members", 2)
    text, pictures = execute(project.home, tmp_path, monkeypatch)
    assert pictures == 4 and "target interpolate" in text and "INTERPOLATION OF THE INPUT" in text
    assert "amounts over 24 h, as in training" in text and "no realism in" in text


def test_stages_draw_the_same_without_a_notebook(project, evaluated, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path, **_: drawn.append(path.name))
    monkeypatch.chdir(project.home)
    for number, model, kind in ((3, project.x10, "ResultEval"), (4, project.x4, "ResultObj")):
        out = evaluated / "DataResults" / kind
        run(number, "--checkpoint", model, "--out", out, "--members", 3, "--plots")
        assert (
            sorted(drawn)
            == {
                3: ["00_maps.png", "01_maps.png", "02_maps.png", "members.png", "scores.png", "wettest.png"],
                4: ["00_maps.png", "01_maps.png", "02_maps.png", "members.png", "qq_own_input.png"],
            }[number]
        )
        drawn.clear()


def test_tensorboard_shows_the_same_while_training(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "settings_of", lambda state: {})
    lr, hr, made = torch.ones(1, 1, 4, 4), torch.full((1, 1, 8, 8), 2.0), torch.full((3, 1, 1, 8, 8), 3.0)
    rates = SimpleNamespace(param_groups=[{"lr": 1e-3}])
    state = SimpleNamespace(step=7, steps=9, opt_g=rates, interpolated=False)
    report, board = training.Board(tmp_path, state), MagicMock()
    report.close()
    report.writer = board
    scores, shown = {"crps": 0.2, "lsd_db": 1.5}, (lr, hr, made, (1, 3, 1, 3))
    report.report(state, {}, scores, shown, SimpleNamespace(elapsed=1.0))
    scalars = {call.args[0]: call.args[1] for call in board.add_scalar.call_args_list}
    assert scalars["valid/crps"] == 0.2 and scalars["valid/lsd_db"] == 1.5
    figures = {call.args[0]: call.args[1] for call in board.add_figure.call_args_list}
    panels = {ax.get_title(): ax.images[0].get_array() for ax in figures["valid/members"].axes if ax.get_title()}
    assert {name: (field.shape, field.max()) for name, field in panels.items()} == {
        "input (LR)": ((8, 8), 1),
        "truth (HR)": ((8, 8), 2),
        **{f"member {m}": ((8, 8), 3) for m in (1, 2, 3)},
    }
    line = figures["valid/qq"].axes[0].lines[1]
    assert set(line.get_xdata()) == {2.0} and set(line.get_ydata()) == {3.0}
    state.interpolated = True
    report.report(state, {}, scores, shown, SimpleNamespace(elapsed=1.0))
    maps = [call.args[1] for call in board.add_figure.call_args_list if call.args[0] == "valid/members"][-1]
    assert "no truth: input interpolated" in {ax.get_title() for ax in maps.axes}


def test_swapped_days_are_refused(project, evaluated, tmp_path, monkeypatch):
    shutil.copytree(evaluated, tmp_path / "run")
    one, two = (tmp_path / f"run/DataResults/ResultEval/0{k}_pre_sr.nc" for k in (0, 1))
    one.rename(tmp_path / "kept.nc")
    two.rename(one)
    (tmp_path / "kept.nc").rename(two)
    with pytest.raises(CellExecutionError, match="its place in the list"):
        execute(project.home, tmp_path / "run", monkeypatch)


def test_committed_notebook_is_executed_and_small():
    assert NOTEBOOK.stat().st_size < 2e6
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    shown = [output for cell in cells for output in cell.outputs]
    assert not any(output.output_type == "error" for output in shown)
    assert sum("image/png" in output.get("data", {}) for output in shown) >= 8  # as GitHub shows them
    text = "".join(output.get("text", "") for output in shown)
    assert "Data/Sample, x100, target coarsen, 3 times, 2016-09-19T23:00" in text and "GENERATED" not in text
    assert "amounts over 24 h, as in training" in text and "(25 sites, 3 times, 4 members)" in text
    for name in ("RainFARM", "one member", "ensemble"):  # seams and streaks of stage 3, below the scores
        assert re.search(rf"^{name} +.*\d\.\d\d +\d\.\d\d/\d\.\d\d", text.split("\nRealism")[1], re.M), name
