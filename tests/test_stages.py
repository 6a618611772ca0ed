"""Laws of the five stages, run as their users run them, on the small archive of conftest.py."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import types
from itertools import count

import numpy as np
import pytest
import torch
import xarray as xr
from conftest import ROOT, TINY, TRAIN, nodes, rain, read_out, run, said, same, stage, tensors, write_nc
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import datasets
import models
import utils
from utils import DataError


@pytest.fixture
def home(project, monkeypatch):
    """The small project as current folder; results go to folders of the test's own."""
    monkeypatch.chdir(project.home)
    return project


def run3(*argv):
    return run(3, *argv, "--no-scores")


def outputs(folder, kind="sr"):
    return [read_out(path) for path in sorted(folder.glob(f"*_pre_{kind}.nc"))]


def block_means(sr, scale):
    return datasets.block_mean(sr.values.astype("float64"), scale)


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


def test_missing_pixels_are_those_of_missing_lr_cells(home, tmp_path):
    """`all` on a file that is no multiple of the LR step: coordinates are the file's, the remainder is missing."""
    lat, lon = nodes(20.05, 24.45, 0.1)[::-1], nodes(100.05, 106.55, 0.1)  # 45 x 66
    values = rain((45, 66))
    values[10:18, 20:30] = np.nan  # most of one cell
    values[30:34, 40:50] = np.nan  # less than half of one: 60 of 100 valid
    write_nc(tmp_path / "in/2023_08_01.nc", values, lat, lon, attrs={"units": "mm"})
    run(1, "--eval-folders", tmp_path / "in", "--output-folder", tmp_path / "lists")
    where = ["--data-folder", tmp_path / "lists", "--region", "all", "--out", tmp_path]
    run3(*where, "--checkpoint", home.coarsen)
    run(5, *where, "--split", "eval", "--target", "coarsen", "--lr-step", 1, "--hr-step", 0.1)
    (sr,), (lr,), (hr,) = (outputs(tmp_path, kind) for kind in ("sr", "lr", "hr"))
    assert lr.shape == (4, 6) and int(lr.isnull().sum()) == 1 and bool(lr.isnull()[1, 2])
    for field in (sr, hr):
        np.testing.assert_array_equal(field.lat, lat)
        np.testing.assert_array_equal(field.lon, lon)
    np.testing.assert_array_equal(hr, values.astype("float32"))
    expected = np.ones((45, 66), bool)
    expected[:40, :60] = np.kron(np.isnan(lr.values), np.ones((10, 10)))
    np.testing.assert_array_equal(np.isnan(sr), expected)
    np.testing.assert_allclose(block_means(sr[:40, :60], 10), lr, atol=1e-3)


def test_truth_never_reaches_sr(home, tmp_path):
    """With the block means held, HR and its missing pixels change no pixel of SR."""
    lat, lon = nodes(25.05, 30.95, 0.1)[::-1], nodes(105.05, 110.95, 0.1)
    low = np.round(rain((6, 6), 5) * 4) / 4
    flat = np.kron(low, np.ones((10, 10)))
    other = flat.copy()
    other[::2, ::2] += other[::2, ::2] / 2
    other[1::2, 1::2] -= flat[1::2, 1::2] / 2  # rain moved inside each cell
    holes = flat.copy()
    holes[::3, ::2] = np.nan  # missing pixels, in the same cells, less than half
    made = []
    for name, values in (("flat", flat), ("other", other), ("holes", holes)):
        write_nc(tmp_path / f"{name}/2023_08_01.nc", values, lat, lon, attrs={"units": "mm"})
        run(1, "--eval-folders", tmp_path / name, "--output-folder", tmp_path / f"{name}/lists")
        run3(
            "--data-folder",
            tmp_path / f"{name}/lists",
            "--checkpoint",
            home.coarsen,
            "--out",
            tmp_path / f"{name}/sr",
            "--region",
            "all",
        )
        made += outputs(tmp_path / f"{name}/sr")
    np.testing.assert_array_equal(made[0], made[1])
    np.testing.assert_array_equal(made[0], made[2])
    np.testing.assert_allclose(block_means(made[0], 10), low, atol=1e-3)


