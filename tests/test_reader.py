"""Laws of reader.py: what a file becomes, whatever its layout, units, time and grid."""

import argparse
import re
import shutil
import subprocess

import numpy as np
import pytest
import xarray as xr
from conftest import nodes, rain, write_nc, write_plain

import reader
from metadata import parse_period
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
        ("kg m-2 min-1", 1440),
        ("kg m-2 h-1", 24),
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


# ---------------------------------------------------------------- cells where the file says they are


def bounded(path, lat, lon, lat_bounds, lon_bounds, values, dims=("latitude", "longitude")):
    """A file whose latitudes and longitudes have bounds, each (N, 2)."""
    names = [f"{name[:3]}_bounds" for name in dims]
    axes = zip(dims, names, (lat, lon), (lat_bounds, lon_bounds), ("north", "east"), strict=True)
    parts = {}
    for name, bounds, nodes_, edges, compass in axes:
        parts[name] = ("f4", (name,), nodes_, {"units": f"degrees_{compass}", "bounds": bounds})
        parts[bounds] = ("f4", (name, "nv"), edges, {})
    words = {"units": "mm/day", "long_name": "Daily GPCP Satellite-Gauge Combined Precipitation"}
    parts["precip"] = ("f4", dims, values, words | {"cell_methods": "area: mean time: mean"})
    return write_plain(path, {dims[0]: len(lat), dims[1]: len(lon), "nv": 2}, parts)


def test_bounds_place_the_cells_of_gpcp(tmp_path):
    """Its nodes are the south-western corners: without the bounds every cell lies half a degree away."""
    lat, lon, values = np.arange(-90, 90.0), np.arange(0, 360.0), rain((180, 360))
    edges = np.stack([lat, lat + 1], 1), np.stack([lon, lon + 1], 1)
    tp = read_field(bounded(tmp_path / "2023_08_01.nc", lat, lon, *edges, values))
    np.testing.assert_array_equal(tp.lat, np.arange(89.5, -90, -1))
    np.testing.assert_array_equal(tp.lon, np.arange(-179.5, 180))
    np.testing.assert_allclose(tp.sel(lat=26.5, lon=106.5), values[116, 106], rtol=1e-6)
    np.testing.assert_allclose(tp.sel(lat=26.5, lon=-0.5), values[116, 359], rtol=1e-6)


@pytest.mark.parametrize("shift", [-0.5, -0.25, 0, 0.5])
def test_bounds_decide_also_in_a_region_and_across_the_meridian(tmp_path, shift):
    lat, lon = LAT + 0.0, np.arange(-7, 8.0) % 360  # 353..359, 0..7
    middles = np.arange(-7, 8.0) + shift
    edges = np.stack([middles - 0.5, middles + 0.5], 1) % 360
    tp = read_field(bounded(tmp_path / "2023_08_01.nc", lat, lon, np.stack([lat + 0.5, lat - 0.5], 1), edges, FIELD))
    np.testing.assert_allclose(tp.lon, middles, atol=1e-4)
    np.testing.assert_allclose(tp, FIELD, rtol=1e-6)
    np.testing.assert_array_equal(tp.lat, LAT)


def test_half_cells_at_the_poles_keep_their_nodes(tmp_path):
    lat, lon = np.arange(-90, 91, 2.5), np.arange(0, 360, 2.5)
    edges = np.clip(np.stack([lat - 1.25, lat + 1.25], 1), -90, 90), np.stack([lon - 1.25, lon + 1.25], 1)
    tp = read_field(bounded(tmp_path / "2023_08_01.nc", lat, lon, *edges, rain((73, 144))))
    np.testing.assert_array_equal(tp.lat, lat[::-1])


@pytest.mark.parametrize("wrong", ["wide", "away", "unwritten"])
def test_bounds_that_fit_no_cells_are_refused(tmp_path, wrong):
    half = {"wide": 1.0, "away": 0.5, "unwritten": np.nan}[wrong]
    middles = LAT + 3.0 * (wrong == "away")
    edges = np.stack([LON - 0.5, LON + 0.5], 1)
    path = bounded(
        tmp_path / "2023_08_01.nc",
        LAT,
        LON,
        np.stack([middles - half, middles + half], 1),
        edges,
        FIELD,
        ("lat", "lon"),
    )
    with pytest.raises(DataError, match="2023_08_01.nc: lat_bounds gives .* expected cells that touch"):
        read_field(path)


