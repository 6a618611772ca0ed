"""Nothing wrong is believed: conclusions that outlive their file, sources that contradict one another, odd texts.

Each kind has one rule, said before its tests; tests/test_bad_input.py has the corpus of single files.
"""

import argparse
import copy
import ctypes
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile

import netCDF4
import numpy as np
import pytest
import torch
import xarray as xr
from conftest import ROOT, TINY, nodes, rain, run, said, write_nc, write_plain

import datasets
import forecasts
import hdf5
import training
import utils
from datasets import DataConfig, SRDataset, open_list
from reader import inspect_files, read_field
from settings import GeneratorConfig, TrainConfig
from utils import DataError

LAT, LON = nodes(22, 34, 1)[::-1], nodes(100, 114, 1)  # 13 x 15
FIELD = rain((13, 15))


def day(folder, values=FIELD, name="2023_08_01.nc", units=None, **layout):
    """A file of one day."""
    return str(write_nc(folder / name, values, LAT, LON, attrs={"units": units} if units else {}, **layout))


def listed(folder, paths, split="train", typed="auto"):
    """The list and PreInfo.json of stage 1."""
    records, faults = inspect_files(paths, typed)
    assert not faults
    utils.write_lists(folder, {split: records}, {split: [folder]})
    return folder


# ---------------------------------------------------------------- no conclusion outlives its file
# Size and time of every record of PreInfo.json decide, wherever its units came from.


@pytest.mark.parametrize("units", [None, "mm"])
def test_units_are_decided_anew_where_a_file_was_rewritten(tmp_path, units, capsys):
    paths = [day(tmp_path, FIELD + k, f"2023_08_0{k + 1}.nc", units) for k in range(3)]
    folder = listed(tmp_path, paths)
    before = open_list(folder, "train").values(1).copy()
    for k, path in enumerate(paths):
        day(tmp_path, (FIELD + k) / 1000, path.split("/")[-1], "m")
    capsys.readouterr()
    np.testing.assert_allclose(open_list(folder, "train").values(1), before, rtol=1e-5)
    said = capsys.readouterr().out
    assert f"{paths[0]} and 2 more changed since stage 1; what it found in them is decided anew" in said
    np.testing.assert_allclose(SRDataset(folder, "train", region="all", hr_step=0.1)[1][0], before, rtol=1e-5)
    assert "changed since" not in capsys.readouterr().out  # once a run


def test_a_rewritten_file_whose_units_were_typed_is_refused(tmp_path):
    paths = [day(tmp_path, FIELD + k, f"2023_08_0{k + 1}.nc", "mm") for k in range(2)]
    folder = listed(tmp_path, paths, typed="cm")
    assert open_list(folder, "train").values(0).max() == pytest.approx(10 * FIELD.max(), rel=1e-5)
    day(tmp_path, FIELD + 5, "2023_08_01.nc", "mm")
    with pytest.raises(DataError, match="2023_08_01.nc: changed since stage 1 was told its units.*--units"):
        open_list(folder, "train")
    assert open_list(folder, "train", units="mm").values(0).max() == pytest.approx(FIELD.max() + 5)


def test_a_step_of_a_file_that_changed_is_forgotten(tmp_path):
    path = day(tmp_path, units="mm")
    folder = listed(tmp_path, [path], "eval")
    assert datasets.found_settings(folder, "eval", {})[0]["lr_step"] == 1
    write_nc(path, rain((9, 9)), nodes(26, 30, 0.5)[::-1], nodes(106, 110, 0.5), attrs={"units": "mm"})
    assert "lr_step" not in datasets.found_settings(folder, "eval", {})[0]


def test_an_attribute_that_contradicts_what_stage_1_wrote_is_refused(tmp_path):
    path = day(tmp_path, units="mm")
    folder = listed(tmp_path, [path])
    info = json.loads((folder / utils.INFO).read_text())
    info["files"]["train"][0].update(units="m", units_from="values")
    utils.write_json(folder / utils.INFO, info)
    with pytest.raises(DataError, match=f"{path}: its attribute says units mm, PreInfo.json says m; expected one"):
        open_list(folder, "train")


@pytest.mark.parametrize("change", ["values", "index"])
def test_a_damaged_cache_is_made_again(tmp_path, change, capsys):
    folder = listed(tmp_path, [day(tmp_path, FIELD + k, f"2023_08_0{k + 1}.nc", "mm") for k in range(2)])
    whole = open_list(folder, "train")
    values, times = whole.values(1).copy(), whole.index[1]["times"]
    (kept,) = (folder / "cache").glob("*.f32")
    if change == "values":
        (np.fromfile(kept, np.float32) * 3).tofile(kept)
    else:
        index = kept.with_suffix(".json")
        index.write_text(index.read_text().replace("2023-08-02", "2023-08-09"))
    archive = open_list(folder, "train")
    np.testing.assert_array_equal(archive.values(1), values)
    assert archive.index[1]["times"] == times and "damaged, not what was written" in capsys.readouterr().out
    open_list(folder, "train").values(1)
    assert "damaged" not in capsys.readouterr().out


# ---------------------------------------------------------------- two sources of one fact are compared
# A date that a name and a coordinate give differently is refused with both; a name gives one date or none.


@pytest.mark.parametrize(
    ("name", "time", "words"),
    [
        ("2023_08_02.nc", "2023-08-03", "its name says 2023-08-02, its time coordinate 2023-08-03.*--stamps end"),
        ("2023_08_02.nc", "1999-08-02", "its name says 2023-08-02, its time coordinate 1999-08-02; .*rename it"),
        ("2023_08_11_18_08_12_x.nc", "2023-08-14", "its name says 2023-08-12, its time coordinate 2023-08-14"),
        ("2023_08_11_18_08_06_x.nc", "2023-08-06", "issued 2023-08-11 and valid on 08-06; expected .*rename it"),
        ("2023_08_11_18_08_06_x.nc", None, "issued 2023-08-11 and valid on 08-06; expected .*rename it"),
        ("2023_08_11_18_07_31_x.nc", None, "issued 2023-08-11 and valid on 07-31; expected .*rename it"),
        ("2023_08_01-2023_08_31.nc", None, "the name is not a date"),
        ("2023_08_01_to_2023_08_31.nc", None, "the name is not a date"),
        ("2023_08_01-08_31.nc", None, "the name is not a date"),
        ("2023_08_01_99.nc", None, "the name is not a date"),
    ],
)
def test_dates_that_contradict_one_another_are_refused(tmp_path, name, time, words):
    coords = {} if time is None else {"time": np.datetime64(time, "ns")}
    path = day(tmp_path, name=name, units="mm", coords=coords)
    records, (fault,) = inspect_files([path])
    assert not records and fault.startswith(f"{path}: ") and re.search(words, fault)


