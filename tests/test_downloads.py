"""Laws of downloads.py and of files as data centres write them: values against numbers computed with numpy alone."""

import json
import re
from pathlib import Path

import netCDF4
import numpy as np
import pytest
import xarray as xr
from conftest import nodes, rain, run, write_nc, write_plain

from reader import inspect_files, read_field
from utils import DataError

LAT, LON = nodes(26, 30, 0.25)[::-1], nodes(106, 110, 0.25)  # 17 x 17
ERA5 = {  # attributes of tp as the Climate Data Store writes them today
    "GRIB_paramId": 228,
    "GRIB_dataType": "fc",
    "GRIB_numberOfPoints": 289,
    "GRIB_typeOfLevel": "surface",
    "GRIB_stepUnits": 1,
    "GRIB_stepType": "accum",
    "GRIB_gridType": "regular_ll",
    "GRIB_uvRelativeToGrid": 0,
    "GRIB_NV": 0,
    "GRIB_Nx": 17,
    "GRIB_Ny": 17,
    "GRIB_cfName": "unknown",
    "GRIB_cfVarName": "tp",
    "GRIB_gridDefinitionDescription": "Latitude/Longitude Grid",
    "GRIB_iDirectionIncrementInDegrees": 0.25,
    "GRIB_iScansNegatively": 0,
    "GRIB_jDirectionIncrementInDegrees": 0.25,
    "GRIB_jPointsAreConsecutive": 0,
    "GRIB_jScansPositively": 0,
    "GRIB_latitudeOfFirstGridPointInDegrees": 30.0,
    "GRIB_missingValue": 3.40282346638529e38,
    "GRIB_name": "Total precipitation",
    "GRIB_shortName": "tp",
    "GRIB_totalNumber": 0,
    "GRIB_units": "m",
    "long_name": "Total precipitation",
    "units": "m",
    "standard_name": "unknown",
    "GRIB_surface": 0.0,
}


