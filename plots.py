"""Draws every figure: maps, Q-Q plots and the curves of a score table.

Reads    fields (DataArrays, mm), the curves of ScoreTable and the cells of forecast_cells (verification.py).
Writes   PNG files: save_figure one, plot_evaluation and plot_forecasts those of a whole run of stages 3 and 4.

    from plots import plot_maps, save_figure
    save_figure(plot_maps(lr, sr, hr), "map.png")

Loading it loads matplotlib: stages import it only when they draw.
"""

import functools
import textwrap
from pathlib import Path

import numpy as np
from matplotlib import colormaps, colors
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from datasets import block_mean
from utils import log, progress, read_output, when, whole_file
from verification import QQ_LEVELS

# The rain scale of all maps of a run, mm: for days, and for accumulations of an hour or less. Dry is white, missing
# grey; the order of the colours (viridis, reversed) shows in print and to colour-blind eyes.
DAILY, SHORT = (0.1, 1, 2, 5, 10, 25, 50, 100, 250), (0.02, 0.1, 0.2, 0.5, 1, 2, 5, 10, 25, 50)
STYLES = {
    "observed": ("black", "-"),
    "nearest": ("#999999", ":"),
    "bilinear": ("#E69F00", "--"),
    "bicubic": ("#56B4E9", "--"),
    "quantile-matched bilinear": ("#CC79A7", "-."),
    "RainFARM": ("#009E73", "-"),
    "ensemble mean": ("#0072B2", "--"),
    "one member": ("#0072B2", ":"),
    "ensemble": ("#D55E00", "-"),
}

# fmt: off
__all__ = [
    "close_up", "levels_for", "plot_evaluation", "plot_forecasts", "plot_maps", "plot_qq", "plot_scores", "plot_sites",
    "plot_windows", "save_figure",
]
# fmt: on


# ---------------------------------------------------------------- the pictures of a run


def plot_evaluation(folder, paths, pairs, curves):
    """Draw the evaluation days: NN_maps.png of every day, wettest.png (a close-up) and scores.png, all in `folder`.

    Args: paths: NN_pre_sr.nc in list order. pairs: sequence of their (lr, hr) DataArrays, mm. curves: of a ScoreTable.
    """
    folder, days = Path(folder), range(len(paths))
    levels = levels_for(*(pairs[index][1] for index in days))
    wettest = max(days, key=lambda index: float(pairs[index][0].mean()))
    for index, path in enumerate(progress(paths, "drawing")):
        (lr, hr), sr = pairs[index], read_output(path)
        save_figure(plot_maps(lr, sr, hr, levels=levels), folder / f"{index:02d}_maps.png")
        if index == wettest:
            one = sr.isel(member=0) if "member" in sr.dims else sr
            words = f"x{sr.attrs['scale']}, member 1 of {sr.sizes.get('member', 1)}"
            near = close_up(lr, one, hr)
            save_figure(plot_maps(*near, levels=levels, caption=words), folder / "wettest.png")
    figure = plot_scores(curves, caption=f"{len(paths)} files", archive=pairs[0][1].attrs.get("archive"))
    save_figure(figure, folder / "scores.png")
    log(f"drew {len(paths)} maps, wettest.png and scores.png in {folder}")


def plot_forecasts(folder, paths, inputs, cells):
    """Draw the forecasts: NN_maps.png of each and a Q-Q plot qq_NAME.png for each reference, all in `folder`.

    Args: paths: NN_pre_sr.nc. inputs: their LR DataArrays, mm, in the same order. cells: of
        verification.forecast_cells: {name of the reference: list of (downscaled (M, n), reference (n,)), mm}.
    """
    folder, levels = Path(folder), levels_for(*inputs)
    for index, (path, lr) in enumerate(zip(progress(paths, "drawing"), inputs, strict=True)):
        save_figure(plot_maps(lr, read_output(path), levels=levels), folder / f"{index:02d}_maps.png")
    for name, pairs in cells.items():
        made, known = (np.concatenate(values, -1) for values in zip(*pairs, strict=True))
        words, archive = f"{len(pairs)} forecasts at the cells of the {name}", inputs[0].attrs.get("archive")
        figure = plot_qq(known, made, caption=words, archive=archive, names=(name, "downscaled"))
        save_figure(figure, folder / f"qq_{name.replace(' ', '_')}.png")
    log(f"drew {len(paths)} maps and {len(cells)} Q-Q plots in {folder}")