# ---------------------------------------------------------------- what is no grid of latitude and longitude


def type_command(error, path, tmp_path):
    """Type the command that an error shows, with IN and OUT filled in; the path of OUT."""
    command = re.search(r"(ncatted .*|printf .*|cdo .*?)(?= \(| makes|$)", str(error))[1]
    out = tmp_path / "out" / path.name
    out.parent.mkdir(exist_ok=True)
    command = re.sub(r"\bIN\b", str(path), re.sub(r"\bOUT\b", str(out), command))
    subprocess.run(command, shell=True, check=True, cwd=tmp_path, capture_output=True)
    return out


needs_cdo = pytest.mark.skipif(not shutil.which("cdo"), reason="needs cdo, whose commands the messages give")
PLANES = np.meshgrid(np.linspace(25, 31, 13), np.linspace(105, 112, 15), indexing="ij")
CURVED = PLANES[0] + 0.1 * np.sin(PLANES[1]), PLANES[1]


def plane_file(path, dims=("y", "x"), names=("lat", "lon"), coords=None, time=(), mapping=None, linked=True):
    """A file on two dimensions of any kind, with latitude and longitude of two dimensions, if any names are given."""
    planes = {
        name: ((*time, *dims), plane[(None,) * len(time)], {"units": f"degree_{compass}"})
        for name, plane, compass in zip(names, CURVED, ("north", "east"), strict=False)
    }
    attrs = {"units": "mm", "long_name": "total precipitation"} | ({"grid_mapping": "crs"} if mapping else {})
    rain_ = ((*time, *dims), FIELD[(None,) * len(time)], attrs)
    crs = {"crs": ((), 0, mapping)} if mapping else {}
    file = xr.Dataset({"pr": rain_, **planes, **crs}, coords or {})
    (file.set_coords(list(planes)) if linked else file).to_netcdf(path)
    return path


INDEX = {"y": np.arange(13), "x": np.arange(15)}
METRES = {
    "y": ("y", np.arange(13) * 1e4, {"units": "m", "standard_name": "projection_y_coordinate"}),
    "x": ("x", np.arange(15) * 1e4, {"units": "m", "standard_name": "projection_x_coordinate"}),
}
LAMBERT = {"grid_mapping_name": "lambert_conformal_conic", "standard_parallel": [30.0, 60.0]} | {
    "longitude_of_central_meridian": 108.0,
    "latitude_of_projection_origin": 28.0,
    "earth_radius": 6371000.0,
}
ROTATED = {"grid_mapping_name": "rotated_latitude_longitude", "grid_north_pole_latitude": 60.0} | {
    "grid_north_pole_longitude": -70.0
}


@needs_cdo
@pytest.mark.parametrize(
    "layout",
    [
        {"dims": ("south_north", "west_east"), "names": ("XLAT", "XLONG"), "time": ("Time",)},  # WRF
        {"coords": INDEX},
        {"dims": ("rlat", "rlon")},
        {"coords": METRES, "names": (), "mapping": LAMBERT},
        {"coords": METRES},
        {"coords": METRES, "linked": False},
        {"coords": {"y": ("y", LAT, {"axis": "Y"}), "x": ("x", LON, {"axis": "X"})}, "names": (), "mapping": ROTATED},
    ],
)
def test_other_grids_are_refused_with_a_command_that_regrids(tmp_path, layout):
    path = plane_file(tmp_path / "2023_08_01.nc", **layout)
    with pytest.raises(DataError, match="2023_08_01.nc.*expected latitude and longitude.*regrid it first") as error:
        read_field(path)
    tp = read_field(type_command(error.value, path, tmp_path))
    assert tp.notnull().any() and 0 <= float(tp.min()) <= float(tp.max()) <= FIELD.max() + 1e-6
    if layout.get("names") != ():  # the grid lies inside the file's own
        assert 24.5 < float(tp.lat.min()) < float(tp.lat.max()) < 31.5 and float(tp.lon.min()) > 104.5


