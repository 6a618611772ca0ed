"""What the tests share: the stages as functions, files in every layout, and one small archive with tiny models.

from conftest import run, write_nc
run(5, "--split", "eval", "--data-folder", "lists")
"""

import functools
import os
import runpy
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import netCDF4  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
import xarray as xr  # noqa: E402

import utils  # noqa: E402
from datasets import block_mean  # noqa: E402
from downscaling import downscale  # noqa: E402
from models import Generator, GeneratorConfig  # noqa: E402

torch.set_num_threads(1)
DATA = ROOT.parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs the real files in ../shared/data, which are not here")

REGION = (106, 110, 26, 30)
TINY = [
    *("--channels", 8, "--blocks", 1, "--noise-channels", 1, "--batch", 2, "--crop", 10, "--window", 4, 5),
    *("--content-steps", 4, "--adversarial-steps", 0, "--epoch-steps", 2, "--valid-windows", 2),
]
# seven steps, in both phases; every other one at a coarser grid
TRAIN = ["--hr-step", 0.05, "--lr-step", 1, *TINY, "--crop", 20, "--window", 3, 4, "--adversarial-steps", 3]
NUMBERS = [
    "generator",
    "discriminator",
    "averaged",
    "ema",
    "best",
    "optimizer_g",
    "optimizer_d",
    "guards",
    "balance",
    "rng",
    "step",
]  # of a checkpoint


@functools.cache
def stage(number):
    """The globals of a numbered script, imported as a module would be."""
    (path,) = ROOT.glob(f"{number}*.py")
    return runpy.run_path(str(path))


def run(number, *argv):
    """main(argv) of a numbered script in this process; its return value is the exit code."""
    return stage(number)["main"]([str(word) for word in argv])


def learn_pairs(folder, pairs, fine, option, files, crop):
    """22 days of pairs (low, truth) on 1 degree and on `fine` (lat, lon), the last two for evaluation, and two models:
    with.pth was given the files of `option`, without.pth was not."""
    for k, (low, truth) in enumerate(pairs):
        split, name = folder / ("train" if k < 20 else "eval"), f"2020_01_{k + 1:02d}.nc"
        write_nc(split / "hr" / name, truth, *fine, attrs={"units": "mm"})
        write_nc(split / "lr" / name, low, nodes(50.5, 61.5, 1)[::-1], nodes(5.5, 18.5, 1), attrs={"units": "mm"})
    words = [f"--{s}{k}-folders {folder / s / h}" for s in ("train", "eval") for k, h in (("", "lr"), ("-hr", "hr"))]
    run(1, *" ".join(words).split(), "--output-folder", folder / "lists")
    common = f"--data-folder {folder / 'lists'} --target paired --region all --recipe crps"
    common += f" --content-steps 60 --epoch-steps 60 --channels 8 --blocks 1 --crop {crop} --window 1 1 --batch 2"
    common += f" --valid-windows 4 --threads 1 --amp off --set structure=0,0 --runs {folder / 'runs'}"
    run(2, *common.split(), "--checkpoint", folder / "with.pth", option, files)
    run(2, *common.split(), "--checkpoint", folder / "without.pth")


def low_rain(k):
    """Rain of day k on 12 x 14 cells of 1 degree, in squares of 4 x 4, mm."""
    return 1 + np.kron(rain((3, 4), k, 10.0)[:, :4], np.ones((4, 4)))[:12, :14]


def said(number, argv, monkeypatch):
    """What a script says at its end when it runs under run_stage: an exit code, or one line of words."""
    monkeypatch.setattr(sys, "argv", [f"{number}.py", *map(str, argv)])
    with pytest.raises(SystemExit) as end:
        utils.run_stage(stage(number)["main"])
    return end.value.code


def run3(*argv):
    return run(3, *argv, "--no-scores")


def outputs(folder, kind="sr"):
    return [read_out(path) for path in sorted(folder.glob(f"*_pre_{kind}.nc"))]


def block_means(sr, scale):
    return block_mean(sr.values.astype("float64"), scale)


def make(scale=4, seed=0, **settings):
    """A small generator with weights of this seed."""
    torch.manual_seed(seed)
    return Generator(GeneratorConfig(scale=scale, **({"channels": 16, "blocks": 1, "noise_channels": 2} | settings)))


def whole_field(generator, lr, **settings):
    """downscale put together: (members, H, W)."""
    out = np.zeros((settings.get("members", 1), *(n * generator.scale for n in lr.shape)), np.float32)
    for rows, columns, sr in downscale(generator, lr, **settings):
        out[:, rows, columns] = sr
    return out


def lr_rain(h, w, seed=1):
    """LR field (h, w), mm, float32, a third of it dry."""
    rng = np.random.default_rng(seed)
    return (rng.gamma(0.5, 8, (h, w)) * (rng.random((h, w)) > 0.33)).astype(np.float32)


def tensors(path, keys=NUMBERS):
    """Every number of a checkpoint, flattened."""
    found = {}

    def walk(name, value):
        if isinstance(value, dict):
            for key, item in value.items():
                walk(f"{name}/{key}", item)
        elif isinstance(value, (list, tuple)):
            for key, item in enumerate(value):
                walk(f"{name}/{key}", item)
        else:
            found[name] = value

    state = utils.load_checkpoint(path)
    for key in keys:
        walk(key, state[key])
    return found