@pytest.mark.parametrize(
    ("name", "time", "period"),
    [("2023_08_01_06.nc", "2023-08-01T06:00", None), ("2023-08-01T0630.nc", "2023-08-01T06:30", None)],
)
def test_hours_in_names_are_read(tmp_path, name, time, period):
    ((record,), faults) = inspect_files([day(tmp_path, name=name, units="mm")])
    assert not faults and (record["time"], record["period"]) == (time, period)


def test_hours_of_a_day_are_no_duplicates(tmp_path):
    records, faults = inspect_files([day(tmp_path, name=f"2023_08_01_{k:02d}.nc", units="mm") for k in range(24)])
    assert not faults and len({r["time"] for r in records}) == 24 and {r["period"] for r in records} == {1.0}


# ---------------------------------------------------------------- duplicate keys do not overwrite


def test_forecasts_are_not_compared_with_the_last_of_several_analyses(tmp_path, capsys):
    for k in (1, 2):
        write_nc(tmp_path / f"{k}/2023_08_12.nc", FIELD * k, LAT, LON, attrs={"units": "mm"})
    folder = listed(tmp_path, [f"{tmp_path}/{k}/2023_08_12.nc" for k in (1, 2)], "eval")
    assert forecasts.analysed_days(folder) == {}
    assert "several analysed days of 2023-08-12: expected one a date" in capsys.readouterr().out


def test_the_same_file_twice_in_one_list_is_taken_once(tmp_path, capsys):
    path = day(tmp_path / "in", units="mm")
    run(1, "--eval-folders", tmp_path / "in", tmp_path / "in", "--output-folder", tmp_path)
    assert utils.read_list(tmp_path, "eval") == [path]


def test_index_coordinates_are_no_degrees(tmp_path):
    planes = {"lat": (("y", "x"), np.broadcast_to(LAT[:, None], (13, 15)), {"units": "degrees_north"})}
    planes["lon"] = (("y", "x"), np.broadcast_to(LON, (13, 15)), {"units": "degrees_east"})
    fields = {"tp": (("y", "x"), FIELD, {"units": "mm"}), **planes}
    xr.Dataset(fields, {"y": np.arange(13), "x": np.arange(15)}).to_netcdf(tmp_path / "2023_08_01.nc")
    with pytest.raises(DataError, match="y and x that count cells; expected latitude and longitude"):
        read_field(tmp_path / "2023_08_01.nc")


# ---------------------------------------------------------------- own results are no input
# A file that says which request of this program made it is refused; days of --make-days say their rule, and are taken.


@pytest.mark.parametrize("kind", ["lr", "hr"])
def test_pairs_of_stage_5_are_no_truth(home, tmp_path, kind):
    run(5, "--split", "eval", "--data-folder", home.lists, "--hr-step", 0.1, "--out", tmp_path)
    records, faults = inspect_files(sorted(map(str, tmp_path.glob(f"*_{kind}.nc"))))
    assert not records and len(faults) == 3
    assert "made by stage 5, target interpolate; expected days or forecasts" in faults[0]


# ---------------------------------------------------------------- numbers have bounds
# Every option that is a number has a lower and an upper bound: a type of utils, or `low` and `high` of settings.option.


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_every_number_that_is_typed_has_bounds(number, monkeypatch):
    bounded = {
        item.name: item.metadata
        for cls in (DataConfig, GeneratorConfig, TrainConfig)
        for item in dataclasses.fields(cls)
    }
    seen = []

    def look(parser, argv=None):
        for action in parser._actions:
            if action.type in (int, float):
                about = bounded[action.dest]
                assert about["low"] is not None and about["high"] <= utils.MANY, action.dest
            elif action.type not in (None, str):
                for text in ("nan", "-30", "-inf", "1" + 30 * "0", "1e30", "²", ""):
                    with pytest.raises((argparse.ArgumentTypeError, ValueError)):
                        action.type(text)
            seen.append(action.dest)
        raise SystemExit(0)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", look)
    with pytest.raises(SystemExit):
        run(number)
    assert len(seen) > 5


@pytest.mark.parametrize(
    "item",
    [item for cls in (GeneratorConfig, TrainConfig) for item in dataclasses.fields(cls)],
    ids=lambda item: item.name,
)
def test_every_setting_that_is_a_number_has_bounds(item):
    numbers = item.default if isinstance(item.default, tuple) else [item.default]
    if item.name not in ("position_shape", "static_fields", "predictor_fields") and all(
        type(n) in (int, float) for n in numbers if numbers is not dataclasses.MISSING
    ):
        assert item.metadata.get("low") is not None, item.name


