"""The two READMEs say the same, and what the documents tell to type works (long commands in a shortened form)."""

import contextlib
import io
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from conftest import ROOT, make, nodes, rain, run, write_nc

import realism
from datasets import DataConfig
from reader import read_field
from utils import save_checkpoint

LANGUAGES = ("README.md", "README.zh-CN.md")
TYPED = ("README.md", "Data/README.md", "Data/SavedModels/README.md")  # whose commands are run
DOCUMENTS = (*LANGUAGES, *TYPED[1:], "CONTRIBUTING.md", "jobs/README.md", "tests/README.md")
SHORT = {  # what is typed behind a command's own options here; the last one counts
    "2": "--content-steps 2 --batch 1 --channels 8 --blocks 1 --noise-channels 1 --valid-windows 1 --valid-share 0.4 "
    "--adversarial-steps 1 --device cpu",
    "3": "--members 1",
    "4": "--members 1",
}


def text(name):
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name):
    """The lines of every bash block, without comments."""
    found = re.findall(r"^```bash\n(.*?)^```", text(name), re.M | re.S)
    lines = [[shlex.split(line, comments=True) for line in block.splitlines()] for block in found]
    return [list(filter(None, block)) for block in lines]


def test_both_languages_have_the_same_headings_commands_figures_and_files():
    english, chinese = (text(name) for name in LANGUAGES)
    depth = [re.findall(r"^#+ ", words, re.M) for words in (english, chinese)]
    assert depth[0] == depth[1]
    for pattern in (
        r"^\| (`.*?`)",  # first cells of tables
        r"\]\((?!README)([^)]+)\)",  # links and pictures
        r"(?<![\d.])\d+\.\d+(?![\d.])",  # figures with a point
    ):
        assert sorted(set(re.findall(pattern, english, re.M))) == sorted(set(re.findall(pattern, chinese, re.M))), (
            pattern
        )
    assert blocks(LANGUAGES[0]) == blocks(LANGUAGES[1])


def test_the_readme_is_read_in_five_minutes():
    for name in LANGUAGES:
        assert len(text(name).splitlines()) <= 160, f"{name}: move long parts to the documents it links"


def test_no_document_names_an_option_that_is_gone():
    known = set()
    for number in range(1, 6):
        with pytest.raises(SystemExit), contextlib.redirect_stdout(io.StringIO()) as shown:
            run(number, "--help")
        known |= set(re.findall(r"--[a-z][\w-]*", shown.getvalue()))
    for name in DOCUMENTS:
        for line in re.findall(r"^python \d\w+\.py .*", text(name), re.M):
            assert set(re.findall(r"--[a-z][\w-]*", line)) <= known, (name, line)


def test_every_file_that_is_named_exists():
    for name in DOCUMENTS:
        folder = (ROOT / name).parent
        for link in re.findall(r"\]\((?!http)([^)#]+)\)", text(name)):
            assert (folder / link).exists(), (name, link)
        for path in re.findall(r"`((?:tests|jobs)/[\w./-]+\.(?:py|sh|slurm|pbs|md))`", text(name)):
            assert (ROOT / path).exists() or (folder / path).exists(), (name, path)


@pytest.fixture(scope="module")
def typed(tmp_path_factory):
    """A project folder with files laid where the README's commands look for them."""
    home = tmp_path_factory.mktemp("readme") / "project"
    coarse = nodes(104, 112, 1.0), nodes(24, 32, 1.0)
    for split, days in (("DataTrain", (1, 2, 3)), ("DataEval", (4, 5))):
        for day in days:
            write_nc(
                home / f"Data/{split}/2023_08_{day:02d}.nc",
                rain((9, 9), day),
                coarse[1],
                coarse[0],
                attrs={"units": "mm"},
            )
    fine = nodes(106, 110, 0.4), nodes(26, 30, 0.4)
    forecast = home / "Data/DataObj/2023_08_03_18_08_04_china.nc"
    write_nc(forecast, rain((11, 11), 9) / 1000, fine[1], fine[0], attrs={"units": "m"})
    pixels = np.round(np.arange(500) * 0.01 + 0.005, 6)
    for where in ("radar", "../shared/data/daily"):
        for split, hours in (("train", (0, 1)), ("eval", (2,))):
            for hour in hours:
                values = np.kron(rain((50, 50), hour), np.ones((10, 10)))
                write_nc(
                    home / where / split / f"2019_06_10_{hour:02d}00.nc",
                    values,
                    pixels + 30,
                    pixels - 90,
                    attrs={"units": "mm"},
                )
    quarter, fine = nodes(2, 6, 0.25), np.round(1.8875 + 0.025 * np.arange(170), 4)
    ground = {"name": "orog", "attrs": {"units": "m"}}
    write_nc(home / "pairs/static.nc", 100 * rain((17, 17), 5).repeat(10, 0).repeat(10, 1), fine + 50, fine, **ground)
    for split, days in (("", (1, 2, 3)), ("_eval", (4,))):
        for day in days:
            hr = np.kron(rain((17, 17), day), np.ones((10, 10)))
            for kind, values, axis in (("lr", rain((17, 17), day), quarter), ("hr", hr, fine)):
                path = home / f"pairs/{kind}{split}/2020_08_{day:02d}.nc"
                write_nc(path, values, axis + 50, axis, attrs={"units": "mm"})
    for split, day in (("train", 1), ("train", 2), ("eval", 3)):  # as GPM_3IMERGDF: tp(time, lon, lat), mm/day
        tenth = np.round(103.05 + np.arange(80) / 10, 2), np.round(25.05 + np.arange(80) / 10, 2)
        path = home / f"imerg/{split}/3B-DAY.MS.MRG.3IMERG.2023080{day}-S000000-E235959.V07B.nc4"
        path.parent.mkdir(parents=True, exist_ok=True)
        xr.Dataset(
            {
                name: (("time", "lon", "lat"), rain((80, 80), day)[None].astype("float32"), {"units": "mm/day"})
                for name in ("precipitation", "MWprecipitation")
            },
            {"lon": tenth[0], "lat": tenth[1], "time": [np.datetime64(f"2023-08-0{day}", "ns")]},
        ).to_netcdf(path)
    shutil.copytree(ROOT / "Data" / "README", home / "Data" / "README")
    shutil.copy(ROOT / "Eval_Correctness.ipynb", home)
    (home / "Data/SavedModels").mkdir()
    for scale, step in ((100, 1.0), (40, 0.4)):  # untrained models stand in for those that are shipped
        model, config = make(scale, channels=8, noise_channels=1), DataConfig("coarsen", region="all", lr_step=step)
        weights = {"updates": 0, "weights": model.state_dict()}
        settings = {"data_config": asdict(config), "generator_config": asdict(model.config)}
        save_checkpoint(home / f"Data/SavedModels/daily_x{scale}.pth", {**settings, "ema": weights})
    for name, scale, lr_step, hr_step in (("my_x10", 10, 0.4, 0.04), ("my_x4", 4, 0.04, 0.01)):
        model = make(scale, channels=8, noise_channels=1)
        config = DataConfig("coarsen", region="all", lr_step=lr_step, hr_step=hr_step)
        weights = {"updates": 0, "weights": model.state_dict()}
        settings = {"data_config": asdict(config), "generator_config": asdict(model.config)}
        save_checkpoint(home / f"Data/SavedModels/{name}.pth", {**settings, "ema": weights})
    return home


