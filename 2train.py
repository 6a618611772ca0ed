"""Stage 2: train the generator, first on its own (content), then against a discriminator (adversarial).

Reads   {data-folder}/PreTrain.json (stage 1); with --target interpolate also which steps the other lists hold
Writes  --checkpoint (all that resuming and stages 3 and 4 need), runs/ (TensorBoard), --export (generator alone)

    python 2train.py --max-minutes 20                             # one model for each step found, target interpolate
    python 2train.py --target coarsen --region all --lr-step 1    # real truth: files at --hr-step
    torchrun --nproc-per-node 4 2train.py --resume                # go on, with four processes
"""

import argparse
import signal
import sys
import time
from pathlib import Path

import settings
import utils
from datasets import DataConfig, training_configs
from predictors import add_field_options
from settings import GeneratorConfig, TrainConfig, given
from utils import DataError, log

SHOWN = {  # defaults in --help
    "region": "106 110 26 30; all where the files do not hold it",
    "lr_step": "with interpolate one model for each step of the lists, with paired the LR files' step",
    "hr_step": "0.01; with coarsen and paired the files' step",
}


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage="%(prog)s [options]"
    )
    utils.add_data_arguments(parser, default=None)
    settings.add_settings(parser, DataConfig, shown=SHOWN)
    add_field_options(parser)
    add = parser.add_argument_group("what is kept").add_argument
    add(
        "--checkpoint",
        metavar="FILE",
        help="where the model is kept (default: Data/SavedModels/pre_srgan_x{scale}.pth)",
    )
    add(
        "--resume", action="store_true", help="go on from the checkpoint, whose settings hold; anew where there is none"
    )
    add("--init", metavar="FILE", help="start from the generator of an earlier checkpoint or export")
    add("--export", metavar="FILE", help="also write the generator alone, with averaged weights (a few MB)")
    add("--runs", metavar="DIR", default="runs", help="folder of TensorBoard events (default: %(default)s)")
    add = parser.add_argument_group(settings.LENGTH).add_argument
    add("--max-minutes", type=utils.positive, metavar="X", help="end after this time; the steps are fitted to it")
    settings.add_settings(parser, TrainConfig)
    settings.add_settings(parser, GeneratorConfig, shown={"stage_blocks": "by their cost"})
    words = "any setting of recipe or network, for experiments (settings.py says which)"
    parser.add_argument("--set", action=settings.SetField, settings=(TrainConfig, GeneratorConfig), help=words)
    add = parser.add_argument_group("the machine").add_argument
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute (default: %(default)s)")
    add(
        "--threads",
        type=utils.threads,
        metavar="N",
        help="threads (default: measured; a fixed number gives the same bits again)",
    )
    add("--amp", choices=("auto", "off", "bf16", "fp16"), default="auto", help="reduced precision (default: if faster)")
    add("--compile", action="store_true", help="torch.compile the upsampling stages (not faster on a CPU)")
    add("--vgg-weights", metavar="FILE", help="vgg19-dcbb9e9d.pth, for content loss vgg (default: beside the scripts)")
    args = parser.parse_args(argv)
    args.typed, args.opened = sys.argv[1:] if argv is None else argv, None
    return args


def plan_models(args):
    """[(DataConfig, checkpoint path)]: the model asked for; with `interpolate` and no --lr-step one for each step.

    Raises: DataError: no list, no step, or one file name for several models.
    """
    stored, folder = resumed_data(args)
    args.data_folder = args.data_folder or folder
    utils.read_list(args.data_folder, "train")  # before all else: stage 1 may not have run
    for name in ("checkpoint", "export"):
        path = getattr(args, name)
        if path and Path(path).suffix not in (".pth", ".pt"):  # another name may be anything, a day of rain too
            raise DataError(f"--{name} {path}: expected a name that ends in .pth")
    configs = training_configs(args.data_folder, {**stored, **given(args, DataConfig)})
    for name in ("checkpoint", "export"):
        if getattr(args, name) and len(configs) > 1:
            steps = ", ".join(f"{config.lr_step:g}" for config in configs)
            raise DataError(f"--{name} names one file, but models for {steps} degree are to be trained; add --lr-step")
    return [(c, Path(args.checkpoint or utils.default_checkpoint(c.target, c.scale))) for c in configs]


def resumed_data(args):
    """(data settings, data folder) of the --checkpoint to --resume; ({}, the usual folder) where there is none."""
    files = [Path(args.checkpoint), utils.previous_checkpoint(args.checkpoint)] if args.checkpoint else []
    if not (args.resume and any(file.exists() for file in files)):
        return {}, utils.JSON_FOLDER
    path, kept = args.opened = utils.open_checkpoint(args.checkpoint)
    with utils.reading(path):
        return kept["data_config"], kept.get("data_folder", utils.JSON_FOLDER)


def main(argv=None):
    began, args = time.monotonic(), parse_args(argv)
    plans = plan_models(args)
    from training import Clock, Group, command_to_resume, train_model  # now, not before --help has answered

    group, clock = Group(args.device), Clock(args.max_minutes, began)
    for k, (config, path) in enumerate(plans):
        clock.start(len(plans) - k)
        if clock.minutes is not None and len(plans) > 1:
            log(f"{path}: {clock.minutes:.3g} of {args.max_minutes:g} minutes are for this model")
        try:
            done = train_model(config, path, args, group, clock)
        except FloatingPointError as error:
            kept = f"{path} keeps the last good step" if path.exists() else f"{path} was not written yet"
            raise DataError(
                f"the loss is not finite: {error}; {kept}; try a lower --learning-rate or --amp off"
            ) from None
        ended = int(group.largest(clock.signal or 0))  # it may have reached one process of many
        if (ended or not done) and not group.rank:
            reason = signal.Signals(ended).name if ended else "--max-minutes"
            command = command_to_resume(args, path, group, several=ended and k + 1 < len(plans))
            log(f"ended by {reason}; go on with: {command}")
        if ended:
            return group.end(128 + ended)
    return group.end(0)


if __name__ == "__main__":
    utils.run_stage(main)
