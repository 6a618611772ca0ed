"""Laws of utils.py's common part: lists, training helpers, whole files, checkpoints, NetCDF output."""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import fields

import numpy as np
import pytest
import torch
import xarray as xr
from conftest import nodes, rain, write_nc
from matplotlib.figure import Figure

import models
import utils
from plots import save_figure
from settings import RECIPES, GeneratorConfig, TrainConfig
from utils import (
    AverageMeter,
    DataError,
    NetCDFWriter,
    adjust_learning_rate,
    clip_gradient,
    create_data_lists,
    load_checkpoint,
    save_checkpoint,
    whole_file,
    write_field,
    write_json,
)
from verification import write_scores

LAT, LON = nodes(22, 34, 1)[::-1], nodes(100, 114, 1)
TIMES = {"time": np.datetime64("2023-08-12", "ns"), "forecast_reference_time": np.datetime64("2023-08-11T18", "ns")}


def field(values=None, **attrs):
    values = rain((13, 15)).astype("float32") if values is None else values
    return xr.DataArray(values, {"lat": LAT, "lon": LON, **TIMES}, ("lat", "lon"), "tp", attrs)


# ---------------------------------------------------------------- lists


def test_create_data_lists_under_its_own_name(tmp_path):
    for k in (2, 1):
        write_nc(tmp_path / f"days/2023_08_0{k}.nc", rain((13, 15)), LAT, LON)
        write_nc(tmp_path / f"obj/2023_08_1{k}_18_08_1{k}_x.nc", rain((4, 15)), LAT[:4], LON)
    info = create_data_lists([tmp_path / "days"], [], tmp_path / "json", [tmp_path / "obj"], min_size=4)
    assert json.loads((tmp_path / "json/PreTrain.json").read_text()) == [
        f"{tmp_path}/days/2023_08_0{k}.nc" for k in (1, 2)
    ]
    assert len(info["files"]["obj"]) == 2 and not (tmp_path / "json/PreEval.json").exists()
    with pytest.raises(DataError, match="fewer than --min-size 5"):
        create_data_lists(obj_folders=[tmp_path / "obj"], output_folder=tmp_path / "json", min_size=5)
    with pytest.raises(DataError, match="gone: no such folder"):
        create_data_lists([tmp_path / "gone"], output_folder=tmp_path / "json")


def test_long_work_says_once_a_minute_where_it_is(monkeypatch, capsys):
    assert list(utils.progress("abc", "reading")) == list("abc") and capsys.readouterr().out == ""
    monkeypatch.setattr(utils, "LOG_EVERY", -1)
    assert list(utils.progress("abc", "reading")) == list("abc")
    assert "reading: 2 of 3 after 0.0 min" in capsys.readouterr().out


# ---------------------------------------------------------------- training helpers


def test_average_meter():
    meter = AverageMeter()
    assert (meter.val, meter.avg, meter.sum, meter.count) == (0, 0, 0, 0)
    meter.update(2.0, 3)
    meter.update(5.0)
    assert (meter.val, meter.sum, meter.count) == (5.0, 11.0, 4) and meter.avg == 2.75
    meter.reset()
    assert meter.count == 0


def test_clip_gradient_and_adjust_learning_rate():
    free, bound = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([{"params": [free]}, {"params": [bound], "lr": 0.5}], lr=0.1)
    bound.grad = torch.tensor([-7.0, 0.2, 7.0])
    clip_gradient(optimizer, 1.5)
    assert bound.grad.tolist() == pytest.approx([-1.5, 0.2, 1.5]) and free.grad is None
    adjust_learning_rate(optimizer, 0.1)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.05])


# ---------------------------------------------------------------- whole or not at all


