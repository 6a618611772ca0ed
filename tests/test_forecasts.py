"""Forecasts at cells: consistency with their input, skill against analysed days."""

import numpy as np
import pytest
from test_verification import analysed, forecast

import forecasts
import utils
from forecasts import compare_cells, pair_cells


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
