"""Realism: real against real is 1 (judges 0.5), and each measure finds the fault it is for, on streaky fields."""

import functools
import importlib.util

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, gaussian_filter, gaussian_filter1d
from test_verification import block_mean, needs_tools, tool

import realism
from realism import (
    KEYS,
    STREAKS,
    Patches,
    Realism,
    coherence,
    directions,
    judges,
    realism_scores,
    seams,
    texture,
    texture_ratios,
    texture_sums,
)
from verification import ScoreTable, format_table


@functools.cache
def streaky(seed, side=384, angle=0.6):
    """Rain in streaks, (side, side) float32, mm: noise smoothed along a direction that turns slowly eastwards."""
    noise = np.random.default_rng(seed).normal(size=(side, side))
    ky, kx = np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side), indexing="ij")
    fields = []
    for turn in (angle - 0.4, angle + 0.4):
        along, across = kx * np.cos(turn) + ky * np.sin(turn), ky * np.cos(turn) - kx * np.sin(turn)
        power = np.exp(-2 * np.pi**2 * ((24 * along) ** 2 + (3 * across) ** 2))
        field = np.fft.ifft2(np.fft.fft2(noise) * power).real
        fields.append(field / field.std())
    east = np.linspace(0, 1, side)
    return np.exp(1 + (1 - east) * fields[0] + east * fields[1]).astype(np.float32)


def isotropic(field, seed):
    """A field of the same radial spectrum and the same amounts, without streaks."""
    rain, (h, w) = np.log(field), field.shape
    ring = np.hypot(*np.meshgrid(np.fft.fftfreq(h, 1 / h), np.fft.fftfreq(w, 1 / w), indexing="ij")).astype(int)
    power = np.abs(np.fft.fft2(rain)) ** 2
    mean = np.bincount(ring.ravel(), power.ravel()) / np.bincount(ring.ravel())
    noise = np.fft.fft2(np.random.default_rng(seed).normal(size=(h, w)))
    order = np.fft.ifft2(noise * np.sqrt(mean[ring])).real.ravel().argsort().argsort()
    return np.sort(field.ravel())[order].reshape(h, w)


def test_real_against_real_has_the_best_scores():
    truth = [streaky(0)]
    scores = realism_scores(truth, [truth[0][None]], 32, judges=1, steps=20)
    assert scores["judges"] == pytest.approx(0.5, abs=0.12) and scores["directions"] == pytest.approx(0, abs=1e-6)
    assert [scores[key] for key in ("seams", "streaks_fine", "streaks_broad")] == pytest.approx([1, 1, 1])


def test_turned_fields_keep_their_streaks_and_isotropic_ones_lose_them():
    turned = texture([streaky(0)], [np.stack([np.rot90(streaky(0), k) for k in range(4)])], 32)
    lost = texture([streaky(0)], [np.stack([isotropic(streaky(0), k) for k in range(2)])], 32)
    assert turned["streaks_fine"] == pytest.approx(1, abs=0.02) and turned["streaks_broad"] == pytest.approx(
        1, abs=0.02
    )
    assert lost["streaks_fine"] < 0.7 and lost["streaks_broad"] < 0.7


def test_sums_of_windows_add_up():
    windows, made = [streaky(0), streaky(1)], [isotropic(streaky(k), k) for k in range(2)]
    sums = [sum(texture_sums([field], 32) for field in fields) for fields in (made, windows)]
    whole = texture(windows, [field[None] for field in made], 32)
    assert texture_ratios(*sums) == pytest.approx(whole)
    for k, name in enumerate(("streaks_fine", "streaks_broad")):
        assert whole[name] == pytest.approx(coherence(made, *STREAKS[k]) / coherence(windows, *STREAKS[k]))
    assert whole["seams"] == pytest.approx(seams(made, 32) / seams(windows, 32))


def test_jumps_at_cell_edges_are_seams():
    cells = np.random.default_rng(0).uniform(0.7, 1.4, (12, 12)).repeat(32, 0).repeat(32, 1)
    assert texture([streaky(0)], [(streaky(0) * cells)[None]], 32)["seams"] > 1.5


def test_one_and_the_same_direction_everywhere_is_no_skill():
    truth = [streaky(k, angle=2 * k) for k in range(3)]
    same = [np.stack([streaky(10 + m, angle=0.2) for m in range(3)])] * 3
    known = [np.stack([streaky(20 + m, angle=2 * k) for m in range(3)]) for k in range(3)]
    assert directions(truth, same) > 0.9 > 0.6 > directions(truth, known)


