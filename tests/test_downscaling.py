"""Laws of downscaling.py: tiles, noise, members, restart and the choice of a checkpoint; stages 3 and 4 as run."""

import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import (
    ROOT,
    block_means,
    lr_rain,
    make,
    nodes,
    outputs,
    rain,
    read_out,
    run,
    run3,
    said,
    whole_field,
    write_nc,
)

import datasets
import downscaling
import tiles
import utils
from downscaling import downscale
from utils import DataError


@pytest.mark.parametrize(
    ("scale", "shape", "directed"), [(4, (11, 7), True), (4, (11, 7), False), (40, (5, 4), True), (100, (3, 2), True)]
)
def test_tiled_equals_untiled(scale, shape, directed):
    generator, lr = make(scale, directed=directed), lr_rain(*shape)
    lr[0, 1] = np.nan
    kept = lr.copy()
    a, b = whole_field(generator, lr, tile=max(shape), members=2), whole_field(generator, lr, tile=2, members=2)
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert not np.array_equal(a[0], a[1])
    assert np.array_equal(lr, kept, equal_nan=True)  # the caller's field is left alone


def test_missing_exactly_where_the_input_is():
    lr = lr_rain(4, 5)
    lr[1, 2] = lr[3, 0] = np.nan
    sr = whole_field(make(), lr, members=2)
    assert np.array_equal(np.isnan(sr[1]), np.kron(np.isnan(lr), np.ones((4, 4), bool)))
    assert np.isnan(whole_field(make(), np.full((2, 2), np.nan, np.float32))).all()


def keyed_noise(generator, key, box):
    """Noise of every grid, the trunk's first."""
    return tiles.keyed_noise(generator.net, key, box, generator.net.entries, "cpu")


def test_noise_belongs_to_the_cell_not_to_the_region():
    generator = make()
    a = keyed_noise(generator, "0|0|2023-08-01", (10, 14, -3, 2))
    b = keyed_noise(generator, "0|0|2023-08-01", (11, 14, -3, 2))
    for x, y, grid in zip(a, b, generator.net.grids, strict=True):
        assert torch.equal(x[:, :, grid:], y)
    c = keyed_noise(generator, "0|0|2023-08-02", (11, 14, -3, 2))
    assert not any(torch.equal(x, y) for x, y in zip(b, c, strict=True))
    assert [z.shape for z in b] == [z.shape for z in generator.draw_noise(1, (3, 5))]


def test_noise_is_standard_normal():
    values = torch.cat([z.flatten() for z in keyed_noise(make(40), "k", (0, 9, 0, 9))])
    assert abs(values.mean()) < 0.02
    assert abs(values.std() - 1) < 0.02


def test_another_process_makes_the_same_member():
    code = (
        "import torch, numpy as np, hashlib, models, tiles; torch.manual_seed(0);"
        "g = models.Generator(models.GeneratorConfig(scale=4, channels=16, blocks=1, noise_channels=2));"
        "z = tiles.keyed_noise(g.net, '7|1|2023-08-01', (0, 3, 0, 3), g.net.entries, 'cpu');"
        "print(hashlib.sha256(b''.join(x.numpy().tobytes() for x in z)).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    mine = keyed_noise(make(), "7|1|2023-08-01", (0, 3, 0, 3))
    assert other.stdout.strip() == hashlib.sha256(b"".join(x.numpy().tobytes() for x in mine)).hexdigest()


def test_a_uniform_field_has_no_border():
    """Replicated edges: a constant input is treated alike at the border and inside."""
    generator = make(noise_channels=0)
    sr = generator(torch.full((1, 1, 6, 6), 3.0))
    cell = sr[..., 8:12, 8:12].tile(6, 6)
    torch.testing.assert_close(sr, cell, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(35, 5), (1, 1), (1, 7)])
def test_any_domain_shape(shape):
    assert whole_field(make(), lr_rain(*shape)).shape == (1, 4 * shape[0], 4 * shape[1])


