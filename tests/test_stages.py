"""Laws of the five stages, run as their users run them, on the small archive of conftest.py."""

import csv
import json
import re
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
import xarray as xr
from conftest import ROOT, block_means, nodes, outputs, rain, run, run3, said, stage, write_nc

import utils
from utils import DataError

# ---------------------------------------------------------------- stage 1


def test_lists_are_in_date_order_and_posix(workdir, capsys):
    lat, lon = nodes(22, 34, 1)[::-1], nodes(100, 114, 1)
    for name in ("b/2023_08_05.nc", "a/2023_08_07.nc", "b/2023_08_01.nc", "a/2023_08_05_copy.nc"):
        write_nc(workdir / name, rain((13, 15)), lat, lon)
    assert run(1, "--eval-folders", "a", "b", "--output-folder", "out") in (None, 0)
    expected = ["b/2023_08_01.nc", "a/2023_08_05_copy.nc", "b/2023_08_05.nc", "a/2023_08_07.nc"]
    assert json.loads((workdir / "out/PreEval.json").read_text()) == expected
    assert sorted(p.name for p in (workdir / "out").iterdir()) == [
        "PreEval.json",
        "PreInfo.json",
    ]  # only what was asked
    words = capsys.readouterr().out
    assert "4 files, 2023-08-01 to 2023-08-07" in words and "1 degree (13 x 15)" in words
    assert "1 times occur more than once: 2023-08-05" in words
    assert "4 days are missing" in words and "2023-08-02" in words
    record = json.loads((workdir / "out/PreInfo.json").read_text())["files"]["eval"][0]
    assert record["units"] == "mm" and record["step"] == 1 and record["size"] and record["mtime_ns"]


def test_small_files_are_left_out_and_named(workdir, capsys):
    lat, lon = nodes(22, 34, 1)[::-1], nodes(100, 114, 1)
    write_nc(workdir / "in/2023_08_01.nc", rain((13, 15)), lat, lon)
    write_nc(workdir / "in/2023_08_02.nc", rain((13, 4)), lat, lon[:4])
    run(1, "--eval-folders", "in", "--output-folder", "out", "--min-size", 5)
    assert json.loads((workdir / "out/PreEval.json").read_text()) == ["in/2023_08_01.nc"]
    assert "left out: in/2023_08_02.nc: 13 x 4 cells, fewer than --min-size 5" in capsys.readouterr().out


def test_default_folders_that_are_absent_are_said(workdir, capsys, monkeypatch):
    assert "hold no .nc file" in said(1, [], monkeypatch)
    lat, lon = nodes(22, 34, 1)[::-1], nodes(100, 114, 1)
    write_nc(workdir / "Data/DataEval/2023_08_01.nc", rain((13, 15)), lat, lon)
    (workdir / "Data/DataObj").mkdir()
    assert said(1, [], monkeypatch) in (None, 0)
    words = capsys.readouterr().out
    assert "Data/DataTrain: absent" in words and "Data/DataObj: empty" in words
    assert (workdir / "Data/JsonPath/PreEval.json").exists()
    for argv in (
        ["--eval-folders", "gone"],
        ["--eval-folders", "Data/DataObj"],
        ["--eval-hr-folders", "Data/DataEval"],
    ):
        assert re.match("error: .*(gone|DataObj|--eval-folders)", said(1, argv, monkeypatch))


def test_pairs_by_time_and_what_has_no_partner_is_said(workdir, capsys):
    lat, lon = nodes(22, 34, 1)[::-1], nodes(100, 114, 1)
    for day in (1, 2, 3):
        write_nc(workdir / f"low/2023_08_0{day}.nc", rain((13, 15)), lat, lon)
    for day in (2, 3, 4):
        write_nc(workdir / f"high/2023_08_0{day}.nc", rain((13, 15)), lat, lon)
    run(1, "--eval-folders", "low", "--eval-hr-folders", "high", "--output-folder", "out")
    pairs = json.loads((workdir / "out/PreEval.json").read_text())
    assert pairs == [{"lr": f"low/2023_08_0{d}.nc", "hr": f"high/2023_08_0{d}.nc"} for d in (2, 3)]
    words = capsys.readouterr().out
    assert "low/2023_08_01.nc" in words and "high/2023_08_04.nc" in words


