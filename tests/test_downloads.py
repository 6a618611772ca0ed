"""Laws of downloads.py and of files as data centres write them: values against numbers computed with numpy alone."""

import netCDF4
import numpy as np
import pytest
from conftest import nodes, rain

from reader import inspect_files, read_field

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
    assert record["missing"] == 0 and record["extent"] == "105.875..110.125 E, 25.875..30.125 N"