def test_mirrored_input_is_not_transposed():
    lr = np.zeros((3, 5), np.float32)
    lr[0, 4] = 50.0  # north-east
    sr = whole_field(make(), lr)[0]
    assert sr[:4, 16:].sum() > 0
    sr[:4, 16:] = 0
    assert sr.sum() == 0


def test_bad_fields_are_refused():
    for bad in (np.full((2, 2), -1.0), np.full((2, 2), np.inf), np.zeros(4)):
        with pytest.raises(ValueError, match="downscale: lr"):
            next(downscale(make(), bad))


def test_missing_pixels_are_those_of_missing_lr_cells(home, tmp_path):
    """`all` on a file that is no multiple of the LR step: coordinates are the file's, the remainder is missing."""
    lat, lon = nodes(20.05, 24.45, 0.1)[::-1], nodes(100.05, 106.55, 0.1)  # 45 x 66
    values = rain((45, 66))
    values[10:18, 20:30] = np.nan  # most of one cell
    values[30:34, 40:50] = np.nan  # less than half of one: 60 of 100 valid
    write_nc(tmp_path / "in/2023_08_01.nc", values, lat, lon, attrs={"units": "mm"})
    run(1, "--eval-folders", tmp_path / "in", "--output-folder", tmp_path / "lists")
    where = ["--data-folder", tmp_path / "lists", "--region", "all", "--out", tmp_path]
    run3(*where, "--checkpoint", home.coarsen)
    run(5, *where, "--split", "eval", "--target", "coarsen", "--lr-step", 1, "--hr-step", 0.1)
    (sr,), (lr,), (hr,) = (outputs(tmp_path, kind) for kind in ("sr", "lr", "hr"))
    assert lr.shape == (4, 6) and int(lr.isnull().sum()) == 1 and bool(lr.isnull()[1, 2])
    for field in (sr, hr):
        np.testing.assert_array_equal(field.lat, lat)
        np.testing.assert_array_equal(field.lon, lon)
    np.testing.assert_array_equal(hr, values.astype("float32"))
    expected = np.ones((45, 66), bool)
    expected[:40, :60] = np.kron(np.isnan(lr.values), np.ones((10, 10)))
    np.testing.assert_array_equal(np.isnan(sr), expected)
    np.testing.assert_allclose(block_means(sr[:40, :60], 10), lr, atol=1e-3)


def test_truth_never_reaches_sr(home, tmp_path):
    """With the block means held, HR and its missing pixels change no pixel of SR."""
    lat, lon = nodes(25.05, 30.95, 0.1)[::-1], nodes(105.05, 110.95, 0.1)
    low = np.round(rain((6, 6), 5) * 4) / 4
    flat = np.kron(low, np.ones((10, 10)))
    other = flat.copy()
    other[::2, ::2] += other[::2, ::2] / 2
    other[1::2, 1::2] -= flat[1::2, 1::2] / 2  # rain moved inside each cell
    holes = flat.copy()
    holes[::3, ::2] = np.nan  # missing pixels, in the same cells, less than half
    made = []
    for name, values in (("flat", flat), ("other", other), ("holes", holes)):
        write_nc(tmp_path / f"{name}/2023_08_01.nc", values, lat, lon, attrs={"units": "mm"})
        run(1, "--eval-folders", tmp_path / name, "--output-folder", tmp_path / f"{name}/lists")
        run3(
            "--data-folder",
            tmp_path / f"{name}/lists",
            "--checkpoint",
            home.coarsen,
            "--out",
            tmp_path / f"{name}/sr",
            "--region",
            "all",
        )
        made += outputs(tmp_path / f"{name}/sr")
    np.testing.assert_array_equal(made[0], made[1])
    np.testing.assert_array_equal(made[0], made[2])
    np.testing.assert_allclose(block_means(made[0], 10), low, atol=1e-3)


