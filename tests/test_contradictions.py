"""Nothing wrong is believed: conclusions that outlive their file, sources that contradict one another, odd texts.

Each kind has one rule, said before its tests; tests/test_bad_input.py has the corpus of single files.
"""

import json
import re

import numpy as np
import pytest
import xarray as xr
from conftest import nodes, rain, run, write_nc

import datasets
import utils
import verification
from datasets import SRDataset, open_list
from reader import inspect_files, read_field
from utils import DataError

LAT, LON = nodes(22, 34, 1)[::-1], nodes(100, 114, 1)  # 13 x 15
FIELD = rain((13, 15))


def day(folder, values=FIELD, name="2023_08_01.nc", units=None, **layout):
    """A file of one day."""
    return str(write_nc(folder / name, values, LAT, LON, attrs={"units": units} if units else {}, **layout))


def listed(folder, paths, split="train", typed="auto"):
    """The list and PreInfo.json of stage 1."""
    records, faults = inspect_files(paths, typed)
    assert not faults
    utils.write_lists(folder, {split: records}, {split: [folder]})
    return folder


# ---------------------------------------------------------------- no conclusion outlives its file
# Size and time of every record of PreInfo.json decide, wherever its units came from.


@pytest.mark.parametrize("units", [None, "mm"])
def test_units_are_decided_anew_where_a_file_was_rewritten(tmp_path, units, capsys):
    paths = [day(tmp_path, FIELD + k, f"2023_08_0{k + 1}.nc", units) for k in range(3)]
    folder = listed(tmp_path, paths)
    before = open_list(folder, "train").values(1).copy()
    for k, path in enumerate(paths):
        day(tmp_path, (FIELD + k) / 1000, path.split("/")[-1], "m")
    capsys.readouterr()
    np.testing.assert_allclose(open_list(folder, "train").values(1), before, rtol=1e-5)
    said = capsys.readouterr().out
    assert f"{paths[0]} and 2 more changed since stage 1; what it found in them is decided anew" in said
    np.testing.assert_allclose(SRDataset(folder, "train", region="all", hr_step=0.1)[1][0], before, rtol=1e-5)
    assert "changed since" not in capsys.readouterr().out  # once a run


def test_a_rewritten_file_whose_units_were_typed_is_refused(tmp_path):
    paths = [day(tmp_path, FIELD + k, f"2023_08_0{k + 1}.nc", "mm") for k in range(2)]
    folder = listed(tmp_path, paths, typed="cm")
    assert open_list(folder, "train").values(0).max() == pytest.approx(10 * FIELD.max(), rel=1e-5)
    day(tmp_path, FIELD + 5, "2023_08_01.nc", "mm")
    with pytest.raises(DataError, match="2023_08_01.nc: changed since stage 1 was told its units.*--units"):
        open_list(folder, "train")
    assert open_list(folder, "train", units="mm").values(0).max() == pytest.approx(FIELD.max() + 5)


def test_a_step_of_a_file_that_changed_is_forgotten(tmp_path):
    path = day(tmp_path, units="mm")
    folder = listed(tmp_path, [path], "eval")
    assert datasets.found_settings(folder, "eval", {})[0]["lr_step"] == 1
    write_nc(path, rain((9, 9)), nodes(26, 30, 0.5)[::-1], nodes(106, 110, 0.5), attrs={"units": "mm"})
    assert "lr_step" not in datasets.found_settings(folder, "eval", {})[0]


def test_an_attribute_that_contradicts_what_stage_1_wrote_is_refused(tmp_path):
    path = day(tmp_path, units="mm")
    folder = listed(tmp_path, [path])
    info = json.loads((folder / utils.INFO).read_text())
    info["files"]["train"][0].update(units="m", units_from="values")
    utils.write_json(folder / utils.INFO, info)
    with pytest.raises(DataError, match=f"{path}: its attribute says units mm, PreInfo.json says m; expected one"):
        open_list(folder, "train")


@pytest.mark.parametrize("change", ["values", "index"])
def test_a_damaged_cache_is_made_again(tmp_path, change, capsys):
    folder = listed(tmp_path, [day(tmp_path, FIELD + k, f"2023_08_0{k + 1}.nc", "mm") for k in range(2)])
    whole = open_list(folder, "train")
    values, times = whole.values(1).copy(), whole.index[1]["times"]
    (kept,) = (folder / "cache").glob("*.f32")
    if change == "values":
        (np.fromfile(kept, np.float32) * 3).tofile(kept)
    else:
        index = kept.with_suffix(".json")
        index.write_text(index.read_text().replace("2023-08-02", "2023-08-09"))
    archive = open_list(folder, "train")
    np.testing.assert_array_equal(archive.values(1), values)
    assert archive.index[1]["times"] == times and "damaged, not what was written" in capsys.readouterr().out
    open_list(folder, "train").values(1)
    assert "damaged" not in capsys.readouterr().out


