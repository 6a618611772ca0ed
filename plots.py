"""Draws every figure: maps, Q-Q plots and the curves of a score table.

Reads    fields (DataArrays, mm), the curves of ScoreTable and the cells of forecast_cells (forecasts.py).
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
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator
from matplotlib.transforms import IdentityTransform

import limits
from datasets import block_mean
from static import orography_on
from utils import DataError, log, progress, read_output, when, whole_file
from verification import QQ_LEVELS

# Amounts at which the colour of rain changes, mm, and the colour from each on: one amount has one colour in every map.
# Lightness (CIELAB) falls from 97 to 10, so the order is seen in print and by colour-blind eyes; dry is white, missing
# grey.
LADDER = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
# fmt: off
COLOURS = (
    "#F6F6E5", "#EDEFD0", "#DFE7B9", "#C8DCA0", "#A0D096", "#66C5A0", "#15B4B2", "#029DBB", "#0086C3", "#2D6BC1",
    "#514BAD", "#602A85", "#551155", "#330D27",
)
# fmt: on
OUTLINES = Path(__file__).parent / "Data/README/outlines.npz"  # coasts and borders; outlines.md says whence
INPUT, SPREAD = "input (LR)", "spread of members"
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
    "close_up", "levels_for", "plot_evaluation", "plot_forecasts", "plot_maps", "plot_members", "plot_qq",
    "plot_scores", "plot_sites", "plot_training", "save_figure", "wettest_window",
]
# fmt: on


# ---------------------------------------------------------------- the pictures of a run


def plot_evaluation(folder, paths, pairs, curves=None, *, target=None, cells=None, static=()):
    """Draw the evaluation days: NN_maps.png of every day and scores.png; of the wettest wettest.png and members.png.

    wettest.png is a close-up, members.png a window of about 400 pixels a side, drawn pixel by pixel.

    Args: paths: NN_pre_sr.nc in list order. pairs: sequence of their (lr, hr) DataArrays, mm; hr is None where there is
        no truth. curves: of a ScoreTable; None: no scores.png. target: where the truth comes from, where the fields'
        own word is not to be taken ("interpolate" over files at the HR step has real truth). cells: as of
        plot_forecasts, where there is no truth. static: files of static fields, whose orography members.png shows too.
    """
    folder, wettest, near, beside, shown = Path(folder), -1.0, None, None, None
    for index, path in enumerate(progress(paths, "drawing")):
        (lr, hr), sr = pairs[index], read_output(path)
        hr = hr.assign_attrs(target=target) if target and hr is not None else hr
        save_figure(plot_maps(lr, sr, hr), folder / f"{index:02d}_maps.png")
        shown, mean = lr if hr is None else hr, float(np.nan_to_num(lr.mean()))
        if mean > wettest:
            one = sr.isel(member=0) if "member" in sr.dims else sr
            wettest, near, beside = mean, close_up(lr, one, hr), wettest_window(lr, sr, hr)
            words = f"x{sr.attrs['scale']}, member 1 of {sr.sizes.get('member', 1)}"
    if near is not None:
        save_figure(plot_maps(*near, caption=words), folder / "wettest.png")
        save_figure(_members_of(*beside, static), folder / "members.png", dpi="figure")
    if curves is not None:
        words, attrs = "; ".join([f"{len(paths)} files", *limits.said_of(paths)]), shown.attrs
        figure = plot_scores(curves, caption=words, archive=attrs.get("archive"), target=attrs.get("target"))
        save_figure(figure, folder / "scores.png")
    _plot_cells(folder, paths, cells or {}, pairs[0][0].attrs.get("archive"))
    log(f"drew {len(paths)} maps, wettest.png, members.png{'' if curves is None else ', scores.png'} in {folder}")


def plot_forecasts(folder, paths, inputs, cells, *, static=()):
    """Draw the forecasts: NN_maps.png of each, members.png of the wettest, qq_NAME.png (Q-Q) for each reference.

    Args: paths: NN_pre_sr.nc. inputs: their LR DataArrays, mm, in the same order. cells: of
        forecasts.forecast_cells: {name of the reference: list of (downscaled (M, n), reference (n,)), mm}. static: as
        of plot_evaluation.
    """
    folder = Path(folder)
    for index, (path, lr) in enumerate(zip(progress(paths, "drawing"), inputs, strict=True)):
        save_figure(plot_maps(_one_input(lr), read_output(path)), folder / f"{index:02d}_maps.png")
    index = int(np.argmax([np.nan_to_num(float(lr.mean())) for lr in inputs]))
    beside = wettest_window(_one_input(inputs[index]), read_output(paths[index]))
    save_figure(_members_of(*beside, static), folder / "members.png", dpi="figure")
    _plot_cells(folder, paths, cells, inputs[0].attrs.get("archive"))
    log(f"drew {len(paths)} maps, members.png and {len(cells)} Q-Q plots in {folder}")


def _plot_cells(folder, paths, cells, archive):
    """Draw qq_NAME.png for each reference of forecasts.forecast_cells."""
    for name, pairs in cells.items():
        made, known = (np.concatenate(values, -1) for values in zip(*pairs, strict=True))
        words = "; ".join([f"{len(pairs)} fields at the cells of the {name}", *limits.said_of(paths)])
        figure = plot_qq(known, made, caption=words, archive=archive, names=(name, "downscaled"))
        save_figure(figure, folder / f"qq_{name.replace(' ', '_')}.png")


def _one_input(lr):
    """The first member of an input ensemble, of which the first members were made; another input as it is."""
    return lr.isel(member=0) if "member" in lr.dims else lr


def save_figure(figure, path, *, dpi=110):
    """Write a Figure as PNG, whole or not at all; returns the path. dpi: "figure" for one of plot_members."""
    with whole_file(path) as part:
        figure.savefig(part, format="png", dpi=dpi)
    return Path(path)


def _members_of(lr, sr, hr, static):
    """plot_members of DataArrays, captioned with their time, source, place and size; with the orography of files."""
    lr, sr, hr = (field if field is None else _north_up(field) for field in (lr, sr, hr))
    (south, north), (west, east) = (_ends(sr[d].values) for d in ("lat", "lon"))
    corners = f"{_place(round(south, 4), round(west, 4))} to {_place(round(north, 4), round(east, 4))}"
    return plot_members(
        lr.values,
        hr if hr is None else hr.values,
        sr.values if "member" in sr.dims else sr.values[None],
        target=None if hr is None else hr.attrs.get("target"),
        caption="; ".join([*_about(sr), corners]),
        ground=orography_on(static, sr.lat.values, sr.lon.values),
        archive=sr.attrs.get("archive"),
    )


# ---------------------------------------------------------------- figures


def close_up(lr, sr, hr=None, *, pixels=400):
    """Cut the fields to their wettest window: about `pixels` a side, whole LR cells, no missing pixels if possible.

    Args: lr, sr and hr: DataArrays, mm, as read_output gives them (north first). pixels: a domain shorter than 2.5
        times this is not cut.
    Returns: (lr, sr, hr) on the window.
    """
    if max(sr.sizes["lat"], sr.sizes["lon"]) < 2.5 * pixels:
        return lr, sr, hr
    return wettest_window(lr, sr, hr, pixels=pixels)


def wettest_window(lr, sr, hr=None, *, pixels=400):
    """Cut the fields to their wettest window as close_up does, whatever their size.

    Args: lr, sr and hr: DataArrays, mm, north first. pixels: about the window's side.
    Returns: (lr, sr, hr) on the window.
    """
    scale = int(sr.attrs.get("scale") or max(1, sr.sizes["lat"] // lr.sizes["lat"]))
    side = [min(max(1, round(pixels / scale)), n) for n in lr.shape]
    return _wettest_window(lr, sr, hr, side, scale)[0]


def levels_for(*fields):
    """Choose the levels of a figure from the rain in its fields: rungs of LADDER, mm, at least five.

    The first is 0.1 mm, or less where a quarter of the wet values lies below it; the last is the highest rung that any
    value reaches. Colours belong to the rungs, so other levels do not change the colour of an amount.
    """
    wet = [values[values >= LADDER[0]] for values in map(np.asarray, fields)]
    wet = np.concatenate([np.zeros(0), *wet])
    low, high = np.quantile(wet, (0.25, 1)) if wet.size else (LADDER[0], LADDER[0])
    last = max(int(np.searchsorted(LADDER, high, "right")) - 1, 4)
    first = min(max(int(np.searchsorted(LADDER, low, "right")) - 1, 0), LADDER.index(0.1), last - 4)
    return LADDER[first : last + 1]


def plot_maps(lr, sr, hr=None, *, caption="", levels=None, members=3):
    """Draw maps of the input, the truth if there is one, members, their mean and spread (standard deviation), north up.

    Truth is masked where the input is missing; means and maxima in the titles are those of the pixels that no panel
    misses. Of a domain over three times longer than wide the window of its wettest cells is drawn, beside the whole
    input.

    Args: lr (lat, lon), sr ([member,] lat, lon), hr (lat, lon): DataArrays, mm, NaN = missing. caption: comes before
        time, source and size of the field. levels: rungs of LADDER; None: those of levels_for. members: how many are
        drawn.
    Returns: a matplotlib Figure; save_figure writes it.
    """
    lr, sr, hr = (field if field is None else _north_up(field) for field in (lr, sr, hr))
    said, whole, where = _about(sr), lr, None
    scale = int(sr.attrs.get("scale") or max(1, sr.sizes["lat"] // lr.sizes["lat"]))
    if max(lr.shape) > 3 * min(lr.shape):
        side = [min(n, 2 * min(lr.shape)) for n in lr.shape]
        (lr, sr, hr), where = _wettest_window(lr, sr, hr, side, scale)
        said.append(f"window of the wettest cells: {sr.sizes['lat']} x {sr.sizes['lon']} pixels")
    input_present = _on_pixels(np.isfinite(lr.values), scale, sr.shape[-2:], False)
    hr = hr if hr is None else hr.where(input_present)
    panels = _panels(lr, sr, hr, members)
    common = input_present & np.logical_and.reduce([np.isfinite(field.values) for field in panels.values()][1:])
    if not common.all():
        said.append(f"grey: missing; means and maxima are of the {_share(common.mean())} that no panel misses")
    rain = _rain_colours(levels or levels_for(*(f for name, f in panels.items() if name != SPREAD)))
    figure, axes = _map_axes(lr, len(panels) + (where is not None))
    free, shown = list(axes.flat), {}
    if where is not None:
        first = free.pop(0)
    for title, field in panels.items():
        numbers = _on_pixels(field.values, scale, sr.shape[-2:], np.nan) if title == INPUT else field.values
        colours = _spread_colours(field) if title == SPREAD else rain
        ax = free.pop(0)
        image = _draw_map(ax, field, f"{title}\n{_mean_and_max(numbers[common])}", colours)
        shown["spread, mm" if title == SPREAD else "rain, mm"] = image
    _label_outer(axes, free, 1 if where is None else 2)
    if where is not None:
        _draw_whole(first, whole, rain, lr)
    for label, image in reversed(shown.items()):  # the last bar is nearest
        _bar(figure, image, axes, label)
    return _sign(figure, "; ".join([caption] * bool(caption) + said), sr.attrs.get("archive"))


def plot_members(lr, hr, members, *, levels=None, target=None, caption="", archive=None, ground=None):
    """Draw input, truth and members of one window side by side, each pixel of HR as one pixel of the picture.

    Nothing is interpolated, so texture can be judged. A window shorter than 200 pixels is drawn with 2 x 2, 3 x 3 ...
    pixels of the picture for each of its own. Two rows of three: four members, without truth five, with terrain one
    less.

    Args: lr (h, w), hr (H, W) or None, members (M, H, W): mm, tensors or arrays, north first. levels: rungs of LADDER;
        None: those of levels_for. target: with "interpolate" the title of the truth says that it is none. ground
        (H, W): orography, m, drawn in shades of grey, darker where it is higher; None: none.
    Returns: a Figure; save_figure(figure, path, dpi="figure") keeps its pixels.
    """
    lr, hr, members = (None if field is None else _array(field) for field in (lr, hr, members))
    truth = "no truth: input interpolated" if target == "interpolate" else "truth (HR)"
    shape = members.shape[-2:]
    panels = {INPUT: _on_pixels(lr, shape[0] // len(lr), shape, np.nan)} | ({} if hr is None else {truth: hr})
    room = 6 - len(panels) - (ground is not None)
    panels |= {f"member {m + 1}": field for m, field in enumerate(members[:room])}
    colours, terrain = _rain_colours(levels or levels_for(*panels.values())), None
    if ground is not None:
        terrain = f"terrain, {np.min(ground):.0f} (white) to {np.max(ground):.0f} m (black)"
        panels = {terrain: ground, **panels}
    zoom = max(1, -(-200 // min(shape)))
    (h, w), columns = (zoom * n for n in shape), 2 if len(panels) == 4 else min(3, len(panels))
    rows = -(-len(panels) // columns)
    head, gap, bar = 26, 10, 80  # pixels of the picture: title of a panel, between panels, colour bar
    width = columns * (w + gap) + gap + bar
    foot, top = 12 + 12 * len(_caption_lines(caption, width / 100)), 18 if archive else 0
    height = rows * (h + head) + foot + top
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    for k, (title, field) in enumerate(panels.items()):
        left, low = gap + k % columns * (w + gap), height - top - (k // columns + 1) * (h + head)
        box = Rectangle(
            (left - 1, low - 1), w + 2, h + 2, fc="0.6", lw=0, aa=False, zorder=-1, transform=IdentityTransform()
        )
        figure.add_artist(box)  # a frame of one pixel round the window, which lies on it
        ax = figure.add_axes((left / width, low / height, w / width, h / height))
        look = {"cmap": "Greys"} if title == terrain else {"cmap": colours[0], "norm": colours[1]}
        image = ax.imshow(field, interpolation="nearest", aspect="auto", **look)
        ax.set_axis_off()
        ax.set_title(title, fontsize=9, pad=4)
    place = (columns * (w + gap) + gap) / width, foot / height + 0.05, 14 / width, (h * rows + head) / height - 0.1
    _bar(figure, image, None, "rain, mm", cax=figure.add_axes(place))
    return _sign(figure, caption, archive)


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

    Axes are linear up to the first tick and logarithmic beyond. Of several members the points are the mean of their
    quantiles, and a band reaches from the least to the largest.

    Args: sr ([member,] n, lat, lon) and reference (n, lat, lon), DataArrays, mm, on the same sites; lat and lon of sr
        are the titles.
    """
    (n, h, w), members, top = (
        reference.shape,
        sr.sizes.get("member", 1),
        float(max(np.nanmax(sr), np.nanmax(reference), 0.2)) * 1.3,
    )
    side, across, down = float(np.clip(10.5 / max(h, w), 0.95, 2.4)), 0.12, 0.3  # inches of a panel and between two
    width, height = 1.0 + w * side + (w - 1) * across, 1.4 + h * side + (h - 1) * down
    width, figure = max(width, 5), Figure(figsize=(max(width, 5), height))
    axes = figure.subplots(h, w, squeeze=False)
    figure.subplots_adjust(
        left=0.75 / width,
        right=(0.75 + w * side + (w - 1) * across) / width,
        top=1 - 0.45 / height,
        bottom=0.95 / height,
        wspace=across / side,
        hspace=down / side,
    )
    first = 1 if top > 20 else 0.1
    ticks = [0, *(10.0**k for k in range(-1, 4) if first <= 10.0**k < top)]
    for i, j in np.ndindex(h, w):
        ax, values = axes[i, j], np.vstack([reference.values[:, i, j], sr.values[..., i, j].reshape(members, n)])
        values = values[:, np.isfinite(values).all(0)]
        ax.plot([0, top], [0, top], color="0.6", lw=0.7)
        if values.size:
            known, *made = np.quantile(values, np.linspace(0, 1, min(values.shape[1], 200)), axis=1).T
            ax.fill_between(known, np.min(made, 0), np.max(made, 0), color=STYLES["ensemble"][0], alpha=0.3, lw=0)
            ax.plot(known, np.mean(made, 0), ".", ms=3, color=STYLES["ensemble"][0])
        else:
            ax.text(0.5, 0.5, "missing", fontsize=7, color="0.5", ha="center", va="center", transform=ax.transAxes)
        ax.set_xscale("symlog", linthresh=first)
        ax.set_yscale("symlog", linthresh=first)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(FixedLocator(ticks))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter("{x:g}")
        ax.set(xlim=(-0.05 * first, top), ylim=(-0.05 * first, top), aspect="equal")
        ax.set_title(_place(sr.lat[i], sr.lon[j]), fontsize=7 if side < 1.5 else 8, pad=3)
        ax.tick_params(labelsize=7 if side < 1.5 else 8, labelleft=j == 0, labelbottom=i == h - 1, length=2)
    figure.supxlabel(f"{names[0]}, mm", fontsize=9, y=0.35 / height)
    figure.supylabel(f"{names[1]}, mm", fontsize=9, x=0.1 / width)
    words = f"; points: mean of {members} members, band: least to largest" if members > 1 else ""
    return _sign(figure, f"{caption}; up to {n} values at each of {h * w} sites, sorted{words}", archive)