def test_truth_with_gaps_everywhere_is_no_reason_to_fall(home, tmp_path, capsys):
    lat, lon = nodes(25.05, 30.95, 0.1)[::-1], nodes(105.05, 110.95, 0.1)
    values = rain((60, 60))
    values[::5, ::5] = np.nan
    write_nc(tmp_path / "in/2023_08_01.nc", values, lat, lon, attrs={"units": "mm"})
    run(1, "--eval-folders", tmp_path / "in", "--output-folder", tmp_path / "lists")
    argv = ["--data-folder", tmp_path / "lists", "--checkpoint", home.coarsen, "--out", tmp_path, "--region", "all"]
    run(3, *argv, "--plots")
    assert len(outputs(tmp_path)) == 1 and "no scores: every window" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == ["00_maps.png", "members.png", "wettest.png"]


def test_hr_is_not_an_argument_of_downscaling():
    names = (
        downscale_names(downscale)
        | downscale_names(downscaling.downscale_list)
        | downscale_names(downscaling._write_field)
        | downscale_names(datasets.read_lr)
    )
    assert not {name for name in names if re.search("hr|truth", name)}


def downscale_names(function):
    return set(function.__code__.co_varnames[: function.__code__.co_argcount + function.__code__.co_kwonlyargcount])


@pytest.mark.parametrize("options", [["--tile", 1], ["--tile", 2, "--members", 2]])
def test_tiles_of_stage_3_make_the_whole(home, tmp_path, options):
    run3("--checkpoint", home.x10, "--out", tmp_path / "whole", *options[2:])
    run3("--checkpoint", home.x10, "--out", tmp_path / "tiles", *options)
    for whole, parts in zip(outputs(tmp_path / "whole"), outputs(tmp_path / "tiles"), strict=True):
        np.testing.assert_allclose(whole, parts, rtol=1e-4, atol=1e-4)


def test_members_are_a_dimension_and_differ_and_seeds_repeat(home, tmp_path):
    run3("--checkpoint", home.x10, "--out", tmp_path / "a", "--members", 3)
    run3("--checkpoint", home.x10, "--out", tmp_path / "b", "--members", 3)
    run3("--checkpoint", home.x10, "--out", tmp_path / "c", "--seed", 1)
    run3("--checkpoint", home.x10, "--out", tmp_path / "d")
    three, again, other, one = (outputs(tmp_path / name)[0] for name in "abcd")
    assert three.dims == ("member", "lat", "lon") and three.shape == (3, 50, 50) and one.dims == ("lat", "lon")
    assert not np.array_equal(three[0], three[1]) and not np.array_equal(one, other)
    np.testing.assert_array_equal(three, again)
    np.testing.assert_array_equal(three[0], one)


def test_shards_make_the_whole(home, tmp_path):
    run3("--checkpoint", home.x10, "--out", tmp_path / "whole")
    for k in (0, 1):
        run3("--checkpoint", home.x10, "--out", tmp_path / "parts", "--shard", f"{k}/2")
        assert len(list((tmp_path / "parts").glob("*.nc"))) == (2, 3)[k]
    for whole, part in zip(outputs(tmp_path / "whole"), outputs(tmp_path / "parts"), strict=True):
        np.testing.assert_array_equal(whole, part)


def test_same_request_is_kept_and_another_moved_aside(home, tmp_path, capsys, monkeypatch):
    records = home.home / "Data/DataResults/Historical_Records"
    argv = ["--checkpoint", home.x10, "--out", tmp_path / "again"]
    run3(*argv)
    path = tmp_path / "again/00_pre_sr.nc"
    (tmp_path / "again/01_pre_sr.nc").unlink()
    before, made = path.stat().st_mtime_ns, read_out(path)
    run3(*argv)
    assert path.stat().st_mtime_ns == before and (tmp_path / "again/01_pre_sr.nc").exists()
    assert "2 of 3 outputs" in capsys.readouterr().out and not list(records.glob("again_*"))
    run3(*argv, "--seed", 5)
    (moved,) = records.glob("again_*")
    np.testing.assert_array_equal(read_out(moved / "00_pre_sr.nc"), made)
    assert not np.array_equal(read_out(path), made)
    path.write_bytes(path.read_bytes()[:500])  # damaged: made again
    run3(*argv, "--seed", 5)
    assert not np.array_equal(read_out(path), made)
    shutil.rmtree(moved)


