"""A corpus of bad and odd files: each is read right, or refused with its name, what was found and what to do.

python -m pytest tests/test_bad_input.py
FILES=600 python -m pytest tests/test_bad_input.py    # the long version: 600 files written and read back
"""

import json
import os
import sys
import tempfile
import zlib
from pathlib import Path

import netCDF4
import numpy as np
import pytest
import xarray as xr
from conftest import nodes, rain, run, stage, write_nc, write_plain
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import utils
from datasets import open_list
from reader import inspect_files, read_field
from utils import DataError

LAT, LON = nodes(22, 34, 1)[::-1], nodes(100, 114, 1)  # 13 x 15
FIELD = rain((13, 15))
DAY = "2023_08_01.nc"
READ, REFUSED = {}, {}  # name -> maker(folder) -> path; for the refused also what the message says


def odd(function):
    """A file that is odd, but holds FIELD."""
    READ[function.__name__] = function
    return function


def bad(words):
    """A file that must be refused, and part of what is said."""

    def keep(function):
        REFUSED[function.__name__] = (function, words)
        return function

    return keep


def put(folder, values=FIELD, lat=LAT, lon=LON, name=DAY, **layout):
    return write_nc(folder / name, values, lat, lon, **{"attrs": {"units": "mm"}, **layout})


def plain(folder, tp=None, lat=None, lon=None, more=None, dims=None, name=DAY, attrs=None):
    """A file by netCDF4; tp, lat, lon: what differs in (kind, dims, values, attributes)."""
    variables = {
        "lat": lat or ("f8", ("lat",), LAT, {}),
        "lon": lon or ("f8", ("lon",), LON, {}),
        "tp": tp or ("f8", ("lat", "lon"), FIELD, {"units": "mm"}),
    }
    return write_plain(folder / name, {"lat": 13, "lon": 15, **(dims or {})}, variables | (more or {}), attrs)


def cell(value):
    values = FIELD.copy()
    values[5, 6] = value
    return values


def replace(path, start, new):
    """The file with other bytes from `start` on (negative: from the end)."""
    old = bytearray(path.read_bytes())
    at = start % len(old)
    old[at : at + len(new)] = new
    path.write_bytes(old)
    return path


# ---------------------------------------------------------------- odd, and right


@odd
def transposed(folder):
    return put(folder, dims=("lon", "lat"))


@odd
def south_first(folder):
    return put(folder, FIELD[::-1], LAT[::-1])


@odd
def east_first(folder):
    return put(folder, FIELD[:, ::-1], lon=LON[::-1])


@odd
def all_turned(folder):
    return put(folder, FIELD[::-1, ::-1], LAT[::-1], LON[::-1], dims=("x", "y"))


@odd
def float32_coordinates(folder):
    return put(folder, lat=LAT.astype("float32"), lon=LON.astype("float32"))


@odd
def integer_coordinates(folder):
    return put(folder, lat=LAT.astype("int16"), lon=LON.astype("int32"))


@odd
def coordinates_minus_360(folder):
    return put(folder, lon=LON - 360)


@odd
def packed_with_scale_and_offset(folder):
    return put(folder, encoding={"dtype": "int16", "scale_factor": 1 / 256, "add_offset": 100.0, "_FillValue": -32767})


@odd
def packed_unsigned(folder):
    return put(folder, encoding={"dtype": "uint16", "scale_factor": 1 / 256})


@odd
def metres(folder):
    return put(folder, FIELD / 1000, attrs={"units": "m"})


@odd
def kilograms(folder):
    return put(folder, attrs={"units": "kg m-2"})


@odd
def a_flux_of_a_day(folder):
    return put(folder, FIELD / 86400, attrs={"units": "kg m-2 s-1"})


@odd
def several_variables_one_of_them_rain(folder):
    path = put(folder)
    with netCDF4.Dataset(path, "a") as file:
        file.createVariable("t2m", "f4", ("lat", "lon"))[...] = 280
        file.createVariable("mask", "i1", ("lat", "lon"))[...] = 1
    return path


@odd
def one_unnamed_field(folder):
    return write_nc(folder / DAY, FIELD, LAT, LON, name="total_rain", attrs={"units": "mm"})


@odd
def time_and_member_of_size_one(folder):
    field = xr.DataArray(FIELD, {"lat": LAT, "lon": LON}, ("lat", "lon"), "tp", {"units": "mm"})
    field.expand_dims(number=[4], time=np.array(["2023-08-01"], "M8[ns]")).to_netcdf(folder / "any_name.nc")
    return folder / "any_name.nc"


@odd
def unlimited_time(folder):
    field = xr.DataArray(FIELD, {"lat": LAT, "lon": LON}, ("lat", "lon"), "tp", {"units": "mm"})
    field.expand_dims(time=np.array(["2023-08-01"], "M8[ns]")).to_netcdf(folder / DAY, unlimited_dims=["time"])
    return folder / DAY


def timed(folder, days, since, calendar):
    """A file whose time is so many days since a date, in another calendar."""
    clock = ("f8", (), days, {"units": f"days since {since}", "calendar": calendar})
    tp = ("f8", ("lat", "lon"), FIELD, {"units": "mm", "coordinates": "time"})
    return plain(folder, tp, more={"time": clock}, name="x.nc")