def test_truth_with_gaps_everywhere_is_no_reason_to_fall(home, tmp_path, capsys):
    lat, lon = nodes(25.05, 30.95, 0.1)[::-1], nodes(105.05, 110.95, 0.1)
    values = rain((60, 60))
    values[::5, ::5] = np.nan
    write_nc(tmp_path / "in/2023_08_01.nc", values, lat, lon, attrs={"units": "mm"})
    run(1, "--eval-folders", tmp_path / "in", "--output-folder", tmp_path / "lists")
    run(3, "--data-folder", tmp_path / "lists", "--checkpoint", home.coarsen, "--out", tmp_path, "--region", "all")
    assert len(outputs(tmp_path)) == 1 and "no scores and no plots: every window" in capsys.readouterr().out


def test_hr_is_not_an_argument_of_downscaling():
    names = (
        downscale_names(models.downscale) | downscale_names(utils.downscale_list) | downscale_names(datasets.read_lr)
    )
    assert not {name for name in names if re.search("hr|truth", name)}


def downscale_names(function):
    return set(function.__code__.co_varnames[: function.__code__.co_argcount + function.__code__.co_kwonlyargcount])


@pytest.mark.parametrize("options", [["--tile", 1], ["--tile", 2, "--members", 2]])
def test_tiled_equals_untiled(home, tmp_path, options):
    run3("--checkpoint", home.x10, "--out", tmp_path / "whole", *options[2:])
    run3("--checkpoint", home.x10, "--out", tmp_path / "tiles", *options)
    for whole, tiles in zip(outputs(tmp_path / "whole"), outputs(tmp_path / "tiles"), strict=True):
        np.testing.assert_allclose(whole, tiles, rtol=1e-4, atol=1e-4)


def test_members_are_a_dimension_and_differ_and_seeds_repeat(home, tmp_path):
    run3("--checkpoint", home.x10, "--out", tmp_path / "a", "--members", 3)
    run3("--checkpoint", home.x10, "--out", tmp_path / "b", "--members", 3)
    run3("--checkpoint", home.x10, "--out", tmp_path / "c", "--seed", 1)
    run3("--checkpoint", home.x10, "--out", tmp_path / "d")
    three, again, other, one = (outputs(tmp_path / name)[0] for name in "abcd")
    assert three.dims == ("member", "lat", "lon") and three.shape == (3, 50, 50) and one.dims == ("lat", "lon")
    assert not np.array_equal(three[0], three[1]) and not np.array_equal(one, other)
    np.testing.assert_array_equal(three, again)
    np.testing.assert_array_equal(three[0], one)


def test_shards_make_the_whole(home, tmp_path):
    run3("--checkpoint", home.x10, "--out", tmp_path / "whole")
    for k in (0, 1):
        run3("--checkpoint", home.x10, "--out", tmp_path / "parts", "--shard", f"{k}/2")
        assert len(list((tmp_path / "parts").glob("*.nc"))) == (2, 3)[k]
    for whole, part in zip(outputs(tmp_path / "whole"), outputs(tmp_path / "parts"), strict=True):
        np.testing.assert_array_equal(whole, part)