def test_two_truths_of_one_time_are_refused(workdir, monkeypatch):
    lat, lon = nodes(22, 34, 1)[::-1], nodes(100, 114, 1)
    for name in ("low/2023_08_02", "high/2023_08_02", "high/2023_08_02_0000"):
        write_nc(workdir / f"{name}.nc", rain((13, 15)), lat, lon)
    words = said(1, ["--eval-folders", "low", "--eval-hr-folders", "high", "--output-folder", "out"], monkeypatch)
    assert "two truths of 2023-08-02T00:00: high/2023_08_02.nc and high/2023_08_02_0000.nc" in words


def test_what_stage_3_made_is_no_input(home, tmp_path, monkeypatch):
    run(3, "--checkpoint", home.x10, "--out", tmp_path / "days", "--no-scores")
    words = said(1, ["--eval-folders", tmp_path / "days", "--output-folder", tmp_path / "lists"], monkeypatch)
    assert "00_pre_sr.nc: made by stage 3 or 4" in words and not (tmp_path / "lists").exists()


def test_a_damaged_info_file_does_not_stop_stage_1(workdir):
    write_nc(workdir / "in/2023_08_01.nc", rain((13, 15)), nodes(22, 34, 1)[::-1], nodes(100, 114, 1))
    for rubbish in ("{", "[1, 2]", ""):
        (workdir / "out").mkdir(exist_ok=True)
        (workdir / "out/PreInfo.json").write_text(rubbish)
        run(1, "--eval-folders", "in", "--output-folder", "out")
        assert json.loads((workdir / "out/PreInfo.json").read_text())["files"]["eval"]


# ---------------------------------------------------------------- stages 3, 4, 5: the right place, amount, day


def test_a_marker_in_the_north_east_stays_there_through_every_stage(home, tmp_path):
    lat, lon = nodes(20, 36, 1)[::-1], nodes(-106, -90, 1)
    values = np.zeros((17, 17))
    values[6, 10] = 50.0  # 30 N, 96 W: the north-east cell of -100 -96 26 30
    layouts = [(dims, south, east) for dims in ("lat lon", "lon lat") for south in (0, 1) for east in (0, 360)]
    for k, (dims, south, east) in enumerate(layouts, 1):
        turned = (values[::-1], lat[::-1]) if south else (values, lat)
        write_nc(tmp_path / f"days/2023_08_0{k}.nc", *turned, lon + east, dims=dims.split())
    fine_lat, fine_lon = nodes(20, 36, 0.4)[::-1], nodes(-106, -90, 0.4)
    fine = np.zeros((41, 41))
    fine[15, 25] = 0.05  # 30 N, 96 W, metres
    for k, (dims, south, east) in enumerate(layouts, 1):
        turned = (fine[::-1], fine_lat[::-1]) if south else (fine, fine_lat)
        write_nc(tmp_path / f"obj/2023_08_0{k}_18_08_1{k}_x.nc", *turned, fine_lon + east, dims=dims.split())
    lists = tmp_path / "lists"
    run(
        1,
        "--train-folders",
        tmp_path / "days",
        "--eval-folders",
        tmp_path / "days",
        "--obj-folders",
        tmp_path / "obj",
        "--output-folder",
        lists,
    )
    where = ["--data-folder", lists, "--region", -100, -96, 26, 30]
    run3(*where, "--checkpoint", home.x10, "--out", tmp_path / "eval")
    run(4, *where, "--checkpoint", home.x4, "--out", tmp_path / "fore")
    for split in ("train", "eval", "obj"):
        run(5, *where, "--split", split, "--hr-step", 0.1, "--out", tmp_path / f"pairs_{split}")
    for folder, scale in (("eval", 10), ("fore", 4)):
        made = outputs(tmp_path / folder)
        assert len(made) == 8
        for sr in made:
            means = block_means(sr, scale)
            assert means[0, -1] == pytest.approx(50, abs=1e-3) and np.count_nonzero(means) == 1
            wet = sr.where(sr > 0, drop=True)
            assert wet.lat.min() > 29.4 and wet.lon.min() > -96.6
    for split in ("train", "eval", "obj"):
        for lr, hr in zip(*(outputs(tmp_path / f"pairs_{split}", kind) for kind in ("lr", "hr")), strict=True):
            assert lr.values[0, -1] == pytest.approx(50) and np.count_nonzero(lr) == 1
            at = hr.where(hr == hr.max(), drop=True)
            assert at.lat.min() > 29.5 and at.lon.min() > -96.5
            assert float(hr.sel(lat=slice(28.5, 25), lon=slice(-101, -97.5)).max()) == 0