@odd
def noleap_calendar(folder):
    return timed(folder, 0, "2023-08-01", "noleap")


@odd
def julian_calendar(folder):
    return timed(folder, 0, "2023-07-19", "julian")


@odd
def calendar_of_360_days(folder):
    return timed(folder, 210, "2023-01-01", "360_day")


@odd
def capital_suffix(folder):
    return put(folder, name="2023_08_01.NC")


@odd
def suffix_nc4(folder):
    return put(folder, name="2023_08_01.nc4")


@odd
def new_line_in_the_name(folder):
    return put(folder, name="2023_08_01_a\nb.nc")


@odd
def bounds_beside_the_field(folder):
    edges = ("f8", ("lat", "two"), np.stack([LAT + 0.5, LAT - 0.5], 1), {})
    lat = ("f8", ("lat",), LAT, {"units": "degrees_north", "bounds": "lat_bnds"})
    return plain(folder, lat=lat, more={"lat_bnds": edges}, dims={"two": 2})


@odd
def big_endian(folder):
    return plain(folder, (">f8", ("lat", "lon"), FIELD, {"units": "mm"}))


@odd
def a_link_to_a_link(folder):
    (folder / "link.nc").symlink_to(put(folder, name="elsewhere/2023_08_01.nc"))
    (folder / DAY).symlink_to(folder / "link.nc")
    return folder / DAY


@odd
def time_that_is_a_plain_number(folder):
    clock = ("i4", (), 1, {})
    return plain(folder, ("f8", ("lat", "lon"), FIELD, {"units": "mm", "coordinates": "time"}), more={"time": clock})


@odd
def netcdf3(folder):
    put(folder, name="a.nc")
    with xr.open_dataset(folder / "a.nc") as file:
        file.to_netcdf(folder / DAY, format="NETCDF3_CLASSIC")
    (folder / "a.nc").unlink()
    return folder / DAY


@odd
def netcdf3_64bit(folder):
    put(folder, name="a.nc")
    with xr.open_dataset(folder / "a.nc") as file:
        file.to_netcdf(folder / DAY, format="NETCDF3_64BIT")
    (folder / "a.nc").unlink()
    return folder / DAY


@odd
def compressed_and_chunked(folder):
    return put(folder, encoding={"zlib": True, "chunksizes": (3, 4), "fletcher32": True})


@odd
def a_link(folder):
    real = put(folder, name="elsewhere/2023_08_01.nc")
    (folder / DAY).symlink_to(real)
    return folder / DAY


@odd
def odd_characters_in_the_name(folder):
    return put(folder, name="2023_08_01_日 雨 (copy) 'x' %20.nc")


@bad("backslash.*rename it")
def backslash_in_the_name(folder):
    put(folder, name="a.nc").rename(folder / "2023_08_01\\x.nc")
    return folder / "2023_08_01\\x.nc"


@odd
def noise_below_zero(folder):
    return put(folder, np.where(FIELD == 0, -0.05, FIELD))


@odd
def a_rain_coordinate_system_in_words(folder):
    mapping = ("i4", (), 0, {"grid_mapping_name": "latitude_longitude"})
    tp = ("f8", ("lat", "lon"), FIELD, {"units": "mm", "grid_mapping": "crs"})
    return plain(folder, tp, more={"crs": mapping})


@odd
def a_group_beside_the_field(folder):
    path = put(folder)
    with netCDF4.Dataset(path, "a") as file:
        file.createGroup("inner").createDimension("z", 3)
    return path


@odd
def bytes_after_the_end(folder):
    path = put(folder)
    path.write_bytes(path.read_bytes() + b"\0" * 100)
    return path


@odd
def units_with_blanks(folder):
    return put(folder, attrs={"units": " kg  m-2 "})


@odd
def attributes_that_say_nothing(folder):
    return put(folder, attrs={"units": "mm", "standard_name": "unknown", "long_name": "", "GRIB_cfName": "unknown"})


@odd
def the_total_beside_its_parts(folder):
    path = write_nc(
        folder / DAY, FIELD, LAT, LON, name="var1", attrs={"units": "mm", "long_name": "Total precipitation"}
    )
    with netCDF4.Dataset(path, "a") as file:
        for name, words in (
            ("var2", "Convective precipitation"),
            ("var3", "Snowfall"),
            ("var4", "2 metre temperature"),
        ):
            variable = file.createVariable(name, "f4", ("lat", "lon"))
            variable[...], variable.long_name = 3, words
    return path


@odd
def valid_range_that_holds(folder):
    return put(folder, attrs={"units": "mm", "valid_range": np.array([0.0, 500.0])})


# ---------------------------------------------------------------- not a file that can be read


@bad("cannot be read as NetCDF")
def not_netcdf(folder):
    (folder / DAY).write_text("<html>404 not found</html>")
    return folder / DAY


@bad("cannot be read as NetCDF")
def empty_file(folder):
    (folder / DAY).touch()
    return folder / DAY


@bad("cannot be read as NetCDF")
def only_the_magic_number(folder):
    (folder / DAY).write_bytes(b"\x89HDF\r\n\x1a\n")
    return folder / DAY


