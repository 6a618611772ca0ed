"""Laws of datasets.py: which cells a region covers, what a pair is, what the cache and the windows hold."""

import argparse
import json
from dataclasses import asdict, replace
from fractions import Fraction

import numpy as np
import pytest
import xarray as xr
from conftest import nodes, rain, write_nc
from hypothesis import given, settings
from hypothesis import strategies as st

import datasets
import utils
from datasets import (
    DataConfig,
    PreTransforms,
    SRDataset,
    block_mean,
    fill_nearest,
    format_region,
    parse_region,
)
from reader import Grid, inspect_files
from settings import add_settings
from settings import given as typed_fields
from utils import DataError
from windows import Windows

LAT, LON = nodes(22, 34, 1)[::-1], nodes(100, 114, 1)  # 13 x 15
FIELD = rain((13, 15))


def day(tmp_path, values=FIELD, lat=LAT, lon=LON, name="1950_08_01.nc", **layout):
    return write_nc(tmp_path / name, values, lat, lon, **layout)


def lists(folder, **splits):
    """JSON lists as stage 1 writes them; a list of a dict is of pairs."""
    for split, entries in splits.items():
        plain = [{k: str(v) for k, v in e.items()} if isinstance(e, dict) else str(e) for e in entries]
        (folder / f"Pre{split.title()}.json").write_text(json.dumps(plain))
    return folder


def inspected(folder, **splits):
    """PreInfo.json as stage 1 writes it, of records."""
    utils.write_json(folder / utils.INFO, {"files": splits})


# ---------------------------------------------------------------- grids


def plan(lat, lon, **settings):
    return datasets.plan_pairs(Grid.from_centres(lat, lon), DataConfig(**settings))


ONE = nodes(15, 55, 1)[::-1], nodes(70, 140, 1)
FORECAST = nodes(15.2, 55.2, 0.4)[::-1], nodes(70, 140, 0.4)
RADAR = nodes(20.005, 54.995, 0.01)[::-1], nodes(-129.995, -80.005, 0.01)


def test_one_degree_region_is_500_by_500_cells():
    p = plan(*ONE)
    assert p.kind == "lr" and p.lr.shape == (5, 5) and p.hr.shape == (500, 500)
    np.testing.assert_array_equal(p.lr.lon, np.arange(106, 111))
    np.testing.assert_array_equal(p.hr.lon, (np.arange(500) * 10 + 105505) / 1000)
    np.testing.assert_array_equal(p.hr.lat, (30495 - np.arange(500) * 10) / 1000)


def test_forecast_region_is_440_by_440_cells_of_the_same_lattice():
    p, one = plan(*FORECAST, lr_step=0.4), plan(*ONE)
    assert p.lr.shape == (11, 11) and p.hr.shape == (440, 440) and p.config.scale == 40
    assert p.lr.extent == "105.8..110.2 E, 25.8..30.2 N"
    np.testing.assert_array_equal(p.hr.lon, one.hr.lon[30:-30])
    np.testing.assert_array_equal(p.hr.lat, one.hr.lat[30:-30])


def test_lr_cells_of_x40_from_one_degree_days_are_those_of_the_forecasts():
    coarser, forecast = plan(*ONE, lr_step=0.4), plan(*FORECAST, lr_step=0.4)
    assert coarser.kind == "coarser" and coarser.lr == forecast.lr and coarser.hr == forecast.hr


def test_edges_reading_on_the_radar_grid():
    p = plan(*RADAR, region=(-85, -80, 20, 55), target="coarsen")
    assert p.lr.shape == (35, 5) and p.lr.extent == "-85..-80 E, 20..55 N" and "edges" in p.words
    assert p.hr.lon[0] == -84.995 and p.hr.lat[0] == 54.995


def test_all_keeps_the_file_and_leaves_an_incomplete_remainder_missing():
    lat, lon = nodes(20.05, 22.95, 0.1)[::-1], nodes(100.05, 105.45, 0.1)  # 30 x 55
    p = plan(lat, lon, region="all", lr_step=0.4, hr_step=0.1, target="coarsen")
    assert p.lr.shape == (7, 13) and p.core.shape == (28, 52) and p.hr.shape == (30, 55)
    assert p.lr.north == 23 and p.lr.west == 100
    np.testing.assert_array_equal(p.hr.lat, lat)
    np.testing.assert_array_equal(p.hr.lon, lon)


