"""Trains one generator: a content phase (generator alone), an adversarial phase, validation, checkpoints.

Reads    {data_folder}/PreTrain.json and the files it lists, through datasets.py.
Writes   the checkpoint (all that resuming and stages 3 and 4 need), TensorBoard events, an export of the generator.

    from training import Clock, Group, train_model
    train_model(config, "Data/SavedModels/pre_srgan_x100.pth", args, Group("auto"), Clock(minutes=20))
"""

import contextlib
import itertools
import math
import os
import platform
import shlex
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel

import critic
import datasets
import limits
import models
import predictors
import static
import utils
from processes import SAVING, Clock, Group
from settings import RECIPES, GeneratorConfig, TrainConfig, given
from threads import Threads
from utils import AverageMeter, DataError, log
from validation import Validator, as_tensors, assess, draw_windows, merit
from windows import Windows, window_sides

WARM_UP = 200  # steps of linear warm-up; the length of a run with --max-minutes is first fitted after them
REFIT = 20  # steps after which that length is fitted again: the pace of a shared machine changes
FEW = 200  # steps below which a generator has learned little, whatever its schedule
PRICE = 0.03  # of merit that the adversarial phase may cost: what it gives to texture is hardly in the merit
LEAST_CROP = 48  # pixels: the critic's patches see about 60 to each side

__all__ = ["Clock", "Group", "command_to_resume", "train_model"]


def train_model(config, path, args, group, clock):
    """Train one model to its last step, to the end of the allowed time, or to a signal; save it each time.

    Args: config: DataConfig. path: checkpoint file. args: options of 2train.py. group: Group. clock: Clock, started.
    Returns: True where the last step was made.
    Raises: DataError: the data, the settings or the checkpoint to resume do not fit, or another training writes it.
        FloatingPointError: a loss or gradient is not finite.
    """
    with hold(path, args.export, group):
        return _train(config, path, args, group, clock)


@contextlib.contextmanager
def hold(path, export, group):
    """Hold checkpoint and export for this training alone; refuses at once what cannot be written at its end.

    Only the first of several processes holds them.
    """
    files = [Path(file) for file in (path, export) if file] if group.rank == 0 else []
    if folder := next((file for file in files if file.is_dir()), None):
        raise DataError(f"{folder}: a folder; expected the name of a file to write")
    if len({os.path.realpath(file) for file in [*files, utils.previous_checkpoint(path)]}) <= len(files) and files:
        raise DataError(f"--export {export} would overwrite the checkpoint {path}; give it a name of its own")
    with contextlib.ExitStack() as stack:
        for file in files:
            stack.enter_context(utils.alone(file.with_name(f".{file.name}.lock"), file))
        yield


def _train(config, path, args, group, clock):
    """train_model, alone at its files."""
    dataset = datasets.SRDataset(args.data_folder, "train", **asdict(config))
    state = open_state(config, path, args, group, dataset)
    beside = {"maps": None, "predictors": None}
    if state.static:
        beside["maps"] = {plan.core: state.static.on(plan.core) for plan in dataset.plans}
    if state.predictors:
        beside["predictors"] = state.predictors.of_days(predictors.days_of(dataset))
    loader, validator = WindowLoader(state, dataset, **beside), Validator(state, dataset, **beside)
    loader.prepare(state.step).result()  # refuses where the data have no such window, before anything is moved away
    make_room(state, path, args)
    announce(state, dataset, path, validator.held_out)
    board = Board(Path(args.runs) / path.stem, state) if group.rank == 0 else None
    threads = Threads(args.threads, "step", measure=group.size == 1 and group.device.type == "cpu")
    meters, began, whole = {}, (clock.elapsed, state.step), state.train
    fitted = clock.minutes is not None and not state.planned
    bar = utils.progress(None, f"x{config.scale}: step", total=state.steps, initial=state.step)

    def judge():
        with clock.validation():
            scores = validator.validate(state)
        state.keep_best(scores)
        if group.rank == 0:
            state.save(path)
            board.report(state, {name: meter.avg for name, meter in meters.items()}, scores, validator.shown, clock)
        meters.clear()

    while state.step < state.steps and not group.largest(clock.over):
        if clock.minutes is not None:
            estimate_validation(state, clock, validator, state.step - began[1])
        if fitted:
            fit_length(state, clock, began, whole)
        if state.step == state.train.content_steps:
            state.best += PRICE
        with threads.piece():
            losses = train_step(state, loader)
        for name, value in losses.items():
            meters.setdefault(name, AverageMeter()).update(value)
        bar.total = state.steps
        bar.set_postfix({name: f"{meter.val:.3g}" for name, meter in meters.items()}, refresh=False), bar.update()
        if state.step % state.train.epoch_steps == 0 or state.step == state.steps:
            judge()
    bar.close()
    clock.reserve = 0.0
    if not group.largest(clock.signal or 0):  # a signal leaves no time
        if state.judged != state.step:
            judge()
        if state.step > began[1]:
            clock.reserve = clock.one + SAVING  # for one more try
            state.noise_scale = validator.calibrate(state, lambda: group.largest(clock.over))
    if group.rank == 0:
        board.close()
        finish(state, path, args.export)
    return state.step >= state.steps


