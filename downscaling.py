"""Downscales the fields of a list with a trained generator, tile by tile, into NetCDF files.

Reads    a list of stage 1 and a checkpoint of stage 2.
Writes   NN_pre_sr.nc.

    from downscaling import downscale, load_model
"""

import argparse
import functools
import hashlib
import math
import time
from pathlib import Path

import numpy as np
import torch

import utils
from utils import DataError, log

TILE_PIXELS = 1_500_000


def downscale_args(description, out, argv=None, extend=None):
    """The options of stages 3 and 4; `extend(parser)` adds those of one of them."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_arguments(parser)
    parser.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="a checkpoint or export of 2train.py (default: the one in Data/SavedModels that fits the list)",
    )
    parser.add_argument("--out", metavar="DIR", default=out, help="folder of the results (default: %(default)s)")
    parser.add_argument(
        "--members", type=whole_number, metavar="N", default=1, help="ensemble members a field (default: %(default)s)"
    )
    parser.add_argument(
        "--seed",
        type=functools.partial(whole_number, low=0, high=MANY),
        metavar="N",
        default=0,
        help="one seed gives one ensemble, whatever the tiles and machines (default: %(default)s)",
    )
    parser.add_argument(
        "--region",
        nargs="+",
        metavar="BOUND",
        help="LONW LONE LATS LATN in degrees, or all (default: the checkpoint's)",
    )
    parser.add_argument(
        "--units",
        metavar="UNIT",
        default="auto",
        help="units of files without an attribute (default: what stage 1 found)",
    )
    parser.add_argument(
        "--tile",
        type=whole_number,
        metavar="N",
        help="side of a tile in LR cells; bounds the memory (default: about 1.5 million HR pixels)",
    )
    parser.add_argument(
        "--shard",
        type=parse_shard,
        default=(0, 1),
        metavar="I/N",
        help="do every N-th field from the I-th on (job arrays)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="make again what is already there from the same request"
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute (default: %(default)s)"
    )
    parser.add_argument("--plots", action="store_true", help="also draw maps and Q-Q plots as PNG beside the results")
    if extend:
        extend(parser)
    args = parser.parse_args(argv)
    args.region = parse_region(args.region) if args.region else None
    return args


def parse_shard(text):
    """argparse type: `I/N` as (I, N), 0 <= I < N."""
    part, _, parts = text.partition("/")
    if not (part.isdigit() and parts.isdigit() and int(part) < int(parts)):
        raise argparse.ArgumentTypeError(f"{text!r}: expected I/N with 0 <= I < N, for example 0/4")
    return int(part), int(parts)


def find_checkpoint(rank, name, folder="Data/SavedModels", *, given=None):
    """(path, state) of the checkpoint that is given, else of the one in `folder` that fits a list best; says so where
    several do.

    Args: rank: callable state -> how well it fits (0 best), raising DataError where it does not. name: the list.
    Raises: DataError: none fits, with the reason of each.
    """
    if given:
        return open_checkpoint(given)
    fitting, reasons = [], []
    kept = {Path(str(path).removesuffix(".previous")) for path in Path(folder).glob("pre_srgan*_x*.pth*")}
    for path in sorted(path for path in kept if path.suffix == ".pth"):
        try:
            with reading(path):
                found, state = open_checkpoint(path)
                fitting.append((rank(state), found.name, found, state))
        except DataError as error:
            reasons.append(f"{path.name}: {error}")
    if not fitting:
        raise DataError(
            f"no checkpoint in {folder} fits the {name} list"
            + "".join(f"\n  {words}" for words in reasons or ["it holds none"])
            + "\n  train one with 2train.py, or name another with --checkpoint"
        )
    fitting.sort(key=lambda found: found[:2])
    if len(fitting) > 1:
        log(
            f"{len(fitting)} checkpoints fit the {name} list; taking {fitting[0][1]}, choose another with --checkpoint: "
            + ", ".join(found[1] for found in fitting[1:])
        )
    return fitting[0][2:]


def checkpoint_config(state, region=None, units="auto"):
    """The DataConfig that a checkpoint was trained with, over another region where one is given."""
    config = DataConfig(**state["data_config"])
    return replace(config, region=config.region if region is None else region, units=units)


def file_rank(data_folder, split, state, region=None):
    """How well a checkpoint fits a list: 0 where its files are LR, 1 where they are HR, 2 where they are coarser; the
    default target before others. Raises DataError where the step rule or the region refuses it."""
    config = checkpoint_config(state, region)
    kinds = {field.plan.kind for field in read_lr(data_folder, split, config, state)}
    return max(("lr", "hr", "coarser").index(kind) for kind in kinds), TARGETS.index(config.target)


def downscale_list(fields, predict, args, checkpoint_digest, config):
    """Downscale every LR field of a list into {args.out}/NN_pre_sr.nc, tile by tile; HR is not among the arguments.

    A whole output of the same request (checkpoint, seed, members, input file, region) is kept, unless args.overwrite;
    another run's is moved to Historical_Records first.

    Args: fields: LRField objects (datasets.read_lr). predict: callable (lr (h, w) mm, day, origin) -> tiles (rows, cols,
        (members, H, W)). args: downscale_args. config: the DataConfig.
    Returns: the paths of this shard, in list order.
    """
    made = {"checkpoint": checkpoint_digest, "seed": args.seed, "target": config.target, "scale": config.scale}
    mine = {f"{field.index:02d}_pre_sr.nc": field for field in fields if field.index % args.shard[1] == args.shard[0]}
    requests = {name: digest_of(made, args.members, field.identity) for name, field in mine.items()}
    known = {"*_pre_sr.nc": {f"{field.index:02d}_pre_sr.nc" for field in fields}}
    known = known if args.shard[0] == 0 else {}  # one process of an array moves what a longer list left
    todo = choose_outputs(args.out, requests, known, args.overwrite, ("scores.csv", "plots"))
    for name in progress([name for name in mine if name in todo], "downscaling"):
        _downscale_one(mine[name], Path(args.out) / name, predict, args.members, {**made, "request": requests[name]})
    return [Path(args.out) / name for name in mine]


def _downscale_one(field, path, predict, members, attrs):
    lr, plan, started = field.values(), field.plan, time.monotonic()
    times, known = field_times(lr), np.isfinite(lr.values)
    names = {"title": "Downscaled precipitation", "source_file": lr.attrs["source"], "archive": lr.attrs.get("archive")}
    with NetCDFWriter(
        path, plan.hr.lat, plan.hr.lon, times, members if members > 1 else None, **names, **attrs
    ) as writer:
        for rows, cols, sr in predict(lr.values, day=str(times.get("time", field.index)), origin=plan.origin):
            cells = known[tuple(slice(k.start // attrs["scale"], k.stop // attrs["scale"]) for k in (rows, cols))]
            if np.isfinite(sr).sum() != cells.sum() * members * attrs["scale"] ** 2:
                raise DataError(
                    f"{path}: the generator made values that are not finite from {lr.attrs['source']}, which holds none there; "
                    "its training has diverged: take an earlier checkpoint, or train again"
                )
            writer.put(sr if members > 1 else sr[0], rows, cols)
    log(
        f"{path}  {when(times.get('time', ''))}  from {lr.attrs['source']}  LR mean {np.nanmean(lr.values):.2f} mm  "
        f"{time.monotonic() - started:.1f} s"
    )


def predictor(state, *, device="auto", members=1, seed=0, tile=None):
    """`downscale` with a checkpoint's generator: a callable (lr, day, origin) -> tiles, for whole lists."""
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    return partial(downscale, load_generator(state, device), members=members, seed=seed, tile=tile)