def test_region_beyond_the_file_is_refused():
    with pytest.raises(DataError, match="not inside the file.*70|69.5"):
        plan(*ONE, region=(60, 66, 26, 30))
    with pytest.raises(DataError, match="less than one cell"):
        plan(nodes(20.05, 20.45, 0.1)[::-1], nodes(100.05, 100.45, 0.1), region="all", hr_step=0.1, target="coarsen")


bounds = st.integers(-40, 40).map(lambda k: k / 20)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    step=st.sampled_from([0.1, 0.25, 0.4, 0.5, 1.0]),
    lr_step=st.sampled_from([0.4, 0.5, 1.0, 2.0]),
    shifts=st.tuples(bounds, bounds, bounds, bounds),
    target=st.sampled_from(["interpolate", "coarsen"]),
)
def test_the_suggested_region_works_when_typed(step, lr_step, shifts, target):
    lat, lon = nodes(20, 20 + 40 * step, step)[::-1], nodes(100, 100 + 50 * step, step)
    middle_lon, middle_lat = 100 + 25 * step, 20 + 20 * step
    typed = (
        middle_lon - 2 + shifts[0],
        middle_lon + 3 + shifts[1],
        middle_lat - 2 + shifts[2],
        middle_lat + 3 + shifts[3],
    )
    grid = Grid.from_centres(lat, lon)
    if not (typed[0] < typed[1] and typed[2] < typed[3]):
        return
    hr_step = step if step < lr_step and lr_step / step == round(lr_step / step) else lr_step / 20
    config = DataConfig(target=target, region=typed, lr_step=lr_step, hr_step=hr_step)
    try:
        cells = datasets.plan_pairs(grid, config).lr
    except DataError as error:
        if "the nearest that does: --region" not in str(error):
            assert "not inside the file" in str(error) or "takes files" in str(error)
            return
        suggestion = str(error).split("the nearest that does: --region ")[1].removesuffix(", or --region all").split()
        cells = datasets.plan_pairs(grid, replace(config, region=suggestion)).lr
    assert cells.step == Fraction(str(lr_step)) and cells.rows and cells.cols and grid.holds(cells)


@pytest.mark.parametrize(
    "settings_",
    [
        {"region": (110, 106, 26, 30)},
        {"region": (106, 200, 26, 30)},
        {"region": (float("nan"), 110, 26, 30)},
        {"lr_step": 0.015},
        {"lr_step": 0.01},
        {"lr_step": float("nan")},
        {"lr_step": float("inf")},
        {"lr_step": -1},
        {"hr_step": 0},
        {"hr_step": 1e-9},
        {"target": "guess"},
        {"units": "inch"},
    ],
)
def test_settings_that_make_no_sense_are_refused_in_words(settings_):
    with pytest.raises(DataError):
        DataConfig(**settings_)


@pytest.mark.parametrize(
    ("words", "region"),
    [(["all"], "all"), ("all", "all"), (["1", "2", "3", "4"], (1.0, 2.0, 3.0, 4.0)), ((1, 2, 3, 4), (1, 2, 3, 4))],
)
def test_parse_region(words, region):
    assert parse_region(words) == region == DataConfig(region=words).region
    assert parse_region(format_region(region)) == region


@pytest.mark.parametrize("words", [["1", "2", "3"], ["1", "2", "3", "4", "5"], ["a", "b", "c", "d"], ["all", "all"]])
def test_parse_region_refuses_in_words(words):
    with pytest.raises(DataError, match="expected LONW LONE LATS LATN, or all"):
        parse_region(words)


def test_settings_are_options_and_what_is_not_typed_stays_with_the_split():
    parser = argparse.ArgumentParser()
    add_settings(parser, DataConfig, shown={"lr_step": "that of the list"})
    typed = typed_fields(parser.parse_args(["--region", "-85", "-80", "20", "55", "--hr-step", "0.1"]), DataConfig)
    assert typed == {"region": ["-85", "-80", "20", "55"], "hr_step": 0.1}
    config = DataConfig.for_split("obj", **typed)
    assert config == DataConfig(region=(-85.0, -80.0, 20.0, 55.0), lr_step=0.4, hr_step=0.1)
    assert DataConfig(**asdict(config)) == config  # as a checkpoint stores it
    text = parser.format_help()
    assert "(default: that of the list)" in text and "(default: 106 110 26 30)" in text


# ---------------------------------------------------------------- pairs


