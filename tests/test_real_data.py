"""The measured figures of the real files in ../shared/data; skipped where they are not."""

import json
import os

import numpy as np
import pytest
import xarray as xr
from conftest import DATA, REGION, TINY, nodes, rain, read_out, run, said, write_nc

from datasets import PreTransforms, read_field

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="needs the real files in ../shared/data, which are not here")
CHINA, RADAR = DATA / "china", DATA / "mrms"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with the user's layout (links to the real files) after stages 1 and 5."""
    folder, before = tmp_path_factory.mktemp("real"), os.getcwd()
    (folder / "Data").mkdir()
    for name in ("DataTrain", "DataEval", "DataObj"):
        (folder / "Data" / name).symlink_to(CHINA / name)
    os.chdir(folder)
    try:
        run(1)
        run(5, "--split", "eval")
        run(5, "--split", "obj")
    finally:
        os.chdir(before)
    return folder


@pytest.mark.parametrize(("name", "count"), [("Train", 2263), ("Eval", 31), ("Obj", 4)])
def test_lists_hold_every_file_in_date_order(home, name, count):
    paths = json.loads((home / f"Data/JsonPath/Pre{name}.json").read_text())
    assert len(paths) == count == len(set(paths)) and paths == sorted(paths)
    assert all(path.startswith(f"Data/Data{name}/") for path in paths)
    records = json.loads((home / "Data/JsonPath/PreInfo.json").read_text())["files"][name.lower()]
    assert {r["units"] for r in records} == {"m" if name == "Obj" else "mm"}
    assert {r["step"] for r in records} == {0.4 if name == "Obj" else 1.0}


def test_evaluation_pairs(home):
    out = home / "Data/DataResults/ResultEval"
    assert len(list(out.glob("*_pre_lr.nc"))) == len(list(out.glob("*_pre_hr.nc"))) == 31
    lr, hr = read_out(out / "00_pre_lr.nc"), read_out(out / "00_pre_hr.nc")
    assert lr.shape == (5, 5) and hr.shape == (500, 500) and lr.time.values == np.datetime64("2023-08-01")
    west, east, south, north = REGION
    with xr.open_dataset(CHINA / "DataEval/2023_08_01.nc") as file:
        nodes_ = file.tp.sel(lon=slice(west, east), lat=slice(north, south)).transpose("lat", "lon").astype("float32")
        np.testing.assert_array_equal(lr, nodes_)
        np.testing.assert_array_equal(lr.lat, nodes_.lat)
    assert hr.lon[0] == 105.505 and hr.lon[-1] == 110.495 and hr.lat[0] == 30.495 and hr.lat[-1] == 25.505
    days = [read_out(path).time.values for path in sorted(out.glob("*_pre_hr.nc"))]
    np.testing.assert_array_equal(days, np.arange("2023-08-01", "2023-09-01", dtype="M8[D]"))


def test_forecast_pairs(home):
    out = home / "Data/DataResults/ResultObj"
    lows = [read_out(path) for path in sorted(out.glob("*_pre_lr.nc"))]
    highs = [read_out(path) for path in sorted(out.glob("*_pre_hr.nc"))]
    assert [f.shape for f in lows] == [(11, 11)] * 4 and [f.shape for f in highs] == [(440, 440)] * 4
    assert np.mean(lows) == pytest.approx(6.133, abs=5e-4) and min(float(f.min()) for f in lows) >= 0
    assert [str(f.time.values)[:10] for f in lows] == [f"2023-08-{d}" for d in (12, 13, 14, 15)]
    issued = [str(f.forecast_reference_time.values)[:13] for f in lows]
    names = [path.name.split("_") for path in sorted((CHINA / "DataObj").iterdir())]
    assert issued == [f"{y}-{m}-{d}T{h}" for y, m, d, h, *_ in names]


def test_the_users_snippet_on_the_users_file():
    pre = xr.open_dataset(CHINA / "DataTrain/1950_08_01.nc")["tp"]
    lr, hr = PreTransforms(split="train")(pre)
    assert lr.shape == (5, 5) and hr.shape == (500, 500)
    np.testing.assert_array_equal(lr, pre.sel(lon=slice(106, 110), lat=slice(30, 26)).T.astype("float32"))


@pytest.fixture(scope="module")
def radar(tmp_path_factory):
    """Lists of one radar file, and untrained models x100 and x40 of target coarsen."""
    folder, before = tmp_path_factory.mktemp("radar"), os.getcwd()
    (folder / "eval").mkdir()
    (folder / "eval/2019_06_10_0024.nc").symlink_to(RADAR / "eval/2019_06_10_0024.nc")
    lat, lon = nodes(20.005, 25.995, 0.01)[::-1], nodes(100.005, 105.995, 0.01)
    write_nc(folder / "train/2023_08_01.nc", rain((600, 600)), lat, lon)
    os.chdir(folder)
    try:
        run(1, "--eval-folders", "eval", "--train-folders", "train")
        for step in (1, 0.4):
            options = ["--content-steps", 1, "--batch", 1, "--epoch-steps", 1, "--valid-windows", 1, "--window", 2, 2]
            run(2, "--target", "coarsen", "--region", "all", "--lr-step", step, *TINY, *options)
    finally:
        os.chdir(before)
    return folder


@pytest.mark.parametrize(("step", "scale", "cells"), [(1, 100, (35, 5)), (0.4, 40, (87, 12))])
def test_radar_fields_keep_the_coordinates_of_the_file(radar, monkeypatch, step, scale, cells):
    monkeypatch.chdir(radar)
    out = radar / f"x{scale}"
    run(5, "--split", "eval", "--target", "coarsen", "--region", "all", "--lr-step", step, "--out", out)
    model = f"Data/SavedModels/pre_srgan_coarsen_x{scale}.pth"  # of generated days
    assert "learned rain of 24 h" in said(3, ["--checkpoint", model, "--out", out], monkeypatch)
    run(3, "--checkpoint", model, "--out", out, "--no-scores", "--any-period")
    lr, hr, sr = (read_out(out / f"00_pre_{kind}.nc") for kind in ("lr", "hr", "sr"))
    with xr.open_dataset(RADAR / "eval/2019_06_10_0024.nc") as file:
        rows = file.tp.transpose("lat", "lon").sortby("lat", ascending=False).sortby("lon")
        for field in (hr, sr):
            np.testing.assert_allclose(field.lat, rows.lat, rtol=0, atol=1e-6)
            np.testing.assert_allclose(field.lon, rows.lon, rtol=0, atol=1e-6)
            assert field.time.values == file.time.values
        core = tuple(n * scale for n in cells)
        np.testing.assert_allclose(hr, np.maximum(rows, 0), rtol=1e-6)
    assert lr.shape == cells
    expected = np.ones(sr.shape, bool)
    expected[: core[0], : core[1]] = np.kron(np.isnan(lr.values), np.ones((scale, scale)))
    np.testing.assert_array_equal(np.isnan(sr), expected)
    part = sr.values[: core[0], : core[1]].reshape(cells[0], scale, cells[1], scale).mean((1, 3), dtype="float64")
    np.testing.assert_allclose(part, lr, atol=1e-3)


def test_forecasts_read_alone_ask_for_units():
    path = sorted((CHINA / "DataObj").iterdir())[0]
    with pytest.raises(ValueError, match="--units"):
        read_field(path)
    assert 0 <= float(read_field(path, "m").min()) <= float(read_field(path, "m").max()) < 500