def test_memory_that_does_not_suffice_is_one_error_and_moves_nothing(home, tmp_path, monkeypatch):
    for name in ("00_pre_sr.nc", "scores.csv"):
        (tmp_path / name).write_text("earlier")
    argv = ["--data-folder", home.lists, "--checkpoint", home.x10, "--out", tmp_path, "--members", 10_000]
    monkeypatch.setattr(utils, "free_memory", lambda: 2**20)
    words = said(3, argv, monkeypatch)
    assert "--members 10000 on tiles of" in words and "GiB of memory" in words and "fewer --members" in words
    monkeypatch.setattr(utils, "free_memory", lambda: 2**40)
    monkeypatch.setattr(utils.NetCDFWriter, "put", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(3, *argv[:-1], 1)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(
        ("00_pre_sr.nc", "scores.csv"), "earlier"
    )


@pytest.mark.parametrize(
    "error", [MemoryError("Unable to allocate 14.6 TiB"), RuntimeError("DefaultCPUAllocator: can't allocate memory: x")]
)
def test_any_lack_of_memory_is_one_line(error):
    def main():
        raise error

    with pytest.raises(SystemExit, match="error: memory does not suffice .*fewer --members"):
        utils.run_stage(main)


# ---------------------------------------------------------------- codes for missing cells
# A maximum of 100 mm or more that many cells (or files) share exactly is no rain unless --valid-max says so.


def coded(code, cells=9):
    values = FIELD.copy()
    values[:3, :3].flat[:cells] = code
    return values


@pytest.mark.parametrize("code", [255, 999, 999.9, 1000, 9999 / 10])
@pytest.mark.parametrize("units", ["mm", "m"])
def test_codes_for_missing_cells_are_no_rain(tmp_path, code, units):
    path = day(tmp_path, coded(code) / (1000 if units == "m" else 1), units=units)
    records, (fault,) = inspect_files([path])
    assert not records and re.search(rf"{path}: 9 cell\(s\) \(4.6 %\) hold exactly {code:g} mm, the largest", fault)
    assert f"--valid-max {code:g}" in fault and "cdo setctomiss" in fault
    records, faults = inspect_files([path], valid_max=code)
    assert not faults and records[0]["maximum"] == code and "plateau" not in records[0]
    records, (fault,) = inspect_files([path], valid_max=200)
    assert "expected at most 200 (--valid-max)" in fault


def test_a_code_in_one_cell_of_several_files_is_no_rain(tmp_path):
    paths = [day(tmp_path, coded(999, 1) + 0.01 * (FIELD > 0) * k, f"2023_08_0{k + 1}.nc", "mm") for k in range(4)]
    for k, path in enumerate(paths):
        values = FIELD * (1 - k / 10)
        values[3, 3] = 999
        day(tmp_path, values, path.split("/")[-1], "mm")
    records, faults = inspect_files(paths)
    assert not records and len(faults) == 4 and "1 cell(s)" in faults[0]


@pytest.mark.parametrize("wettest", [90, 400, 1500])
def test_heavy_rain_is_no_code(tmp_path, wettest):
    paths = [day(tmp_path, rain((13, 15), k, wettest), f"2023_08_0{k + 1}.nc", "mm") for k in range(2)]
    values = rain((13, 15), 3, wettest)
    values[5, 5] = values.max()  # the same amount in two cells
    records, faults = inspect_files([*paths, day(tmp_path, values, "2023_08_09.nc", "mm")])
    assert len(records) == 3 and not faults


def test_stage_1_says_the_plateau_and_takes_valid_max(tmp_path, monkeypatch, capsys):
    path = day(tmp_path / "in", coded(255), units="mm")
    argv = ["--eval-folders", tmp_path / "in", "--output-folder", tmp_path]
    assert "hold exactly 255 mm" in said(1, argv, monkeypatch)
    run(1, *argv, "--valid-max", 255)
    assert utils.read_list(tmp_path, "eval") == [path]
    assert open_list(tmp_path, "eval").values(0).max() == 255


# ---------------------------------------------------------------- a model is not used beyond what it is
# The checkpoint says which values, days and places it was trained on; a model without a step or without rain is none.


def test_a_training_goes_on_with_its_own_list_alone(home, tmp_path, monkeypatch):
    shutil.copytree(home.home / "Data/DataTrain", tmp_path / "in")
    run(1, "--train-folders", tmp_path / "in", "--output-folder", tmp_path)
    words = ["--data-folder", tmp_path, "--lr-step", 1, "--hr-step", 0.1, *TINY, "--checkpoint", tmp_path / "a.pth"]
    words += ["--runs", tmp_path / "runs"]
    run(2, *words)
    kept = (tmp_path / "a.pth").read_bytes()
    run(1, "--train-folders", tmp_path / "in", "--output-folder", tmp_path)
    assert run(2, *words, "--resume") == 0  # the same files, listed anew
    (tmp_path / "in/1950_08_06.nc").rename(tmp_path / "in/1950_08_07.nc")
    run(1, "--train-folders", tmp_path / "in", "--output-folder", tmp_path)
    before = (tmp_path / "a.pth").read_bytes()
    refusal = said(2, [*words, "--resume"], monkeypatch)
    assert "a.pth was trained on other files (6 files, 1950-08-01 to 1950-08-06)" in refusal
    assert "lists now (6 files, 1950-08-01 to 1950-08-07)" in refusal and "--init" in refusal
    assert (tmp_path / "a.pth").read_bytes() == before and kept
    assert run(2, *words, "--init", tmp_path / "a.pth") == 0


def test_training_days_are_marked_where_they_are_scored(home, tmp_path, capsys):
    days = [home.home / "Data/DataTrain/1950_08_02.nc", home.home / "Data/DataEval/2023_08_01.nc"]
    for path in days:
        shutil.copy(path, tmp_path)
    run(1, "--eval-folders", tmp_path, "--output-folder", tmp_path)
    argv = ["--data-folder", tmp_path, "--checkpoint", home.x10, "--out"]
    run(3, *argv, tmp_path / "out")
    said = capsys.readouterr().out
    assert "WARNING: 1 of 2 fields are of days and places that" in said
    assert "all rows: 1 of 2 fields are of days and places that the model was trained on" in said
    assert "the model was trained on" in (tmp_path / "out/scores.csv").read_text()
    marks = [utils.read_output(path).attrs.get("in_training") for path in sorted((tmp_path / "out").glob("*.nc"))]
    assert marks == ["yes", None]
    run(3, *argv, tmp_path / "there", "--region", 101, 105, 26, 30)  # the same day, where it was not trained
    assert "trained on" not in capsys.readouterr().out


def test_a_model_without_a_step_is_refused(home, tmp_path, monkeypatch):
    utils.save_checkpoint(tmp_path / "a.pth", {**utils.load_checkpoint(home.x10), "step": 0})
    argv = ["--data-folder", home.lists, "--checkpoint", tmp_path / "a.pth", "--out", tmp_path / "out"]
    assert "a.pth: no training step was made, its weights are random" in said(3, argv, monkeypatch)


def test_dry_days_alone_are_nothing_to_learn_from(tmp_path, monkeypatch):
    paths = [day(tmp_path, 0 * FIELD, f"2023_08_0{k + 1}.nc", "mm") for k in range(3)]
    argv = ["--data-folder", listed(tmp_path, paths), "--lr-step", 1, "--hr-step", 0.1, *TINY]
    assert "no LR cell of the training list holds 0.1 mm or more" in said(
        2, [*argv, "--checkpoint", tmp_path / "a.pth"], monkeypatch
    )


# ---------------------------------------------------------------- one run writes to a place at a time
# A lock beside the results (utils.alone) names the process that holds it; the shards of one run hold it together.


@pytest.fixture
def busy():
    """Calls utils.alone in another process, which holds the lock until the test ends."""
    children = []

    def hold(lock, shared=""):
        code = "import sys, utils\nwith utils.alone(*sys.argv[1:]): print('held', flush=True), sys.stdin.read()"
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
        children.append(subprocess.Popen([sys.executable, "-c", code, str(lock), "x", shared], **pipes))
        assert children[-1].stdout.readline() == "held\n"
        return children[-1]

    yield hold
    for child in children:
        child.communicate()


def test_a_second_run_in_one_folder_is_refused_until_the_first_ends(home, tmp_path, busy, monkeypatch):
    out = tmp_path / "out"
    argv = ["--data-folder", home.lists, "--checkpoint", home.x10, "--out", out, "--no-scores"]
    first = busy(out / ".pre_sr.lock")
    words = said(3, argv, monkeypatch)
    assert re.search(rf"out: another run writes there \(process {first.pid} on \S+, since \d{{4}}-", words)
    assert "another run writes there" in said(3, [*argv, "--shard", "0/2"], monkeypatch)
    assert os.listdir(out) == [".pre_sr.lock"]
    first.kill(), first.wait()  # what a killed run leaves hinders nobody
    run(3, *argv)
    assert sorted(os.listdir(out)) == ["00_pre_sr.nc", "01_pre_sr.nc", "02_pre_sr.nc"]


def test_shards_of_one_run_hold_a_folder_together(tmp_path, busy):
    lock = tmp_path / "new/out/.pre_sr.lock"
    busy(lock, "a"), busy(lock, "a")
    with utils.alone(lock, "out", "a"):
        for other in ("", "b"):
            with pytest.raises(DataError, match="out: another run writes there"), utils.alone(lock, "out", other):
                pass
    assert lock.exists()  # the others hold it


def test_a_lock_leaves_nothing_behind(tmp_path):
    with pytest.raises(ZeroDivisionError), utils.alone(tmp_path / "new/out/.lock", "out"):
        assert (tmp_path / "new/out/.lock").exists() and 1 / 0
    assert os.listdir(tmp_path) == []
    (tmp_path / "target").write_text("kept")
    (tmp_path / ".lock").symlink_to(tmp_path / "target")
    with pytest.raises(DataError, match="out: cannot be written"), utils.alone(tmp_path / ".lock", "out"):
        pass
    assert (tmp_path / "target").read_text() == "kept"


@pytest.mark.parametrize(
    ("export", "words"),
    [
        ("a.pth", "--export .*a.pth would overwrite the checkpoint"),
        ("link.pth", "--export .*link.pth would overwrite the checkpoint"),
        ("folder.pth", "folder.pth: a folder; expected the name of a file"),
        ("taken/b.pth", "taken/b.pth: cannot be written"),
        ("busy.pth", "busy.pth: another run writes there"),
    ],
)
def test_what_a_training_cannot_write_is_found_before_its_first_step(home, tmp_path, export, words, busy, monkeypatch):
    (tmp_path / "a.pth").write_text("an earlier model")
    (tmp_path / "link.pth").symlink_to(tmp_path / "a.pth")
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "taken").write_text("a file")
    if export == "busy.pth":
        busy(tmp_path / ".busy.pth.lock")
    monkeypatch.setattr(training, "train_step", lambda *args: 1 / 0)
    argv = ["--data-folder", home.lists, "--lr-step", 1, "--hr-step", 0.1, *TINY, "--runs", tmp_path / "runs"]
    argv += ["--checkpoint", tmp_path / "a.pth", "--export", tmp_path / export]
    assert re.search(words, said(2, argv, monkeypatch))
    assert (tmp_path / "a.pth").read_text() == "an earlier model"
    if export != "busy.pth":
        argv[-1], argv[-3] = tmp_path / "b.pth", tmp_path / export  # the checkpoint itself
        assert export in ("a.pth", "link.pth") or re.search(words, said(2, argv, monkeypatch))


