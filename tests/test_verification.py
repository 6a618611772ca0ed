"""Scores and the score table: published and hand-computed examples, pysteps and `scores` as oracles, faults caught.

Tests against ../shared/tools and ../shared/data skip where these are absent.
"""

import csv
import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from conftest import ROOT

import utils
import verification
from forecasts import compare_cells, pair_cells
from verification import (
    QuantileMatcher,
    ScoreTable,
    fair_crps,
    lsd,
    rainfarm,
    rapsd,
    sal,
    upsample,
)

SHARED = ROOT.parent / "shared"
needs_tools = pytest.mark.skipif(not (SHARED / "tools").is_dir(), reason="../shared/tools is absent")
needs_data = pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="../shared/data is absent")
needs_pysteps = pytest.mark.skipif(not importlib.util.find_spec("pysteps"), reason="pysteps is not installed")


def block_mean(field, factor):
    *lead, h, w = field.shape
    return field.reshape(*lead, h // factor, factor, w // factor, factor).mean((-3, -1), dtype=np.float64)


def rain(seed, *shape):
    """Smooth skewed fields with dry parts, (..., H, W) float32, mm."""
    noise = np.random.default_rng(seed).normal(size=shape)
    spectrum = (
        np.fft.fft2(noise)
        / (1 + np.hypot(*np.meshgrid(*(np.fft.fftfreq(n, 1 / n) for n in shape[-2:]), indexing="ij"))) ** 1.4
    )
    field = np.fft.ifft2(spectrum).real
    return np.maximum(4 * np.exp(field / field.std()) - 2.5, 0).astype(np.float32)


def conserving(seed, hr, scale, members):
    """Members that know hr up to noise in every pixel and have its block means, as a conserving generator would."""
    noise = hr * np.exp(np.random.default_rng(seed).normal(0, 0.5, (members, *hr.shape)))
    factor = block_mean(hr, scale) / np.maximum(block_mean(noise, scale), 1e-9)
    return (noise * factor.repeat(scale, -2).repeat(scale, -1)).astype(np.float32)


def table_of(days, scale=8, *, members=4, sr_of=None, **options):
    """A ScoreTable of `days` synthetic days of 32 x 32; sr_of(k, hr, lr) makes SR (default: a conserving ensemble)."""
    table = ScoreTable(scale, thresholds=(0.5, 2, 8), **{"rainfarm_members": 0, **options})
    for k in range(days):
        hr = rain(k, 32, 32)
        lr = block_mean(hr, scale)
        table.add(sr_of(k, hr, lr) if sr_of else conserving(100 + k, hr, scale, members), hr, lr, day=k)
    return table


def by_name(table, **options):
    return {row["name"]: row for row in table.rows(**{"resamples": 20, **options})}


def tool(name):
    sys.path.insert(0, str(SHARED / "tools"))
    try:
        spec = importlib.util.spec_from_file_location(name, SHARED / "tools" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.pop(0)


# ---------------------------------------------------------------- single scores


@pytest.mark.parametrize(
    ("members", "truth", "score"),
    [([1, 3], 2, 0.0), ([0, 4], 1, 0.0), ([0, 1, 5], 2, 1 / 3), ([2, 2, 2], 5, 3.0), ([4], 1, 3.0)],
)
def test_fair_crps_of_hand_computed_ensembles(members, truth, score):
    assert fair_crps(np.array(members, float)[:, None], np.array([truth], float)) == pytest.approx(score)


def test_fair_crps_does_not_reward_small_ensembles():
    draws = np.random.default_rng(0).normal(size=(9, 200_000))
    small, large = fair_crps(draws[:2], draws[8]).mean(), fair_crps(draws[:8], draws[8]).mean()
    assert small == pytest.approx(large, abs=0.01)
    assert large == pytest.approx(
        1 / np.sqrt(np.pi), abs=0.01
    )  # Gneiting and Raftery (2007), of N(0, 1) against itself


def test_log_spectral_distance_of_ten_times_the_field_is_20_db():
    field = rain(0, 64, 64)
    assert lsd(rapsd(10 * field), rapsd(field)) == pytest.approx(20)
    assert lsd(rapsd(field), rapsd(field)) == 0


@pytest.mark.parametrize("shape", [(64, 64), (33, 33), (40, 68)])
def test_spectrum_of_a_wave_stands_at_its_wavenumber(shape):
    k, n = 5, min(shape)
    axis = shape.index(n)
    wave = np.cos(2 * np.pi * k * np.arange(n) / n)
    field = np.broadcast_to(wave[:, None] if axis == 0 else wave, shape)
    spectrum = rapsd(field)
    assert spectrum.shape == (n // 2,)
    assert spectrum.argmax() == k
    assert np.delete(spectrum, k).max() < 1e-12 * spectrum[k]


@needs_pysteps
def test_spectrum_against_pysteps():
    from pysteps.utils.spectral import rapsd as oracle

    field, other = rain(1, 128, 128), rain(2, 128, 128) + rain(3, 128, 128)
    # pysteps rounds wavenumbers where we cut them (as the published bars do): the same rings, half a wavenumber apart
    ours = np.interp(np.arange(2, 60), np.arange(64) + 0.5, np.log10(rapsd(field)))
    theirs = np.log10(oracle(field, fft_method=np.fft)[2:60] * field.size)
    assert np.abs(ours - theirs).mean() < 0.1
    pair = [oracle(f, fft_method=np.fft)[:64] for f in (other, field)]
    assert lsd(rapsd(other), rapsd(field)) == pytest.approx(lsd(*pair), rel=0.1)


@needs_pysteps
def test_fss_against_pysteps():
    from pysteps.verification.spatialscores import fss

    table = table_of(1, sr_of=lambda k, hr, lr: rain(50, 32, 32), fss_scales=(1, 3, 8))
    row, hr, sr = by_name(table)["one member"], rain(0, 32, 32), rain(50, 32, 32)
    for threshold in table.terms.thresholds:
        for scale in table.terms.windows:
            assert row[f"fss_{threshold:g}mm_{scale}px"] == pytest.approx(fss(sr, hr, threshold, scale), abs=1e-5)


def test_fss_of_hand_computed_fields():
    hr, sr = np.zeros((4, 4)), np.zeros((4, 4))
    hr[1, 1], sr[1, 2] = 3, 3  # one wet pixel, displaced by one
    table = ScoreTable(4, thresholds=(1,), fss_scales=(1, 3), rainfarm_members=0)
    table.add(sr, hr, block_mean(hr, 4), day=0)
    row = by_name(table)["one member"]
    assert row["fss_1mm_1px"] == 0
    # windows of 3: 9 of them see the truth, 9 the forecast (all 1/9), 6 both: 1 - (9 + 9 - 12) / 18
    assert row["fss_1mm_3px"] == pytest.approx(2 / 3)


def test_sal_of_hand_computed_fields():
    hr, sr = np.zeros((10, 10)), np.zeros((10, 10))
    hr[2, 2], sr[2, 5] = 4, 8  # one object, three pixels away, with twice the rain
    assert sal(sr, hr) == pytest.approx((0, 2 / 3, 3 / np.hypot(10, 10)))
    assert sal(hr, hr) == (0, 0, 0)
    flat = np.zeros((10, 10))
    flat[2, 1:4] = 4 / 3  # the same rain and place over three pixels: scaled volume 3 against 1
    assert sal(flat, hr) == pytest.approx((2 * (3 - 1) / (3 + 1), 0, 0))
    two = np.zeros((10, 10))
    two[2, 0] = two[2, 4] = 2  # the same centre of mass, but two objects, each two pixels from it
    assert sal(two, hr) == pytest.approx((0, 0, 2 * 2 / np.hypot(10, 10)))
    dry = sal(np.zeros((10, 10)), hr)
    assert np.isnan(dry[0]) and dry[1] == -2 and np.isnan(dry[2])
    hr[9, 9] = np.nan  # missing is taken as dry
    assert sal(sr, hr) == pytest.approx((0, 2 / 3, 3 / np.hypot(10, 10)))


def test_sal_of_the_table_is_the_mean_of_absolute_errors_over_members_and_wet_days():
    fields = [(rain(60 + k, 2, 32, 32), rain(k, 32, 32)) for k in range(3)]
    fields[1] = (np.zeros((2, 32, 32)), np.zeros((32, 32)))
    table = table_of(3, sr_of=lambda k, hr, lr: fields[k][0])
    expected = np.abs([sal(member, fields[k][1]) for k in (0, 2) for member in fields[k][0]])
    wet = ScoreTable(8, thresholds=(0.5,), rainfarm_members=0)
    for k, (sr, hr) in enumerate(fields):
        wet.add(sr, hr, block_mean(hr, 8), day=k)
    rows = by_name(wet)
    assert [rows["ensemble"][f"sal_{part}"] for part in "sal"] == pytest.approx(expected.mean(0))
    assert [rows["one member"][f"sal_{part}"] for part in "sal"] == pytest.approx(expected[::2].mean(0))
    assert "sal_s" not in rows["ensemble"]["note"] and by_name(table)["ensemble"]["sal_s"] > 0


@needs_pysteps
@pytest.mark.skipif(not importlib.util.find_spec("skimage"), reason="pysteps needs scikit-image for SAL")
def test_sal_against_pysteps():
    from pysteps.verification import salscores

    def blobs(*peaks):
        y, x = np.mgrid[:160, :200]
        field = sum(top * np.exp(-((y - row) ** 2 + (x - col) ** 2) / (2 * size**2)) for row, col, size, top in peaks)
        return np.where(field < 0.05, 0, field)

    # objects apart, with one peak each: of several peaks in one area we make one object, pysteps several storm cells
    hr = blobs((40, 50, 6, 20), (110, 140, 9, 8), (120, 40, 5, 12))
    sr = blobs((50, 60, 8, 25), (100, 150, 6, 9))
    for one, two in ((sr, hr), (hr, sr), (2 * hr, sr)):
        assert sal(one, two) == pytest.approx(salscores.sal(one, two), abs=0.002)
    sr, hr = rain(1, 64, 64), rain(2, 64, 64)
    assert sal(sr, hr)[1] == pytest.approx(salscores.sal_amplitude(sr, hr), rel=1e-5)


def test_fss_is_that_of_scores():
    from scores.spatial import fss_2d

    days = np.zeros((4, 32, 32))
    days[:, 4:-4, 4:-4] = rain(0, 4, 24, 24)  # a dry edge: `scores` counts one window more there
    table = ScoreTable(8, thresholds=(0.5, 2, 8), fss_scales=(1, 5), rainfarm_members=0)
    for k in range(2):
        table.add(days[k], days[2 + k], block_mean(days[2 + k], 8), day=k)
    hr, sr = (xr.DataArray(part, dims=("day", "y", "x")) for part in (days[2:], days[:2]))
    row = by_name(table)["one member"]
    for threshold in table.terms.thresholds:
        for side in table.terms.windows:
            window = {"window_size": (side, side), "spatial_dims": ("y", "x"), "zero_padding": True}
            oracle = float(fss_2d(sr, hr, event_threshold=threshold, **window))
            assert row[f"fss_{threshold:g}mm_{side}px"] == pytest.approx(oracle, abs=1e-5)


def test_rmse_bias_and_crps_are_those_of_scores():
    import scores.continuous
    import scores.probability

    fields = [(rain(60 + k, 3, 32, 32), rain(k, 32, 32)) for k in range(3)]
    table = table_of(3, sr_of=lambda k, hr, lr: fields[k][0])
    sr = xr.DataArray([sr for sr, _ in fields], dims=("day", "member", "y", "x")).astype(float)
    hr = xr.DataArray([hr for _, hr in fields], dims=("day", "y", "x")).astype(float)
    rows = by_name(table)
    assert rows["ensemble mean"]["rmse"] == pytest.approx(
        float(scores.continuous.rmse(sr.mean("member"), hr)), rel=1e-5
    )
    assert rows["one member"]["crps"] == pytest.approx(float(scores.continuous.mae(sr.isel(member=0), hr)), rel=1e-5)
    assert rows["ensemble"]["bias"] == pytest.approx(float((sr - hr).mean()), rel=1e-4)
    oracle = scores.probability.crps_for_ensemble(sr, hr, "member", method="fair")
    assert rows["ensemble"]["crps"] == pytest.approx(float(oracle), rel=1e-5)


def test_quantile_scores_are_those_of_numpy():
    table = table_of(3, sr_of=lambda k, hr, lr: rain(60 + k, 3, 32, 32))
    row, levels = by_name(table)["ensemble"], np.linspace(0.01, 0.999, 100)
    hr, sr = np.stack([rain(k, 32, 32) for k in range(3)]), np.stack([rain(60 + k, 3, 32, 32) for k in range(3)], 1)
    gaps = [np.quantile(member, levels) - np.quantile(hr, levels) for member in sr]
    assert row["qq_rmse"] == pytest.approx(np.mean([np.sqrt((g**2).mean()) for g in gaps]), rel=1e-5)
    tails = np.mean([np.quantile(member, [0.99, 0.999]) for member in sr], 0) / np.quantile(hr, [0.99, 0.999])
    assert [row["p99_ratio"], row["p999_ratio"]] == pytest.approx(tails, rel=1e-5)


def test_reliable_ensemble_has_spread_skill_one_and_flat_ranks():
    table = ScoreTable(8, rainfarm_members=0)
    for k in range(30):
        hr, *sr = np.random.default_rng(k).gamma(1, 5, (5, 32, 32))
        table.add(sr, hr, block_mean(hr, 8), day=k)
    assert by_name(table)["ensemble"]["spread_skill"] == pytest.approx(1, abs=0.02)
    ranks = table.curves()["ranks"]
    assert ranks.sum() == 30 * 32 * 32
    assert ranks / ranks.sum() == pytest.approx(np.full(5, 0.2), abs=0.01)


def test_ranks_and_reliability_of_hand_computed_members():
    table = ScoreTable(2, thresholds=(1, 5), rainfarm_members=0)
    hr, sr = np.array([[0, 2], [6, 9]], float), np.array([[[1, 3], [4, 8]], [[2, 0], [7, 9.5]]])
    table.add(sr, hr, block_mean(hr, 2), day=0)
    curves = table.curves()
    assert curves["ranks"].tolist() == [1, 3, 0]  # 0 below 1 and 2; 2, 6 and 9 between
    # rows: 0, 1 or both members with the event; pixels, and those where it happened
    assert curves["reliability"].tolist() == [[[0, 0], [1, 1], [3, 2]], [[2, 0], [1, 1], [1, 1]]]


# ---------------------------------------------------------------- laws of the table


def test_perfect_ensemble_scores_zero_and_shuffled_days_are_worse():
    perfect = by_name(table_of(5, sr_of=lambda k, hr, lr: np.stack([hr] * 3)))["ensemble"]
    for key in ("rmse", "bias", "crps", "qq_rmse", "lsd_db", "sal_s", "sal_a", "sal_l"):
        assert perfect[key] == pytest.approx(0, abs=1e-5)
    assert perfect["conservation_mm"] < 1e-5
    assert all(
        value == pytest.approx(1)
        for key, value in perfect.items()
        if "_ratio" in key or key.startswith("fss") and np.isfinite(value)
    )
    shuffled = by_name(table_of(5, sr_of=lambda k, hr, lr: np.stack([rain((k + 1) % 5, 32, 32)] * 3)))["ensemble"]
    assert shuffled["crps"] > 0.1 and shuffled["rmse"] > 0.1 and shuffled["conservation_mm"] > 0.1
    assert shuffled["fss_2mm_1px"] < 0.9
    assert shuffled["qq_rmse"] == pytest.approx(0, abs=1e-6)  # the same rain, on other days


FAULTS = {
    "two days swapped": lambda k, sr, all_sr: all_sr[{0: 1, 1: 0}.get(k, k)],
    "one day mirrored north-south": lambda k, sr, _: sr[:, ::-1] if k == 2 else sr,
    "one day mirrored east-west": lambda k, sr, _: sr[:, :, ::-1] if k == 2 else sr,
    "one day transposed": lambda k, sr, _: sr.transpose(0, 2, 1) if k == 2 else sr,
    "metres read as millimetres": lambda k, sr, _: sr / 1000,
    "millimetres read as metres": lambda k, sr, _: sr * 1000,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_caught_by_conservation_and_crps(fault):
    right = [conserving(100 + k, rain(k, 32, 32), 8, 4) for k in range(4)]
    good = by_name(table_of(4, sr_of=lambda k, hr, lr: right[k]))["ensemble"]
    bad = by_name(table_of(4, sr_of=lambda k, hr, lr: FAULTS[fault](k, right[k], right)))["ensemble"]
    assert good["conservation_mm"] < 1e-4 < 0.1 < bad["conservation_mm"]
    assert bad["crps"] > 1.02 * good["crps"]


def test_missing_pixels_are_left_out_of_every_row():
    hole = np.zeros((32, 32), bool)
    hole[3:20, 5:9] = True

    def table(fill):
        t = ScoreTable(8, thresholds=(0.5,), rainfarm_members=0)
        hr = rain(0, 32, 32)
        sr, lr = conserving(9, hr, 8, 3), block_mean(hr, 8)
        sr[:, hole] = fill  # what SR says where truth is missing must not matter
        t.add(sr, np.where(hole, np.nan, hr), lr, day=0)
        return by_name(t)

    one, two = table(0), table(999)
    for name, row in one.items():
        assert row["pixels"] == 32 * 32 - hole.sum()
        for key in ("rmse", "bias", "crps", "qq_rmse", "p999_ratio", "fss_0.5mm_8px"):
            assert row[key] == pytest.approx(two[name][key], nan_ok=True), (name, key)
        assert np.isnan(row["lsd_db"]) and "lsd_db" in row["note"]


def test_missing_lr_cell_is_missing_in_every_baseline():
    hr = rain(0, 32, 32)
    lr = block_mean(hr, 8)
    sr = conserving(9, hr, 8, 3)
    lr[1, 2], sr[:, 8:16, 16:24] = np.nan, np.nan
    table = ScoreTable(8, thresholds=(0.5,), rainfarm_members=2)
    table.add(sr, hr, lr, day=0)
    assert all(row["pixels"] == 15 * 64 and np.isfinite(row["crps"]) for row in table.rows())
    sr[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="SR is missing"):
        table.add(sr, hr, lr, day=1)


@pytest.mark.parametrize("value", [0.0, 4.0])
def test_dry_and_constant_fields_have_defined_scores(value):
    hr = np.full((32, 32), value)
    table = ScoreTable(8, rainfarm_members=2)
    table.add(np.stack([hr] * 3), hr, block_mean(hr, 8), day=0)
    for row in table.rows():
        if row["name"] != "RainFARM":  # it puts noise into constant rain
            assert row["rmse"] == row["crps"] == row["bias"] == row["qq_rmse"] == pytest.approx(0, abs=1e-6)
            assert row["p99_ratio"] == pytest.approx(1) if value else "p99_ratio" in row["note"]
            assert np.isnan(row["lsd_db"]) and "lsd_db" in row["note"]
        assert np.isnan(row["rmse_low"]) and "one block" in row["note"]
    assert "nan" in verification.format_table(table.rows())


def test_all_missing_is_told_not_raised():
    table = ScoreTable(8, rainfarm_members=2)
    table.add(np.full((2, 32, 32), np.nan), np.full((32, 32), np.nan), np.full((4, 4), np.nan), day=0)
    for row in table.rows():
        assert row["pixels"] == 0 and np.isnan(row["crps"]) and "no pixel" in row["note"]
    table.curves()


def test_shapes_that_do_not_fit_are_refused_and_remainders_cut():
    table = ScoreTable(8, rainfarm_members=0)
    hr = rain(0, 35, 34)
    table.add(hr, hr, block_mean(hr[:32, :32], 8), day=0)
    assert table.rows()[0]["pixels"] == 1024
    with pytest.raises(ValueError, match="same grid|share a grid"):
        table.add(hr[:, 1:], hr, np.ones((4, 4)), day=1)
    with pytest.raises(ValueError, match="before they were"):
        table.add(np.stack([hr, hr]), hr, np.ones((4, 4)), day=1)


def test_intervals_hold_the_score_repeat_and_shrink_with_days():
    few, again, many = (by_name(table_of(n), resamples=200)["ensemble"] for n in (4, 4, 40))
    assert json.dumps(few) == json.dumps(again)
    for key in ("rmse", "crps", "lsd_db", "p99_ratio"):
        assert many[f"{key}_low"] <= many[key] <= many[f"{key}_high"], key
        assert many[f"{key}_high"] - many[f"{key}_low"] < few[f"{key}_high"] - few[f"{key}_low"], key


def test_memory_does_not_grow_with_days():
    whole, bounded = table_of(40), table_of(40, limit=30_000, max_blocks=8)
    assert len(bounded.sums.blocks) <= 8
    assert sum(v.size for days in bounded.sample.values.values() for v in days) <= 30_000 < bounded.fields * 32 * 32
    one, two = by_name(whole)["ensemble"], by_name(bounded)["ensemble"]
    for key in ("rmse", "crps", "bias", "lsd_db", "spread_skill", "fss_2mm_8px"):
        assert one[key] == pytest.approx(two[key], rel=1e-6), key
    assert one["p99_ratio"] == pytest.approx(two["p99_ratio"], rel=0.1)  # from every ninth pixel


def test_exceedance_is_the_share_of_pixels():
    curves = table_of(3).curves()
    hr = np.stack([rain(k, 32, 32) for k in range(3)])
    for index in (300, 700, 900):
        share = (hr >= curves["edges"][index]).mean()
        assert curves["rows"]["observed"]["exceedance"][index] == pytest.approx(share)


# ---------------------------------------------------------------- simple methods


@pytest.mark.parametrize("method", ["nearest", "bilinear", "bicubic"])
def test_upsampling_is_that_of_torch(method):
    lr = rain(0, 7, 5)
    options = {} if method == "nearest" else {"align_corners": False}
    oracle = F.interpolate(torch.from_numpy(lr)[None, None].double(), scale_factor=6, mode=method, **options)[0, 0]
    np.testing.assert_allclose(upsample(lr, 6, method), oracle.clamp(min=0), atol=1e-5)


@needs_tools
def test_bilinear_and_spectrum_are_those_of_the_published_bars():
    window = tool("score_windows")
    lr, field = rain(0, 5, 7), rain(1, 64, 64)
    np.testing.assert_allclose(upsample(lr, 6, "bilinear"), window.bilinear(lr, 6), atol=1e-5)
    np.testing.assert_allclose(rapsd(field)[1:], window.rapsd(field.astype(float)), rtol=1e-9)


def test_quantile_matching_never_sees_the_day_it_maps():
    days = [(block_mean(rain(k, 32, 32), 8), rain(k, 32, 32)) for k in range(3)]

    def mapped(last):
        matcher = QuantileMatcher(8)
        for k, (lr, hr) in enumerate([*days[:2], last]):
            matcher.add(lr, hr, day=k)
        return matcher.map(upsample(days[2][0], 8, "bilinear"), day=2)

    np.testing.assert_array_equal(mapped(days[2]), mapped((days[2][0] * 3, days[2][1] * 7)))
    lonely = QuantileMatcher(8)
    lonely.add(*days[0], day=0)
    table = table_of(1, matcher=lonely)
    row = by_name(table)["quantile-matched bilinear"]
    assert np.isnan(row["crps"]) and "no other day" in row["note"] and np.isfinite(by_name(table)["nearest"]["crps"])


@pytest.mark.parametrize("several", [True, False])
def test_quantile_matching_leaves_out_its_own_date_and_the_table_says_so(several, tmp_path):
    def scored(factor):  # the truth of the files of the first date, or of the first file, times factor
        times = ["2023-08-01T00:24", "2023-08-01T00:48", "2023-08-02T00:24" if several else "2023-08-01T01:12"]
        pairs, paths = [], []
        for k, time in enumerate(times):
            hr = rain(k, 32, 32) * (factor if k < 1 + several else 1)
            coords = {"lat": 30 - 0.1 * np.arange(32), "lon": 106 + 0.1 * np.arange(32), "time": np.datetime64(time)}
            field = xr.DataArray(hr, dims=("lat", "lon"), coords=coords)
            pairs.append((xr.DataArray(block_mean(rain(k, 32, 32), 8), dims=("lat", "lon")), field))
            paths.append(tmp_path / f"0{k}_pre_sr.nc")
            utils.write_field(paths[-1], field)
        table = verification.score_outputs(paths, pairs, 8)
        return table, table.sums.blocks[0]["quantile-matched bilinear", "histogram"]

    (table, one), (_, two) = scored(1), scored(3)
    np.testing.assert_array_equal(one, two)
    assert len(table.sums.blocks) == 3  # the bootstrap still draws files
    note = by_name(table)["quantile-matched bilinear"]["note"]
    assert ("files of other dates" if several else "all of one date") in note and note in " ".join(
        verification.format_table(table.rows(resamples=2)).split()
    )


def test_quantile_matching_restores_amounts_and_invents_none():
    matcher, smooth = QuantileMatcher(8), upsample(block_mean(rain(5, 64, 64), 8), 8, "bilinear")
    matcher.add(block_mean(rain(5, 64, 64), 8), 3 * smooth, day="train")
    np.testing.assert_allclose(matcher.map(smooth, day="eval"), 3 * smooth, rtol=0.02, atol=0.02)
    assert matcher.map(smooth * 50, day="eval").max() <= 3.1 * smooth.max()
    assert matcher.map(np.zeros((4, 4), np.float32), day="eval").max() == 0


@needs_pysteps
def test_rainfarm_is_that_of_pysteps_conserves_and_keeps_the_global_seed():
    from pysteps.downscaling.rainfarm import downscale

    lr = block_mean(rain(0, 32, 32), 8)
    np.random.seed(3)
    with np.errstate(divide="ignore"):
        oracle = downscale(lr, 8)
    np.random.seed(11)
    expected = np.random.rand()
    np.random.seed(11)
    members = rainfarm(lr, 8, members=2, seed=3)
    assert np.random.rand() == expected
    np.testing.assert_allclose(members[0], oracle, rtol=1e-5)
    np.testing.assert_allclose(block_mean(members, 8), np.stack([lr, lr]), rtol=1e-5, atol=1e-6)
    assert rainfarm(np.zeros((4, 4)), 8, members=1, seed=0).max() == 0
    assert np.isfinite(rainfarm(np.full((2, 3), 5.0), 8, members=1, seed=0)).all()
    lr[0, 0] = np.nan
    assert np.isnan(rainfarm(lr, 8, members=1, seed=0)[0]).sum() == 64


def test_table_without_pysteps_has_no_rainfarm_row(monkeypatch):
    monkeypatch.setitem(sys.modules, "pysteps.downscaling.rainfarm", None)
    names = [row["name"] for row in table_of(2, rainfarm_members=2).rows(resamples=2)]
    assert names == ["nearest", "bilinear", "bicubic", "ensemble mean", "one member", "ensemble"]
    assert [r["name"] for r in table_of(2, members=1).rows(resamples=2)][-1] == "one member"


# ---------------------------------------------------------------- agreement with the published bars


def run_tool(name, *options):
    done = subprocess.run([sys.executable, SHARED / "tools" / name, *map(str, options)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def write_pair(folder, k, hr, sr, lat, lon):
    for part in ("truth", "sr"):
        (folder / part).mkdir(exist_ok=True)
    coords = {"lat": lat, "lon": lon}
    xr.Dataset({"tp": (("lat", "lon"), hr)}, coords=coords).to_netcdf(folder / "truth" / f"{k:02d}.nc")
    xr.Dataset({"tp": (("member", "lat", "lon"), sr)}, coords=coords).to_netcdf(folder / "sr" / f"{k:02d}_pre_sr.nc")


@needs_tools
def test_windows_agree_with_score_windows_to_the_printed_digits(tmp_path):
    table, scale = ScoreTable(20, stride=7, rainfarm_members=0), 20
    for k in range(2):
        hr = rain(k, 240, 160)
        lr = block_mean(hr, scale)
        sr = conserving(70 + k, hr, scale, 3)
        hr[:30, :30] = np.nan
        write_pair(tmp_path, k, hr, sr, 40 - 0.05 * np.arange(240), 100 + 0.05 * np.arange(160))
        assert table.add_windows(sr, hr, lr, day=k, side=4) > 5
    printed = run_tool(
        "score_windows.py", "--truth", tmp_path / "truth", "--sr", tmp_path / "sr", "--scale", scale, "--window", 4
    )
    rows = by_name(table)
    assert table.fields == printed["windows"]
    assert round(rows["ensemble"]["crps"], 4) == printed["crps"]
    assert round(rows["bilinear"]["crps"], 4) == printed["mae_bilinear"]
    assert round(rows["ensemble"]["lsd_db"], 2) == printed["lsd_db"]
    assert round(rows["bilinear"]["lsd_db"], 2) == printed["lsd_bilinear_db"]
    assert round(rows["ensemble"]["p999_ratio"], 3) == printed["p999_ratio"]


def gappy_pairs(folder, *, size=24, gaps=slice(0, 4), days=2):
    """(paths, pairs) of days x10 whose truth is whole and whose LR, and so SR, is missing in these rows of cells."""
    paths, pairs = [], []
    for k in range(days):
        hr = rain(k, size * 10, size * 10)
        lr = block_mean(hr, 10)
        lr[gaps] = np.nan
        sr = conserving(90 + k, hr, 10, 2)
        sr[:, np.repeat(np.isnan(lr[:, 0]), 10)] = np.nan
        coords = {"lat": 40 - 0.025 * np.arange(len(hr)), "lon": 5 + 0.025 * np.arange(len(hr))}
        coords["time"] = np.datetime64("2020-01-01") + k
        pairs.append((xr.DataArray(lr, dims=("lat", "lon")), xr.DataArray(hr, coords, ("lat", "lon"))))
        paths.append(folder / f"{k:02d}_pre_sr.nc")
        utils.write_field(paths[-1], xr.DataArray(sr, coords, ("member", "lat", "lon")))
    return paths, pairs


def test_where_only_the_input_has_gaps_its_valid_windows_are_scored_with_a_spectrum(tmp_path):
    paths, pairs = gappy_pairs(tmp_path)
    assert verification.fitting_side(pairs, 2, 10) == 16
    rows = by_name(verification.score_outputs(paths, pairs, 10))
    assert all(np.isfinite(rows[name]["lsd_db"]) for name in ("bilinear", "ensemble", "one member"))
    assert rows["ensemble"]["pixels"] == 160 * 160 * rows["ensemble"]["fields"]


@pytest.mark.parametrize(("size", "side"), [(16, 8), (6, 4)])
def test_windows_are_smaller_where_gaps_leave_no_room(tmp_path, size, side):
    _, pairs = gappy_pairs(tmp_path, size=size, gaps=slice(0, 2))
    assert verification.fitting_side(pairs, 2, 10) == side
    assert verification.fitting_side([(lr[2:], hr) for lr, hr in pairs], 2, 10) == 0


def china_days():
    for k, path in enumerate(sorted((SHARED / "data/china/DataEval").glob("*.nc"))):
        with xr.open_dataset(path) as dataset:
            tp = dataset["tp"].load().transpose("lat", "lon").sortby("lat", ascending=False)[:40, :68]
        yield k, tp, np.maximum(tp.values, 0)


@needs_tools
@needs_data
def test_days_agree_with_score_days_to_the_printed_digits(tmp_path):
    table = ScoreTable(4, rainfarm_members=0)
    for k, tp, hr in china_days():
        lr = block_mean(hr, 4)
        sr = conserving(k, hr, 4, 4)
        write_pair(tmp_path, k, hr, sr, tp.lat, tp.lon)
        table.add(sr, hr, lr, day=k)
    printed = run_tool("score_days.py", "--truth", tmp_path / "truth", "--sr", tmp_path / "sr", "--scale", 4)
    rows = by_name(table)
    for name, key, theirs, digits in [
        ("ensemble", "rmse", "rmse_mean", 3),
        ("bilinear", "rmse", "rmse_bilinear", 3),
        ("ensemble", "crps", "crps", 3),
        ("bilinear", "crps", "mae_bilinear", 3),
        ("ensemble", "qq_rmse", "qq_rmse_member", 3),
        ("bilinear", "qq_rmse", "qq_rmse_bilinear", 3),
        ("ensemble", "p99_ratio", "p99_ratio", 3),
    ]:
        assert round(rows[name][key], digits) == printed[theirs], (name, key)
    assert rows["ensemble"]["bias"] == pytest.approx(printed["bias"], abs=1e-4)


@needs_data
def test_baselines_of_china_are_the_published_bars():
    table = ScoreTable(4, rainfarm_members=0)
    for k, _, hr in china_days():
        table.add(hr, hr, block_mean(hr, 4), day=k)
    rows = by_name(table)
    bars = {"nearest": (7.89, 3.28, 4.5), "bilinear": (7.72, 3.27, 7.0), "bicubic": (7.35, 3.09, 5.7)}
    for name, (rmse, mae, qq) in bars.items():
        row = rows[name]
        assert (round(row["rmse"], 2), round(row["crps"], 2), round(row["qq_rmse"], 1)) == (rmse, mae, qq)


@needs_data
def test_baselines_of_radar_are_the_published_bars():
    table = ScoreTable(100, thresholds=(0.1, 1, 5), stride=7, rainfarm_members=0)
    for path in sorted((SHARED / "data/mrms/eval").glob("*.nc")):
        with xr.open_dataset(path) as dataset:
            hr = dataset["tp"].sortby("lat", ascending=False).values
        lr = block_mean(hr, 100)  # NaN where any pixel is missing: such windows are left out
        table.add_windows(upsample(lr, 100, "nearest"), hr, lr, day=path.name, side=4)
    rows = by_name(table)
    assert [round(rows[name]["crps"], 3) for name in ("nearest", "bilinear")] == [0.234, 0.236]
    assert [round(rows[name]["lsd_db"], 1) for name in ("nearest", "bilinear")] == [18.9, 19.3]
    assert round(rows["nearest"]["p999_ratio"] * 12.577, 1) == 2.8


def forecast(seed=0, lonw=105.8, latn=30.2, side=440, members=2, time="2023-08-12"):
    """SR of a 0.4 degree forecast on 0.01 degree pixels of `side` x `side`, and its own input."""
    lr = rain(seed, side // 40, side // 40).astype(np.float64)
    sr = conserving(seed + 1, lr.repeat(40, 0).repeat(40, 1), 40, members).astype(np.float64)
    axis = np.arange(side) + 0.5
    coords = {
        "lat": np.round(latn - 0.01 * axis, 6),
        "lon": np.round(lonw + 0.01 * axis, 6),
        "time": np.datetime64(time),
    }
    cells = np.arange(side // 40) + 0.5
    own = xr.DataArray(
        lr,
        dims=("lat", "lon"),
        coords={"lat": np.round(latn - 0.4 * cells, 6), "lon": np.round(lonw + 0.4 * cells, 6), "time": coords["time"]},
    )
    return xr.DataArray(sr, dims=("member", "lat", "lon"), coords=coords), own


def analysed(time="2023-08-12"):
    lat, lon = np.arange(55, 14, -1.0), np.arange(70, 141, 1.0)
    return xr.DataArray(
        rain(8, 41, 71), dims=("lat", "lon"), coords={"lat": lat, "lon": lon, "time": np.datetime64(time)}
    )


# ---------------------------------------------------------------- what is written


def test_table_is_written_whole_and_named_for_what_it_is(tmp_path):
    rows = table_of(3).rows(resamples=10)
    verification.write_scores(tmp_path / "scores.csv", rows)
    assert [p.name for p in tmp_path.iterdir()] == ["scores.csv"]
    with open(tmp_path / "scores.csv", newline="") as file:
        read = list(csv.DictReader(file))
    assert [r["name"] for r in read] == [r["name"] for r in rows]
    assert float(read[-1]["crps"]) == rows[-1]["crps"] and float(read[-1]["crps_low"]) <= rows[-1]["crps"]
    assert "INTERPOLATION OF THE INPUT" in verification.format_table(rows, target="interpolate")
    assert "INTERPOLATION" not in verification.format_table(rows, target="coarsen")
    lines = verification.format_table(rows, target="coarsen").splitlines()
    assert "3 fields, 3072 pixels, 3 blocks" in lines[0]
    low, high = (f"{rows[-1][f'crps_{end}']:.3g}" for end in ("low", "high"))
    assert f"{low}..{high}" in lines[1 + len(rows)]
    text = verification.format_table([compare_cells("own input", [pair_cells(*forecast())])])
    assert "own input" in text and "121" in text


def test_a_printed_table_fits_a_terminal_of_100_columns():
    rows = table_of(4).rows()
    long = {key: -123.456 for key in rows[-1] if isinstance(rows[-1][key], float)}
    rows.append(long | {"name": verification.MATCHED, "note": "fitted on " + "many files " * 20, "pixels": 10**8})
    text = verification.format_table(rows, target="interpolate")
    comparison = compare_cells("consistency: own input", [pair_cells(*forecast())])
    for line in (text + "\n" + verification.format_table([comparison])).splitlines():
        assert len(line) <= 100, line
    assert "all rows: p99_ratio" in verification.format_table(
        [row | {"note": "p99_ratio: the observed quantile is 0; sal_s: always dry"} for row in rows]
    )
    for term in ("continuous ranked probability score", "fractions skill score", "RMSE of the quantiles", "scores.csv"):
        assert term in " ".join(text.split())
    header, *values = text.splitlines()[3 : 4 + len(rows)]
    assert header.split() == ["CRPS", "95", "%", "RMSE", "Q-Q", "P99", "P99.9", "spectrum", "spread", "FSS", "means"]
    assert {len(line) for line in values} == {len(header)}


@pytest.mark.parametrize("wettest, short", [(19.0, True), (21.0, False), (np.nan, True)])
@pytest.mark.filterwarnings("ignore:All-NaN")
def test_short_accumulations_are_told_by_their_wettest_thousandth(wettest, short):
    assert verification.short_accumulation(np.full((4, 4), wettest)) is short


def test_a_score_needs_no_pictures():
    code = "import verification, sys; print(*sorted({'matplotlib', 'scores', 'pysteps', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not done.stdout.split()
