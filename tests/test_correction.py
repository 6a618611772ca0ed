"""Bias correction: laws of the quantile mapping, days that are left out, few forecasts, stage 4."""

import csv

import numpy as np
import pytest
import xarray as xr
from conftest import needs_data, nodes, outputs, read_out, run, said, write_nc

from correction import Correction, quantile_map, shrinkage
from utils import DataError

LEVELS = np.linspace(0, 0.99, 34)
LAT, LON = nodes(20, 36, 1)[::-1], nodes(100, 116, 1)  # of the analysed days
FINE_LAT, FINE_LON = nodes(24, 32, 0.4)[::-1], nodes(104, 112, 0.4)  # of the forecasts


def days_of(rng, count, shape=(17, 17), dry=0.4):
    """Rain of independent days and cells, mm, `dry` of them without."""
    return rng.gamma(0.6, 8, (count, *shape)) * (rng.random((count, *shape)) > dry)


def archive(folder, forecasts=4, days=120, factor=1.0, first="2023-08-12", past=False, dry=0.4):
    """Lists of analysed days at 1 degree (Augusts from 1990 on) and forecasts, `factor` times as wet, at 0.4 degree (of
    the same texture: each cell is the nearest of 1 degree).

    past: the forecasts are of dates that have analysed days.
    """
    rng = np.random.default_rng(0)
    near = [np.abs(ours[:, None] - theirs).argmin(1) for ours, theirs in ((FINE_LAT, LAT), (FINE_LON, LON))]
    dates = [np.datetime64(f"{1990 + k // 30}-08-01") + k % 30 for k in range(days)]
    for date, values in zip(dates, days_of(rng, days), strict=True):
        write_nc(folder / f"days/{date}.nc".replace("-", "_"), values, LAT, LON, attrs={"units": "mm"})
    for k in range(forecasts):
        date = dates[k] if past else np.datetime64(first) + k
        values = factor * days_of(rng, 1, dry=dry)[0][np.ix_(*near)]
        write_nc(folder / f"fc/{date}.nc".replace("-", "_"), values, FINE_LAT, FINE_LON, attrs={"units": "mm"})
    run(1, "--train-folders", folder / "days", "--obj-folders", folder / "fc", "--output-folder", folder / "lists")
    return folder / "lists"


# ---------------------------------------------------------------- the mapping


def test_the_mapping_gives_the_wanted_amounts_and_wet_days():
    rng = np.random.default_rng(1)
    made, wanted = days_of(rng, 400, (20,), dry=0.2), 0.5 * days_of(rng, 400, (20,), dry=0.5)
    mapped = quantile_map(made, *(np.quantile(values, LEVELS) for values in (made, wanted)))
    assert abs((mapped >= 0.1).mean() - (wanted >= 0.1).mean()) < 0.03 < (made >= 0.1).mean() - (wanted >= 0.1).mean()
    assert abs(mapped.mean() / wanted.mean() - 1) < 0.05
    for level in (0.6, 0.9, 0.98):
        assert abs(np.quantile(mapped, level) / np.quantile(wanted, level) - 1) < 0.05
    order = np.argsort(made.ravel())
    assert (np.diff(mapped.ravel()[order]) >= 0).all()  # more stays more


def test_dry_missing_and_extreme_cells_of_the_mapping():
    known, wanted = np.array([0.0, 1.0, 10.0]), np.array([0.0, 2.0, 15.0])
    values = np.array([0.0, 0.5, 1.0, 10.0, 20.0, np.nan])
    np.testing.assert_allclose(quantile_map(values, known, wanted), [0, 1, 2, 15, 30, np.nan])
    np.testing.assert_allclose(quantile_map(values, known, wanted, 0.5), [0, 0.75, 1.5, 12.5, 25, np.nan])
    np.testing.assert_array_equal(quantile_map(values, known, wanted, 0), values)
    assert quantile_map(np.zeros(3), known, known + 1).max() == 0  # no rain where the forecast has none
    assert np.isfinite(quantile_map(values[:5], np.zeros(3), wanted)).all()


def test_what_the_weather_of_few_days_explains_is_not_corrected():
    """A difference as large as days differ among themselves is left alone, a large one is corrected, also of few."""
    rng = np.random.default_rng(2)
    analysed = rng.gamma(9, 0.5, 600)  # daily means, a third of spread
    same = [shrinkage(rng.gamma(9, 0.5, 4), analysed, 4, False) for _ in range(200)]
    wetter = [shrinkage(3 * rng.gamma(9, 0.5, 4), analysed, 4, False) for _ in range(200)]
    assert np.median(same) == 0 and np.mean(same) < 0.2 and min(wetter) > 0.6
    assert shrinkage(1.3 * rng.gamma(9, 0.5, 2000), analysed, 2000, False) > 0.95
    days = rng.gamma(9, 0.5, 30)
    assert shrinkage(1.1 * days, days, 30, True) > 0.99  # of the same dates nothing is left to the weather
    assert shrinkage(np.zeros(3), analysed, 3, False) == 0


# ---------------------------------------------------------------- what it is fitted on


def test_a_biased_product_is_corrected_and_says_what_it_was_fitted_on(workdir, capsys):
    lists = archive(workdir, forecasts=12, factor=2.0)
    correction = Correction(lists, lists)
    capsys.readouterr()
    raw = correction.forecasts.field(0)
    made = correction(raw)
    words = made.attrs["correction"]
    assert words.startswith("quantile mapping of 12 forecast(s) of 12 date(s), 2023-08-12 to 2023-08-23, to 120 analys")
    assert f"1990-08-01 to 1993-08-30 of {lists}" in words and "of 1 degree" in words and "% of the difference" in words
    out = capsys.readouterr().out
    assert f"--correct: {words}" in out and "12 forecast day(s) are few (below 60)" in out
    assert abs(float(made.mean() / raw.mean()) - 0.5) < 0.1
    assert made.sizes == raw.sizes and made.dtype == np.float32 and float(made.min()) >= 0