def test_block_mean_takes_blocks_of_which_half_is_valid():
    field = np.arange(16.0).reshape(4, 4)
    np.testing.assert_array_equal(block_mean(field, 2), [[2.5, 4.5], [10.5, 12.5]])
    field[0, :2] = np.nan  # half of the first block
    field[0, 2], field[1, 2:] = np.nan, np.nan  # three of the second
    np.testing.assert_array_equal(block_mean(field, 2), [[4.5, np.nan], [10.5, 12.5]])
    with pytest.raises(ValueError, match="not a multiple"):
        block_mean(field, 3)


def test_fill_nearest_takes_the_nearest_valid_cell():
    field = np.array([[1, np.nan, np.nan, 4], [np.nan, np.nan, np.nan, 8]], "float32")
    np.testing.assert_array_equal(fill_nearest(field), [[1, 1, 4, 4], [1, 1, 8, 8]])
    np.testing.assert_array_equal(fill_nearest(field * np.nan), np.zeros((2, 4)))
    np.testing.assert_array_equal(np.isnan(field), [[0, 1, 1, 0], [1, 1, 1, 0]])  # the field itself is not changed


def test_the_users_snippets(tmp_path):
    lat, lon = nodes(20, 36, 1)[::-1], nodes(100, 116, 1)
    values = rain((17, 17))
    path = write_nc(tmp_path / "1950_08_01.nc", values, lat, lon, dims=("lon", "lat"))
    pre = xr.open_dataset(path)["tp"]
    lr, hr = PreTransforms(split="train")(pre)
    assert lr.shape == (5, 5) and hr.shape == (500, 500) and hr.dims == ("lat", "lon")
    np.testing.assert_array_equal(lr, values[6:11, 6:11].astype("float32"))
    again_lr, again_hr = SRDataset(lists(tmp_path, train=[path]), "train")[0]
    np.testing.assert_array_equal(lr, again_lr)
    np.testing.assert_array_equal(hr, again_hr)
    assert type(again_lr) is np.ndarray and again_hr.dtype == np.float32


def test_interpolation_is_linear_and_takes_neighbours_from_beyond_the_region():
    lat, lon = nodes(20, 36, 1)[::-1], nodes(100, 116, 1)
    ramp = xr.DataArray(2 * lat[:, None] + 3 * lon, {"lat": lat, "lon": lon}, ("lat", "lon"), "tp")
    ramp = ramp.assign_attrs(units="mm")
    _, hr = PreTransforms("train", hr_step=0.1)(ramp)
    np.testing.assert_allclose(
        hr, 2 * hr.lat + 3 * hr.lon, rtol=1e-6
    )  # the outermost pixels too: 105.55 lies between 105 and 106


def test_interpolation_holds_the_last_value_at_the_edge_of_the_file():
    lat, lon = nodes(26, 30, 1)[::-1], nodes(106, 110, 1)
    values = np.arange(25.0).reshape(5, 5)
    pre = xr.DataArray(values, {"lat": lat, "lon": lon}, ("lat", "lon"), "tp", {"units": "mm"})
    _, hr = PreTransforms("train", hr_step=0.1)(pre)
    np.testing.assert_array_equal(hr[:5, :5], values[0, 0])
    np.testing.assert_array_equal(hr[-5:, -5:], values[-1, -1])
    assert hr.min() == 0 and hr.max() == 24


def test_interpolation_is_missing_where_its_cell_is():
    lat, lon = nodes(20, 36, 1)[::-1], nodes(100, 116, 1)
    values = np.full((17, 17), 5.0)
    values[8, 8] = np.nan
    pre = xr.DataArray(values, {"lat": lat, "lon": lon}, ("lat", "lon"), "tp", {"units": "mm"})
    lr, hr = PreTransforms("train", hr_step=0.1)(pre)
    np.testing.assert_array_equal(np.isnan(hr), np.kron(np.isnan(lr), np.ones((10, 10))))
    np.testing.assert_allclose(hr.values[~np.isnan(hr.values)], 5.0, rtol=1e-6)


def test_lr_of_a_coarser_file_is_the_block_mean_of_its_hr():
    lat, lon = nodes(20, 36, 1)[::-1], nodes(100, 116, 1)
    pre = xr.DataArray(rain((17, 17)), {"lat": lat, "lon": lon}, ("lat", "lon"), "tp", {"units": "mm"})
    lr, hr = PreTransforms("obj", hr_step=0.1)(pre)
    assert lr.shape == (11, 11) and hr.shape == (44, 44)
    np.testing.assert_allclose(lr, block_mean(hr.values, 4), rtol=1e-6)


