"""Laws of reader.py: what a file becomes, whatever its layout, units, time and grid."""

import numpy as np
import pytest
import xarray as xr
from conftest import nodes, rain, write_nc, write_plain

import reader
from reader import Grid, inspect_files, read_field
from utils import DataError

LAT, LON = nodes(22, 34, 1)[::-1], nodes(100, 114, 1)  # 13 x 15
FIELD = rain((13, 15))


def day(tmp_path, values=FIELD, lat=LAT, lon=LON, name="1950_08_01.nc", **layout):
    return write_nc(tmp_path / name, values, lat, lon, **layout)


# ---------------------------------------------------------------- the canonical form


def test_canonical_form(tmp_path):
    tp = read_field(day(tmp_path))
    assert tp.name == "tp" and tp.dims == ("lat", "lon") and tp.dtype == np.float32
    assert tp.attrs["units"] == "mm" and tp.attrs["source"] == "1950_08_01.nc"
    np.testing.assert_array_equal(tp.lat, LAT)
    np.testing.assert_array_equal(tp.lon, LON)
    np.testing.assert_array_equal(tp, FIELD.astype("float32"))
    assert tp.time.values == np.datetime64("1950-08-01")


@pytest.mark.parametrize("name", ["tp", "pr", "prcp", "precip", "precipitation", "tp_sum", "TP", "rain_today"])
def test_variable_is_found_by_name_or_by_being_the_only_field(tmp_path, name):
    np.testing.assert_array_equal(read_field(day(tmp_path, name="1950_08_01.nc", **{})), FIELD)
    path = write_nc(tmp_path / "1950_08_02.nc", FIELD, LAT, LON, name=name)
    np.testing.assert_array_equal(read_field(path), FIELD)


@pytest.mark.parametrize("dims", [("lat", "lon"), ("latitude", "longitude"), ("y", "x"), ("Lat", "Lon")])
@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("south_first", [False, True])
@pytest.mark.parametrize("east", ["-180..180", "0..360", "-360..0"])
def test_layout_of_the_file_does_not_matter(tmp_path, dims, swapped, south_first, east):
    lat, values = (LAT[::-1], FIELD[::-1]) if south_first else (LAT, FIELD)
    lon = (LON - 200 + {"-180..180": 0, "0..360": 360, "-360..0": 0}[east]) - 360 * (east == "-360..0")
    lon = lon if east != "-360..0" else lon + 360 - 0.0
    tp = read_field(day(tmp_path, values, lat, lon, dims=dims[::-1] if swapped else dims))
    np.testing.assert_array_equal(tp, FIELD)
    np.testing.assert_array_equal(tp.lat, LAT)
    np.testing.assert_array_equal(tp.lon, LON - 200)


def test_longitudes_below_minus_180_are_the_same_places(tmp_path):
    tp = read_field(day(tmp_path, lon=LON - 360))
    np.testing.assert_array_equal(tp.lon, LON)


def test_global_file_rolls_to_minus_180(tmp_path):
    values = rain((13, 360))
    tp = read_field(day(tmp_path, values, lon=nodes(0, 359, 1)))
    assert tp.lon[0] == -180 and tp.lon[-1] == 179
    np.testing.assert_array_equal(tp.sel(lon=-1), values[:, 359])


def test_axes_are_found_by_cf_attributes(tmp_path):
    path = write_plain(
        tmp_path / "1950_08_01.nc",
        {"nj": 13, "ni": 15},
        {
            "nj": ("f8", ("nj",), LAT, {"units": "degrees_north"}),
            "ni": ("f8", ("ni",), LON, {"standard_name": "longitude"}),
            "tp": ("f4", ("ni", "nj"), FIELD.T, {"units": "mm"}),
        },
    )
    np.testing.assert_array_equal(read_field(path), FIELD)


def test_size_one_dimensions_are_dropped_and_longer_ones_refused(tmp_path):
    field = xr.DataArray(FIELD, {"lat": LAT, "lon": LON}, ("lat", "lon"), "tp")
    one = field.expand_dims(time=[0], member=[3])
    one.to_netcdf(tmp_path / "1950_08_01.nc")
    np.testing.assert_array_equal(read_field(tmp_path / "1950_08_01.nc"), FIELD)
    xr.concat([field, field], "step").to_netcdf(tmp_path / "1950_08_02.nc")
    with pytest.raises(DataError, match=r"1950_08_02.nc.*step.*one field a file"):
        read_field(tmp_path / "1950_08_02.nc")


