"""Downscales the fields of a list with a trained generator, tile by tile, into NetCDF files.

Reads    a list of stage 1 and a checkpoint or export of stage 2.
Writes   {out}/NN_pre_sr.nc, NN = position in the list.

    from downscaling import downscale_list, downscale_parser
    args = downscale_parser("Downscale the evaluation days.", "Data/DataResults/ResultEval").parse_args([])
    config, fields, paths = downscale_list(args, "eval")

Truth does not reach this room: it asks datasets.py for LR fields alone. PyTorch is imported where the network runs, so
that --help answers at once.
"""

import argparse
import functools
import shlex
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import utils
from datasets import (
    TARGETS,
    DataConfig,
    fill_nearest,
    format_region,
    found_settings,
    parse_region,
    read_lr,
    training_command,
)
from limits import ANY, Knowledge, count_beyond, period_words, refuse_other, said, said_of
from metadata import in_words
from static import StaticFields, add_static_option
from threads import Threads
from tiles import make_tiles, tile_shape
from utils import DataError, log, whole_number

__all__ = ["alone", "downscale", "downscale_list", "downscale_parser", "find_checkpoint"]


def downscale_list(args, split):
    """Downscale every LR field of a list into {args.out}/NN_pre_sr.nc.

    A whole output of the same request (checkpoint, seed, members, input file, region) is kept, unless args.overwrite;
    outputs of another request are moved to Historical_Records once the first new one is ready.

    Args: args: options of downscale_parser. split: eval or obj.
    Returns: (DataConfig of the checkpoint, LRField objects of the list, paths of this shard's outputs in list order).
    Raises: DataError: no such list, no checkpoint that fits, or values that are not finite.
    """
    utils.read_list(args.data_folder, split)  # before all else: stage 1 may not have run
    model = load_model(args, split)
    scale, target = model.config.scale, model.config.target
    fields = read_lr(args.data_folder, split, model.config, model.region_cells)
    log(
        f"{len(fields)} fields x{scale} with {model.path} (target {target}), {args.members} member(s), seed {args.seed}"
    )
    with utils.reading(model.path):
        known_days = [field for field in fields if field.seen(model.trained_on)]
    for field in known_days:
        field.in_training = True
    if known_days:
        log(
            f"WARNING: {len(known_days)} of {len(fields)} fields are of days and places that {model.path} was trained "
            "on: what it makes there is no test of it"
        )
    ground = {core: model.static.on(core) for core in {field.plan.core for field in fields}} if model.static else {}
    made = {"checkpoint": utils.digest(model.path), "seed": args.seed, "target": target, "scale": scale}
    made |= {"static_fields": model.static.identity} if model.static else {}
    made |= {"accumulation_period": check_period(model, fields, split, args.any_period)}
    names = {field.index: f"{field.index:02d}_pre_sr.nc" for field in fields}
    mine = {names[field.index]: field for field in fields if field.index % args.shard[1] == args.shard[0]}
    requests = {name: utils.digest_of(made, args.members, field.identity) for name, field in mine.items()}
    known = {"*_pre_sr.nc": set(names.values())} if args.shard[0] == 0 else {}  # one task of an array tidies up
    todo, earlier = utils.choose_outputs(args.out, requests, known, args.overwrite, ("scores.csv", "plots"))
    check_room(args, fields, model.generator)
    pace = Threads(args.threads, "part", measure=next(model.generator.parameters()).device.type == "cpu")
    for name in utils.progress([name for name in mine if name in todo], "downscaling"):
        attrs, maps = {**made, "request": requests[name]}, ground.get(mine[name].plan.core)
        _write_field(mine[name], Path(args.out) / name, model, args, attrs, pace, maps, earlier)
    utils.set_aside(earlier)
    paths = [Path(args.out) / name for name in mine]
    for words in said_of(paths):
        log(f"WARNING: {words}")
    return model.config, fields, paths


def alone(args):
    """Hold the folder of results for this run, a context; the shards of one run hold it together."""
    own = ("shard", "device", "threads", "tile", "overwrite", "plots", "no_scores", "score_window")
    asked = {name: str(value) for name, value in vars(args).items() if name not in own}
    shared = utils.digest_of(asked, args.shard[1]) if args.shard[1] > 1 else ""
    return utils.alone(Path(args.out) / ".pre_sr.lock", args.out, shared)