@torch.no_grad()
def downscale(generator, lr, *, members=1, seed=0, day="2023-08-01", origin=(0, 0), tile=None, device=None):
    """Members of a whole field, tile by tile.

    The noise of an LR cell is keyed by (seed, member, day, absolute cell row and column = origin + index), so tiles,
    processes and regions that hold the same cell agree on it.

    Args:
        generator: a Generator. lr (h, w), mm, numpy; NaN is missing (filled from the nearest valid cell for the
            network's eyes only). members, seed: ints. day: the valid time as text. origin: absolute row and column of
            lr[0, 0]. tile: side in LR cells; None: about TILE_PIXELS HR pixels. device: None is the generator's.
    Yields: (rows, columns, sr): slices of the HR field and sr (members, H, W), mm, float32, NaN exactly where the LR
        cell is missing.
    Raises: ValueError: lr is not 2-D, or negative or infinite somewhere.
    """
    lr = np.asarray(lr, np.float32)
    if lr.ndim != 2 or np.isinf(lr).any() or (lr < 0).any():
        raise ValueError(f"downscale: lr of shape {lr.shape} must be 2-D, >= 0 mm and finite where it is not NaN")
    device = device or next(generator.parameters()).device
    generator = generator.to(device).eval()
    side = tile or max(1, int(math.sqrt(TILE_PIXELS)) // generator.scale)
    missing = np.isnan(lr)
    field_ = torch.from_numpy(_fill(lr))[None, None].to(device)  # (1, 1, h, w)
    x, features = generator.encode(field_)
    s, ring, (h, w) = generator.scale, generator.ring, lr.shape
    for r0 in range(0, h, side):
        for c0 in range(0, w, side):
            r1, c1 = min(r0 + side, h), min(c0 + side, w)
            part = (max(r0 - ring, 0), min(r1 + ring, h), max(c0 - ring, 0), min(c1 + ring, w))
            inner = (..., slice((r0 - part[0]) * s, (r1 - part[0]) * s), slice((c0 - part[2]) * s, (c1 - part[2]) * s))
            sr = np.empty((members, (r1 - r0) * s, (c1 - c0) * s), np.float32)
            for m in range(members):
                key = f"{seed}|{m}|{day}"
                box = tuple(n + origin[k // 2] for k, n in enumerate(part))
                noise = [None if z is None else z.to(device) for z in _keyed_noise(generator.net, key, box)]
                sr[m] = (
                    generator.finish(field_, generator.detail(x, features, noise, part), part)[inner][0, 0]
                    .cpu()
                    .numpy()
                )
            sr[:, np.kron(missing[r0:r1, c0:c1], np.ones((s, s), bool))] = np.nan
            yield slice(r0 * s, r1 * s), slice(c0 * s, c1 * s), sr


def _fill(lr):
    """NaN replaced by the nearest valid value; all missing: dry."""
    missing = np.isnan(lr)
    if missing.all():
        return np.zeros_like(lr)
    return lr[tuple(distance_transform_edt(missing, return_distances=False, return_indices=True))]


def _keyed_noise(net, key, box):
    """Noise of the cells box = (r0, r1, c0, c1) (absolute) and their surroundings, as draw_noise with n = 1."""
    if not net.noise_channels:
        return [None] * len(net.entries)
    r0, r1, c0, c1 = box
    noise = []
    for grid, margin in net.entries:
        around = -(-margin // grid)  # cells
        rows, columns = range(r0 - around, r1 + around), range(c0 - around, c1 + around)
        cells = [np.concatenate([_cell_noise(net.noise_channels, grid, key, r, c) for c in columns], 2) for r in rows]
        noise.append(_trim(torch.from_numpy(np.concatenate(cells, 1))[None], around * grid - margin))
    return noise


def _cell_noise(channels, grid, key, row, column):
    """Noise of one LR cell at one grid: a counter-based stream of its own."""
    digest = hashlib.blake2b(f"{key}|{row}|{column}|{grid}".encode(), digest_size=16).digest()
    rng = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
    return rng.standard_normal((channels, grid, grid), np.float32)
