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
from itertools import pairwise
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
    refuse_tied,
    training_command,
)
from limits import ANY, Knowledge, count_beyond, period_words, refuse_other, said, said_of
from metadata import in_words
from predictors import Predictors, add_field_options
from reader import Grid, ratio
from static import StaticFields
from threads import Threads
from tiles import make_tiles, tile_shape
from utils import DataError, log, whole_number

__all__ = ["alone", "downscale", "downscale_list", "downscale_parser", "find_checkpoint"]


def downscale_list(args, split, correction=None):
    """Downscale every LR field of a list into {args.out}/NN_pre_sr.nc.

    A whole output of the same request (checkpoint, seed, members, input file, region) is kept, unless args.overwrite;
    outputs of another request are moved to Historical_Records once the first new one is ready.

    Args: args: options of downscale_parser. split: eval or obj. correction: of each LR field, see LRField.
    Returns: (DataConfig of the checkpoint, LRField objects of the list, paths of this shard's outputs in list order).
    Raises: DataError: no such list, no checkpoint that fits, or values that are not finite.
    """
    utils.read_list(args.data_folder, split)  # before all else: stage 1 may not have run
    chain = load_models(args, split)
    config = chain_config(chain)
    fields = read_lr(args.data_folder, split, config, chain[0].region_cells)
    for field in fields:
        field.correction = correction
    log(
        f"{len(fields)} fields x{config.scale} with {', then '.join(str(model.path) for model in chain)} (target "
        f"{config.target}), {args.members} member(s), seed {args.seed}"
    )
    mark_days_of_training(fields, chain)
    for model in chain:
        if model.predictors:
            own = (field for field in fields if field.index % args.shard[1] == args.shard[0])
            model.predictors.refuse_absent(field.archive.time(field.index) for field in own)
    for field in {field.plan: field for field in fields}.values():
        links_on(field, chain)  # refuses what does not fit the region
    made = {"checkpoint": " ".join(utils.digest(model.path) for model in chain), "seed": args.seed}
    made |= {"target": config.target, "scale": config.scale}
    made |= {"chain": "; ".join(map(in_a_chain, chain))} if len(chain) > 1 else {}
    ground = "; ".join(model.static.identity for model in chain if model.static)
    made |= {"static_fields": ground} if ground else {}
    winds = "; ".join(model.predictors.identity for model in chain if model.predictors)
    made |= {"predictors": winds} if winds else {}
    periods = [check_period(model, fields, split, args.any_period) for model in chain]
    made |= {"accumulation_period": "; ".join(dict.fromkeys(periods))}
    names = {field.index: f"{field.index:02d}_pre_sr.nc" for field in fields}
    mine = {names[field.index]: field for field in fields if field.index % args.shard[1] == args.shard[0]}
    requests = {name: utils.digest_of(made, args.members, field.identity) for name, field in mine.items()}
    known = {"*_pre_sr.nc": set(names.values())} if args.shard[0] == 0 else {}  # one task of an array tidies up
    todo, earlier = utils.choose_outputs(args.out, requests, known, args.overwrite, ("scores.csv", "plots"))
    check_room(args, fields, chain)
    pace = Threads(args.threads, "part", measure=next(chain[0].generator.parameters()).device.type == "cpu")
    for name in utils.progress([name for name in mine if name in todo], "downscaling"):
        _write_field(mine[name], Path(args.out) / name, chain, args, {**made, "request": requests[name]}, pace, earlier)
    utils.set_aside(earlier)
    paths = [Path(args.out) / name for name in mine]
    for words in said_of(paths):
        log(f"WARNING: {words}")
    return config, fields, paths


def alone(args):
    """Hold the folder of results for this run, a context; the shards of one run hold it together."""
    own = ("shard", "device", "threads", "tile", "overwrite", "plots", "no_scores", "score_window")
    asked = {name: str(value) for name, value in vars(args).items() if name not in own}
    shared = utils.digest_of(asked, args.shard[1]) if args.shard[1] > 1 else ""
    return utils.alone(Path(args.out) / ".pre_sr.lock", args.out, shared)


def mark_days_of_training(fields, chain):
    """Mark the LRFields of days and places that a Model of the chain was trained on, and warn of them."""
    for model in chain:
        with utils.reading(model.path):
            seen = [field for field in fields if field.seen(model.trained_on)]
        for field in seen:
            field.in_training = True
        if seen:
            log(
                f"WARNING: {len(seen)} of {len(fields)} fields are of days and places that {model.path} was trained "
                "on: what it makes there is no test of it"
            )