def cds(path, values, times, **attrs):
    """A NetCDF file as the Climate Data Store makes it: tp(valid_time, latitude, longitude) of values in m.

    Args: times: datetime64, (N,), or one without a dimension. attrs: of tp, changed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    values, times = np.asarray(values), np.asarray(times, "M8[s]")
    dims = ("valid_time",) * times.ndim + ("latitude", "longitude")
    with netCDF4.Dataset(path, "w") as file:
        file.setncatts({"GRIB_centre": "ecmf", "GRIB_subCentre": 0, "Conventions": "CF-1.7"})
        file.setncatts(
            {"institution": "European Centre for Medium-Range Weather Forecasts", "history": "cfgrib-0.9.15"}
        )
        for name, size in zip(dims, (*times.shape, *values.shape[-2:]), strict=True):
            file.createDimension(name, size)
        number = file.createVariable("number", "i8", ())
        number[...] = 0
        number.setncatts({"long_name": "ensemble member numerical id", "units": "1", "standard_name": "realization"})
        clock = file.createVariable("valid_time", "i8", dims[:-2])
        clock[...] = times.astype("int64")
        words = {"long_name": "time", "standard_name": "time", "calendar": "proleptic_gregorian"}
        clock.setncatts({**words, "units": "seconds since 1970-01-01"})
        for name, axis, unit in (("latitude", LAT, "degrees_north"), ("longitude", LON, "degrees_east")):
            variable = file.createVariable(name, "f8", (name,), fill_value=np.nan)
            variable[...] = axis
            variable.setncatts({"units": unit, "standard_name": name, "long_name": name})
        file["latitude"].stored_direction = "decreasing"
        versions = file.createVariable("expver", str, dims[:-2])
        versions[...] = np.full(times.shape, "0001", object) if times.ndim else "0001"
        tp = file.createVariable("tp", "f4", dims, fill_value=np.nan, zlib=True, shuffle=True)
        tp.setncatts({**ERA5, "coordinates": "number valid_time latitude longitude expver", **attrs})
        tp[...] = values
    return path


# ---------------------------------------------------------------- one day, as it comes


@pytest.mark.parametrize("dimension", [False, True])
def test_a_day_of_the_climate_data_store_is_read(tmp_path, dimension):
    values = rain((17, 17), 1)
    times, stored = (["2023-08-01"], values[None]) if dimension else ("2023-08-01", values)
    path = cds(tmp_path / "2023_08_01.nc", stored / 1000, times)
    tp = read_field(path)
    np.testing.assert_allclose(tp, values, rtol=1e-6)
    np.testing.assert_array_equal(tp.lat, LAT)
    assert tp.time.values == np.datetime64("2023-08-01") and "forecast_reference_time" not in tp.coords
    (record,), faults = inspect_files([str(path)])
    assert not faults and record["variable"] == "tp" and record["long_name"] == "Total precipitation"
    assert (record["units"], record["units_from"], record["period"]) == ("m", "attribute", 24)
    np.testing.assert_allclose([record["mean"], record["maximum"]], [values.mean(), values.max()], rtol=1e-4)
    assert record["missing"] == 0 and record["edges"] == [105.875, 110.125, 25.875, 30.125]


# ---------------------------------------------------------------- from a download to days

HOUR = np.timedelta64(1, "h")


def hourly(count, start="2023-08-01T00", step=HOUR):
    """(amounts in mm (count, 17, 17), times) of consecutive periods, rain moving about and pausing."""
    amounts = np.stack([rain((17, 17), k, 8.0) for k in range(count)])
    return amounts, np.datetime64(start, "s") + np.arange(count) * step


def days_of(folder, *argv, out="Data/DataTrain"):
    """Make days by the command and read them: {date: values in mm}."""
    run(1, "--make-days", folder, *argv)
    return {str(read_field(path).time.values)[:10]: read_field(path).values for path in sorted(Path(out).glob("*.nc"))}


def expect(found, wanted):
    """Days with these dates and values, to float32 rounding of the sums."""
    assert sorted(found) == sorted(wanted)
    for day, values in wanted.items():
        np.testing.assert_allclose(found[day], values, rtol=2e-6, atol=2e-5, err_msg=day)


def grid_file(path, values, times, name="tp", dims=("time", "lat", "lon"), since="hours since 2023-08-01", **more):
    """tp(dims) of values, times as numbers; more: bounds (N, 2) in the unit of time, attributes of tp."""
    bounds, calendar = more.pop("bounds", None), more.pop("calendar", "standard")
    sizes = dict(zip(dims, np.shape(values), strict=True))
    clock = {"units": since, "calendar": calendar, "standard_name": "time"}
    clock |= {"bounds": "time_bnds"} if bounds is not None else {}
    variables = {
        "lat": ("f8", ("lat",), LAT, {"units": "degrees_north"}),
        "lon": ("f8", ("lon",), LON, {"units": "degrees_east"}),
        "time": ("f8", ("time",), times, clock),
        name: (more.pop("kind", "f4"), dims, values, more),
    }
    if bounds is not None:
        variables["time_bnds"] = ("f8", ("time", "two"), bounds, {})
    return write_plain(path, {**sizes, "two": 2}, variables)


def test_hours_of_era5_become_days_by_one_command(workdir, capsys):
    amounts, times = hourly(24 * 3 + 1)  # 00 UTC of 1 August to 00 UTC of 4 August, each the hour before
    cds(workdir / "raw/era5.nc", amounts / 1000, times)
    found = days_of("raw", "--days-folder", "Data/DataEval", out="Data/DataEval")
    expect(found, {f"2023-08-0{d}": amounts[24 * d - 23 : 24 * d + 1].sum(0) for d in (1, 2, 3)})
    assert json.loads(Path("Data/JsonPath/PreEval.json").read_text()) == [
        f"Data/DataEval/2023_08_0{d}.nc" for d in (1, 2, 3)
    ]
    told = capsys.readouterr().out
    assert "tp (Total precipitation) in m, 73 times from 2023-07-31T23:00 to 2023-08-04" in told
    assert "each 1 h at the end of its period (GRIB_stepType accum)" in told
    assert "left out: 1 incomplete days: 2023-07-31 (1 of 24 h)" in told
    assert "eval: 3 files, 2023-08-01 to 2023-08-03; 0.25 degree (17 x 17)" in told and "24 h (time_bnds)" in told
    record = json.loads(Path("Data/JsonPath/PreInfo.json").read_text())["files"]["eval"][0]
    assert record["period"] == 24 and record["time"] == "2023-08-01T00:00"
    with netCDF4.Dataset("Data/DataEval/2023_08_01.nc") as file:
        assert file["time_bnds"][0].tolist() == [
            (np.datetime64(d, "s") - np.datetime64("1900-01-01", "s")).astype(int) for d in ("2023-08-01", "2023-08-02")
        ]
        assert file.source == "era5.nc" and "GRIB_stepType accum" in file.day_rule and file["tp"].units == "mm"


def test_months_in_files_of_their_own_are_joined_and_overlaps_count_once(workdir):
    amounts, times = hourly(24 * 3 + 1)
    cds(workdir / "raw/b.nc", amounts[40:] / 1000, times[40:])
    cds(workdir / "raw/a.nc", amounts[:49] / 1000, times[:49])  # nine times are in both
    expect(days_of("raw"), {f"2023-08-0{d}": amounts[24 * d - 23 : 24 * d + 1].sum(0) for d in (1, 2, 3)})
    cds(workdir / "raw/b.nc", 2 * amounts[40:] / 1000, times[40:])
    with pytest.raises(DataError, match="other amounts for 2023-08-02T16:00; expected each time once"):
        days_of("raw")


@pytest.mark.parametrize("how", ["files", "dimension"])
def test_final_and_preliminary_era5_are_joined(workdir, how):
    amounts, times = hourly(49)
    if how == "files":
        cds(workdir / "raw/a.nc", amounts[:31] / 1000, times[:31])
        late = cds(workdir / "raw/b.nc", amounts[20:] / 999, times[20:])  # preliminary amounts differ
        with netCDF4.Dataset(late, "a") as file:
            file["expver"][:] = np.full(29, "0005", object)
    else:
        both = np.full((49, 2, 17, 17), np.nan)
        both[:31, 0], both[31:, 1] = amounts[:31], amounts[31:]
        stamps = (times - np.datetime64("2023-08-01", "s")) / HOUR
        path = grid_file(workdir / "raw/a.nc", both / 1000, stamps, dims=("time", "expver", "lat", "lon"), **ERA5)
        with netCDF4.Dataset(path, "a") as file:
            file.createVariable("expver", "i4", ("expver",))[:] = [1, 5]
    expected = amounts.copy()
    if how == "files":
        expected[31:] *= 1000 / 999
    expect(days_of("raw"), {f"2023-08-0{d}": expected[24 * d - 23 : 24 * d + 1].sum(0) for d in (1, 2)})


def test_amounts_of_era5_land_since_00_utc_are_taken_apart(workdir, capsys):
    amounts, times = hourly(24 * 3, "2023-08-01T01")
    since = amounts.reshape(3, 24, 17, 17).cumsum(1).reshape(-1, 17, 17)
    cds(workdir / "raw/land.nc", since / 1000, times)
    expect(days_of("raw"), {f"2023-08-0{d + 1}": amounts[24 * d : 24 * d + 24].sum(0) for d in range(3)})
    assert "amounts since the start of each 24 hours, 00 UTC on: differences are taken" in capsys.readouterr().out
    days = days_of("raw", "--utc-offset", 8, "--days-folder", "local", out="local")  # 16 UTC to 16 UTC
    expect(days, {"2023-08-02": amounts[16:40].sum(0), "2023-08-03": amounts[40:64].sum(0)})


def test_amounts_of_a_forecast_that_never_begin_anew_are_taken_apart(workdir, capsys):
    """As cdo makes them of GRIB: valid times alone, amounts since 18 UTC of the day before, three days long."""
    amounts, times = hourly(72, "2023-07-31T19")
    grid_file(
        workdir / "raw/a.nc", amounts.cumsum(0), (times - np.datetime64("2023-08-01", "s")) / HOUR, units="kg m-2"
    )
    wanted = {f"2023-08-0{d}": amounts[24 * d - 18 : 24 * d + 6].sum(0) for d in (1, 2)}
    found = days_of("raw", "--stamps", "end")
    assert sorted(found) == sorted(wanted)
    for day in wanted:
        np.testing.assert_allclose(found[day], wanted[day], rtol=1e-5, atol=2e-4)
    assert "amounts since the start of 2023-07-31T18:00: differences are taken" in capsys.readouterr().out


def test_half_hours_of_imerg_have_their_date(workdir):
    """They call seconds since an epoch of UTC julian: taken at its word each day would be 13 days late."""
    amounts, _ = hourly(48)
    for i in range(48):
        start = np.datetime64("2023-08-01", "s").astype(int) + 1800 * i
        about = {"since": "seconds since 1970-01-01 00:00:00 UTC", "calendar": "julian", "units": "mm/hr"}
        path = workdir / f"raw/3B-HHR.MS.MRG.3IMERG.20230801-S{i:04d}.V07B.nc4"
        values = 2 * amounts[i].T[None]
        grid_file(
            path, values, [start], "precipitation", ("time", "lon", "lat"), bounds=[[start, start + 1800]], **about
        )
    expect(days_of("raw"), {"2023-08-01": amounts.sum(0)})


def test_daily_amounts_at_00_utc_are_not_guessed_at(workdir):
    amounts, times = hourly(4, "2023-08-01", 24 * HOUR)
    cds(workdir / "raw/days.nc", amounts / 1000, times)
    with pytest.raises(DataError, match=r"ERA5-Land are those of the day before \(--stamps end\)"):
        days_of("raw")
    before = {f"2023-{d}": amounts[k] for k, d in enumerate(("07-31", "08-01", "08-02", "08-03"))}
    expect(days_of("raw", "--stamps", "end", "--days-folder", "land", out="land"), before)
    own = {f"2023-08-0{k + 1}": amounts[k] for k in range(4)}
    expect(days_of("raw", "--stamps", "start", "--days-folder", "statistics", out="statistics"), own)


@pytest.mark.parametrize(
    ("argv", "day", "first"),
    [
        (["--day-start", 12], "2023-08-01", 12),
        (["--day-start", -12], "2023-08-02", 12),
        (["--utc-offset", 8], "2023-08-02", 16),
        (["--utc-offset", -5], "2023-08-01", 5),
        (["--day-start", -4], "2023-08-02", 20),
    ],
)
def test_days_begin_where_they_are_told_to(workdir, argv, day, first):
    amounts, times = hourly(50, "2023-08-01T01")
    cds(workdir / "raw/era5.nc", amounts / 1000, times)
    found = days_of("raw", *argv)
    np.testing.assert_allclose(found[day], amounts[first : first + 24].sum(0), rtol=2e-6, atol=2e-5)
    with netCDF4.Dataset(f"Data/DataTrain/{day.replace('-', '_')}.nc") as file:
        begin = np.datetime64("1900-01-01", "s") + int(file["time_bnds"][0, 0]) * np.timedelta64(1, "s")
        assert begin == np.datetime64("2023-08-01", "s") + first * HOUR


@pytest.mark.parametrize("stamps", ["end", "start", "middle"])
@pytest.mark.parametrize("units", ["mm", "mm/3h", "mm h-1", "kg m-2 s-1"])
def test_three_hours_without_bounds_need_the_stamps(workdir, stamps, units):
    amounts, _ = hourly(17, step=3 * HOUR)
    hours = np.arange(17) * 3 + {"end": 3, "start": 0, "middle": 1.5}[stamps]
    factor = {"mm": 1, "mm/3h": 1, "mm h-1": 3, "kg m-2 s-1": 10800}[units]
    grid_file(workdir / "raw/a.nc", amounts / factor, hours, units=units, long_name="rain")
    wanted = {"2023-08-01": amounts[:8].sum(0), "2023-08-02": amounts[8:16].sum(0)}
    if stamps != "middle":  # half past is no start and no end
        with pytest.raises(DataError, match="--stamps end or --stamps start"):
            days_of("raw")
    expect(days_of("raw", *([] if stamps == "middle" else ["--stamps", stamps])), wanted)


@pytest.mark.parametrize("units", ["mm", "kg m-2 s-1"])
@pytest.mark.parametrize("hours", [1, 3, 6, 24])
def test_bounds_say_from_when_to_when(workdir, units, hours):
    count = 48 // hours
    amounts, _ = hourly(count)
    edges = np.arange(count + 1) * hours
    bounds = np.stack([edges[:-1], edges[1:]], 1)
    factor = 1 if units == "mm" else hours * 3600
    grid_file(workdir / "raw/a.nc", amounts / factor, edges[1:], bounds=bounds, units=units, name="pr")
    half = count // 2
    expect(days_of("raw"), {"2023-08-01": amounts[:half].sum(0), "2023-08-02": amounts[half:].sum(0)})


def forecast(path, amounts, issues, leads, **attrs):
    """As cfgrib writes it: tp(time, step, latitude, longitude), time the issue, valid_time of two dimensions."""
    issues = np.asarray(issues, "M8[s]")
    seconds = issues.astype("int64")
    variables = {
        "latitude": ("f8", ("latitude",), LAT, {"units": "degrees_north", "standard_name": "latitude"}),
        "longitude": ("f8", ("longitude",), LON, {"units": "degrees_east", "standard_name": "longitude"}),
        "number": ("i8", (), 0, {"standard_name": "realization", "units": "1"}),
        "time": (
            "i8",
            ("time",),
            seconds,
            {"units": "seconds since 1970-01-01", "standard_name": "time"}
            | {"long_name": "initial time of forecast", "calendar": "proleptic_gregorian"},
        ),
        "step": ("f8", ("step",), leads, {"units": "hours", "standard_name": "forecast_period"}),
        "valid_time": (
            "i8",
            ("time", "step"),
            seconds[:, None] + np.multiply(leads, 3600).astype(int),
            {"units": "seconds since 1970-01-01", "standard_name": "time", "long_name": "time"},
        ),
        "tp": (
            "f4",
            ("time", "step", "latitude", "longitude"),
            amounts,
            {**ERA5, "coordinates": "number time step latitude longitude valid_time", **attrs},
        ),
    }
    sizes = {"time": len(issues), "step": len(leads), "latitude": 17, "longitude": 17}
    return write_plain(path, sizes, variables)


@pytest.mark.parametrize("since", [True, False])
def test_short_forecasts_that_follow_one_another_are_days(workdir, since):
    """ERA5-Land by cfgrib counts from 00 UTC on; ERA5's forecasts of 06 and 18 UTC give each hour."""
    amounts, _ = hourly(48, "2023-08-01T01")
    if since:
        values = amounts.reshape(2, 24, 17, 17).cumsum(1)
        forecast(workdir / "raw/land.nc", values / 1000, ["2023-08-01", "2023-08-02"], np.arange(1, 25))
        wanted = {"2023-08-01": amounts[:24].sum(0), "2023-08-02": amounts[24:].sum(0)}
    else:
        issues = np.datetime64("2023-07-31T18", "s") + np.arange(4) * 12 * HOUR
        forecast(workdir / "raw/era5.nc", amounts.reshape(4, 12, 17, 17) / 1000, issues, np.arange(1, 13))
        wanted = {"2023-08-01": amounts[6:30].sum(0)}
    expect(days_of("raw"), wanted)