def test_results_of_a_longer_list_do_not_stay_among_the_new(home, tmp_path):
    run3("--checkpoint", home.x10, "--out", tmp_path / "sr")
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "PreEval.json").write_text(json.dumps(json.loads((home.lists / "PreEval.json").read_text())[:2]))
    run3("--data-folder", lists, "--checkpoint", home.x10, "--out", tmp_path / "sr", "--seed", 3)
    assert len(outputs(tmp_path / "sr")) == 2
    for moved in (home.home / "Data/DataResults/Historical_Records").glob("sr_*"):
        shutil.rmtree(moved)


def test_refusals_of_stages_3_and_4_name_the_command(home, tmp_path, monkeypatch, capsys):
    words = said(4, ["--checkpoint", home.x10, "--out", tmp_path], monkeypatch)
    assert words.startswith("error: ") and "2023_08_10_18_08_11_x.nc" in words and "step is 0.4 degree" in words
    assert "python 2train.py --target interpolate --lr-step 0.4 --hr-step 0.1" in words
    words = said(4, ["--checkpoint", home.coarsen, "--out", tmp_path], monkeypatch)
    assert "python 2train.py --target coarsen --lr-step 0.4 --hr-step 0.1" in words
    assert not list(tmp_path.glob("*.nc"))
    words = said(3, ["--checkpoint", home.x10, "--region", 0, 4, 0, 4, "--out", tmp_path], monkeypatch)
    assert "not inside the file" in words and "99.5..116.5 E" in words
    for argv, part in (
        (["--checkpoint", "gone.pth"], "gone.pth: no such checkpoint; 2train.py makes it"),
        (["--checkpoint", home.lists], "a folder; expected a checkpoint or export"),
        (["--checkpoint", home.lists / "PreEval.json"], "PreEval.json: not a checkpoint"),
        (
            ["--data-folder", "nowhere", "--checkpoint", home.x10],
            "nowhere/PreEval.json: no such list; run 1create_data_lists.py --output-folder nowhere first",
        ),
        (["--region", 1, 2, 3], "expected LONW LONE LATS LATN, or all"),
        (["--units", "inch", "--checkpoint", home.x10], "inch: expected one of auto, mm"),
    ):
        assert re.search(part, said(3, [*argv, "--out", tmp_path], monkeypatch)), argv
    for seed in ("-1", "9" * 23):
        assert said(3, ["--checkpoint", home.x10, "--seed", seed, "--out", tmp_path], monkeypatch) == 2
        assert f"'{seed}': expected a whole number from 0 to 1000000000" in capsys.readouterr().err


def test_the_checkpoint_that_fits_is_found(home, tmp_path, monkeypatch, capsys):
    run(4, "--out", tmp_path / "4")
    run3("--out", tmp_path / "3")
    run3("--data-folder", "Data/JsonHr", "--out", tmp_path / "hr")
    words = capsys.readouterr().out
    assert "pre_srgan_x4.pth (target interpolate)" in words and "pre_srgan_x10.pth (target interpolate)" in words
    assert "choose another with --checkpoint" in words
    monkeypatch.chdir(tmp_path)
    assert "not on disk; run 1create_data_lists.py again" in said(
        3, ["--data-folder", home.lists, "--out", "x"], monkeypatch
    )


