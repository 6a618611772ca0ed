"""Laws of limits.py: period and amounts of a model are compared with every list, and said where it goes beyond."""

import json
import math
import shutil

import numpy as np
import pytest
import xarray as xr
from conftest import TINY, nodes, rain, run, said, write_nc

import limits
import plots
import utils
from datasets import SRDataset, open_list, read_lr
from downscaling import find_checkpoint
from limits import Knowledge, learn
from metadata import Period
from utils import DataError

DAY, MINUTES = Period(24.0, "name"), Period(0.4, "time_bnds")
AXES = nodes(20, 36, 1)[::-1], nodes(100, 116, 1)


def knowing(path, out, **knows):
    """A copy of the checkpoint at `path` that knows this of rain."""
    state = utils.load_checkpoint(path)
    utils.save_checkpoint(out, {**state, "knows": knows} if knows else {k: v for k, v in state.items() if k != "knows"})
    return out


def attributes(folder):
    """The attributes of each output."""
    return [xr.open_dataset(path).attrs for path in sorted(folder.glob("*_pre_sr.nc"))]


def typed(folder, values, period=None, **attrs):
    """Lists of days (one for each field of `values`) in `folder`, as evaluation days, made with --period."""
    for day, field in enumerate(values, 1):
        write_nc(folder / f"days/2023_08_{day:02d}_0000.nc", field, *AXES, attrs=attrs or {"units": "mm"})
    period = ["--period", period] if period else []
    run(1, "--eval-folders", folder / "days", "--output-folder", folder / "lists", *period)
    return folder / "lists"


# ---------------------------------------------------------------- what is learned


def test_the_wettest_cell_of_a_training_is_kept_to_the_last_bit_and_is_not_beyond_it():
    wettest = np.float32(123.4567891)
    fields = [np.array([[0.0, 0.05, np.nan], [3.0, wettest, 1.0]], np.float32), np.zeros((2, 3), np.float32)]
    knows = learn(fields, DAY)
    assert list(knows["lr_quantiles"]) == ["0.5", "0.9", "0.99", "0.999", "1"]
    assert knows["lr_quantiles"]["0.5"] == 3.0 and np.float32(knows["lr_quantiles"]["1"]) == wettest
    known = Knowledge.of("x", {"knows": knows})
    assert known.period == DAY
    assert limits.count_beyond(fields[0], known)["lr_cells_beyond_training"] == 0
    above = limits.count_beyond(np.nextafter(fields[0], np.float32(np.inf)), known)
    assert above["lr_cells_beyond_training"] == 1 and above["lr_cells"] == 5
    assert learn([np.zeros((2, 2), np.float32)], Period()) == {
        "period_hours": None,
        "period_from": "",
        "lr_quantiles": {},
    }
    assert limits.count_beyond(fields[0], Knowledge()) == {}


@pytest.mark.parametrize(
    "knows",
    [
        "text",
        [24.0],
        {"period_hours": "a day"},
        {"period_hours": -24.0},
        {"period_hours": math.nan},
        {"period_hours": 744.0},
        {"lr_quantiles": [1.0, 2.0]},
        {"lr_quantiles": {"0.5": 3.0, "1": 2.0}},
        {"lr_quantiles": {"1": math.inf}},
        {"lr_quantiles": {"most": 2.0}},
        {"lr_quantiles": {"1": "\x1b[31mwet"}},
    ],
)
def test_damaged_knowledge_is_refused_in_words(knows):
    with pytest.raises(DataError, match="x.pth: damaged: .*expected a period of up to a day.*take another") as refused:
        Knowledge.of("x.pth", {"knows": knows})
    assert "\x1b" not in str(refused.value)
    assert Knowledge.of("x.pth", {}) == Knowledge()


def test_checkpoints_keep_what_their_training_list_holds(home):
    knows = utils.load_checkpoint(home.x10)["knows"]
    assert knows["period_hours"] == 24 and "spacing" in knows["period_from"]
    state = utils.load_checkpoint(home.x10)
    dataset = SRDataset(home.lists, "train", **state["data_config"])
    assert knows["lr_quantiles"]["1"] == float(max(dataset.lr(i).max() for i in range(len(dataset))))


# ---------------------------------------------------------------- the period of a list


def test_a_period_that_was_typed_reaches_every_stage(tmp_path, capsys):
    """Of rates, which are no amounts without one, and in the outputs of stage 5; a changed file is not believed."""
    lists = typed(tmp_path, [rain((17, 17)) / 3600 for _ in range(2)], "6h", units="kg m-2 s-1")
    archive = open_list(lists, "eval")
    assert archive.period == Period(6.0, "--period")
    np.testing.assert_allclose(archive.values(0), 6 * rain((17, 17))[::1], rtol=1e-5)
    run(5, "--split", "eval", "--data-folder", lists, "--out", tmp_path / "pairs", "--hr-step", 0.5)
    assert xr.open_dataset(tmp_path / "pairs/00_pre_hr.nc").attrs["accumulation_period"] == "6 h (--period)"
    write_nc(tmp_path / "days/2023_08_01_0000.nc", rain((17, 17), 3) / 3600, *AXES, attrs={"units": "kg m-2 s-1"})
    with pytest.raises(DataError, match="2023_08_01_0000.nc: changed since stage 1 was told its period; run 1create"):
        open_list(lists, "eval")


