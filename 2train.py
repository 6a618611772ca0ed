"""Stage 2: train the generator, first on its own (content), then against a discriminator (adversarial).

Reads   {data-folder}/PreTrain.json (stage 1); with --target interpolate also which steps the other lists hold
Writes  --checkpoint (all that resuming and stages 3 and 4 need), runs/ (TensorBoard), --export (generator alone)

    python 2train.py --max-minutes 20                             # one model for each step found, target interpolate
    python 2train.py --target coarsen --region all --lr-step 1    # real truth: files at --hr-step
    torchrun --nproc-per-node 4 2train.py --resume                # go on, with four processes
"""

import argparse
import contextlib
import math
import os
import platform
import signal
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from scipy.optimize import minimize
from torch.nn.utils.parametrize import cached
from torch.utils.tensorboard import SummaryWriter

import datasets
import models
import utils
from utils import MANY, AverageMeter, DataError, log

# steps of rising learning rate; a run with --max-minutes is planned after them, or after a fifth of its time
WARM_UP = 200
REFIT = 20  # steps after which the length of such a run is fitted to its time again
PENALTY_EVERY = 8  # steps between gradient penalties, each weighted so much more (Karras et al. 2020)


def option(default, words):
    """A field that is an option of the same name."""
    return field(default=default, metadata={"help": words})


@dataclass(frozen=True)
class TrainConfig:
    """How a generator is trained; stands in the checkpoint as a dict."""

    recipe: str = option("crps", "crps (default), srgan (SRResNet against a BCE discriminator) or srgan-notes")
    content_steps: int = option(1200, "steps of the content phase; more for large archives")
    adversarial_steps: int = option(0, "steps of the adversarial phase")
    batch: int = option(16, "samples a step, over all processes")
    members: int = option(2, "members made of each sample")
    window: tuple = option((4, 7), "smallest and largest side of what the network sees, in crops; 0: the whole region")
    crop: int = option(100, "side of what is made and compared, HR pixels (at least one LR cell); 0: the whole window")
    content: str = option("crps", "content loss: crps, mse, l1 or vgg, joined by + for a sum")
    adversarial_content: str = option("", "content loss of the adversarial phase (default: the same)")
    pools: tuple = option((1, 4, 16), "sides of the block means the CRPS is taken on, HR pixels")
    learning_rate: float = option(2e-3, "step size of the generator")
    schedule: str = option("cosine", "cosine (to 0 within each phase) or half (times 0.1 at half time)")
    optimizer: str = option("adamw", "adamw or adam")
    restraint: float = option(
        1e-3, "weight of the network output's mean square: keeps shares from freezing; fades with the rate"
    )
    weight_decay: float = option(0.01, "decay of the weights (adamw)")
    clip_norm: float = option(1.0, "largest gradient norm; 0: gradients are clamped to -1..1")
    ema: float = option(0.997, "decay of the averaged weights that stages 3 and 4 use")
    adversarial: str = option("relativistic", "adversarial loss: relativistic (with gradient penalty), hinge or bce")
    beta: float = option(0.02, "weight of the adversarial loss")
    penalty: float = option(1.0, "weight of the gradient penalty")
    discriminator_channels: int = option(16, "width of the discriminator (SRGAN: 64)")
    discriminator_rate: float = option(3e-4, "step size of the discriminator")
    wet: bool = option(True, "choose wet windows more often")
    turn: bool = option(True, "turn and flip windows")
    amounts: float = option(1.5, "scale amounts by up to this factor, either way; 1: not")
    valid_share: float = option(0.1, "share of the training files (or columns) held out for validation")
    valid_windows: int = option(24, "windows scored at each validation")
    calibrate: int = option(
        0, "tries of the noise's strength at the end, for true spectra (30 to 50; minutes); 0: none"
    )
    epoch_steps: int = option(200, "steps between validations, each with a checkpoint")
    initial: str = option("default", "initial weights: default, or normal for N(0, 0.02)")
    seed: int = option(0, "seed of weights, windows and noise")

    def __post_init__(self):
        if tuple(self.window) in ((), (0,)):
            object.__setattr__(self, "window", ())
        elif len(self.window) != 2 or not 1 <= self.window[0] <= self.window[1]:
            raise DataError(f"--window {' '.join(map(str, self.window))}: expected a smallest and a largest side, or 0")
        if not self.pools or min(self.pools) < 1:
            raise DataError(f"--pools {' '.join(map(str, self.pools))}: expected sides of 1 or more")
        losses = {f"{name}_": getattr(self, name).split("+") for name in ("content", "adversarial_content")}
        for name, known in KNOWN.items():
            for word in losses.get(f"{name}_", [getattr(self, name)]):
                if word not in known:
                    raise DataError(
                        f"--{name.replace('_', '-')} {word}: expected one of {', '.join(filter(None, known))}"
                    )
        for name, (low, high) in BOUNDS.items():
            if not low <= getattr(self, name) <= high:
                raise DataError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected {low:g} to {high:g}")