# ---------------------------------------------------------------- options


def downscale_parser(description, out):
    """An ArgumentParser with the options of stages 3 and 4; `out` is the default folder of the results."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    utils.add_data_arguments(parser)
    add = parser.add_argument
    add(
        "--checkpoint",
        nargs="+",
        metavar="FILE",
        help="a checkpoint or export of 2train.py (default: the one in Data/SavedModels that fits the list); of "
        "several each takes what the one before makes, as 1 to 0.1 and 0.1 to 0.01 degree",
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
    add_field_options(parser)
    add(
        "--tile",
        type=whole_number,
        metavar="N",
        help="side of a tile in LR cells of each model; bounds the memory (default: as memory allows)",
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
    """A checkpoint ready for use: file, data settings, generator, the region it is tied to, its static fields and
    predictors, what it knows of rain and what it was trained on (datasets.trained_on); {}: an earlier version did not
    say.
    """

    path: Path
    config: DataConfig
    generator: Any
    region_cells: list | None
    static: StaticFields | None
    predictors: Predictors | None
    knows: Knowledge
    trained_on: dict


def load_models(args, split):
    """The chain of Models that is given with --checkpoint, else the one in Data/SavedModels that fits the list best."""
    region = parse_region(args.region) if args.region else None
    if args.checkpoint:
        opened = [utils.open_checkpoint(path) for path in args.checkpoint]
    else:
        command = _command(args, split)
        more = {"static": args.static, "predictors": args.predictors, "any_period": args.any_period}
        opened = [find_checkpoint(args.data_folder, split, region, command=command, **more)]
    beside = []
    for kind, files in (("static_fields", args.static), ("predictor_fields", args.predictors)):
        with utils.reading(", ".join(str(path) for path, _ in opened)):
            wanting = [bool(state.get("generator_config", {}).get(kind)) for _, state in opened]
        beside.append([files if wants or not any(wanting) else () for wants in wanting])
    return [
        load_model(path, state, args, region, *files) for (path, state), *files in zip(opened, *beside, strict=True)
    ]


def load_model(path, state, args, region, static, predictors):
    """The Model of an opened checkpoint. Args: region: that was typed, or None. static, predictors: files of them."""
    import models

    device = models.find_device(args.device)
    with utils.reading(path):
        check_plain(state)
        for words in state.get("warnings", []):
            log(f"WARNING: {path}: {words}")
        if state.get("step", 1) == 0:
            raise DataError(f"{path}: no training step was made, its weights are random; train it: 2train.py --resume")
        config = data_config(state, region, args.units)
        static, predictors = fields_beside(path, state, static, predictors)
        generator, trained = models.load_generator(state, device), state.get("trained_on", {})
        if generator.scale != config.scale:
            raise DataError(
                f"{path}: its network makes x{generator.scale}, its data settings say x{config.scale} "
                f"({config.lr_step:g} to {config.hr_step:g} degree); expected one scale, as 2train.py writes"
            )
        tied, knows = state.get("region_cells"), Knowledge.of(path, state)
        return Model(path, config, generator, tied, static, predictors, knows, trained)


def check_plain(state):
    """Raise ValueError or TypeError where entries of a checkpoint that are used without the network are odd."""
    if type(state.get("step", 1)) is not int or state.get("step", 1) < 0:
        raise ValueError(f"step {state['step']!r}, expected a number of steps")
    if cells := state.get("region_cells"):
        north, west, rows, cols = cells
        if Fraction(north) > 90 or Fraction(west) < -180 or min(int(rows), int(cols)) < 1:
            raise ValueError(f"region_cells {cells}, expected north, west, rows, columns")


def chain_config(chain):
    """The DataConfig of Models that are used one after the other: from the LR step of the first to HR of the last.

    Its target is `interpolate` where one of them learned to interpolate, then `paired`, else `coarsen`.

    Raises: DataError: the HR step of one is not the LR step of the next.
    """
    for model, after in pairwise(chain):
        if ratio(model.config.hr_step) != ratio(after.config.lr_step):
            raise DataError(
                f"{model.path} makes cells of {model.config.hr_step:g} degree, {after.path} takes cells of "
                f"{after.config.lr_step:g} degree; expected one step: in --checkpoint each model takes what the one "
                "before makes"
            )
    targets = [model.config.target for model in chain]
    target = next(name for name in ("interpolate", "paired", "coarsen") if name in targets)
    for model in chain[: len(chain) * (len(set(targets)) > 1)]:
        if model.config.target == "interpolate":
            log(f"WARNING: {model.path} learned to interpolate: the detail that it adds to this chain is not real")
    return replace(chain[0].config, hr_step=chain[-1].config.hr_step, target=target)


def in_a_chain(model):
    """One Model in words, for the outputs of a chain."""
    config, amounts = model.config, "" if model.generator.config.conserve else ", amounts not conserved"
    steps = f"{config.lr_step:g} to {config.hr_step:g} degree"
    return f"{model.path.name} {utils.digest(model.path)}, {steps}, target {config.target}{amounts}"


class Link(NamedTuple):
    """A Model of a chain at an LRField: the Grid of its LR cells, and its static fields and predictors there."""

    model: Model
    grid: Grid
    maps: np.ndarray | None
    predictors: np.ndarray | None


def links_on(field, chain):
    """The Links of a chain over the region of an LRField, on its day.

    Raises: DataError: a model that is tied to another region, or static fields or predictors that do not cover it.
    """
    links, grid, time = [], field.plan.lr, field.archive.time(field.index)
    for model in chain:
        try:
            refuse_tied(grid, model.region_cells)
        except DataError as error:
            raise DataError(f"{model.path}: {error}") from None
        fine = grid.refine(model.config.scale)
        maps = model.static.on(fine) if model.static else None
        links.append(Link(model, grid, maps, model.predictors.on(grid, time) if model.predictors else None))
        grid = fine
    return links


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
        `static` and `predictors`, files of them; `any_period`, True where models of other periods fit too.
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


def _candidate(path, data_folder, split, region, near=None, *, static=(), predictors=(), any_period=False):
    """The Candidate at `path`; one that cannot be read has no state.

    Args: region: that was typed, or None. near: instead of `all`, where none was typed. static, predictors,
        any_period: as in find_checkpoint.
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
            fields_beside("it", state, static, predictors)
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