def test_same_request_is_kept_and_another_moved_aside(home, tmp_path, capsys, monkeypatch):
    records = home.home / "Data/DataResults/Historical_Records"
    argv = ["--checkpoint", home.x10, "--out", tmp_path / "again"]
    run3(*argv)
    path = tmp_path / "again/00_pre_sr.nc"
    (tmp_path / "again/01_pre_sr.nc").unlink()
    before, made = path.stat().st_mtime_ns, read_out(path)
    run3(*argv)
    assert path.stat().st_mtime_ns == before and (tmp_path / "again/01_pre_sr.nc").exists()
    assert "2 of 3 outputs" in capsys.readouterr().out and not list(records.glob("again_*"))
    run3(*argv, "--seed", 5)
    (moved,) = records.glob("again_*")
    np.testing.assert_array_equal(read_out(moved / "00_pre_sr.nc"), made)
    assert not np.array_equal(read_out(path), made)
    path.write_bytes(path.read_bytes()[:500])  # damaged: made again
    run3(*argv, "--seed", 5)
    assert not np.array_equal(read_out(path), made)
    shutil.rmtree(moved)


def test_results_of_a_longer_list_do_not_stay_among_the_new(home, tmp_path):
    run3("--checkpoint", home.x10, "--out", tmp_path / "sr")
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "PreEval.json").write_text(json.dumps(json.loads((home.lists / "PreEval.json").read_text())[:2]))
    run3("--data-folder", lists, "--checkpoint", home.x10, "--out", tmp_path / "sr", "--seed", 3)
    assert len(outputs(tmp_path / "sr")) == 2
    for moved in (home.home / "Data/DataResults/Historical_Records").glob("sr_*"):
        shutil.rmtree(moved)


def test_refusals_of_stages_3_and_4_name_the_command(home, tmp_path, monkeypatch, capsys):
    words = said(4, ["--checkpoint", home.x10, "--out", tmp_path], monkeypatch)
    assert words.startswith("error: ") and "2023_08_10_18_08_11_x.nc" in words and "step is 0.4 degree" in words
    assert "python 2train.py --target interpolate --lr-step 0.4 --hr-step 0.1" in words
    words = said(4, ["--checkpoint", home.coarsen, "--out", tmp_path], monkeypatch)
    assert "python 2train.py --target coarsen --lr-step 0.4 --hr-step 0.1" in words
    assert not list(tmp_path.glob("*.nc"))
    words = said(3, ["--checkpoint", home.x10, "--region", 0, 4, 0, 4, "--out", tmp_path], monkeypatch)
    assert "not inside the file" in words and "99.5..116.5 E" in words
    for argv, part in (
        (["--checkpoint", "gone.pth"], "gone.pth: no such checkpoint; 2train.py makes it"),
        (["--checkpoint", home.lists], "a folder; expected a checkpoint or export"),
        (["--checkpoint", home.lists / "PreEval.json"], "PreEval.json: not a checkpoint"),
        (
            ["--data-folder", "nowhere", "--checkpoint", home.x10],
            "nowhere/PreEval.json: no such list; run 1create_data_lists.py --output-folder nowhere first",
        ),
        (["--region", 1, 2, 3], "expected LONW LONE LATS LATN, or all"),
        (["--units", "inch", "--checkpoint", home.x10], "inch.*expected auto or one of"),
    ):
        assert re.search(part, said(3, [*argv, "--out", tmp_path], monkeypatch)), argv
    for seed in ("-1", "9" * 23):
        assert said(3, ["--checkpoint", home.x10, "--seed", seed, "--out", tmp_path], monkeypatch) == 2
        assert f"'{seed}': expected a whole number of 0 to 1000000000" in capsys.readouterr().err


def test_the_checkpoint_that_fits_is_found(home, tmp_path, monkeypatch, capsys):
    run(4, "--out", tmp_path / "4")
    run3("--out", tmp_path / "3")
    run3("--data-folder", "Data/JsonHr", "--out", tmp_path / "hr")
    words = capsys.readouterr().out
    assert "pre_srgan_x4.pth (target interpolate)" in words and "pre_srgan_x10.pth (target interpolate)" in words
    assert "choose another with --checkpoint" in words
    monkeypatch.chdir(tmp_path)
    assert "fits the eval list" in said(3, ["--data-folder", home.lists, "--out", "x"], monkeypatch)