def plot_scores(curves, *, caption="", archive=None, target=None):
    """Draw Q-Q with band, exceedance, spectra, FSS, rank histogram and reliability, from ScoreTable.curves().

    With target "interpolate" the labels say that the truth is the input, interpolated.
    """
    truth = "interpolated input" if target == "interpolate" else "truth"
    figure, axes = _figure(2, 3, (4.8, 4.2))
    rows, observed = curves["rows"], curves["rows"]["observed"]
    best = "ensemble" if "ensemble" in rows else "one member"
    names = [name for name in STYLES if name in rows and name not in {"one member", best}] + [best]
    lines = {name: rows[name]["quantiles"] for name in names if name != "observed"}
    _qq(axes[0, 0], observed["quantiles"], lines, (truth, "downscaled"), rows[best]["band"], title="Q-Q, 1 to 99.9 %")
    axes[0, 0].get_legend().remove()
    _exceedance(axes[0, 1], curves["edges"], {name: rows[name]["exceedance"] for name in names})
    _spectra(axes[0, 2], {name: rows[name]["spectrum"] for name in names if rows[name]["spectrum"] is not None})
    shown = {name: rows[name]["fss"] for name in ("nearest", "RainFARM", best) if name in rows}
    _scales(axes[1, 0], curves["fss_scales"], curves["thresholds"], shown)
    _ranks(axes[1, 1], curves.get("ranks"), truth)
    _reliability(axes[1, 2], curves.get("reliability"), curves["thresholds"])
    keys = [axes[0, 1].lines[0], *axes[0, 0].lines[1:]]
    figure.legend(keys, [truth, *lines], loc="outside upper left", ncols=len(keys), fontsize=8, frameon=False)
    words = f"{curves['fields']} fields, {curves['pixels']} pixels; band of the Q-Q: 95 %, bootstrap over "
    words += f"{curves['blocks']} blocks"
    words += "; no truth: the input, interpolated, stands for it" if target == "interpolate" else ""
    return _sign(figure, f"{caption}; {words}; points of the reliability: 50 pixels or more", archive)