def test_lists_made_by_hand_are_compared_as_well(tmp_path):
    for day, hours in ((1, 24), (2, 24), (3, 6)):
        start = np.datetime64(f"2023-08-0{day}", "ns")
        coords = {"time": start, "time_bnds": ("nv", np.array([start, start + np.timedelta64(hours, "h")]))}
        path = tmp_path / f"2023_08_0{day}.nc"
        write_nc(path, rain((17, 17), day), *AXES, attrs={"units": "mm"}, coords=coords)
        with xr.open_dataset(path) as file:
            file = file.load()
        file.time.attrs["bounds"] = "time_bnds"
        file.to_netcdf(path)
    paths = [str(path) for path in sorted(tmp_path.glob("*.nc"))]
    utils.write_json(tmp_path / "PreEval.json", paths[:2])
    assert open_list(tmp_path, "eval").period == Period(24.0, "time_bnds")
    utils.write_json(tmp_path / "PreEval.json", paths)
    with pytest.raises(DataError, match=r"03.nc: amounts over 6 h \(time_bnds\), but .*expected one period"):
        _ = open_list(tmp_path, "eval").period


def test_pairs_of_two_periods_are_refused(tmp_path):
    for folder, factor in (("lr", 1), ("hr", 4)):
        axes = nodes(20.5 - 0.5 / factor, 29.5, 1 / factor), nodes(100.5 - 0.5 / factor, 109.5, 1 / factor)
        for day in (1, 2):
            values = rain((len(axes[0]), len(axes[1])), day)
            attrs = {"units": "mm", "long_name": f"{24 // factor} hour total precipitation"}
            write_nc(tmp_path / folder / f"2023_08_0{day}_0000.nc", values, *axes, attrs=attrs)
    folders = ["--eval-folders", tmp_path / "lr", "--eval-hr-folders", tmp_path / "hr"]
    run(1, *folders, "--output-folder", tmp_path)
    words = r"LR files of the eval list hold rain of 24 h \(long_name\), their truth of 6 h \(long_name\); expected one"
    with pytest.raises(DataError, match=words):
        SRDataset(tmp_path, "eval", target="paired", region="all", lr_step=1.0, hr_step=0.25)


# ---------------------------------------------------------------- models of another period


