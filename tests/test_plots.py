"""The pictures: north up, on one rain scale, captioned, with the numbers of the table, and drawn on any machine."""

import sys
import types

import numpy as np
import torch
import xarray as xr
from matplotlib.figure import Figure
from test_verification import analysed, forecast, rain, table_of

import plots
import utils
import verification


def field_of(values, **attrs):
    h, w = values.shape[-2:]
    dims = ("member", "lat", "lon")[-values.ndim :]
    coords = {"lat": 30 - 0.1 * np.arange(h), "lon": 106 + 0.1 * np.arange(w), "time": np.datetime64("2023-08-01")}
    return xr.DataArray(values, dims=dims, coords=coords, attrs=attrs)


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


def test_one_rain_colour_means_one_amount_everywhere():
    low, high = field_of(np.full((4, 4), 3.0)), field_of(np.full((4, 4), 3.0))
    high[0, 0] = 200
    images = [plots.plot_maps(f, f).axes[0].images[0] for f in (low, high)]
    assert len({tuple(i.cmap(i.norm(3.0))) for i in images}) == 1


def test_broken_or_absent_cartopy_costs_no_picture(monkeypatch, tmp_path, capsys):
    def outlines(config, geometries):
        reader = types.SimpleNamespace(Reader=lambda path: types.SimpleNamespace(geometries=geometries))
        monkeypatch.setitem(sys.modules, "cartopy", config and types.SimpleNamespace(config=config))
        monkeypatch.setitem(sys.modules, "cartopy.io", types.SimpleNamespace(shapereader=reader))
        monkeypatch.setitem(sys.modules, "cartopy.io.shapereader", reader)
        plots._outlines.cache_clear()
        field = field_of(rain(0, 10, 10))
        return len(plots.plot_maps(field, field).axes[0].lines), capsys.readouterr().out

    line = types.SimpleNamespace(xy=([106, 107], [29, 30]))
    assert outlines(None, None) == (0, "")
    drawn, said = outlines({"data_dir": tmp_path}, lambda: [line])
    assert drawn == 0 and "cartopy_feature_download" in said and said.count("\n") == 1  # once, not a panel each
    for name in ("physical/ne_50m_coastline.shp", "cultural/ne_50m_admin_0_boundary_lines_land.shp"):
        (tmp_path / "shapefiles/natural_earth" / name).parent.mkdir(parents=True)
        (tmp_path / "shapefiles/natural_earth" / name).touch()
    many = types.SimpleNamespace(geoms=[line, line])
    assert outlines({"data_dir": tmp_path}, lambda: [line, many]) == (6, "")
    drawn, said = outlines({"data_dir": tmp_path}, lambda: 1 / 0)
    assert drawn == 0 and "cannot read its own" in said
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
    plots.save_figure(plots.plot_windows(*pair), tmp_path / "windows.png")
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


def test_one_rain_scale_serves_a_whole_run(tmp_path, monkeypatch):
    levels, pairs = [], []
    for k, top in enumerate((3, 90)):  # a dry day and a wet one
        field = field_of(np.full((8, 8), top, np.float32), scale=4)
        pairs.append((field[::4, ::4], field))
        utils.write_field(tmp_path / f"0{k}_pre_sr.nc", field)
    paths = sorted(tmp_path.glob("*.nc"))
    monkeypatch.setattr(plots, "plot_maps", lambda *a, **k: levels.append(k["levels"]) or Figure())
    monkeypatch.setattr(plots, "plot_scores", lambda *a, **k: Figure())
    table = verification.score_outputs(paths, pairs, 4)
    assert table.terms.thresholds == (1, 10, 50)
    plots.plot_evaluation(tmp_path / "plots", paths, pairs, table.curves())
    assert levels == [plots.DAILY] * 3
    assert sorted(p.name for p in (tmp_path / "plots").glob("*")) == [
        "00_maps.png",
        "01_maps.png",
        "scores.png",
        "wettest.png",
    ]


def test_forecasts_are_drawn_against_their_input_and_the_analysed_day(tmp_path):
    sr, own = forecast()
    paths = [tmp_path / "00_pre_sr.nc"]
    utils.write_field(paths[0], sr.astype(np.float32))
    cells = verification.forecast_cells(paths, [own], {"2023-08-12": analysed()})
    plots.plot_forecasts(tmp_path / "plots", paths, [own], cells)
    assert sorted(p.name for p in (tmp_path / "plots").glob("*")) == [
        "00_maps.png",
        "qq_analysed_day.png",
        "qq_own_input.png",
    ]