def test_stage_4_conserves_the_forecast_and_names_its_times(home, tmp_path):
    run(4, "--out", tmp_path)
    run(5, "--split", "obj", "--hr-step", 0.1, "--out", tmp_path)
    made, lows = outputs(tmp_path), outputs(tmp_path, "lr")
    assert len(made) == len(lows) == 3
    for k, (sr, lr) in enumerate(zip(made, lows, strict=True)):
        assert sr.shape == (44, 44) and lr.shape == (11, 11)
        np.testing.assert_allclose(block_means(sr, 4), lr, atol=1e-3)
        assert float(sr.min()) >= 0
        assert sr.time.values == np.datetime64(f"2023-08-1{k + 1}") == lr.time.values
        assert sr.forecast_reference_time.values == np.datetime64(f"2023-08-1{k}T18")
    with xr.open_dataset(tmp_path / "00_pre_sr.nc") as file:
        kept = file.attrs
    assert kept["source_file"] == "2023_08_10_18_08_11_x.nc" and kept["checkpoint"] == utils.digest(home.x4)
    assert kept["seed"] == 0 and kept["scale"] == 4 and kept["target"] == "interpolate"


def test_stage_5_without_options_makes_the_pairs_that_the_notebook_shows(project, tmp_path, monkeypatch):
    (tmp_path / "Data").mkdir()
    for name in ("DataEval", "DataObj", "JsonPath"):
        (tmp_path / "Data" / name).symlink_to(project.home / "Data" / name)
    monkeypatch.chdir(tmp_path)
    run(5, "--hr-step", 0.1)
    results = tmp_path / "Data/DataResults"
    assert sorted(folder.name for folder in results.iterdir()) == [
        "ResultEval",
        "ResultObj",
    ]  # training days can be thousands
    assert [len(outputs(results / f"Result{name}", kind)) for name in ("Eval", "Obj") for kind in ("lr", "hr")] == [
        3
    ] * 4
    with pytest.raises(SystemExit):
        run(5, "--out", tmp_path)  # of which list?


def test_no_stage_makes_a_missing_value(home, tmp_path, monkeypatch):
    """Dry, single drops, the least and the most that the reader takes: finite in, finite out."""
    monkeypatch.chdir(tmp_path)
    lat, lon = nodes(20, 36, 1)[::-1], nodes(100, 116, 1)
    rng = np.random.default_rng(0)
    fields = [np.zeros((17, 17)) for _ in range(6)]
    fields[1][6, 10], fields[2][6, 10], fields[3][:] = 1e-30, 2000, 2000
    fields[4] = rng.choice([0, 1e-40, 1e-7, 2000], (17, 17))
    fields[5] = np.where(rng.random((17, 17)) < 0.5, -0.09, 0.0)  # packing noise
    for k, values in enumerate(fields, 1):
        write_nc(tmp_path / f"days/2023_08_{k:02d}.nc", values, lat, lon, attrs={"units": "mm"})
        write_nc(
            tmp_path / f"nights/2023_08_{k:02d}.nc",
            values[::-1],
            lat[::-1] / 10 + 25,
            lon / 10 + 96,
            attrs={"units": "mm"},
        )
    run(1, "--eval-folders", "days", "--output-folder", "lists", "--valid-max", 2000)
    run(1, "--eval-folders", "nights", "--output-folder", "fine", "--valid-max", 2000)
    run3("--data-folder", "lists", "--checkpoint", home.x10, "--out", "sr", "--members", 2)
    run(5, "--data-folder", "lists", "--split", "eval", "--hr-step", 0.1, "--out", "pairs")
    argv = ["--target", "coarsen", "--lr-step", 0.4, "--hr-step", 0.1, "--region", 105.95, 107.15, 27.15, 28.35]
    run(5, "--data-folder", "fine", "--split", "eval", *argv, "--out", "coarse")
    made = [
        *outputs(tmp_path / "sr"),
        *(f for out in ("pairs", "coarse") for k in ("lr", "hr") for f in outputs(tmp_path / out, k)),
    ]
    assert len(made) == 30
    for field in made:
        assert np.isfinite(field).all() and float(field.min()) >= 0