@pytest.mark.parametrize(
    ("lat", "lon", "more"),
    [
        ({"long_name": "y coordinate of projection"}, {"long_name": "x coordinate of projection"}, {}),
        ({"long_name": "longitude"}, {"long_name": "latitude"}, {}),
        ({"long_name": "latitude in rotated pole grid"}, {"long_name": "longitude in rotated pole grid"}, {}),
        ({}, {}, {"rotated_pole": ("i4", (), 0, ROTATED)}),
        ({"units": "radian"}, {"units": "radian"}, {}),
        ({"long_name": "cell index along second dimension"}, {}, {}),
    ],
)
@pytest.mark.parametrize("dims", [("lat", "lon"), ("y", "x")])
def test_names_are_not_believed_against_what_metadata_say(tmp_path, lat, lon, more, dims):
    parts = {dims[0]: ("f8", dims[:1], LAT, dict(lat)), dims[1]: ("f8", dims[1:], LON, dict(lon))}
    parts |= {"tp": ("f8", dims, FIELD, {"units": "mm"})} | {k: (*v[:3], dict(v[3])) for k, v in more.items()}
    path = write_plain(tmp_path / "2023_08_01.nc", dict(zip(dims, (13, 15), strict=True)), parts)
    with pytest.raises(DataError, match="2023_08_01.nc.*expected latitude and longitude"):
        read_field(path)


def test_axis_attributes_come_before_names(tmp_path):
    """`x` is the latitude here, by its standard_name, and `lat` only a name of the longitude."""
    parts = {
        "x": ("f8", ("x",), LAT, {"standard_name": "latitude", "units": "degrees_north"}),
        "lat": ("f8", ("lat",), LON, {"standard_name": "longitude", "units": "degrees_east"}),
        "tp": ("f8", ("lat", "x"), FIELD.T, {"units": "mm"}),
    }
    tp = read_field(write_plain(tmp_path / "2023_08_01.nc", {"x": 13, "lat": 15}, parts))
    np.testing.assert_array_equal(tp, FIELD)


# ---------------------------------------------------------------- times and periods


@pytest.mark.parametrize("valid", [False, True])
@pytest.mark.parametrize("reference", ["standard_name", "long_name", "name"])
@pytest.mark.parametrize("unit", ["hours", "seconds", "nanoseconds"])
def test_forecasts_as_grib_readers_write_them(tmp_path, valid, reference, unit):
    issued = {"units": "seconds since 1970-01-01", "standard_name": "time"}
    issued |= {"standard_name": {"standard_name": "forecast_reference_time"}}.get(reference, {})
    issued |= {"long_name": "initial time of forecast"} if reference == "long_name" else {}
    if reference == "name":
        issued.pop("standard_name")
    name = "forecast_reference_time" if reference == "name" else "time"
    start = np.datetime64("2023-08-11T18", "s").astype(int)
    scale = {"hours": 1, "seconds": 3600, "nanoseconds": 3600e9}[unit]
    coords = {"latitude": LAT, "longitude": LON, name: ((), start, issued)}
    coords["step"] = ((), 30.0 * scale, {"units": unit, "standard_name": "forecast_period"})
    if valid:
        words = {"units": "seconds since 1970-01-01", "standard_name": "time"}
        coords["valid_time"] = ((), start + 30 * 3600, words)
    words = {"units": "mm", "GRIB_stepType": "accum", "standard_name": "unknown"}
    xr.Dataset({"tp": (("latitude", "longitude"), FIELD, words)}, coords).to_netcdf(tmp_path / "any.nc")
    tp = read_field(tmp_path / "any.nc")
    assert tp.time.values == np.datetime64("2023-08-13T00")
    assert tp.forecast_reference_time.values == np.datetime64("2023-08-11T18")