def test_coarsen_pairs_are_the_file_and_its_block_means(tmp_path):
    lat, lon = nodes(25.55, 30.45, 0.1)[::-1], nodes(105.55, 110.45, 0.1)
    values = rain((50, 50))
    path = write_nc(tmp_path / "1950_08_01.nc", values, lat, lon)
    data = SRDataset(lists(tmp_path, train=[path]), "train", target="coarsen", region="all", hr_step=0.1)
    lr, hr = data[0]
    np.testing.assert_array_equal(hr, values.astype("float32"))
    np.testing.assert_array_equal(lr, values.reshape(5, 10, 5, 10).mean((1, 3)).astype("float32"))


def test_paired_takes_truth_of_the_same_entry(tmp_path):
    low = write_nc(tmp_path / "l/1950_08_01.nc", rain((5, 5), 1), nodes(26, 30, 1)[::-1], nodes(106, 110, 1))
    high = rain((60, 60), 2)
    lat, lon = nodes(25.05, 30.95, 0.1)[::-1], nodes(105.05, 110.95, 0.1)
    truth = write_nc(tmp_path / "h/1950_08_01.nc", high, lat, lon)
    folder = lists(tmp_path, train=[{"lr": low, "hr": truth}])
    lr, hr = SRDataset(folder, "train", target="paired", hr_step=0.1)[0]
    np.testing.assert_array_equal(lr, rain((5, 5), 1).astype("float32"))
    np.testing.assert_array_equal(hr, high[5:55, 5:55].astype("float32"))
    with pytest.raises(DataError, match="no pairs.*--train-hr-folders"):
        SRDataset(lists(tmp_path, train=[low]), "train", target="paired", hr_step=0.1)


@pytest.mark.parametrize(
    ("step", "target", "kind"),
    [
        (1.0, "interpolate", "lr"),
        (0.1, "interpolate", "hr"),
        (2.0, "interpolate", "coarser"),
        (0.5, "interpolate", None),
        (0.05, "interpolate", None),
        (1.0, "coarsen", "lr"),
        (0.1, "coarsen", "hr"),
        (2.0, "coarsen", None),
        (0.4, "coarsen", None),
        (2.0, "paired", None),
        (1.0, "paired", "lr"),
    ],
)
def test_step_rule(step, target, kind):
    grid = Grid(Fraction(35), Fraction(100), Fraction(str(step)), round(20 / step), round(20 / step))
    config = DataConfig(target=target, region=(104, 110, 21, 29), hr_step=0.1)
    if kind:
        assert datasets.plan_pairs(grid, config).kind == kind
        return
    with pytest.raises(DataError, match=rf"step is {step:g} degree.*2train.py --target {target} --lr-step") as error:
        datasets.plan_pairs(grid, config)
    typed = str(error.value).split("2train.py ")[1].split()
    options = dict(zip(typed[::2], typed[1::2], strict=True))
    assert DataConfig(lr_step=float(options["--lr-step"]), hr_step=float(options["--hr-step"])).scale >= 2


def test_pair_without_truth_is_refused(tmp_path):
    path = write_nc(tmp_path / "1950_08_01.nc", rain((17, 17)), nodes(20, 36, 1)[::-1], nodes(100, 116, 1))
    data = SRDataset(lists(tmp_path, eval=[path]), "eval", target="coarsen", hr_step=0.1)
    with pytest.raises(DataError, match="no truth for target coarsen"):
        data[0]


# ---------------------------------------------------------------- cache and windows


def test_cache_follows_the_file(tmp_path):
    path = day(tmp_path, FIELD)
    folder = lists(tmp_path, train=[path])
    first, _ = SRDataset(folder, "train", region="all", hr_step=0.1)[0]
    kept = sorted((tmp_path / "cache").glob("*.f32"))
    SRDataset(folder, "train", region="all", hr_step=0.1)
    assert sorted((tmp_path / "cache").glob("*.f32")) == kept and len(kept) == 1
    day(tmp_path, FIELD * 2)
    second, _ = SRDataset(folder, "train", region="all", hr_step=0.1)[0]
    np.testing.assert_array_equal(second, first * 2)
    parts = sorted((tmp_path / "cache").iterdir())
    for damaged, left in (parts, 40), (parts[:1], 40), (parts[1:], 0), (parts[1:], "[]"), (parts[1:], '[{"grid": 5}]'):
        for part in damaged:
            part.write_bytes(left.encode() if isinstance(left, str) else part.read_bytes()[:left])  # made again
        third, _ = SRDataset(folder, "train", region="all", hr_step=0.1)[0]
        np.testing.assert_array_equal(third, second)


