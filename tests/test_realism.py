"""Realism: real against real is 1 (judges 0.5), and each measure finds the fault it is for, on streaky fields."""

import functools

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from realism import STREAKS, coherence, directions, judges, realism_scores, seams, texture, texture_ratios, texture_sums


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