# ---------------------------------------------------------------- text from files is plain
# utils.plain spells out what is not printable in all that is said; utils.shown cuts what comes from files.


def test_nothing_said_holds_control_characters(capsys):
    evil = "\x1b[2Ja\rb\x07\u202eabc" + 5_000_000 * "x"
    utils.log(evil, "降水量\u30002023")
    out = capsys.readouterr().out
    assert out.startswith(r"\x1b[2Ja\rb\x07\u202eabc") and "降水量\u30002023" in out and len(out) < 2200
    assert len(utils.shown(evil)) == 80 and utils.shown("a\n b\t c") == "a b c"

    def main():
        raise DataError(f"one line: {evil}\nanother")

    with pytest.raises(SystemExit) as end:
        utils.run_stage(main)
    assert end.value.code.startswith(r"error: one line: \x1b[2J") and end.value.code.endswith("xx\nanother")
    assert len(end.value.code) < 2200


def test_closed_streams_end_no_stage(tmp_path):
    day(tmp_path / "in", units="mm")
    command = f"exec {sys.executable} {ROOT}/1create_data_lists.py --eval-folders in --output-folder out"
    for closed in (">&-", "<&- >&- 2>&-"):
        done = subprocess.run(["sh", "-c", f"{command} {closed}"], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0 and not done.stderr, done.stderr
        assert utils.read_list(tmp_path / "out", "eval") == ["in/2023_08_01.nc"]
        shutil.rmtree(tmp_path / "out")


# ---------------------------------------------------------------- odd attributes are one clear error a file
# reader.understood turns what nobody foresaw into a DataError that names the file, so --skip-bad leaves it out.

ODD = {  # attributes of tp, or of a coordinate
    "empty valid_range": {"tp": {"valid_range": np.array([], "f4")}},
    "text as valid_max": {"tp": {"valid_max": "many"}},
    "list as grid_mapping": {"tp": {"grid_mapping": np.array([1, 2])}},
    "array as units": {"tp": {"units": np.array([1.0, 2.0])}},
    "number as units": {"tp": {"units": 3}},
    "number as standard_name": {"tp": {"standard_name": 5.5}},
    "array as long_name": {"tp": {"long_name": np.arange(5)}},
    "number as cell_methods": {"tp": {"cell_methods": 7}},
    "array as coordinates": {"tp": {"coordinates": np.arange(3)}},
    "text as scale_factor": {"tp": {"scale_factor": "big"}},
    "text as add_offset": {"tp": {"add_offset": "big"}},
    "array as scale_factor": {"tp": {"scale_factor": np.array([1.0, 2.0])}},
    "text as missing_value": {"tp": {"missing_value": "none"}},
    "number as units of lat": {"lat": {"units": 5}},
    "number as axis": {"lat": {"axis": 1}},
    "array as bounds": {"lat": {"bounds": np.array([1, 2])}},
    "bounds that are not there": {"lat": {"bounds": "nowhere"}},
    "number as calendar": {"time": {"units": "days since 2023-08-01", "calendar": 5}},
    "array as units of time": {"time": {"units": np.array([1, 2])}},
    "number as bounds of time": {"time": {"units": "days since 2023-08-01", "bounds": 4}},
    "array as GRIB_stepRange": {"tp": {"GRIB_stepRange": np.array([0, 24])}},
    "5 MB of text": {"tp": {"long_name": 5_000_000 * "x"}},
    "escape sequences": {"tp": {"standard_name": "\x1b[2Jtemperature", "long_name": "\x1b]0;title\x07"}},
}


def odd_file(path, about):
    variables = {
        "lat": ("f8", ("lat",), LAT, {"units": "degrees_north"} | about.get("lat", {})),
        "lon": ("f8", ("lon",), LON, {"units": "degrees_east"}),
        "tp": ("f4", ("time", "lat", "lon"), FIELD[None], {"units": "mm"} | about.get("tp", {})),
    }
    if "time" in about:
        variables["time"] = ("f8", ("time",), [0.0], dict(about["time"]))
    return write_plain(path, {"time": 1, "lat": 13, "lon": 15}, variables)


def test_odd_attributes_leave_the_other_files(tmp_path):
    """Each is read right, or refused in one short printable line that names the file."""
    paths = [str(odd_file(tmp_path / f"2023_08_{k + 1:02d}.nc", about)) for k, about in enumerate(ODD.values())]
    records, faults = inspect_files(paths)
    kinds = dict(zip(paths, ODD, strict=True))
    for record in records:
        assert record["maximum"] == FIELD.max() and record["units"] == "mm", kinds[record["path"]]
        assert all(len(str(value)) <= 300 and str(value).isprintable() for value in record.values())
    refused = {path for path in paths for fault in faults if fault.startswith(f"{path}: ")}
    assert len(faults) == len(refused) and len(records) + len(faults) == len(paths)
    assert all(len(fault) < 900 and fault.isprintable() for fault in faults)
    assert {kinds[path] for path in refused} >= {"text as scale_factor", "array as units", "escape sequences"}


def test_bounds_that_were_never_written_are_one_error(tmp_path):
    bounds = {"time_bnds": ("f8", ("time", "nv"), np.full((1, 2), 9.96921e36), {"_FillValue": 9.96921e36})}
    time = {"time": ("f8", ("time",), [0.5], {"units": "days since 2023-08-01", "bounds": "time_bnds"})}
    axes = {name: ("f8", (name,), values, {}) for name, values in (("lat", LAT), ("lon", LON))}
    tp = {"tp": ("f4", ("time", "lat", "lon"), FIELD[None], {"units": "mm"})}
    dims = {"time": 1, "lat": 13, "lon": 15, "nv": 2}
    path = str(write_plain(tmp_path / "2023_08_01.nc", dims, {**axes, **time, **bounds, **tp}))
    records, (fault,) = inspect_files([path])
    assert not records and fault.startswith(f"{path}: ")


def test_a_header_that_claims_more_than_memory_is_one_error(tmp_path, monkeypatch):
    dims = {"lat": 31_000, "lon": 32_000}
    with netCDF4.Dataset(tmp_path / "2023_08_01.nc", "w") as file:
        for name, size in dims.items():
            file.createDimension(name, size)
            file.createVariable(name, "f8", (name,))[:] = np.linspace(-80, 80, size)
        file.createVariable("tp", "f4", tuple(dims), zlib=True).units = "mm"
    monkeypatch.setattr(utils, "free_memory", lambda: 2**33)
    with pytest.raises(DataError, match="2023_08_01.nc: tp of .*takes 22.2 GiB of memory, 8 are free; cut a region"):
        read_field(tmp_path / "2023_08_01.nc")


# ---------------------------------------------------------------- no link is followed, no size believed


def test_values_that_lie_in_other_files_are_refused(tmp_path):
    """The HDF5 library of netCDF4 makes such files here, and finds them."""
    library, hid, text = hdf5.library(), ctypes.c_int64, ctypes.c_char_p
    secret = day(tmp_path, name="secret.nc", units="mm")
    kinds = {}
    for kind in ("link", "group", "storage"):
        path = kinds[kind] = day(tmp_path, name=f"2023_08_0{len(kinds) + 1}.nc", units="mm")
        file = library.H5Fopen(os.fsencode(path), 1, 0)
        assert file >= 0
        if kind == "storage":
            plan = ctypes.CFUNCTYPE(hid, hid)(("H5Pcreate", library))(
                hid.in_dll(library, "H5P_CLS_DATASET_CREATE_ID_g").value
            )
            ctypes.CFUNCTYPE(ctypes.c_int, hid, text, ctypes.c_long, ctypes.c_uint64)(("H5Pset_external", library))(
                plan, os.fsencode(secret), 0, 800
            )
            space = ctypes.CFUNCTYPE(hid, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(
                ("H5Screate_simple", library)
            )(1, (ctypes.c_uint64 * 1)(100), None)
            create = ctypes.CFUNCTYPE(hid, hid, text, hid, hid, hid, hid, hid)(("H5Dcreate2", library))
            assert create(file, b"other", hid.in_dll(library, "H5T_IEEE_F64LE_g").value, space, 0, plan, 0) >= 0
        else:
            link = ctypes.CFUNCTYPE(ctypes.c_int, text, text, hid, text, hid, hid)(("H5Lcreate_external", library))
            assert link(os.fsencode(secret), b"/tp" if kind == "link" else b"/", file, b"pr", 0, 0) >= 0
        library.H5Fclose(file)
        del file
    plain = day(tmp_path, name="2023_08_09.nc", units="mm")
    records, faults = inspect_files([*kinds.values(), plain])
    assert [record["path"] for record in records] == [plain] and len(faults) == 3
    assert all("lies in another file" in fault and "nccopy" in fault for fault in faults), faults


def test_temporary_names_follow_no_link(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("kept")
    for path, write in (
        (tmp_path / "a.json", lambda path: utils.write_json(path, [1])),
        (tmp_path / "a.pth", lambda path: utils.save_checkpoint(path, {"step": 1})),
    ):
        utils.part_of(path).symlink_to(victim)
        write(path)
        assert victim.read_text() == "kept" and path.is_file() and not path.is_symlink()
    paths = [day(tmp_path, FIELD, units="mm")]
    folder = listed(tmp_path, paths)
    stem = open_list(folder, "train").stem
    for kind in (".f32", ".json"):
        stem.with_suffix(kind).unlink()
    utils.part_of(stem.with_suffix(".f32")).symlink_to(victim)
    open_list(folder, "train")
    assert victim.read_text() == "kept" and stem.with_suffix(".f32").is_file()


def test_a_checkpoint_that_claims_more_than_it_holds_is_not_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", bytes(30_000_000))
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *args: 1 / 0)  # no byte of it is read
    with pytest.raises(utils.Damaged, match="records of 30000000 bytes in a file of"):
        utils.load_checkpoint(path)
    with pytest.raises(DataError, match="/dev/zero: no ordinary file"):
        utils.load_checkpoint("/dev/zero")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"generator_config": {"blocks": 10**7}}, "--blocks 10000000: expected 0 to 256"),
        ({"generator_config": {"blocks": 256, "channels": 4096}}, "its settings need .* weights or more, it holds"),
        ({"generator_config": {"transform_parameters": {"c": "ten"}}}, "a.pth: not a whole checkpoint"),
        ({"generator_config": {"transform_parameters": {}}}, "a.pth: not a whole checkpoint"),
        ({"generator_config": {"transform_parameters": {"c": float("nan")}}}, "transform log tells no amounts apart"),
        ({"generator_config": {"transform_parameters": {"c": 0.0}}}, "transform log tells no amounts apart"),
        ({"generator_config": {"conserve": "yes"}}, "--conserve yes: expected True or False"),
        ({"data_config": {"hr_step": 0.2}}, "its network makes x10, its data settings say x5"),
        ({"region_cells": [1, 2]}, "a.pth: not a whole checkpoint"),
        ({"region_cells": ["a", "b", 4, 4]}, "a.pth: not a whole checkpoint"),
        ({"region_cells": 7}, "a.pth: not a whole checkpoint"),
        ({"step": "four"}, "step 'four', expected a number of steps"),
        ({"step": -3}, "step -3, expected a number of steps"),
        ({"warnings": 5}, "a.pth: not a whole checkpoint"),
        ({"knows": {"period_hours": "a day"}}, "a.pth: damaged: it says to know"),
        ({"knows": {"lr_quantiles": {"1": float("nan")}}}, "a.pth: damaged: it says to know"),
        ({"trained_on": {"days": {"here": ["2023"]}}}, "a.pth: not a whole checkpoint"),
        ({"format": "\x1b[2J" + 5_000_000 * "x"}, "checkpoint format .{80}, expected"),
    ],
)
def test_tampered_checkpoints_are_refused_at_once(home, tmp_path, monkeypatch, changes, words):
    state = utils.load_checkpoint(home.x10)
    for name, value in changes.items():
        state[name] = state[name] | value if name.endswith("_config") else value
    torch.save(state, tmp_path / "a.pth")
    argv = ["--data-folder", home.lists, "--checkpoint", tmp_path / "a.pth", "--out", tmp_path / "out"]
    began = time.process_time()
    refusal = said(3, argv, monkeypatch)
    assert re.search(words, refusal) and refusal.startswith("error: ") and "\x1b" not in refusal, refusal
    assert time.process_time() - began < 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("step", [99, -1, 2.5, "x"])
