"""Forecasts at cells: consistency with their input, skill against analysed days."""

import csv

import numpy as np
import pytest
import xarray as xr
from conftest import block_means, nodes, rain, run, said
from test_verification import analysed, forecast

import forecasts
import utils
from forecasts import compare_cells, pair_cells
from reader import read_field
from utils import DataError


def test_forecast_equals_its_own_input_at_the_121_cells():
    sr, own = forecast()
    row = compare_cells("own input (consistency)", [pair_cells(sr, own)])
    assert row["cells"] == 121 and row["qq_rmse"] < 1e-3 and row["max_difference"] < 1e-3
    slipped = compare_cells("unit slip", [pair_cells(sr / 1000, own)])
    assert slipped["qq_rmse"] > 0.5 * row["mean_reference"]
    mirrored = sr.copy(data=sr.values[:, ::-1])
    assert compare_cells("mirrored", [pair_cells(mirrored, own)])["max_difference"] > 0.1


def test_analysed_cells_lie_whole_inside_nine_by_default_and_25_on_request():
    sr, _ = forecast()
    members, truth = pair_cells(sr, analysed())
    assert members.shape == (2, 9)
    inside = analysed().sel(lat=slice(29, 27), lon=slice(107, 109))
    np.testing.assert_allclose(truth, inside.values.ravel())
    np.testing.assert_allclose(
        members[0, 0], sr.isel(member=0).sel(lat=slice(29.5, 28.5), lon=slice(106.5, 107.5)).mean(), rtol=1e-6
    )
    wide, _ = forecast(lonw=105.4, latn=30.6, side=520)
    assert pair_cells(wide, analysed())[1].shape == (25,)


def test_cells_are_matched_by_coordinates_and_dates_never_by_position():
    sr, own = forecast()
    expected = pair_cells(sr, own)
    turned = own.sortby("lat").sortby("lon", ascending=False).transpose("lon", "lat")
    got = pair_cells(sr.sortby("lat"), turned)
    np.testing.assert_allclose(np.sort(got[0], 1), np.sort(expected[0], 1), rtol=1e-9)
    assert np.abs(got[0] - got[1]).max() < 1e-3
    with pytest.raises(ValueError, match="2023-08-12.*2023-08-13"):
        pair_cells(sr, analysed("2023-08-13"))
    with pytest.raises(ValueError, match="whole inside"):
        pair_cells(sr, analysed().assign_coords(lon=np.arange(0, 71.0)))


def test_cells_with_a_missing_pixel_are_left_out():
    sr, own = forecast()
    sr[:, 5, 5] = np.nan
    members, truth = pair_cells(sr, own)
    assert members.shape == (2, 120) and np.abs(members - truth).max() < 1e-3


def test_forecasts_are_compared_with_their_input_and_the_analysed_day_of_their_date(tmp_path, capsys):
    sr, own = forecast()
    path = tmp_path / "00_pre_sr.nc"
    utils.write_field(path, sr.astype(np.float32))
    cells = forecasts.forecast_cells([path], [own], {"2023-08-12": analysed()})
    rows = forecasts.compare_forecasts(cells)
    assert [(r["name"], r["cells"]) for r in rows] == [("consistency: own input", 121), ("skill: analysed day", 9)]
    assert rows[0]["max_difference"] < 1e-3 < rows[1]["max_difference"]
    assert list(forecasts.forecast_cells([path], [own], {"2023-08-13": analysed("2023-08-13")})) == ["own input"]
    assert forecasts.analysed_days(tmp_path) == {} and "no evaluation list" in capsys.readouterr().out


def test_an_analysed_day_that_is_twice_there_or_shares_no_whole_cell_is_not_compared(tmp_path, capsys):
    path, own = tmp_path / "00_pre_sr.nc", analysed()
    sr, lr = forecast(side=80, latn=27.8, lonw=107.6)  # smaller than a degree, twice two cells of the forecast
    utils.write_field(path, sr.astype(np.float32))
    assert "analysed day" not in forecasts.forecast_cells([path], [lr], {"2023-08-12": own})
    assert "no analysed day has the date of a forecast and a whole cell" in capsys.readouterr().out
    for k in (1, 2):
        own.drop_vars("time").to_dataset(name="tp").to_netcdf(tmp_path / f"2023_08_12_{k}.nc")
    utils.write_json(tmp_path / "PreEval.json", [f"{tmp_path}/2023_08_12_{k}.nc" for k in (1, 2)])
    info = {"files": {"eval": [{"path": f"{tmp_path}/2023_08_12_{k}.nc", "units": "mm"} for k in (1, 2)]}}
    utils.write_json(tmp_path / "PreInfo.json", info)
    assert forecasts.analysed_days(tmp_path) == {}
    assert "several analysed days of 2023-08-12" in capsys.readouterr().out


# ---------------------------------------------------------------- ensembles of forecasts


def ensemble(folder, name="2023_08_10_18_08_11_x.nc", labels=(2, 5, 7), dim="number", at="members"):
    """A forecast of several members in metres, each a field of its own, at 0.4 degree."""
    lat, lon = nodes(24, 32, 0.4)[::-1], nodes(104, 112, 0.4)
    fields = np.stack([rain((21, 21), 300 + label) / 1000 for label in labels])  # (member, lat, lon)
    coords = {dim: list(labels), "lat": lat, "lon": lon}
    field = xr.DataArray(fields, coords, (dim, "lat", "lon"), "tp", {"units": "m"}).transpose("lat", dim, "lon")
    (folder / at).mkdir(parents=True, exist_ok=True)
    field.to_netcdf(folder / at / name)
    return fields * 1000