def test_an_ensemble_is_corrected_with_one_mapping(workdir):
    lists = archive(workdir, factor=2.0)
    correction = Correction(lists, lists)
    raw = correction.forecasts.field(0)
    two = xr.concat([raw, raw.assign_coords(time=raw.time)], "member")
    np.testing.assert_array_equal(correction(two)[1], correction(raw))


def test_days_of_the_forecasts_never_enter_the_fit(workdir, capsys):
    """The analyses of the forecasts' own dates may be anything: nothing changes, and it is said."""
    lists, found = archive(workdir, first="1990-08-03", factor=2.0), []
    for factor in (1, 9):
        for k in range(4):
            path = workdir / f"days/1990_08_0{3 + k}.nc"
            write_nc(path, factor * days_of(np.random.default_rng(k), 1)[0], LAT, LON, attrs={"units": "mm"})
        run(1, "--train-folders", "days", "--obj-folders", "fc", "--output-folder", lists)
        capsys.readouterr()
        correction = Correction(lists, lists)
        assert "4 analysed day(s) of the dates of the forecasts are left out" in capsys.readouterr().out
        found.append(correction(correction.forecasts.field(0)))
        assert "to 116 analysed days" in found[-1].attrs["correction"]
    np.testing.assert_array_equal(*found)
    run(1, "--train-folders", "fc", "--obj-folders", "fc", "--output-folder", workdir / "same")
    with pytest.raises(DataError, match="every analysed day has the date of a forecast"):
        Correction(workdir / "same", workdir / "same")


def test_past_forecasts_are_compared_with_the_analyses_of_their_own_days(workdir):
    lists = archive(workdir, forecasts=15, factor=2.0, past=True)
    write_nc(workdir / "now/2023_08_12.nc", np.full((21, 21), 8.0), FINE_LAT, FINE_LON, attrs={"units": "mm"})
    run(1, "--obj-folders", "now", "--output-folder", "now_lists", "--period", "24h")
    correction = Correction(lists, "now_lists")
    field = Correction(lists, "now_lists").forecasts.field(0).assign_coords(time=np.datetime64("2023-08-12"))
    assert (
        "15 forecast(s) of 15 date(s), 1990-08-01 to 1990-08-15, to the analysed days of the same dates"
        in (correction(field).attrs["correction"])
    )


def test_other_seasons_are_left_out_where_days_suffice(workdir):
    lists = archive(workdir)
    for k in range(40):
        date = str(np.datetime64("1990-01-10") + k).replace("-", "_")
        write_nc(workdir / f"days/{date}.nc", np.full((17, 17), 300.0), LAT, LON, attrs={"units": "mm"})
    run(1, "--train-folders", "days", "--obj-folders", "fc", "--output-folder", lists, "--valid-max", 400)
    correction = Correction(lists, lists)
    field = correction.forecasts.field(0)
    assert "to 120 analysed days" in correction(field).attrs["correction"]
    assert (
        "to 40 analysed days" in correction(field.assign_coords(time=np.datetime64("2023-01-20"))).attrs["correction"]
    )


def test_another_period_is_refused(workdir):
    lists = archive(workdir)
    run(1, "--obj-folders", "fc", "--output-folder", "hours", "--period", "1h")
    with pytest.raises(DataError, match="the analysed days hold rain of 24 h"):
        Correction(lists, "hours")


# ---------------------------------------------------------------- stage 4


def test_stage_4_corrects_before_it_downscales(home, tmp_path, monkeypatch, capsys):
    """Amounts are the corrected ones; attribute, table and request say so; without --correct all is made anew."""
    argv = ["--checkpoint", home.x4, "--out", tmp_path / "out"]
    run(4, *argv)
    plain = outputs(tmp_path / "out")
    capsys.readouterr()
    run(4, *argv, "--correct", home.lists)
    words = capsys.readouterr().out
    assert "--correct: quantile mapping of 3 forecast(s)" in words and "moved" in words
    path = sorted((tmp_path / "out").glob("*.nc"))[0]
    with xr.open_dataset(path) as file:
        assert file.attrs["correction"].startswith("quantile mapping of 3 forecast(s)")
    rows = list(csv.DictReader((tmp_path / "out/scores.csv").open()))
    assert float(rows[0]["max_difference"]) < 1e-3  # the corrected input comes out
    assert read_out(path).shape == plain[0].shape
    words = said(4, [*argv, "--correct", tmp_path / "nowhere"], monkeypatch)
    assert words.startswith("error: ") and "nowhere/PreTrain.json: no such list" in words


@needs_data
def test_four_forecasts_of_the_user_are_corrected_no_further_than_their_days_allow(tmp_path, capsys):
    """Analysed days of one year stand for all (a test must be quick): the difference is one of weather, and stays."""
    from conftest import DATA

    (tmp_path / "days").mkdir()
    for path in sorted((DATA / "china/DataTrain").glob("20[01]?_08_*.nc"))[::12]:
        (tmp_path / "days" / path.name).symlink_to(path)
    run(1, "--train-folders", tmp_path / "days", "--obj-folders", DATA / "china/DataObj", "--output-folder", tmp_path)
    correction = Correction(tmp_path, tmp_path)
    raw = [correction.forecasts.field(k) for k in range(4)]
    made = [correction(field) for field in raw]
    assert "4 forecast day(s) are few" in capsys.readouterr().out
    change = np.mean([float(field.mean()) for field in made]) / np.mean([float(field.mean()) for field in raw])
    assert 0.8 < change < 1.25