def test_a_training_is_not_gone_on_with_from_a_step_that_is_none(home, tmp_path, monkeypatch, step):
    torch.save(utils.load_checkpoint(home.x10) | {"step": step}, tmp_path / "a.pth")
    argv = ["--resume", "--checkpoint", tmp_path / "a.pth", "--runs", tmp_path / "runs"]
    assert re.search(f"step {step!r}, expected one of 0 to 4", said(2, argv, monkeypatch))


@pytest.mark.parametrize("words", ["--batch 60000", "--channels 4096 --blocks 256"])
def test_a_training_that_memory_cannot_hold_moves_nothing(home, tmp_path, monkeypatch, words):
    (tmp_path / "a.pth").write_text("an earlier model")
    monkeypatch.setattr(utils, "free_memory", lambda: 2**26 if "batch" in words else 2**33)
    monkeypatch.setattr(training, "State", lambda *args: 1 / 0)  # nothing is made either
    argv = ["--data-folder", home.lists, "--lr-step", 1, "--hr-step", 0.1, *TINY, *words.split()]
    refusal = said(2, [*argv, "--checkpoint", tmp_path / "a.pth"], monkeypatch)
    assert re.search(r"a step of \d+ samples x 2 members of .* takes [\d.e+]+ GiB of memory, .* --batch", refusal)
    assert (tmp_path / "a.pth").read_text() == "an earlier model"