def clocked(path, hours, bounds=None, since="hours since 2023-08-01", **attrs):
    """A day with a time coordinate, and perhaps bounds; attrs: of tp."""
    parts = {
        "lat": ("f8", ("lat",), LAT, {}),
        "lon": ("f8", ("lon",), LON, {}),
        "time": ("f8", (), hours, {"units": since} | ({"bounds": "time_bnds"} if bounds else {})),
        "tp": ("f8", ("lat", "lon"), FIELD, {"units": "mm", "coordinates": "time", **attrs}),
    }
    parts |= {"time_bnds": ("f8", ("nv",), bounds, {})} if bounds else {}
    return write_plain(path, {"lat": 13, "lon": 15, "nv": 2}, parts)


def test_the_date_of_an_accumulation_is_that_of_its_beginning(tmp_path):
    assert read_field(clocked(tmp_path / "a.nc", 24, [0, 24])).time.values == np.datetime64("2023-08-01")
    assert read_field(clocked(tmp_path / "b.nc", 12, [0, 24])).time.values == np.datetime64("2023-08-01T12")
    assert read_field(clocked(tmp_path / "2023_08_02.nc", 24, [0, 24])).time.values == np.datetime64("2023-08-01")


@pytest.mark.parametrize(("hours", "words"), [(24, "--stamps end"), (5 * 24, "ncks -x -v time"), (-210240, "1999-")])
def test_a_name_and_a_coordinate_of_other_dates_are_refused_with_both(tmp_path, hours, words):
    with pytest.raises(
        DataError, match=f"name says 2023-08-01, its time coordinate .*expected one date.*{words}|{words}"
    ):
        read_field(clocked(tmp_path / "2023_08_01.nc", hours))


@pytest.mark.parametrize(
    "words",
    [
        "Total (convective and large-scale) precipitation rate (liq + ice)",
        "Precipitation (rain and snow)",
        "Rainfall of Thailand",
        "precipitation interpolated from rain gauge observations",
        "error-corrected and quality controlled precipitation",
        "Global Precipitation Climatology Project daily precipitation",
        "Climate Hazards group InfraRed Precipitation with Stations",
    ],
)
def test_words_that_only_sound_like_a_part_of_the_rain(tmp_path, words):
    np.testing.assert_array_equal(read_field(day(tmp_path, attrs={"units": "mm", "long_name": words})), FIELD)


@pytest.mark.parametrize(
    "words",
    ["Total snowfall", "Total convective precipitation", "precipitation error", "Quality flag of rain"]
    + ["Hail and graupel", "precipitation minus evaporation", "probability of precipitation", "rain anomaly"],
)
def test_words_that_speak_of_a_part_or_of_a_figure(tmp_path, words):
    with pytest.raises(DataError, match="is no rain by its long_name"):
        read_field(day(tmp_path, attrs={"units": "mm", "long_name": words}))


@pytest.mark.parametrize(
    "about",
    [{"long_name": "Monthly total precipitation"}, {"avg_period": "0000-01-00 00:00:00"}, {"long_name": "annual rain"}],
)
def test_means_and_sums_of_many_days_are_refused(tmp_path, about):
    with pytest.raises(DataError, match="amounts of a month or more; expected a file a day"):
        read_field(day(tmp_path, attrs={"units": "mm", **about}))


@pytest.mark.parametrize(
    ("about", "period", "source"),
    [
        ({"bounds": [0, 24]}, 24, "time_bnds"),
        ({"bounds": [0, 6]}, 6, "time_bnds"),
        ({"GRIB_stepRange": "6-12"}, 6, "GRIB_stepRange"),
        ({"long_name": "24 h rain"}, 24, "long_name"),
        ({"long_name": "24-minute precipitation accumulation"}, 0.4, "long_name"),
        ({"units": "mm/day"}, 24, "units"),
        ({"long_name": "3 hourly rain"}, 3, "long_name"),
        ({"long_name": "Daily total of precipitation"}, 24, "long_name"),
        ({"avg_period": "0000-00-01 00:00:00"}, 24, "attributes"),
        ({"time_step": "day"}, 24, "attributes"),
        ({"GRIB_stepRange": "0-30", "GRIB_stepUnits": 0}, 0.5, "GRIB_stepRange"),
        ({"GRIB_stepRange": "30-60m"}, 0.5, "GRIB_stepRange"),
        ({"bounds": [0, 24], "GRIB_stepRange": "24-48", "long_name": "daily rain"}, 24, "time_bnds"),
        ({"bounds": [0, 23], "long_name": "daily rain"}, 23, "time_bnds"),
        ({"cell_methods": "time: sum (interval: 1 day)"}, 24, "cell_methods"),
        ({"cell_methods": "time: sum (interval: 2 min)", "long_name": "24-minute rain"}, 0.4, "long_name"),
        ({"cell_methods": "time: sum (interval: 1 hour)", "bounds": [0, 24]}, 24, "time_bnds"),
        ({"cell_methods": "time: sum (interval: 1 hour)"}, None, ""),
        ({}, 24, "name"),
    ],
)
def test_the_period_of_a_file_is_found(tmp_path, about, period, source):
    (record,), faults = inspect_files([str(clocked(tmp_path / "2023_08_01.nc", 0, **about))])
    assert not faults and (record["period"], record["period_from"]) == (period, source)