# ---------------------------------------------------------------- two sources of one fact are compared
# A date that a name and a coordinate give differently is refused with both; a name gives one date or none.


@pytest.mark.parametrize(
    ("name", "time", "words"),
    [
        ("2023_08_02.nc", "2023-08-03", "its name says 2023-08-02, its time coordinate 2023-08-03.*--stamps end"),
        ("2023_08_02.nc", "1999-08-02", "its name says 2023-08-02, its time coordinate 1999-08-02; .*rename it"),
        ("2023_08_11_18_08_12_x.nc", "2023-08-14", "its name says 2023-08-12, its time coordinate 2023-08-14"),
        ("2023_08_11_18_08_06_x.nc", "2023-08-06", "issued 2023-08-11 and valid on 08-06; expected .*rename it"),
        ("2023_08_11_18_08_06_x.nc", None, "issued 2023-08-11 and valid on 08-06; expected .*rename it"),
        ("2023_08_11_18_07_31_x.nc", None, "issued 2023-08-11 and valid on 07-31; expected .*rename it"),
        ("2023_08_01-2023_08_31.nc", None, "the name is not a date"),
        ("2023_08_01_to_2023_08_31.nc", None, "the name is not a date"),
        ("2023_08_01-08_31.nc", None, "the name is not a date"),
        ("2023_08_01_99.nc", None, "the name is not a date"),
    ],
)
def test_dates_that_contradict_one_another_are_refused(tmp_path, name, time, words):
    coords = {} if time is None else {"time": np.datetime64(time, "ns")}
    path = day(tmp_path, name=name, units="mm", coords=coords)
    records, (fault,) = inspect_files([path])
    assert not records and fault.startswith(f"{path}: ") and re.search(words, fault)


@pytest.mark.parametrize(
    ("name", "time", "period"),
    [("2023_08_01_06.nc", "2023-08-01T06:00", None), ("2023-08-01T0630.nc", "2023-08-01T06:30", None)],
)
def test_hours_in_names_are_read(tmp_path, name, time, period):
    ((record,), faults) = inspect_files([day(tmp_path, name=name, units="mm")])
    assert not faults and (record["time"], record["period"]) == (time, period)


def test_hours_of_a_day_are_no_duplicates(tmp_path):
    records, faults = inspect_files([day(tmp_path, name=f"2023_08_01_{k:02d}.nc", units="mm") for k in range(24)])
    assert not faults and len({r["time"] for r in records}) == 24 and {r["period"] for r in records} == {1.0}


# ---------------------------------------------------------------- duplicate keys do not overwrite


def test_forecasts_are_not_compared_with_the_last_of_several_analyses(tmp_path, capsys):
    for k in (1, 2):
        write_nc(tmp_path / f"{k}/2023_08_12.nc", FIELD * k, LAT, LON, attrs={"units": "mm"})
    folder = listed(tmp_path, [f"{tmp_path}/{k}/2023_08_12.nc" for k in (1, 2)], "eval")
    assert verification.analysed_days(folder) == {}
    assert "several analysed days of 2023-08-12: expected one a date" in capsys.readouterr().out


def test_the_same_file_twice_in_one_list_is_taken_once(tmp_path, capsys):
    path = day(tmp_path / "in", units="mm")
    run(1, "--eval-folders", tmp_path / "in", tmp_path / "in", "--output-folder", tmp_path)
    assert utils.read_list(tmp_path, "eval") == [path]


def test_index_coordinates_are_no_degrees(tmp_path):
    planes = {"lat": (("y", "x"), np.broadcast_to(LAT[:, None], (13, 15)), {"units": "degrees_north"})}
    planes["lon"] = (("y", "x"), np.broadcast_to(LON, (13, 15)), {"units": "degrees_east"})
    fields = {"tp": (("y", "x"), FIELD, {"units": "mm"}), **planes}
    xr.Dataset(fields, {"y": np.arange(13), "x": np.arange(15)}).to_netcdf(tmp_path / "2023_08_01.nc")
    with pytest.raises(DataError, match="y and x that count cells; expected latitude and longitude"):
        read_field(tmp_path / "2023_08_01.nc")


# ---------------------------------------------------------------- own results are no input
# A file that says which request of this program made it is refused; days of --make-days say their rule, and are taken.


@pytest.mark.parametrize("kind", ["lr", "hr"])
def test_pairs_of_stage_5_are_no_truth(home, tmp_path, kind):
    run(5, "--split", "eval", "--data-folder", home.lists, "--hr-step", 0.1, "--out", tmp_path)
    records, faults = inspect_files(sorted(map(str, tmp_path.glob(f"*_{kind}.nc"))))
    assert not records and len(faults) == 3
    assert "made by stage 5, target interpolate; expected days or forecasts" in faults[0]