# ---------------------------------------------------------------- settings


def choose_settings(args, config, dataset):
    """(TrainConfig, GeneratorConfig) of a new model: the recipe's, then what was typed, then what follows from both.

    Raises: DataError: a setting has no such value.
    """
    recipe, network = RECIPES.get(getattr(args, "recipe", TrainConfig.recipe), ({}, {}))
    train = TrainConfig(**{**recipe, **given(args, TrainConfig)})
    network = {"conserve": config.target != "paired", **network, **given(args, GeneratorConfig)}
    shape = GeneratorConfig(scale=config.scale, **{**network, "position_channels": 0})  # refused before work is done
    if "window" not in given(args, TrainConfig) and not network.get("position_channels"):
        train = fitting_windows(train, config, dataset, fixed=given(args, TrainConfig))
    if args.static:
        cores = [plan.core for plan in dataset.plans]
        shape = replace(shape, static_fields=static.describe_fields(args.static, cores))
    if args.predictors:
        days, hours = predictors.days_of(dataset), dataset.files.period.hours
        shape = replace(shape, predictor_fields=predictors.describe_predictors(args.predictors, days, hours))
    if not train.content_steps + train.adversarial_steps:
        raise DataError("--content-steps 0 and --adversarial-steps 0: expected a step or more to train")
    if not shape.noise_channels:
        train = replace(train, members=1)  # without noise all members are the same
    if network.get("position_channels"):
        train = replace(train, window=(), crop=0)
        positions = {"position_channels": network["position_channels"], "position_shape": dataset.plans[0].core.shape}
        shape = replace(shape, **positions)
    if shape.transform != "log":
        rain = np.concatenate([dataset[k][0].ravel() for k in range(0, len(dataset), max(1, len(dataset) // 50))])
        fitted = models.TRANSFORMS[shape.transform].fit(rain[np.isfinite(rain)])
        shape = replace(shape, transform_parameters=fitted)
    return train, shape


def fitting_windows(train, config, dataset, *, fixed=()):
    """The TrainConfig with its windows, or with the largest smaller ones that region and gaps leave room for.

    Args: fixed: names of the settings that were typed: with "crop" only windows of fewer crops are tried.
    Raises: DataError: not even a window of the smallest crop has room.
    """
    refusal, coarse = None, bool(train.coarse and GeneratorConfig(scale=config.scale).coarse)
    crops = [train.crop]
    while crops[-1] // 2 >= max(config.scale, LEAST_CROP) and "crop" not in fixed:
        crops.append(crops[-1] // 2)
    for crop, window in itertools.product(crops, dict.fromkeys((train.window, (2, 3), (2, 2), (1, 2), (1, 1)))):
        fitted = replace(train, window=window, crop=crop)
        side, sides = window_sides(fitted, config, coarse)
        widest = {"sides": sides and (sides[1],) * 2, "crop": side, "valid_share": train.valid_share}
        try:
            for part in ("train", "valid") if train.valid_share else ("train",):
                Windows(dataset, part=part, seed=train.seed, **widest).batch(0, 1)
        except DataError as error:
            refusal = refusal or error  # that of the largest window
            continue
        if fitted != train:
            log(
                f"{_windows_typed(fitted)}: gaps or edges of the data leave no room for the default, "
                f"{_windows_typed(train)}"
            )
        return fitted
    raise refusal


def _windows_typed(train):
    return f"--window {' '.join(map(str, train.window))} --crop {train.crop}"


def resumed_settings(path, kept, args, config):
    """(TrainConfig, GeneratorConfig) of a checkpoint to go on with.

    Raises: DataError: an export, not a whole checkpoint, or an option was typed that differs from its settings.
    """
    with utils.reading(path):
        if "generator" not in kept:
            raise DataError(f"{path}: an export, which cannot be gone on with; name its checkpoint, or use --init")
        tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in kept["train_config"].items()}
        train, shape = TrainConfig(**tuples), models.generator_config(kept)
        typed = replace(TrainConfig(), **given(args, TrainConfig))
        asked = {name: getattr(typed, name) for name in given(args, TrainConfig)}
        asked |= {**given(args, GeneratorConfig), **asdict(config)}
        stored = {**asdict(train), **asdict(shape), **kept["data_config"]}
        odd = [
            f"{name} {stored[name]} (asked: {value})"
            for name, value in asked.items()
            if name != "units" and _as_list(stored[name]) != _as_list(value)
        ]
    if odd:
        raise DataError(
            f"--resume goes on with the checkpoint's settings; it has {', '.join(odd)}: give the data options of the "
            "first run and leave the others out, or train anew without --resume"
        )
    return train, shape


def _as_list(value):
    return list(value) if isinstance(value, tuple) else value


def reduced_precision(choice, device):
    """The torch dtype of --amp, or the one that the device is fast at; None for float32."""
    if choice != "auto":
        return {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[choice]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    # AMX and AVX512 units; emulated, and slow, elsewhere
    return torch.bfloat16 if getattr(torch.cpu, "_is_avx512_bf16_supported", bool)() else None


# ---------------------------------------------------------------- state


class State:
    """Networks, optimisers and where the training of one model stands: all that a checkpoint keeps.

    Args: config, train, shape: DataConfig, TrainConfig, GeneratorConfig. args: options of 2train.py. group: Group.
    """

    def __init__(self, config, train, shape, args, group):
        self.noise_scale = shape.noise_scale
        shape = replace(shape, noise_scale=(1.0, 1.0))  # in use only
        self.config, self.train, self.shape, self.group = config, train, shape, group
        torch.manual_seed(train.seed)
        self.generator, self.discriminator = models.Generator(shape), models.CRITICS[train.critic]()
        if train.initial == "normal":
            models.initialise_normal(self.generator)
        if args.init:
            with utils.reading(args.init):
                initial = models.load_generator(utils.load_checkpoint(args.init))
                refuse_fields(args.init, initial.config, shape)
                self.generator.load_state_dict(initial.state_dict())
        for net in (self.generator, self.discriminator):
            net.to(group.device, memory_format=torch.channels_last)
        self.averaged = averaged_model(self.generator, train.ema)
        kind = partial({"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[train.optimizer], fused=True)
        decay = {"weight_decay": train.weight_decay} if train.optimizer == "adamw" else {}
        self.opt_g = kind(self.generator.parameters(), train.learning_rate, betas=(0.9, 0.99), **decay)
        self.opt_d = kind(self.discriminator.parameters(), train.discriminator_rate, betas=(0.0, 0.99))
        self.guards, self.balance = (critic.Guard(), critic.Guard()), [0.0, 0.0]  # at HR, in coarse steps
        self.amp = reduced_precision(args.amp, group.device)
        self.scaler = torch.amp.GradScaler(enabled=self.amp == torch.float16)
        self.vgg = None
        if "vgg" in train.content + train.adversarial_content:
            self.vgg = models.TruncatedVGG19(5, 4, args.vgg_weights).to(group.device)
        self.step, self.best, self.best_weights, self.planned = 0, math.inf, None, True
        self.judged, self.scores, self.whole_steps, self.interpolated = 0, {}, self.steps, False
        self.data_folder, self.knows, self.trained_on = args.data_folder, {}, {}
        self.saved, self.bytes = None, 0  # step of the last checkpoint; sent to other processes
        self.region_cells = None  # of a generator that is tied to one region
        self.opened = None  # the file it was resumed from
        self.static, self.predictors = None, None  # StaticFields, Predictors
        if args.compile:  # not the trunk: the layout of its edges' gradients is not the compiler's (torch 2.14)
            self.generator.net.stages = torch.compile(self.generator.net.stages, dynamic=False)

    @property
    def steps(self):
        """Number of steps of both phases."""
        return self.train.content_steps + self.train.adversarial_steps

    @property
    def adversarial(self):
        """True in the adversarial phase."""
        return self.step >= self.train.content_steps

    def coarse(self, step):
        """True where this step is made at the generator's coarser grid: every other one."""
        return bool(self.train.coarse and self.shape.coarse and step % 2)

    def autocast(self):
        """The context in which the networks compute in reduced precision."""
        return torch.autocast(self.group.device.type, self.amp, enabled=self.amp is not None)

    def averaged_weights(self):
        """The averaged generator as a checkpoint keeps it: number of updates and weights."""
        return {"updates": int(self.averaged.n_averaged) - 1, "weights": self.averaged.module.state_dict()}

    def keep_best(self, scores):
        """Keep the averaged weights of the best validation, by CRPS and realism together."""
        self.judged = self.step
        score = merit(scores) if scores else math.inf
        if score < self.best:
            kept = self.averaged_weights()
            self.best, self.scores = score, {name: float(value) for name, value in scores.items()}
            self.best_weights = {**kept, "weights": {k: v.clone() for k, v in kept["weights"].items()}}

    def warnings(self):
        """Why stages 3 and 4 should not rely on this model, in words; [] where nothing is known against it."""
        words, ratio = [], self.scores.get("ratio", 0.0)
        if self.step < (least := max(FEW, self.whole_steps // 4)):
            words.append(
                f"trained for only {self.step} steps (expected {least} or more): its detail is not to be relied on; "
                "train longer, with --resume or more --max-minutes"
            )
        if not ratio < 1 and not self.interpolated:
            words.append(
                f"its CRPS on validation windows is {ratio:.3g} times that of bilinear interpolation: bilinear "
                "interpolation is the better estimate; train longer, or on more days"
            )
        return words

    def checkpoint(self):
        """Everything that resuming, and stages 3 and 4, need: plain tensors and plain Python."""
        return {
            "data_config": asdict(self.config),
            "generator_config": asdict(replace(self.shape, noise_scale=self.noise_scale)),
            "train_config": asdict(self.train),
            "region_cells": self.region_cells,
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "averaged": self.averaged_weights(),
            "ema": self.best_weights or self.averaged_weights(),
            "best": self.best,
            "step": self.step,
            "epoch": self.step // self.train.epoch_steps,
            "optimizer_g": self.opt_g.state_dict(),
            "optimizer_d": self.opt_d.state_dict(),
            "guards": [guard.state_dict() for guard in self.guards],
            "balance": list(self.balance),
            "grad_scaler": self.scaler.state_dict(),
            "rng": torch.get_rng_state(),
            "planned": self.planned,
            "judged": self.judged,
            "scores": self.scores,
            "whole_steps": self.whole_steps,
            "data_folder": str(self.data_folder),
            "knows": self.knows,
            "trained_on": self.trained_on,
            "static_files": self.static.files if self.static else [],
            "predictor_files": self.predictors.files if self.predictors else [],
            "warnings": self.warnings(),
            "versions": {"torch": str(torch.__version__), "numpy": np.__version__, "python": platform.python_version()},
        }

    def export(self):
        """The part of a checkpoint that stages 3 and 4 need: the generator with averaged weights, and all settings."""
        names = (
            "data_config",
            "generator_config",
            "train_config",
            "region_cells",
            "ema",
            "knows",
            "trained_on",
            "step",
            "warnings",
            "versions",
        )
        return {name: value for name, value in self.checkpoint().items() if name in names}

    def save(self, path, again=False):
        """Write the checkpoint of this step, once or, with what was found out since, again: `.previous` then stays."""
        if again or self.saved != self.step:
            utils.save_checkpoint(path, self.checkpoint(), keep=self.saved != self.step)
            self.saved = self.step

    def load(self, kept):
        """Stand where a checkpoint stood."""
        self.generator.load_state_dict(kept["generator"]), self.discriminator.load_state_dict(kept["discriminator"])
        self.averaged.module.load_state_dict(kept["averaged"]["weights"])
        self.averaged.n_averaged.fill_(kept["averaged"]["updates"] + 1)
        self.opt_g.load_state_dict(kept["optimizer_g"]), self.opt_d.load_state_dict(kept["optimizer_d"])
        for guard, state in zip(self.guards, kept["guards"], strict=True):
            guard.load_state_dict(state)
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(kept["grad_scaler"])
        self.step, self.best, self.planned = kept["step"], kept["best"], kept["planned"]
        if type(self.step) is not int or not 0 <= self.step <= self.steps:
            raise ValueError(f"step {self.step!r}, expected one of 0 to {self.steps}")
        self.balance = list(kept["balance"])
        self.judged, self.scores = kept.get("judged", self.step), kept.get("scores", {})
        self.whole_steps = kept.get("whole_steps", self.steps)
        self.best_weights = kept["ema"] if math.isfinite(self.best) else None
        torch.set_rng_state(kept["rng"].cpu())


def refuse_fields(path, one, other):
    """Raise DataError where a GeneratorConfig of a file to start from has other static fields or predictors."""
    for kind in ("static_fields", "predictor_fields"):
        own, asked = (", ".join(field["name"] for field in getattr(shape, kind)) or "none" for shape in (one, other))
        if own != asked:
            raise DataError(
                f"--init {path}: its {kind.replace('_', ' ')} are {own}, those of this training {asked}; expected the "
                "same: give them with --static and --predictors, or leave --init out"
            )


def open_state(config, path, args, group, dataset):
    """A new State, or with --resume that of the checkpoint at `path` (or of the one before it, where it is damaged).

    Raises: DataError: settings or checkpoint do not fit.
    """
    found = kept = None
    if args.resume and (path.exists() or utils.previous_checkpoint(path).exists()):
        found, kept = args.opened or utils.open_checkpoint(path)
        settings = resumed_settings(found, kept, args, config)
    else:
        settings = choose_settings(args, config, dataset)
    if settings[0].batch < group.size:
        raise DataError(
            f"--batch {settings[0].batch}: fewer samples a step than the {group.size} processes that share them; "
            f"expected a sample for each, for example --batch {8 * group.size}"
        )
    check_room(*settings, config, group, dataset)
    state = State(config, *settings, args, group)
    state.interpolated = dataset.plans[0].interpolated
    period, cells = dataset.files.period, map(dataset.lr, range(len(dataset)))
    state.knows = limits.resumed(found, kept, period) or limits.learn(cells, period)
    state.trained_on = datasets.trained_on(dataset)
    refuse_list(state, found, kept)
    files = args.static or (kept or {}).get("static_files", [])
    days = args.predictors or (kept or {}).get("predictor_files", [])
    if bool(files) != bool(state.shape.static_fields):
        raise DataError(f"--static: {found} was trained without static fields; leave it out, or train anew")
    if bool(days) != bool(state.shape.predictor_fields):
        raise DataError(f"--predictors: {found} was trained without predictors; leave it out, or train anew")
    if files:
        state.static = static.StaticFields(files, state.shape.static_fields)
    if days:
        state.predictors = predictors.Predictors(days, state.shape.predictor_fields, period.hours)
    if state.shape.position_channels:
        state.region_cells = datasets.cells_of(dataset.plans[0].lr)
    if kept:
        with utils.reading(found):
            state.load(kept)
        log(f"{found}: going on from step {state.step} of {state.steps}")
    else:
        state.planned = args.max_minutes is None or hasattr(args, "content_steps")
    state.opened = found
    return state


def check_room(train, shape, config, group, dataset):
    """Raise DataError where memory does not suffice for a training step: before anything is made or moved.

    What is counted is the least that it takes: weights, gradients, averages and moments, and of the windows the
    features of the generator, which the backward pass needs.
    """
    plan, (crop, sides) = dataset.plans[0], window_sides(train, config)
    seen = [min(n, sides[1] if sides else n) for n in plan.lr.shape]  # LR cells
    made = [min(n, crop or n) for n in seen]
    weights, features = models.least_numbers(shape, math.prod(seen), math.prod(made))
    samples, each = -(-train.batch // group.size), 2 if group.device.type == "cuda" else 4
    utils.check_memory(
        6 * 4 * weights + each * features * samples * train.members,
        f"a step of {samples} samples x {train.members} members of {made[0] * config.scale} x "
        f"{made[1] * config.scale} pixels with {weights:,} weights or more",
        utils.LESS,
        torch.cuda.mem_get_info(group.device)[0] if group.device.type == "cuda" else None,
    )


def refuse_list(state, found, kept):
    """Raise DataError where the training list holds no rain, or is another than that of the checkpoint to resume."""
    if not state.knows.get("lr_quantiles", True):
        raise DataError(
            f"{state.data_folder}: no LR cell of the training list holds 0.1 mm or more; expected days of rain to "
            "learn from"
        )
    before, now = (kept or {}).get("trained_on"), state.trained_on
    if before and before["digest"] != now["digest"]:
        then, today = (sorted(day for days in part["days"].values() for day in days) for part in (before, now))
        then, today = (f"{len(days)} files, {utils.when(days[0])} to {utils.when(days[-1])}" for days in (then, today))
        raise DataError(
            f"--resume: {found} was trained on other files ({then}) than {state.data_folder} lists now ({today}), or "
            "their values or order have changed; give the list of the first run with --data-folder, or train anew on "
            "this one, from those weights with --init"
        )


def make_room(state, path, args):
    """Move an earlier checkpoint away: that of another run, or a damaged one, which must not become `.previous`."""
    if state.group.rank or state.opened == path:
        return
    if state.opened is None:
        say_discarded(path, args, state.group)
    utils.set_aside([utils.previous_checkpoint(path), path] if state.opened is None else [path])


def say_discarded(path, args, group):
    """Say what a new run moves away: the earlier checkpoint's file, step and date, and the command to go on with it."""
    if not path.is_file():
        return
    date = time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))
    try:
        stood = f"at step {utils.load_checkpoint(path)['step']}"
    except (DataError, KeyError) as error:
        stood = f"which cannot be gone on with ({error})"
    log(
        f"{path}: a model of {date} stands here, {stood}; without --resume training begins anew and it is moved away "
        f"(what would have gone on with it: {command_to_resume(args, path, group)})"
    )


def command_to_resume(args, path, group, *, several=False):
    """The command that goes on with the checkpoint at `path`, or with all the models of this command.

    The checkpoint has the settings, the data folder too; what it has not (device, files) is repeated as it was typed.
    """
    script = sys.argv[0] if Path(sys.argv[0]).name == "2train.py" else "2train.py"
    words = ["python", script] if group.size == 1 else ["torchrun", "--nproc-per-node", str(group.size), script]
    if several:
        return shlex.join([*words, *(word for word in args.typed if word != "--resume"), "--resume"])
    words += ["--resume", "--checkpoint", str(path)]
    for name in ("export", "vgg_weights", "threads"):
        words += [f"--{name.replace('_', '-')}", str(getattr(args, name))] if getattr(args, name) else []
    for name, default in (("runs", "runs"), ("device", "auto"), ("amp", "auto")):
        words += [f"--{name}", getattr(args, name)] if getattr(args, name) != default else []
    return shlex.join(words + ["--compile"] * args.compile)


def averaged_model(generator, decay):
    """The exponential moving average of a generator's weights, quick at first: decay min(decay, (1 + n) / (10 + n))."""

    def average(mine, new, updates):
        n = int(updates)
        if mine[0].is_floating_point():
            torch._foreach_lerp_(mine, new, 1 - min(decay, (1 + n) / (10 + n)))
        else:
            for old, number in zip(mine, new, strict=True):
                old.copy_(number)

    averaged = AveragedModel(generator, multi_avg_fn=torch.no_grad()(average), use_buffers=True)
    averaged.n_averaged.fill_(1)  # the start counts: the first update would otherwise replace it
    averaged.module.eval().requires_grad_(False)
    return averaged


# ---------------------------------------------------------------- windows


class WindowLoader:
    """Cuts the training windows of the next step in another thread while the networks work on this one."""

    def __init__(self, state, dataset, maps=None, predictors=None):
        train, self.state = state.train, state
        common = {
            "valid_share": train.valid_share,
            "turn": not (state.shape.position_channels or maps or predictors),  # ground and wind keep their north
            "amounts": train.amounts,
            "seed": train.seed,
            "maps": maps,
            "predictors": predictors,
        }
        self.windows = [
            Windows(dataset, crop=crop, sides=sides, **common)
            for crop, sides in (window_sides(train, state.config, coarse) for coarse in (False, True))
        ]
        if train.coarse_archive:
            grid = state.generator.net.grids[state.shape.coarse]
            crop, sides = window_sides(train, state.config, coarse=True)
            alone = state.coarse(1) and maps is None and predictors is None
            archive = datasets.coarse_archive(train.coarse_archive, dataset, alone and grid)
            self.windows.append(Windows(archive, crop=crop, sides=sides, **{**common, "valid_share": 0.0}))
        self.batch, (self.first, self.count) = train.batch, state.group.share(train.batch)
        self.weight = self.count * state.group.size / train.batch  # of this process's mean in the mean of all
        self.thread, self.coming = ThreadPoolExecutor(1, "windows"), None

    def prepare(self, step):
        """Begin to cut this process's windows of a step; a Future."""
        if self.coming is None or self.coming[0] != step:
            archive = self.state.train.coarse_archive and step % 4 == 3
            windows = self.windows[2 if archive else self.state.coarse(step)]
            self.coming = step, self.thread.submit(windows.batch, step, self.batch, self.first, self.count)
        return self.coming[1]

    def get(self, step, device):
        """The windows of a step: (lr (N, 1, h, w), hr (N, 1, H, W), weight (N, 1, 1, 1), box, file names), mm, and
        (static fields (N, S, h * scale, w * scale) or None, predictors (N, P, h, w) or None)."""
        batch = as_tensors(self.prepare(step).result(), device)
        lr, hr, weight, *beside = (batch[k] for k in ("lr", "hr", "weight", "maps", "predictors"))
        return lr, hr, weight[:, None, None, None], batch["box"], batch["source"], beside


def step_noise(state, first, lr, box, stages=None):
    """Noise of the samples of lr (N, 1, h, w), the first of which is `first`: the same on any number of processes."""
    drawn = []
    for sample in range(first, first + len(lr)):
        key = np.random.SeedSequence([state.train.seed, state.step, sample]).generate_state(1, np.uint64)[0]
        source = torch.Generator().manual_seed(int(key >> np.uint64(1)))
        drawn.append(state.generator.draw_noise(state.train.members, lr.shape[-2:], box, source, stages=stages))
    return [
        None if entry[0] is None else torch.stack(entry, 1).flatten(0, 1).to(state.group.device)
        for entry in zip(*drawn, strict=True)
    ]


# ---------------------------------------------------------------- one step


def train_step(state, loader):
    """Update the generator and, in the adversarial phase, the discriminator once (Ledig et al. 2017).

    Returns: {"Loss_c": content, "Loss_d": discriminator, "Loss_g": adversarial, "critic_right": share of patches in
        which real rain got more than made rain, "gradient_c" and "gradient_g": norms of the content's and the critic's
        gradient at the generator's output}, means over all processes; the content phase has the first alone. Names of
        a coarse step, at the generator's coarser grid, end in _coarse.
    Raises: FloatingPointError: a loss or gradient is not finite; names the step and the files.
    """
    train, scaler = state.train, state.scaler
    rate = learning_rate_share(train, state.step)
    set_learning_rate(state.opt_g, rate * train.learning_rate)
    lr, hr, weight, box, files, beside = loader.get(state.step, state.group.device)
    coarse = state.coarse(state.step)
    noise = step_noise(state, loader.first, lr, box, state.shape.coarse if coarse else None)
    state.opt_g.zero_grad(set_to_none=True), state.opt_d.zero_grad(set_to_none=True)

    # members of the generator against the truth
    with state.autocast():
        members, detail = make_members(state.generator, lr, noise, train.members, box, *beside)  # (M, N, 1, H, W)
    hr = F.avg_pool2d(hr, hr.shape[-1] // members.shape[-1])  # in a coarse step
    losses = {"Loss_c": content_loss(state, members, hr, weight)}
    total = losses["Loss_c"] + train.restraint * rate * detail.square().mean()

    loader.prepare(state.step + 1)  # now: the backward pass leaves the interpreter to the other thread
    if state.adversarial:
        slowed = state.guards[coarse].share * max(rate, critic.SLOWEST)
        set_learning_rate(state.opt_d, slowed * train.discriminator_rate)
        known = lr[..., box[0] : box[1], box[2] : box[3]]
        rain = critic.Rain(known, hr, members[0], detail)
        detail.backward(critic.duel(state, rain, total, losses, loader.weight, coarse))
    else:
        scaler.scale(total * loader.weight).backward()

    values = torch.stack([value.detach().float() * loader.weight for value in losses.values()])
    state.group.mean([values])
    losses = dict(zip(losses, values.tolist(), strict=True))
    if not all(map(math.isfinite, losses.values())):
        raise FloatingPointError(f"step {state.step}: {losses} from {', '.join(sorted(set(files)))}")
    update(state, state.generator, state.opt_g, files)
    if state.adversarial:
        update(state, state.discriminator, state.opt_d, files)
        state.guards[coarse].update(losses["Loss_d"], losses["critic_right"])
    state.averaged.update_parameters(state.generator)
    state.step += 1
    return {f"{name}_coarse" if coarse else name: value for name, value in losses.items()}


def make_members(generator, lr, noise, count, box, maps=None, predictors=None):
    """Make `count` members (M, N, 1, H, W) of a batch. Also returns the output before amounts."""
    lr, maps, predictors = (x if x is None else x.repeat(count, 1, 1, 1) for x in (lr, maps, predictors))
    detail = generator.detail(*generator.encode(lr, noise[0], maps, predictors), noise[1:], box, maps)
    return generator.finish(lr, detail, box).unflatten(0, (count, -1)), detail


def content_loss(state, members, hr, weight):
    """Content loss of the current phase (a sum where several are joined by +), and the structure score."""
    names = (state.train.adversarial_content if state.adversarial else "") or state.train.content
    weighted = members * weight, hr * weight
    pools = state.train.pools
    if state.coarse(state.step):
        finer = state.shape.scale // state.generator.net.grids[state.shape.coarse]
        pools = tuple(dict.fromkeys(max(1, p // finer) for p in pools))
    loss = sum(models.content_loss(name, *weighted, pools=pools, vgg=state.vgg) for name in names.split("+"))
    if any(state.train.structure):
        parts = models.structure_score(members, hr, weight)
        loss = loss + sum(share * part for share, part in zip(state.train.structure, parts, strict=True))
    return loss


def update(state, net, optimizer, files):
    """Average the gradients over the processes, limit them, and take one step of an optimiser."""
    state.bytes += state.group.mean([p.grad for p in net.parameters() if p.grad is not None])
    state.scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(net.parameters(), state.train.clip_norm or math.inf)
    if not (state.scaler.is_enabled() or torch.isfinite(norm)):  # the scaler skips such steps by itself
        raise FloatingPointError(f"step {state.step}: gradient norm {norm} from {', '.join(sorted(set(files)))}")
    if not state.train.clip_norm:
        utils.clip_gradient(optimizer, 1.0)
    state.scaler.step(optimizer)
    state.scaler.update()


# ---------------------------------------------------------------- schedule


def learning_rate_share(train, step):
    """Learning rate of a step over the configured one: linear warm-up and cosine decay in each phase, or a step down.

    Args: train: TrainConfig. step: 0, 1, ... over both phases.
    """
    adversarial = step >= train.content_steps
    first, length = (train.content_steps, train.adversarial_steps) if adversarial else (0, train.content_steps)
    done = (step - first) / max(length, 1)
    if train.schedule == "half":
        return 0.1 if done >= 0.5 else 1.0
    rising = min(1.0, (step - first + 1) / min(WARM_UP, length / 4 + 1))
    return rising * 0.5 * (1 + math.cos(math.pi * done)) * (0.4 if adversarial else 1.0)


def set_learning_rate(optimizer, rate):
    """Set the learning rate of an optimiser by its ratio to the present one."""
    shrink = rate / optimizer.param_groups[0]["lr"]
    if math.isfinite(shrink) and shrink > 0:
        utils.adjust_learning_rate(optimizer, shrink)


def estimate_validation(state, clock, validator, made):
    """Before the first validation: time one of its windows, after 20 steps or a tenth of the time.

    Args: made: steps since this process began to train.
    """
    if (
        validator.held_out
        and not clock.one
        and made
        and state.group.largest(made >= REFIT or clock.elapsed > clock.minutes / 10)
    ):
        windows = draw_windows(validator.held_out, 1, state.group)
        assess(state.averaged.module, windows, state.group)  # the first is slow: memory and kernels are prepared
        with clock.validation(len(windows) / -(-state.train.valid_windows // state.group.size)):
            assess(state.averaged.module, windows, state.group)


def fit_length(state, clock, began, whole):
    """Fit the number of steps to --max-minutes, so that the schedule and the last validation end in time.

    First after the warm-up, or after a fifth of the time; then again every REFIT steps.

    Args: began: (minutes, step) where this process began to train. whole: TrainConfig of the full length.
    """
    step, again, largest = state.step, state.planned, state.group.largest
    if again and step % REFIT:
        return
    made, (spent, minutes) = step - began[1], map(largest, (clock.elapsed - began[0], clock.minutes))
    if not again and (made < 3 or (made < WARM_UP and spent < minutes / 5)):
        return
    validated, one, reserve = map(largest, (clock.validated, clock.one, clock.reserve))
    usable = 0.97 * minutes - reserve
    total = whole.content_steps + whole.adversarial_steps
    dearer = 1 if state.adversarial else 1 + 0.6 * whole.adversarial_steps / total  # adversarial steps take longer
    pace = max(spent - validated, 1e-9) / made * dearer + one / whole.epoch_steps  # minutes a step, all told
    fits = int(largest(max(step + 1, min(total, step + (usable - began[0] - spent) / pace))))
    content = state.train.content_steps
    if not state.adversarial:
        content = max(step + 1, int(fits * whole.content_steps / total))
    state.train = replace(state.train, content_steps=content, adversarial_steps=max(0, fits - content))
    state.planned = True
    if state.group.rank == 0 and not again:
        log(
            f"{spent / made * 60:.2f} s a step: {content} content and {state.train.adversarial_steps} adversarial "
            f"steps fit into {minutes:.3g} minutes"
        )


# ---------------------------------------------------------------- what is said and shown


def announce(state, dataset, path, held_out):
    """Print what is trained, on what, with which settings; held_out: the Windows of validation, or None."""
    if state.group.rank:
        return
    plan, count = dataset.plans[0], sum(p.numel() for p in state.generator.parameters())
    log(
        f"training {path}: x{state.config.scale}, target {state.config.target}, {len(dataset)} files, "
        f"region {plan.lr.extent} ({plan.words}), {plan.lr.rows} x {plan.lr.cols} LR cells; {count / 1e6:.2f} M "
        f"weights on {state.group.device}, {state.group.size} process(es), {torch.get_num_threads()} thread(s), "
        f"{state.amp or 'float32'}"
    )
    if state.interpolated:
        log(
            "WARNING: HR is an interpolation of the input, so the network learns to interpolate; detail below the LR "
            "cell is NOT verified by such data. With files at the HR step use --target coarsen, with matching pairs "
            "--target paired."
        )
    for words in datasets.doubts(dataset):
        log(f"WARNING: {words}")
    log(_validation(dataset, held_out, state.train))
    plain = {**asdict(TrainConfig()), **asdict(GeneratorConfig(scale=state.config.scale))}
    if state.static:
        log(f"static fields: {static.named_fields(state.shape.static_fields)}, and slopes of orography")
    if state.predictors:
        log(f"predictors: {static.named_fields(state.shape.predictor_fields)}")
    said = plain.keys() - {"static_fields", "predictor_fields"}
    words = [f"{k}={v}" for k, v in settings_of(state).items() if k in said and v != plain[k]]
    log(f"settings other than the defaults: {' '.join(words) or 'none'} (all are in the checkpoint and TensorBoard)")


def _validation(dataset, held_out, train):
    """What validation is made on, and what it decides, in words."""
    if held_out is None:
        return "no validation (--valid-share 0): the last weights are kept, whether they learned by heart or not"
    where = f"the easternmost {100 * train.valid_share:g} % of the columns"
    if not held_out.strip:
        times = [dataset.files.time(k)[:10] for k in (held_out.files[0], held_out.files[-1])]
        where = f"{len(held_out.files)} whole days of {len(dataset)}, {' to '.join(times)}"
    return (
        f"validation every {train.epoch_steps} steps on {where}, which training does not see; the best weights are "
        "kept, and nothing stops early"
    )


def settings_of(state):
    """{name: value} of all settings of data, training and generator."""
    return {**asdict(state.config), **asdict(state.train), **asdict(state.shape)}


class Board:
    """The log line and the TensorBoard curves and pictures of each validation."""

    def __init__(self, folder, state):
        from torch.utils.tensorboard import SummaryWriter

        self.folder = folder
        with self._named():
            self.writer = SummaryWriter(folder)
        rows = "".join(f"| {name} | {value} |\n" for name, value in settings_of(state).items())
        self.writer.add_text("settings", f"| setting | value |\n| --- | --- |\n{rows}", state.step)

    def report(self, state, losses, scores, shown, clock):
        """Say and draw where the training stands.

        Args: losses: {name: mean since the last report}. scores: of Validator.validate. shown: (lr, hr, members, box).
        """
        values = {**losses, **{f"valid/{k}": v for k, v in scores.items()}}
        values["learning_rate"] = state.opt_g.param_groups[0]["lr"]
        words = "  ".join(f"{k} {v:.4g}" for k, v in values.items())
        log(f"step {state.step}/{state.steps}  {clock.elapsed:.1f} min  {words}")
        with self._named():
            self._draw(values, scores, shown, state)

    def _draw(self, values, scores, shown, state):
        """Add a point to each curve and, after a validation, pictures of its first window."""
        step, target = state.step, "interpolate" if state.interpolated else None
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        if scores:
            import plots

            lr, hr, made, (r0, r1, c0, c1) = shown
            lr, hr, made = (field.cpu().numpy() for field in (lr[0, 0, r0:r1, c0:c1], hr[0, 0], made[:, 0, 0]))
            self.writer.add_figure("valid/members", plots.plot_members(lr, hr, made, target=target), step)
            figure = plots.plot_qq(hr, made, caption="one held-out window")
            self.writer.add_figure("valid/qq", figure, step)
        self.writer.flush()  # a short run has its curves too

    def close(self):
        with self._named():
            self.writer.close()

    @contextlib.contextmanager
    def _named(self):
        """A disk that takes no more becomes an error that names the folder."""
        try:
            yield
        except OSError as error:
            raise DataError(
                f"{self.folder}: TensorBoard events cannot be written ({error.strerror or error}); make room, or name "
                "another folder with --runs"
            ) from None


def finish(state, path, export):
    """Write the last checkpoint and the export, and say what stands against the model."""
    state.save(path, again=state.noise_scale != (1.0, 1.0))
    log(f"wrote {path} at step {state.step} of {state.steps}")
    if state.best_weights and (best := state.best_weights["updates"]) < state.step:
        log(
            f"stages 3 and 4 and an export use the weights of step {best}, the best on what is held out; later ones "
            "were no better there: more days help, more steps may not"
        )
    if export:
        utils.save_checkpoint(export, state.export())
        log(f"wrote {export} ({Path(export).stat().st_size / 1e6:.1f} MB)")
    for words in state.warnings():
        log(f"WARNING: {path}: {words}")