def test_smooth_rain_is_found_by_the_judges():
    made = gaussian_filter(streaky(1), 8)[None]
    assert judges([streaky(0)], [made], judges=1, steps=60) > 0.8


# ---------------------------------------------------------------- other ways to the same numbers


def with_gaps(seed):
    """A truth with missing pixels and a sector without rain, and three members of it, one of them with a gap."""
    truth = np.where(streaky(seed) > 2, streaky(seed), 0).astype(np.float32)
    members = np.stack([truth * streaky(seed + k) / 4 for k in (1, 2, 3)])
    truth[40:70, 300:], members[0, 200:230, :20] = np.nan, np.nan
    return truth, members


def test_coherence_and_seams_are_those_of_plain_code():
    truth, _ = with_gaps(5)
    rain = np.log10(1 + 10 * np.nan_to_num(truth))
    for sigma, gather in STREAKS:
        gy, gx = (gaussian_filter(rain, sigma, order=order) for order in ((1, 0), (0, 1)))
        tensor = [gaussian_filter(part, gather) for part in (gx * gx, gx * gy, gy * gy)]
        values = np.linalg.eigvalsh(
            np.moveaxis(np.array([[tensor[0], tensor[1]], [tensor[1], tensor[2]]]), (0, 1), (2, 3))
        )
        use = np.zeros(truth.shape, bool)
        use[::4, ::4] = ((truth > 0.1) & ~binary_dilation(np.isnan(truth), iterations=12))[::4, ::4]
        expected = (values[use][:, 1] - values[use][:, 0]).sum() / values[use].sum()
        assert coherence([truth], sigma, gather) == pytest.approx(expected, rel=1e-3)
    rain = np.log10(1 + 10 * truth)
    found = {True: [], False: []}
    for lines in (rain, rain.T):
        for k in range(1, lines.shape[1]):
            jumps = np.abs(lines[:, k] - lines[:, k - 1])
            found[k % 32 == 0] += list(jumps[jumps > 0])
    assert seams([truth], 32) == pytest.approx(np.mean(found[True]) / np.mean(found[False]), rel=1e-5)


@needs_tools
def test_scores_are_those_of_the_published_tool():
    published, (truth, members) = tool("score_realism"), zip(*(with_gaps(k) for k in (0, 10)), strict=True)
    table = Realism(32)
    for hr, sr in zip(truth, members, strict=True):
        table.add(hr, {"ensemble": sr})
    expected = [published.seams(members, 32) / published.seams(truth, 32)]
    first = [sr[0] for sr in members]
    expected += [published.coherence(first, *pair) / published.coherence(truth, *pair) for pair in STREAKS]
    expected.append(published.directions(truth, members))
    assert [table.scores("ensemble")[key] for key in KEYS[1:]] == pytest.approx(expected, rel=1e-4)
    assert seams(truth, 32) == pytest.approx(published.seams(truth, 32), rel=1e-6)


# ---------------------------------------------------------------- patches


def test_judges_see_wet_patches_without_gaps_of_both_halves():
    fields = np.zeros((2, 200, 300), np.float32)
    fields[0, :, :150], fields[1, :, 150:] = 1, 3
    present = np.ones((200, 300), bool)
    present[:, 80] = False
    patches = Patches(48, limits=(100, 50))
    for _ in range(3):
        patches.add(fields, present)
    assert [len(kept) for kept in patches.kept] == [100, 50] and min(patches.seen) > 100 and not patches.missing()
    random = np.random.default_rng(0)
    assert patches.batch(0, 7, random).shape == (7, 48, 48)
    assert all(np.log10(11) == pytest.approx(patch[:, 0].max(), abs=0.7) for patch in patches.batch(0, 50, random))


@pytest.mark.parametrize("side, rain, words", [(100, 3, "halves of 100 x 100"), (200, 0, "no wet patch of 64 pixels")])
def test_where_no_patch_is_found_judges_are_blank_and_say_why(side, rain, words):
    truth = np.full((side, side), rain, np.float32)
    assert np.isnan(judges([truth], [truth[None]], steps=1))
    table = Realism(10)
    table.add(truth, {"ensemble": truth[None]}, judged=["ensemble"])
    assert np.isnan(table.scores("ensemble")["judges"]) and words in " ".join(table.reasons("ensemble"))