# ---------------------------------------------------------------- messages do not mislead


def test_why_there_are_no_scores_is_said_and_no_earlier_ones_stay(home, tmp_path, capsys):
    argv = ["--data-folder", home.hr_lists, "--checkpoint", home.coarsen, "--out", tmp_path]
    run(3, *argv)
    assert (tmp_path / "scores.csv").exists()
    run(3, *argv, "--score-window", 50)
    assert "no scores: --score-window 50 is wider than the field of " in capsys.readouterr().out
    assert not (tmp_path / "scores.csv").exists() and (tmp_path / "00_pre_sr.nc").exists()


def test_an_evaluation_list_that_misses_a_file_is_not_called_absent(tmp_path, capsys):
    paths = [day(tmp_path, name=f"2023_08_0{k}.nc", units="mm") for k in (1, 2)]
    folder = listed(tmp_path, paths, "eval")
    os.remove(paths[0])
    assert forecasts.analysed_days(folder) == {}
    said = capsys.readouterr().out
    assert f"the evaluation list cannot be used ({paths[0]}: is in the list but not on disk" in said
    os.remove(folder / "PreEval.json")
    assert forecasts.analysed_days(folder) == {} and "no evaluation list, so" in capsys.readouterr().out


def test_a_name_is_utf_8_whatever_the_locale(tmp_path):
    (tmp_path / "2023_08_01_café.nc").write_bytes(b"no NetCDF")
    code = "import reader\ntry: reader.read_field('2023_08_01_caf\\udcc3\\udca9.nc')\nexcept Exception as e: print(e)"
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONPATH": str(ROOT)}
    plain |= {"PYTHONIOENCODING": "utf-8:backslashreplace"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=plain, capture_output=True, text=True)
    assert "cannot be read as NetCDF" in done.stdout and "UTF-8" not in done.stdout, done.stdout + done.stderr