def test_hours_named_by_their_day_are_no_days(tmp_path):
    paths = [str(clocked(tmp_path / f"2023_08_01_{hour:02d}.nc", hour)) for hour in range(24)]
    records, faults = inspect_files(paths)
    assert not faults and {(r["period"], r["period_from"]) for r in records} == {(1, "spacing of the list")}


def test_steps_of_one_forecast_are_no_days(tmp_path):
    paths = []
    for step in range(6, 78, 6):
        parts = {"lat": ("f8", ("lat",), LAT, {}), "lon": ("f8", ("lon",), LON, {})}
        parts["time"] = ("f8", (), 0, {"units": "hours since 2023-08-01", "standard_name": "forecast_reference_time"})
        parts["step"] = ("f8", (), step, {"units": "hours", "standard_name": "forecast_period"})
        parts["tp"] = ("f8", ("lat", "lon"), FIELD, {"units": "mm", "coordinates": "time step"})
        paths.append(str(write_plain(tmp_path / f"{step}.nc", {"lat": 13, "lon": 15}, parts)))
    records, faults = inspect_files(paths)
    assert not faults and {r["period"] for r in records} == {6} and len(records) == 12


def test_a_list_of_mixed_periods_is_refused_with_two_files_and_their_periods(tmp_path):
    days = dict.fromkeys((1, 2, 3), 24) | {4: 6, 5: 1, 6: 0.4}
    paths = [clocked(tmp_path / f"2023_08_0{d}.nc", 0, [0, h], f"hours since 2023-08-0{d}") for d, h in days.items()]
    records, faults = inspect_files(list(map(str, paths)))
    assert len(records) == len(faults) == 3
    for fault, (name, period) in zip(faults, (("04", "6 h"), ("05", "1 h"), ("06", "24 min")), strict=True):
        assert f"2023_08_{name}.nc: amounts over {period} (time_bnds), but " in fault
        assert "2023_08_01.nc and most files of the list over 24 h (time_bnds); expected one period" in fault


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({"bounds": [0, 24], "GRIB_stepRange": "0-72"}, "time_bnds says amounts over 24 h, GRIB_stepRange over 72 h"),
        ({"bounds": [0, 24], "long_name": "1-hour rain"}, "time_bnds says amounts over 24 h, long_name over 1 h"),
        ({"GRIB_stepRange": "0-6", "long_name": "daily rain"}, "GRIB_stepRange says .* 6 h, long_name over 24 h"),
        ({"bounds": [0, 1], "cell_methods": "time: sum (interval: 6 hr)"}, "time_bnds .* 1 h, cell_methods over 6 h"),
        ({"GRIB_stepRange": "0-72"}, "GRIB_stepRange span 3 days; expected a file a day"),
        ({"cell_methods": "time: sum (interval: 1 month)"}, "cell_methods; expected a file a day"),
        ({"GRIB_stepRange": "0-1y"}, "GRIB_stepRange '0-1y' .*gives no period"),
        ({"GRIB_stepRange": "0-24", "GRIB_stepUnits": 3}, "GRIB_stepUnits '3' gives no period"),
        ({"GRIB_stepRange": "24-0"}, "GRIB_stepRange '24-0' .*gives no period"),
    ],
)
def test_periods_that_contradict_each_other_or_are_not_understood_are_refused(tmp_path, about, words):
    path = str(clocked(tmp_path / "2023_08_01.nc", 0, **about))
    records, (fault,) = inspect_files([path])
    assert not records and re.search(words, fault)
    (record,), faults = inspect_files([path], period=24.0)
    assert not faults and (record["period"], record["period_from"]) == (24, "--period")