@bad("cannot be read as NetCDF")
def only_the_magic_number_of_netcdf3(folder):
    (folder / DAY).write_bytes(b"CDF\x01")
    return folder / DAY


@bad("cannot be read as NetCDF")
def compressed_file(folder):
    path = put(folder)
    path.write_bytes(zlib.compress(path.read_bytes()))
    return path


@bad("cannot be read as NetCDF")
def damaged_chunk(folder):
    path = put(folder, rain((13, 15), 7), encoding={"zlib": True, "chunksizes": (13, 15), "fletcher32": True})
    data = path.read_bytes()
    at = max(data.find(b"\x78" + level) for level in (b"\x5e", b"\x9c", b"\x01", b"\xda"))
    assert at > 0
    return replace(path, at + 20, b"\xff" * 40)


@bad("a folder, expected a NetCDF file")
def folder_named_nc(folder):
    (folder / DAY).mkdir()
    return folder / DAY


@bad("no such file")
def dangling_link(folder):
    (folder / DAY).symlink_to(folder / "gone.nc")
    return folder / DAY


@bad("no such file")
def link_to_itself(folder):
    (folder / DAY).symlink_to(folder / DAY)
    return folder / DAY


@bad("a folder, expected a NetCDF file")
def link_to_a_folder(folder):
    (folder / "other").mkdir()
    (folder / DAY).symlink_to(folder / "other")
    return folder / DAY


@bad("no ordinary file, expected a NetCDF file")
def pipe_named_nc(folder):
    os.mkfifo(folder / DAY)
    return folder / DAY


@bad("not UTF-8.*rename it")
def name_that_is_not_utf8(folder):
    return put(folder, name="a.nc").rename(folder / os.fsdecode(b"2023_08_01_\xe9t\xe9.nc"))


@bad("cannot be read|Permission")
def unreadable(folder):
    path = put(folder)
    path.chmod(0)
    return path


@bad("groups are not read")
def field_inside_a_group(folder):
    xr.Dataset({"tp": (("lat", "lon"), FIELD)}, {"lat": LAT, "lon": LON}).to_netcdf(folder / DAY, group="data")
    return folder / DAY


# ---------------------------------------------------------------- not one field of rain


@bad("no precipitation field.*several|no precipitation fields: found t2m.*wind|several precipitation fields: found")
def wrong_variables(folder):
    path = write_nc(folder / DAY, FIELD, LAT, LON, name="t2m")
    with netCDF4.Dataset(path, "a") as file:
        file.createVariable("wind", "f4", ("lat", "lon"))[...] = 3
    return path


@bad("several precipitation fields: found tp.*precip")
def several_candidates(folder):
    path = put(folder)
    with netCDF4.Dataset(path, "a") as file:
        file.createVariable("precip", "f4", ("lat", "lon"))[...] = 3
    return path


@bad("no precipitation fields")
def no_variable(folder):
    xr.Dataset(coords={"lat": LAT, "lon": LON}).to_netcdf(folder / DAY)
    return folder / DAY


@bad("step.*one field a file")
def three_dimensions(folder):
    field = xr.DataArray(np.stack([FIELD] * 3), dims=("step", "lat", "lon"), name="tp", attrs={"units": "mm"})
    field.assign_coords(lat=LAT, lon=LON).to_netcdf(folder / DAY)
    return folder / DAY


@bad("time.*one field a file")
def two_times(folder):
    field = xr.DataArray(np.stack([FIELD] * 2), dims=("time", "lat", "lon"), name="tp", attrs={"units": "mm"})
    field.assign_coords(lat=LAT, lon=LON, time=np.array(["2023-08-01", "2023-08-02"], "M8[ns]")).to_netcdf(folder / DAY)
    return folder / DAY


@bad("expected latitude and longitude")
def two_latitudes(folder):
    other = ("f8", ("latitude",), nodes(100, 114, 1) - 80, {})
    tp = ("f8", ("lat", "latitude"), FIELD, {"units": "mm"})
    return plain(folder, tp, more={"latitude": other}, dims={"latitude": 15})


@bad("expected numbers|cannot be read")
def compound_values(folder):
    path = put(folder)
    with netCDF4.Dataset(path, "a") as file:
        kind = file.createCompoundType(np.dtype([("a", "f4"), ("b", "f4")]), "pair")
        file.renameVariable("tp", "t2m")
        file.createVariable("tp", kind, ("lat", "lon"))
    return path


@bad("expected latitude and longitude")
def one_dimension(folder):
    return plain(folder, ("f8", ("lat",), FIELD[:, 0], {"units": "mm"}))


@bad("expected latitude and longitude")
def no_dimension(folder):
    return plain(folder, ("f8", (), 3.0, {"units": "mm"}))


@bad("no coordinate.*expected latitude and longitude")
def no_coordinates(folder):
    return write_plain(folder / DAY, {"lat": 13, "lon": 15}, {"tp": ("f8", ("lat", "lon"), FIELD, {"units": "mm"})})


@bad("expected numbers")
def text_as_rain(folder):
    return plain(folder, (str, ("lat", "lon"), np.full((13, 15), "wet", object), {}))


@bad("expected numbers|expected latitude and longitude")
def text_as_coordinate(folder):
    return plain(folder, lat=(str, ("lat",), np.array([f"{v}N" for v in LAT], object), {}))


