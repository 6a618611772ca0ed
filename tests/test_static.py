"""Laws of static.py and of its fields in stages 2 to 4: names, units, gaps, means, slopes, places."""

import json
import shutil
from fractions import Fraction

import numpy as np
import pytest
import xarray as xr
from conftest import learn_pairs, low_rain, nodes, outputs, run, run3, said, write_nc

import datasets
import plots
import utils
from reader import Grid
from static import StaticFields, describe_fields, orography_on
from utils import DataError
from windows import Windows

GRID = Grid(Fraction(60), Fraction(5), Fraction(1, 10), 20, 30)
HEIGHT = {"units": "m", "standard_name": "surface_altitude"}


def ground(path, values, step=0.1, *, north=60.0, west=5.0, name="orog", attrs=HEIGHT, **layout):
    """A file of one field (H, W) whose north-west corner is at north, west."""
    lat = nodes(north - (len(values) - 0.5) * step, north - step / 2, step)[::-1]
    lon = nodes(west + step / 2, west + (values.shape[1] - 0.5) * step, step)
    return write_nc(path, values, lat, lon, name=name, attrs=attrs, **layout)


def heights(h=20, w=30, seed=0):
    return np.random.default_rng(seed).gamma(2, 200, (h, w))


def plain(path, grid=GRID, name="orog", units="m"):
    """One field of a file on a grid, without normalisation."""
    return StaticFields([path], [{"name": name, "units": units, "mean": 0.0, "std": 1.0}]).on(grid)[0]


# ---------------------------------------------------------------- on the HR cells


@pytest.mark.parametrize("layout", [{}, {"dims": ("lon", "lat")}, {"dims": ("latitude", "longitude")}])
def test_a_field_on_the_same_cells_is_itself_and_finer_ones_are_averaged(tmp_path, layout):
    values = heights()
    np.testing.assert_allclose(plain(ground(tmp_path / "a.nc", values, **layout)), values, rtol=1e-6)
    fine = heights(60, 90)
    expected = fine.reshape(20, 3, 30, 3).mean((1, 3))
    lon = nodes(5 + 0.1 / 6, 8 - 0.1 / 6, 0.1 / 3)
    lat = nodes(58 + 0.1 / 6, 60 - 0.1 / 6, 0.1 / 3)[::-1]
    np.testing.assert_allclose(plain(write_nc(tmp_path / "b.nc", fine, lat, lon, name="orog", attrs=HEIGHT)), expected)


def test_cells_that_do_not_fit_are_weighted_by_their_area(tmp_path):
    values = heights(60, 80)
    path = ground(tmp_path / "a.nc", values, 0.04, north=60.2, west=4.9)  # 2.5 of them along a cell, from 5 and 2.5 on
    halves = np.kron(values, np.ones((2, 2)))[10:110, 5:155]
    np.testing.assert_allclose(plain(path), halves.reshape(20, 5, 30, 5).mean((1, 3)), rtol=1e-6)