def save_figure(figure, path):
    """Write a Figure as PNG, whole or not at all; returns the path."""
    with whole_file(path) as part:
        figure.savefig(part, format="png", dpi=110)
    return Path(path)


# ---------------------------------------------------------------- figures


def close_up(lr, sr, hr=None, *, pixels=400):
    """Cut the fields to their wettest window: about `pixels` a side, whole LR cells, no missing pixels if possible.

    Args: lr, sr and hr: DataArrays, mm, as read_output gives them (north first). pixels: a domain shorter than 2.5
        times this is not cut.
    Returns: (lr, sr, hr) on the window.
    """
    scale = int(sr.attrs["scale"])
    if max(sr.sizes["lat"], sr.sizes["lon"]) < 2.5 * pixels:
        return lr, sr, hr
    side = [min(max(1, round(pixels / scale)), n) for n in lr.shape]
    cells, (h, w) = lr.values.astype(np.float64), lr.shape
    valid = np.ones_like(cells) if hr is None else block_mean(np.isfinite(hr.values[: h * scale, : w * scale]), scale)
    for wanted in (np.where(valid == 1, cells, np.nan), cells, np.nan_to_num(cells)):
        means = np.lib.stride_tricks.sliding_window_view(wanted, side).mean((2, 3))
        if np.isfinite(means).any():
            break
    r, c = np.unravel_index(np.nanargmax(means), means.shape)

    def part(field, k):
        return field.isel(lat=slice(r * k, (r + side[0]) * k), lon=slice(c * k, (c + side[1]) * k))

    return part(lr, 1), part(sr, scale), hr if hr is None else part(hr, scale)


def levels_for(*fields):
    """Choose the rain scale of a run: SHORT where the 99.9 % quantile of every field is below 20 mm, else DAILY."""
    return DAILY if any(float(np.nanquantile(field, 0.999)) >= 20 for field in fields) else SHORT