KNOWN = {
    "content": tuple(models.CONTENT_LOSSES),
    "adversarial_content": ("", *models.CONTENT_LOSSES),
    "adversarial": tuple(models.ADVERSARIAL_LOSSES),
    "optimizer": ("adamw", "adam"),
    "schedule": ("cosine", "half"),
    "initial": ("default", "normal"),
}
BOUNDS = {
    **dict.fromkeys(("batch", "members", "epoch_steps", "valid_windows", "discriminator_channels"), (1, MANY)),
    **dict.fromkeys(("content_steps", "adversarial_steps", "calibrate", "crop", "seed"), (0, MANY)),
    **dict.fromkeys(("clip_norm", "weight_decay", "beta", "penalty", "restraint"), (0, MANY)),
    **dict.fromkeys(("learning_rate", "discriminator_rate"), (1e-12, 10)),
    "valid_share": (0, 0.9),
    "ema": (0, 1),
    "amounts": (1, 100),
}

_SRGAN = {
    "members": 1,
    "batch": 16,
    "content": "mse",
    "adversarial_content": "vgg",
    "adversarial": "bce",
    "beta": 1e-3,
    "learning_rate": 1e-4,
    "optimizer": "adam",
    "schedule": "half",
    "weight_decay": 0.0,
    "restraint": 0.0,
    "clip_norm": 0.0,
    "adversarial_steps": 4000,
    "discriminator_channels": 64,
    "discriminator_rate": 1e-4,
    "amounts": 1.0,
    "crop": 200,
}
GENERATOR_WORDS = {
    "channels": "width of the network at LR",
    "blocks": "residual blocks at LR",
    "stage_channels": "width of each upsampling stage, one number a prime factor of the scale; none: tapering",
    "stage_blocks": "residual blocks of each upsampling stage; none: by their cost",
    "noise_channels": "noise joined at each stage; 0: one deterministic field (SRResNet)",
    "hr_noise": "noise joined at HR too: truer finest scales for a somewhat longer step",
    "norm": "none, or batch for batch norm (breaks amounts)",
    "activation": "of the LR part: prelu, relu, leakyrelu or tanh",
    "stage_activation": "of the stages",
    "transform": "how rain enters: log, minmax, zscore, decimal, mean, binarise or mean_over_max",
    "output": "how rain leaves: exp or softplus, before conservation",
    "conserve": "rescale each block to its LR value (off by default for paired)",
    "position_channels": "learned maps of a fixed region (terrain, coast); ties the model to it",
    "dropout": "share of the LR part's channels dropped in training",
}
RECIPES = {
    "crps": ({}, {}),
    "srgan": (_SRGAN, {"noise_channels": 0}),
    "srgan-notes": (
        {**_SRGAN, "adversarial_content": "mse+vgg", "initial": "normal", "epoch_steps": 100},
        {"noise_channels": 0, "norm": "batch"},
    ),
}


# ---------------------------------------------------------------- settings


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage="%(prog)s [options]"
    )
    utils.add_data_arguments(parser)
    datasets.add_data_options(parser, "with interpolate one model for each step of the other lists")
    parser.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="where the model is kept (default: Data/SavedModels/pre_srgan_x{scale}.pth, pre_srgan_{target}_x{scale}.pth for other targets)",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the checkpoint, with its settings; from the start where there is none",
    )
    parser.add_argument("--init", metavar="FILE", help="start from the generator of an earlier checkpoint or export")
    parser.add_argument(
        "--export", metavar="FILE", help="also write the generator alone (EMA weights and settings, a few MB)"
    )
    parser.add_argument(
        "--max-minutes",
        type=float,
        metavar="X",
        help="end after this time with a checkpoint; where no number of steps is given, the schedule is fitted to it as it goes",
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute (default: %(default)s)"
    )
    parser.add_argument(
        "--amp",
        choices=("auto", "off", "bf16", "fp16"),
        default="auto",
        help="reduced precision (default: what the device is fast at)",
    )
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile the upsampling stages (not faster on a CPU)"
    )
    parser.add_argument(
        "--accumulate",
        type=utils.whole_number,
        metavar="N",
        default=1,
        help="parts a batch is made in, for little memory (default: %(default)s)",
    )
    parser.add_argument("--vgg-weights", metavar="FILE", help="vgg19-dcbb9e9d.pth, for content vgg")
    parser.add_argument(
        "--runs", metavar="DIR", default="runs", help="folder of TensorBoard events (default: %(default)s)"
    )
    add_fields(parser, TrainConfig, "training", {f.name: f.metadata["help"] for f in fields(TrainConfig)})
    fitted = ("scale", "transform_parameters", "position_shape")  # to the data
    add_fields(parser, models.GeneratorConfig, "generator", GENERATOR_WORDS, skip=fitted)
    return parser.parse_args(argv)


def add_fields(parser, cls, title, words, skip=()):
    """Every field of a dataclass as an option of the same name; what is not typed does not appear in the result."""
    group = parser.add_argument_group(f"{title} (default in brackets)")
    for item in fields(cls):
        if item.name in skip:
            continue
        default = item.default
        if isinstance(default, bool):
            kind = {"action": argparse.BooleanOptionalAction}
        elif isinstance(default, tuple):
            kind = {"nargs": "+", "type": int, "metavar": "N"}
        else:
            kind = {"type": type(default), "metavar": {int: "N", float: "X", str: "NAME"}[type(default)]}
        if item.name == "recipe":
            kind = {"choices": tuple(RECIPES)}
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        group.add_argument(
            f"--{item.name.replace('_', '-')}",
            dest=item.name,
            default=argparse.SUPPRESS,
            help=f"{words[item.name]} [{shown}]",
            **kind,
        )


