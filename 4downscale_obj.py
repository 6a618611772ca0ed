"""Stage 4: downscale the forecasts ("objective" files) with a trained generator, and compare them with what is known.

Reads   {data-folder}/PreObj.json (stage 1) and a checkpoint (stage 2); PreEval.json for the analysed days, where there
Writes  {out}/NN_pre_sr.nc, NN = position in the list, tp([member,] lat, lon) in mm, and scores.csv

    python 4downscale_obj.py --members 8
"""

from pathlib import Path

import numpy as np

import utils
from datasets import checkpoint_config, file_rank, open_list, read_lr
from models import predictor
from utils import DataError, log

SPLIT, OUT = "obj", "Data/DataResults/ResultObj"


def compare(args, fields, paths):
    """Print and write the forecasts against their own input (consistency) and against analysed days (skill)."""
    try:
        days = open_list(args.data_folder, "eval")
        analyses = {str(field.time.values)[:10]: field for field in map(days.field, range(len(days)))}
    except DataError:
        analyses = {}
        log("no evaluation list, so the forecasts are compared with their own input only")
    inputs = [field.values() for field in fields]
    rows = utils.compare_forecasts(paths, inputs, analyses)
    utils.write_scores(Path(args.out) / "scores.csv", rows)
    log(utils.format_table(rows))
    log(
        "(mm, at block means; consistency: what went in comes out; skill: the forecast itself against the analysed day of its date)"
    )
    if args.plots:
        draw(args.out, paths, inputs, analyses)


def draw(out, paths, inputs, analyses):
    """Maps of every forecast, and Q-Q plots against its own input and against the analysed days, as PNG in {out}/plots."""
    folder, levels, cells = Path(out) / "plots", utils.levels_for(*inputs), {}
    for index, (path, lr) in enumerate(zip(utils.progress(paths, "drawing"), inputs, strict=True)):
        sr = utils.read_output(path)
        utils.save_figure(utils.plot_maps(lr, sr, levels=levels), folder / f"{index:02d}_maps.png")
        for name, reference in (("own input", lr), ("analysed day", analyses.get(str(sr.time.values)[:10]))):
            if reference is not None:
                cells.setdefault(name, []).append(utils.pair_cells(sr, reference))
    for name, pairs in cells.items():
        made, known = (np.concatenate(values, -1) for values in zip(*pairs, strict=True))
        figure = utils.plot_qq(
            known,
            made,
            caption=f"{len(pairs)} forecasts at the cells of the {name}",
            archive=inputs[0].attrs.get("archive"),
            names=(name, "downscaled"),
        )
        utils.save_figure(figure, folder / f"qq_{name.replace(' ', '_')}.png")
    log(f"drew {len(paths)} maps and {len(cells)} Q-Q plots in {folder}")


def main(argv=None):
    args = utils.downscale_args(__doc__, OUT, argv)
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
    if len(paths) == len(fields):
        compare(args, fields, paths)


if __name__ == "__main__":
    utils.run_stage(main)