def test_forecasts_become_a_file_for_each_day_that_they_cover(workdir, capsys):
    leads = np.arange(6, 78, 6)  # issued at 18 UTC: whole days from 00 UTC on, 6 h later
    amounts = np.stack([[rain((17, 17), 20 * k + n, 8.0) for n in range(12)] for k in range(2)])
    issues = ["2023-08-10T18", "2023-08-11T18"]
    forecast(workdir / "raw/tp.nc", amounts.cumsum(1) / 1000, issues, leads)
    run(1, "--make-days", "raw", "--days-folder", "Data/DataObj")
    names = sorted(path.name for path in Path("Data/DataObj").iterdir())
    assert names == [f"2023_08_{i}_18_08_{i + k}.nc" for i in (10, 11) for k in (1, 2)]
    for k, issue in enumerate((10, 11)):
        for day in (1, 2):
            tp = read_field(f"Data/DataObj/2023_08_{issue}_18_08_{issue + day}.nc")
            np.testing.assert_allclose(tp, amounts[k, 4 * day - 3 : 4 * day + 1].sum(0), rtol=1e-5, atol=1e-4)
            assert str(tp.time.values)[:13] == f"2023-08-{issue + day}T00"
            assert str(tp.forecast_reference_time.values)[:13] == f"2023-08-{issue}T18"
    told = capsys.readouterr().out
    assert "2 forecasts of up to 72 h (6 h), amounts since the start of each forecast" in told
    assert "obj: 4 files" in told and "2023-08-10T18:00 for 2023-08-13 (18 of 24 h)" in told