def plot_training(folder):
    """Draw the curves of a training: scores of the held-out windows, and losses, over its steps.

    Args: folder: of the TensorBoard events that stage 2 wrote, such as runs/pre_srgan_x100.
    Raises: DataError: it holds no curves.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    curves = {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}
    if not curves:
        raise DataError(f"{folder}: no curves; expected the TensorBoard events of 2train.py")
    figure, axes = _figure(1, 2, (4.8, 3.2))
    scores = {"valid/crps": "members", "valid/mae_bilinear": "bilinear"}
    losses = {name: name for name in curves if name.startswith("Loss_")}
    for ax, shown in zip(axes[0], (scores, losses), strict=True):
        for number, (name, label) in enumerate(shown.items()):
            style = {"color": STYLES["ensemble" if label == "members" else label][0]} if shown is scores else {}
            ax.plot(
                *zip(*sorted(curves.get(name, [])), strict=True), marker="o.^v"[number % 4], ms=4, label=label, **style
            )
        ax.legend(fontsize=8)
        ax.set_xlabel("step")
    axes[0, 0].set(title="held-out windows", ylabel="CRPS, mm", ylim=(0, None))
    axes[0, 1].set(title="losses of the training")
    return _sign(figure, f"{folder}; CRPS of a single field is its mean absolute error", None)


# ---------------------------------------------------------------- parts of a figure


def _figure(rows, columns, size):
    figure = Figure(figsize=(size[0] * columns + 0.8, size[1] * rows + 0.5), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _sign(figure, caption, archive):
    """Write the caption below a figure, and above it what the files say of themselves by their attribute `archive`."""
    width, height = figure.get_size_inches()
    text = "\n".join(_caption_lines(caption, width))
    figure.text(0.04 / width, 0.04 / height, text, fontsize=7.5, va="bottom")
    if figure.get_layout_engine() is not None:
        bottom = (0.1 + 0.14 * (text.count("\n") + 1)) / height
        figure.get_layout_engine().set(rect=(0, bottom, 1, 1 - bottom - (0.25 if archive else 0.06) / height))
    if archive:
        figure.text(0.995, 0.995, archive.upper(), color="#D55E00", weight="bold", ha="right", va="top")
    return figure


def _caption_lines(caption, width):
    """A caption in lines for a figure of this width, inches."""
    return textwrap.wrap(caption.lstrip("; "), max(40, int(17 * width)), break_on_hyphens=False)


def _rain_colours(levels):
    """Colour map and norm of rain for levels out of LADDER."""
    chosen = [COLOURS[LADDER.index(level)] for level in levels]
    colour = colors.ListedColormap(chosen).with_extremes(under="white", over=chosen[-1], bad="0.75")
    return colour, colors.BoundaryNorm(levels, len(levels), extend="max")


def _spread_colours(spread):
    """Colour map and norm of the spread, from its own greatest value: yellow to brown, so it is not taken for rain."""
    levels = levels_for(spread)[-10:]
    chosen = colormaps["YlOrBr"](np.linspace(0.1, 1, len(levels)))
    colour = colors.ListedColormap(chosen).with_extremes(under="white", over=chosen[-1], bad="0.75")
    return colour, colors.BoundaryNorm(levels, len(levels), extend="max")


def _array(field):
    """A tensor or an array as float32 in memory."""
    return np.asarray(field.detach().cpu() if hasattr(field, "detach") else field, np.float32)


def _bar(figure, image, axes, label, cax=None):
    """Draw a colour bar beside axes, or in the axes `cax`, labelled at every level."""
    room = {"cax": cax} if cax else {"ax": axes, "aspect": figure.get_size_inches()[1] / 0.2, "pad": 0.02}
    bar = figure.colorbar(image, format="%g", **room)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.set_ticks(image.norm.boundaries)
    bar.minorticks_off()


# ---------------------------------------------------------------- parts of a map


def _north_up(field):
    return field.transpose(..., "lat", "lon").sortby("lat", ascending=False)


def _about(sr):
    """What the caption says of a downscaled field: time, source, size."""
    said = [when(sr.time.values)] if "time" in sr.coords and sr.time.size == 1 else []
    said += [sr.attrs[key] for key in ("source", "source_file") if sr.attrs.get(key)]
    number = sr.sizes.get("member", 0)
    members = f", {number} member{'s' if number > 1 else ''}" if number else ""
    if "input_member" in sr.coords:
        members += f" of {np.unique(sr.input_member).size} input members, of which the first is shown"
    return [*said, f"{sr.sizes['lat']} x {sr.sizes['lon']} pixels{members}", *limits.said([sr.attrs])]


def _panels(lr, sr, hr, members):
    """{title: field} of the maps, in their order."""
    panels = {INPUT: lr}
    if hr is not None:
        panels["no truth: input interpolated" if hr.attrs.get("target") == "interpolate" else "truth (HR)"] = hr
    if "member" not in sr.dims:
        return panels | {"downscaled (SR)": sr}
    panels |= {f"member {m + 1}": sr.isel(member=m) for m in range(min(members, sr.sizes["member"]))}
    if sr.sizes["member"] > 1:
        panels |= {"mean of members": sr.mean("member"), SPREAD: sr.std("member", ddof=1)}
    return panels


def _on_pixels(cells, scale, shape, beyond):
    """Repeat LR cells (h, w) as pixels (H, W); pixels of incomplete cells at the edge get the value `beyond`."""
    pixels = np.full(shape, beyond, cells.dtype)
    known = cells.repeat(scale, 0).repeat(scale, 1)[: shape[0], : shape[1]]
    pixels[: known.shape[0], : known.shape[1]] = known
    return pixels


def _share(part):
    return f"{100 * part:.0f} % of the pixels" if 0.01 < part < 0.99 else f"{100 * part:.2g} % of the pixels"


def _mean_and_max(values):
    return f"mean {values.mean():.2f}, max {values.max():.1f} mm" if values.size else "no pixel that all panels share"


def _wettest_window(lr, sr, hr, side, scale):
    """Cut the fields to the window of `side` LR cells with most rain; returns them and (top row, left column) in LR."""
    cells, (h, w) = lr.values.astype(np.float64), lr.shape
    valid = np.ones_like(cells) if hr is None else block_mean(np.isfinite(hr.values[: h * scale, : w * scale]), scale)
    for wanted in (np.where(valid == 1, cells, np.nan), cells, np.nan_to_num(cells)):
        means = np.lib.stride_tricks.sliding_window_view(wanted, side).mean((2, 3))
        if np.isfinite(means).any():
            break
    r, c = np.unravel_index(np.nanargmax(means), means.shape)

    def part(field, k):
        return field.isel(lat=slice(r * k, (r + side[0]) * k), lon=slice(c * k, (c + side[1]) * k))

    return (part(lr, 1), part(sr, scale), hr if hr is None else part(hr, scale)), (int(r), int(c))


def _map_axes(lr, number):
    """Figure and axes of `number` maps, panels as tall as the domain asks for, at least as wide as their titles."""
    (south, north), (west, east) = (_ends(lr[d].values) for d in ("lat", "lon"))
    height = (north - south) / (east - west) * _stretch(south, north)
    columns = min(number, 3 if number in (5, 6) else 4)
    width = 3.4 if height < 1.3 else max(4.4 / height, 2.2)
    return _figure(-(-number // columns), columns, (width, max((width - 0.4) * min(height, 3), 1.2) + 0.75))


def _draw_whole(ax, field, colours, part):
    """Draw the whole of a strip, labelled along its length alone, with a frame round `part` of it."""
    _draw_map(ax, field, "input (LR),\nwhole domain", colours)
    (south, north), (west, east) = (_ends(part[d].values) for d in ("lat", "lon"))
    ax.add_patch(Rectangle((west, south), east - west, north - south, fill=False, ec="#D55E00", lw=1.5))
    tall = field.sizes["lat"] > field.sizes["lon"]
    ax.tick_params(labelleft=tall, labelbottom=not tall)
    ax.set_xlabel("" if tall else ax.get_xlabel())
    ax.set_ylabel(ax.get_ylabel() if tall else "")


def _draw_map(ax, field, title, colours):
    """Draw a field (lat, lon), north first, with coasts and borders."""
    (south, north), (west, east) = (_ends(field[d].values) for d in ("lat", "lon"))
    image = ax.imshow(
        field.values,
        cmap=colours[0],
        norm=colours[1],
        extent=(west, east, south, north),
        interpolation="nearest",
        aspect=_stretch(south, north),
    )
    for lines, style in zip(_lines_within(west, east, south, north), ("solid", (0, (3, 1.5))), strict=True):
        if lines:
            ax.add_collection(LineCollection(lines, colors="0.15", linewidths=0.6, linestyles=[style]), autolim=False)
    ax.set(xlim=(west, east), ylim=(south, north))
    ax.set_xlabel("degrees east", fontsize=8)
    ax.set_ylabel("degrees north", fontsize=8)
    ax.set_title(title, fontsize=8)
    ax.tick_params(labelsize=8)
    tall = (north - south) / (east - west)
    for axis, parts in ((ax.xaxis, 4 if tall < 1.5 else 3 if tall < 4 else 1), (ax.yaxis, 6 if tall > 0.3 else 1)):
        axis.set_major_locator(MaxNLocator(parts, steps=(1, 2, 5, 10)))
    return image


def _label_outer(axes, free, first):
    """Keep the labels of the left column, of the `first` maps and of the lowest map in each column; hide free axes."""
    for ax in free:
        ax.set_axis_off()
    for (row, column), ax in np.ndenumerate(axes):
        lowest = row == len(axes) - 1 or axes[row + 1, column] in free
        left = column == 0 or (row == 0 and column < first)
        ax.tick_params(labelleft=left, labelbottom=lowest)
        if column:
            ax.set_ylabel("")
        if not lowest:
            ax.set_xlabel("")


def _ends(centres):
    half = abs(centres[-1] - centres[0]) / max(len(centres) - 1, 1) / 2 or 0.5
    return centres.min() - half, centres.max() + half


def _stretch(south, north):
    """Length of a degree of latitude over that of a degree of longitude, halfway between two latitudes."""
    return 1 / max(np.cos(np.radians((south + north) / 2)), 0.1)


def _lines_within(west, east, south, north):
    """(coasts, borders) that may touch a box, each a list of (n, 2) lon, lat."""
    found = [], []
    for line, border, low, high in _outlines():
        if low[0] <= east and high[0] >= west and low[1] <= north and high[1] >= south:
            found[border].append(line)
    return found


@functools.lru_cache(maxsize=1)
def _outlines():
    """(line (n, 2) in degrees, whether it is a border, its least and its greatest lon and lat) from OUTLINES."""
    try:
        with np.load(OUTLINES, allow_pickle=False) as file:
            points, lengths, borders = file["points"] / 100, file["lengths"], file["border"]
    except (OSError, KeyError, ValueError) as error:  # a lost file must not cost the picture
        log(f"maps lack coasts and borders: {OUTLINES} cannot be read ({error})")
        return []
    lines = np.split(points, np.cumsum(lengths)[:-1])
    return [(line, int(b), line.min(0), line.max(0)) for line, b in zip(lines, borders, strict=True)]


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
    ax.set(xscale="log", yscale="log", title="spectra", ylabel="power, mm²")
    _plain(ax, "x")
    if lines:
        ax.set_xlabel(f"waves over {2 * max(map(len, lines.values()))} pixels")
    else:
        ax.text(0.5, 0.5, "every field has missing pixels", ha="center", transform=ax.transAxes)
        ax.set(xticks=[], yticks=[])


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


def _ranks(ax, ranks, truth):
    ax.set(title=f"rank of the {truth}", xlabel="members below it", ylabel="frequency, 1 where reliable")
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