def plan_models(args):
    """[(DataConfig, checkpoint path)]: the one asked for or, with `interpolate` and no --lr-step, one a step found."""
    utils.read_list(args.data_folder, "train")  # before all else: stage 1 may not have run
    steps = [args.lr_step]
    if args.lr_step is None:
        if args.target != "interpolate":
            raise DataError(
                f"--target {args.target} needs --lr-step: the LR cell size in degrees, for example --lr-step 1"
            )
        found = utils.read_info(args.data_folder).get("files", {})
        steps = sorted(
            {r["step"] for split in ("eval", "obj") for r in found.get(split, []) if r.get("step", 0) > args.hr_step},
            reverse=True,
        )
        if not steps:
            raise DataError(
                f"{args.data_folder}: no evaluation or forecast list says which step to train for; give --lr-step, or run "
                "1create_data_lists.py with such folders"
            )
    for option in ("checkpoint", "export"):
        name = getattr(args, option)
        if name and Path(name).suffix not in (
            ".pth",
            ".pt",
        ):  # what stands under such a name may be anything, a day of rain too
            raise DataError(f"--{option} {name}: expected a name that ends in .pth")
    configs = [datasets.DataConfig(**{**datasets.data_options(args), "lr_step": step}) for step in steps]
    if args.checkpoint and len(configs) > 1:
        raise DataError(
            f"--checkpoint names one file, but models for {', '.join(f'{s:g}' for s in steps)} degree are to be trained; add --lr-step"
        )
    return [
        (config, Path(args.checkpoint or utils.default_checkpoint(config.target, config.scale))) for config in configs
    ]


def given(args, cls):
    """The fields of a dataclass that were typed."""
    return {f.name: getattr(args, f.name) for f in fields(cls) if hasattr(args, f.name)}