def fields_beside(path, state, static, predictors):
    """(StaticFields, Predictors) that a checkpoint needs, from files; None where it needs none.

    Raises: DataError: no file or not these fields, or files where it needs none.
    """
    ground, days = (state["generator_config"].get(f"{kind}_fields", ()) for kind in ("static", "predictor"))
    for words, files, described in (("static fields", static, ground), ("predictors", predictors, days)):
        if files and not described:
            raise DataError(f"{path}: trained without {words}; leave --{words.split()[0]} out")
    with utils.named(path):
        hours = Knowledge.of(path, state).period.hours
        return StaticFields(static, ground) if ground else None, Predictors(predictors, days, hours) if days else None


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


def check_room(args, fields, chain):
    """Raise DataError where memory does not suffice for the members of a tile: before earlier results are moved.

    All models of a chain but the last make whole fields of all members; those after the first make one at a time.
    """
    shapes = {field.plan.lr.shape for field in fields}
    total, members = 0, args.members
    for generator in (model.generator for model in chain):
        tiles = [tile_shape(generator, members, shape, args.tile) for shape in shapes]
        pixels = max((h + 2 * generator.ring) * (w + 2 * generator.ring) for h, w in tiles) * generator.scale**2
        cells = max(h * w for h, w in shapes)
        whole = cells * generator.scale**2 if generator is not chain[-1].generator else 0
        total += members * (pixels + cells * generator.config.channels + whole)
        shapes, members = {(h * generator.scale, w * generator.scale) for h, w in shapes}, 1
    utils.check_memory(4 * total, f"--members {args.members} on tiles of {pixels:,} pixels", utils.LESS)


