"""Stage 4: downscale the forecasts ("objective" files) with a trained generator, and compare them with what is known.

Reads   {data-folder}/PreObj.json (stage 1) and a checkpoint (stage 2); PreEval.json for the analysed days, where there
Writes  {out}/NN_pre_sr.nc, NN = position in the list, tp(time, [member,] lat, lon), mm; scores.csv

    python 4downscale_obj.py --members 8
"""

from pathlib import Path

import utils
from downscaling import alone, downscale_list, downscale_parser

SPLIT, OUT = "obj", "Data/DataResults/ResultObj"


def compare(args, fields, paths):
    """Compare the forecasts with their own input (consistency) and with analysed days (skill): print, write, draw."""
    import forecasts

    inputs = [field.values() for field in fields]
    cells = forecasts.report(args.out, paths, inputs, forecasts.analysed_days(args.data_folder))
    if args.plots:
        import plots

        plots.plot_forecasts(Path(args.out) / "plots", paths, inputs, cells)


def main(argv=None):
    args = downscale_parser(__doc__, OUT).parse_args(argv)
    with alone(args):
        _, fields, paths = downscale_list(args, SPLIT)
        if len(paths) == len(fields):  # a shard of the list is not compared
            compare(args, fields, paths)


if __name__ == "__main__":
    utils.run_stage(main)