@pytest.mark.parametrize("form", ["scalar issue", "two dimensions"])
def test_forecasts_in_other_forms(workdir, form):
    """As iris writes them (valid times, their lead, one issue), and as the CDS (dimensions of issue and lead)."""
    leads = np.arange(0, 54, 6)
    amounts = np.stack([np.zeros((17, 17)), *hourly(8)[0]])
    where = {"latitude": ("latitude", LAT, {"units": "degrees_north"})}
    where |= {"longitude": ("longitude", LON, {"units": "degrees_east"})}
    issue = {"units": "hours since 2023-08-10", "standard_name": "forecast_reference_time"}
    lead = {"units": "hours", "standard_name": "forecast_period"}
    if form == "scalar issue":
        dims = ("time",)
        where["time"] = ("time", 18.0 + leads, {"units": "hours since 2023-08-10", "standard_name": "time"})
        where |= {"forecast_period": ("time", leads, lead), "forecast_reference_time": ((), 18.0, issue)}
    else:
        dims = ("forecast_reference_time", "forecast_period")
        where |= {"forecast_period": ("forecast_period", leads, lead)}
        where |= {"forecast_reference_time": ("forecast_reference_time", [18.0], issue)}
        where["valid_time"] = (dims, 18.0 + leads[None], {"units": "hours since 2023-08-10", "standard_name": "time"})
    values = amounts.cumsum(0)[(None,) * (len(dims) - 1)]
    words = {"units": "kg m-2", "long_name": "total precipitation"}
    (workdir / "raw").mkdir()
    xr.Dataset({"tp": ((*dims, "latitude", "longitude"), values, words)}, where).to_netcdf("raw/a.nc")
    run(1, "--make-days", "raw", "--days-folder", "Data/DataObj")
    (path,) = Path("Data/DataObj").iterdir()
    assert path.name == "2023_08_10_18_08_11.nc"
    np.testing.assert_allclose(read_field(path), amounts[2:6].sum(0), rtol=1e-5, atol=1e-4)