@pytest.mark.parametrize("step", [0.01, 0.04, 0.1, 0.25, 1 / 3, 1 / 120, 0.4, 2.5])
@pytest.mark.parametrize("first", [-129.5, 0.005, 105.55])
def test_float32_coordinates_give_the_lattice_that_was_meant(step, first):
    lat, lon = 30 - np.arange(40) * step, first + np.arange(50) * step
    exact = Grid.from_centres(lat, lon)
    single = Grid.from_centres(lat.astype("float32").astype("float64"), lon.astype("float32").astype("float64"))
    assert single.step == exact.step and abs(float(exact.step) - step) < 1e-9
    np.testing.assert_allclose(single.lon, lon, atol=2e-5)
    np.testing.assert_allclose(exact.lon, lon, atol=1e-6)


@pytest.mark.parametrize(
    ("units", "factor"),
    [
        ("mm", 1),
        ("m", 1000),
        ("cm", 10),
        ("metres", 1000),
        ("millimeters", 1),
        ("kg m-2", 1),
        ("kg/m2", 1),
        ("kg m**-2", 1),
        ("m of water equivalent", 1000),
        ("kg m-2 s-1", 86400),
        ("kg m^-2 s^-1", 86400),
        ("kg/m2/s", 86400),
        ("mm/day", 1),
        ("mm day-1", 1),
        ("mm/h", 24),
        ("mm/s", 86400),
        ("m s-1", 86400000),
        ("mm d-1", 1),
        ("mm per day", 1),
        ("mm.day-1", 1),
        ("mm day^-1", 1),
        ("mm/3h", 1),
        ("mm (6 h)-1", 1),
        ("mm/hr", 24),
        ("m/day", 1000),
        ("cm day-1", 10),
        ("kg m-2 day-1", 1),
        ("kg.m-2.s-1", 86400),
        ("kg/(m^2*s)", 86400),
        ("kg m⁻² s⁻¹", 86400),
        ("kg/m²", 1),
        ("g m-2", 1e-3),
        ("L/m2", 1),
        ("litres m-2", 1),
        ("Millimetres", 1),
        ("centimetre", 10),
        ("Meters", 1000),
        ("mm of water", 1),
        ("m (water equivalent)", 1000),
        ("0.1 mm", 0.1),
    ],
)
def test_units_attribute(tmp_path, units, factor):
    tp = read_field(day(tmp_path, FIELD / factor, attrs={"units": units}))
    np.testing.assert_allclose(tp, FIELD, rtol=1e-6)


def test_a_rate_needs_a_period(tmp_path):
    bounds = {"time_bnds": ("f8", ("time", "two"), [[0, 6]], {})}
    parts = {
        "lat": ("f8", ("lat",), LAT, {}),
        "lon": ("f8", ("lon",), LON, {}),
        "time": ("f8", ("time",), [6], {"units": "hours since 2023-08-01", "bounds": "time_bnds"}),
        "tp": ("f8", ("time", "lat", "lon"), FIELD[None] / 6, {"units": "mm h-1"}),
    }
    dims = {"lat": 13, "lon": 15, "time": 1, "two": 2}
    np.testing.assert_allclose(read_field(write_plain(tmp_path / "a.nc", dims, parts | bounds)), FIELD, rtol=1e-6)
    named = parts | {"time": ("f8", ("time",), [6], {"units": "hours since 2023-08-01", "bounds": "span"})}
    span = {
        "span": ("f8", ("time", "two"), [[0, 360]], {"units": "minutes since 2023-08-01"})
    }  # bounds by CF's attribute, in their own units
    np.testing.assert_allclose(
        read_field(write_plain(tmp_path / "2023_08_01.nc", dims, named | span)), FIELD, rtol=1e-6
    )
    with pytest.raises(DataError, match="a.nc.*period"):
        read_field(write_plain(tmp_path / "a.nc", dims, parts))
    for units in ("mm", "mm h-1"):
        month = {"tp": ("f8", ("time", "lat", "lon"), FIELD[None], {"units": units})}
        month["time_bnds"] = ("f8", ("time", "two"), [[0, 744]], {})
        with pytest.raises(DataError, match="2023_08_01.nc: time_bnds span 31 days; expected a file a day"):
            read_field(write_plain(tmp_path / "2023_08_01.nc", dims, parts | month))
    with pytest.raises(DataError, match="period"):  # a clock time in the name is not a day, midnight included
        read_field(day(tmp_path, name="2019_06_10_0000.nc", attrs={"units": "kg m-2 s-1"}))