# ---------------------------------------------------------------- options


def downscale_parser(description, out):
    """An ArgumentParser with the options of stages 3 and 4; `out` is the default folder of the results."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    utils.add_data_arguments(parser)
    add = parser.add_argument
    add(
        "--checkpoint",
        metavar="FILE",
        help="a checkpoint or export of 2train.py (default: the one in Data/SavedModels that fits the list)",
    )
    add("--out", metavar="DIR", default=out, help="folder of the results (default: %(default)s)")
    some = functools.partial(whole_number, high=10_000)
    add("--members", type=some, metavar="N", default=1, help="ensemble members a field (default: %(default)s)")
    add(
        "--seed",
        type=functools.partial(whole_number, low=0),
        metavar="N",
        default=0,
        help="one seed gives one ensemble, whatever the tiles and machines (default: %(default)s)",
    )
    add(
        "--region",
        nargs="+",
        metavar="BOUND",
        help="LONW LONE LATS LATN in degrees, or all (default: the checkpoint's)",
    )
    add(
        "--units",
        metavar="UNIT",
        default="auto",
        help="units of files without an attribute (default: what stage 1 found)",
    )
    add_static_option(parser, "static fields of this region, for a checkpoint that was trained with such fields")
    add(
        "--tile",
        type=whole_number,
        metavar="N",
        help="side of a tile in LR cells; bounds the memory (default: as memory allows)",
    )
    add(
        "--shard",
        type=parse_shard,
        default=(0, 1),
        metavar="I/N",
        help="every N-th field from the I-th on (job arrays)",
    )
    words = "use a model of another accumulation period, and say so in every output"
    add("--any-period", action="store_true", help=words)
    add("--overwrite", action="store_true", help="make again what is already there from the same request")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute (default: %(default)s)")
    add("--threads", type=utils.threads, metavar="N", help="number of threads (default: the quickest, as measured)")
    add("--plots", action="store_true", help="also draw maps and Q-Q plots as PNG beside the results")
    return parser


def parse_shard(text):
    """argparse type: `I/N` as (I, N), 0 <= I < N."""
    part, _, parts = text.partition("/")
    if not (part.isdigit() and parts.isdigit() and int(part) < int(parts)):
        raise argparse.ArgumentTypeError(f"{text!r}: expected I/N with 0 <= I < N, for example 0/4")
    return int(part), int(parts)


# ---------------------------------------------------------------- which checkpoint


class Model(NamedTuple):
    """A checkpoint ready for use: file, data settings, generator, the region it is tied to, its static fields, what it
    knows of rain and what it was trained on (datasets.trained_on); {}: an earlier version did not say.
    """

    path: Path
    config: DataConfig
    generator: Any
    region_cells: list | None
    static: StaticFields | None
    knows: Knowledge
    trained_on: dict


def load_model(args, split):
    """The Model that is given with --checkpoint, else the one in Data/SavedModels that fits the list best."""
    import models

    region = parse_region(args.region) if args.region else None
    if args.checkpoint:
        path, state = utils.open_checkpoint(args.checkpoint)
    else:
        command = _command(args, split)
        more = {"static": args.static, "any_period": args.any_period}
        path, state = find_checkpoint(args.data_folder, split, region, command=command, **more)
    device = models.find_device(args.device)
    with utils.reading(path):
        check_plain(state)
        for words in state.get("warnings", []):
            log(f"WARNING: {path}: {words}")
        if state.get("step", 1) == 0:
            raise DataError(f"{path}: no training step was made, its weights are random; train it: 2train.py --resume")
        config = data_config(state, region, args.units)
        static = static_fields(path, state, args.static)
        generator, trained = models.load_generator(state, device), state.get("trained_on", {})
        if generator.scale != config.scale:
            raise DataError(
                f"{path}: its network makes x{generator.scale}, its data settings say x{config.scale} "
                f"({config.lr_step:g} to {config.hr_step:g} degree); expected one scale, as 2train.py writes"
            )
        return Model(path, config, generator, state.get("region_cells"), static, Knowledge.of(path, state), trained)


def check_plain(state):
    """Raise ValueError or TypeError where entries of a checkpoint that are used without the network are odd."""
    if type(state.get("step", 1)) is not int or state.get("step", 1) < 0:
        raise ValueError(f"step {state['step']!r}, expected a number of steps")
    if cells := state.get("region_cells"):
        north, west, rows, cols = cells
        if Fraction(north) > 90 or Fraction(west) < -180 or min(int(rows), int(cols)) < 1:
            raise ValueError(f"region_cells {cells}, expected north, west, rows, columns")


class Candidate(NamedTuple):
    """A checkpoint in the folder of models: what it is for, and how it fits a list (rank, the smallest best) or not.

    options: what is typed to use it, `--checkpoint ...` and, for one that runs anywhere, the region.
    """

    path: Path
    state: dict | None
    rank: tuple | None
    words: str
    options: str


SHIPPED = "daily_x*.pth"  # models of daily rain that come with the program
FITS = {  # how the files of a list serve a model, the best first
    "lr": "the files hold its LR cells",
    "hr": "the files hold its HR cells, which are averaged to its LR cells",
    "coarser": "its LR cells are finer than the files', which are interpolated to them first",
}


def find_checkpoint(data_folder, split, region=None, folder="Data/SavedModels", command="...", **asked):
    """(path, state) of the checkpoint named pre_srgan* in `folder` that fits a list best; says which and why.

    Where it learned to interpolate, and a checkpoint of another name that fits knows real rain, it says so. Where none
    fits, one of those that come with the program (SHIPPED) is taken for files that hold its LR cells.

    Args: command: what was typed, to which --checkpoint is added where a checkpoint of another name fits. asked:
        `static`, files of static fields; `any_period`, True where models of other periods fit too.
    Raises: DataError: none fits, with the reason of each, those of other names, and the command that trains one.
    """
    kept = {Path(str(path).removesuffix(".previous")) for path in Path(folder).glob("pre_srgan*_x*.pth*")}
    ours = [_candidate(path, data_folder, split, region, **asked) for path in sorted(kept) if path.suffix == ".pth"]
    fitting, near = _by_fit(ours), None
    if fitting:
        taken = fitting[0]
        log(
            f"{len(fitting)} model(s) in {folder} fit the {split} list; taking {taken.path.name}, the first of "
            "this order (choose another with --checkpoint):"
            + "".join(f"\n  {one.path.name}: {one.words}" for one in fitting)
        )
        if taken.state["data_config"]["target"] != "interpolate":
            return taken.path, taken.state
        near = data_config(taken.state).region
    elif found_settings(data_folder, split, {})[1] is None:
        near = DataConfig.region  # the files hold it: where stage 5 looks without --region
    others = [path for path in sorted(Path(folder).glob("*.pth")) if path not in kept]
    others = [_candidate(path, data_folder, split, region, near, **asked) for path in others]
    shipped = [one for one in _by_fit(others) if one.path.match(SHIPPED) and one.rank[0] == 0]
    if not fitting and shipped:
        taken, region = shipped[0], format_region(data_config(shipped[0].state, region).region)
        log(
            f"no model of yours ({folder}/pre_srgan*_x*.pth) fits the {split} list; taking {taken.path.name}, which "
            f"comes with the program, over region {region} (choose others with --checkpoint and --region):"
            + "".join(f"\n  {one.path.name}: {one.words}" for one in (taken, *ours))
        )
        return taken.path, taken.state
    if not fitting:
        raise DataError(_none_fits(data_folder, split, folder, ours, others, command))
    real = [one for one in _by_fit(others) if one.state["data_config"]["target"] != "interpolate"]
    if real:
        log(
            f"NOTE: {taken.path.name} learned to interpolate; {real[0].path.name} knows real rain: "
            f"{command} {real[0].options}"
        )
    return taken.path, taken.state


def _by_fit(candidates):
    """The Candidates that fit, the best first."""
    return sorted((one for one in candidates if one.rank), key=lambda one: (one.rank, one.path.name))


def _candidate(path, data_folder, split, region, near=None, *, static=(), any_period=False):
    """The Candidate at `path`; one that cannot be read has no state.

    Args: region: that was typed, or None. near: instead of `all`, where none was typed. static, any_period: as in
        find_checkpoint.
    """
    state, words, options = None, "", f"--checkpoint {shlex.quote(str(path))}"
    try:
        with utils.reading(path):
            found, state = utils.open_checkpoint(path)
            own, tied, period = data_config(state), state.get("region_cells"), Knowledge.of(path, state).period
            if own.region == "all" and near not in (None, "all") and not region:
                region, options = near, f"{options} --region {format_region(near)}"
                state = {**state, "data_config": {**state["data_config"], "region": near}}
            where = "any region" if own.region == "all" else f"trained on region {format_region(own.region)}"
            where = f"for region {format_region(own.region)} alone" if tied else where
            words = f"x{own.scale}, {own.lr_step:g} to {own.hr_step:g} degree, target {own.target}, {where}"
            words += f", rain of {in_words(period.hours)}; " if period.hours else "; "
            fields = read_lr(data_folder, split, data_config(state, region), tied)
            static_fields("it", state, static)
            if not any_period:
                refuse_other("it", period, fields[0].archive.period, split)
            rank, hr = fit(fields), fields[0].plan.hr
            words += f"{list(FITS.values())[rank[0]]}; makes {hr.rows} x {hr.cols} pixels"
            return Candidate(found, state, rank, words, options)
    except DataError as error:
        why = str(error).split("; a model for such files")[0]  # the command for all of them comes at the end
        return Candidate(path, state, None, f"{words}does not fit: {why}" if words else why, options)


def _none_fits(data_folder, split, folder, ours, others, command):
    """The words for a list that no model fits which stages take by themselves."""
    lines = [f"no model of yours ({folder}/pre_srgan*_x*.pth) fits the {split} list"]
    lines += [f"  {one.path.name}: {one.words}" for one in ours]
    fitting = _by_fit(others)
    if fitting:
        lines.append("models of other names that fit are used where you name them:")
    for one in fitting:
        lines += [f"  {one.path.name}: {one.words}", f"    {command} {one.options}"]
    if len(fitting) < len(others):
        lines.append("those that do not fit:")
        lines += [f"  {one.path.name}: {one.words}" for one in others if not one.rank]
    lines += ["to train one:", f"    {training_command(data_folder, split)}"]
    return "\n".join(lines)


def _command(args, split):
    """This run of stage 3 or 4 as it is typed, without --checkpoint."""
    stage, out = {"eval": "3downscale_eval.py", "obj": "4downscale_obj.py"}[split], f"Result{split.title()}"
    defaults, words = vars(downscale_parser("", f"Data/DataResults/{out}").parse_args([])), ["python", stage]
    for name, value in vars(args).items():
        if value is not None and value is not False and value != defaults.get(name):
            parts = value if isinstance(value, list) else ["/".join(map(str, value))] if name == "shard" else [value]
            words += [f"--{name.replace('_', '-')}", *(str(part) for part in parts if part is not True)]
    return shlex.join(words)


def fit(fields):
    """How well LRField objects serve a checkpoint, the smallest best: files at its LR step before files at its HR step
    before coarser ones, then the default target before others."""
    rank = max(list(FITS).index(field.plan.kind) for field in fields)
    return rank, TARGETS.index(fields[0].plan.config.target)


def data_config(state, region=None, units="auto"):
    """The DataConfig that a checkpoint was trained with, over another region where one is given."""
    config = DataConfig(**state["data_config"])
    return replace(config, region=config.region if region is None else region, units=units)


def static_fields(path, state, files):
    """The StaticFields that a checkpoint needs, from files of the region at hand; None where it needs none.

    Raises: DataError: no file or not these fields, or files where it needs none.
    """
    described = state["generator_config"].get("static_fields", ())
    if files and not described:
        raise DataError(f"{path}: trained without static fields; leave --static out")
    try:
        return StaticFields(files, described) if described else None
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def check_period(model, fields, split, any_period):
    """Compare the accumulation periods of a Model and of a list; returns what outputs say of them.

    Where one of them is unknown it is said.

    Raises: DataError: they differ, and any_period is False.
    """
    own, given = model.knows.period, fields[0].archive.period
    if not any_period:
        refuse_other(model.path, own, given, split)
    words = period_words(own, given)
    if "of the model" in words:
        log(f"{'WARNING: ' * (ANY in words)}period of the {split} list {words}")
    return words


# ---------------------------------------------------------------- one field


def check_room(args, fields, generator):
    """Raise DataError where memory does not suffice for the members of a tile: before earlier results are moved."""
    shapes = {field.plan.lr.shape for field in fields}
    tiles = [tile_shape(generator, args.members, shape, args.tile) for shape in shapes]
    pixels = max((h + 2 * generator.ring) * (w + 2 * generator.ring) for h, w in tiles) * generator.scale**2
    cells = max(h * w for h, w in shapes) * generator.config.channels
    words = f"--members {args.members} on tiles of {pixels:,} pixels"
    utils.check_memory(4 * args.members * (pixels + cells), words, utils.LESS)


def _write_field(field, path, model, args, attrs, pace, maps, earlier):
    """Downscale one LRField into one NetCDF file.

    Args: maps: static fields on the HR cells of its LR cells, or None. earlier: results set aside once it is ready.
    """
    lr, plan, generator, started = field.values(), field.plan, model.generator, time.monotonic()
    times, known, scale = utils.field_times(lr), np.isfinite(lr.values), generator.scale
    names = {"title": "Downscaled precipitation", "source_file": lr.attrs["source"], "archive": lr.attrs.get("archive")}
    names |= count_beyond(lr.values, model.knows) | {"in_training": "yes" if field.in_training else None}
    tiles = downscale(
        generator,
        lr.values,
        members=args.members,
        seed=args.seed,
        tile=args.tile,
        day=str(times.get("time", field.index)),
        origin=plan.origin,
        pace=pace,
        maps=maps,
    )
    members = args.members if args.members > 1 else None
    with utils.NetCDFWriter(path, plan.hr.lat, plan.hr.lon, times, members, **names, **attrs) as writer:
        for rows, cols, sr in tiles:
            cells = known[tuple(slice(k.start // scale, k.stop // scale) for k in (rows, cols))]
            if np.isfinite(sr).sum() != cells.sum() * args.members * scale**2:
                raise DataError(
                    f"{path}: the generator made values that are not finite from {lr.attrs['source']}, which holds "
                    "none there; its training has diverged: take an earlier checkpoint, or train again"
                )
            writer.put(sr if members else sr[0], rows, cols)
        utils.set_aside(earlier)
    log(
        f"{path}  {utils.when(times.get('time', ''))}  from {lr.attrs['source']}  "
        f"LR mean {np.nanmean(lr.values):.2f} mm  {time.monotonic() - started:.1f} s" + "; ".join(["", *said([names])])
    )


def downscale(
    generator,
    lr,
    *,
    members=1,
    seed=0,
    day="2023-08-01",
    origin=(0, 0),
    tile=None,
    device=None,
    pace=None,
    maps=None,
):
    """Make members of a whole field, tile by tile.

    The noise of an LR cell is keyed by (seed, member, day, absolute cell row and column = origin + index), so tiles,
    processes and regions that hold the same cell agree on it.

    Args:
        generator: a Generator. lr (h, w), mm, numpy; NaN is missing (filled from the nearest valid cell for the
            network's eyes only). members, seed: ints. day: the valid time as text. origin: absolute row and column of
            lr[0, 0]. tile: side in LR cells; None: tiles.tile_shape. device: None is the generator's.
            pace: Threads that time each member of a tile. maps (S, h * scale, w * scale): static fields on the HR cells
            (StaticFields.on), where the generator has any.
    Yields: (rows, columns, sr): slices of the HR field and sr (members, H, W), mm, float32, NaN exactly where the LR
        cell is missing.
    Raises: ValueError: lr is not 2-D, or negative or infinite somewhere.
    """
    import torch

    lr = np.asarray(lr, np.float32)
    if lr.ndim != 2 or np.isinf(lr).any() or (lr < 0).any():
        raise ValueError(f"downscale: lr of shape {lr.shape} must be 2-D, >= 0 mm and finite where it is not NaN")
    device = device or next(generator.parameters()).device
    generator = generator.to(device).eval()
    missing, s = np.isnan(lr), generator.scale
    filled = torch.from_numpy(fill_nearest(lr).astype(np.float32))[None, None].to(device)  # (1, 1, h, w)
    maps = None if maps is None else torch.from_numpy(np.asarray(maps, np.float32))[None].to(device)
    keys = [f"{seed}|{m}|{day}" for m in range(members)]
    for rows, cols, sr in make_tiles(generator, filled, keys, origin=origin, side=tile, pace=pace, maps=maps):
        cells = tuple(slice(k.start // s, k.stop // s) for k in (rows, cols))
        sr[:, missing[cells].repeat(s, 0).repeat(s, 1)] = np.nan
        yield rows, cols, sr