def test_short_forecasts_that_overlap_stay_forecasts(workdir):
    amounts, _ = hourly(48)
    issues = np.datetime64("2023-08-01", "s") + np.arange(2) * 12 * HOUR
    forecast(workdir / "raw/a.nc", amounts.reshape(2, 24, 17, 17).cumsum(1) / 1000, issues, np.arange(1, 25))
    run(1, "--make-days", "raw", "--days-folder", "obj")
    assert [path.name for path in Path("obj").iterdir()] == ["2023_08_01_00_08_01.nc"]
    np.testing.assert_allclose(read_field("obj/2023_08_01_00_08_01.nc"), amounts[:24].sum(0), rtol=1e-5, atol=1e-4)


def test_a_time_is_known_by_its_unit_whatever_its_name(workdir):
    amounts, _ = hourly(24)
    path = workdir / "raw/a.nc"
    path.parent.mkdir()
    where = {"lat": LAT, "lon": LON, "t": ("t", np.arange(24) + 0.5, {"units": "hours since 2023-08-01"})}
    xr.Dataset({"tp": (("t", "lat", "lon"), amounts, {"units": "mm"})}, where).to_netcdf(path)
    with pytest.raises(DataError, match="24 times, from 2023-08-01T00:30 to 2023-08-01T23:30"):
        read_field(path)
    expect(days_of("raw"), {"2023-08-01": amounts.sum(0)})


