"""Stage 4: downscale the forecasts ("objective" files) with a trained generator, and compare them with what is known.

Reads   {data-folder}/PreObj.json (stage 1) and a checkpoint (stage 2); PreEval.json for the analysed days, where there
Writes  {out}/NN_pre_sr.nc, NN = position in the list, tp(time, [member,] lat, lon), mm; scores.csv

    python 4downscale_obj.py --members 8
    python 4downscale_obj.py --members 8 --correct Data/JsonPath    # forecasts corrected to the training days
"""

from pathlib import Path

import utils
from downscaling import alone, downscale_list, downscale_parser

SPLIT, OUT = "obj", "Data/DataResults/ResultObj"


def parse_args(argv=None):
    parser = downscale_parser(__doc__, OUT)
    words = (
        "correct the forecasts' bias first, by quantile mapping to the training days that stage 1 listed in this "
        "folder (never those of the forecasts' dates); forecasts listed there are compared with them, else those at "
        "hand: a few say little, and only as much is corrected as their weather cannot explain"
    )
    parser.add_argument("--correct", metavar="DIR", help=words)
    return parser.parse_args(argv)


def compare(args, fields, paths):
    """Compare the forecasts with their own input (consistency) and with analysed days (skill): print, write, draw."""
    import forecasts

    inputs, analyses = [field.values() for field in fields], forecasts.analysed_days(args.data_folder)
    uncorrected = [field.raw() for field in fields] if args.correct else None
    cells = forecasts.report(args.out, paths, inputs, analyses, uncorrected)
    if args.plots:
        import plots

        plots.plot_forecasts(Path(args.out) / "plots", paths, inputs, cells, static=args.static)


def main(argv=None):
    args, correction = parse_args(argv), None
    if args.correct:
        from correction import Correction

        correction = Correction(args.correct, args.data_folder, args.any_period)
    with alone(args):
        _, fields, paths = downscale_list(args, SPLIT, correction)
        if len(paths) == len(fields):  # a shard of the list is not compared
            compare(args, fields, paths)


if __name__ == "__main__":
    utils.run_stage(main)
