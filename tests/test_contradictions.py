"""Nothing wrong is believed: conclusions that outlive their file, sources that contradict one another, odd texts.

Each kind has one rule, said before its tests; tests/test_bad_input.py has the corpus of single files.
"""

import json

import numpy as np
import pytest
from conftest import nodes, rain, write_nc

import datasets
import utils
from datasets import SRDataset, open_list
from reader import inspect_files
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