@bad("1 node|2 x 2")
def one_row(folder):
    return put(folder, FIELD[:1], LAT[:1])


@bad("1 node|2 x 2")
def one_cell(folder):
    return put(folder, FIELD[:1, :1], LAT[:1], LON[:1])


@bad("0 node|2 x 2|missing")
def no_rows(folder):
    return put(folder, FIELD[:0], LAT[:0])


# ---------------------------------------------------------------- not one lattice in degrees


@bad("cut in two")
def across_the_date_line(folder):
    return put(folder, lon=nodes(173, 187, 1))


@bad("cut in two")
def across_the_date_line_negative(folder):
    return put(folder, lon=nodes(-187, -173, 1))


@bad("lat is not regular")
def irregular_latitudes(folder):
    return put(folder, lat=np.degrees(np.arcsin(LAT / 40)))


@bad("lon is not regular")
def a_gap_in_longitude(folder):
    return put(folder, lon=np.where(LON > 107, LON + 1, LON))


@bad("neither ascending nor descending")
def shuffled_latitudes(folder):
    return put(folder, lat=np.random.default_rng(0).permutation(LAT))


@bad("neither ascending nor descending")
def shuffled_longitudes(folder):
    return put(folder, lon=np.random.default_rng(0).permutation(LON))


@bad("twice")
def a_latitude_twice(folder):
    return put(folder, lat=np.where(LAT == 30, 31, LAT))


@bad("square cells")
def cells_not_square(folder):
    return put(folder, lon=nodes(100, 107, 0.5))


@bad("no latitudes")
def latitudes_beyond_the_pole(folder):
    return put(folder, lat=LAT + 60)


@bad("no longitudes")
def longitudes_beyond_360(folder):
    return put(folder, lon=LON + 300)


@bad("no latitudes")
def missing_latitude(folder):
    return put(folder, lat=np.where(LAT == 30, np.nan, LAT))


@bad("expected latitude and longitude")
def projected_kilometres(folder):
    return plain(
        folder,
        ("f8", ("y", "x"), FIELD, {"units": "mm"}),
        dims={"y": 13, "x": 15},
        more={
            "y": ("f8", ("y",), LAT, {"units": "km", "standard_name": "projection_y_coordinate", "axis": "Y"}),
            "x": ("f8", ("x",), LON, {"units": "km", "standard_name": "projection_x_coordinate", "axis": "X"}),
        },
    )


@bad("expected latitude and longitude")
def rotated_pole(folder):
    return plain(
        folder,
        ("f8", ("rlat", "rlon"), FIELD, {"units": "mm"}),
        dims={"rlat": 13, "rlon": 15},
        more={
            "rlat": ("f8", ("rlat",), LAT, {"units": "degrees", "standard_name": "grid_latitude", "axis": "Y"}),
            "rlon": ("f8", ("rlon",), LON, {"units": "degrees", "standard_name": "grid_longitude", "axis": "X"}),
        },
    )


@bad("mapping rotated_latitude_longitude")
def rotated_pole_said_by_the_mapping_alone(folder):
    mapping = ("i4", (), 0, {"grid_mapping_name": "rotated_latitude_longitude"})
    return plain(folder, ("f8", ("lat", "lon"), FIELD, {"units": "mm", "grid_mapping": "crs"}), more={"crs": mapping})


@bad("expected latitude and longitude")
def radians(folder):
    return plain(folder, lat=("f8", ("lat",), np.radians(LAT), {"units": "radians"}))


@bad("expected latitude and longitude")
def axes_named_the_wrong_way_round(folder):
    return plain(folder, lat=("f8", ("lat",), LAT, {"units": "degrees_east"}))


@bad("expected latitude and longitude")
def curvilinear(folder):
    two = ("f8", ("nj", "ni"), np.broadcast_to(LAT[:, None], (13, 15)), {"units": "degrees_north"})
    return write_plain(
        folder / DAY,
        {"nj": 13, "ni": 15},
        {
            "lat2": two,
            "lon2": ("f8", ("nj", "ni"), np.broadcast_to(LON, (13, 15)), {"units": "degrees_east"}),
            "tp": ("f8", ("nj", "ni"), FIELD, {"units": "mm", "coordinates": "lat2 lon2"}),
        },
    )


# ---------------------------------------------------------------- not an amount of rain


@bad("row 5 from the north, column 6 from the west holds inf")
def infinite(folder):
    return put(folder, cell(np.inf))


@bad("row 5 from the north, column 6 from the west holds -5")
def negative(folder):
    return put(folder, cell(-5))


@bad("row 5 from the north, column 6 from the west holds 1e\\+20")
def undeclared_fill_value(folder):
    return put(folder, cell(1e20))


@bad("holds -999")
def undeclared_minus_999(folder):
    return put(folder, cell(-999))


@bad("holds 9.96921e\\+36")
def cells_that_were_never_written(folder):
    path = write_plain(
        folder / DAY,
        {"lat": 13, "lon": 15},
        {"lat": ("f8", ("lat",), LAT, {}), "lon": ("f8", ("lon",), LON, {}), "tp": ("f4", ("lat", "lon"), FIELD, {})},
    )
    with netCDF4.Dataset(path, "a") as file:
        file.renameVariable("tp", "old")
        tp = file.createVariable("tp", "f4", ("lat", "lon"))
        tp.units = "mm"
        tp[:6] = FIELD[:6]
    return path


