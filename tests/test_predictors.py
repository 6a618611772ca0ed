"""Laws of predictors.py and of fields of the day in stages 2 to 4: days, cells, gaps, and what they are used for."""

import json
import shutil
from fractions import Fraction

import numpy as np
import pytest
import xarray as xr
from conftest import learn_pairs, low_rain, nodes, outputs, run, run3, said, write_nc

import datasets
import utils
from predictors import Predictors, describe_predictors
from reader import Grid
from utils import DataError
from windows import Windows

GRID = Grid(Fraction(60), Fraction(5), Fraction(1), 4, 6)
WIND = {"units": "m s-1", "long_name": "10 metre U wind component"}


def weather(path, values, times="2020-01-01", *, step=1.0, north=60.0, west=5.0, name="u10", attrs=WIND, units="hours"):
    """A file of one field (time, H, W), or (H, W) of one time, whose north-west corner is at north, west."""
    values = np.asarray(values, "float32")
    lat = nodes(north - (values.shape[-2] - 0.5) * step, north - step / 2, step)[::-1]
    lon = nodes(west + step / 2, west + (values.shape[-1] - 0.5) * step, step)
    dims = ("time", "lat", "lon")[-values.ndim :]
    times = np.array(times, "M8[ns]").reshape(-1 if values.ndim > 2 else ())
    file = xr.Dataset(
        {name: (dims, values, attrs)}, {"time": ("time"[: 4 * times.ndim] or (), times), "lat": lat, "lon": lon}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    file.to_netcdf(path, encoding={"time": {"units": f"{units} since 2019-12-31"}})
    return path


def winds(h=4, w=6, seed=0):
    return np.random.default_rng(seed).normal(3, 5, (h, w)).astype("float32")


def plain(paths, time="2020-01-01", grid=GRID, hours=24):
    """The first field of files on a grid, as it is."""
    return Predictors(paths if isinstance(paths, list) else [paths], None, hours).on(grid, time)[0]


# ---------------------------------------------------------------- on the LR cells


def test_fields_come_to_the_lr_cells_whatever_their_step(tmp_path):
    values = winds()
    np.testing.assert_allclose(plain(weather(tmp_path / "a.nc", values)), values, rtol=1e-6)
    fine = winds(16, 24)
    expected = fine.reshape(4, 4, 6, 4).mean((1, 3))
    np.testing.assert_allclose(plain(weather(tmp_path / "b.nc", fine, step=0.25)), expected, rtol=1e-5)
    slope = np.arange(5.0)[:, None] + 10 * np.arange(6.0)  # nodes of 2 degrees from 61 N, 4 E on
    cells = (np.arange(4) + 0.5)[:, None] / 2 + 10 * (np.arange(6) + 0.5) / 2
    coarse = weather(tmp_path / "c.nc", slope, step=2, north=62, west=3)
    np.testing.assert_allclose(plain(coarse), cells + 0.5 * 11 - 0.0, rtol=1e-5)


def test_any_layout_is_read_and_a_region_is_a_part_of_it(tmp_path):
    values = winds(8, 10)
    path = weather(tmp_path / "a.nc", values[None], ["2020-01-01"], north=61, west=4)
    with xr.open_dataset(path) as file:
        turned = file.sortby("lat").assign_coords(lon=file.lon + 360 * (file.lon < 0)).transpose("lon", "time", "lat")
        turned.to_netcdf(tmp_path / "b.nc")
    np.testing.assert_array_equal(plain(path), values[1:5, 1:7])
    np.testing.assert_array_equal(plain(tmp_path / "b.nc"), values[1:5, 1:7])


def test_mean_and_spread_are_those_of_the_training(tmp_path):
    files = [weather(tmp_path / f"{k}.nc", winds(seed=k), f"2020-01-0{k}") for k in (1, 2, 3)]
    days = [(GRID, f"2020-01-0{k}T12:00") for k in (1, 2, 3)]
    (field,) = describe_predictors([tmp_path], days, 24)
    assert (field["name"], field["units"]) == ("u10", "m s-1")
    whole = np.stack(Predictors(files, (field,), 24).of_days(days))
    assert whole.shape == (3, 1, 4, 6) and whole.dtype == np.float32
    assert abs(whole.mean()) < 1e-5 and whole.std() == pytest.approx(1, rel=1e-5)
    weather(tmp_path / "1.nc", np.full((4, 6), 7.0))
    (field,) = describe_predictors([tmp_path / "1.nc"], days[:1], 24)
    assert (field["mean"], field["std"]) == (7.0, 1.0)  # a constant field


# ---------------------------------------------------------------- days and times


def test_a_day_is_the_mean_of_its_times_and_an_hour_is_itself(tmp_path):
    hours = np.arange("2020-01-01T00", "2020-01-03T01", np.timedelta64(6, "h"), "M8[h]")  # two days and a time
    values = np.stack([winds(seed=k) for k in range(len(hours))])
    path = weather(tmp_path / "a.nc", values, hours)
    np.testing.assert_allclose(plain(path, "2020-01-02T23:00"), values[4:8].mean(0), rtol=1e-5)
    np.testing.assert_allclose(plain(path, "2020-01-02", hours=None), values[4:8].mean(0), rtol=1e-5)
    np.testing.assert_allclose(plain(path, "2020-01-02T06:00", hours=6), values[5], rtol=1e-6)
    with pytest.raises(DataError, match="missing for 1 of 1 times of rain, first 2020-01-03, 1 of 4 times a day there"):
        plain(path, "2020-01-03")
    with pytest.raises(DataError, match="first 2020-01-02T05:00; its times go from .*at the time of the rain"):
        plain(path, "2020-01-02T05:00", hours=6)
    with pytest.raises(DataError, match="rain of 120 hours; expected rain of a day, or of less"):
        plain(path, hours=120)


def test_a_day_may_lie_in_two_files_but_each_time_in_one(tmp_path):
    values = np.stack([winds(seed=k) for k in range(4)])
    hours = np.array([f"2020-01-01T{h:02d}" for h in (0, 6, 12, 18)], "M8[h]")
    parts = [weather(tmp_path / f"{k}.nc", values[k : k + 2], hours[k : k + 2]) for k in (0, 2)]
    np.testing.assert_allclose(plain(parts), values.mean(0), rtol=1e-5)
    again = weather(tmp_path / "again.nc", values[:1], hours[:1])
    with pytest.raises(DataError, match="again.nc: u10 of 2020-01-01 is also in .*0.nc; expected each time once"):
        plain([*parts, again])


def test_a_file_name_that_is_a_date_gives_the_day(tmp_path):
    path = weather(tmp_path / "x.nc", winds())
    with xr.open_dataset(path) as file:
        file.drop_vars("time").to_netcdf(tmp_path / "2020_01_05.nc")
        file.drop_vars("time").to_netcdf(tmp_path / "wind.nc")
    np.testing.assert_array_equal(plain(tmp_path / "2020_01_05.nc", "2020-01-05"), winds())
    with pytest.raises(DataError, match="wind.nc: no decodable time coordinate, and the name is not a date"):
        plain(tmp_path / "wind.nc")


# ---------------------------------------------------------------- what is refused


def test_fields_that_cannot_serve_are_refused_in_words(tmp_path):
    gap = winds()
    gap[1, 2] = np.nan
    for message, words in (
        ("u10 of 2020-01-01 is missing in 1 LR cells .* first at 58.5 N, 7.5 E.*setmisstonn", {"values": gap}),
        ("covers 9.5..14.5 E.*not all of 5..11 E", {"values": winds(), "west": 9.0}),
        ("covers 5.5..10.5 E, 57.5..60.5 N.*not all of", {"values": winds(), "north": 61.0}),
        ("missing for 1 of 1 times of rain.*go from 2020-02-01", {"values": winds(), "times": "2020-02-01"}),
        ("tp speaks of rain, which is no predictor", {"values": winds(), "name": "tp", "attrs": {"units": "m"}}),
    ):
        with pytest.raises(DataError, match=message):
            plain(weather(tmp_path / "a.nc", **words))
    level = xr.Dataset(
        {"u": (("time", "level", "lat", "lon"), np.zeros((1, 2, 4, 6)), WIND)},
        {"time": np.array(["2020-01-01"], "M8[ns]"), "lat": GRID.lat, "lon": GRID.lon, "level": [500, 850]},
    )
    level.to_netcdf(tmp_path / "b.nc")
    with pytest.raises(DataError, match="b.nc: u has 2 fields along level; .* cdo sellevel"):
        plain(tmp_path / "b.nc")
    level.isel(level=[1]).to_netcdf(tmp_path / "c.nc")  # one level is none
    assert not plain(tmp_path / "c.nc").any()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: no file \*.nc in this folder"):
        plain(tmp_path / "empty")


def test_rain_in_a_file_of_predictors_is_left_out(tmp_path):
    path = weather(tmp_path / "a.nc", winds())
    with xr.open_dataset(path) as file:
        file.assign(tp=(("lat", "lon"), winds(), {"units": "m"})).to_netcdf(tmp_path / "b.nc")
    assert [field["name"] for field in Predictors([tmp_path / "b.nc"], None, 24).described] == ["u10"]


def test_the_same_names_and_units_are_required(tmp_path):
    path = weather(tmp_path / "a.nc", winds())
    wanted = {"name": "u10", "units": "m s-1", "times": 1, "mean": 0.0, "std": 1.0}
    with pytest.raises(DataError, match=r"cape is not in .*a.nc, which hold\(s\) u10 \(m s-1\): give the same fields"):
        Predictors([path], [wanted, {**wanted, "name": "cape"}], 24)
    with pytest.raises(DataError, match="u10 has units 'm s-1', the model was trained with 'kt'"):
        Predictors([path], [{**wanted, "units": "kt"}], 24)
    other = weather(tmp_path / "b.nc", winds(), "2020-01-02", attrs={"units": "kt"})
    with pytest.raises(DataError, match="b.nc: u10 in units 'kt', in .*a.nc 'm s-1'; expected one unit"):
        Predictors([path, other], None, 24)


# ---------------------------------------------------------------- windows


def test_windows_interpolate_predictors_where_they_begin_within_a_cell(tmp_path):
    """The field is the position of the cell's centre, which interpolation gives exactly; rain is the position too."""
    row, col = np.indices((60, 80)) + 0.5
    path = write_nc(
        tmp_path / "1950_08_01.nc",
        1 + row + 100 * col,
        nodes(54.05, 59.95, 0.1)[::-1],
        nodes(5.05, 12.95, 0.1),
        attrs={"units": "mm"},
        encoding={"dtype": "float64"},
    )
    (tmp_path / "PreTrain.json").write_text(json.dumps([str(path)]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reader.MAX_DAILY", 1e5)
        data = datasets.SRDataset(tmp_path, "train", target="coarsen", region="all", hr_step=0.1)
    places = np.indices((6, 8)) * 10 + 5.0
    windows = Windows(data, sides=(2, 4), crop=2, turn=False, predictors=[places.astype("float32")])
    for step in range(8):
        batch = windows.batch(step, 2)
        day = batch["predictors"]
        assert day.dtype == np.float32 and day.shape == (2, 2, *batch["lr"].shape[-2:])
        np.testing.assert_allclose(1 + day[:, 0] + 100 * day[:, 1], batch["lr"][:, 0], rtol=1e-5)


# ---------------------------------------------------------------- stages 2 to 4


@pytest.fixture(scope="module")
def windy(tmp_path_factory):
    """Days with nine times as much rain in a west wind; a model that was given the wind, and one that was not."""
    folder = tmp_path_factory.mktemp("windy")
    fine, pairs = (nodes(50.125, 61.875, 0.25)[::-1], nodes(5.125, 18.875, 0.25)), []
    for k in range(22):
        wind = 8 * np.kron(np.random.default_rng(k).choice([-1, 1], (3, 4)), np.ones((4, 4)))[:, :14]
        weather(folder / "wind" / f"w{k}.nc", wind, f"2020-01-{k + 1:02d}T12:00", north=62)
        low = low_rain(k)
        pairs.append((low, np.kron(low * np.where(wind > 0, 1.8, 0.2), np.ones((4, 4)))))
    learn_pairs(folder, pairs, fine, "--predictors", folder / "wind", crop=16)
    return folder


def test_a_wind_that_drives_the_truth_is_used(windy):
    scores = {name: utils.load_checkpoint(windy / f"{name}.pth")["scores"]["crps"] for name in ("with", "without")}
    assert scores["with"] < 0.8 * scores["without"], scores


def test_stage_3_needs_the_fields_and_tiles_agree(windy, tmp_path, monkeypatch):
    words = ["--data-folder", windy / "lists", "--checkpoint", windy / "with.pth"]
    told = said(3, [*words, "--out", tmp_path / "none", "--no-scores"], monkeypatch)
    assert "with.pth: the model was trained with predictors u10 (m s-1); none was given: give the same" in told
    told = said(3, [*words, "--predictors", windy / "wind" / "w20.nc", "--out", tmp_path / "none"], monkeypatch)
    assert "u10 is missing for 1 of 2 times of rain, first 2020-01-22" in told and not (tmp_path / "none").exists()
    wind = ["--predictors", windy / "wind"]
    told = said(3, [*words[:3], windy / "without.pth", *wind, "--out", tmp_path / "none"], monkeypatch)
    assert "trained without predictors; leave --predictors out" in told
    run3(*words, *wind, "--out", tmp_path / "whole")
    run3(*words, *wind, "--out", tmp_path / "tiles", "--tile", 3)
    for one, two in zip(outputs(tmp_path / "whole"), outputs(tmp_path / "tiles"), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)
    with xr.open_dataset(tmp_path / "whole" / "00_pre_sr.nc") as file:
        assert file.attrs["predictors"].startswith("u10 (m s-1) of 22 file(s), ")
    for speed, folder in ((8.0, "west"), (-8.0, "whole")):  # in "whole" another request: made anew
        files = [tmp_path / f"{speed}_{day}.nc" for day in (21, 22)]
        for file, day in zip(files, (21, 22), strict=True):
            weather(file, np.full((12, 14), speed), f"2020-01-{day}T12:00", north=62)
        run3(*words, "--predictors", *files, "--out", tmp_path / folder)
    east, west = outputs(tmp_path / "whole")[0].values, outputs(tmp_path / "west")[0].values
    assert west.mean() > 3 * east.mean()


def test_resume_finds_the_fields_again_and_a_model_without_them_refuses(windy, tmp_path, monkeypatch):
    shutil.copy(windy / "with.pth", tmp_path / "a.pth")
    run(2, "--resume", "--checkpoint", tmp_path / "a.pth", "--threads", 1, "--amp", "off", "--runs", tmp_path / "runs")
    (field,) = utils.load_checkpoint(tmp_path / "a.pth")["generator_config"]["predictor_fields"]
    assert field["name"] == "u10" and field["std"] == pytest.approx(8, rel=0.01)
    shutil.copy(windy / "without.pth", tmp_path / "b.pth")
    words = ["--resume", "--checkpoint", tmp_path / "b.pth", "--predictors", windy / "wind", "--runs", tmp_path]
    assert "trained without predictors" in said(2, words, monkeypatch)
    words = ["--data-folder", windy / "lists", "--target", "paired", "--region", "all"]
    words += ["--predictors", windy / "wind" / "w1.nc", "--checkpoint", tmp_path / "c.pth", "--runs", tmp_path]
    assert "u10 is missing for 19 of 20 times of rain, first 2020-01-01" in said(2, words, monkeypatch)


# ---------------------------------------------------------------- what a user really downloads


def cds(path, value, level, days=("2020-01-01", "2020-01-02"), units="m s**-1", **more):
    """As the new CDS writes a wind at one pressure level."""
    values = np.full((len(days), 1, 4, 6), value, "float32")
    coords = {
        "valid_time": np.array(days, "M8[ns]"),
        "pressure_level": ("pressure_level", [float(level)], {"units": "hPa", "positive": "down"}),
        "latitude": ("latitude", GRID.lat, {"units": "degrees_north"}),
        "longitude": ("longitude", GRID.lon, {"units": "degrees_east"}),
        "number": 0,
        "expver": ("valid_time", ["0001"] * len(days)),
    }
    dims = ("valid_time", "pressure_level", "latitude", "longitude")
    xr.Dataset({"u": (dims, values, {"units": units, **more})}, coords).to_netcdf(path)
    return path


def test_levels_are_fields_of_their_own(tmp_path):
    low, high = cds(tmp_path / "850.nc", 5.0, 850), cds(tmp_path / "500.nc", 20.0, 500)
    days = [(GRID, "2020-01-01"), (GRID, "2020-01-02")]
    both = describe_predictors([low, high], days, 24)
    names = ["u at pressure_level 850 hPa", "u at pressure_level 500 hPa"]
    assert [(field["name"], field["mean"]) for field in both] == list(zip(names, (5.0, 20.0), strict=True))
    with pytest.raises(DataError, match="u at pressure_level 850 hPa is not in .*500.nc, which .* 500 hPa"):
        Predictors([high], both[:1], 24)


def test_units_in_other_spellings_are_the_same_and_none_are_none(tmp_path):
    (field,) = describe_predictors([cds(tmp_path / "a.nc", 5.0, 850)], [(GRID, "2020-01-01")], 24)
    Predictors([cds(tmp_path / "b.nc", 5.0, 850, units="m/s")], [field], 24)
    with pytest.raises(DataError, match="units '1', the model was trained with 'm s-1'"):
        Predictors([cds(tmp_path / "c.nc", 5.0, 850, units="1")], [field], 24)


def test_a_mean_stamped_at_its_end_is_that_of_the_day_before(tmp_path):
    values, days = np.stack([winds(seed=k) for k in (1, 2)]), np.array(["2020-01-02", "2020-01-03"], "M8[ns]")
    path = weather(tmp_path / "a.nc", values, days)
    with xr.open_dataset(path) as file:
        begun = file.assign(time_bnds=(("time", "nv"), np.stack([days - np.timedelta64(1, "D"), days], 1)))
        begun.to_netcdf(tmp_path / "b.nc")
        long = file.assign(time_bnds=(("time", "nv"), np.stack([days, days + np.timedelta64(31, "D")], 1)))
        long.to_netcdf(tmp_path / "c.nc")
    np.testing.assert_array_equal(plain(tmp_path / "b.nc", "2020-01-02"), values[1])
    with pytest.raises(DataError, match="u10 is given for 31 days at a time"):
        plain(tmp_path / "c.nc", "2020-01-02")


def test_forecasts_are_valid_at_their_lead_time(tmp_path):
    """As cfgrib writes them: the issue in time, leads in step, with or without valid_time."""
    values, leads = np.stack([winds(seed=k) for k in (1, 2)]), np.array([24, 48], "m8[h]").astype("m8[ns]")
    issue = ((), np.datetime64("2020-01-01", "ns"), {"standard_name": "forecast_reference_time"})
    step = ("step", leads, {"standard_name": "forecast_period"})
    file = xr.Dataset(
        {"u10": (("step", "lat", "lon"), values, WIND)},
        {"time": issue, "step": step, "lat": GRID.lat, "lon": GRID.lon},
    )
    file.to_netcdf(tmp_path / "a.nc")
    file.assign_coords(valid_time=("step", issue[1] + leads)).to_netcdf(tmp_path / "b.nc")
    file.isel(step=[0]).to_netcdf(tmp_path / "c.nc")
    for name in ("a", "b"):
        np.testing.assert_array_equal(plain(tmp_path / f"{name}.nc", "2020-01-03"), values[1])
    np.testing.assert_array_equal(plain(tmp_path / "c.nc", "2020-01-02"), values[0])


def test_a_day_has_as_many_times_as_those_of_the_training(tmp_path, capsys):
    hours = np.arange("2020-01-01T00", "2020-01-03T00", np.timedelta64(6, "h"), "M8[h]")
    path = weather(tmp_path / "a.nc", np.stack([winds(seed=k) for k in range(8)]), hours)
    described = describe_predictors([path], [(GRID, "2020-01-01")], 24)
    assert described[0]["times"] == 4
    part = weather(tmp_path / "b.nc", np.stack([winds(seed=k) for k in range(3)]), hours[:3])
    with pytest.raises(DataError, match="3 of 4 times a day there"):
        Predictors([part], described, 24).on(GRID, "2020-01-01")
    capsys.readouterr()
    Predictors([weather(tmp_path / "c.nc", winds())], described, 24).on(GRID, "2020-01-01")
    assert "u10 has one time a day, the model was trained with the mean of 4 a day" in capsys.readouterr().out


def test_codes_other_quantities_and_other_grids_are_refused(tmp_path):
    for code in (-9999, 9.96921e36):
        values = winds()
        values[0, 0] = code
        with pytest.raises(DataError, match=r"a.nc: u10 holds .* in 1 cell\(s\): a code for missing"):
            plain(weather(tmp_path / "a.nc", values))
    described = describe_predictors([weather(tmp_path / "a.nc", winds())], [(GRID, "2020-01-01")], 24)
    fast = weather(tmp_path / "b.nc", winds() + 8000)
    with pytest.raises(DataError, match="b.nc: u10 of 2020-01-01 is up to .* standard deviations from its mean in tr"):
        Predictors([fast], described, 24).on(GRID, "2020-01-01")
    times = np.array(["2020-01-01T00", "2020-01-01T12"], "M8[h]")
    halves = [weather(tmp_path / "c.nc", winds(5, 7)[None], times[:1])]
    halves += [weather(tmp_path / "d.nc", winds(6, 8)[None], times[1:], north=60.5, west=4.5)]
    with pytest.raises(DataError, match="u10 of 2020-01-01 is on another grid in another file"):
        plain(halves)


def test_what_is_left_out_is_said(tmp_path, capsys):
    path = weather(tmp_path / "a.nc", winds())
    with xr.open_dataset(path) as file:
        more = {"cp": (("lat", "lon"), winds(), {"units": "m"}), "pwat": (("lat", "lon"), winds(), WIND)}
        more["pwat"][2:][0].update(long_name="Precipitable water")
        file.assign(**more).to_netcdf(tmp_path / "b.nc")
    found = describe_predictors([tmp_path / "b.nc"], [(GRID, "2020-01-01")], 24)
    assert [field["name"] for field in found] == ["u10", "pwat"]
    assert "left out of --predictors: cp speaks of rain" in capsys.readouterr().out


def test_files_that_are_not_there_or_empty_are_named(tmp_path):
    with pytest.raises(DataError, match="gone.nc: no such file; expected predictors"):
        plain(tmp_path / "gone.nc")
    path = weather(tmp_path / "a.nc", np.zeros((0, 4, 6)), [])
    with pytest.raises(DataError, match="a.nc: u10 has no time, its time is empty"):
        plain(path)
    weather(tmp_path / "year" / "2020" / "a.nc", winds())
    (tmp_path / "year" / "2020" / "._a.nc").write_bytes(b"resource fork")
    np.testing.assert_array_equal(plain(tmp_path / "year"), winds())


def test_a_start_from_a_model_with_other_predictors_is_refused(windy, tmp_path, monkeypatch):
    words = ["--data-folder", windy / "lists", "--target", "paired", "--region", "all", "--channels", 8, "--blocks", 1]
    words += ["--checkpoint", tmp_path / "a.pth", "--runs", tmp_path, "--init", windy / "with.pth"]
    assert "its predictor fields are u10, those of this training none" in said(2, words, monkeypatch)
