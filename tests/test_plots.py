"""The pictures: north up, on one rain scale, captioned, with the numbers of the table, and drawn on any machine."""

import numpy as np
import pytest
import torch
import xarray as xr
from matplotlib import colors
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.image import imread
from test_verification import analysed, block_mean, forecast, rain, table_of

import forecasts
import plots
import utils
import verification


def field_of(values, **attrs):
    h, w = values.shape[-2:]
    dims = ("member", "lat", "lon")[-values.ndim :]
    coords = {"lat": 30 - 0.1 * np.arange(h), "lon": 106 + 0.1 * np.arange(w), "time": np.datetime64("2023-08-01")}
    return xr.DataArray(values, dims=dims, coords=coords, attrs=attrs)


def test_sites_show_members_as_a_band():
    """Points are the mean of the members' quantiles, the band reaches from the least to the largest."""
    values = np.arange(12, dtype=float).reshape(3, 2, 2)
    reference = xr.DataArray(values, {"lat": [31, 30], "lon": [106, 107]}, ("time", "lat", "lon"))
    sr = xr.concat([reference - 1, reference, reference + 4], "member")
    figure = plots.plot_sites(sr, reference, caption="test")
    (band,), points = figure.axes[3].collections, figure.axes[3].lines[1]
    np.testing.assert_allclose(points.get_ydata(), points.get_xdata() + 1)
    assert band.get_datalim(figure.axes[3].transData).ymax == pytest.approx(11 + 4)
    assert "mean of 3 members, band: least to largest" in words(figure)
    assert "band" not in words(plots.plot_sites(reference, reference))


def words(figure):
    return " ".join(text.get_text() for text in figure.findobj(match=lambda a: hasattr(a, "get_text")))


def test_maps_are_north_up_on_one_scale_with_captions(tmp_path):
    values = np.zeros((3, 20, 30), np.float32)
    values[:, 0, -1], values[:, 10, 10] = 99, np.nan  # a marker in the north-east corner, a missing pixel
    sr, lr = field_of(values, archive="generated sample", source_file="a.nc"), field_of(values[0, ::10, ::10])
    for turned in (sr, sr.sortby("lat"), sr.transpose("lon", "lat", "member")):
        figure = plots.plot_maps(lr, turned, field_of(values[0]), caption="test")
        image = figure.axes[2].images[0]
        colours = image.cmap(image.norm(image.get_array()))
        west, east, south, north = image.get_extent()
        assert image.origin == "upper" and east > west and north > south
        assert image.get_array()[0, -1] == 99 and colours[0, -1].sum() < colours[5, 5].sum()
        assert tuple(colours[5, 5]) == (1, 1, 1, 1)  # dry is white
        assert tuple(colours[10, 10]) == (0.75, 0.75, 0.75, 1)  # missing is grey
    said = words(figure)
    for word in (
        "GENERATED SAMPLE",
        "2023-08-01",
        "rain, mm",
        "a.nc",
        "3 member",
        "spread",
        "truth",
        "input",
        "degrees",
    ):
        assert word in said, word
    path = plots.save_figure(figure, tmp_path / "maps.png")
    assert path.read_bytes()[:4] == b"\x89PNG" and [p.name for p in tmp_path.iterdir()] == ["maps.png"]
    interpolated = plots.plot_maps(lr, turned, field_of(values[0]).assign_attrs(target="interpolate"))
    assert interpolated.axes[1].get_title().startswith("no truth")
    plain = words(plots.plot_maps(field_of(values[0]), field_of(values[0])))
    assert "GENERATED" not in plain and "downscaled" in plain