@bad("every value is missing")
def scale_factor_that_is_no_number(folder):
    return put(folder, attrs={"units": "mm", "scale_factor": np.nan})


@bad("cannot be read|expected numbers")
def scale_factor_that_is_text(folder):
    return put(folder, attrs={"units": "mm", "scale_factor": "ten"})


@bad("holds 2001 mm.*--units")
def more_than_ever_fell(folder):
    return put(folder, cell(2001))


@bad("holds .* m .*--units")
def millimetres_labelled_metres(folder):
    return put(folder, attrs={"units": "m"})


@bad("every value is missing")
def all_missing(folder):
    return put(folder, FIELD * np.nan)


@bad("not understood.*--units")
def unknown_units(folder):
    return put(folder, attrs={"units": "inch"})


@bad("not understood")
def units_of_temperature(folder):
    return put(folder, attrs={"units": "K"})


@bad("not understood")
def units_that_are_a_number(folder):
    return put(folder, attrs={"units": 1})


@bad("not understood")
def units_of_another_period(folder):
    return put(folder, attrs={"units": "mm/month"})


@bad("rate.*period")
def a_rate_at_a_time_of_day(folder):
    return put(folder, FIELD / 86400, name="2023_08_01_0000.nc", attrs={"units": "mm s-1"})


@bad("rate.*time_bnds gives no period")
def a_rate_over_no_time(folder):
    more = {
        "time": ("f8", ("time",), [1], {"units": "hours since 2023-08-01"}),
        "time_bnds": ("f8", ("time", "two"), [[1, 1]], {}),
    }
    return plain(folder, ("f8", ("lat", "lon"), FIELD, {"units": "mm h-1"}), more=more, dims={"time": 1, "two": 2})


@bad("rate.*time_bnds gives no period")
def a_rate_with_bounds_and_no_time(folder):
    more = {"time_bnds": ("f8", ("two",), [0, 6], {})}
    return plain(folder, ("f8", ("lat", "lon"), FIELD, {"units": "mm h-1"}), more=more, dims={"two": 2})


@bad("is no date")
def a_rate_over_months(folder):
    more = {
        "time": ("f8", (), 1, {"units": "months since 2023-08-01"}),
        "time_bnds": ("f8", ("two",), [0, 1], {}),
    }
    return plain(folder, ("f8", ("lat", "lon"), FIELD, {"units": "mm h-1"}), more=more, dims={"two": 2})


@bad("precipitation_flux is a rate.*--units")
def standard_name_against_units(folder):
    return put(folder, attrs={"units": "mm", "standard_name": "precipitation_flux"})


@bad("valid")
def values_outside_their_valid_range(folder):
    return put(folder, cell(999), attrs={"units": "mm", "valid_range": np.array([0.0, 500.0])})


@bad("valid")
def values_above_valid_max(folder):
    return put(folder, cell(999), attrs={"units": "mm", "valid_max": 500.0})


def quantity(name, long_name, units, **attrs):
    """A lone field that is no total of rain, in units that rain may have."""
    attrs |= {"units": units, "long_name": long_name}
    return lambda folder: write_nc(folder / DAY, FIELD / 1000, LAT, LON, name=name, attrs=attrs)


for short, long_name, units in (
    ("cp", "Convective precipitation", "m"),
    ("lsp", "Large-scale precipitation", "m"),
    ("sf", "Snowfall", "m of water equivalent"),
    ("e", "Evaporation", "m of water equivalent"),
    ("sd", "Snow depth", "m of water equivalent"),
    ("tcwv", "Total column vertically-integrated water vapour", "kg m**-2"),
    ("z", "Geopotential", "m**2 s**-2"),
    ("vis", "Visibility", "m"),
    ("field", "", "mm"),
    ("mxtpr", "Maximum total precipitation rate since previous post-processing", "kg m**-2 s**-1"),
    ("randomError", "Random error of precipitation", "mm"),
):
    REFUSED[f"lone_{short}"] = (
        quantity(short, long_name, units),
        "no precipitation fields|is no rain by its long_name",
    )
for kind, words in {
    "snowfall_amount": "no rain by its standard_name snowfall_amount",
    "convective_precipitation_amount": "no rain by its standard_name convective_precipitation_amount",
    "precipitation_amount standard_error": "no rain by its standard_name",
    "precipitation_amount number_of_observations": "no rain by its standard_name",
    "air_temperature": "no rain by its standard_name air_temperature",
}.items():
    REFUSED[f"tp_{kind}"] = (quantity("tp", "", "mm", standard_name=kind), words)
for methods in (
    "time: maximum",
    "area: mean time: minimum",
    "time: sum within days time: mean over years",
    "time: mean",
):
    words = "is a mean and units mm are an amount" if methods == "time: mean" else "no rain by its cell_methods"
    REFUSED[f"cell_methods {methods}"] = (quantity("tp", "", "mm", cell_methods=methods), words)


