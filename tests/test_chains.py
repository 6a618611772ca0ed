"""Chains of models (`--checkpoint A.pth B.pth`): amounts, noise, tiles and regions through several links."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from conftest import block_means, lr_rain, make, outputs, run3, said

import downscaling
import tiles
import utils
import verification
from datasets import DataConfig, SRDataset
from downscaling import Link, Model, downscale
from limits import Knowledge
from reader import Grid, ratio
from utils import DataError

KEYS = ["0|0|2023-08-01", "0|1|2023-08-01"]


@pytest.fixture(scope="module")
def fine(project, tmp_path_factory):
    """A checkpoint of 0.1 to 0.05 degree that learned real rain, other weights than the project's."""
    return made_of(project.coarsen, tmp_path_factory.mktemp("fine") / "fine_x2.pth", make(2, seed=3), 0.1, 0.05)


def made_of(path, out, generator, lr_step, hr_step, **changes):
    """A checkpoint like the one at `path`, with this generator and these steps."""
    state = utils.load_checkpoint(path)
    state["data_config"] |= {"lr_step": lr_step, "hr_step": hr_step, "region": "all"}
    state |= {"generator_config": vars(generator.config), "ema": {"weights": generator.state_dict(), "updates": 1}}
    state["knows"] = state["knows"] | changes.pop("knows", {})
    state["data_config"] |= changes.pop("data_config", {})
    utils.save_checkpoint(out, state | changes)
    return out


def chain_of(*generators, north=30.5, west=106, shape=(4, 5), maps=None):
    """Links of generators over a region of 1 degree cells."""
    grid, links = Grid(ratio(north), ratio(west), ratio(1), *shape), []
    for generator in generators:
        model = Model(Path("x.pth"), DataConfig(), generator, None, None, None, Knowledge(), {})
        links.append(Link(model, grid, maps, None))
        grid = grid.refine(generator.scale)
    return links


def through(links, lr, keys=KEYS, tile=None):
    """All tiles and members of a chain put together: (members, H, W)."""
    scale = int(np.prod([link.model.generator.scale for link in links]))
    out = np.full((len(keys), *(n * scale for n in lr.shape)), -1, np.float32)
    for members, rows, cols, sr in downscaling._through(links, lr, keys, tile, None, "x.nc"):
        out[members, rows, cols] = sr
    return out


@pytest.mark.parametrize("scales", [(2, 4), (2, 2, 2)])
def test_amounts_and_gaps_go_through_a_chain_and_tiles_change_nothing(scales):
    links, lr = chain_of(*(make(scale, seed=k) for k, scale in enumerate(scales))), lr_rain(4, 5)
    lr[1, 2] = np.nan
    whole, total = through(links, lr), int(np.prod(scales))
    means = whole.astype("float64").reshape(2, 4, total, 5, total).mean((2, 4))
    np.testing.assert_allclose(means, np.stack([lr, lr]), rtol=1e-5)
    assert np.array_equal(np.isnan(whole[0]), np.kron(np.isnan(lr), np.ones((total, total), bool)))
    assert not np.array_equal(whole[0], whole[1], equal_nan=True)
    np.testing.assert_allclose(through(links, lr, tile=4), whole, rtol=1e-4, atol=1e-5)
    assert not (whole[:, :total, :total][:, :, :] < 0).any()