def test_outputs_pass_a_cf_checker_and_open_in_other_tools(home, tmp_path):
    checker = pytest.importorskip("compliance_checker.runner")
    checker.CheckSuite.load_all_available_checkers()
    run3("--checkpoint", home.x10, "--out", tmp_path / "sr", "--members", 2)
    run(4, "--out", tmp_path / "fore")
    run(5, "--split", "eval", "--hr-step", 0.1, "--out", tmp_path / "pairs")
    for name in ("sr/00_pre_sr.nc", "fore/00_pre_sr.nc", "pairs/00_pre_lr.nc", "pairs/00_pre_hr.nc"):
        path = tmp_path / name
        checker.ComplianceChecker.run_checker(
            str(path), ["cf:1.11"], 0, "strict", output_filename=str(tmp_path / "report.json"), output_format="json"
        )
        report = json.loads((tmp_path / "report.json").read_text())["cf:1.11"]
        assert report["possible_points"] > 100
        faults = [
            words
            for part in ("high", "medium", "low")
            for check in report[f"{part}_priorities"]
            for words in check["msgs"]
            if check["value"][0] < check["value"][1]  # others say what they looked at
        ]
        assert not faults and report["scored_points"] == report["possible_points"], faults
        with xr.open_dataset(path) as file:
            assert file.time.dtype.kind == "M" and str(file.time.values[0])[:7] == "2023-08"
            assert file.tp.dims[0] == "time" and file.tp.sizes["time"] == 1
        for tool in (["ncdump", "-h"], ["cdo", "-s", "infon"]):
            if shutil.which(tool[0]):
                done = subprocess.run([*tool, path], capture_output=True, text=True)
                assert done.returncode == 0 and "tp" in done.stdout, done.stderr