def test_units_of_a_folder_from_its_values(tmp_path):
    forecasts = [day(tmp_path, rain((13, 15), k) / 1000, name=f"1950_08_0{k}.nc") for k in (1, 2, 3)]
    days = [day(tmp_path, rain((13, 15), k), name=f"1950_08_1{k}.nc") for k in (1, 2, 3)]
    for paths, units in ((forecasts, "m"), (days, "mm")):
        records, faults = inspect_files([str(p) for p in paths])
        assert not faults and {r["units"] for r in records} == {units}
        assert {r["units_from"] for r in records} == {"values"}


def test_a_bad_file_does_not_decide_the_units_of_the_others(tmp_path):
    paths = [day(tmp_path, rain((13, 15), k) / 1000, name=f"1950_08_0{k}.nc") for k in (1, 2, 3)]
    paths.append(day(tmp_path, np.full((13, 15), 9.96921e36), name="1950_08_04.nc"))  # an undeclared fill value
    paths.append(day(tmp_path, np.where(FIELD > 1, FIELD / 1000, -9999.0), name="1950_08_05.nc"))
    records, faults = inspect_files([str(p) for p in paths])
    assert [r["units"] for r in records] == ["m"] * 3
    assert len(faults) == 2 and "1950_08_04.nc" in faults[0] and "1950_08_05.nc" in faults[1]


@pytest.mark.parametrize("values", [FIELD / 1000, FIELD * 0, FIELD / 40])
def test_a_lone_or_dry_file_without_units_is_refused_naming_the_option(tmp_path, values):
    path = day(tmp_path, values)
    with pytest.raises(DataError, match=r"1950_08_01.nc.*--units"):
        read_field(path)
    records, faults = inspect_files([str(path)])
    assert not records and "--units" in faults[0]
    np.testing.assert_allclose(read_field(path, "m"), values * 1000, rtol=1e-6)


def test_packing_noise_becomes_zero(tmp_path):
    values = FIELD.copy()
    values[3, 4] = -0.0999
    tp = read_field(day(tmp_path, values, attrs={"units": "mm"}))
    assert tp.values[3, 4] == 0 and not np.signbit(tp.values[3, 4])


@pytest.mark.parametrize("bad", [-0.11, -9999.0, np.inf, -np.inf, 2000.5, 9.96921e36])
def test_impossible_values_are_refused_with_cell_and_value(tmp_path, bad):
    values = FIELD.copy()
    values[3, 4] = bad
    path = day(tmp_path, values[::-1], LAT[::-1], attrs={"units": "mm"})
    with pytest.raises(DataError, match=r"1950_08_01.nc.*row 3 from the north, column 4 from the west"):
        read_field(path)


def test_missing_stays_missing(tmp_path):
    values = FIELD.copy()
    values[0, 0] = np.nan
    packed = {"dtype": "int16", "scale_factor": 1 / 256, "_FillValue": -32768}
    for encoding in ({}, packed):
        tp = read_field(day(tmp_path, values, attrs={"units": "mm"}, encoding=encoding))
        np.testing.assert_array_equal(tp, values.astype("float32"))
    with pytest.raises(DataError, match="every value is missing"):
        read_field(day(tmp_path, values * np.nan, attrs={"units": "mm"}))


@pytest.mark.parametrize(
    ("name", "time", "reference"),
    [
        ("1950_08_01.nc", "1950-08-01", None),
        ("1970_01_01.nc", "1970-01-01", None),
        ("19500801.nc", "1950-08-01", None),
        ("2023_08_11_18_08_12_china.nc", "2023-08-12", "2023-08-11T18"),
        ("2023_12_31_18_01_01_x.nc", "2024-01-01", "2023-12-31T18"),
        ("2019_06_10_0024.nc", "2019-06-10T00:24", None),
    ],
)
def test_times_from_the_name(tmp_path, name, time, reference):
    tp = read_field(day(tmp_path, name=name))
    assert tp.time.values == np.datetime64(time)
    assert ("forecast_reference_time" in tp.coords) == (reference is not None)
    if reference:
        assert tp.forecast_reference_time.values == np.datetime64(reference)


@pytest.mark.parametrize("name", ["rain.nc", "2023_02_30.nc", "2023_13_01.nc", "2023_08_11_25_08_12_x.nc", "1234.nc"])
def test_a_name_that_is_no_date_is_refused(tmp_path, name):
    with pytest.raises(DataError, match="name is not a date"):
        read_field(day(tmp_path, name=name))