def test_each_link_makes_one_member_of_each_member_of_the_one_before():
    first, second = make(2), make(2, seed=1)
    lr, links = lr_rain(4, 5), chain_of(first, second)
    whole = through(links, lr)
    between = np.zeros((2, 8, 10), np.float32)
    for rows, cols, sr in downscale(first, lr, members=2, day="2023-08-01", origin=links[0].grid.origin):
        between[:, rows, cols] = sr
    np.testing.assert_allclose(whole.reshape(2, 8, 2, 10, 2).mean((2, 4)), between, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(through(links, lr, keys=KEYS[1:])[0], whole[1])
    np.testing.assert_array_equal(through(links[:1], lr), between)  # a chain of one is the model alone


def test_noise_of_links_is_keyed_by_cell_and_by_link():
    """Another region with the same cells makes the same rain there; the same model twice draws its noise anew."""
    first, second = make(2, noise_channels=1), make(2, seed=1)
    lr, keys = np.full((30, 30), 5.0, np.float32), KEYS[:1]
    wide, part = chain_of(first, second, shape=(30, 30)), chain_of(first, second, north=29.5, west=107, shape=(28, 28))
    a, b = through(wide, lr, keys)[0], through(part, lr[:28, :28], keys)[0]
    np.testing.assert_allclose(b[56:64, 56:64], a[60:68, 60:68], rtol=1e-3)  # far from both edges
    keys = set()
    original = tiles._cell_noise

    def spy(channels, grid, key, row, column):
        keys.add(key)
        return original(channels, grid, key, row, column)

    tiles._cell_noise = spy
    try:
        through(chain_of(first, first), lr[:2, :2], keys=KEYS[:1])
    finally:
        tiles._cell_noise = original
    assert keys == {KEYS[0], f"{KEYS[0]}|next"}


def test_stages_3_and_4_run_a_chain_and_the_outputs_name_all_links(home, fine, tmp_path, capsys):
    """Stage 3: real truth is at 0.1 degree only, so none is scored; amounts are those of the days."""
    argv = ["--data-folder", home.lists, "--checkpoint", home.coarsen, fine, "--members", 2]
    run3(*argv, "--out", tmp_path / "a", "--plots")
    words = capsys.readouterr().out
    assert f"3 fields x20 with {home.coarsen}, then {fine} (target coarsen)" in words
    run3(*argv, "--out", tmp_path / "b", "--tile", 30)
    for a, b in zip(outputs(tmp_path / "a"), outputs(tmp_path / "b"), strict=True):
        assert a.shape == (2, 100, 100)
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)
    attrs = xr.open_dataset(tmp_path / "a/00_pre_sr.nc").attrs
    digests = [utils.digest(home.coarsen), utils.digest(fine)]
    assert attrs["checkpoint"] == " ".join(digests) and attrs["scale"] == 20 and attrs["target"] == "coarsen"
    assert attrs["chain"] == (
        f"{home.coarsen.name} {digests[0]}, 1 to 0.1 degree, target coarsen; "
        f"fine_x2.pth {digests[1]}, 0.1 to 0.05 degree, target coarsen"
    )
    assert attrs["accumulation_period"] == "24 h, as in training"
    one = outputs(tmp_path / "a")[0]
    day = downscaling.read_lr(home.lists, "eval", downscaling.data_config(utils.load_checkpoint(home.coarsen)))[0]
    np.testing.assert_allclose(block_means(one, 20), [day.values()] * 2, atol=1e-3)
    assert (tmp_path / "a/plots/00_maps.png").exists()


def test_a_chain_is_scored_where_the_files_are_its_truth(home, fine, tmp_path):
    """Files at the HR step of the last link are averaged to the LR step of the first, and are the truth."""
    first = made_of(home.coarsen, tmp_path / "first.pth", make(2, seed=5), 0.4, 0.2)
    second = made_of(home.coarsen, tmp_path / "second.pth", make(2, seed=6), 0.2, 0.1)
    argv = ["--data-folder", home.hr_lists, "--out", str(tmp_path / "out"), "--region", "104", "112", "24", "32"]
    argv = [*map(str, argv), "--checkpoint", str(first), str(second), "--members", "2"]
    config, _, paths = downscaling.downscale_list(downscaling.downscale_parser("", "x").parse_args(argv), "eval")
    assert config.scale == 4
    pairs = SRDataset(home.hr_lists, "eval", dataarray=True, **asdict(config))  # as stage 3 scores
    rows = {row["name"]: row for row in verification.score_outputs(paths, pairs, 4).rows(resamples=2)}
    assert rows["ensemble"]["conservation_mm"] < 1e-3 < rows["bilinear"]["conservation_mm"]
    assert rows["ensemble"]["fields"] == 3