def choose_settings(args, config, dataset):
    """(TrainConfig, GeneratorConfig) of a new model: recipe, then options."""
    recipe = RECIPES[getattr(args, "recipe", "crps")]
    train = replace(TrainConfig(), **{**recipe[0], **given(args, TrainConfig)})
    shape = {"conserve": config.target != "paired", **recipe[1], **given(args, models.GeneratorConfig)}
    for name in ("channels", "blocks", "noise_channels", "position_channels"):
        if shape.get(name, 1) < (name == "channels"):
            raise DataError(f"--{name.replace('_', '-')} {shape[name]}: expected {int(name == 'channels')} or more")
    if shape.get("transform", "log") not in models.TRANSFORMS:
        raise DataError(f"--transform {shape['transform']}: expected one of {', '.join(models.TRANSFORMS)}")
    if shape.get("position_channels"):
        train = replace(train, window=(), crop=0, turn=False)
        shape["position_shape"] = dataset.plans[0].core.shape
    if shape.get("transform", "log") != "log":
        rain = np.concatenate([dataset[k][0].ravel() for k in range(0, len(dataset), max(1, len(dataset) // 50))])
        shape["transform_parameters"] = models.TRANSFORMS[shape["transform"]].fit(rain[np.isfinite(rain)])
    try:
        return train, models.GeneratorConfig(scale=config.scale, **shape)
    except ValueError as error:
        raise DataError(str(error)) from None


# ---------------------------------------------------------------- processes, time and signals


class Group:
    """The processes that train together (torchrun), or the only one."""

    def __init__(self, device):
        self.rank, self.size, self.local = (
            int(os.environ.get(k, d)) for k, d in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
        )
        cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
        self.device = torch.device("cuda", self.local) if cuda else torch.device("cpu")
        if self.size > 1 and not dist.is_initialized():
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)  # python's own would not run while this waits for the others
            dist.init_process_group("nccl" if cuda else "gloo")

    def mean(self, tensors):
        """Average tensors over processes in place, as one message; returns its bytes."""
        if self.size == 1 or not tensors:
            return 0
        flat = self._reduce(torch.cat([t.reshape(-1) for t in tensors]), dist.ReduceOp.SUM)
        for tensor, part in zip(tensors, flat.div_(self.size).split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))
        return flat.numel() * flat.element_size()

    def largest(self, number):
        """The largest of the processes' numbers."""
        value = torch.tensor([float(number)], device=self.device)
        return (self._reduce(value, dist.ReduceOp.MAX) if self.size > 1 else value).item()

    def _reduce(self, flat, kind):
        try:
            dist.all_reduce(flat, kind)
        except RuntimeError as error:  # gloo and nccl, each in its own words
            raise DataError(
                f"process {self.rank} of {self.size} lost another one, whose own message says why ({str(error).splitlines()[0][:120]})"
            ) from None
        return flat

    def share(self, count):
        """(first, number) of this process's part of `count` samples."""
        first = count * self.rank // self.size
        return first, count * (self.rank + 1) // self.size - first


def amp_dtype(choice, device):
    """The reduced precision asked for, or the one the device is fast at; None for float32."""
    if choice != "auto":
        return {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[choice]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    # AMX and AVX512 units; emulated, and slow, elsewhere
    return torch.bfloat16 if getattr(torch.cpu, "_is_avx512_bf16_supported", bool)() else None


class Clock:
    """Ends a run after the current step: on SIGTERM, SIGUSR1, SIGINT, or when the minutes of a model are over."""

    def __init__(self, minutes):
        self.began, self.allowed, self.signal = time.monotonic(), minutes, None
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._caught)

    def _caught(self, number, frame):
        self.signal = signal.Signals(number)

    def start(self, models):
        """Begin the next of so many models: each has its share of what is left."""
        self.started = time.monotonic()
        self.minutes = None if self.allowed is None else (self.allowed - (self.started - self.began) / 60) / models

    @property
    def elapsed(self):
        return (time.monotonic() - self.started) / 60

    @property
    def over(self):
        return self.signal is not None or (self.minutes is not None and self.elapsed >= self.minutes)


# ---------------------------------------------------------------- training


class Training:
    """One model in training: networks, optimisers, windows, and where it stands."""

    def __init__(self, config, train, shape, dataset, group, args):
        self.config, self.train, self.shape, self.dataset, self.group, self.args = (
            config,
            train,
            shape,
            dataset,
            group,
            args,
        )
        if train.batch < group.size:
            raise DataError(
                f"--batch {train.batch}: fewer samples a step than the {group.size} processes that share them; expected a sample "
                f"for each, for example --batch {8 * group.size}"
            )
        torch.manual_seed(train.seed)
        self.generator = models.Generator(shape)
        self.discriminator = models.Discriminator(train.discriminator_channels)
        if train.initial == "normal":
            models.initialise_normal(self.generator)
        if args.init:
            with utils.reading(args.init):
                self.generator.load_state_dict(models.load_generator(utils.load_checkpoint(args.init)).state_dict())
        for net in (self.generator, self.discriminator):
            net.to(group.device, memory_format=torch.channels_last)
        self.ema = models.EMA(self.generator, train.ema)
        kind = partial({"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[train.optimizer], fused=True)
        decay = {"weight_decay": train.weight_decay} if train.optimizer == "adamw" else {}
        self.opt_g = kind(self.generator.parameters(), train.learning_rate, betas=(0.9, 0.99), **decay)
        self.opt_d = kind(self.discriminator.parameters(), train.discriminator_rate, betas=(0.0, 0.99))
        self.guard = models.CollapseGuard(self.opt_d)
        self.amp = amp_dtype(args.amp, group.device)
        self.scaler = torch.amp.GradScaler(enabled=self.amp == torch.float16)
        self.vgg = (
            models.TruncatedVGG19(5, 4, args.vgg_weights).to(group.device)
            if "vgg" in train.content + train.adversarial_content
            else None
        )
        crop = train.crop and max(1, round(train.crop / config.scale))  # LR cells
        sides = tuple(side * max(crop, 1) for side in train.window) or None
        draw = {"sides": sides, "valid_share": train.valid_share, "wet": train.wet, "seed": train.seed}
        self.windows = datasets.Windows(dataset, crop=crop, turn=train.turn, amounts=train.amounts, **draw)
        held = partial(  # whole windows' worth of crops, as they are
            datasets.Windows,
            dataset,
            crop=4 * crop if sides else 0,
            turn=False,
            **{**draw, "sides": (sides[1],) * 2 if sides else None},
        )
        part = "valid" if train.valid_share else "train"
        self.held_out = held(part=part) if train.valid_share else None
        self.calibration = held(part=part, wet=False, seed=train.seed + 1)
        self.step, self.best, self.best_weights, self.planned, self.bytes = 0, math.inf, None, True, 0
        self.calibrated, self.saved = False, None  # saved: (step, calibrated) of the last checkpoint
        self.cutter, self.coming = ThreadPoolExecutor(1, "windows"), None
        if (
            args.compile
        ):  # not the trunk: gradients of its edges come in another layout than the compiler expects (torch 2.14)
            self.generator.net.stages = torch.compile(self.generator.net.stages)
        self.adversary = models.ADVERSARIAL_LOSSES[train.adversarial]

    @property
    def steps(self):
        return self.train.content_steps + self.train.adversarial_steps

    @property
    def fighting(self):
        """True in the adversarial phase."""
        return self.step >= self.train.content_steps

    def rate(self):
        """Learning rate of this step over the configured one."""
        first, length = (
            (self.train.content_steps, self.train.adversarial_steps) if self.fighting else (0, self.train.content_steps)
        )
        done = (self.step - first) / max(length, 1)
        if self.train.schedule == "half":
            return 0.1 if done >= 0.5 else 1.0
        rising = min(1.0, (self.step - first + 1) / min(WARM_UP, length / 4 + 1))
        return rising * 0.5 * (1 + math.cos(math.pi * done)) * (0.3 if self.fighting else 1.0)

    def _members(self, lr, box, noise):
        """Members (M, N, 1, H, W), the trunk run once for all of them, and the mean square of the network's output."""
        count = self.train.members
        lr, x, features = (t.repeat(count, 1, 1, 1) for t in (lr, *self.generator.encode(lr)))
        detail = self.generator.detail(x, features, noise, box)
        return self.generator.finish(lr, detail, box).unflatten(0, (count, -1)), detail.square().mean()

    def noise(self, first, count, box):
        """Noise of samples first .. first + count, keyed by (seed, step, sample): the same on any number of processes."""
        drawn = []
        for sample in range(first, first + count):
            key = np.random.SeedSequence([self.train.seed, self.step, sample]).generate_state(1, np.uint64)[0]
            source = torch.Generator().manual_seed(int(key >> np.uint64(1)))
            drawn.append(
                self.generator.draw_noise(self.train.members, box[1] - box[0], box[3] - box[2], generator=source)
            )
        return [
            None if stage[0] is None else torch.stack(stage, 1).flatten(0, 1).to(self.group.device)
            for stage in zip(*drawn, strict=True)
        ]

    def content(self, members, hr):
        """Content loss of the phase; a sum where it is joined by +."""
        names = (
            self.train.adversarial_content if self.fighting and self.train.adversarial_content else self.train.content
        ).split("+")
        return sum(models.content_loss(name, members, hr, pools=self.train.pools, vgg=self.vgg) for name in names)

    def run_step(self):
        """One step of both networks. Returns {loss name: value}. Raises FloatingPointError with the files' names."""
        shrink = self.rate() * self.train.learning_rate / self.opt_g.param_groups[0]["lr"]
        if math.isfinite(shrink) and shrink > 0:
            utils.adjust_learning_rate(self.opt_g, shrink)
        first, count = self.group.share(self.train.batch)
        losses, parts, self.sources = {}, min(self.args.accumulate, count), set()
        cuts = [first + count * k // parts for k in range(parts + 1)]
        self.opt_g.zero_grad(set_to_none=True), self.opt_d.zero_grad(set_to_none=True)
        spans = list(zip(cuts, cuts[1:], strict=False))
        for k, (a, b) in enumerate(spans):
            batch = self._cut(self.step, a, b).result()
            following = (self.step, *spans[k + 1]) if k + 1 < parts else (self.step + 1, *spans[0])
            self.sources.update(batch["source"])
            share = (b - a) * self.group.size / self.train.batch
            for name, value in self._losses(batch, a, share, following).items():
                losses[name] = losses.get(name, 0.0) + value
        values = torch.tensor(list(losses.values()), device=self.group.device)
        self.group.mean([values])
        losses = dict(zip(losses, values.tolist(), strict=True))
        if not all(map(math.isfinite, losses.values())):
            raise FloatingPointError(f"step {self.step}: {losses} from {', '.join(sorted(self.sources))}")
        self._update(self.generator, self.opt_g)
        if self.fighting:
            self._update(self.discriminator, self.opt_d)
            self.guard.update(losses["Loss_d"])
        self.ema.update(self.generator)
        self.step += 1
        return losses

    def _cut(self, step, a, b):
        """Samples a to b of a step, in another thread: a Future, the last one where it is the same."""
        if self.coming is None or self.coming[0] != (step, a, b):
            self.coming = (step, a, b), self.cutter.submit(self.windows.batch, step, self.train.batch, a, b - a)
        return self.coming[1]

    def _losses(self, batch, first, share, following):
        """Gradients of one part of the batch, weighted by its share, while the following is cut; returns its losses."""
        lr, hr = (torch.from_numpy(batch[k]).to(self.group.device, non_blocking=True) for k in ("lr", "hr"))
        r0, r1, c0, c1 = batch["box"]
        noise = self.noise(first, len(lr), batch["box"])
        with torch.autocast(self.group.device.type, self.amp, enabled=self.amp is not None):
            members, detail = self._members(lr, batch["box"], noise)
        weight = torch.from_numpy(batch["weight"]).to(self.group.device)[:, None, None, None]
        content = self.content(members * weight, hr * weight)
        losses, total = {"Loss_c": content}, content + self.train.restraint * self.rate() * detail
        if self.fighting:
            known = lr[..., r0:r1, c0:c1]
            losses["Loss_d"], penalty, real = self._critic_loss(known, hr, members[0].detach())
            self.scaler.scale((losses["Loss_d"] + self.train.penalty * penalty) * share).backward()
            self.discriminator.requires_grad_(False)
            with torch.autocast(self.group.device.type, self.amp, enabled=self.amp is not None), cached():
                _, losses["Loss_g"] = self.adversary(real.detach(), self.discriminator(known, members[0]))
            self.discriminator.requires_grad_(True)
            total = total + self.train.beta * losses["Loss_g"]
        self._cut(*following)  # now: the backward pass leaves the interpreter alone
        self.scaler.scale(total * share).backward()
        return {name: value.detach().float().item() * share for name, value in losses.items()}

    def _critic_loss(self, lr, hr, made):
        """(loss, gradient penalty, logits of hr): real and made rain in one batch, the spectral norms taken once."""
        both = torch.cat([lr, lr]), torch.cat([hr, made])
        with torch.autocast(self.group.device.type, self.amp, enabled=self.amp is not None), cached():
            real, fake = self.discriminator(*both).chunk(2)
            loss, _ = self.adversary(real, fake)
            if self.train.adversarial != "relativistic" or self.step % PENALTY_EVERY:
                return loss, 0.0, real
            return (
                loss,
                2 * PENALTY_EVERY * models.gradient_penalty(self.discriminator, *both),
                real,
            )  # of hr and of made

    def _update(self, net, optimizer):
        grads = [p.grad for p in net.parameters() if p.grad is not None]
        self.bytes += self.group.mean(grads)
        self.scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(net.parameters(), self.train.clip_norm or math.inf)
        if not (self.scaler.is_enabled() or torch.isfinite(norm)):  # the scaler skips such steps by itself
            raise FloatingPointError(f"step {self.step}: gradient norm {norm} from {', '.join(sorted(self.sources))}")
        if not self.train.clip_norm:
            utils.clip_gradient(optimizer, 1.0)
        self.scaler.step(optimizer)
        self.scaler.update()

    def scored(self, windows, count, *, wet=False):
        """This process's part of `count` windows to score: [(lr, hr, box, number)].

        wet: windows that are not wet, by the rule of the score tables, give way to others where 20 draws find one.
        """
        first, number = self.group.share(max(count, self.group.size))
        parts = []
        for k in range(first, first + number):
            draws = (windows.batch(k + count * again, 1) for again in range(20 if wet else 1))
            good = (d for d in draws if not wet or any(utils.wet_windows(d["hr"][0, 0], min(d["hr"].shape[2:]))))
            batch = next(good, None) or windows.batch(k, 1)
            parts.append((*map(torch.from_numpy, (batch["lr"], batch["hr"])), batch["box"], k))
        return parts

    @torch.no_grad()
    def assess(self, net, windows, members=4):
        """Scores of a generator on what `scored` returned: CRPS and bilinear's MAE, mm, spectra, dB, and P99.9's ratio."""
        device, scale = self.group.device, self.shape.scale
        sums, spectra, counts, self.shown = torch.zeros(3, dtype=torch.float64), [], [], None
        for lr, hr, box, k in windows:
            lr, hr, (r0, r1, c0, c1) = lr.to(device), hr.to(device), box
            sources = [torch.Generator().manual_seed(1000 * k + m) for m in range(members)]
            drawn = [net.draw_noise(1, r1 - r0, c1 - c0, generator=source) for source in sources]
            made = torch.stack([net(lr, [z if z is None else z.to(device) for z in noise], box) for noise in drawn])
            r0, r1, c0, c1 = (n * scale for n in box)
            plain = F.interpolate(lr, scale_factor=scale, mode="bilinear")[..., r0:r1, c0:c1]
            sums += torch.tensor([models.fair_crps(made, hr, (1,)).item(), F.l1_loss(plain, hr).item(), 1.0])
            fields = torch.cat([hr[None], made])[:, 0, 0].cpu().numpy()  # (1 + M, H, W)
            spectrum, count = utils.rapsd(fields), utils.histogram(fields.reshape(len(fields), -1))
            power = max(spectrum[0, 1:].sum(), 1e-30) ** 0.5  # by the root of its power, or a few storms would rule
            (
                spectra.append([spectrum[0] / power, spectrum[1:].mean(0) / power]),
                counts.append([count[0], count[1:].sum(0)]),
            )
            self.shown = self.shown or (lr, hr, made, box)
        both, bins = (torch.from_numpy(np.sum(part, 0).astype(np.float64)) for part in (spectra, counts))
        self.group.mean([sums, both, bins])
        crps, mae = (sums[:2] / sums[2]).tolist()
        truth, mine = utils.histogram_quantile(bins.numpy(), np.array([0.999]))[:, 0]
        return {
            "crps": crps,
            "mae_bilinear": mae,
            "ratio": crps / max(mae, 1e-12),
            "lsd_db": utils.lsd(both[1].numpy(), both[0].numpy()),
            "p999_ratio": mine / max(truth, 1e-12),
        }

    def validate(self):
        """Scores of the EMA generator on held-out windows."""
        return (
            self.assess(self.ema.module, self.scored(self.held_out, self.train.valid_windows)) if self.held_out else {}
        )

    @torch.no_grad()
    def calibrate(self, clock):
        """Scale what each entry of noise brings in, so that the members' spectrum comes nearer to the truth's.

        Fair CRPS hardly sees the finest scales, so training leaves them too smooth. The gains, one an entry, are sought on
        held-out windows (training windows where nothing is held out); a worse CRPS, and gains far from 1, count against
        them. The clock's end ends the search with the best so far; a signal leaves it to --resume.
        """
        windows, tried = self.scored(self.calibration, 2 * self.train.valid_windows, wet=True), []
        net, weights = deepcopy(self.ema.module), (self.best_weights or self.ema.state_dict())["weights"]
        if not self.group.rank:
            log(f"calibrating the noise: up to {self.train.calibrate} tries on {2 * self.train.valid_windows} windows")
        bar = utils.progress(None, "calibrating", total=self.train.calibrate)

        def cost(logs):
            if tried and self.group.largest(clock.over):
                raise StopIteration
            net.load_state_dict(weights)
            net.scale_noise(np.exp(logs))
            scores = self.assess(net, windows, members=2)
            worse = scores["ratio"] - (tried[0][2]["ratio"] if tried else scores["ratio"])
            found = scores["lsd_db"] + 200 * max(worse, 0.0) + 0.3 * np.square(logs).sum()
            tried.append((found if math.isfinite(found) else math.inf, np.exp(logs), scores))
            bar.update()
            return tried[-1][0]

        start = np.zeros(len(net.net.entries))
        corners = np.vstack([start, 0.5 * np.eye(len(start))])
        with contextlib.suppress(StopIteration):
            minimize(
                cost, start, method="Nelder-Mead", options={"initial_simplex": corners, "maxfev": self.train.calibrate}
            )
        bar.close()
        if self.group.largest(clock.signal or 0):
            return
        best = min(tried, key=lambda t: t[0])
        net.load_state_dict(weights)
        net.scale_noise(best[1])
        self.best_weights, self.calibrated = {"updates": self.ema.updates, "weights": net.state_dict()}, True
        words = [" ".join(f"{k} {t[2][k]:.4g}" for k in ("ratio", "lsd_db", "p999_ratio")) for t in (tried[0], best)]
        if not self.group.rank:
            log(f"noise scaled by {', '.join(f'{g:.2f}' for g in best[1])}: {words[0]} -> {words[1]}")

    # ------------------------------------------------------------ what is kept

    def state(self):
        """Everything that going on, and stages 3 and 4, need: plain tensors and plain Python."""
        tied = datasets.cells_of(self.dataset.plans[0].lr) if self.shape.position_channels else None
        return {
            "data_config": asdict(self.config),
            "generator_config": asdict(self.shape),
            "train_config": asdict(self.train),
            "region_cells": tied,
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "averaged": self.ema.state_dict(),
            "ema": self.best_weights or self.ema.state_dict(),
            "best": self.best,
            "calibrated": self.calibrated,
            "step": self.step,
            "epoch": self.step // self.train.epoch_steps,
            "optimizer_g": self.opt_g.state_dict(),
            "optimizer_d": self.opt_d.state_dict(),
            "guard": self.guard.state_dict(),
            "grad_scaler": self.scaler.state_dict(),
            "rng": torch.get_rng_state(),
            "planned": self.planned,
            "versions": {"torch": str(torch.__version__), "numpy": np.__version__, "python": platform.python_version()},
        }

    def save(self, path):
        """The checkpoint of this step, once: the one before it is of an earlier step, or of this one not yet calibrated."""
        if self.saved != (self.step, self.calibrated):
            utils.save_checkpoint(path, self.state())
            self.saved = self.step, self.calibrated

    def load(self, state):
        """Stand where a checkpoint stood."""
        self.generator.load_state_dict(state["generator"]), self.discriminator.load_state_dict(state["discriminator"])
        self.ema.load_state_dict(state["averaged"]), self.guard.load_state_dict(state["guard"])
        self.opt_g.load_state_dict(state["optimizer_g"]), self.opt_d.load_state_dict(state["optimizer_d"])
        self.scaler.load_state_dict(state["grad_scaler"]) if self.scaler.is_enabled() else None
        self.step, self.best, self.planned = state["step"], state["best"], state["planned"]
        self.calibrated = state.get("calibrated", False)
        self.best_weights = state["ema"] if math.isfinite(self.best) or self.calibrated else None
        torch.set_rng_state(state["rng"].cpu())

    def judge(self, scores):
        """Keep the weights of the best validation of the current phase."""
        score = scores["ratio"] + 0.01 * scores["lsd_db"] if scores else math.inf
        if score < self.best:
            self.best, self.best_weights = (
                score,
                {
                    "updates": self.ema.updates,
                    "weights": {k: v.clone() for k, v in self.ema.module.state_dict().items()},
                },
            )


def plan_length(training, clock, began, whole):
    """Fit the number of steps to --max-minutes, so that the schedule ends in time.

    Args: began: (minutes, step) where this process began to train. whole: TrainConfig of the full length.
    First after the warm-up, then again every REFIT steps: the pace of a shared machine changes.
    """
    step, again = training.step, training.planned
    if again and step % REFIT:
        return
    made, (spent, minutes) = step - began[1], map(training.group.largest, (clock.elapsed - began[0], clock.minutes))
    if not again and (made < 3 or (made < WARM_UP and spent < minutes / 5)):
        return
    usable = minutes * (
        0.85 if whole.calibrate else 0.97 if again else 0.93
    )  # the first time validations are still to come
    total = whole.content_steps + whole.adversarial_steps
    left = (
        (usable - began[0] - spent)
        * made
        / spent
        / (1 if training.fighting else 1 + 0.6 * whole.adversarial_steps / total)
    )
    fits = int(training.group.largest(max(step + 1, min(total, step + left))))
    content = (
        training.train.content_steps if training.fighting else max(step + 1, int(fits * whole.content_steps / total))
    )
    training.train = replace(training.train, content_steps=content, adversarial_steps=max(0, fits - content))
    training.planned = True
    if training.group.rank or again:
        return
    log(
        f"{spent / made * 60:.2f} s a step: {content} content and {training.train.adversarial_steps} adversarial steps fit into "
        f"{minutes:.3g} minutes"
    )


def train_model(config, path, args, group, clock):
    """Train one model to its end, or to the end of the time."""
    dataset = datasets.SRDataset(args.data_folder, "train", **asdict(config))
    earlier = [utils.previous_checkpoint(path), path]
    if args.resume and any(map(Path.exists, earlier)):
        found, state = utils.open_checkpoint(path)
        training = resumed(found, state, config, dataset, group, args)
        log(f"{found}: going on from step {training.step} of {training.steps}")
        if group.rank == 0 and found != path:
            utils.set_aside([path])  # damaged: it must not become the one before the next
    else:
        training = Training(config, *choose_settings(args, config, dataset), dataset, group, args)
        training.planned = args.max_minutes is None or hasattr(args, "content_steps")
        if group.rank == 0:
            utils.set_aside(earlier)
    announce(training, path)
    board = SummaryWriter(Path(args.runs) / path.stem) if group.rank == 0 else None
    meters, began = {}, (clock.elapsed, training.step)
    fitted, whole = clock.minutes is not None and not training.planned, training.train
    bar = utils.progress(None, f"x{config.scale}", total=training.steps)
    bar.update(training.step)
    while training.step < training.steps and not group.largest(clock.over):
        if fitted:
            plan_length(training, clock, began, whole)
        if training.step == training.train.content_steps:
            training.best = math.inf  # the adversarial phase is judged by itself
        for name, value in training.run_step().items():
            meters.setdefault(name, AverageMeter()).update(value)
        bar.total = training.steps
        bar.set_postfix({name: f"{meter.val:.3g}" for name, meter in meters.items()}, refresh=False), bar.update()
        if training.step % training.train.epoch_steps == 0 or training.step == training.steps:
            close_epoch(training, path, meters, board, clock)
            meters = {}
    bar.close()
    if (
        training.step >= training.steps
        and training.train.calibrate
        and training.shape.noise_channels
        and not training.calibrated
    ):
        training.calibrate(clock)
    finish(training, path, args, board)


def resumed(path, state, config, dataset, group, args):
    """A Training as the checkpoint left it; options typed differently are refused."""
    typed = given(args, TrainConfig)
    typed = {k: getattr(replace(TrainConfig(), **typed), k) for k in typed}
    asked = {**typed, **given(args, models.GeneratorConfig), **asdict(config)}
    with utils.reading(path):
        if "generator" not in state:
            raise DataError(
                f"{path}: an export, which cannot be gone on with; name the checkpoint it came from, or use --init"
            )
        stored = {**state["train_config"], **state["generator_config"], **state["data_config"]}
        odd = [
            f"{k} {stored[k]} (asked: {asked[k]})"
            for k in asked
            if k != "units" and plain(stored[k]) != plain(asked[k])
        ]
    if odd:
        raise DataError(
            f"--resume goes on with the checkpoint's settings; it has {', '.join(odd)}: give the data options of the first run and "
            "leave the others out, or train anew without --resume"
        )
    with utils.reading(path):
        tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in state["train_config"].items()}
        train, shape = TrainConfig(**tuples), models.generator_config(state)
    training = Training(config, train, shape, dataset, group, args)
    with utils.reading(path):
        training.load(state)
    return training


def plain(value):
    return list(value) if isinstance(value, tuple) else value


def announce(training, path):
    """Print the resolved settings."""
    if training.group.rank:
        return
    plan, count = training.dataset.plans[0], sum(p.numel() for p in training.generator.parameters())
    log(
        f"training {path}: x{training.config.scale}, target {training.config.target}, {len(training.dataset)} files, region {plan.lr.extent} ({plan.words}), "
        f"{plan.lr.rows} x {plan.lr.cols} LR cells; {count / 1e6:.2f} M weights on {training.group.device}, {training.group.size} process(es), "
        f"{torch.get_num_threads()} thread(s), {training.amp or 'float32'}"
    )
    if training.config.target == "interpolate" and plan.kind != "hr":
        log(
            "WARNING: HR is an interpolation of the input, so the network learns to interpolate; detail below the LR cell is NOT verified by "
            "such data. With files at the HR step use --target coarsen, with matching pairs --target paired."
        )
    for title, part in (("training", training.train), ("generator", training.shape)):
        words = " ".join(f"{k}={v}" for k, v in asdict(part).items())
        log(
            textwrap.fill(
                f"{title} settings: {words}",
                140,
                subsequent_indent="  ",
                break_long_words=False,
                break_on_hyphens=False,
            )
        )


def close_epoch(training, path, meters, board, clock):
    """Validate, say where things stand, keep the best and the last."""
    scores = training.validate()
    training.judge(scores)
    if training.group.rank:
        return
    training.save(path)
    values = {
        **{name: meter.avg for name, meter in meters.items()},
        **{f"valid/{k}": v for k, v in scores.items()},
        "learning_rate": training.opt_g.param_groups[0]["lr"],
    }
    log(
        f"step {training.step}/{training.steps}  {clock.elapsed:.1f} min  "
        + "  ".join(f"{k} {v:.4g}" for k, v in values.items())
    )
    for name, value in values.items():
        board.add_scalar(name, value, training.step)
    if scores:
        lr, hr, made, (r0, r1, c0, c1) = training.shown
        board.add_figure(
            "valid/maps", utils.plot_windows(lr[0, 0, r0:r1, c0:c1], hr[0, 0], made[:, 0, 0]), training.step
        )
        figure = utils.plot_qq(hr[0, 0].cpu().numpy(), made[:, 0, 0].cpu().numpy(), caption="one held-out window")
        board.add_figure("valid/qq", figure, training.step)


def finish(training, path, args, board):
    """The last checkpoint and the export."""
    if training.group.rank:
        return
    training.save(path)
    board.close()
    log(
        f"wrote {path} at step {training.step} of {training.steps}"
        + ("" if training.step >= training.steps else "; go on with --resume")
    )
    if args.export:
        state = training.state()
        utils.save_checkpoint(
            args.export,
            {
                k: state[k]
                for k in ("data_config", "generator_config", "train_config", "region_cells", "ema", "step", "versions")
            },
        )
        log(f"wrote {args.export} ({Path(args.export).stat().st_size / 1e6:.1f} MB)")


def main(argv=None):
    args = parse_args(argv)
    plans = plan_models(args)
    if args.export and len(plans) > 1:
        raise DataError("--export names one file, but several models are to be trained; add --lr-step")
    group, clock = Group(args.device), Clock(args.max_minutes)
    for k, (config, path) in enumerate(plans):
        clock.start(len(plans) - k)
        try:
            train_model(config, path, args, group, clock)
        except FloatingPointError as error:
            raise DataError(
                f"the loss is not finite: {error}; "
                + (f"{path} keeps the last good step" if path.exists() else f"{path} was not written yet")
                + "; try a lower --learning-rate or --amp off"
            ) from None
        ended = int(group.largest(clock.signal or 0))  # it may have reached one process of many
        if ended:
            log(f"ended by {signal.Signals(ended).name}; go on with --resume")
            return 128 + ended
    if group.size > 1:
        dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    utils.run_stage(main)