def test_a_generator_that_has_diverged_writes_nothing(home, tmp_path, monkeypatch):
    state = torch.load(home.x10, weights_only=True)
    name = next(name for name in state["ema"]["weights"] if name.endswith("out.weight"))
    state["ema"]["weights"][name][0] = float("nan")
    torch.save(state, tmp_path / "nan.pth")
    words = said(3, ["--checkpoint", tmp_path / "nan.pth", "--out", tmp_path / "out"], monkeypatch)
    assert "00_pre_sr.nc" in words and "not finite" in words and "2023_08_01.nc" in words
    assert not list((tmp_path / "out").iterdir())


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
    run(1, "--eval-folders", "days", "--output-folder", "lists")
    run(1, "--eval-folders", "nights", "--output-folder", "fine")
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


def test_units_are_part_of_what_was_asked_for(home, tmp_path):
    run(5, "--split", "obj", "--hr-step", 0.1, "--out", tmp_path / "5")
    first = outputs(tmp_path / "5", "hr")[0]
    run(5, "--split", "obj", "--hr-step", 0.1, "--out", tmp_path / "5", "--units", "cm")
    np.testing.assert_allclose(outputs(tmp_path / "5", "hr")[0], first / 100, rtol=1e-6)
    (moved,) = (home.home / "Data/DataResults/Historical_Records").glob("5_*")
    assert len(list(moved.iterdir())) == 6
    shutil.rmtree(moved)


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
        ]
        assert not faults and report["scored_points"] == report["possible_points"], faults
        with xr.open_dataset(path) as file:
            assert file.time.dtype.kind == "M" and str(file.time.values)[:7] == "2023-08"
        for tool in (["ncdump", "-h"], ["cdo", "-s", "infon"]):
            if shutil.which(tool[0]):
                done = subprocess.run([*tool, path], capture_output=True, text=True)
                assert done.returncode == 0 and "tp" in done.stdout, done.stderr


def test_the_same_command_twice_gives_the_same_bytes(home, tmp_path):
    """Lists here; NetCDF files, scores and pictures in test_survival.py, weights below."""
    for name in "ab":
        run(1, "--output-folder", tmp_path / name)
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert len(files) == 4
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        lambda s: {k: v for k, v in s.items() if k != "ema"},
        lambda s: {k: v for k, v in s.items() if k != "data_config"},
        lambda s: s | {"ema": {"weights": dict(list(s["ema"]["weights"].items())[1:]), "updates": 1}},
        lambda s: s | {"ema": {"weights": s["ema"]["weights"] | {"extra": torch.zeros(1)}, "updates": 1}},
        lambda s: s | {"generator_config": s["generator_config"] | {"colour": 3}},
        lambda s: s | {"generator_config": s["generator_config"] | {"channels": 16}},
        lambda s: s | {"data_config": s["data_config"] | {"colour": 3}},
        lambda s: s | {"format": 99},
    ],
)
def test_a_checkpoint_that_is_not_whole_is_refused_in_words(home, tmp_path, monkeypatch, change):
    torch.save(change(torch.load(home.x10, weights_only=True)), tmp_path / "odd.pth")
    words = said(3, ["--checkpoint", tmp_path / "odd.pth", "--out", tmp_path], monkeypatch)
    assert words.startswith("error: ") and "odd.pth" in words


# ---------------------------------------------------------------- stage 2


def interrupted(monkeypatch, at, number):
    """Training is sent a signal in the middle of step `at`."""
    plain, steps = models.EMA.update, count()

    def update(self, module):
        if next(steps) == at:
            os.kill(os.getpid(), number)
        plain(self, module)

    monkeypatch.setattr(models.EMA, "update", update)


@pytest.fixture(scope="module")
def unbroken(project, tmp_path_factory):
    before, path = os.getcwd(), tmp_path_factory.mktemp("unbroken") / "a.pth"
    os.chdir(project.home)
    try:
        assert run(2, *TRAIN, "--checkpoint", path, "--export", path.with_name("export.pth")) == 0
    finally:
        os.chdir(before)
    return path