def lightness(colour):
    """CIELAB lightness of a colour, 0 (black) to 100 (white)."""
    rgb = np.array(colors.to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return 116 * np.cbrt(linear @ (0.2126, 0.7152, 0.0722)) - 16


def shown_as(image, amount):
    return tuple(image.cmap(image.norm(amount)))


def panels(figure):
    """{title: axes} of the maps of a figure."""
    return {ax.get_title().split("\n")[0]: ax for ax in figure.axes if ax.images and ax.get_title()}


def test_light_rain_is_pale_and_heavy_rain_dark_by_even_steps():
    steps = -np.diff([lightness(colour) for colour in plots.COLOURS])
    assert len(plots.COLOURS) == len(plots.LADDER) and lightness(plots.COLOURS[0]) < 98
    assert steps.min() > 2.5 and steps.max() < 12 and lightness(plots.COLOURS[-1]) < 15
    from_daily = -np.diff([lightness(c) for level, c in zip(plots.LADDER, plots.COLOURS, strict=True) if level >= 0.1])
    assert from_daily.min() > 4


def test_one_rain_colour_means_one_amount_everywhere():
    low, high = field_of(np.full((4, 4), 3.0)), field_of(np.full((4, 4), 3.0))
    high[0, 0] = 200
    images = [plots.plot_maps(f, f).axes[0].images[0] for f in (low, high)]
    assert len({tuple(i.cmap(i.norm(3.0))) for i in images}) == 1


def test_maps_and_tensorboard_share_colours_whatever_the_day():
    wet = rain(0, 8, 8) * 10
    sr = field_of(np.stack([wet, wet[::-1]]), scale=2)
    maps = panels(plots.plot_maps(field_of(wet[::2, ::2]), sr, field_of(wet)))
    windows = panels(plots.plot_members(wet[::2, ::2], wet / 5, np.stack([wet, wet])))
    images = [ax.images[0] for name, ax in [*maps.items(), *windows.items()] if "spread" not in name]
    assert len(images) == 9
    for amount in (0, 0.15, 0.7, 3):
        assert len({shown_as(image, amount) for image in images}) == 1
    assert shown_as(images[0], 0) == (1, 1, 1, 1)


def test_levels_follow_the_day():
    wet = rain(0, 40, 40)
    dry = wet * 1.5 / wet.max()
    assert plots.levels_for(wet * 90 / wet.max(), np.full(3, np.nan))[-1] == 50
    assert plots.levels_for(dry)[-1] == 1 and plots.levels_for(np.zeros(4)) == plots.LADDER[:5]
    for field in (wet, dry, wet * 0, wet * 1e4):
        assert set(plots.levels_for(field)) <= set(plots.LADDER) and len(plots.levels_for(field)) >= 5
    image = plots.plot_maps(field_of(dry), field_of(dry)).axes[0].images[0]
    assert len({shown_as(image, amount) for amount in dry.ravel()}) >= 4  # not all one colour


def test_spread_has_its_own_colours_and_bar():
    values = np.stack([rain(k, 8, 8) for k in range(4)])
    figure = plots.plot_maps(field_of(values[0, ::4, ::4]), field_of(values, scale=4), field_of(values[0]))
    images = {name: ax.images[0] for name, ax in panels(figure).items()}
    spread = images.pop("spread of members")
    assert len({id(image.norm) for image in images.values()}) == 1 and spread.norm is not images["member 1"].norm
    assert spread.cmap.colors[-1].tolist() != list(images["member 1"].cmap.colors[-1])
    assert {"rain, mm", "spread, mm"} <= {ax.get_ylabel() for ax in figure.axes}
    one = plots.plot_maps(field_of(values[0, ::4, ::4]), field_of(values[:1], scale=4))
    assert list(panels(one)) == ["input (LR)", "member 1"] and "spread" not in words(one)


def test_titles_speak_of_the_same_pixels_and_truth_is_masked_as_the_input():
    hr = field_of(np.arange(64, dtype=np.float32).reshape(8, 8), scale=4)
    lr = hr.coarsen(lat=4, lon=4).mean()
    sr = hr.expand_dims(member=2).copy()
    lr[0, 0] = np.nan
    sr[:, :4, :4] = np.nan
    hr[7, 7] = np.nan
    figure = plots.plot_maps(lr, sr, hr)
    shown = panels(figure)
    assert np.isnan(shown["truth (HR)"].images[0].get_array().filled(np.nan)[:4, :4]).all()
    common = np.isfinite(hr.values) & np.isfinite(sr.values[0])
    for name in ("truth (HR)", "member 1", "member 2", "mean of members"):
        mean = float(hr.values[common].mean())
        assert shown[name].get_title().split("\n")[1] == f"mean {mean:.2f}, max 62.0 mm", name
    cells = lr.values.repeat(4, 0).repeat(4, 1)[common].mean()
    assert f"mean {cells:.2f}" in shown["input (LR)"].get_title()
    assert "73 % of the pixels that no panel misses" in words(figure)
    nothing = words(plots.plot_maps(lr * np.nan, sr * np.nan, hr))
    assert "nan" not in nothing and "no pixel that all panels share" in nothing


def test_a_strip_is_drawn_as_the_window_of_its_wettest_cells():
    for turned in (False, True):
        cells = np.ones((35, 3), np.float32)
        cells[20:24] = 9
        cells = cells.T if turned else cells
        sr = field_of(cells.repeat(4, 0).repeat(4, 1), scale=4)
        lr = sr.coarsen(lat=4, lon=4).mean()
        figure = plots.plot_maps(lr, sr, sr)
        shown = panels(figure)
        assert shown["input (LR),"].images[0].get_array().shape == cells.shape
        window = shown["input (LR)"].images[0].get_array()
        assert window.shape == ((3, 6) if turned else (6, 3)) and (window == 9).sum() == 12
        assert shown["downscaled (SR)"].images[0].get_array().shape == (window.shape[0] * 4, window.shape[1] * 4)
        assert "window of the wettest cells" in words(figure)


def test_pictures_of_interpolate_say_so():
    field = rain(0, 8, 8)
    assert "no truth: input interpolated" in words(plots.plot_members(field, field, field[None], target="interpolate"))
    table = table_of(2)
    said = words(plots.plot_scores(table.curves(), target="interpolate"))
    assert "no truth" in said and "rank of the interpolated input" in said
    assert "no truth" not in words(plots.plot_scores(table.curves()))


def texts_of(figure):
    """Titles and tick labels of a figure as drawn: [(text, box in pixels)] of each axes."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    for ax in figure.axes:
        labels = [ax.title]
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [tick for tick in axis.get_major_ticks() if low - 1e-9 <= tick.get_loc() <= high + 1e-9]
            labels += [label for tick in ticks for label in (tick.label1, tick.label2)]
        yield from (t.get_window_extent() for t in labels if t.get_visible() and t.get_text())


@pytest.mark.parametrize("shape, members", [((8, 8), 4), ((30, 8), 3), ((8, 40), 3), ((40, 4), 1)])
def test_no_labels_touch(shape, members):
    values = rain(1, members, *shape) * 100
    sr = field_of(values, scale=2)
    lr = sr.isel(member=0).coarsen(lat=2, lon=2).mean()
    boxes = list(texts_of(plots.plot_maps(lr, sr, sr[0].assign_attrs(target="interpolate"))))
    for k, one in enumerate(boxes):
        assert not any(one.overlaps(other) for other in boxes[k + 1 :]), one


def test_sites_can_be_read():
    for sites in (11, 5):
        field = xr.DataArray(
            rain(0, 4, sites, sites),
            dims=("time", "lat", "lon"),
            coords={"lat": 30 - 0.4 * np.arange(sites), "lon": 106 + 0.4 * np.arange(sites)},
        )
        figure = plots.plot_sites(field, field)
        boxes = list(texts_of(figure))
        assert len(figure.axes) == sites**2 and len({round(ax.get_window_extent().width) for ax in figure.axes}) <= 2
        assert figure.axes[0].get_window_extent().width / figure.dpi >= 0.94  # inches
        for k, one in enumerate(boxes):
            assert not any(one.overlaps(other) for other in boxes[k + 1 :])


def coasts_and_borders(figure):
    return [sum(map(len, c.get_segments())) for c in figure.axes[0].collections if isinstance(c, LineCollection)]


def test_outlines_are_drawn_where_there_are_any(monkeypatch, tmp_path, capsys):
    china = xr.DataArray(
        np.ones((20, 35)),
        dims=("lat", "lon"),
        coords={"lat": 54 - 2.0 * np.arange(20), "lon": 70 + 2.0 * np.arange(35)},
    )
    coasts, borders = coasts_and_borders(plots.plot_maps(china, china))
    assert coasts > 500 and borders > 300
    inland = field_of(rain(0, 40, 40))  # 106-110E 26-30N
    assert coasts_and_borders(plots.plot_maps(inland, inland)) == []
    lines = plots._outlines()
    assert plots.OUTLINES.stat().st_size < 300e3 and len(lines) > 1500
    assert all(abs(line[:, 0]).max() <= 180 and abs(line[:, 1]).max() < 90 for line, *_ in lines)
    monkeypatch.setattr(plots, "OUTLINES", tmp_path / "lost.npz")
    plots._outlines.cache_clear()
    for _ in range(2):
        assert coasts_and_borders(plots.plot_maps(china, china)) == []
    assert capsys.readouterr().out.count("maps lack coasts and borders") == 1
    plots._outlines.cache_clear()


def test_score_pictures_show_the_numbers_of_the_table(tmp_path):
    table = table_of(4, rainfarm_members=2)
    figure = plots.plot_scores(table.curves(), caption="four days", archive="generated sample")
    said = words(figure)
    for word in ("GENERATED SAMPLE", "four days", "4 fields", "4096 pixels", "mm", "bootstrap", "reliab", "rank"):
        assert word in said, word
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    hr = np.stack([rain(k, 32, 32) for k in range(4)])
    np.testing.assert_allclose(lines["ensemble"].get_xdata(), np.quantile(hr, verification.QQ_LEVELS), rtol=1e-5)
    plots.save_figure(figure, tmp_path / "scores.png")
    assert "needs an ensemble" in words(plots.plot_scores(table_of(1, members=1).curves()))


def pixels_of(image):
    """8-bit colours of the values of a drawn image."""
    return image.cmap(image.norm(image.get_array()), bytes=True)


@pytest.mark.parametrize("side, zoom", [(240, 1), (96, 3)])
def test_members_are_drawn_pixel_by_pixel(side, zoom, tmp_path):
    hr, sr = rain(0, side, side) * 20, rain(1, 5, side, side) * 20
    sr[0, 0, 0], sr[1, 3:9, 5], lr = 99, np.nan, block_mean(hr, 48).astype(np.float32)
    figure = plots.plot_members(torch.from_numpy(lr), torch.from_numpy(hr), torch.from_numpy(sr), caption="words " * 40)
    assert list(panels(figure)) == ["input (LR)", "truth (HR)", *(f"member {k}" for k in (1, 2, 3, 4))]
    picture = imread(plots.save_figure(figure, tmp_path / "members.png", dpi="figure"))
    for ax, field in zip(panels(figure).values(), [lr.repeat(48, 0).repeat(48, 1), hr, *sr], strict=False):
        box = ax.get_window_extent()
        assert round(box.x1 - box.x0) == round(box.y1 - box.y0) == side * zoom
        top, left = len(picture) - round(box.y1), round(box.x0)
        drawn = picture[top : top + side * zoom, left : left + side * zoom]
        np.testing.assert_array_equal(ax.images[0].get_array().filled(np.nan), field)
        colours = pixels_of(ax.images[0]).repeat(zoom, 0).repeat(zoom, 1)
        np.testing.assert_array_equal(np.rint(drawn * 255).astype(np.uint8), colours)


def test_members_without_truth_or_with_one_that_is_none():
    field = rain(0, 40, 60)
    lr, five = block_mean(field, 20), np.stack([field] * 7)
    assert list(panels(plots.plot_members(lr, None, five))) == ["input (LR)", *(f"member {k}" for k in range(1, 6))]
    assert list(panels(plots.plot_members(lr, None, field[None]))) == ["input (LR)", "member 1"]
    height = 100 * field + 5
    figure = plots.plot_members(lr, field, five, ground=height)
    terrain = f"terrain, {height.min():.0f} (white) to {height.max():.0f} m (black)"
    assert list(panels(figure)) == [terrain, "input (LR)", "truth (HR)", *(f"member {k}" for k in (1, 2, 3))]
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), height)
    said = words(plots.plot_members(lr, field, five, target="interpolate", archive="generated sample"))
    assert "no truth: input interpolated" in said and "GENERATED SAMPLE" in said and "rain, mm" in said
    boxes = list(texts_of(plots.plot_members(lr, field, five)))
    assert not any(one.overlaps(other) for k, one in enumerate(boxes) for other in boxes[k + 1 :])


def test_sites_qq_and_windows_are_drawn(tmp_path):
    truth = xr.DataArray(
        np.stack([rain(k, 5, 4) for k in range(6)]),
        dims=("time", "lat", "lon"),
        coords={"lat": 30 - np.arange(5.0), "lon": np.arange(4.0) - 2},
    )
    truth[:, 1, 1], truth[2, 0, 0] = np.nan, np.nan
    figure = plots.plot_sites(truth[::-1] * 2, truth, caption="days")
    said = words(figure)
    assert len(figure.axes) == 20 and "30N 2W" in said and "28N 1E" in said and "20 sites" in said
    assert said.count("missing") == 1
    points = figure.axes[3].lines[1].get_xydata()  # 30N 1E, sorted, so order is no matter
    np.testing.assert_allclose(points[:, 1], 2 * points[:, 0], rtol=1e-6)
    np.testing.assert_allclose(points[:, 0], np.sort(truth.values[:, 0, 3]))
    assert len(figure.axes[0].lines[1].get_xydata()) == 4
    plots.save_figure(figure, tmp_path / "sites.png")
    plots.save_figure(plots.plot_qq(rain(0, 9, 32, 32), rain(1, 2, 9, 32, 32), caption="windows"), tmp_path / "qq.png")
    pair = torch.from_numpy(rain(0, 4, 4)), torch.from_numpy(rain(1, 16, 16)), torch.from_numpy(rain(2, 2, 16, 16))
    plots.save_figure(plots.plot_members(*pair), tmp_path / "windows.png")
    assert len(list(tmp_path.glob("*.png"))) == 3
    few = plots.plot_qq(rain(0, 3, 3), rain(1, 5, 3, 3), caption="cells", names=("analysed day", "downscaled"))
    np.testing.assert_allclose(
        few.axes[0].lines[1].get_xdata(), np.sort(rain(0, 3, 3).ravel())
    )  # values, not quantiles
    assert "9 values" in words(few) and "downscaled, 5 members" in words(few) and "analysed day, mm" in words(few)


def test_close_up_shows_the_wettest_window_that_is_whole():
    lr = field_of(np.ones((40, 10), np.float32), scale=20)
    hr = field_of(np.ones((805, 200), np.float32), scale=20)
    lr[5:9, 3:7], lr[30, 2], hr[100:180, 60:140], hr[604, 45] = 5, 9, 5, np.nan
    near, sr, truth = plots.close_up(lr, hr.expand_dims(member=2), hr, pixels=80)
    assert near.shape == (4, 4) and float(near.min()) == 5 and sr.shape == (2, 80, 80) and float(truth.min()) == 5
    assert sr.lat[0] == hr.lat[100] and sr.lon[-1] == hr.lon[139]
    assert plots.close_up(lr, hr, hr, pixels=400)[0] is lr
    lr[30] = 99  # wetter, but the truth has a gap there
    assert float(plots.close_up(lr, hr, hr, pixels=80)[2].isnull().sum()) == 0
    assert float(plots.close_up(lr, hr, pixels=80)[0].max()) == 99
    hr[::20, ::20] = np.nan  # gaps everywhere: the wettest all the same
    assert float(plots.close_up(lr, hr, hr, pixels=80)[0].mean()) > 5


@pytest.fixture
def two_days(tmp_path):
    """A dry day and a wet one as stage 3 leaves them: their paths and pairs."""
    pairs = []
    for k, top in enumerate((3, 90)):
        field = field_of(np.full((8, 8), top, np.float32), scale=4)
        pairs.append((field[::4, ::4], field))
        utils.write_field(tmp_path / f"0{k}_pre_sr.nc", field)
    return sorted(tmp_path.glob("*.nc")), pairs


def test_a_run_is_drawn_with_scores(tmp_path, two_days, monkeypatch):
    shown = []
    monkeypatch.setattr(plots, "plot_maps", lambda lr, *a, **k: shown.append(float(lr.max())) or Figure())
    monkeypatch.setattr(plots, "plot_scores", lambda *a, **k: Figure())
    paths, pairs = two_days
    table = verification.score_outputs(paths, pairs, 4)
    assert table.terms.thresholds == (1, 10, 50)
    plots.plot_evaluation(tmp_path / "plots", paths, pairs, table.curves())
    assert shown == [3, 90, 90]  # the last is the close-up of the wettest
    assert sorted(p.name for p in (tmp_path / "plots").glob("*")) == [
        "00_maps.png",
        "01_maps.png",
        "members.png",
        "scores.png",
        "wettest.png",
    ]


def test_the_target_given_says_whether_there_is_truth(tmp_path, two_days, monkeypatch):
    said, (paths, pairs) = [], two_days
    monkeypatch.setattr(plots, "save_figure", lambda figure, path, **_: said.append(words(figure)))
    pairs = [(lr, hr.assign_attrs(target="interpolate")) for lr, hr in pairs]
    table = verification.score_outputs(paths, pairs, 4)
    plots.plot_evaluation(tmp_path, paths, pairs, table.curves())
    assert len(said) == 5 and all("no truth" in text for text in said)
    said.clear()
    plots.plot_evaluation(tmp_path, paths, pairs, table.curves(), target="coarsen")
    assert len(said) == 5 and not any("no truth" in text for text in said)


def test_a_run_without_truth_is_drawn_too(tmp_path, two_days):
    paths, pairs = two_days
    plots.plot_evaluation(tmp_path / "plots", paths, [(lr, None) for lr, _ in pairs])
    plots.plot_evaluation(tmp_path / "unscored", paths, pairs, None)
    for folder in ("plots", "unscored"):
        names = sorted(p.name for p in (tmp_path / folder).glob("*"))
        assert names == ["00_maps.png", "01_maps.png", "members.png", "wettest.png"]


def test_forecasts_are_drawn_against_their_input_and_the_analysed_day(tmp_path):
    sr, own = forecast()
    paths = [tmp_path / "00_pre_sr.nc"]
    utils.write_field(paths[0], sr.astype(np.float32))
    cells = forecasts.forecast_cells(paths, [own], {"2023-08-12": analysed()})
    plots.plot_forecasts(tmp_path / "plots", paths, [own], cells)
    assert sorted(p.name for p in (tmp_path / "plots").glob("*")) == [
        "00_maps.png",
        "members.png",
        "qq_analysed_day.png",
        "qq_own_input.png",
    ]
