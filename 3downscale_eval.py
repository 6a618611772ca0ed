"""Stage 3: downscale the evaluation days with a trained generator, and score them where there is truth.

Reads   {data-folder}/PreEval.json (stage 1) and a checkpoint (stage 2), which holds every setting of the model
Writes  {out}/NN_pre_sr.nc, NN = position in the list, tp(time, [member,] lat, lon), mm; scores.csv

    python 3downscale_eval.py --members 8
"""

import functools
from dataclasses import asdict
from pathlib import Path

import limits
import utils
from datasets import SRDataset
from downscaling import alone, downscale_list, downscale_parser
from utils import DataError, log

SPLIT, OUT = "eval", "Data/DataResults/ResultEval"


def parse_args(argv=None):
    parser = downscale_parser(__doc__, OUT)
    parser.add_argument("--no-scores", action="store_true", help="do not score the results, nor read their truth")
    parser.add_argument(
        "--score-window",
        type=functools.partial(utils.whole_number, low=0, high=100_000),
        metavar="CELLS",
        help="score wet windows of this side in LR cells, 0 for whole fields "
        "(default: whole fields; where truth or input has gaps 4 cells from x100 on, 8 from x20 on, else 16, or less)",
    )
    return parser.parse_args(argv)


def score(args, config, fields, paths):
    """Print the score table and write scores.csv; truth is read here, after every field was made.

    Days that the model was trained on are marked in both.

    Returns: (pairs of LR and truth, curves of the scores, where the truth comes from, {}); where there is no truth
        (None, None, None, cells of forecasts.report, which compares the fields with their input).
    """
    import forecasts
    import verification
    from realism import Realism

    try:
        pairs = SRDataset(args.data_folder, SPLIT, dataarray=True, **asdict(config))
        pairs[0]  # refuses where there is no truth
    except DataError as error:
        log(f"no scores: {error}; the fields are compared with their own input")
        return None, None, None, forecasts.report(args.out, paths, [field.values() for field in fields], {})
    real = config.target == "interpolate" and not pairs.plans[0].interpolated  # the files themselves are HR
    truth = "coarsen" if real else config.target
    realism = None if truth == "interpolate" else Realism(config.scale)
    table = verification.score_outputs(paths, pairs, config.scale, side=args.score_window, realism=realism)
    rows = limits.noted(table.rows(), paths)
    if not rows:
        shape = min((plan.lr.shape for plan in pairs.plans), key=min)
        why = "every window of truth and input has missing pixels, or is dry; smaller ones may not, as --score-window 2"
        if (args.score_window or 0) > min(shape):
            why = f"--score-window {args.score_window} is wider than the field of {shape[0]} x {shape[1]} LR cells"
        log(f"no scores: {why}")
        utils.set_aside([Path(args.out) / name for name in ("scores.csv", "plots")])  # of another setting
        return pairs, None, truth, {}
    if seen := sum(field.in_training for field in fields):
        words = f"{seen} of {len(fields)} fields are of days and places that the model was trained on"
        for row in rows:
            row["note"] = "; ".join(filter(None, (row.get("note"), words)))
    verification.write_scores(Path(args.out) / "scores.csv", rows)
    log(verification.format_table(rows, target=truth))
    if truth != "interpolate":
        warn(rows)
    return pairs, table.curves(), truth, {}


def warn(rows):
    """Say it where a simple method has a lower CRPS than the members."""
    crps = {row["name"]: row["crps"] for row in rows}
    name = "ensemble" if "ensemble" in crps else "one member"
    better = [other for other in ("RainFARM", "bilinear") if crps.get(other, float("nan")) < crps[name]]
    if better:
        words = " and ".join(f"{other} ({crps[other]:.3g} mm)" for other in better)
        log(
            f"WARNING: the members (CRPS {crps[name]:.3g} mm) are worse than {words}: do not use this model for such "
            "data; train longer, or on days like these"
        )


def main(argv=None):
    args = parse_args(argv)
    with alone(args):
        _make(args)


def _make(args):
    """Everything, while no other run writes to the folder."""
    config, fields, paths = downscale_list(args, SPLIT)
    if len(paths) < len(fields):  # a shard of the list is neither scored nor drawn
        return
    pairs, curves, truth, cells = (None, None, None, {}) if args.no_scores else score(args, config, fields, paths)
    if args.plots:
        import plots

        if pairs is None:
            pairs = [(field.values(), None) for field in fields]
        plots.plot_evaluation(
            Path(args.out) / "plots", paths, pairs, curves, target=truth, cells=cells, static=args.static
        )


if __name__ == "__main__":
    utils.run_stage(main)