def test_a_model_of_another_period_is_refused_in_one_sentence_or_said_everywhere(home, tmp_path, monkeypatch, capsys):
    """In log, outputs, table, scores.csv and the captions of every picture."""
    model = knowing(home.x10, tmp_path / "minutes.pth", period_hours=0.4, period_from="time_bnds")
    argv = ["--data-folder", home.lists, "--checkpoint", model, "--out", tmp_path / "out"]
    words = said(3, argv, monkeypatch)
    assert "learned rain of 24 min, and the eval list holds rain of 24 h (spacing of the list)" in words
    assert "--any-period" in words and not (tmp_path / "out").exists()
    captions = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path, **_: captions.append((path.name, caption(figure))))
    run(3, *argv, "--any-period", "--plots")
    printed = capsys.readouterr().out
    expected = "period 24 h (spacing of the list), of the model 24 min (time_bnds), used with --any-period"
    assert f"WARNING: {expected}" in printed and f"one member: {expected}" in unwrapped(printed)
    for attrs in attributes(tmp_path / "out"):
        assert attrs["accumulation_period"].replace(";", ",") in expected
    rows = (tmp_path / "out/scores.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in rows if "--any-period" in line] == ["one member"]
    assert {name for name, _ in captions} >= {"00_maps.png", "wettest.png", "members.png", "scores.png"}
    assert all("used with --any-period" in words for _, words in captions), captions


def unwrapped(text):
    return " ".join(text.split())


def caption(figure):
    """All text below and beside the axes of a figure."""
    return unwrapped(" ".join(text.get_text() for text in figure.texts))


def test_an_unknown_period_is_said_and_a_known_one_stands_in_the_outputs(home, tmp_path, capsys):
    argv = ["--data-folder", home.lists, "--no-scores"]
    run(3, *argv, "--checkpoint", knowing(home.x10, tmp_path / "old.pth"), "--out", tmp_path / "old")
    assert "period of the eval list 24 h (spacing of the list); of the model unknown" in capsys.readouterr().out
    run(3, *argv, "--checkpoint", home.x10, "--out", tmp_path / "new")
    assert attributes(tmp_path / "new")[0]["accumulation_period"] == "24 h, as in training"


def test_the_choice_among_several_models_compares_periods(home, tmp_path):
    knowing(home.x10, tmp_path / "pre_srgan_x10.pth", period_hours=0.4, period_from="time_bnds")
    with pytest.raises(
        DataError, match="does not fit: it learned rain of 24 min, and the eval list holds rain of 24 h"
    ):
        find_checkpoint(home.lists, "eval", folder=tmp_path)
    shutil.copy(home.coarsen, tmp_path / "pre_srgan_coarsen_x10.pth")  # comes second where both fit
    assert find_checkpoint(home.lists, "eval", folder=tmp_path)[0].name == "pre_srgan_coarsen_x10.pth"
    assert find_checkpoint(home.lists, "eval", folder=tmp_path, any_period=True)[0].name == "pre_srgan_x10.pth"


def test_a_training_goes_on_and_takes_an_archive_only_of_its_own_period(home, tmp_path, monkeypatch):
    shutil.copytree(home.lists, tmp_path / "lists", ignore=shutil.ignore_patterns("cache"))
    info = json.loads((tmp_path / "lists/PreInfo.json").read_text())
    for record in info["files"]["train"]:
        record |= {"period": 6.0, "period_from": "--period"}
    utils.write_json(tmp_path / "lists/PreInfo.json", info)
    shutil.copy(home.x10, tmp_path / "x10.pth")
    argv = ["--data-folder", tmp_path / "lists", "--hr-step", 0.1, "--lr-step", 1, "--checkpoint", tmp_path / "x10.pth"]
    words = said(2, [*argv, "--resume"], monkeypatch)
    assert (
        "x10.pth learned rain of 24 h (spacing of the list), and the train list holds rain of 6 h (--period)" in words
    )
    for day in (1, 2):
        path = tmp_path / f"other/2020_07_0{day}.nc"
        write_nc(path, rain((40, 40)), nodes(0.1, 7.9, 0.2), nodes(30.1, 37.9, 0.2), attrs={"units": "mm"})
    run(1, "--train-folders", tmp_path / "other", "--output-folder", tmp_path / "more", "--period", "6h")
    more = ["--set", f"coarse_archive={tmp_path / 'more'}", "--crop", 20, "--window", 3, 4]
    argv = ["--data-folder", home.lists, "--lr-step", 1, "--hr-step", 0.05, "--checkpoint", tmp_path / "y.pth"]
    words = said(2, [*argv, *TINY, *more], monkeypatch)
    assert (
        f"coarse_archive={tmp_path / 'more'}: its files hold rain of 6 h (--period), those of the training of 24 h"
        in words
    )


# ---------------------------------------------------------------- amounts


def test_a_list_of_more_heavy_rain_than_the_training_had_is_said():
    """Tropical rain has no cell beyond the wettest of the training, but many above what was rare there."""
    known = Knowledge(DAY, {0.99: 30.0, 1.0: 100.0})
    usual, tropical = np.full((10, 10), 2.0, np.float32), np.full((10, 10), 2.0, np.float32)
    usual[0, :2], tropical[0], tropical[1] = 40.0, 60.0, 0.05
    attributes = [limits.count_beyond(lr, known) for lr in (usual, tropical)]
    assert attributes[1]["lr_cells_wet"] == 90 and attributes[1]["lr_cells_above_99"] == 10
    assert limits.said([attributes[0]] * 3) == []  # 2 % are not much more than 1 %
    assert limits.said(attributes) == ["12 of 190 wet LR cells (6.3 %) above 30 mm, where training had 1 %"]
    assert limits.said(attributes[1:]) == []  # one wet day is weather


def test_amounts_beyond_those_of_training_are_summed_over_the_list(home, tmp_path, monkeypatch, capsys):
    model = knowing(home.x10, tmp_path / "x.pth", period_hours=24.0, period_from="", lr_quantiles={"1": 2.5})
    captions = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path, **_: captions.append(caption(figure)))
    argv = ["--data-folder", home.lists, "--checkpoint", model, "--out", tmp_path / "out", "--members", 2]
    run(3, *argv, "--plots")
    fields = [field.values().values for field in read_lr(home.lists, "eval", SRDataset(home.lists, "eval").config)]
    beyond, largest = [int((lr > 2.5).sum()) for lr in fields], max(lr.max() for lr in fields)
    words = (
        f"{sum(beyond)} of 75 LR cells in 3 of 3 fields above 2.5 mm, the most that training had, up to {largest:.5g}"
    )
    printed = capsys.readouterr().out
    assert all(beyond) and f"WARNING: {words}" in printed
    assert f"ensemble mean, one member, ensemble: {words}" in unwrapped(printed)
    assert (tmp_path / "out/scores.csv").read_text().count(words) == 3
    assert [attrs["lr_cells_beyond_training"] for attrs in attributes(tmp_path / "out")] == beyond
    assert {attrs["training_lr_maximum"] for attrs in attributes(tmp_path / "out")} == {2.5}
    assert all("the most that training had" in words for words in captions)
    run(3, *argv, "--no-scores")  # all are kept: they say it still
    assert f"WARNING: {words}" in capsys.readouterr().out