def test_a_year_of_days_is_cut_as_it_is(workdir):
    amounts, _ = hourly(3)
    words = {"units": "mm/day", "standard_name": "convective precipitation rate", "time_step": "day"}
    words["long_name"] = "Climate Hazards group InfraRed Precipitation with Stations"
    path = workdir / "raw/chirps-v2.0.2023.days_p25.nc"
    grid_file(path, amounts, [15918, 15919, 15920], "precip", since="days since 1980-1-1 0:0:0", **words)
    expect(days_of("raw"), {f"2023-08-{d}": amounts[k] for k, d in enumerate(("01", "02", "03"))})


@pytest.mark.parametrize("dims", [("time", "lon", "lat"), ("lon", "lat", "time"), ("time", "number", "lat", "lon")])
def test_any_order_packing_and_members(workdir, dims):
    amounts, times = hourly(24)
    values = amounts.copy()
    values[5, 3, 4] = np.nan  # missing in one hour is missing in the day
    packed = np.where(np.isnan(values), -32768, np.round(values * 256)).astype("i2")
    if "number" in dims:
        packed = np.stack([packed * 0, packed], 1)
    packed = packed.transpose([{"time": 0, "lat": -2, "lon": -1, "number": 1}[d] for d in dims])
    about = {"kind": "i2", "scale_factor": 1 / 256, "_FillValue": np.int16(-32768), "units": "mm"}
    path = grid_file(workdir / "raw/a.nc", packed, np.arange(24), dims=dims, **about)
    argv = ["--stamps", "start"]
    if "number" in dims:
        with netCDF4.Dataset(path, "a") as file:
            file.createVariable("number", "i4", ("number",))[:] = [0, 7]
        with pytest.raises(DataError, match=r"2 fields along number \(0, 7\); expected one: choose it with --member"):
            days_of("raw", *argv)
        with pytest.raises(DataError, match="no such member along number"):
            days_of("raw", *argv, "--member", 3)
        argv += ["--member", 7]
    expect(days_of("raw", *argv), {"2023-08-01": values.sum(0)})


def test_incomplete_days_are_left_out_and_named(workdir, capsys):
    amounts, times = hourly(24 * 4, "2023-08-01T01")
    keep = np.r_[0:30, 31:96]
    cds(workdir / "raw/era5.nc", amounts[keep] / 1000, times[keep])
    expect(days_of("raw"), {f"2023-08-0{d}": amounts[24 * d - 24 : 24 * d].sum(0) for d in (1, 3, 4)})
    assert "left out: 1 incomplete days: 2023-08-02 (23 of 24 h)" in capsys.readouterr().out
    for path in Path("raw").iterdir():
        path.unlink()
    cds(workdir / "raw/era5.nc", amounts[:5] / 1000, times[:5])
    with pytest.raises(DataError, match="no whole day; found tp .* 5 times from 2023-08-01 to 2023-08-01T05:00"):
        days_of("raw")