def test_a_generator_that_has_diverged_writes_nothing(home, tmp_path, monkeypatch):
    state = torch.load(home.x10, weights_only=True)
    name = next(name for name in state["ema"]["weights"] if name.startswith("net.outs."))
    state["ema"]["weights"][name][0] = float("nan")
    torch.save(state, tmp_path / "nan.pth")
    words = said(3, ["--checkpoint", tmp_path / "nan.pth", "--out", tmp_path / "out"], monkeypatch)
    assert "00_pre_sr.nc" in words and "not finite" in words and "2023_08_01.nc" in words
    assert not list((tmp_path / "out").glob("*"))


def test_units_are_part_of_what_was_asked_for(home, tmp_path):
    run(5, "--split", "obj", "--hr-step", 0.1, "--out", tmp_path / "5")
    first = outputs(tmp_path / "5", "hr")[0]
    run(5, "--split", "obj", "--hr-step", 0.1, "--out", tmp_path / "5", "--units", "cm")
    np.testing.assert_allclose(outputs(tmp_path / "5", "hr")[0], first / 100, rtol=1e-6)
    (moved,) = (home.home / "Data/DataResults/Historical_Records").glob("5_*")
    assert len(list(moved.iterdir())) == 6
    shutil.rmtree(moved)


def test_the_same_command_twice_gives_the_same_bytes(home, tmp_path):
    """Lists here; NetCDF files, scores and pictures in test_survival.py, weights below."""
    for name in "ab":
        run(1, "--output-folder", tmp_path / name)
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert len(files) == 4
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        lambda s: {k: v for k, v in s.items() if k != "ema"},
        lambda s: {k: v for k, v in s.items() if k != "data_config"},
        lambda s: s | {"ema": {"weights": dict(list(s["ema"]["weights"].items())[1:]), "updates": 1}},
        lambda s: s | {"ema": {"weights": s["ema"]["weights"] | {"extra": torch.zeros(1)}, "updates": 1}},
        lambda s: s | {"generator_config": s["generator_config"] | {"colour": 3}},
        lambda s: s | {"generator_config": s["generator_config"] | {"channels": 16}},
        lambda s: s | {"data_config": s["data_config"] | {"colour": 3}},
        lambda s: s | {"format": 99},
    ],
)
def test_a_checkpoint_that_is_not_whole_is_refused_in_words(home, tmp_path, monkeypatch, change):
    torch.save(change(torch.load(home.x10, weights_only=True)), tmp_path / "odd.pth")
    words = said(3, ["--checkpoint", tmp_path / "odd.pth", "--out", tmp_path], monkeypatch)
    assert words.startswith("error: ") and "odd.pth" in words


def test_a_checkpoint_of_the_earlier_format_is_refused_in_one_sentence(home, tmp_path, monkeypatch):
    state = torch.load(home.x10, weights_only=True)
    torch.save(state | {"format": 3}, tmp_path / "old.pth")
    expected = (
        f"old.pth: checkpoint format 3, expected {utils.CHECKPOINT_FORMAT}; train again with this version of 2train.py"
    )
    uses = [(3, "--out", tmp_path, "--checkpoint"), (2, "--resume", "--checkpoint"), (2, "--lr-step", 1, "--init")]
    for number, *argv in uses:
        assert said(number, [*argv, tmp_path / "old.pth"], monkeypatch) == f"error: {tmp_path}/{expected}", argv


def test_find_checkpoint_skips_what_is_none_and_says_why(home, tmp_path):
    (tmp_path / "pre_srgan_x100.pth").write_text("text")
    with pytest.raises(DataError, match=r"(?s)fits the eval list.*pre_srgan_x100.pth.*2train.py"):
        downscaling.find_checkpoint(home.lists, "eval", folder=tmp_path)
    for target in ("coarsen", "interpolate"):  # both fit; the default target comes first
        state = utils.load_checkpoint(home.x10)
        state["data_config"]["target"] = target
        utils.save_checkpoint(tmp_path / f"pre_srgan_{target}_x40.pth", state)
    path, state = downscaling.find_checkpoint(home.lists, "eval", folder=tmp_path)
    assert path.name == "pre_srgan_interpolate_x40.pth" and state["data_config"]["target"] == "interpolate"


