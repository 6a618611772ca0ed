"""Generates the archive of `1create_data_lists.py --make-sample`: random rain in files like the user's.

Writes  {folder}/DataTrain, DataEval, DataObj, HrTrain and HrEval, a NetCDF file a day (or forecast), and complete.json.

    python 1create_data_lists.py --make-sample        # runs make_sample("Data/Sample") of this file

Stage 1 runs this file by its path; datasets.py and utils.py are then found beside stage 1.
"""

import datetime as dt
import json
from pathlib import Path

import numpy as np
import xarray as xr
from scipy.ndimage import zoom

from datasets import block_mean
from utils import DataError, log, whole_file, writing

__all__ = ["make_sample"]

SAMPLE_VERSION = 3
SAMPLE_FOLDERS = ("DataTrain", "DataEval", "DataObj", "HrTrain", "HrEval")
SAMPLE_ATTRIBUTES = {
    "title": "Generated sample of daily rain, not observations",
    "source": "Synthetic rain made by 1create_data_lists.py --make-sample; not observations",
    "archive": "generated sample",
}
# The rain is drawn on 0.1 degree cells with edges 69.5-140.5E, 55.5-14.5N, which hold whole cells of 1 degree and of
# 0.4 degree, and on 0.01 degree cells in the box 105.5-110.5E, 30.5-25.5N.
SHAPE, BOX = (410, 710), (slice(250, 300), slice(360, 410))
CUT = 2.5  # cycles per degree: the coarse field holds the longer waves, the box adds the shorter ones


def make_sample(folder, seed=0, train_days=24, eval_days=8, forecasts=3, hr_train_days=16, hr_eval_days=6):
    """Write a small archive of generated rain, in files like the user's.

    DataTrain, DataEval: days at 1 degree, tp(lon, lat), mm, no attributes but the label. DataObj: forecasts at 0.4
    degree, tp(lat, lon), metres, of the evaluation days from 12 August on: the day's own rain, displaced and perturbed.
    HrTrain (the first days), HrEval (the last days): truth at 0.01 degree over 105.5-110.5E, 25.5-30.5N, whose block
    means are exactly the 25 cells of the same day.

    Args: folder: archive of its own, made if absent; an archive of the same settings is kept.
    Returns: {name: Path} of the five folders.
    Raises: DataError: the folder holds NetCDF files that are not generated, or there are no such days.
    """
    settings = {
        "version": SAMPLE_VERSION,
        "seed": seed,
        "train_days": train_days,
        "eval_days": eval_days,
        "forecasts": forecasts,
        "hr_train_days": hr_train_days,
        "hr_eval_days": hr_eval_days,
    }
    if not (
        2 <= train_days <= 31
        and 1 <= eval_days <= 24
        and forecasts <= max(0, eval_days - 4)
        and hr_train_days <= train_days
        and hr_eval_days <= eval_days
    ):
        raise DataError(
            "make_sample: no archive has these days (train <= 31, eval <= 24, forecasts <= eval - 4, truth <= days): "
            f"{settings}"
        )
    folder = Path(folder)
    folders = {name: folder / name for name in SAMPLE_FOLDERS}
    marker = folder / "complete.json"
    if marker.exists() and json.loads(marker.read_text()) == settings:
        log(f"sample archive: {folder} is there already (seed {seed})")
        return folders
    _clear_sample(folders, marker)
    train = [dt.date(1950, 8, 1) + dt.timedelta(i) for i in range(train_days)]
    evaluate = [dt.date(2023, 8, 8) + dt.timedelta(i) for i in range(eval_days)]
    _write_days("Train", train, train[:hr_train_days], folders, seed, forecasts)
    _write_days("Eval", evaluate, evaluate[eval_days - hr_eval_days :], folders, seed, forecasts)
    marker.write_text(json.dumps(settings))
    log(
        f"sample archive: wrote {train_days} + {eval_days} days, {forecasts} forecasts, "
        f"{hr_train_days} + {hr_eval_days} truths to {folder} (seed {seed})"
    )
    return folders