def test_days_of_unchanged_files_are_kept(workdir, capsys):
    amounts, times = hourly(48, "2023-08-01T01")
    for k in (0, 1):
        cds(workdir / f"raw/{k}.nc", amounts[24 * k : 24 * k + 24] / 1000, times[24 * k : 24 * k + 24])
    days_of("raw")
    assert "made 2 days, kept 0" in capsys.readouterr().out
    first = Path("Data/DataTrain/2023_08_01.nc").stat().st_mtime_ns
    cds(workdir / "raw/1.nc", 2 * amounts[24:] / 1000, times[24:])
    expect(days_of("raw"), {"2023-08-01": amounts[:24].sum(0), "2023-08-02": 2 * amounts[24:].sum(0)})
    assert "made 1 days, kept 1" in capsys.readouterr().out
    assert Path("Data/DataTrain/2023_08_01.nc").stat().st_mtime_ns == first
    Path("Data/DataTrain/2023_08_02.nc").write_bytes(b"cut short")
    with pytest.raises(DataError, match="2023_08_02.nc: is there already and was not made by --make-days"):
        days_of("raw")


def test_what_is_no_download_is_refused_in_words(workdir):
    amounts, times = hourly(24, "2023-08-01T01")
    for folder, match, make in (
        ("t2m", "K.*not understood as rain", lambda p: cds(p, amounts, times, units="K")),
        ("bare", "no units attribute; say which with --units", lambda p: grid_file(p, amounts, range(24))),
        ("month", "days apart; expected days", lambda p: grid_file(p, amounts[:2], [0, 744], units="mm")),
        ("one", "holds one time and no bounds", lambda p: grid_file(p, amounts[:1], [0], units="mm")),
    ):
        make(workdir / folder / "a.nc")
        with pytest.raises(DataError, match=f"{folder}/a.nc.*{match}|{match}"):
            days_of(folder)
    with pytest.raises(DataError, match="holds the downloads; expected another folder"):
        days_of("bare", "--days-folder", "bare")
    cds(workdir / "two/a.nc", amounts / 1000, times)
    write_nc(workdir / "two/b.nc", amounts[0], LAT + 1, LON, attrs={"units": "mm"}, coords={"time": times[0]})
    with pytest.raises(DataError, match="another grid"):
        days_of("two")
    negative = amounts.copy()
    negative[3, 2, 2] = -500
    cds(workdir / "negative/a.nc", negative / 1000, times)
    with pytest.raises(DataError, match="a.nc: the day 2023-08-01: .*row 2 from the north, column 2 from the west"):
        days_of("negative")
    assert not list(workdir.glob("Data/DataTrain/*"))


@pytest.mark.parametrize("argv", [["--day-start", "nan"], ["--day-start", 24], ["--utc-offset", "x"]])
def test_hours_have_bounds(workdir, argv):
    with pytest.raises(SystemExit):
        run(1, "--make-days", "raw", *argv)


# ---------------------------------------------------------------- what stage 1 says


def type_advice(error):
    """Type the command with --make-days that an error shows."""
    words = re.search(r"--make-days [^;]*?(?= makes| writes|$)", str(error))[0].replace("NUMBER", "3").split()
    run(1, *words)


def test_a_file_of_many_times_is_told_the_command_that_works(workdir):
    amounts, times = hourly(73)
    cds(workdir / "Data/DataEval/august.nc", amounts / 1000, times)
    with pytest.raises(DataError, match="73 times, from 2023-08-01 to 2023-08-04; expected one field a file") as error:
        run(1)
    type_advice(error.value)
    assert len(json.loads(Path("Data/JsonPath/PreEval.json").read_text())) == 3
    tp = read_field("Data/DataEval_days/2023_08_02.nc")
    np.testing.assert_allclose(tp, amounts[25:49].sum(0), rtol=2e-6, atol=2e-5)


def test_files_of_members_and_of_versions_are_told_what_helps(workdir):
    amounts, _ = hourly(3)
    for day in range(3):
        values = np.stack([amounts[day] * k / 4 for k in range(5)])[None]
        path = grid_file(
            workdir / f"ens/{day}.nc", values, [24 * day], dims=("time", "number", "lat", "lon"), units="mm"
        )
        with netCDF4.Dataset(path, "a") as file:
            file.createVariable("number", "i4", ("number",))[:] = range(5)
        both = np.stack([amounts[day] * np.nan, amounts[day]])[None]
        grid_file(
            workdir / f"both/2023_08_0{day + 1}.nc", both, [24 * day], dims=("time", "expver", "lat", "lon"), units="mm"
        )
    with pytest.raises(DataError, match="5 fields along number .* --member NUMBER") as error:
        run(1, "--train-folders", "ens")
    type_advice(error.value)
    np.testing.assert_allclose(read_field("ens_days/2023_08_02.nc"), amounts[1] * 3 / 4, rtol=1e-6)
    run(1, "--train-folders", "both")  # one day a file needs no other command
    np.testing.assert_allclose(read_field("both/2023_08_02.nc"), amounts[1], rtol=1e-6)