def test_models_of_other_names_are_offered_with_the_command_that_uses_them(home, tmp_path, monkeypatch):
    """The first error lists all that is there; the command it gives is typed and runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Data/SavedModels").mkdir(parents=True)
    shutil.copytree(home.home / "Data/DataEval", "Data/DataEval")
    run(1)
    for path, name in ((home.x10, "shipped_x10.pth"), (home.coarsen, "other.pth"), (home.x4, "x4.pth")):
        shutil.copy(path, tmp_path / "Data/SavedModels" / name)
    (tmp_path / "Data/SavedModels/text.pth").write_text("text")
    words = said(3, ["--members", 2, "--no-scores", "--out", "a folder"], monkeypatch)
    assert "no model of yours (Data/SavedModels/pre_srgan*_x*.pth) fits the eval list" in words
    about = (
        "x10, 1 to 0.1 degree, target {}, trained on region 106 110 26 30, rain of 24 h; the files hold its LR cells; "
        "makes 50 x 50"
    )
    assert f"shipped_x10.pth: {about.format('interpolate')}" in words and "text.pth: not a checkpoint" in words
    assert f"other.pth: {about.format('coarsen')}" in words
    assert (
        "x4.pth: x4, 0.4 to 0.1 degree, target interpolate, trained on region 106 110 26 30, rain of 24 h; its" in words
    )
    command = next(line for line in words.splitlines() if line.endswith("/shipped_x10.pth"))
    typed = shlex.split(command)
    assert typed[:2] == ["python", "3downscale_eval.py"]
    run(3, *typed[2:])
    assert len(outputs(tmp_path / "a folder")) == 3 and outputs(tmp_path / "a folder")[0].sizes["member"] == 2
    train = words.splitlines()[-1]
    assert train.strip().startswith("python 2train.py --target interpolate --lr-step 1 --hr-step 0.01 (with training")


@pytest.mark.parametrize("number, split, name", [(3, "eval", "x10"), (4, "obj", "x4")])
def test_a_model_that_interpolates_is_named_with_one_that_knows_real_rain(
    home, tmp_path, capsys, monkeypatch, number, split, name
):
    """The NOTE is one line, and its command, typed, downscales the region of the model that was taken."""
    (tmp_path / "Data/SavedModels").mkdir(parents=True)
    for folder in ("JsonPath", "DataEval", "DataObj"):
        (tmp_path / "Data" / folder).symlink_to(home.home / "Data" / folder)
    monkeypatch.chdir(tmp_path)
    ours, state = getattr(home, name), utils.load_checkpoint(getattr(home, name))
    shutil.copy(ours, "Data/SavedModels")
    state["data_config"] |= {"target": "coarsen", "region": "all"}
    utils.save_checkpoint(tmp_path / f"Data/SavedModels/radar_{name}.pth", state)
    run(number, "--members", 2, *(["--no-scores"] if number == 3 else []))
    words = capsys.readouterr().out
    assert f"taking {ours.name}, the first" in words and "the files hold its LR cells" in words
    (note,) = [line for line in words.splitlines() if line.startswith("NOTE: pre_srgan")]
    assert note.startswith(
        f"NOTE: {ours.name} learned to interpolate; radar_{name}.pth knows real rain: python {number}"
    )
    assert note.endswith(f"--checkpoint Data/SavedModels/radar_{name}.pth --region 106 110 26 30")
    before = outputs(tmp_path / f"Data/DataResults/Result{split.title()}")
    run(number, *shlex.split(note.split(".py ")[1]))
    after = outputs(tmp_path / f"Data/DataResults/Result{split.title()}")
    assert [field.shape for field in after] == [field.shape for field in before]
    for path in Path("Data/SavedModels").glob("pre_srgan*"):  # without a model of one's own the same command is offered
        path.unlink()
    with pytest.raises(DataError, match=f"(?s)no model of yours.*radar_{name}.pth --region 106 110 26 30\n"):
        downscaling.find_checkpoint(home.lists, split)


def test_without_a_model_of_ones_own_the_one_that_comes_with_the_program_is_taken(home, tmp_path, capsys):
    """Over the default region, where files hold it, for files of its LR cells; an own model that fits comes first."""
    state = utils.load_checkpoint(home.coarsen)
    state["data_config"]["region"] = "all"
    utils.save_checkpoint(tmp_path / "daily_x10.pth", state)
    state = utils.load_checkpoint(home.x4)
    utils.save_checkpoint(tmp_path / "pre_srgan_tied_x4.pth", {**state, "region_cells": ["31", "106", 4, 4]})
    path, taken = downscaling.find_checkpoint(home.lists, "eval", folder=tmp_path)
    words = " ".join(capsys.readouterr().out.split())
    assert path.name == "daily_x10.pth" and tuple(taken["data_config"]["region"]) == datasets.DataConfig.region
    assert "taking daily_x10.pth, which comes with the program, over region 106 110 26 30 (choose others" in words
    assert "the files hold its LR cells; makes 50 x 50" in words and "pre_srgan_tied_x4.pth: x4" in words
    with pytest.raises(DataError, match="models of other names that fit are used where you name them"):
        downscaling.find_checkpoint(home.hr_lists, "eval", folder=tmp_path)  # files at its HR step
    shutil.copy(home.x10, tmp_path / "pre_srgan_x10.pth")
    assert downscaling.find_checkpoint(home.lists, "eval", folder=tmp_path)[0].name == "pre_srgan_x10.pth"


def test_a_model_tied_to_a_region_and_the_training_command_of_fine_files(home, tmp_path):
    state = utils.load_checkpoint(home.coarsen)
    utils.save_checkpoint(tmp_path / "tied_x10.pth", {**state, "region_cells": ["31", "106", 4, 4]})
    with pytest.raises(DataError) as no:
        downscaling.find_checkpoint(home.hr_lists, "eval", folder=tmp_path)
    words = str(no.value)
    assert "x10, 1 to 0.1 degree, target coarsen, for region 106 110 26 30 alone, rain of 24 h; does not fit" in words
    assert f"python 2train.py --data-folder {home.hr_lists} --target" in words


def test_several_models_that_fit_are_listed_in_their_order_with_the_reason(home, tmp_path, capsys):
    for target, lr_step in (("coarsen", 1.0), ("interpolate", 1.0), ("interpolate", 0.4)):
        state = utils.load_checkpoint(home.x10 if lr_step == 1 else home.x4)
        state["data_config"]["target"] = target
        utils.save_checkpoint(utils.default_checkpoint(target, round(lr_step / 0.1), tmp_path), state)
    path, _ = downscaling.find_checkpoint(home.lists, "eval", folder=tmp_path)
    words = capsys.readouterr().out.splitlines()
    assert path.name == "pre_srgan_x10.pth"
    assert "3 model(s)" in words[0] and "taking pre_srgan_x10.pth, the first of this order" in words[0]
    assert [line.split(":")[0].strip() for line in words[1:4]] == [
        "pre_srgan_x10.pth",
        "pre_srgan_coarsen_x10.pth",
        "pre_srgan_x4.pth",
    ]
    assert "its LR cells are finer than the files', which are interpolated to them first" in words[3]
    for name in ("pre_srgan_x10.pth", "pre_srgan_coarsen_x10.pth"):
        (tmp_path / name).unlink()
    downscaling.find_checkpoint(home.lists, "eval", folder=tmp_path)  # also where it is the only one
    assert "1 model(s)" in (words := capsys.readouterr().out) and "finer than the files'" in words
