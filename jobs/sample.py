"""Cuts the sample in Data/Sample out of the archive of daily rain that the models in Data/SavedModels come from.

Reads   DAILY/train and DAILY/eval: 24-hour totals of NOAA MRMS at 0.01 degree, one NetCDF file each
Writes  Data/Sample/DataTrain and DataEval (crops, values as they were), DataObj (block means of DataEval at 0.4 degree)

    python jobs/sample.py ../shared/data/daily

The repository holds what it writes; Data/Sample/README.md says whose data they are.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import xarray as xr

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from datasets import block_mean  # noqa: E402

CROPS = {  # folder: {file of the archive: west, east, south, north, degrees}
    "DataTrain": {
        "train/2016_09_20_0000.nc": (-117, -111, 32, 38),
        "train/2016_09_21_0000.nc": (-115, -109, 44, 50),
        "train/2016_09_22_0000.nc": (-99, -93, 42, 48),
    },
    "DataEval": {f"eval/2016_09_{day}_0000.nc": (-93, -88, 42, 47) for day in (20, 21, 22)},
}
FORECASTS = (-92.7, -88.3, 42.3, 46.7)  # 11 x 11 cells of 0.4 degree
WHENCE = {
    "source": "NOAA/NSSL Multi-Radar Multi-Sensor (MRMS), 24-hour precipitation, radar corrected by gauges",
    "license": "public domain (work of the government of the United States)",
    "references": "Zhang et al. 2016, https://doi.org/10.1175/BAMS-D-14-00174.1",
}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, metavar="DAILY", help="the folder of train and eval")
    parser.add_argument("--out", type=Path, default=ROOT / "Data/Sample", help="default: %(default)s")
    args = parser.parse_args(argv)
    for folder, crops in CROPS.items():
        for name, box in crops.items():
            path = args.out / folder / Path(name).name
            write(path, cut(args.archive / name, box), "Daily rain over {} E to {} E, {} N to {} N".format(*box))
            if folder == "DataEval":
                write(
                    args.out / "DataObj" / path.name,
                    coarse(path),
                    "Block means of observed rain; stands in for a forecast",
                )


def cut(path, box):
    """The file's cells inside a box of whole cells, values as they are stored. Raises ValueError: one is missing."""
    west, east, south, north = box
    with xr.open_dataset(path, mask_and_scale=False, decode_times=False) as file:
        inside = {"lat": (file.lat > south) & (file.lat < north), "lon": (file.lon > west) & (file.lon < east)}
        crop = file.isel({name: np.flatnonzero(which) for name, which in inside.items()}).load()
    crop.lat.attrs = {"standard_name": "latitude", "units": "degrees_north"}
    crop.lon.attrs = {"standard_name": "longitude", "units": "degrees_east"}
    if (crop.tp == crop.tp.attrs["_FillValue"]).any():
        raise ValueError(f"{path}: pixels are missing in {box}; expected a box without gaps")
    return crop


def coarse(path, step=40):
    """Block means of `step` x `step` pixels of a crop over FORECASTS, mm, float32."""
    crop = cut(path, FORECASTS)
    centres = {d: (d, crop[d].values.reshape(-1, step).mean(1).round(6), crop[d].attrs) for d in ("lat", "lon")}
    made = crop.isel(lat=slice(None, None, step), lon=slice(None, None, step)).assign_coords(centres)
    values = block_mean(crop.tp.values * crop.tp.attrs["scale_factor"], step).astype(np.float32)
    kept = {key: crop.tp.attrs[key] for key in ("units", "long_name", "cell_methods")}
    made["tp"] = (("lat", "lon"), values, kept | {"comment": "block means of the file of this name in DataEval"})
    made.attrs["archive"] = "block means of observed rain, no forecast"
    return made


def write(path, crop, title):
    path.parent.mkdir(parents=True, exist_ok=True)
    crop.attrs = {**crop.attrs, "Conventions": "CF-1.11", "title": title, **WHENCE}
    packed = {"zlib": True, "complevel": 9, "shuffle": True, "chunksizes": crop.tp.shape}
    crop.to_netcdf(path, encoding={"tp": packed, "lat": {"_FillValue": None}, "lon": {"_FillValue": None}})
    print(f"{path}  {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