def test_days_stamped_at_their_end_are_told_the_command_that_works(workdir):
    amounts, times = hourly(3, "2023-08-02", 24 * HOUR)
    for k in range(3):
        cds(workdir / f"land/2023_08_0{k + 1}.nc", amounts[k] / 1000, times[k])
    with pytest.raises(DataError, match="name says 2023-08-01, its time coordinate 2023-08-02") as error:
        run(1, "--train-folders", "land")
    type_advice(error.value)
    np.testing.assert_allclose(read_field("land_days/2023_08_02.nc"), amounts[1], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("era5.grib", "cdo -f nc4 copy"),
        ("imerg.HDF5", "ncks -G : -g GROUP"),
        ("a.tif", "gdal_translate"),
        ("a.zip", "unzip"),
    ],
)
def test_folders_of_other_kinds_get_a_word_on_how_to_convert(workdir, name, words):
    (workdir / "raw").mkdir()
    (workdir / "raw" / name).write_bytes(b"x")
    for argv in (["--make-days", "raw"], ["--eval-folders", "raw"]):
        with pytest.raises(DataError, match=f"raw: holds no .nc file .*{words}"):
            run(1, *argv)


def test_stage_1_says_what_it_took(workdir, capsys):
    """A table with variable, long name, period, cell edges, mean, maximum and missing; what is odd stands below."""
    for day in range(1, 13):
        values = rain((17, 17), day, 0.9)
        values[:10] = np.nan
        words = {"units": "mm", "long_name": "gauge rain"}
        write_nc(workdir / f"in/2023_{day:02d}_01.nc", values, LAT, LON, name="precip", attrs=words)
    run(1, "--eval-folders", "in", "--output-folder", "out")
    told = capsys.readouterr().out
    row = next(line for line in told.splitlines() if line.startswith("  eval  precip"))
    assert "precip (gauge rain)" in row and "unknown" in row
    assert "105.875..110.125 E, 25.875..30.125 N" in row and "0.898 mm" in row and "58.8 %" in row
    for odd in (
        "no amount reaches 1 mm",
        "a month or more apart",
        "the period is unknown",
        "more than half of all values are missing",
    ):
        assert odd in told
    amounts, _ = hourly(12)
    for hour in range(12):
        path = workdir / f"hours/2023_08_01_{hour:02d}00.nc"
        write_nc(path, amounts[hour], LAT, LON, attrs={"units": "mm"})
    run(1, "--train-folders", "hours", "--output-folder", "out")
    told = capsys.readouterr().out
    assert "train: NOTE: amounts over 1 h, not of days; python 1create_data_lists.py --make-days hours" in told
    assert "1 h (spacing of the list)" in told


def test_hours_in_files_of_their_own_become_days_by_their_names(workdir):
    amounts, _ = hourly(49)
    for hour in range(49):
        name = str(np.datetime64("2023-08-01T00", "h") + hour).replace("-", "_").replace("T", "_") + "00"
        write_nc(workdir / f"hours/{name}.nc", amounts[hour], LAT, LON, attrs={"units": "mm"})
    wanted = {f"2023-08-0{d + 1}": amounts[24 * d : 24 * d + 24].sum(0) for d in (0, 1)}
    expect(days_of("hours", "--stamps", "start"), wanted)


def test_text_of_files_is_printed_plain_and_short(workdir, capsys):
    words = {"units": "mm", "long_name": "rain \x1b[31m red \x07 " + 5000 * "x"}
    write_nc(workdir / "in/2023_08_01.nc", rain((17, 17)), LAT, LON, attrs=words)
    run(1, "--eval-folders", "in", "--output-folder", "out")
    told = capsys.readouterr().out
    assert "\x1b" not in told and "\x07" not in told and max(map(len, told.splitlines())) < 300
    write_nc(
        workdir / "in/2023_08_01.nc",
        rain((17, 17)),
        LAT,
        LON,
        attrs=words | {"standard_name": "snow \x1b[0m" + 999 * "y"},
    )
    with pytest.raises(DataError) as error:
        run(1, "--eval-folders", "in", "--output-folder", "out")
    assert "\x1b" not in str(error.value) and len(str(error.value)) < 700