@pytest.mark.parametrize("name, number", [(name, k) for name in TYPED for k in range(len(blocks(name)))])
def test_what_the_documents_tell_to_type_works(typed, monkeypatch, name, number):
    monkeypatch.chdir(typed)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    judged = realism.judged  # its networks take minutes; a few steps do here
    monkeypatch.setattr(realism, "judged", lambda *args, **options: judged(*args, **{**options, "steps": 2}))
    for words in blocks(name)[number]:
        while "=" in words[0]:  # variables for the command
            words = words[1:]
        if words[0] in ("mkdir", "source"):  # the environment is made by the commands below
            assert words[0] == "source" or not subprocess.run(words).returncode
        elif words[:2] == ["python", "-m"] and words[2] == "nbconvert":
            done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True)
            assert not done.returncode, done.stderr[-2000:]
        elif words[0] == "python" and (stage := re.fullmatch(r"(\d)\w+\.py", words[1])):
            assert not run(stage[1], *words[2:], *SHORT.get(stage[1], "").split())
        else:  # queues, quickstart and tests are run elsewhere: by tests/slurm and by CI
            script = next(word for word in words[1:] if "/" in word or word.endswith((".py", ".sh")))
            assert (ROOT / script).is_file(), words


CDS = {"units": "m", "GRIB_stepType": "accum", "standard_name": "unknown", "long_name": "Total precipitation"}


def test_the_era5_request_makes_days_that_are_read(tmp_path, monkeypatch):
    """The snippet, run with a client that hands out a file as the Climate Data Store writes it."""
    asked = []

    def retrieve(name, request, target):
        asked.append((name, request))
        hours = np.arange(1, 50)  # to 01 UTC of the third day; amounts since 00 UTC, 24 x day mm at its end
        times = np.datetime64("2023-08-01", "ns") + hours * np.timedelta64(1, "h")
        north, west, south, east = request["area"]
        lat, lon = nodes(south, north, 0.1)[::-1], nodes(west, east, 0.1)
        since = ((hours - 1) % 24 + 1) * ((hours - 1) // 24 + 1) / 1000  # metres
        amounts = since[:, None, None] * np.ones((1, len(lat), len(lon)))
        xr.Dataset(
            {"tp": (("valid_time", "latitude", "longitude"), amounts, CDS)},
            {
                "valid_time": times,
                "latitude": lat,
                "longitude": lon,
                "number": 0,
                "expver": ("valid_time", ["0001"] * len(times)),
            },
        ).to_netcdf(target)

    monkeypatch.setitem(sys.modules, "cdsapi", SimpleNamespace(Client=lambda: SimpleNamespace(retrieve=retrieve)))
    monkeypatch.chdir(tmp_path)
    (snippet,) = re.findall(r"^```python\n(.*?)^```", text("Data/README.md"), re.M | re.S)
    exec(snippet, {})
    (command,) = re.findall(
        r"`python 1create_data_lists.py (--make-days downloads/era5_land [^`]*)`", text("Data/README.md")
    )
    assert not run(1, *shlex.split(command))
    (name, request), days = asked[0], sorted((tmp_path / "Data/DataEval").iterdir())
    assert name == "reanalysis-era5-land" and len(request["day"]) == 31 and len(request["time"]) == 24
    assert [day.name for day in days] == ["2023_08_01.nc", "2023_08_02.nc"]  # the third is not whole
    field = read_field(days[1])
    assert field.shape == (61, 61) and str(field.time.values)[:10] == "2023-08-02"
    np.testing.assert_allclose(field, 48.0, rtol=1e-6)