@pytest.mark.parametrize(("number", "at"), [(signal.SIGTERM, 1), (signal.SIGUSR1, 3), (signal.SIGINT, 5)])
def test_a_signal_ends_with_a_checkpoint_and_resumed_equals_unbroken(home, tmp_path, monkeypatch, unbroken, number, at):
    path = tmp_path / "b.pth"
    with monkeypatch.context() as patch:
        interrupted(patch, at, number)
        assert run(2, *TRAIN, "--checkpoint", path) == 128 + number
    assert utils.load_checkpoint(path)["step"] == at + 1
    assert run(2, *TRAIN, "--checkpoint", path, "--resume") == 0
    same(path, unbroken)


def test_the_same_command_twice_gives_the_same_weights(home, tmp_path, unbroken):
    run(2, *TRAIN, "--checkpoint", tmp_path / "c.pth")
    same(tmp_path / "c.pth", unbroken)


def test_resume_with_other_options_is_refused(home, tmp_path, monkeypatch, unbroken):
    shutil.copy(unbroken, tmp_path / "d.pth")
    for option in (
        ["--channels", 16],
        ["--batch", 3],
        ["--region", 106, 109, 26, 29],
        ["--seed", 4],
        ["--learning-rate", 0.1],
    ):
        words = said(2, [*TRAIN, *option, "--checkpoint", tmp_path / "d.pth", "--resume"], monkeypatch)
        assert "--resume" in words and option[0].strip("-").replace("-", "_") in words and "asked" in words
    same(tmp_path / "d.pth", unbroken)


def test_resume_says_what_does_not_fit(home, tmp_path, monkeypatch, unbroken):
    torch.save({"format": 1, "weights": 3}, tmp_path / "odd.pth")
    words = said(2, [*TRAIN, "--checkpoint", tmp_path / "odd.pth", "--resume"], monkeypatch)
    assert words.startswith("error: ") and "odd.pth" in words
    words = said(2, [*TRAIN, "--checkpoint", unbroken.with_name("export.pth"), "--resume"], monkeypatch)
    assert words.startswith("error: ") and "export" in words


@pytest.mark.parametrize("kind", ["value", "gradient"])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(home, tmp_path, monkeypatch, kind):
    plain, calls = models.content_loss, []

    def broken(*args, **kwargs):
        loss = plain(*args, **kwargs)
        calls.append(1)
        if len(calls) == 4:  # step 3, after the checkpoint of step 2
            return loss * float("nan") if kind == "value" else loss + (loss - loss.detach()).abs().sqrt()
        return loss

    monkeypatch.setattr(models, "content_loss", broken)
    path = tmp_path / "n.pth"
    words = said(2, [*TRAIN, "--checkpoint", path], monkeypatch)
    assert words.startswith("error: ") and "step 3" in words and "1950_08_0" in words and "n.pth" in words
    state = utils.load_checkpoint(path)
    assert state["step"] == 2
    assert all(
        torch.isfinite(v).all()
        for part in ("generator", "averaged")
        for v in tensors(path, [part]).values()
        if torch.is_tensor(v)
    )


def test_a_loss_that_is_not_finite_at_once_does_not_promise_a_checkpoint(home, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "content_loss", lambda *args, **kwargs: args[1].sum() * float("nan"))
    words = said(2, [*TRAIN, "--checkpoint", tmp_path / "n.pth"], monkeypatch)
    assert "step 0" in words and not (tmp_path / "n.pth").exists() and "keeps" not in words


def test_checkpoints_are_plain_and_the_export_is_small_and_serves_stages_3_and_4(home, tmp_path, unbroken):
    state = torch.load(unbroken, weights_only=True)
    assert state["step"] == 7 and state["data_config"]["lr_step"] == 1 and state["train_config"]["batch"] == 2
    export = unbroken.with_name("export.pth")
    assert export.stat().st_size < unbroken.stat().st_size / 2
    run3("--checkpoint", unbroken, "--out", tmp_path / "full")
    run3("--checkpoint", export, "--out", tmp_path / "export")
    for full, small in zip(outputs(tmp_path / "full"), outputs(tmp_path / "export"), strict=True):
        np.testing.assert_array_equal(full, small)