def _write_days(name, days, with_truth, folders, seed, forecasts):
    """Write consecutive days: each at 1 degree, some with truth, those from 12 August 2023 on also as a forecast."""
    rng = np.random.default_rng([seed, days[0].year])
    for day, coarse in zip(days, _weather(rng), strict=False):  # the weather never ends
        rain = _rain(coarse)
        if day in with_truth:
            truth = _truth(coarse, rng)
            rain[BOX] = block_mean(truth.astype(np.float64), 10)
            _write(folders[f"Hr{name}"] / f"{day:%Y_%m_%d}.nc", _truth_file(truth, day))
        _write(folders[f"Data{name}"] / f"{day:%Y_%m_%d}.nc", _day_file(rain, day))
        lead = (day - dt.date(2023, 8, 12)).days
        if 0 <= lead < forecasts:
            issued = dt.datetime(2023, 8, 11 + lead, (18, 6, 12)[lead % 3])
            _write(folders["DataObj"] / f"{issued:%Y_%m_%d_%H}_{day:%m_%d}_china.nc", _forecast_file(rain, rng))


def _clear_sample(folders, marker):
    """Remove an older sample. Raises DataError, and removes nothing, where a file is not generated."""
    old = [path for each in folders.values() for path in each.glob("*.nc*")]
    for path in old:
        if not path.name.endswith(".tmp"):
            with xr.open_dataset(path, decode_times=False) as file:
                if file.attrs.get("archive") != SAMPLE_ATTRIBUTES["archive"]:
                    raise DataError(
                        f"{path} was not made by --make-sample: move it, or name another folder for the sample"
                    )
    marker.unlink(missing_ok=True)
    for path in old:
        path.unlink()
    for each in folders.values():
        each.mkdir(parents=True, exist_ok=True)


def _waves(shape, step):
    """Wavenumbers of the FFT of a field, and the factors that give its white noise the spectrum of weather.

    The spectrum is flat for waves longer than 12 degrees, then a power law of slope -3.

    Args: shape: of the field. step: of its cells, degrees.
    Returns: (wavenumbers north, east, their length, all in cycles per degree, factors for noise of unit variance).
    """
    ky, kx = np.fft.fftfreq(shape[0], step)[:, None], np.fft.rfftfreq(shape[1], step)
    k = np.hypot(ky, kx)
    return ky, kx, k, 4.8 * (1 + (12 * k) ** 2) ** -0.75 / step


def _weather(rng):
    """Yield, day after day, a Gaussian field (410, 710) from which rain is made.

    It is the sum of waves that drift and are slowly replaced by new ones, of moving storm systems, and of a climate
    that is wetter in the south-east.
    """
    ky, kx, k, amplitude = _waves(SHAPE, 0.1)
    amplitude, memory = amplitude * (k < CUT), 0.7 * np.exp(-k / 0.15)  # small waves do not last until the next day
    north, east = np.linspace(55.45, 14.55, SHAPE[0])[:, None], np.linspace(69.55, 140.45, SHAPE[1])
    climate = -0.9 + 1.3 / (1 + np.exp(-((east - 101) + (36 - north)) / 9))
    drift = np.exp(-2j * np.pi * (kx * 2.0 - ky * 0.5))  # degrees a day, eastward and northward
    systems, waves = [], np.fft.rfft2(rng.standard_normal(SHAPE))
    while True:
        while len(systems) < 9:  # latitude, longitude, movement, length and width (degrees), tilt, strength, days left
            systems.append(
                [
                    rng.uniform(18, 50),
                    rng.uniform(74, 136),
                    rng.normal(0.4, 1),
                    rng.normal(2, 1.5),
                    rng.uniform(3, 9),
                    rng.uniform(1.2, 2.5),
                    rng.uniform(-0.2, 1.0),
                    rng.uniform(0.6, 1.7),
                    rng.integers(2, 6),
                ]
            )
        field = climate + np.fft.irfft2(waves * amplitude, SHAPE)
        for lat, lon, _, _, length, width, tilt, strength, _ in systems:
            along = (east - lon) * np.cos(tilt) + (north - lat) * np.sin(tilt)
            across = (north - lat) * np.cos(tilt) - (east - lon) * np.sin(tilt)
            field = field + strength * np.exp(-((along / length) ** 2) - (across / width) ** 2)
        yield field
        waves = waves * memory * drift + np.sqrt(1 - memory**2) * np.fft.rfft2(rng.standard_normal(SHAPE))
        systems = [[s[0] + s[2], s[1] + s[3], *s[2:8], s[8] - 1] for s in systems if s[8] > 1]