def _write_field(field, path, chain, args, attrs, pace, earlier):
    """Downscale one LRField, with all members of an ensemble, into one NetCDF file.

    Args: chain: Models. earlier: results set aside once it is ready.
    """
    lr, links, started = field.values(), links_on(field, chain), time.monotonic()
    times, source, number = utils.field_times(lr), lr.attrs["source"], args.members
    names = {"title": "Downscaled precipitation", "source_file": source, "archive": lr.attrs.get("archive")}
    names["correction"] = lr.attrs.get("correction")
    names |= count_beyond(lr.values, chain[0].knows) | {"in_training": "yes" if field.in_training else None}
    members, inputs = number if number > 1 else None, [("", lr.values)]
    if "member" in lr.dims:
        labels = lr.input_member.values
        members = {"input_member": labels.repeat(number), "noise_member": np.tile(np.arange(number), len(labels))}
        inputs = [(f"|{label}", values) for label, values in zip(labels, lr.values, strict=True)]
    with utils.NetCDFWriter(path, field.plan.hr.lat, field.plan.hr.lon, times, members, **names, **attrs) as writer:
        for k, (label, values) in enumerate(inputs):  # noise by what the member is called, not by its place
            keys = [f"{args.seed}|{n}|{times.get('time', field.index)}{label}" for n in range(number)]
            for which, rows, cols, sr in _through(links, values, keys, args.tile, pace, f"{path} from {source}"):
                these = slice(k * number + which.start, k * number + which.stop)
                writer.put(sr if members else sr[0], rows, cols, these)
        utils.set_aside(earlier)
    log(
        f"{path}  {utils.when(times.get('time', ''))}  from {source}  "
        f"LR mean {np.nanmean(lr.values):.2f} mm  {time.monotonic() - started:.1f} s" + "; ".join(["", *said([names])])
    )


def _through(links, lr, keys, tile, pace, words):
    """Take one LR field through the Links of a chain: each makes one member of every member of the one before.

    Only the last works for one tile after the other; those before it make whole fields, which are far smaller. Noise
    is keyed by the place in the chain as well.

    Args: lr (h, w), mm. keys: noise keys, one a member. words: the output and its source, for errors.
    Yields: (members, rows, columns, sr): slices of the members and of the HR field, and sr as downscale yields it.
    Raises: DataError: values that are not finite where lr is.
    """
    link, *rest = links
    generator, scale, known = link.model.generator, link.model.generator.scale, np.isfinite(lr)
    whole = np.empty((len(keys), *(n * scale for n in lr.shape)), np.float32) if rest else None
    beside = {"origin": link.grid.origin, "maps": link.maps, "predictors": link.predictors}
    for rows, cols, sr in downscale(generator, lr, keys=keys, tile=tile, pace=pace, **beside):
        cells = known[tuple(slice(k.start // scale, k.stop // scale) for k in (rows, cols))]
        if np.isfinite(sr).sum() != cells.sum() * len(keys) * scale**2:
            raise DataError(
                f"{words}: {link.model.path} made values that are not finite from finite ones; its training has "
                "diverged: take an earlier checkpoint, or train again"
            )
        if rest:
            whole[:, rows, cols] = sr
        else:
            yield slice(0, len(keys)), rows, cols, sr
    if rest:
        for odd in said([count_beyond(whole, rest[0].model.knows)]):
            log(f"WARNING: {words}, {rest[0].model.path}: {odd}")
        for m, (field, key) in enumerate(zip(whole, keys, strict=True)):
            for _, rows, cols, sr in _through(rest, field, [f"{key}|next"], tile, pace, words):
                yield slice(m, m + 1), rows, cols, sr


def downscale(
    generator,
    lr,
    *,
    members=1,
    seed=0,
    day="2023-08-01",
    keys=None,
    origin=(0, 0),
    tile=None,
    device=None,
    pace=None,
    maps=None,
    predictors=None,
):
    """Make members of a whole field, tile by tile.

    The noise of an LR cell is keyed by (seed, member, day, absolute cell row and column = origin + index), so tiles,
    processes and regions that hold the same cell agree on it.

    Args:
        generator: a Generator. lr (h, w), mm, numpy; NaN is missing (filled from the nearest valid cell for the
            network's eyes only). members, seed: ints. day: the valid time as text. keys: instead of these three, a text
            for each member that its noise is made from. origin: absolute row and column of lr[0, 0]. tile: side in LR
            cells; None: tiles.tile_shape. device: None is the generator's. pace: Threads that time each member of a
            tile. maps (S, h * scale, w * scale): static fields on the HR cells (StaticFields.on), and predictors
            (P, h, w): fields of the day (Predictors.on), where the generator has any.
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
    maps, predictors = (
        None if fields is None else torch.from_numpy(np.asarray(fields, np.float32))[None].to(device)
        for fields in (maps, predictors)
    )
    keys = keys or [f"{seed}|{m}|{day}" for m in range(members)]
    beside = {"maps": maps, "predictors": predictors}
    for rows, cols, sr in make_tiles(generator, filled, keys, origin=origin, side=tile, pace=pace, **beside):
        cells = tuple(slice(k.start // s, k.stop // s) for k in (rows, cols))
        sr[:, missing[cells].repeat(s, 0).repeat(s, 1)] = np.nan
        yield rows, cols, sr