def test_a_new_run_moves_the_old_checkpoint_aside(home, tmp_path, unbroken):
    path = tmp_path / "old.pth"
    shutil.copy(unbroken, path)
    run(2, *TRAIN, "--checkpoint", path, "--max-minutes", 0)
    (moved,) = (home.home / "Data/DataResults/Historical_Records").glob("*/old.pth")
    same(moved, unbroken)
    shutil.rmtree(moved.parent)


def test_two_models_need_two_checkpoints_and_other_targets_a_step(home, tmp_path, monkeypatch):
    words = said(2, ["--hr-step", 0.1, "--checkpoint", tmp_path / "x.pth"], monkeypatch)
    assert "1, 0.4 degree" in words and "--lr-step" in words
    words = said(2, ["--hr-step", 0.1, "--export", tmp_path / "x.pth"], monkeypatch)
    assert "--export" in words and "--lr-step" in words
    for target in ("coarsen", "paired"):
        assert "--lr-step" in said(2, ["--target", target], monkeypatch)
    words = said(
        2, ["--target", "paired", "--lr-step", 1, "--hr-step", 0.1, "--checkpoint", tmp_path / "x.pth"], monkeypatch
    )
    assert "holds no pairs" in words and "--train-hr-folders" in words


SENSELESS = """--batch 0|--members 0|--window 5|--window 5 4|--window 0 4|--content magic|--adversarial-content magic
--adversarial magic|--optimizer sgd|--schedule never|--initial zero|--transform magic|--output magic|--norm magic
--stage-channels 8|--channels 0|--epoch-steps 0|--valid-windows 0|--valid-share 1.5|--content-steps -1|--seed -1
--learning-rate -1|--learning-rate nan|--ema 2|--amounts 0|--pools 0|--crop -1|--lr-step 0.35|--lr-step inf|--units inch
--init gone.pth|--export day.nc|--checkpoint day.nc|--recipe srgan --vgg-weights gone.pth""".replace("\n", "|").split(
    "|"
)


@pytest.mark.parametrize("option", SENSELESS)
def test_senseless_options_of_training_are_refused_in_words(home, tmp_path, monkeypatch, capsys, option):
    code = said(2, [*TRAIN, "--checkpoint", tmp_path / "s.pth", *option.split()], monkeypatch)
    words = capsys.readouterr().err if code == 2 else code  # argparse, or a DataError
    name = option.split()[-2].strip("-")
    assert isinstance(words, str) and (name in words.replace("_", "-").replace(" ", "-") or option.split()[-1] in words)
    assert not (tmp_path / "s.pth").exists()


@pytest.mark.parametrize("adversarial", [0, 400])
def test_the_schedule_follows_the_pace_of_the_machine_and_ends_in_time(adversarial):
    """--max-minutes 10 at 0.01 minutes a step, three times slower from step 300 on: the fitted length is made in time."""
    script = stage(2)
    whole = script["TrainConfig"](content_steps=2000 - adversarial, adversarial_steps=adversarial, epoch_steps=100)
    group = types.SimpleNamespace(largest=lambda number: number, rank=0)
    training, clock = (
        types.SimpleNamespace(train=whole, step=0, planned=False, group=group),
        types.SimpleNamespace(minutes=10.0, elapsed=0.5),
    )
    fitted = set()
    while training.step < (training.train.content_steps + training.train.adversarial_steps):
        training.steps = training.train.content_steps + training.train.adversarial_steps
        training.fighting = training.step >= training.train.content_steps
        script["plan_length"](training, clock, (0.5, 0), whole)
        fitted.add(training.train.content_steps + training.train.adversarial_steps)
        training.step, clock.elapsed = training.step + 1, clock.elapsed + (0.01 if training.step < 300 else 0.03)
    assert 8.5 < clock.elapsed <= 10 and len(fitted) > 2 and training.planned
    assert (
        bool(training.train.adversarial_steps) == bool(adversarial)
        and training.train.adversarial_steps < 0.5 * training.step
    )