@pytest.mark.parametrize("calendar", ["standard", "proleptic_gregorian", "noleap", "360_day", "all_leap"])
def test_time_coordinate_keeps_its_date_in_any_calendar(tmp_path, calendar):
    clock = ("f8", (), 30, {"units": "days since 2023-08-01", "calendar": calendar})
    path = write_plain(
        tmp_path / "x.nc",
        {"lat": 13, "lon": 15},
        {
            "lat": ("f8", ("lat",), LAT, {}),
            "lon": ("f8", ("lon",), LON, {}),
            "time": clock,
            "tp": ("f8", ("lat", "lon"), FIELD, {"coordinates": "time"}),
        },
    )
    expected = "2023-09-01" if calendar == "360_day" else "2023-08-31"
    assert read_field(path).time.values == np.datetime64(expected)


@pytest.mark.parametrize(
    ("value", "units", "calendar"),
    [
        (59, "days since 2023-01-01", "360_day"),  # 30 February
        (np.nan, "days since 2023-01-01", "standard"),
        (1e300, "days since 2023-01-01", "standard"),
        (3, "days since yesterday", "standard"),
        (3, "fortnights since 2023-01-01", "standard"),
        (3, "days since 2023-01-01", "mayan"),
        (3, "days since 0001-01-01", "standard"),  # beyond what nanoseconds hold
        (3, "days since 9000-01-01", "standard"),
    ],
)
def test_a_time_that_is_no_date_is_refused(tmp_path, value, units, calendar):
    field = xr.DataArray(FIELD, {"lat": LAT, "lon": LON}, ("lat", "lon"), "tp")
    field = field.assign_coords(time=((), float(value), {"units": units, "calendar": calendar}))
    with pytest.raises(DataError, match=r"memory|field"):
        reader.canonical(field)


def test_time_coordinate_of_1970_is_a_time(tmp_path):
    field = xr.DataArray(FIELD, {"lat": LAT, "lon": LON}, ("lat", "lon"), "tp")
    field = field.assign_coords(valid_time=np.datetime64("1970-01-01", "ns"), time=np.datetime64("1999-01-01", "ns"))
    assert reader.canonical(field).time.values == np.datetime64("1970-01-01")


@pytest.mark.parametrize(
    ("lat", "lon", "words"),
    [
        (LAT, nodes(173, 187, 1), "cut in two"),
        (np.r_[LAT[:-1], 20.5], LON, "not regular"),
        (LAT, np.r_[LON[:7], LON[7:] + 0.3], "not regular"),
        (LAT, nodes(100, 107, 0.5), "square"),
        (LAT[[0, 2, 1, *range(3, 13)]], LON, "neither ascending nor descending"),
        (np.r_[LAT[:-1], LAT[-2]], LON, "twice"),
        (LAT + 70, LON, "latitude"),
        (LAT, LON + 300, "longitude"),
        (np.where(LAT == 30, np.nan, LAT), LON, "latitude"),
    ],
)
def test_grids_that_are_not_one_lattice_are_refused(tmp_path, lat, lon, words):
    with pytest.raises(DataError, match=rf"1950_08_01.nc.*{words}"):
        read_field(day(tmp_path, lat=lat, lon=lon))


def test_a_field_that_says_it_is_no_amount_of_rain_is_refused_without_units(tmp_path):
    for name, words in (
        ("air_temperature", "no rain by its standard_name air_temp"),
        ("lwe_precipitation_rate", "is a rate"),
    ):
        path = day(tmp_path, FIELD + 250, attrs={"standard_name": name})
        with pytest.raises(DataError, match=words):
            read_field(path)


def test_a_forecast_whose_only_time_is_its_issue_time_is_valid_when_its_name_says(tmp_path):
    dims = {"lat": 13, "lon": 15}
    parts = {"lat": ("f8", ("lat",), LAT, {}), "lon": ("f8", ("lon",), LON, {})}
    parts["time"] = ("f8", (), 18, {"units": "hours since 2023-08-11"})
    parts["tp"] = ("f8", ("lat", "lon"), FIELD, {"units": "mm", "coordinates": "time"})
    tp = read_field(write_plain(tmp_path / "2023_08_11_18_08_12_china.nc", dims, parts))
    assert (
        str(tp.time.values)[:13] == "2023-08-12T00" and str(tp.forecast_reference_time.values)[:13] == "2023-08-11T18"
    )