@bad("a time with climatology bounds")
def a_climatology(folder):
    clock = ("f8", (), 0, {"units": "days since 2023-08-01", "climatology": "climatology_bnds"})
    return plain(folder, ("f8", ("lat", "lon"), FIELD, {"units": "mm", "coordinates": "time"}), more={"time": clock})


@bad("is no date|gives no period")
def an_amount_over_months(folder):
    more = {"time": ("f8", (), 0, {"units": "months since 2023-08-01"}), "time_bnds": ("f8", ("two",), [0, 1], {})}
    return plain(
        folder, ("f8", ("lat", "lon"), FIELD, {"units": "mm", "coordinates": "time"}), more=more, dims={"two": 2}
    )


for unit, last in (("d", 31), ("min", 44640), ("hr", 744), ("h", 744), ("secs", 2678400)):

    def month(folder, unit=unit, last=last):
        more = {
            "time": ("f8", (), 0, {"units": f"{unit} since 2023-08-01"}),
            "time_bnds": ("f8", ("two",), [0, last], {}),
        }
        tp = ("f8", ("lat", "lon"), FIELD, {"units": "mm", "coordinates": "time"})
        return plain(folder, tp, more=more, dims={"two": 2})

    REFUSED[f"bounds_of_a_month_in_{unit}"] = (month, "time_bnds span 31 days; expected a file a day")


@bad("GRIB_stepRange span 3 days; expected a file a day")
def three_days_since_the_start(folder):
    return put(folder, attrs={"units": "mm", "GRIB_stepRange": "0-72"})


@bad("--units")
def lone_without_units(folder):
    return put(folder, FIELD / 1000, attrs={})


@bad("--units")
def dry_without_units(folder):
    return put(folder, FIELD * 0, attrs={})


@bad("holds|values")
def huge_without_units(folder):
    return put(folder, cell(1e300), attrs={})


# ---------------------------------------------------------------- not a day


@bad("name is not a date")
def name_without_a_date(folder):
    return put(folder, name="rain.nc")


@bad("name is not a date")
def name_of_a_day_that_does_not_exist(folder):
    return put(folder, name="2023_02_29.nc")


@bad("year 1|year 0001|name is not a date")
def name_of_the_year_one(folder):
    return put(folder, name="0001_08_01.nc")


@bad("no day of the Gregorian calendar")
def thirtieth_of_february(folder):
    clock = ("f8", (), 59, {"units": "days since 2023-01-01", "calendar": "360_day"})
    return plain(folder, ("f8", ("lat", "lon"), FIELD, {"units": "mm", "coordinates": "time"}), more={"time": clock})


@bad("no date")
def unknown_calendar(folder):
    clock = ("f8", (), 3, {"units": "days since 2023-01-01", "calendar": "mayan"})
    return plain(folder, ("f8", ("lat", "lon"), FIELD, {"units": "mm", "coordinates": "time"}), more={"time": clock})


@bad("no date")
def time_without_a_value(folder):
    clock = ("f8", (), np.nan, {"units": "days since 2023-01-01"})
    return plain(folder, ("f8", ("lat", "lon"), FIELD, {"units": "mm", "coordinates": "time"}), more={"time": clock})


# ---------------------------------------------------------------- laws


@pytest.mark.parametrize("units", ["mm", "m"])
def test_another_quantity_stays_refused_whatever_units_are_given(tmp_path, units):
    for name, attrs in {
        "t2m": {"units": "K", "long_name": "2 metre temperature", "standard_name": "unknown"},
        "tp": {"units": "K"},
        "precip": {"units": "mm", "standard_name": "snowfall_amount"},
        "r": {"units": "%", "long_name": "Relative humidity"},
    }.items():
        path = write_nc(tmp_path / DAY, FIELD / 1000, LAT, LON, name=name, attrs=attrs)
        with pytest.raises(
            DataError, match="no precipitation fields|not understood as rain|no rain by its standard_name"
        ):
            read_field(path, units)


def test_the_corpus_is_large():
    assert len(READ) + len(REFUSED) >= 60


