"""Stage 1: check every input file and write the lists that the other stages read.

Reads   NetCDF files of Data/DataTrain, DataEval and DataObj, or of the folders given; with --make-days first downloads
Writes  {output-folder}/PreTrain.json, PreEval.json, PreObj.json (paths in date order) and PreInfo.json (what was found)

    python 1create_data_lists.py
    python 1create_data_lists.py --make-days downloads/era5 --days-folder Data/DataEval     # hours to days, then lists
    python 1create_data_lists.py --make-days gauges --day-start -12     # days of 20 to 20 Beijing time, by their end
    python 1create_data_lists.py --train-folders radar/train --eval-folders radar/eval --output-folder scratch/lists
"""

import argparse
import functools
from pathlib import Path

import utils
from downloads import DayRule, add_day_arguments, describe, files_of, how_to_convert, make_days
from metadata import parse_period
from reader import MAX_DAILY, UNITS, inspect_files
from utils import DataError, log

DEFAULTS = {"train": "Data/DataTrain", "eval": "Data/DataEval", "obj": "Data/DataObj"}
FOLDERS = {  # what the folders of each option hold
    "train": "training days",
    "eval": "evaluation days",
    "obj": "forecasts",
    "train_hr": "truth of the training days (paired)",
    "eval_hr": "truth of the evaluation days (paired)",
}


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--version", action="version", version=f"%(prog)s {utils.VERSION}")
    for name, words in FOLDERS.items():
        option = f"--{name.replace('_', '-')}-folders"
        add(option, nargs="+", default=[], metavar="DIR", help=f"folders of {words}")
    add("--output-folder", metavar="DIR", default=utils.JSON_FOLDER, help="where the lists go (default: %(default)s)")
    words = f"units of all values, whatever their attributes say: {', '.join(UNITS)} (default: %(default)s)"
    add("--units", choices=("auto", *UNITS), default="auto", metavar="UNIT", help=words)
    words = "period of all amounts, whatever the files say, as 24h or 24min (default: as they say, or their spacing)"
    add("--period", type=parse_period, metavar="TIME", help=words)
    add(
        "--min-size",
        type=utils.whole_number,
        metavar="N",
        default=2,
        help="leave out files with fewer rows or columns (default: 2)",
    )
    words = "largest amount that is rain, mm: above it a file is refused; up to it no code for missing is looked for"
    add("--valid-max", type=functools.partial(utils.positive, high=MAX_DAILY), metavar="MM", help=words)
    add("--skip-bad", action="store_true", help="leave bad files out, naming them, instead of stopping")
    add_day_arguments(parser, DEFAULTS["train"])
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    with utils.alone(Path(args.output_folder) / ".lists.lock", args.output_folder):
        write_all(args, choose_folders(args))


def write_all(args, folders):
    """Make the days that are asked for, read every file and write the lists."""
    if args.make_days:
        make_days(args.make_days, args.days_folder, DayRule.of(args), skip_bad=args.skip_bad)
    records, left_out = {}, []
    for name, given in folders.items():
        paths, others = files_of(given)
        made = args.make_days and args.days_folder in given  # in mm, whatever the downloads are in
        words = {} if made else {"units": args.units, "period": args.period}
        found, faults = inspect_files(paths, valid_max=args.valid_max, members=name == "obj", **words)
        records[name], bad = utils.usable(found, faults, given, min_size=args.min_size, skip_bad=args.skip_bad)
        left_out += others + bad
    info = utils.write_lists(args.output_folder, records, folders, left_out)
    for words in info["left_out"]:
        log(f"left out: {words}")
    for line in describe(records):
        log(line)
    names = ", ".join(name for name in DEFAULTS if name in folders)
    log(f"wrote the lists of {names} and PreInfo.json to {args.output_folder}")


def choose_folders(args):
    """{list: folders}: those given, or the default folders that hold files.

    Raises: DataError: no folder holds files, or truth without its days.
    """
    given = {name: getattr(args, f"{name}_folders") for name in FOLDERS}
    given = {name: folders for name, folders in given.items() if folders}
    if args.make_days and args.days_folder not in [folder for folders in given.values() for folder in folders]:
        name = next((name for name in ("eval", "obj") if name in Path(args.days_folder).name.lower()), "train")
        given[name] = [*given.get(name, []), args.days_folder]
    for name in ("train", "eval"):
        if f"{name}_hr" in given and name not in given:
            raise DataError(f"--{name}-hr-folders needs --{name}-folders: the LR days that the truth is paired with")
    return given or default_folders()


def default_folders():
    """{list: [folder]} of the default folders that hold files; says which do not."""
    found = {}
    for name, folder in DEFAULTS.items():
        there = Path(folder).is_dir()
        inside, others = utils.netcdf_files(folder) if there else ([], [])
        if inside:
            found[name] = [folder]
            continue
        words = f"no .nc file ({', '.join(others[:5])}){how_to_convert(others)}" if others else "empty"
        words = words if there else "absent"
        log(f"{folder}: {words}; no {name} list is written")
    if not found:
        raise DataError(
            f"{', '.join(DEFAULTS.values())} hold no .nc file; lay your files there, name folders with "
            "--train-folders, --eval-folders, --obj-folders, or try `bash jobs/quickstart.sh`"
        )
    return found


if __name__ == "__main__":
    utils.run_stage(main)