def test_calibration_finds_the_strength_that_noise_has_lost(home, tmp_path, capsys):
    """A generator of rough fields whose noise was made a fifth as strong: only its noise changes, and its spectrum comes nearer."""
    state = utils.load_checkpoint(home.coarsen)
    weak = models.load_generator(state)
    weak.net.out.weight.data.mul_(20)
    weak.scale_noise([0.2] * len(weak.net.entries))
    state["ema"]["weights"] = weak.state_dict()
    utils.save_checkpoint(tmp_path / "weak.pth", state)
    truth = ("--target", "coarsen", "--data-folder", "Data/JsonHr")
    still = (
        "--content-steps",
        1,
        "--adversarial-steps",
        0,
        "--learning-rate",
        1e-12,
        "--weight-decay",
        0,
        "--amp",
        "off",
    )
    run(
        2,
        *TRAIN,
        *truth,
        *still,
        "--init",
        tmp_path / "weak.pth",
        "--calibrate",
        25,
        "--checkpoint",
        tmp_path / "c.pth",
    )
    words = capsys.readouterr().out
    gains, before, after = re.search(
        r"noise scaled by ([\d., ]+): .*?lsd_db ([\d.]+) .*lsd_db ([\d.]+)", words
    ).groups()
    gains = [float(gain) for gain in gains.split(",")]
    assert float(after) < float(before) and max(gains) > 1.2
    state = utils.load_checkpoint(tmp_path / "c.pth")
    plain, made = state["averaged"]["weights"], state["ema"]["weights"]
    changed = {name for name in plain if not torch.equal(plain[name], made[name])}
    assert changed == {f"net.ups.{k}.up.weight" for k in range(len(gains))}
    for k, gain in enumerate(gains):
        old, new = (w[f"net.ups.{k}.up.weight"] for w in (plain, made))
        torch.testing.assert_close(new[:, -1] / old[:, -1], torch.full_like(old[:, -1], gain), rtol=0, atol=0.006)
        assert torch.equal(new[:, :-1], old[:, :-1])


def test_a_signal_in_the_calibration_leaves_it_to_resume(home, tmp_path, monkeypatch):
    argv = [*TRAIN, "--calibrate", 4, "--checkpoint"]
    assert run(2, *argv, tmp_path / "whole.pth") == 0
    with monkeypatch.context() as patch:
        plain, tries = models.Generator.scale_noise, count()

        def scale_noise(self, gains):
            if next(tries) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            plain(self, gains)

        patch.setattr(models.Generator, "scale_noise", scale_noise)
        assert run(2, *argv, tmp_path / "cut.pth") == 128 + signal.SIGTERM
    assert not utils.load_checkpoint(tmp_path / "cut.pth")["calibrated"]
    assert run(2, *argv, tmp_path / "cut.pth", "--resume") == 0
    same(tmp_path / "cut.pth", tmp_path / "whole.pth")
    assert utils.load_checkpoint(tmp_path / "cut.pth")["calibrated"]


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler (g++), which is not here")
def test_compiled_stages_learn_what_plain_ones_do(home, tmp_path):
    short = (
        "--amp",
        "off",
        "--window",
        4,
        4,
        "--content-steps",
        2,
        "--adversarial-steps",
        0,
        "--runs",
        tmp_path / "runs",
    )
    for name, options in (("plain", []), ("compiled", ["--compile"])):
        run(2, *TRAIN, *short, *options, "--checkpoint", tmp_path / f"{name}.pth")
    plain, compiled = (loss_curves(tmp_path / "runs" / name) for name in ("plain", "compiled"))
    assert plain.keys() == compiled.keys() >= {"Loss_c"}
    for name, curve in plain.items():
        np.testing.assert_allclose(compiled[name], curve, rtol=1e-3, err_msg=name)