def test_a_region_is_a_part_of_a_larger_one_slopes_included(tmp_path):
    path = ground(tmp_path / "a.nc", heights(200, 300), 0.01, west=5)
    described = describe_fields([path], [Grid(GRID.north, GRID.west, Fraction(1, 20), 40, 60)])
    fields = StaticFields([path], described)
    whole = fields.on(Grid(Fraction(60), Fraction(5), Fraction(1, 20), 40, 60))
    part = fields.on(Grid(Fraction(59), Fraction(6), Fraction(1, 20), 10, 20))
    np.testing.assert_array_equal(part, whole[:, 20:30, 20:40])
    np.testing.assert_allclose(whole.mean((1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(whole.std((1, 2)), 1, rtol=1e-5)


def test_slopes_are_rise_over_distance_to_the_east_and_to_the_north(tmp_path):
    east = np.tile(100.0 * np.arange(30), (20, 1))  # 100 m in 0.1 degree of longitude at 59 N
    path = ground(tmp_path / "a.nc", east)
    described = describe_fields([path], [GRID])
    names = ["orog", "slope of orog to the east", "slope of orog to the north"]
    assert [(field["name"], field["units"]) for field in described] == list(zip(names, ("m", "1", "1"), strict=True))
    slope = StaticFields([path], described).on(GRID)[1] * described[1]["std"] + described[1]["mean"]
    np.testing.assert_allclose(slope[10], 100 / (11_119.5 * np.cos(np.deg2rad(58.95))), rtol=1e-4)
    assert described[2]["mean"] == 0 and described[2]["std"] == 1
    path = ground(tmp_path / "b.nc", 100.0 * np.arange(20)[:, None] + np.zeros((20, 30)))  # higher in the south
    described = describe_fields([path], [GRID])
    assert described[2]["mean"] == pytest.approx(-100 / 11_119.5, rel=1e-4) and described[1]["mean"] == 0


# ---------------------------------------------------------------- what is refused


def test_fields_that_cannot_serve_are_refused_in_words(tmp_path):
    values = heights()
    gap = values.copy()
    gap[3, 4] = np.nan
    for message, words in (
        ("missing in 1 cells .* first at 59.65 N, 5.45 E.*setmisstoc", {"values": gap}),
        ("covers 9.05..11.95 E.*not all of 5..8 E", {"values": values, "west": 9.0}),
        ("covers 5.05..7.95 E, 58.45..60.35 N.*not all of", {"values": values, "north": 60.4}),
        ("cells of 0.2 degree; expected the HR step, 0.1 degree, or finer", {"values": values, "step": 0.2}),
        ("orography in units 'km', expected m", {"values": values, "attrs": HEIGHT | {"units": "km"}}),
        ("orography in units '1', expected m", {"values": values, "attrs": {}}),
        ("speaks of rain", {"values": values, "name": "tp", "attrs": {"units": "mm", "long_name": "precipitation"}}),
    ):
        path = ground(tmp_path / "a.nc", **words)
        with pytest.raises(DataError, match=message):
            describe_fields([path], [GRID])
    with pytest.raises(DataError, match=r"no field on \(lat, lon\)"):
        xr.Dataset({"x": ("time", [1.0, 2.0])}).to_netcdf(tmp_path / "b.nc")
        describe_fields([tmp_path / "b.nc"], [GRID])
    path = ground(tmp_path / "a.nc", values)
    shutil.copy(path, tmp_path / "c.nc")
    with pytest.raises(DataError, match="expected each field once"):
        describe_fields([path, tmp_path / "c.nc"], [GRID])


def test_the_same_names_and_units_are_required(tmp_path):
    wanted = [{"name": name, "units": units, "mean": 0.0, "std": 1.0} for name, units in (("orog", "m"), ("lsm", "1"))]
    height = ground(tmp_path / "h.nc", heights())
    with pytest.raises(DataError, match=r"static fields orog \(m\), lsm \(1\); .*hold orog \(m\): give .* --static"):
        StaticFields([height], wanted)
    with pytest.raises(DataError, match="none was given"):
        StaticFields([], wanted)
    land = ground(tmp_path / "l.nc", heights() / 1000, name="lsm", attrs={"units": "%"})
    with pytest.raises(DataError, match="lsm has units '%', the model was trained with '1'"):
        StaticFields([height, land], wanted)
    land = ground(tmp_path / "l.nc", heights() / 1000, name="lsm", attrs={"units": "(0 - 1)"})
    more = ground(tmp_path / "m.nc", heights(), name="soil", attrs={"units": "1"})
    assert StaticFields([more, land, height], wanted).on(GRID).shape == (2, 20, 30)  # what is not wanted is left aside


# ---------------------------------------------------------------- windows


def test_windows_cut_static_fields_where_the_rain_is(tmp_path):
    """The static field is the logarithm of the rain: so it is in every window, at any pixel."""
    rng = np.random.default_rng(1)
    values = rng.gamma(2, 3, (100, 120)).astype("float32") + 0.1
    lat, lon = nodes(50.05, 59.95, 0.1)[::-1], nodes(5.05, 16.95, 0.1)
    path = write_nc(tmp_path / "1950_08_01.nc", values, lat, lon, attrs={"units": "mm"})
    (tmp_path / "PreTrain.json").write_text(json.dumps([str(path)]))
    data = datasets.SRDataset(tmp_path, "train", target="coarsen", region="all", hr_step=0.1)
    windows = Windows(data, sides=(3, 5), crop=2, turn=False, maps={data.plans[0].core: np.log(values)[None]})
    for step in range(8):
        batch = windows.batch(step, 2)
        r0, r1, c0, c1 = (10 * n for n in batch["box"])
        assert batch["maps"].shape[-2:] == tuple(10 * n for n in batch["lr"].shape[-2:])
        np.testing.assert_allclose(np.exp(batch["maps"][..., r0:r1, c0:c1]), batch["hr"], rtol=1e-4)


# ---------------------------------------------------------------- stages 2 to 4


def hr_nodes():
    return nodes(50.05, 61.95, 0.1)[::-1], nodes(5.05, 18.95, 0.1)


@pytest.fixture(scope="module")
def terrain(tmp_path_factory):
    """Days whose rain lies on the western slopes alone, and a model that was given the terrain, and one that was not.

    LR is rain without terrain; HR is LR times a factor of the place.
    """
    folder = tmp_path_factory.mktemp("terrain")
    height = np.kron(np.random.default_rng(5).random((24, 28)) * 1000, np.ones((5, 5)))  # 120 x 140, flat blocks
    ground(folder / "ground.nc", height, north=62.0)
    wet = 0.2 + 1.6 * height / 1000
    pairs = [(low, np.kron(low, np.ones((10, 10))) * wet) for low in map(low_rain, range(22))]
    learn_pairs(folder, pairs, hr_nodes(), "--static", folder / "ground.nc", crop=40)
    return folder


def test_terrain_that_drives_the_truth_is_used(terrain):
    scores = {name: utils.load_checkpoint(terrain / f"{name}.pth")["scores"]["crps"] for name in ("with", "without")}
    assert scores["with"] < 0.8 * scores["without"], scores


def test_stage_3_needs_the_fields_and_regions_and_tiles_agree(terrain, tmp_path, monkeypatch):
    words = ["--data-folder", terrain / "lists", "--checkpoint", terrain / "with.pth"]
    static = ["--static", terrain / "ground.nc"]
    told = said(3, [*words, "--out", tmp_path / "none", "--no-scores"], monkeypatch)
    assert "with.pth: the model was trained with static fields orog (m); none was given" in told
    told = said(3, [*words[:3], terrain / "without.pth", *static, "--out", tmp_path / "none"], monkeypatch)
    assert "trained without static fields; leave --static out" in told
    shown = []
    monkeypatch.setattr(
        plots, "plot_members", lambda *a, real=plots.plot_members, **k: (shown.append(k), real(*a, **k))[1]
    )
    run(3, *words, *static, "--out", tmp_path / "whole", "--plots", "--no-scores")
    np.testing.assert_allclose(shown[0]["ground"], xr.open_dataset(terrain / "ground.nc").orog, rtol=1e-6)
    assert (
        orography_on([ground(terrain / "land.nc", heights(120, 140), north=62, name="lsm", attrs={})], *hr_nodes())
        is None
    )
    run3(*words, *static, "--out", tmp_path / "tiles", "--tile", 3)
    for one, two in zip(outputs(tmp_path / "whole"), outputs(tmp_path / "tiles"), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)
    with xr.open_dataset(tmp_path / "whole" / "00_pre_sr.nc") as file:
        assert file.attrs["static_fields"].startswith("orog of ground.nc ")
    ground(terrain / "flat.nc", np.full((120, 140), 500.0), north=62.0)
    run3(*words, "--static", terrain / "flat.nc", "--out", tmp_path / "whole")  # another request: made anew
    flat = outputs(tmp_path / "whole")[0]
    assert not np.allclose(flat, outputs(tmp_path / "tiles")[0], rtol=0.05)


def test_models_that_need_fields_are_listed_as_such(terrain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Data/SavedModels").mkdir(parents=True)
    shutil.copy(terrain / "with.pth", tmp_path / "Data/SavedModels/pre_srgan_paired_x10.pth")
    told = said(3, ["--data-folder", terrain / "lists", "--no-scores"], monkeypatch)
    assert "does not fit: it: the model was trained with static fields orog (m)" in told


def test_resume_finds_the_fields_again_and_a_model_without_them_refuses(terrain, tmp_path, monkeypatch):
    shutil.copy(terrain / "with.pth", tmp_path / "a.pth")
    run(2, "--resume", "--checkpoint", tmp_path / "a.pth", "--threads", 1, "--amp", "off", "--runs", tmp_path / "runs")
    state = utils.load_checkpoint(tmp_path / "a.pth")
    assert [f["name"] for f in state["generator_config"]["static_fields"]] == [
        "orog",
        "slope of orog to the east",
        "slope of orog to the north",
    ]
    shutil.copy(terrain / "without.pth", tmp_path / "b.pth")
    words = ["--resume", "--checkpoint", tmp_path / "b.pth", "--static", terrain / "ground.nc", "--runs", tmp_path]
    assert "trained without static fields" in said(2, words, monkeypatch)