def downscaled(tmp_path, home, *options, at="members", number=4):
    """Outputs of stage 4 (or 5) of the files in a folder."""
    run(1, "--obj-folders", tmp_path / at, "--output-folder", tmp_path / f"{at}_lists")
    out = ["--data-folder", tmp_path / f"{at}_lists", "--out", tmp_path / f"{at}_{number}"]
    run(number, *out, *(["--checkpoint", home.x4] if number == 4 else ["--split", "obj"]), *options)
    return sorted((tmp_path / f"{at}_{number}").glob("*.nc"))


def test_an_ensemble_is_downscaled_member_by_member(home, tmp_path, capsys):
    """M x N members, named by both, each with the amounts of its own input member."""
    values = ensemble(tmp_path)
    (path,) = downscaled(tmp_path, home, "--members", 2, "--plots")
    assert "0.4 degree (21 x 21, 3 members)" in capsys.readouterr().out
    sr = utils.read_output(path)
    assert sr.dims == ("member", "lat", "lon") and sr.shape == (6, 44, 44)
    assert sr.input_member.values.tolist() == [2, 2, 5, 5, 7, 7] and sr.noise_member.values.tolist() == [0, 1] * 3
    assert sr.member.attrs["standard_name"] == "realization"
    lr = values[:, 5:16, 5:16]  # 106 to 110 E, 26 to 30 N: nodes of the file from the sixth on
    np.testing.assert_allclose(block_means(sr, 4), lr.repeat(2, 0), atol=1e-3)
    rows = list(csv.DictReader((path.parent / "scores.csv").open()))
    assert rows[0]["name"] == "consistency: own input" and rows[0]["cells"] == str(3 * 121)
    assert float(rows[0]["max_difference"]) < 1e-3
    assert sorted(p.name for p in (path.parent / "plots").iterdir()) == [
        "00_maps.png",
        "members.png",
        "qq_own_input.png",
    ]
    pair = downscaled(tmp_path, home, "--hr-step", 0.1, number=5)
    hr, low = (utils.read_output(path) for path in pair)
    assert hr.input_member.values.tolist() == low.input_member.values.tolist() == [2, 5, 7]
    np.testing.assert_allclose(low, lr, atol=1e-4)
    cells = forecasts.forecast_cells([path], [low], {})
    made, known = cells["own input"][0]
    np.testing.assert_allclose(made, [known, known], atol=1e-3)


def test_noise_belongs_to_the_name_of_a_member_not_to_its_place(home, tmp_path):
    ensemble(tmp_path)
    ensemble(tmp_path, labels=(7, 5), at="two", dim="realization")
    (three,), (two,) = downscaled(tmp_path, home), downscaled(tmp_path, home, at="two")
    three, two = utils.read_output(three), utils.read_output(two)
    assert two.input_member.values.tolist() == [7, 5] and two.noise_member.values.tolist() == [0, 0]
    np.testing.assert_array_equal(two[::-1], three[1:])


def test_ensembles_of_other_sizes_are_compared_with_as_many_members_as_all_have(tmp_path, capsys):
    paths, inputs = [tmp_path / f"{k}.nc" for k in (0, 1)], []
    for path, members in zip(paths, (2, 3), strict=True):
        sr, own = forecast(members=members)
        utils.write_field(path, sr.astype(np.float32))
        inputs.append(own)
    cells = forecasts.forecast_cells(paths[:1], inputs[:1], {"2023-08-12": analysed()})["analysed day"]
    both = forecasts.forecast_cells(paths, inputs, {"2023-08-12": analysed()})["analysed day"]
    assert [len(members) for members, _ in both] == [2, 2] and "the first 2 of each" in capsys.readouterr().out
    np.testing.assert_array_equal(both[0][0], cells[0][0])


def test_an_ensemble_is_read_in_any_layout_and_refused_where_one_field_is_expected(tmp_path, monkeypatch):
    values = ensemble(tmp_path)
    path = tmp_path / "members/2023_08_10_18_08_11_x.nc"
    tp = read_field(path, members=True)
    assert tp.dims == ("member", "lat", "lon") and tp.input_member.values.tolist() == [2, 5, 7]
    np.testing.assert_allclose(tp, values, rtol=1e-6)
    with pytest.raises(DataError, match="3 fields along number"):
        read_field(path)
    words = said(1, ["--eval-folders", tmp_path / "members", "--output-folder", tmp_path / "lists"], monkeypatch)
    assert "3 fields along number" in words and "--member NUMBER" in words
    ensemble(tmp_path, labels=(1, 1), at="twice")
    with pytest.raises(DataError, match="number names a member twice"):
        read_field(tmp_path / "twice/2023_08_10_18_08_11_x.nc", members=True)
    with xr.open_dataset(path) as file:
        tp = file.tp.isel(number=[0, 0]).assign_coords(number=["control", "perturbed"])
        tp.to_netcdf(tmp_path / "2023_08_11.nc")
        xr.concat([tp, tp], "level").to_netcdf(tmp_path / "2023_08_12.nc")
    assert read_field(tmp_path / "2023_08_11.nc", members=True).input_member.values.tolist() == ["control", "perturbed"]
    with pytest.raises(DataError, match="2 fields along level"):
        read_field(tmp_path / "2023_08_12.nc", members=True)


def test_members_called_by_texts_stand_in_the_output(tmp_path):
    sr, _ = forecast(members=2)
    sr = sr.assign_coords(input_member=("member", ["control", "perturbed"])).astype(np.float32)
    utils.write_field(tmp_path / "x.nc", sr)
    assert utils.read_output(tmp_path / "x.nc").input_member.values.tolist() == ["control", "perturbed"]