# ---------------------------------------------------------------- what words, methods, packing and axes say is heard


WORDS = [  # quantities in mm that are no total of rain
    *("precipitable water", "total column precipitable water", "rain water path", "column rain water content"),
    *("ensemble spread of total precipitation", "variance of precipitation", "median of precipitation"),
    *("interquartile range of precipitation", "bias of precipitation", "difference of precipitation of two runs"),
    *("increment of precipitation by assimilation", "precipitation normal 1991-2020", "rain gauge count"),
    *("accumulated precipitation since 1 August", "cumulative rainfall since start of season", "rainfall deficit"),
    *("month-to-date precipitation", "antecedent precipitation index", "log of precipitation", "rain erosivity"),
    *("100-year return level of daily precipitation", "rainfall interception", "square root of precipitation"),
]
STANDARD = [
    *("atmosphere_mass_content_of_rain", "change_over_time_in_precipitation_amount"),
    "tendency_of_atmosphere_mass_content_of_water_due_to_precipitation",
]
METHODS = [
    *("area: maximum time: sum", "realization: standard_deviation time: sum", "realization: maximum", "area: sum"),
    *("time: minimum", "time: sum within days time: mean over days"),
]
FLAGS = {"flag_values": np.arange(3), "flag_meanings": "dry light heavy"}


@pytest.mark.parametrize(
    "attrs",
    [
        *({"long_name": words} for words in WORDS),
        *({"standard_name": words} for words in STANDARD),
        *({"cell_methods": words} for words in METHODS),
        FLAGS,
    ],
    ids=lambda attrs: str(next(iter(attrs.values()))),
)
def test_what_is_no_total_of_rain_is_refused_though_its_unit_is_mm(tmp_path, attrs):
    path = odd_file(tmp_path / "2023_08_01.nc", {"tp": dict(attrs)})
    records, (fault,) = inspect_files([str(path)])
    assert not records and fault.startswith(f"{path}: ") and next(iter(attrs)) in fault or "month or more" in fault


@pytest.mark.parametrize(
    "attrs",
    [
        {"long_name": "Total precipitation accumulated over 24 hours"},
        {"long_name": "bias-corrected daily precipitation"},
        {"description": "ESA Climate Change Initiative precipitation: rows and columns of 1 degree, log at the end"},
        {"long_name": "NOAA Climate Data Record of PMW-IR merged precipitation"},
        {"long_name": "daily total precipitation (rain + melted snow)"},
        {"cell_methods": "area: mean time: sum"},
        {"cell_methods": "lat: lon: mean time: sum (interval: 1 hour comment: max of gauges)"},
        {"cell_methods": "time: sum realization: mean"},
    ],
    ids=lambda attrs: next(iter(attrs.values())),
)
def test_what_is_a_total_of_rain_is_read(tmp_path, attrs):
    path = odd_file(tmp_path / "2023_08_01.nc", {"tp": dict(attrs)})
    np.testing.assert_array_equal(read_field(path).values, FIELD)


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({"tp": {"_FillValue": np.float32(0)}}, "_FillValue 0.0 stands for 0 mm, so dry cells count as missing"),
        ({"tp": {"missing_value": np.float32(0)}}, "missing_value 0.0 stands for 0 mm"),
        ({"tp": {"scale_factor": 0.0}}, "scale_factor 0.0 makes 0 of every value"),
        ({"lat": {"long_name": "colatitude"}}, "expected latitude and longitude"),
        ({"lat": {"long_name": "geomagnetic latitude"}}, "expected latitude and longitude"),
        ({"lat": {"long_name": "latitude of lower left corner"}}, "latitude of lower left corner"),
        ({"lat": {"long_name": "latitude, southern edge of the cell"}}, "southern edge of the cell"),
        ({"lat": {"units": "degrees_east"}}, "expected latitude and longitude"),
    ],
)
def test_packing_and_axes_that_mislead_are_refused(tmp_path, about, words):
    path = odd_file(tmp_path / "2023_08_01.nc", copy.deepcopy(about))
    with pytest.raises(DataError, match=f"{path}: .*{words}"):
        read_field(path)


def test_names_and_units_of_axes_that_are_swapped_are_refused(tmp_path):
    axes = {"lat": ("f8", ("lat",), LAT, {"units": "degrees_east"}), "lon": ("f8", ("lon",), LON, {})}
    axes["lon"] = ("f8", ("lon",), LON - 50, {"units": "degrees_north"})
    tp = {"tp": ("f4", ("lat", "lon"), FIELD, {"units": "mm"})}
    path = write_plain(tmp_path / "2023_08_01.nc", {"lat": 13, "lon": 15}, axes | tp)
    with pytest.raises(DataError, match="lat .degrees_east., lon .degrees_north.*expected latitude and longitude"):
        read_field(path)


def test_a_coordinate_on_another_dimension_is_refused(tmp_path):
    axes = {"lat": ("f8", ("lon",), LAT, {}), "lon": ("f8", ("lon",), LON[:13], {})}
    tp = {"tp": ("f4", ("lat", "lon"), FIELD[:, :13], {"units": "mm"})}
    path = write_plain(tmp_path / "2023_08_01.nc", {"lat": 13, "lon": 13}, axes | tp)
    with pytest.raises(DataError, match="lat lies on dimensions .*lon.*, expected its own: lat"):
        read_field(path)