@pytest.mark.parametrize("about", [{"bounds": [0, np.nan]}, {"bounds": [0, 4], "since": "weeks since 2023-08-01"}])
def test_no_check_of_bounds_passes_on_nan(tmp_path, about):
    records, (fault,) = inspect_files([str(clocked(tmp_path / "2023_08_01.nc", 0, **about))])
    assert not records and re.search("gives no period|is no date", fault)


def test_overlapping_totals_keep_the_period_of_their_bounds(tmp_path):
    paths = [clocked(tmp_path / f"{h}.nc", h, [h, h + 24]) for h in (0, 6, 12, 18)]
    records, faults = inspect_files(list(map(str, paths)))
    assert not faults and {(r["period"], r["period_from"]) for r in records} == {(24, "time_bnds")}


@pytest.mark.parametrize(
    ("days", "period"),
    [
        (("1950_08_01", "1950_08_02", "1951_08_01"), (24, "spacing of the list")),
        (("1950_08_01", "1950_08_04"), (24, "name")),
    ]
    + [
        (("1950_08_01", "1950_08_08", "1950_08_15"), (None, "")),
        (("1950_06_01", "1950_07_01", "1950_08_01"), (None, "")),
    ],
)
def test_files_named_by_days_are_days_unless_they_are_weeks_or_months_apart(tmp_path, days, period):
    records, faults = inspect_files([str(day(tmp_path, attrs={"units": "mm"}, name=f"{name}.nc")) for name in days])
    assert not faults and {(r["period"], r["period_from"]) for r in records} == {period}


@pytest.mark.parametrize(
    ("text", "hours"), [("24h", 24), ("1d", 24), ("1 day", 24), ("24min", 0.4), ("0.5 hours", 0.5), ("6H", 6)]
)
def test_a_period_is_typed_with_its_unit(text, hours):
    assert parse_period(text) == hours


@pytest.mark.parametrize("text", ["24", "24m", "nan h", "-1h", "0h", "2d", "72h", "h", "1 month", ""])
def test_no_other_period_can_be_typed(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected up to a day, with its unit"):
        parse_period(text)


# ---------------------------------------------------------------- advice that works when it is typed


@needs_cdo
@pytest.mark.parametrize(("value", "units", "result"), [(-0.0002, "m", 0), (-0.5, "mm", 0), (-9.999, "m", np.nan)])
def test_advice_for_negative_amounts_is_in_the_units_of_the_file(tmp_path, value, units, result):
    values = FIELD / (1000 if units == "m" else 1)
    values[2, 3] = value
    path = day(tmp_path, values, attrs={"units": units})
    with pytest.raises(DataError, match=f"holds {value:g} {units}") as error:
        read_field(path)
    tp = read_field(type_command(error.value, path, tmp_path))
    np.testing.assert_allclose(tp.values[2, 3], result)
    assert np.isfinite(tp).sum() >= FIELD.size - 1


@pytest.mark.parametrize(
    ("start", "words"),
    [(b"GRIB", "it is GRIB: convert it with cdo"), (b"PK\x03\x04", "unzip it"), (b"\x1f\x8b\x08", "gunzip it")]
    + [(b"<!DOCTYPE html>", "a web page"), (b'{"error"', "the download failed")],
)
def test_other_kinds_of_files_named_nc_are_told_so(tmp_path, start, words):
    (tmp_path / "2023_08_01.nc").write_bytes(start + b"\0" * 100)
    with pytest.raises(DataError, match=f"2023_08_01.nc: cannot be read as NetCDF.*{words}"):
        read_field(tmp_path / "2023_08_01.nc")
