"""Stage 3: downscale the evaluation days with a trained generator, and score them where there is truth.

Reads   {data-folder}/PreEval.json (stage 1) and a checkpoint (stage 2), which holds every setting of the model
Writes  {out}/NN_pre_sr.nc, NN = position in the list, tp([member,] lat, lon) in mm, and scores.csv

    python 3downscale_eval.py --members 8
"""

from dataclasses import asdict
from pathlib import Path

import utils
from datasets import SRDataset, checkpoint_config, file_rank, read_lr
from models import predictor
from utils import DataError, log

SPLIT, OUT = "eval", "Data/DataResults/ResultEval"


def extend(parser):
    parser.add_argument("--no-scores", action="store_true", help="do not score the results")
    parser.add_argument(
        "--score-window",
        type=int,
        metavar="CELLS",
        help="score wet windows of this side in LR cells, 0 for whole fields "
        "(default: whole fields; where truth has gaps windows of 4 cells from x100 on, of 8 below)",
    )


def score(args, config, paths):
    """Print the score table and write scores.csv; truth is read here, after every field was made."""
    try:
        pairs = SRDataset(args.data_folder, SPLIT, dataarray=True, **asdict(config))
        pairs[0]  # refuses where there is no truth
    except DataError as error:
        log(f"no scores: {error}")
        return
    table = utils.score_outputs(paths, pairs, config.scale, side=args.score_window)
    rows = table.rows()
    if not rows:
        log(
            "no scores and no plots: every window of the truth has missing pixels; smaller ones may not, for example --score-window 2"
        )
        return
    utils.write_scores(Path(args.out) / "scores.csv", rows)
    truth = "interpolate" if config.target == "interpolate" and pairs.plans[0].kind != "hr" else config.target
    log(utils.format_table(rows, target=truth))
    if args.plots:
        draw(args.out, paths, pairs, table)


def draw(out, paths, pairs, table):
    """Maps of every day, a close-up of the wettest, and the curves of a ScoreTable as PNG in {out}/plots."""
    folder, days = Path(out) / "plots", range(len(paths))
    levels = utils.levels_for(*(pairs[index][1] for index in days))
    wettest = max(days, key=lambda index: float(pairs[index][0].mean()))
    for index, path in enumerate(utils.progress(paths, "drawing")):
        (lr, hr), sr = pairs[index], utils.read_output(path)
        utils.save_figure(utils.plot_maps(lr, sr, hr, levels=levels), folder / f"{index:02d}_maps.png")
        if index == wettest:
            one = sr.isel(member=0) if "member" in sr.dims else sr
            words = f"x{sr.attrs['scale']}, member 1 of {sr.sizes.get('member', 1)}"
            utils.save_figure(
                utils.plot_maps(*utils.close_up(lr, one, hr), levels=levels, caption=words), folder / "wettest.png"
            )
    utils.save_figure(
        utils.plot_scores(table.curves(), caption=f"{len(paths)} files", archive=pairs[0][1].attrs.get("archive")),
        folder / "scores.png",
    )
    log(f"drew {len(paths)} maps, wettest.png and scores.png in {folder}")


def main(argv=None):
    args = utils.downscale_args(__doc__, OUT, argv, extend)
    utils.read_list(args.data_folder, SPLIT)  # before all else: stage 1 may not have run
    checkpoint, state = utils.find_checkpoint(
        lambda s: file_rank(args.data_folder, SPLIT, s, args.region), SPLIT, given=args.checkpoint
    )
    with utils.reading(checkpoint):
        config = checkpoint_config(state, args.region, args.units)
        predict = predictor(state, device=args.device, members=args.members, seed=args.seed, tile=args.tile)
    fields = read_lr(args.data_folder, SPLIT, config, state)
    log(
        f"{len(fields)} fields x{config.scale} with {checkpoint} (target {config.target}), {args.members} member(s), seed {args.seed}"
    )
    paths = utils.downscale_list(fields, predict, args, utils.digest(checkpoint), config)
    if not args.no_scores and len(paths) == len(fields):
        score(args, config, paths)


if __name__ == "__main__":
    utils.run_stage(main)