@pytest.fixture
def small_disk():
    """No file may grow beyond 40 kB, as on a full disk or over a quota."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_whole_file_leaves_nothing_behind_on_failure(tmp_path):
    path = tmp_path / "new/folder/a.txt"
    with whole_file(path) as part:
        part.write_text("one")
        assert not path.exists()
    with pytest.raises(RuntimeError), whole_file(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert path.read_text() == "one" and [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_half_files_of_the_dead_are_removed_and_of_the_living_kept(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    node = os.uname().nodename
    names = [
        f".a.nc.{node}.{dead.pid}.part",
        f".a.nc.{node}.1.part",
        ".a.nc.elsewhere.7.part",
        ".a.nc.far.7.part",
        "x.part",
    ]
    for name in names:
        (tmp_path / name).touch()
    os.utime(tmp_path / ".a.nc.far.7.part", (time.time() - 90_000,) * 2)  # of another machine, yesterday's
    write_json(tmp_path / "b.json", [])
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*names[1:3], "x.part", "b.json"])


def test_a_name_that_is_not_utf8_survives_in_a_list(tmp_path):
    name = os.fsdecode(b"2023_08_01_\xe9.nc")
    write_json(tmp_path / "PreEval.json", [name, "\u65e5.nc"])
    assert utils.read_list(tmp_path, "eval") == [name, "\u65e5.nc"]
    assert "\u65e5" in (tmp_path / "PreEval.json").read_text(encoding="utf-8")


def test_failures_of_every_writer_leave_the_earlier_file(tmp_path, small_disk):
    write_json(tmp_path / "a.json", [1])
    save_checkpoint(tmp_path / "a.pth", {"x": torch.zeros(3)})
    write_field(tmp_path / "a.nc", field())
    write_scores(tmp_path / "a.csv", [{"a": 1}])
    save_figure(Figure(figsize=(1, 1)), tmp_path / "a.png")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    large = np.random.default_rng(0).random((13, 15, 500))
    figure = Figure(figsize=(9, 9))
    figure.subplots().imshow(large[0], interpolation="nearest")
    for write in (
        lambda: write_scores(tmp_path / "a.csv", [{"a": "x" * 60_000}]),
        lambda: save_figure(figure, tmp_path / "a.png"),
        lambda: write_json(tmp_path / "a.json", ["x" * 60_000]),
        lambda: save_checkpoint(tmp_path / "a.pth", {"x": torch.zeros(30_000)}),
        lambda: write_field(
            tmp_path / "a.nc",
            xr.DataArray(large, dims=("lat", "lon", "z"))
            .transpose("z", "lat", "lon")
            .pipe(
                lambda x: xr.DataArray(
                    x.values.astype("float32"),
                    {"member": np.arange(500), "lat": LAT, "lon": LON},
                    ("member", "lat", "lon"),
                )
            ),
        ),
    ):
        with pytest.raises(DataError, match="a.*: cannot be written .*is as it was"):
            write()
        assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


# ---------------------------------------------------------------- checkpoints


def test_checkpoint_keeps_the_one_before(tmp_path):
    for k in range(3):
        save_checkpoint(tmp_path / "a.pth", {"step": k, "x": torch.full((3,), float(k))})
    assert load_checkpoint(tmp_path / "a.pth")["step"] == 2
    assert load_checkpoint(tmp_path / "a.pth.previous")["step"] == 1


class Bomb:
    """A pickle with code in it."""

    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"format": 1, "x": Bomb()}, "bomb.pth")
    with pytest.raises(DataError, match="bomb.pth: not a checkpoint that can be loaded safely"):
        load_checkpoint("bomb.pth")
    assert not (tmp_path / "exploded").exists()
    torch.save(torch.nn.Linear(2, 2), "module.pth")
    with pytest.raises(DataError, match="module.pth"):
        load_checkpoint("module.pth")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"conv.weight": torch.zeros(2)}, "weights alone, without the settings"),
        ({"module.conv.weight": torch.zeros(2)}, "weights alone of a DataParallel model, without the settings"),
        ({"format": 2, "best": np.float64(1)}, "holds more than tensors, numbers and text"),
    ],
)
def test_checkpoints_of_others_are_refused_in_one_sentence(tmp_path, content, words):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(DataError) as error:
        load_checkpoint(tmp_path / "other.pth")
    assert words in str(error.value) and "\x1b" not in str(error.value) and "2train.py" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a checkpoint", None])
def test_what_is_no_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "x.pth"
    if content is None:
        save_checkpoint(path, {"x": torch.rand(1000)})
        content = path.read_bytes()[:-300]
    path.write_bytes(content)
    with pytest.raises(DataError, match="x.pth"):
        load_checkpoint(path)


def test_tensors_saved_on_a_gpu_load_on_the_cpu(tmp_path):
    """torch.save writes the device of each tensor as a word; here it is rewritten to the first GPU's."""
    save_checkpoint(tmp_path / "cpu.pth", {"x": torch.arange(5.0)})
    with zipfile.ZipFile(tmp_path / "cpu.pth") as old, zipfile.ZipFile(tmp_path / "gpu.pth", "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("data.pkl"):
                assert content.count(b"X\x03\0\0\0cpu") == 1
                content = content.replace(b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:0")
            new.writestr(name, content)
    x = load_checkpoint(tmp_path / "gpu.pth")["x"]
    assert x.device.type == "cpu" and x.tolist() == [0, 1, 2, 3, 4]
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="CUDA"):  # what it would be without map_location
            torch.load(tmp_path / "gpu.pth", weights_only=True)


def test_a_checkpoint_of_another_format_is_refused(tmp_path):
    torch.save({"format": 7}, tmp_path / "x.pth")
    with pytest.raises(DataError, match=f"format 7, expected {utils.CHECKPOINT_FORMAT}"):
        load_checkpoint(tmp_path / "x.pth")
    torch.save([1, 2], tmp_path / "x.pth")
    with pytest.raises(DataError, match="format list"):
        load_checkpoint(tmp_path / "x.pth")


# ---------------------------------------------------------------- NetCDF output


def test_output_opens_in_xarray_with_decoded_time_and_cf_attributes(tmp_path):
    tp = field(source="a.nc", target="interpolate", scale=100)
    write_field(tmp_path / "x.nc", tp, title="a title", archive=None)
    with xr.open_dataset(tmp_path / "x.nc") as file:
        assert file.attrs["Conventions"] == "CF-1.11" and file.attrs["source"] == "a.nc" and "archive" not in file.attrs
        assert file.tp.attrs["units"] == "mm"
        assert file.tp.attrs["standard_name"] == "lwe_thickness_of_precipitation_amount"
        assert file.lat.attrs["units"] == "degrees_north" and file.lon.attrs["units"] == "degrees_east"
        for name, value in TIMES.items():
            assert file[name].values == [value] and file[name].attrs["standard_name"] == name
        assert file.tp.encoding["zlib"] and file.lat.dtype == np.float64 and file.encoding["unlimited_dims"] == {"time"}
        assert file.tp.dims == ("time", "lat", "lon")
        np.testing.assert_array_equal(file.tp[0], tp)
    back = utils.read_output(tmp_path / "x.nc")
    assert back.dims == ("lat", "lon") and back.attrs["scale"] == 100
    assert utils.field_times(back) == TIMES


@pytest.mark.parametrize("minutes", [24, 48, 72])
def test_times_are_read_back_to_the_second(tmp_path, minutes):
    time = np.datetime64("2023-08-01T00:00:01", "ns") + np.timedelta64(minutes, "m")
    write_field(tmp_path / "x.nc", field().assign_coords(time=time))
    assert utils.read_output(tmp_path / "x.nc").time.values == time


def test_write_field_is_read_back_by_the_reader(tmp_path):
    from datasets import read_field

    values = rain((13, 15)).astype("float32")
    values[0, 0] = np.nan
    write_field(tmp_path / "x.nc", field(values))
    tp = read_field(tmp_path / "x.nc")
    np.testing.assert_array_equal(tp, values)
    assert tp.time.values == TIMES["time"]
    assert tp.forecast_reference_time.values == TIMES["forecast_reference_time"]


def test_members_and_pieces(tmp_path):
    values = np.random.default_rng(0).random((3, 13, 15)).astype("float32")
    with NetCDFWriter(tmp_path / "x.nc", LAT, LON, {}, 3, title="t") as out:
        out.put(values[:, :6], slice(0, 6), slice(0, 15))
        out.put(values[:, 6:, :8], slice(6, 13), slice(0, 8))
    with xr.open_dataset(tmp_path / "x.nc") as file:
        assert file.tp.dims == ("member", "lat", "lon") and file.member.attrs["standard_name"] == "realization"
        np.testing.assert_array_equal(file.tp[:, :6], values[:, :6])
        assert bool(file.tp[:, 6:, 8:].isnull().all()) and "time" not in file.variables
    assert utils.read_output(tmp_path / "x.nc").dims == ("member", "lat", "lon")


@pytest.fixture(params=[None, 2])
def several_days(request, tmp_path):
    """Three outputs without and with members: (their paths, their fields, one after another)."""
    paths, days = [], []
    for k in range(3):
        day = {name: value + np.timedelta64(k, "D") for name, value in TIMES.items()}
        tp = xr.concat(
            [field(rain((13, 15), 3 * k + m).astype("float32")) for m in range(request.param or 1)], "member"
        )
        tp = tp.assign_coords(member=np.arange(tp.sizes["member"]), **day)
        paths.append(tmp_path / f"0{k}_pre_sr.nc")
        days.append(tp if request.param else tp[0].drop_vars("member"))
        write_field(paths[-1], days[-1])
    return paths, xr.concat(days, "time", coords="different", compat="equals")


def check_joined(file, expected, names=("time", "forecast_reference_time")):
    """All days are there, each under its own times."""
    assert file.tp.dims == expected.dims
    np.testing.assert_array_equal(file.tp, expected)
    for name in names:
        np.testing.assert_array_equal(file[name], expected[name])


def test_xarray_joins_several_days(several_days):
    paths, expected = several_days
    options = {"coords": "different", "compat": "no_conflicts", "join": "outer", "data_vars": "all"}
    check_joined(xr.combine_by_coords([xr.load_dataset(path) for path in reversed(paths)], **options), expected)
    pytest.importorskip("dask", reason="xr.open_mfdataset needs dask, which is not here")
    with xr.open_mfdataset(paths, **options) as file:
        check_joined(file, expected)


@pytest.mark.parametrize("command", ["cdo -s mergetime", "ncrcat"])
def test_tools_of_the_field_join_several_days(several_days, tmp_path, command):
    if not shutil.which(command.split()[0]):
        pytest.skip(f"{command.split()[0]} is not installed (Debian: apt-get install cdo nco)")
    paths, expected = several_days
    done = subprocess.run([*command.split(), *paths, tmp_path / "all.nc"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with xr.open_dataset(tmp_path / "all.nc") as file:  # cdo keeps one time variable
        check_joined(file, expected, ("time", "forecast_reference_time")[: 1 + (command == "ncrcat")])


def test_an_output_that_fails_half_way_is_not_there(tmp_path):
    with pytest.raises(RuntimeError), NetCDFWriter(tmp_path / "x.nc", LAT, LON, TIMES) as out:
        out.put(np.zeros((6, 15)), slice(0, 6))
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_set_aside_keeps_names_and_never_overwrites(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for round_ in range(2):
        for k in range(2):
            (tmp_path / f"out{k}.nc").write_text(f"{round_}")
        utils.set_aside([tmp_path / "out0.nc", tmp_path / "out1.nc", tmp_path / "gone.nc"])
    kept = sorted((tmp_path / "Data/DataResults/Historical_Records").rglob("out0.nc"))
    assert sorted(p.read_text() for p in kept) == ["0", "1"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"optimizer": "sgd"}, "--set optimizer=sgd: expected one of adamw, adam"),
        ({"schedule": "never"}, "--set schedule=never"),
        ({"initial": "zero"}, "--set initial=zero"),
        ({"adversarial": "magic"}, "--set adversarial=magic"),
        ({"adversarial_content": "crps+magic"}, "--set adversarial_content=magic"),
        ({"members": 0}, "--set members=0: expected 1 to"),
        ({"pools": (0,)}, "--set pools=0: expected 1 to"),
        ({"ema": 2}, "--set ema=2: expected 0 to 1"),
        ({"amounts": 0}, "--set amounts=0: expected 1 to 100"),
        ({"learning_rate": float("nan")}, "--learning-rate nan"),
    ],
)
def test_settings_out_of_bounds_are_refused_in_words(settings, words):
    with pytest.raises(DataError, match=words):
        TrainConfig(**settings)


def test_every_choice_of_the_settings_exists():
    """The choices are named in settings.py, which knows no PyTorch; what they mean stands in models.py."""
    choices = {f.name: f.metadata.get("choices") for cls in (GeneratorConfig, TrainConfig) for f in fields(cls)}
    assert set(choices["transform"]) == set(models.TRANSFORMS)
    assert set(choices["activation"]) == set(choices["stage_activation"]) == set(models.ACTIVATIONS)
    assert set(choices["output"]) == set(models.OUTPUTS)
    assert set(choices["content"]) == set(models.CONTENT_LOSSES)
    assert set(choices["adversarial"]) == set(models.ADVERSARIAL_LOSSES)
    assert set(choices["recipe"]) == set(RECIPES)
    for train, network in RECIPES.values():
        TrainConfig(**train), GeneratorConfig(**network)