def test_two_processes_equal_one(home, tmp_path, unbroken):
    """The loss curve of torchrun with two processes is that of one (float sums differ in their last digits)."""
    argv = [
        *TRAIN,
        "--checkpoint",
        tmp_path / "two.pth",
        "--amp",
        "off",
        "--device",
        "cpu",
        "--runs",
        tmp_path / "runs",
    ]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(ROOT / "2train.py"),
    ]
    done = subprocess.run(
        [*command, *map(str, argv)],
        capture_output=True,
        text=True,
        timeout=400,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    argv[argv.index(tmp_path / "two.pth")] = tmp_path / "one.pth"
    run(2, *argv)
    one, two = (utils.load_checkpoint(tmp_path / f"{name}.pth") for name in ("one", "two"))
    assert one["step"] == two["step"] == 7
    far = total = (
        0  # Adam makes steps of the rounding noise where a gradient is 0, as at net.out.bias, which conservation cancels
    )
    for name, value in one["averaged"]["weights"].items():
        far += int(((two["averaged"]["weights"][name] - value).abs() > 1e-4 + 1e-3 * value.abs()).sum())
        total += value.numel()
    assert far <= total / 1000
    assert two["best"] == pytest.approx(one["best"], rel=1e-3)
    one, two = (loss_curves(tmp_path / "runs" / name) for name in ("one", "two"))
    assert one.keys() == two.keys() >= {"Loss_c", "Loss_d", "Loss_g"}
    for name, curve in one.items():
        np.testing.assert_allclose(two[name], curve, rtol=1e-4, err_msg=name)


def test_more_processes_than_samples_are_refused(home, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    with pytest.raises(DataError, match="--batch 2: fewer samples a step than the 3 processes.*--batch 24"):
        run(2, *TRAIN, "--checkpoint", tmp_path / "a.pth", "--device", "cpu")


def loss_curves(folder):
    """{name: values} of the losses in TensorBoard's events."""
    events = EventAccumulator(str(folder)).Reload()
    names = [name for name in events.Tags()["scalars"] if name.startswith("Loss")]
    return {name: [event.value for event in events.Scalars(name)] for name in names}


def test_a_process_without_its_input_ends_the_others_with_the_cause(home, tmp_path):
    """torchrun ends the process that waits for the one that did not get so far."""
    words = ["--hr-step", "0.1", "--lr-step", "1", *map(str, TINY), "--checkpoint", str(tmp_path / "a.pth")]
    task = '[ "$RANK" = 0 ] && lists=Data/JsonPath || lists=nowhere; exec "$0" "$@" --data-folder "$lists"'
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
        + ["bash", "-c", task, sys.executable, str(ROOT / "2train.py"), *words],
        capture_output=True,
        text=True,
        timeout=400,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 1
    assert "error: nowhere/PreTrain.json: no such list" in done.stderr and "Root Cause" in done.stderr
    assert "SIGKILL" not in done.stderr  # the other did not have to be killed


def test_a_process_that_loses_another_says_so(monkeypatch):
    group = object.__new__(stage(2)["Group"])
    group.rank, group.size, group.device = 0, 2, torch.device("cpu")

    def gone(*args):
        raise RuntimeError("Connection closed by peer [127.0.0.1]:1")

    monkeypatch.setattr(torch.distributed, "all_reduce", gone)
    for call in (lambda: group.mean([torch.ones(2)]), lambda: group.largest(1)):
        with pytest.raises(DataError, match="process 0 of 2 lost another one.*Connection closed"):
            call()


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
    record = {"path": str(home.home / good[0]), "units": "inch", "step": 1}
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