@pytest.mark.parametrize("which", ["steps", "period", "tied", "static"])
def test_what_does_not_fit_a_chain_is_one_error(home, fine, tmp_path, monkeypatch, which):
    argv, models = ["--data-folder", home.lists, "--out", tmp_path / "out", "--no-scores"], [home.coarsen, fine]
    if which == "steps":
        models = [fine, home.coarsen]
        expected = f"{fine} makes cells of 0.05 degree, {home.coarsen} takes cells of 1 degree; expected one step"
    elif which == "period":
        models[1] = made_of(home.coarsen, tmp_path / "h.pth", make(2), 0.1, 0.05, knows={"period_hours": 1.0})
        expected = "h.pth learned rain of 1 h, and the eval list holds rain of 24 h"
    elif which == "tied":
        models[1] = made_of(home.coarsen, tmp_path / "t.pth", make(2), 0.1, 0.05, region_cells=["31", "106", 4, 4])
        expected = "t.pth: the generator is tied to the region it was trained on (4 x 4 cells from 31 N, 106 E)"
    else:
        argv += ["--static", tmp_path / "none.nc"]
        expected = f"{home.coarsen}: trained without static fields; leave --static out"
    words = said(3, [*argv, "--checkpoint", *models], monkeypatch)
    assert words.startswith("error: ") and expected in words
    assert not (tmp_path / "out").exists()


def test_a_link_that_learned_to_interpolate_is_named_and_says_the_target(home, fine, tmp_path, capsys):
    run3("--data-folder", home.lists, "--checkpoint", home.x10, fine, "--out", tmp_path / "out")
    words = capsys.readouterr().out
    assert f"WARNING: {home.x10} learned to interpolate: the detail that it adds to this chain is not real" in words
    assert xr.open_dataset(tmp_path / "out/00_pre_sr.nc").attrs["target"] == "interpolate"


def test_a_link_that_has_diverged_is_named(home, fine, tmp_path, monkeypatch):
    state = torch.load(fine, weights_only=True)
    name = next(name for name in state["ema"]["weights"] if name.startswith("net.outs."))
    state["ema"]["weights"][name] = state["ema"]["weights"][name] * float("nan")
    torch.save(state, tmp_path / "nan.pth")
    argv = ["--data-folder", home.lists, "--out", tmp_path / "out", "--checkpoint", home.coarsen, tmp_path / "nan.pth"]
    words = said(3, argv, monkeypatch)
    assert "00_pre_sr.nc" in words and "nan.pth made values that are not finite" in words
    assert not list((tmp_path / "out").glob("*"))


def test_memory_of_a_chain_is_that_of_its_whole_fields_between(home, fine, monkeypatch):
    """All but the last hold whole fields of all members; more members ask for more, before anything is made."""
    asked = []
    monkeypatch.setattr(utils, "check_memory", lambda size, *words: asked.append(size))
    links = [link.model for link in chain_of(make(10), make(10))]
    fields = downscaling.read_lr(home.lists, "eval", DataConfig(hr_step=0.1))
    for members, tile in ((1, None), (8, None), (8, 2)):
        args = downscaling.downscale_parser("", "x").parse_args(["--members", str(members)])
        args.tile = tile
        downscaling.check_room(args, fields, links)
    ring, channels = links[0].generator.ring, links[0].generator.config.channels
    tile, whole = (2 + 2 * ring) ** 2 * 100, 50 * 50  # the next model's input cells are those of the whole field
    assert asked[2] == 4 * (8 * (tile + whole + channels * 25) + tile + channels * whole)
    assert asked[0] < asked[1] and asked[2] < asked[1]
    with pytest.raises(DataError, match="expected one step"):
        downscaling.chain_config([model._replace(config=DataConfig()) for model in links])