def plot_maps(lr, sr, hr=None, *, caption="", levels=DAILY, members=3):
    """Draw maps of the input, the truth if there is one, members, their mean and spread (standard deviation), north up.

    Args: lr (lat, lon), sr ([member,] lat, lon), hr (lat, lon): DataArrays, mm, NaN = missing. caption: comes before
        time, source and size of the field. levels: DAILY or SHORT, mm. members: how many are drawn.
    Returns: a matplotlib Figure; save_figure writes it.
    """
    panels = {"input (LR)": lr}
    if hr is not None:
        panels["no truth: input interpolated (HR)" if hr.attrs.get("target") == "interpolate" else "truth (HR)"] = hr
    if "member" in sr.dims:
        panels |= {f"member {m + 1}": sr.isel(member=m) for m in range(min(members, sr.sizes["member"]))}
        panels |= {"mean of members": sr.mean("member"), "spread of members": sr.std("member", ddof=1)}
    else:
        panels["downscaled (SR)"] = sr
    (south, north), (west, east) = (_ends(lr[d].values) for d in ("lat", "lon"))
    height = (north - south) / (east - west) * _stretch(south, north)
    columns = min(len(panels), (3 if len(panels) in (5, 6) else 4) if height < 2 else 7)
    size = (3.4, 3 * height + 0.75) if height < 2 else (9 / height + 0.6, 9.6)
    figure, axes = _figure(-(-len(panels) // columns), columns, size)
    colours = _rain_colours(levels)
    for ax, (title, field) in zip(axes.flat, panels.items(), strict=False):
        image = _draw_map(ax, field, title, colours)
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    figure.colorbar(image, ax=axes, format="%g", label="rain, mm", aspect=40, pad=0.02)
    said = [when(sr.time.values)] if "time" in sr.coords else []
    said += [sr.attrs[key] for key in ("source", "source_file") if sr.attrs.get(key)]
    said.append(
        f"{sr.sizes['lat']} x {sr.sizes['lon']} pixels"
        + (f", {sr.sizes['member']} members" if "member" in sr.dims else "")
    )
    return _sign(figure, "; ".join([caption] * bool(caption) + said), sr.attrs.get("archive"))


def plot_windows(lr, hr, members, *, levels=None):
    """Draw input, truth and up to three members of one training window.

    Args: lr (h, w), hr (H, W), members (M, H, W): mm, tensors or arrays.
    """
    lr, hr, members = (
        np.asarray(a.detach().cpu() if hasattr(a, "detach") else a, np.float32) for a in (lr, hr, members)
    )
    colours = _rain_colours(levels or (DAILY if np.nanmax(hr) > SHORT[-1] else SHORT))
    panels = {"input": lr, "truth": hr} | {f"member {m + 1}": field for m, field in enumerate(members[:3])}
    figure, axes = _figure(1, len(panels), (3, 3))
    for ax, (title, field) in zip(axes.flat, panels.items(), strict=True):
        image = ax.imshow(field, cmap=colours[0], norm=colours[1], interpolation="nearest")
        ax.set(title=title, xticks=[], yticks=[])
    figure.colorbar(image, ax=axes, format="%g", label="rain, mm")
    return figure


def plot_qq(truth, members, *, caption="", archive=None, names=("truth", "downscaled")):
    """Draw the Q-Q plot of all values of members (M, ...) against truth (...), mm: log axes, a line for each member.

    It shows the quantiles 1 to 99.9 %, or every value, sorted, where there are fewer than 200.
    """
    figure, axes = _figure(1, 1, (5.2, 5.2))
    truth, members = np.asarray(truth).ravel(), np.asarray(members).reshape(len(members), -1)
    number = int(np.isfinite(truth).sum())
    levels, words = QQ_LEVELS, "quantiles 1 to 99.9 % of {} values a member, mm"
    if number < 200:
        levels, words = np.linspace(0, 1, number), "all {} values of a member, sorted, mm"
    quantiles = [np.nanquantile(values, levels) for values in (truth, *members)]
    lines = {f"{names[1]} {m + 1}": values for m, values in enumerate(quantiles[1:])}
    ax = axes.flat[0]
    _qq(ax, quantiles[0], lines, names, marker="." if number < 200 else "", title="Q-Q")
    if len(lines) > 1:  # one colour, so one label
        ax.legend(ax.lines[1:2], [f"{names[1]}, {len(lines)} members"], fontsize=8)
    return _sign(figure, f"{caption}; {words.format(number)}", archive)


def plot_sites(sr, reference, *, caption="", archive=None, names=("reference", "downscaled")):
    """Draw a Q-Q plot at every site, laid out as on the map: all values, sorted, or 200 quantiles where there are more.

    Axes are linear up to the first tick and logarithmic beyond.

    Args: sr and reference (n, lat, lon), DataArrays, mm, on the same sites; lat and lon of sr are the titles.
    """
    (n, h, w), top = sr.shape, float(max(np.nanmax(sr), np.nanmax(reference), 0.2)) * 1.3
    size = max(9 / max(h, w), 0.85)
    figure, axes = _figure(h, w, (size, size), layout=None)
    width, height = figure.get_size_inches()
    figure.subplots_adjust(
        left=0.75 / width, right=1 - 0.1 / width, top=1 - 0.45 / height, bottom=0.95 / height, wspace=0.15, hspace=0.4
    )
    first = 1 if top > 20 else 0.1
    ticks = [0, *(10.0**k for k in range(-1, 4) if first <= 10.0**k < top)]
    for i, j in np.ndindex(h, w):
        ax, pair = axes[i, j], np.stack([field.values[:, i, j] for field in (reference, sr)])
        pair = pair[:, np.isfinite(pair).all(0)]
        ax.plot([0, top], [0, top], color="0.6", lw=0.7)
        if pair.size:
            points = np.quantile(pair, np.linspace(0, 1, min(pair.shape[1], 200)), axis=1)
            ax.plot(*points.T, ".", ms=3, color=STYLES["ensemble"][0])
        else:
            ax.text(0.5, 0.5, "missing", fontsize=6, color="0.5", ha="center", va="center", transform=ax.transAxes)
        ax.set_xscale("symlog", linthresh=first)
        ax.set_yscale("symlog", linthresh=first)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(FixedLocator(ticks))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter("{x:g}")
        ax.set(xlim=(-0.05 * first, top), ylim=(-0.05 * first, top), aspect="equal")
        ax.set_title(_place(sr.lat[i], sr.lon[j]), fontsize=6, pad=2)
        ax.tick_params(labelsize=6, labelleft=j == 0, labelbottom=i == h - 1, length=2)
    figure.supxlabel(f"{names[0]}, mm", fontsize=9, y=0.35 / height)
    figure.supylabel(f"{names[1]}, mm", fontsize=9, x=0.1 / width)
    return _sign(figure, f"{caption}; up to {n} values at each of {h * w} sites, sorted", archive)


def plot_scores(curves, *, caption="", archive=None):
    """Draw Q-Q with band, exceedance, spectra, FSS, rank histogram and reliability, from ScoreTable.curves()."""
    figure, axes = _figure(2, 3, (4.8, 4.2))
    rows, observed = curves["rows"], curves["rows"]["observed"]
    best = "ensemble" if "ensemble" in rows else "one member"
    names = [name for name in STYLES if name in rows and name not in {"one member", best}] + [best]
    lines = {name: rows[name]["quantiles"] for name in names if name != "observed"}
    _qq(axes[0, 0], observed["quantiles"], lines, ("truth", "downscaled"), rows[best]["band"], title="Q-Q, 1 to 99.9 %")
    axes[0, 0].get_legend().remove()
    _exceedance(axes[0, 1], curves["edges"], {name: rows[name]["exceedance"] for name in names})
    _spectra(axes[0, 2], {name: rows[name]["spectrum"] for name in names if rows[name]["spectrum"] is not None})
    shown = {name: rows[name]["fss"] for name in ("nearest", "RainFARM", best) if name in rows}
    _scales(axes[1, 0], curves["fss_scales"], curves["thresholds"], shown)
    _ranks(axes[1, 1], curves.get("ranks"))
    _reliability(axes[1, 2], curves.get("reliability"), curves["thresholds"])
    keys = [axes[0, 1].lines[0], *axes[0, 0].lines[1:]]
    figure.legend(keys, ["truth", *lines], loc="outside upper left", ncols=len(keys), fontsize=8, frameon=False)
    words = f"{curves['fields']} fields, {curves['pixels']} pixels; band of the Q-Q: 95 %, bootstrap over "
    words += f"{curves['blocks']} blocks"
    return _sign(figure, f"{caption}; {words}; points of the reliability: 50 pixels or more", archive)


# ---------------------------------------------------------------- parts of a figure


def _figure(rows, columns, size, layout="constrained"):
    figure = Figure(figsize=(size[0] * columns + 0.8, size[1] * rows + 0.5), layout=layout)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _sign(figure, caption, archive):
    """Write the caption below a figure, and above it a warning where the data are a generated sample."""
    width, height = figure.get_size_inches()
    text = textwrap.fill(caption.lstrip("; "), max(40, int(17 * width)))
    figure.text(0.04 / width, 0.04 / height, text, fontsize=7.5, va="bottom")
    if figure.get_layout_engine() is not None:
        bottom = (0.1 + 0.14 * (text.count("\n") + 1)) / height
        figure.get_layout_engine().set(rect=(0, bottom, 1, 1 - bottom - (0.25 if archive else 0.06) / height))
    if archive and "generated" in str(archive).lower():
        figure.text(
            0.995, 0.995, "GENERATED SAMPLE, not observations", color="#D55E00", weight="bold", ha="right", va="top"
        )
    return figure


def _rain_colours(levels):
    colour = colormaps["viridis_r"].resampled(len(levels)).with_extremes(under="white", over="black", bad="0.75")
    return colour, colors.BoundaryNorm(levels, len(levels), extend="max")


def _draw_map(ax, field, title, colours):
    field = field.transpose("lat", "lon").sortby("lat", ascending=False)
    (south, north), (west, east) = (_ends(field[d].values) for d in ("lat", "lon"))
    image = ax.imshow(
        field.values,
        cmap=colours[0],
        norm=colours[1],
        extent=(west, east, south, north),
        interpolation="nearest",
        aspect=_stretch(south, north),
    )
    for x, y in _outlines():
        ax.plot(x, y, color="0.25", lw=0.6)
    ax.set(xlim=(west, east), ylim=(south, north))
    ax.set_xlabel("degrees east", fontsize=8)
    ax.set_ylabel("degrees north", fontsize=8)
    ax.set_title(f"{title}\nmean {float(field.mean()):.2f}, max {float(field.max()):.1f} mm", fontsize=8)
    ax.locator_params(axis="x", nbins=4, prune="upper")
    ax.label_outer()
    return image


def _ends(centres):
    half = abs(centres[-1] - centres[0]) / max(len(centres) - 1, 1) / 2 or 0.5
    return centres.min() - half, centres.max() + half


def _stretch(south, north):
    """Length of a degree of latitude over that of a degree of longitude, halfway between two latitudes."""
    return 1 / max(np.cos(np.radians((south + north) / 2)), 0.1)


@functools.lru_cache(maxsize=1)
def _outlines():
    """Coast and border lines, as (lon, lat), from cartopy's files on this machine; nothing is downloaded."""
    try:
        import cartopy
        from cartopy.io.shapereader import Reader
    except ImportError:
        return []
    roots = [cartopy.config.get(key) for key in ("pre_existing_data_dir", "data_dir", "repo_data_dir")]
    names = ("physical/ne_50m_coastline.shp", "cultural/ne_50m_admin_0_boundary_lines_land.shp")
    found = [
        next((f for root in roots if root and (f := Path(root, "shapefiles/natural_earth", name)).exists()), None)
        for name in names
    ]
    if None in found:
        log(
            "maps lack coastlines or borders: cartopy's files are not on this machine "
            "(cartopy_feature_download physical cultural)"
        )
    try:
        shapes = [shape for file in found if file for shape in Reader(str(file)).geometries()]
        return [line.xy for shape in shapes for line in getattr(shape, "geoms", [shape])]
    except Exception as error:  # a broken installation must not cost the picture
        log(f"maps lack coastlines: cartopy cannot read its own ({error})")
        return []


def _place(lat, lon):
    return f"{abs(float(lat)):g}{'N' if lat >= 0 else 'S'} {abs(float(lon)):g}{'E' if lon >= 0 else 'W'}"


def _qq(ax, observed, lines, names, band=None, *, marker="", title):
    top = 1.3 * np.nanmax(np.concatenate([[1.0], observed, *lines.values()]))  # a site may be missing every day
    floor = 0.1 if top > 20 else 0.02
    ax.plot([floor, top], [floor, top], color="0.6", lw=0.8)
    for name, quantiles in lines.items():
        colour, style = STYLES.get(name, (STYLES["ensemble"][0], "-"))
        ax.plot(observed, quantiles, color=colour, ls=style, marker=marker, lw=1.2, label=name)
    if band is not None:
        ax.fill_between(observed, *band, color=colour, alpha=0.25, lw=0)  # of the last line
    ax.set(
        xscale="log",
        yscale="log",
        xlim=(floor, top),
        ylim=(floor, top),
        aspect="equal",
        title=title,
        xlabel=f"{names[0]}, mm",
        ylabel=f"{names[1]}, mm",
    )
    _plain(ax)
    ax.legend(fontsize=8)


def _plain(ax, axes="xy"):
    """Label log axes with plain numbers, at powers of ten only."""
    for name in axes:
        getattr(ax, f"{name}axis").set_major_formatter("{x:g}")
        getattr(ax, f"{name}axis").set_minor_formatter("")


def _exceedance(ax, edges, lines):
    for name, share in lines.items():
        ax.plot(edges, share, color=STYLES[name][0], ls=STYLES[name][1], lw=1.2)
    positive = lines["observed"][lines["observed"] > 0]
    top = 1.5 * max(edges[min(len(positive), len(edges) - 1)], 1)
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="rain, mm",
        ylabel="share of pixels at or above",
        title="exceedance",
        xlim=(0.1 if top > 75 else 0.02, top),
        ylim=(positive.min(initial=1) / 3, 1),
    )
    _plain(ax, "x")


def _spectra(ax, lines):
    for name, power in lines.items():
        ax.plot(np.arange(1, len(power)), power[1:], color=STYLES[name][0], ls=STYLES[name][1], lw=1.2)
    pixels = 2 * max(map(len, lines.values()), default=0)
    ax.set(xscale="log", yscale="log", title="spectra", ylabel="power, mm²", xlabel=f"waves over {pixels} pixels")
    _plain(ax, "x")
    if not lines:
        ax.text(0.5, 0.5, "every field has missing pixels", ha="center", transform=ax.transAxes)


def _scales(ax, scales, thresholds, lines):
    """Draw the FSS (thresholds, scales) of each row over the window size; each threshold has its marker."""
    for t, threshold in enumerate(thresholds):
        for name, fss in lines.items():
            ax.plot(scales, fss[t], marker="osd"[t % 3], ls=STYLES[name][1], color=STYLES[name][0], lw=1.2, ms=5)
        ax.plot([], [], marker="osd"[t % 3], ls="", color="0.3", label=f"{threshold:g} mm")
    ax.set(xscale="log", ylim=(-0.03, 1.03), xlabel="window, pixels", ylabel="FSS", title="fractions skill score")
    ax.set_xticks(scales, [f"{k:g}" for k in scales])
    ax.set_xticks([], minor=True)
    ax.legend(fontsize=8, title="at or above", title_fontsize=8)


def _ranks(ax, ranks):
    ax.set(title="rank of the truth", xlabel="members below it", ylabel="frequency, 1 where reliable")
    if ranks is None:
        ax.text(0.5, 0.5, "needs an ensemble: --members 2 or more", ha="center", transform=ax.transAxes)
        return
    ax.bar(np.arange(len(ranks)), ranks / max(ranks.sum(), 1) * len(ranks), color=STYLES["ensemble mean"][0])
    ax.axhline(1, color="0.3", lw=0.8)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def _reliability(ax, reliability, thresholds):
    ax.plot([0, 1], [0, 1], color="0.6", lw=0.8)
    ax.set(
        title="reliability",
        xlabel="share of members with the event",
        ylabel="observed frequency",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    for t, counts in enumerate(() if reliability is None else reliability):
        enough = counts[:, 0] >= 50  # fewer pixels than this are noise
        share = np.linspace(0, 1, len(counts))[enough]
        ax.plot(
            share,
            counts[enough, 1] / counts[enough, 0],
            marker="osd"[t % 3],
            label=f"{thresholds[t]:g} mm",
            color=("#0072B2", "#D55E00", "#009E73")[t % 3],
        )
    if reliability is not None:
        ax.legend(fontsize=8, title="at or above", title_fontsize=8)
    else:
        ax.text(0.5, 0.5, "needs an ensemble: --members 2 or more", ha="center", transform=ax.transAxes)