def test_plots_are_drawn_without_truth_and_without_scores(home, tmp_path, capsys):
    """Days at the LR step have no truth for a model of coarsen: they are drawn, and compared with their own input."""
    names = ["00_maps.png", "01_maps.png", "02_maps.png", "members.png", "wettest.png"]
    run(3, "--checkpoint", home.coarsen, "--out", tmp_path / "a", "--members", 2, "--plots")
    printed = capsys.readouterr().out
    assert "no truth for target coarsen" in printed and "no test of the detail" in printed
    with (tmp_path / "a/scores.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["name"] == "consistency: own input" and (row["fields"], row["cells"]) == ("3", str(3 * 25))
    assert float(row["qq_rmse"]) < 1e-4 and float(row["max_difference"]) < 1e-4 < float(row["mean_reference"])
    run(3, "--checkpoint", home.x10, "--out", tmp_path / "b", "--plots", "--no-scores")
    for folder, more in (("a", ["qq_own_input.png"]), ("b", [])):
        drawn = sorted((tmp_path / folder / "plots").iterdir())
        assert [path.name for path in drawn] == sorted(names + more)
        assert min(path.stat().st_size for path in drawn) > 5000


def test_files_at_the_hr_step_are_real_truth_whatever_the_target(home, tmp_path, capsys):
    run(3, "--data-folder", home.hr_lists, "--checkpoint", home.x10, "--out", tmp_path)
    words = capsys.readouterr().out
    assert "(target coarsen)" in words and "INTERPOLATION" not in words


# ---------------------------------------------------------------- stages 2 and 5: settings that the files decide


def plans(*argv):
    """The DataConfig of each model that stage 2 would train."""
    args = stage(2)["parse_args"](list(map(str, argv)))
    return [config for config, _ in stage(2)["plan_models"](args)]


def test_steps_come_from_the_files_where_there_is_one_answer(home, tmp_path, capsys):
    lists = tmp_path / "lists"
    run(1, "--train-folders", "Data/DataTrain", "--train-hr-folders", "HrTrain", "--output-folder", lists)
    (paired,) = plans("--target", "paired", "--data-folder", lists)
    assert (paired.lr_step, paired.hr_step, paired.region) == (1, 0.1, (106, 110, 26, 30))
    assert f"from the files of {lists}/PreTrain.json: --hr-step 0.1\n" in capsys.readouterr().out  # 1 is the default
    (coarsen,) = plans("--target", "coarsen", "--lr-step", 1, "--data-folder", home.hr_lists)
    assert (coarsen.lr_step, coarsen.hr_step) == (1, 0.1)
    assert [config.lr_step for config in plans("--hr-step", 0.1)] == [1, 0.4]  # of evaluation days and forecasts
    assert plans("--target", "paired", "--data-folder", lists, "--lr-step", 2, "--hr-step", 0.5)[0].scale == 4
    with pytest.raises(DataError, match="the train list holds no pairs; give stage 1 --train-folders and --train-hr"):
        plans("--target", "paired")


@pytest.mark.parametrize("argv", [["--target", "coarsen"], ["--hr-step", "0.1"]])
def test_the_first_error_names_all_that_is_missing_and_its_command_runs(home, argv):
    """What a new user types on files of truth, and then the command that the error gives."""
    with pytest.raises(DataError, match="(?s)--target coarsen needs --lr-step.*PreTrain.json holds files of 0.1") as no:
        plans(*argv, "--data-folder", home.hr_lists)
    command = str(no.value).splitlines()[-1].split()
    assert command[:2] == ["python", "2train.py"]
    (config,) = plans(*command[2:])
    assert (config.target, config.lr_step, config.hr_step) == ("coarsen", 1, 0.1)
    with pytest.raises(DataError, match="files of 1 degree") as no:  # the default region is no whole cells of 4 degree
        plans("--target", "coarsen")
    (config,) = plans(*str(no.value).splitlines()[-1].split()[2:])
    assert (config.lr_step, config.hr_step, config.region) == (4, 1, "all")
    with pytest.raises(DataError, match="--region all") as no:  # a region that was typed comes back as it was
        plans(*argv, "--region", "all", "--data-folder", home.hr_lists)
    assert plans(*str(no.value).splitlines()[-1].split()[2:])[0].region == "all"


def test_files_elsewhere_are_taken_whole_and_it_is_said(workdir, capsys):
    lat, lon = nodes(50.05, 55.95, 0.1)[::-1], nodes(2.05, 9.95, 0.1)
    for k in (1, 2):
        write_nc(workdir / f"hr/2023_08_0{k}.nc", rain((60, 80), k), lat, lon, attrs={"units": "mm"})
        low = rain((60, 80), k).reshape(12, 5, 16, 5).mean((1, 3))
        write_nc(workdir / f"lr/2023_08_0{k}.nc", low, nodes(50.25, 55.75, 0.5)[::-1], nodes(2.25, 9.75, 0.5))
    run(1, *("--train-folders", "lr", "--train-hr-folders", "hr", "--eval-folders", "lr", "--eval-hr-folders", "hr"))
    capsys.readouterr()
    (config,) = plans("--target", "paired")
    assert (config.lr_step, config.hr_step, config.region) == (0.5, 0.1, "all")
    words = (
        "--lr-step 0.5 --hr-step 0.1 --region all (they cover 2..10 E, 50..56 N, not the default region 106 110 26 30)"
    )
    assert f"from the files of Data/JsonPath/PreTrain.json: {words}" in capsys.readouterr().out
    run(5, "--split", "eval", "--target", "paired", "--out", "out")
    assert words in capsys.readouterr().out
    assert outputs(workdir / "out", "hr")[0].shape == (60, 80) and outputs(workdir / "out", "lr")[0].shape == (12, 16)


# ---------------------------------------------------------------- scripts as files


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_importing_a_stage_does_nothing(number, workdir):
    assert isinstance(stage.__wrapped__(number)["main"], types.FunctionType)
    assert not list(workdir.iterdir())


def test_a_fault_is_one_line_and_an_exit_code_for_the_shell(workdir):
    done = subprocess.run(
        [sys.executable, str(ROOT / "5interpolation.py"), "--split", "eval"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1 and done.stderr.startswith("error: Data/JsonPath/PreEval.json: no such list")
    assert "Traceback" not in done.stderr and done.stderr.count("\n") == 1


def test_stage_5_refuses_in_words(home, tmp_path, monkeypatch):
    for argv, part in (
        (["--split", "eval", "--region", 106.2, 110, 26, 30], "nearest that does: --region"),
        (["--split", "obj", "--lr-step", 1], "step is 0.4 degree"),
        (["--split", "eval", "--target", "coarsen", "--hr-step", 0.1], "no truth for target coarsen"),
        (["--split", "eval", "--target", "paired"], "no pairs"),
    ):
        words = said(5, [*argv, "--out", tmp_path], monkeypatch)
        assert words.startswith("error: ") and part in words, words


def test_odd_lists_are_handled_in_words(home, tmp_path, monkeypatch):
    good = json.loads((home.lists / "PreEval.json").read_text())
    for content, part in (
        ("{", "not JSON"),
        ("{}", "expected a JSON array"),
        ("[]", "expected a JSON array"),
        ("[1, 2]", "expected a JSON array"),
        ('["C:\\\\Data\\\\a.nc"]', "Windows path"),
        ('[{"lr": "C:\\\\a.nc", "hr": "C:\\\\b.nc"}]', "Windows path"),
        (json.dumps([*good, "Data/DataEval/gone.nc"]), "gone.nc: "),
        (json.dumps(["../../../etc"]), "etc: "),
        (json.dumps(["/etc"]), "/etc: "),
        (json.dumps(["/gone/2023_08_01.nc"]), "/gone/2023_08_01.nc: "),
        (json.dumps(["~/2023_08_01.nc"]), "~/2023_08_01.nc: "),
        (json.dumps(["file:///a.nc"]), "a.nc: no such file"),
        (json.dumps(["a\0.nc"]), "no such file"),
        (json.dumps(["\ud800.nc"]), "no such file"),
        (json.dumps([""]), ".: a folder"),
        (json.dumps(["x" * 5000]), "name too long"),
        ("[" * 100_000, "not JSON"),
        (json.dumps([*good, {"lr": good[0], "hr": good[0]}]), "expected a JSON array"),
    ):
        (tmp_path / "PreEval.json").write_text(content)
        words = said(
            5, ["--split", "eval", "--data-folder", tmp_path, "--hr-step", 0.1, "--out", tmp_path], monkeypatch
        )
        assert words.startswith("error: ") and part in words, words
    (tmp_path / "PreEval.json").write_bytes(b"\xff\xfe\x00")
    assert "not JSON" in said(5, ["--split", "eval", "--data-folder", tmp_path], monkeypatch)
    (tmp_path / "PreEval.json").write_text(json.dumps([str(home.home / good[0])]))  # absolute: fine
    size, mtime_ns = utils.stamp(home.home / good[0])
    record = {"path": str(home.home / good[0]), "units": "inch", "step": 1, "size": size, "mtime_ns": mtime_ns}
    for content in (
        [],
        {"files": []},
        {"files": {"eval": 3}},
        {"files": {"eval": [3]}},
        {"files": {"eval": [{}]}},
        {"files": {"eval": [record]}},
    ):
        (tmp_path / "PreInfo.json").write_text(json.dumps(content))
        assert "PreInfo.json" in said(5, ["--split", "eval", "--data-folder", tmp_path, "--hr-step", 0.1], monkeypatch)
    (tmp_path / "PreInfo.json").unlink()
    run(5, "--split", "eval", "--data-folder", tmp_path, "--hr-step", 0.1, "--out", tmp_path / "x")
    assert len(outputs(tmp_path / "x", "hr")) == 1


def test_no_data_error_is_unknown_to_run_stage(monkeypatch):
    def fail(error):
        def main():
            raise error

        return main

    for error, code in (
        (DataError("a"), "error: a"),
        (PermissionError(13, "denied", "b"), "error: b: denied"),
        (KeyboardInterrupt(), 130),
    ):
        with pytest.raises(SystemExit) as end:
            utils.run_stage(fail(error))
        assert end.value.code == code