@pytest.mark.parametrize("kind", READ)
def test_odd_files_are_read_right(tmp_path, kind):
    path = READ[kind](tmp_path)
    tp = read_field(path)
    np.testing.assert_allclose(tp, FIELD, rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(tp.lat, LAT)
    np.testing.assert_array_equal(tp.lon, LON)
    assert tp.time.values == np.datetime64("2023-08-01")
    records, faults = inspect_files([str(path)])
    assert not faults and records[0]["time"] == "2023-08-01T00:00" and records[0]["step"] == 1


@pytest.fixture
def folder(request, tmp_path):
    """An empty folder; for a file that cannot be read one of somebody who, unlike root, does not read everything."""
    if os.geteuid() or "unreadable" not in request.node.name:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory() as home:
        os.chmod(home, 0o777)
        os.seteuid(65534)
        yield Path(home)
        os.seteuid(0)


@pytest.mark.parametrize("kind", REFUSED)
def test_bad_files_are_refused_in_words(folder, kind, monkeypatch, capsys):
    maker, words = REFUSED[kind]
    (folder / "in").mkdir()
    path = maker(folder / "in")
    with pytest.raises(DataError, match=words) as error:
        read_field(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    # stage 1 names it too, shows no traceback, writes nothing; --skip-bad leaves it out and says so
    monkeypatch.chdir(folder)
    put(folder / "in", name="2023_08_20.nc")
    with pytest.raises(SystemExit) as end:
        monkeypatch.setattr(sys, "argv", ["1create_data_lists.py", "--eval-folders", "in", "--output-folder", "out"])
        utils.run_stage(stage(1)["main"])
    assert str(end.value).startswith("error: ") and path.name in str(end.value) or "--units" in str(end.value)
    assert not (folder / "out").exists()
    if "without_units" not in kind:
        run(1, "--eval-folders", "in", "--output-folder", "out", "--skip-bad")
        assert json.loads((folder / "out/PreEval.json").read_text()) == ["in/2023_08_20.nc"]
        told = capsys.readouterr().out
        assert f"left out: in/{path.name}".encode("utf-8", "backslashreplace").decode() in told


@pytest.mark.parametrize("layout", ["NETCDF4", "NETCDF3_CLASSIC", "NETCDF3_64BIT", "NETCDF4_CLASSIC"])
def test_truncated_anywhere(tmp_path, layout):
    """150 cuts of each layout: refused, or (where only padding is gone) read right."""
    put(tmp_path, name="a.nc")
    whole = tmp_path / "b.nc"
    with xr.open_dataset(tmp_path / "a.nc") as file:
        file.to_netcdf(whole, format=layout)
    data, cut = whole.read_bytes(), tmp_path / DAY
    for size in np.random.default_rng(0).integers(0, len(data), 150):
        cut.write_bytes(data[:size])
        try:
            tp = read_field(cut)
        except DataError as error:
            assert str(cut) in str(error)
            continue
        np.testing.assert_array_equal(tp, FIELD)


@pytest.mark.parametrize("layout", ["NETCDF4", "NETCDF3_CLASSIC"])
def test_damaged_bytes_raise_nothing_but_data_errors(tmp_path, layout):
    put(tmp_path, name="a.nc")
    whole = tmp_path / "b.nc"
    with xr.open_dataset(tmp_path / "a.nc") as file:
        file.to_netcdf(whole, format=layout)
    # The header of this NetCDF-3 file is spared: some damage there keeps the NetCDF library itself busy for a minute.
    spared = 0 if layout == "NETCDF4" else 64
    data, rng, path = whole.read_bytes(), np.random.default_rng(1), tmp_path / DAY
    for _ in range(150):
        hurt = bytearray(data)
        for at in rng.integers(spared, len(data), 4):
            hurt[at] = rng.integers(256)
        path.write_bytes(hurt)
        try:
            tp = read_field(path)
        except DataError as error:
            assert str(path) in str(error)
            continue
        assert tp.dims == ("lat", "lon") and (np.isnan(tp) | ((tp >= 0) & (tp <= 2000))).all()


@pytest.mark.parametrize("how", ["_FillValue", "missing_value", "both", "nan", "packed"])
def test_declared_missing_cells_are_missing_and_no_others(tmp_path, how):
    holes = np.random.default_rng(2).random(FIELD.shape) < 0.3
    values = np.where(holes, np.nan if how == "nan" else -999.0, FIELD)
    words = {name: -999.0 for name in ("_FillValue", "missing_value") if how in (name, "both")}
    if how == "packed":
        path = put(
            tmp_path,
            np.where(holes, np.nan, FIELD),
            encoding={"dtype": "int16", "scale_factor": 1 / 256, "_FillValue": -32768},
        )
    else:
        path = plain(tmp_path, ("f8", ("lat", "lon"), values, {"units": "mm", **words}))
    np.testing.assert_allclose(read_field(path), np.where(holes, np.nan, FIELD), rtol=1e-6)


def bare(folder, maxima):
    """Files without units whose wettest cells are these."""
    return [
        str(put(folder, rain((13, 15), k) / 40 * top, name=f"2023_08_{k:02d}.nc", attrs={}))
        for k, top in enumerate(maxima, 1)
    ]


@pytest.mark.parametrize("maxima", [[40, 80, 0.06], [0.04, 60, 90, 30], [0.02, 0.05, 1.7], [0.002, 50, 40]])
def test_metres_beside_millimetres_without_units_are_refused(tmp_path, monkeypatch, maxima):
    paths = bare(tmp_path, maxima)
    records, (fault,) = inspect_files(paths)
    assert not records and "--units" in fault and "ncatted" in fault and "jump from" in fault
    lists = tmp_path / "lists"
    utils.write_json(lists / "PreEval.json", paths)  # made by hand: no PreInfo.json
    with pytest.raises(DataError, match="jump from"):
        open_list(lists, "eval")
    records, faults = inspect_files(paths, "mm")
    assert not faults and {r["units"] for r in records} == {"mm"}


@pytest.mark.parametrize(
    ("maxima", "units"),
    [([0, 0.0004, 0.02, 0.3, 4, 40, 90], "mm"), ([0.03, 0.2, 0.004, 0.06], "m"), ([30, 0, 60], "mm")],
)
def test_dry_days_are_no_other_unit(tmp_path, maxima, units):
    records, faults = inspect_files(bare(tmp_path, maxima))
    assert not faults and {r["units"] for r in records} == {units}


def test_what_stage_1_does_not_look_at_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("2023_08_01.nc", "2023_08_02.NC", "2023_08_03.nc4"):
        put(tmp_path / "Data/DataEval", name=name)
    for name in ("notes.txt", "2023_08_04.nc.gz", ".2023_08_05.nc"):
        (tmp_path / "Data/DataEval" / name).write_text("x")
    put(tmp_path / "Data/DataEval/older", name="2023_08_06.nc")
    (tmp_path / "Data/DataObj").mkdir()
    (tmp_path / "Data/DataObj/2023.grib").touch()
    run(1)
    told = capsys.readouterr().out
    assert len(json.loads((tmp_path / "Data/JsonPath/PreEval.json").read_text())) == 3
    assert "left out: Data/DataEval: 3 that are not named .nc, .nc4, .cdf: 2023_08_04.nc.gz, notes.txt, older" in told
    assert (
        "Data/DataObj: no .nc file (2023.grib): GRIB becomes NetCDF by cdo -f nc4 copy IN.grib OUT.nc; no obj" in told
    )


@pytest.mark.parametrize("name", ["train", "eval"])
def test_truth_needs_the_days_it_belongs_to(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "truth")
    with pytest.raises(DataError, match=f"--{name}-hr-folders needs --{name}-folders"):
        run(1, f"--{name}-hr-folders", "truth", "--obj-folders", "truth")
    assert not (tmp_path / "Data").exists()


def test_folder_of_metres_and_a_mislabelled_file(tmp_path):
    """Units by attribute are each file's own; the values decide only for those that have none."""
    paths = [put(tmp_path, rain((13, 15), k) / 1000, name=f"2023_08_0{k}.nc", attrs={}) for k in (1, 2, 3)]
    paths.append(put(tmp_path, name="2023_08_04.nc"))
    records, faults = inspect_files([str(p) for p in paths])
    assert not faults and [r["units"] for r in records] == ["m", "m", "m", "mm"]


layouts = st.fixed_dictionaries(
    {
        "shape": st.tuples(st.integers(2, 12), st.integers(2, 12)),
        "step": st.sampled_from([0.01, 0.1, 0.25, 0.4, 0.5, 1.0, 2.5]),
        "south": st.integers(-400, 200).map(lambda k: k / 10),
        "west": st.integers(-1700, 1400).map(lambda k: k / 10),
        "dims": st.sampled_from([("lat", "lon"), ("latitude", "longitude"), ("y", "x"), ("LAT", "LON")]),
        "swap": st.booleans(),
        "south_first": st.booleans(),
        "east_first": st.booleans(),
        "turn": st.sampled_from([0, 360, "negative"]),
        "coordinates": st.sampled_from(["float64", "float32"]),
        "units": st.sampled_from([("mm", 1), ("m", 1000), ("cm", 10), ("kg m-2", 1), ("mm/h", 24)]),
        "storage": st.sampled_from(["f8", "f4", "packed"]),
        "missing": st.booleans(),
        "seed": st.integers(0, 99),
    }
)


@settings(
    max_examples=int(os.environ.get("FILES", 120)),
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(x=layouts)
def test_reading_what_was_written_gives_it_back_in_canonical_form(tmp_path, x):
    h, w = x["shape"]
    values = rain((h, w), x["seed"])
    if x["missing"]:
        values[np.random.default_rng(x["seed"]).random((h, w)) < 0.2] = np.nan
        values[0, 0] = 1.0
    lat = np.round(x["south"] + np.arange(h)[::-1] * x["step"], 6)
    lon = np.round(x["west"] + np.arange(w) * x["step"], 6)
    units, factor = x["units"]
    rows, cols = slice(None, None, -1 if x["south_first"] else 1), slice(None, None, -1 if x["east_first"] else 1)
    turn = (lon < 0) * 360 if x["turn"] == 360 else -360 * (lon > 0) if x["turn"] == "negative" else 0
    if len(np.unique(turn)) > 1:
        turn = 0  # a file that crosses its own seam is another case
    encoding = {
        "f8": {},
        "f4": {"dtype": "float32"},
        "packed": {"dtype": "int32", "scale_factor": 1e-6, "_FillValue": -1},
    }
    path = write_nc(
        tmp_path / "2023_08_11_18_08_12_x.nc",
        (values / factor)[rows, cols],
        lat[rows].astype(x["coordinates"]),
        (lon + turn)[cols].astype(x["coordinates"]),
        dims=x["dims"][::-1] if x["swap"] else x["dims"],
        attrs={"units": units},
        encoding=encoding[x["storage"]],
    )
    tp = read_field(path)
    tolerance = factor * 1e-6 if x["storage"] == "packed" else 1e-9
    np.testing.assert_allclose(tp, values, rtol=1e-6, atol=tolerance)
    np.testing.assert_allclose(tp.lat, lat, rtol=0, atol=2e-5 if x["coordinates"] == "float32" else 1e-6)
    np.testing.assert_allclose(tp.lon, lon, rtol=0, atol=4e-5 if x["coordinates"] == "float32" else 1e-6)
    assert tp.time.values == np.datetime64("2023-08-12")
    assert tp.forecast_reference_time.values == np.datetime64("2023-08-11T18")