def same(a, b):
    """Asserts that two checkpoints hold the same numbers, bit for bit."""
    a, b = tensors(a), tensors(b)
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]) if torch.is_tensor(value) else value == b[name], name


def rain(shape, seed=0, wettest=40.0):
    """Intermittent rain, mm, in steps of 1/256 so that sums are exact."""
    rng = np.random.default_rng(seed)
    field = rng.gamma(0.4, 1.0, shape) * (rng.random(shape) > 0.3)
    return np.round(field / max(field.max(), 1e-9) * wettest * 256) / 256


def nodes(first, last, step):
    """Nodes first..last without accumulated error."""
    return np.round(np.arange(round((last - first) / step) + 1) * step + first, 6)


def write_nc(path, values, lat, lon, *, name="tp", dims=("lat", "lon"), attrs=None, coords=None, encoding=None, **more):
    """A NetCDF file of values (lat, lon); dims names latitude and longitude in the order they are stored in.

    more: global attributes. coords: further coordinates. attrs and encoding: of the variable.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    flip = dims[0].lower() in ("lon", "longitude", "x")
    lat_name, lon_name = dims[::-1] if flip else dims
    file = xr.Dataset(
        {name: (dims, np.asarray(values).T if flip else values, attrs or {})},
        coords={lat_name: np.asarray(lat), lon_name: np.asarray(lon), **(coords or {})},
        attrs=more,
    )
    file.to_netcdf(path, encoding={name: encoding or {}})
    return path


def write_plain(path, dims, variables, attrs=None):
    """A file by netCDF4 alone: dims {name: size}, variables {name: (kind, dims, values, attributes)}."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with netCDF4.Dataset(path, "w") as file:
        file.setncatts(attrs or {})
        for name, size in dims.items():
            file.createDimension(name, size)
        for name, (kind, where, values, words) in variables.items():
            variable = file.createVariable(name, kind, where, fill_value=words.pop("_FillValue", None))
            variable.setncatts(words)
            variable.set_auto_maskandscale(False)
            variable[...] = values
    return Path(path)


def read_out(path):
    """The `tp` of an output, ([member,] lat, lon), decoded by xarray."""
    with xr.open_dataset(path) as file:
        return file["tp"].isel(time=0).load()


@pytest.fixture(autouse=True)
def own_signals():
    """Training takes over three signals; give them back."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_archive(folder, train_days=6, eval_days=3, forecasts=3):
    """Days at 1 degree (lon, lat) in mm, forecasts at 0.4 degree in metres, truth at 0.1 degree, all as the user's."""
    lat, lon = nodes(20, 36, 1)[::-1], nodes(100, 116, 1)
    fine_lat, fine_lon = nodes(23.55, 32.45, 0.1)[::-1], nodes(103.55, 112.45, 0.1)
    for name, first, count in (("Train", "1950-08-01", train_days), ("Eval", "2023-08-01", eval_days)):
        for k in range(count):
            day = str(np.datetime64(first) + k).replace("-", "_")
            write_nc(folder / f"Data{name}/{day}.nc", rain((17, 17), k), lat, lon, dims=("lon", "lat"))
            truth = rain((90, 90), 100 + k)
            write_nc(folder / f"Hr{name}/{day}.nc", truth, fine_lat, fine_lon, attrs={"units": "mm"})
    for k in range(forecasts):
        values = (rain((21, 21), 200 + k) / 1000).astype("float32")
        write_nc(
            folder / f"DataObj/2023_08_1{k}_18_08_1{k + 1}_x.nc", values, nodes(24, 32, 0.4)[::-1], nodes(104, 112, 0.4)
        )
    return folder


@pytest.fixture
def home(project, monkeypatch):
    """The small project as current folder; results go to folders of the test's own."""
    monkeypatch.chdir(project.home)
    return project


@pytest.fixture(scope="session")
def project(tmp_path_factory):
    """A small archive, its lists, and tiny models x10 and x4 (interpolate) and x10 (coarsen), as the stages make them.

    Read only: tests that write take another --out.
    """
    home = make_archive(tmp_path_factory.mktemp("project"))
    before = os.getcwd()
    os.chdir(home)
    try:
        for name in ("Train", "Eval", "Obj"):
            (home / "Data").mkdir(exist_ok=True)
            (home / f"Data{name}").rename(home / f"Data/Data{name}")
        run(1)
        run(1, "--train-folders", "HrTrain", "--eval-folders", "HrEval", "--output-folder", "Data/JsonHr")
        run(2, "--hr-step", 0.1, *TINY)
        run(2, "--hr-step", 0.1, "--lr-step", 1, "--target", "coarsen", "--data-folder", "Data/JsonHr", *TINY)
    finally:
        os.chdir(before)
    models = home / "Data/SavedModels"
    return SimpleNamespace(
        home=home,
        lists=home / "Data/JsonPath",
        hr_lists=home / "Data/JsonHr",
        x10=models / "pre_srgan_x10.pth",
        x4=models / "pre_srgan_x4.pth",
        coarsen=models / "pre_srgan_coarsen_x10.pth",
    )