def _rain(field):
    """Convert a Gaussian field to rain, mm: 0 below a threshold, a power of the excess above it.

    (A root of real rain is nearly normally distributed.) Values are multiples of 1/256 mm, so that sums are exact.
    """
    return np.round(6.5 * np.maximum(field - 0.1, 0) ** 2.5 * 256) / 256


def _truth(coarse, rng):
    """Rain of the box at 0.01 degree, (500, 500), float32, mm: the coarse field with shorter waves added."""
    around = tuple(slice(part.start - 5, part.stop + 5) for part in BOX)
    smooth = zoom(coarse[around], 10, order=3, mode="nearest", grid_mode=True)
    _, _, k, amplitude = _waves(smooth.shape, 0.01)
    detail = np.fft.irfft2(np.fft.rfft2(rng.standard_normal(smooth.shape)) * amplitude * (k >= CUT), smooth.shape)
    return _rain(smooth + detail)[50:-50, 50:-50].astype(np.float32)


def _day_file(rain, day):
    """One analysed day as the user's: tp(lon, lat) on whole degrees, scalars `time` (day of the month) and `year`."""
    return xr.Dataset(
        {"tp": (("lon", "lat"), block_mean(rain, 10).T)},
        attrs=SAMPLE_ATTRIBUTES,
        coords={
            "lon": np.arange(70, 141, dtype=np.int32),
            "lat": np.arange(55, 14, -1, dtype=np.int32),
            "time": np.int32(day.day),
            "year": np.int32(day.year),
        },
    )


def _forecast_file(rain, rng):
    """A forecast as the user's: tp(lat, lon) in metres at 0.4 degree, made of the day's rain.

    The rain is displaced and perturbed, and dry cells hold packing noise.
    """
    _, _, k, amplitude = _waves(SHAPE, 0.1)
    error = np.fft.irfft2(np.fft.rfft2(rng.standard_normal(SHAPE)) * amplitude * (k < 0.5), SHAPE)
    moved = np.roll(rain, rng.integers(-4, 5, 2), (0, 1)) * np.exp(0.35 * error - 0.05)
    metres = block_mean(moved[1:-5, 3:-3], 4) / 1000
    metres[metres == 0] = rng.choice([0, -(2.0**-18)], (metres == 0).sum(), p=[0.9, 0.1])
    return xr.Dataset(
        {"tp": (("lat", "lon"), metres.astype(np.float32))},
        attrs=SAMPLE_ATTRIBUTES,
        coords={
            "lon": ("lon", np.arange(700, 1401, 4) / 10, _axis("longitude", "east", "X")),
            "lat": ("lat", np.arange(552, 151, -4) / 10, _axis("latitude", "north", "Y")),
        },
    )


def _truth_file(truth, day):
    """One day of truth at 0.01 degree as a CF file, mm."""
    file = xr.Dataset(
        {
            "tp": (
                ("lat", "lon"),
                truth,
                {
                    "units": "mm",
                    "long_name": "total precipitation of the day",
                    "standard_name": "lwe_thickness_of_precipitation_amount",
                },
            )
        },
        attrs=SAMPLE_ATTRIBUTES | {"Conventions": "CF-1.11"},
        coords={
            "lon": ("lon", np.arange(105505, 110500, 10) / 1000, _axis("longitude", "east", "X")),
            "lat": ("lat", np.arange(30495, 25500, -10) / 1000, _axis("latitude", "north", "Y")),
            "time": np.datetime64(day, "ns"),
        },
    )
    file["tp"].encoding.update(zlib=True, complevel=4, shuffle=True)
    file["time"].encoding.update(units="days since 1900-01-01", dtype="int32")
    return file


def _axis(name, direction, axis):
    return {"standard_name": name, "long_name": name, "units": f"degrees_{direction}", "axis": axis}


def _write(path, file):
    with whole_file(path) as part, writing(path):
        file.to_netcdf(part, engine="netcdf4")