# ---------------------------------------------------------------- the score table


def table_of(hr, sr, scale, **options):
    """A ScoreTable with realism, judged quickly, of days hr (D, H, W) and sr (D, M, H, W)."""
    table = ScoreTable(scale, realism=Realism(scale, judges=1, steps=5), **options)
    for day, (truth, members) in enumerate(zip(hr, sr, strict=True)):
        table.add(members, truth, block_mean(truth, scale), day=day)
    return table


def test_the_table_holds_the_realism_of_its_rows():
    hr, sr = streaky(0)[None], np.stack([streaky(k) for k in (1, 2)])[None]
    rows = {row["name"]: row for row in table_of(hr, sr, 48).rows(resamples=2)}
    whole = realism_scores(hr, sr, 48, judges=1, steps=1)
    for key in KEYS[1:]:
        assert rows["ensemble"][key] == pytest.approx(whole[key])
        assert np.isfinite([rows[name][key] for name in ("one member", "bilinear")]).all()
        assert np.isnan([rows[name][key] for name in ("nearest", "bicubic", "ensemble mean")]).all()
    assert (
        0 <= rows["ensemble"]["judges"] <= 1 and np.isnan([rows[n]["judges"] for n in ("one member", "bilinear")]).all()
    )
    text = format_table([*rows.values()])
    (line,) = [line for line in text.splitlines() if line.startswith("ensemble  ")][1:]
    words = f"{whole['streaks_fine']:.2f}/{whole['streaks_broad']:.2f}"
    assert words in line and f"{whole['seams']:.2f}" in line and max(map(len, text.splitlines())) <= 100


@pytest.mark.skipif(not importlib.util.find_spec("pysteps"), reason="pysteps is not installed")
@pytest.mark.parametrize("windows", [False, True])
def test_rainfarm_stands_in_the_table_and_is_made_once_a_day(windows, monkeypatch):
    import verification

    calls, made = [], verification.rainfarm
    monkeypatch.setattr(verification, "rainfarm", lambda *a, **k: calls.append(made(*a, **k)) or calls[-1])
    table, hr = ScoreTable(48, realism=Realism(48, judges=1, steps=3), rainfarm_members=2), streaky(0)
    options = {"day": 0} | ({"side": 4} if windows else {})
    (table.add_windows if windows else table.add)(streaky(1)[None], hr, block_mean(hr, 48), **options)
    row = {row["name"]: row for row in table.rows(resamples=2)}["RainFARM"]
    expected = realism_scores([hr], [calls[0]], 48, judges=1, steps=1)
    assert len(calls) == 1 and 0 <= row["judges"] <= 1 and table.fields == (9 if windows else 1)
    assert [row[key] for key in KEYS[1:]] == pytest.approx([expected[key] for key in KEYS[1:]])


def test_small_domains_are_blank_with_a_reason():
    hr = streaky(0)[None, :96, :96]
    table = table_of(hr, hr[:, None], 4, rainfarm_members=0)
    row = table.rows(resamples=2)[-1]
    assert row["seams"] == pytest.approx(1)
    assert np.isnan([row[key] for key in ("judges", "streaks_fine", "streaks_broad", "directions")]).all()
    lines = format_table(table.rows(resamples=2)).splitlines()
    text = " ".join(" ".join(lines).split())
    assert ["one", "member", "1.00"] in [line.split() for line in lines]
    assert not any(line.endswith(" ") for line in lines)
    for words in (
        "judges: no wet patch of 64 pixels without gaps in the halves of 96 x 96 pixels",
        "streaks, fine: 96 pixels are too short for them, 128 are needed",
        "directions: 1 of at least 8 wet blocks of 64 pixels",
    ):
        assert words in text, words


@pytest.mark.parametrize("shape", [(500, 300), (40, 257)])
@pytest.mark.parametrize("order", [0, 1])
def test_smoothing_by_a_band_of_weights_is_the_gaussian_filter(shape, order):
    field = np.random.default_rng(0).random(shape).astype(np.float32)
    plain = gaussian_filter1d(field.astype(np.float64), 6, axis=0, order=order)
    np.testing.assert_allclose(realism._smoothed(field, 6, order), plain, atol=1e-6)