@pytest.mark.parametrize(
    ("time", "bounds", "words"),
    [
        (0, (5, 6), "its time is 2023-08-01, and bnds gives 2023-08-06 to 2023-08-07; expected a time within"),
        (31, None, "its name says 2023-08-01, its time coordinate 2023-09-01"),
        (1e300, None, "is no date"),
    ],
)
def test_a_scalar_time_that_nothing_names_is_heard(tmp_path, time, bounds, words):
    variables = {
        "lat": ("f8", ("lat",), LAT, {}),
        "lon": ("f8", ("lon",), LON, {}),
        "tp": ("f4", ("lat", "lon"), FIELD, {"units": "mm"}),
        "time": ("f8", (), time, {"units": "days since 2023-08-01"} | ({"bounds": "bnds"} if bounds else {})),
    }
    if bounds:
        variables["bnds"] = ("f8", ("nv",), bounds, {})
    path = write_plain(tmp_path / "2023_08_01.nc", {"lat": 13, "lon": 15, "nv": 2}, variables)
    with pytest.raises(DataError, match=words):
        read_field(path)


# ---------------------------------------------------------------- what would make scores worthless is said


def test_evaluation_days_that_are_training_days_are_said(tmp_path, capsys):
    """Of the same places: radar days east and west of a line are other data."""
    for k in range(3):
        day(tmp_path / "train", FIELD + k, f"2023_08_0{k + 1}.nc", "mm")
    day(tmp_path / "eval", FIELD, "2023_08_02.nc", "mm")
    write_nc(tmp_path / "east/2023_08_02.nc", FIELD, LAT, LON + 20, attrs={"units": "mm"})
    argv = ["--train-folders", tmp_path / "train", "--output-folder", tmp_path, "--eval-folders"]
    run(1, *argv, tmp_path / "eval", tmp_path / "east")
    assert "NOTE: 1 evaluation days are training days of the same places" in capsys.readouterr().out
    run(1, *argv, tmp_path / "east")
    assert "evaluation days are training days" not in capsys.readouterr().out


def test_files_of_the_same_values_are_said(tmp_path, capsys):
    paths = [day(tmp_path / "in", FIELD + k, f"2023_08_0{k + 1}.nc", "mm") for k in range(3)]
    shutil.copy(paths[0], tmp_path / "in/2023_08_04.nc")
    for k in (5, 6):
        day(tmp_path / "in", 0 * FIELD, f"2023_08_0{k}.nc", "mm")  # dry days are alike
    run(1, "--train-folders", tmp_path / "in", "--output-folder", tmp_path)
    assert re.search("NOTE: 2 files hold the same values as another: .*_01.nc, .*_04.nc\n", capsys.readouterr().out)


def test_a_training_of_no_steps_is_refused(home, tmp_path, monkeypatch):
    argv = ["--data-folder", home.lists, "--lr-step", 1, "--hr-step", 0.1, *TINY, "--content-steps", 0]
    words = said(2, [*argv, "--checkpoint", tmp_path / "a.pth"], monkeypatch)
    assert "expected a step or more to train" in words and not (tmp_path / "a.pth").exists()


def test_rain_is_no_static_field(home, tmp_path, monkeypatch):
    path = day(tmp_path, units="mm")
    argv = ["--data-folder", home.lists, "--lr-step", 1, "--hr-step", 0.1, *TINY, "--static", path]
    words = said(2, [*argv, "--checkpoint", tmp_path / "a.pth"], monkeypatch)
    assert "tp speaks of rain, which is no static field" in words


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("", None),
        ("shifted", "LR resembles the truth of the pair before (correlation 1.00) more than the truth of its own time"),
        ("upside down", "LR resembles the truth turned upside down (correlation 1.00)"),
        ("mirrored", "LR resembles the truth turned left to right (correlation 1.00)"),
        ("ten times", "the truth of some pairs has a mean of "),
    ],
)
def test_truth_of_another_time_direction_or_unit_is_said(tmp_path, change, words):
    """Pairs share a time in the names alone: their rain must be alike too."""
    for k in range(8):
        fine = rain((60, 60), k)
        coarse = fine.reshape(6, 10, 6, 10).mean((1, 3))
        truth = {"upside down": fine[::-1], "mirrored": fine[:, ::-1], "ten times": 10 * fine}.get(change, fine)
        lat, lon = nodes(20.05, 25.95, 0.1)[::-1], nodes(100.05, 105.95, 0.1)
        write_nc(tmp_path / f"hr/2023_08_0{k + 1}.nc", truth, lat, lon, attrs={"units": "mm"})
        lat, lon = nodes(20.5, 25.5, 1)[::-1], nodes(100.5, 105.5, 1)
        late = k + 1 + (change == "shifted")
        write_nc(tmp_path / f"lr/2023_08_0{late}.nc", coarse, lat, lon, attrs={"units": "mm"})
    run(1, "--train-folders", tmp_path / "lr", "--train-hr-folders", tmp_path / "hr", "--output-folder", tmp_path)
    pairs = SRDataset(tmp_path, "train", target="paired", region="all", lr_step=1, hr_step=0.1)
    found = list(datasets.doubts(pairs))
    assert len(found) == (words is not None) and (not words or words in found[0]), found


def test_a_code_in_one_hour_of_a_day_is_no_rain(tmp_path, monkeypatch):
    hours = np.stack([rain((13, 15), k, 8) for k in range(24)])
    hours[9, :4, :4] = 999
    coords = {"time": ("time", np.arange(24.0), {"units": "hours since 2023-08-01"}), "lat": LAT, "lon": LON}
    (tmp_path / "raw").mkdir()
    xr.Dataset({"tp": (("time", "lat", "lon"), hours, {"units": "mm"})}, coords).to_netcdf(tmp_path / "raw/h.nc")
    argv = ["--make-days", tmp_path / "raw", "--days-folder", tmp_path / "days", "--output-folder", tmp_path]
    words = said(1, [*argv, "--stamps", "start"], monkeypatch)
    assert "h.nc: 16 cell(s) of one time hold exactly 999" in words and not list(tmp_path.glob("days/*.nc"))