def test_a_file_rewritten_in_other_units_after_stage_1_is_read_in_its_own(tmp_path):
    paths = [day(tmp_path, FIELD + k, name=f"2023_08_0{k + 1}.nc", attrs={"units": "mm"}) for k in range(2)]
    folder = lists(tmp_path, train=paths)
    inspected(folder, train=inspect_files(paths)[0])
    first = datasets.open_list(folder, "train").values(0).copy()
    day(tmp_path, FIELD / 1000, name="2023_08_01.nc", attrs={"units": "m"})
    np.testing.assert_allclose(datasets.open_list(folder, "train").values(0), first, rtol=1e-5)


def test_units_of_one_list_are_its_own_and_survive_a_path_added_by_hand(tmp_path):
    paths = [day(tmp_path, FIELD + k, name=f"2023_08_0{k + 1}.nc", attrs={"units": "mm"}) for k in range(2)]
    folder = lists(tmp_path, train=paths[:1])
    (record,), _ = inspect_files(paths[:1])
    inspected(folder, train=[record | {"units": "cm", "units_from": "--units"}], eval=[record])
    assert datasets.open_list(folder, "train").values(0).max() == pytest.approx(10 * FIELD.max(), rel=1e-5)
    lists(tmp_path, train=paths)
    assert datasets.open_list(folder, "train").values(0).max() == pytest.approx(10 * FIELD.max(), rel=1e-5)
    assert datasets.open_list(folder, "train").values(1).max() == pytest.approx(FIELD.max() + 1, rel=1e-5)


def test_a_slower_process_does_not_replace_a_cache_that_is_being_read(tmp_path, monkeypatch):
    folder = lists(tmp_path, train=[day(tmp_path, FIELD)])
    plain, made = datasets.read_field, []

    def slow(*args, **words):
        with monkeypatch.context() as patch:
            patch.setattr(datasets, "read_field", plain)
            datasets.open_list(folder, "train")  # the quicker process
        made.extend(path.stat().st_ino for path in sorted((tmp_path / "cache").iterdir()))
        return plain(*args, **words)

    monkeypatch.setattr(datasets, "read_field", slow)
    archive = datasets.open_list(folder, "train")
    assert len(made) == 2 and [path.stat().st_ino for path in sorted((tmp_path / "cache").iterdir())] == made
    np.testing.assert_array_equal(archive.values(0), archive.field(0).values)


def test_windows_hold_no_missing_pixel_and_conserve(tmp_path):
    lat, lon = nodes(20.05, 29.95, 0.1)[::-1], nodes(100.05, 111.95, 0.1)
    values = rain((100, 120))
    values[:40, :30] = np.nan
    path = write_nc(tmp_path / "1950_08_01.nc", values, lat, lon)
    data = SRDataset(lists(tmp_path, train=[path]), "train", target="coarsen", region="all", hr_step=0.1)
    windows = Windows(data, sides=(3, 4), crop=2, seed=1)
    for step in range(6):
        batch = windows.batch(step, 3)
        r0, r1, c0, c1 = batch["box"]
        assert np.isfinite(batch["lr"]).all() and np.isfinite(batch["hr"]).all()
        np.testing.assert_allclose(block_mean(batch["hr"], 10), batch["lr"][..., r0:r1, c0:c1], rtol=1e-5, atol=1e-6)


def test_windows_depend_on_seed_and_step_alone_and_shares_join(project, monkeypatch):
    monkeypatch.chdir(project.home)

    def windows(seed):
        return Windows(SRDataset(project.lists, "train", hr_step=0.1), sides=(4, 5), seed=seed)

    whole, again = windows(0).batch(3, 4), windows(0).batch(3, 4)
    np.testing.assert_array_equal(whole["hr"], again["hr"])
    halves = [windows(0).batch(3, 4, first, 2) for first in (0, 2)]
    np.testing.assert_array_equal(whole["hr"], np.concatenate([half["hr"] for half in halves]))
    assert not np.array_equal(whole["lr"], windows(1).batch(3, 4)["lr"])


def test_validation_windows_are_held_out(tmp_path):
    lat, lon = nodes(20, 36, 1)[::-1], nodes(100, 116, 1)
    paths = [write_nc(tmp_path / f"1950_08_{k:02d}.nc", rain((17, 17), k), lat, lon) for k in range(1, 25)]
    data = SRDataset(lists(tmp_path, train=paths), "train", hr_step=0.1)
    train, valid = (Windows(data, sides=(4, 5), part=part) for part in ("train", "valid"))
    assert set(train.files).isdisjoint(valid.files) and set(train.files) | set(valid.files) == set(range(24))
    assert min(valid.files) > max(train.files)
