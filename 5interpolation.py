"""Stage 5: write the (LR, HR) pairs of a list as NetCDF, which the notebook shows the downscaled fields beside.

Reads   {data-folder}/Pre{Train,Eval,Obj}.json (stage 1)
Writes  {out}/NN_pre_lr.nc and NN_pre_hr.nc, NN = position in the list

    python 5interpolation.py                  # the evaluation days and the forecasts, as they are without truth
    python 5interpolation.py --split eval --target coarsen --region all --lr-step 1    # as stage 2 was told
"""

import argparse
from pathlib import Path

import settings
import utils
from datasets import DataConfig, SRDataset, format_region, found_settings, say_found
from utils import DataError, log

SHOWN = {  # defaults in --help
    "region": "106 110 26 30; all where the files do not hold it",
    "lr_step": "the files' step",
    "hr_step": "0.01; with coarsen and paired the files' step",
}
FOLDERS = {"train": "ResultTrain", "eval": "ResultEval", "obj": "ResultObj"}


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--split", choices=FOLDERS, help="which list of stage 1 (default: eval and obj, those that there are)")
    utils.add_data_arguments(parser)
    add(
        "--out",
        metavar="DIR",
        help="where the pairs go (default: Data/DataResults/ResultTrain, ResultEval or ResultObj)",
    )
    add("--overwrite", action="store_true", help="make again what is already there from the same request")
    settings.add_settings(parser, DataConfig, shown=SHOWN)
    args = parser.parse_args(argv)
    if args.out and not args.split:
        parser.error("--out is the folder of one list: say which with --split")
    return args


def main(argv=None):
    args = parse_args(argv)
    for split in chosen_splits(args):
        out = Path(args.out or f"Data/DataResults/{FOLDERS[split]}")
        with utils.alone(out / ".pairs.lock", out):
            write_pairs(args, split, out)


def chosen_splits(args):
    """The list asked for, else those of evaluation days and forecasts: the training days can be thousands."""
    if args.split:
        return [args.split]
    there = [split for split in ("eval", "obj") if (Path(args.data_folder) / utils.LISTS[split]).is_file()]
    if not there:
        raise DataError(
            f"{args.data_folder} holds no list of evaluation days or forecasts; run 1create_data_lists.py first"
        )
    return there


def write_pairs(args, split, out):
    """Write the pairs of one list; outputs that are there already, whole and of the same request, are kept."""
    typed = settings.given(args, DataConfig)
    found, extent = found_settings(args.data_folder, split, typed)
    say_found(args.data_folder, split, found, extent)
    dataset = SRDataset(args.data_folder, split, dataarray=True, **typed, **found)
    config = dataset.config
    describe(split, dataset)
    names = {(i, kind): f"{i:02d}_pre_{kind}.nc" for i in range(len(dataset)) for kind in ("lr", "hr")}
    requests = {
        name: utils.digest_of(config, dataset.identity(i), dataset.files.period, kind)
        for (i, kind), name in names.items()
    }
    known = {f"*_pre_{kind}.nc": requests.keys() for kind in ("lr", "hr")}
    todo, earlier = utils.choose_outputs(out, requests, known, args.overwrite)
    for index in utils.progress(sorted({i for (i, _), name in names.items() if name in todo}), "writing pairs"):
        pair = dataset[index]
        utils.set_aside(earlier)  # now that the first new one can be made
        for kind, field in zip(("lr", "hr"), pair, strict=True):
            name, title = names[index, kind], f"{kind.upper()} precipitation, target {config.target}"
            if name in todo:
                about = {"accumulation_period": dataset.files.period.words, "request": requests[name]}
                utils.write_field(out / name, field, title=title, **about)
    utils.set_aside(earlier)
    log(f"{len(dataset)} x (NN_pre_lr.nc, NN_pre_hr.nc) in {out}, {len(todo)} files of them made now")


def describe(split, dataset):
    """Print how many pairs there are, on which cells, and what their HR is worth."""
    config, plan = dataset.config, dataset.plans[0]
    log(
        f"{split}: {len(dataset)} pairs x{config.scale}, {plan.lr.rows} x {plan.lr.cols} and {plan.hr.rows} x "
        f"{plan.hr.cols} cells over {plan.lr.extent} (--region {format_region(config.region)}: {plan.words})"
    )
    if plan.interpolated:
        log("NOTE: HR is an interpolation of LR; detail below the LR cell is not verified by such data")


if __name__ == "__main__":
    utils.run_stage(main)
