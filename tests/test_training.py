"""Laws of training.py: resume, phases, recipes, settings, processes; stage 2 as its users run it."""

import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import types
from dataclasses import asdict
from itertools import count

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, TRAIN, nodes, outputs, rain, run, run3, said, same, stage, tensors, write_nc
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import datasets
import models
import processes
import settings
import training
import utils
import validation
from settings import TrainConfig
from training import averaged_model
from utils import DataError
from windows import Windows

LOSSES = ("Loss_c", "Loss_d", "Loss_g", "critic_right", "gradient_c", "gradient_g")  # of an adversarial step


def begun(*words):
    """(State, WindowLoader) of a new training with a small network and these options."""
    small = "--hr-step 0.1 --lr-step 1 --channels 8 --blocks 1 --batch 2 --crop 10 --window 3 3 --device cpu --amp off"
    args = stage(2)["parse_args"]([*small.split(), *map(str, words)])
    ((config, path),) = stage(2)["plan_models"](args)
    dataset = datasets.SRDataset(args.data_folder, "train", **asdict(config))
    state = training.open_state(config, path, args, training.Group("cpu"), dataset)
    return state, training.WindowLoader(state, dataset)


def test_recipes_are_what_their_names_say(home):
    plain, _ = begun()
    assert plain.train.recipe == "crps-gan" and plain.train.adversarial_steps > 0 and plain.train.balanced
    assert isinstance(plain.discriminator, models.Discriminator) and plain.train.members == 2
    alone, _ = begun("--recipe", "crps")
    assert alone.train.adversarial_steps == 0 and alone.steps == alone.train.content_steps == plain.train.content_steps
    typed, _ = begun("--recipe", "crps", "--adversarial-steps", 5)  # what is typed counts
    assert typed.train.adversarial_steps == 5


@pytest.mark.parametrize("recipe", ["crps-gan", "srgan", "srgan-notes"])
def test_every_recipe_with_a_critic_teaches_both_networks(home, recipe):
    """The published ones without VGG's weights: unbalanced, and against the published discriminator."""
    state, loader = begun("--recipe", recipe, *([] if recipe == "crps-gan" else ["--set", "adversarial_content=mse"]))
    if recipe != "crps-gan":
        assert isinstance(state.discriminator, models.SRGANDiscriminator)
        assert not (state.train.balanced or state.train.penalty or state.train.coarse or state.shape.noise_channels)
    first = {name: value.clone() for name, value in state.generator.state_dict().items()}
    assert set(training.train_step(state, loader)) == {"Loss_c"}
    assert any(not torch.equal(first[name], value) for name, value in state.generator.state_dict().items())
    state.step = state.train.content_steps
    first = [p.detach().clone() for net in (state.generator, state.discriminator) for p in net.parameters()]
    assert set(training.train_step(state, loader)) == set(LOSSES)
    changed = [
        (p != old).any().item()
        for p, old in zip([*state.generator.parameters(), *state.discriminator.parameters()], first, strict=True)
    ]
    count = len(list(state.generator.parameters()))
    assert sum(changed[:count]) > count / 2 and any(changed[count:])


def test_every_other_step_is_coarse_where_the_generator_has_such_a_grid(home):
    state, loader = begun("--hr-step", 0.05, "--crop", 20)
    state.step = state.train.content_steps + 1
    assert set(training.train_step(state, loader)) == {f"{name}_coarse" for name in LOSSES}
    assert state.balance[0] == 0 < state.balance[1]
    assert set(training.train_step(state, loader)) == set(LOSSES) and state.balance[0] > 0
    for words in (["--hr-step", 0.05, "--set", "coarse=false"], ["--hr-step", 0.1]):  # x10 has none
        state, _ = begun(*words)
        assert not any(map(state.coarse, range(4)))


def test_every_other_coarse_step_is_made_from_another_archive(home, tmp_path):
    """Files at the step of the coarser grid teach the first stages; nothing else is asked of them."""
    for day in (1, 2):
        write_nc(tmp_path / f"other/2020_07_0{day}.nc", rain((40, 40)), nodes(0.1, 7.9, 0.2), nodes(30.1, 37.9, 0.2))
    run(1, "--train-folders", tmp_path / "other", "--output-folder", tmp_path / "lists")
    words = ["--hr-step", 0.05, "--crop", 20, "--set", f"coarse_archive={tmp_path / 'lists'}"]
    state, loader = begun(*words)
    files = [set(loader.get(step, "cpu")[4]) for step in range(8)]
    assert all(names <= {"2020_07_01.nc", "2020_07_02.nc"} for names in (files[3], files[7]))
    assert not any("2020_07_01.nc" in files[k] or "2020_07_02.nc" in files[k] for k in (0, 1, 2, 4, 5, 6))
    state.step = 3
    loss = training.train_step(state, loader)
    assert set(loss) == {"Loss_c_coarse"} and np.isfinite(loss["Loss_c_coarse"])
    with pytest.raises(DataError, match="makes no coarse steps"):
        begun(*words, "coarse=false")


@pytest.mark.parametrize("adversarial", [False, True])
def test_a_step_whose_gradients_overflow_in_fp16_is_left_out(home, adversarial):
    """The scaler then takes a smaller factor, until steps are made again."""
    state, loader = begun("--set", "coarse=false")
    state.amp, state.scaler = torch.float16, torch.amp.GradScaler("cpu", init_scale=2.0**32)
    state.step = adversarial * state.train.content_steps
    first = [p.detach().clone() for p in state.generator.parameters()]
    training.train_step(state, loader)
    assert all(torch.equal(p, old) for p, old in zip(state.generator.parameters(), first, strict=True))
    assert state.scaler.get_scale() < 2.0**32
    for _ in range(24):
        training.train_step(state, loader)
    assert all(torch.isfinite(p).all() for p in state.generator.parameters())
    assert any(not torch.equal(p, old) for p, old in zip(state.generator.parameters(), first, strict=True))


REAL = {"ratio": 0.6, "lsd_db": 0.0, "p999_ratio": 1.0, "seams": 1.0, "streaks_fine": 1.0, "streaks_broad": 1.0}


def test_merit_prefers_real_texture_at_equal_crps():
    merit = validation.merit
    assert merit(REAL) == 0.6
    worse = [("lsd_db", 2.0), ("p999_ratio", 1.5), ("seams", 3.0), ("streaks_fine", 0.5), ("streaks_broad", 2)]
    for name, value in worse:
        assert merit(REAL) < merit(REAL | {name: value}) < merit(REAL | {"ratio": 0.7})
    assert merit(REAL | {"seams": 3.0}) == pytest.approx(merit(REAL | {"seams": 1 / 3}))
    unlike = {"seams": 6.0, "streaks_fine": 0.1, "streaks_broad": 6.0, "lsd_db": 8.0}
    assert merit(REAL | unlike) > merit(REAL | {"ratio": 0.7})  # smooth or seamed members pay for a better CRPS
    assert math.isfinite(merit(REAL | {"seams": float("nan"), "streaks_fine": 0.0}))


def test_the_checkpoint_that_is_kept_has_the_least_merit():
    state = types.SimpleNamespace(step=0, best=math.inf, best_weights=None, scores={})
    state.averaged_weights = lambda: {"updates": state.step, "weights": {"w": torch.tensor(float(state.step))}}
    for scores in (REAL | {"seams": 3.0}, REAL, REAL | {"ratio": 0.599, "lsd_db": 3.0}, {}):
        state.step += 1
        training.State.keep_best(state, scores)
    assert state.best_weights == {"updates": 2, "weights": {"w": 2.0}} and state.scores == REAL and state.judged == 4


@pytest.mark.parametrize(("ratio", "kept"), [(0.62, 6), (0.64, 4)])
def test_the_adversarial_phase_may_cost_a_little_of_the_merit(home, tmp_path, monkeypatch, ratio, kept):
    """Validations at steps 2, 4 and 6; the content phase ends at 4, with 0.6."""
    found, plain = iter((0.7, 0.6, ratio)), validation.assess

    def assess(net, windows, group, members=4):
        scores, shown = plain(net, windows[:1], group, members)
        return REAL | {"crps": 1.0, "spread_skill": 1.0, "mae_bilinear": 2.0, "ratio": next(found)}, shown

    monkeypatch.setattr(validation, "assess", assess)
    monkeypatch.setattr(validation.Validator, "calibrate", lambda validator, state, over: (1.0, 1.0))
    path = tmp_path / "m.pth"
    steps = ["--content-steps", 4, "--adversarial-steps", 2, "--epoch-steps", 2]
    assert run(2, *TRAIN[:-2], *steps, "--checkpoint", path, "--runs", tmp_path / "runs") == 0
    assert utils.load_checkpoint(path)["ema"]["updates"] == kept


class Fitted:
    """A generator whose members are best at noise times `best`, and a state that holds it."""

    def __init__(self, monkeypatch, best, noise=2, **changes):
        self.tried, self.group = [], types.SimpleNamespace(rank=0)
        self.shape = settings.GeneratorConfig(scale=4, noise_channels=noise)
        self.averaged, self.best_weights = types.SimpleNamespace(module=torch.nn.Linear(1, 1)), None
        self.train, self.held_out = TrainConfig(**changes), "windows"

        def assess(net, windows, group):
            self.tried.append(net.config.noise_scale)
            off = sum(abs(math.log(f / b)) for f, b in zip(net.config.noise_scale, best, strict=True))
            return REAL | {"ratio": 0.6 + off, "crps": 1 + off, "spread_skill": 1.0}, None

        monkeypatch.setattr(validation, "assess", assess)
        monkeypatch.setattr(validation, "draw_windows", lambda windows, count, group: [count])

    def fit(self, over=lambda: False):
        validator = types.SimpleNamespace(held_out=self.held_out)
        return validation.Validator.calibrate(validator, self, over)


@pytest.mark.parametrize("best", [(1.0, 1.0), (1.7, 1.3), (0.7, 1.0), (1.0, 2.4), (9.0, 0.1)])
def test_the_noise_in_use_is_that_of_the_best_members(monkeypatch, capsys, best):
    state = Fitted(monkeypatch, best)
    found = state.fit()
    for factor, wanted in zip(found, best, strict=True):
        assert 1 / 1.1 <= factor / min(max(wanted, validation.LEAST), validation.MOST) <= 1.1
    assert len(state.tried) == len(set(state.tried)) <= 24 and state.shape.noise_scale == (1.0, 1.0)
    assert f"times {found[0]:g} (trunk and first stage) and {found[1]:g}: on held-out windows crps" in (
        capsys.readouterr().out
    )


def test_the_noise_is_fitted_while_there_is_time_and_where_there_is_noise(monkeypatch):
    state = Fitted(monkeypatch, (2.0, 2.0))
    assert state.fit(over=lambda: len(state.tried) > 2) == (1.562, 1.0)
    state = Fitted(monkeypatch, (2.0, 2.0), noise=0)
    assert state.fit() == (1.0, 1.0) and not state.tried


def test_the_noise_is_as_typed_and_is_not_fitted_to_days_of_the_training(monkeypatch):
    state = Fitted(monkeypatch, (2.0, 2.0), noise_in_use=(1.3, 1.1))
    assert state.fit() == (1.3, 1.1) and not state.tried
    state = Fitted(monkeypatch, (2.0, 2.0))
    state.held_out = None
    assert state.fit() == (1.0, 1.0) and not state.tried


def test_it_is_said_when_the_weights_that_are_kept_are_not_the_last(capsys):
    state = types.SimpleNamespace(step=900, steps=900, best_weights={"updates": 600}, noise_scale=(1.0, 1.0))
    state.save = lambda path, again: None
    state.warnings = list
    training.finish(state, "x.pth", None)
    assert "use the weights of step 600, the best on what is held out" in capsys.readouterr().out
    state.best_weights = {"updates": 900}
    training.finish(state, "x.pth", None)
    assert "weights of step" not in capsys.readouterr().out


def test_ema_follows_and_resumes():
    module = torch.nn.Linear(2, 2)
    ema = averaged_model(module, 0.9)
    start = ema.module.weight.clone()
    with torch.no_grad():
        module.weight.add_(1.0)
    ema.update_parameters(module)
    decay = 2 / 11
    torch.testing.assert_close(ema.module.weight, start + 1 - decay)
    again = averaged_model(torch.nn.Linear(2, 2), 0.9)
    again.load_state_dict(ema.state_dict())
    for e in (ema, again):
        e.update_parameters(module)
    assert torch.equal(ema.module.weight, again.module.weight)


def interrupted(monkeypatch, at, number):
    """Training is sent a signal in the middle of step `at`."""
    plain, steps = training.AveragedModel.update_parameters, count()

    def update_parameters(self, module):
        if next(steps) == at:
            os.kill(os.getpid(), number)
        plain(self, module)

    monkeypatch.setattr(training.AveragedModel, "update_parameters", update_parameters)


@pytest.fixture(scope="module")
def unbroken(project, tmp_path_factory):
    before, path = os.getcwd(), tmp_path_factory.mktemp("unbroken") / "a.pth"
    os.chdir(project.home)
    try:
        assert run(2, *TRAIN, "--checkpoint", path, "--export", path.with_name("export.pth")) == 0
    finally:
        os.chdir(before)
    return path


@pytest.mark.parametrize(("number", "at"), [(signal.SIGTERM, 1), (signal.SIGUSR1, 3), (signal.SIGINT, 5)])
def test_a_signal_ends_with_a_checkpoint_and_resumed_equals_unbroken(home, tmp_path, monkeypatch, unbroken, number, at):
    path = tmp_path / "b.pth"
    with monkeypatch.context() as patch:
        interrupted(patch, at, number)
        assert run(2, *TRAIN, "--checkpoint", path) == 128 + number
    assert utils.load_checkpoint(path)["step"] == at + 1
    assert run(2, *TRAIN, "--checkpoint", path, "--resume") == 0
    same(path, unbroken)


def test_the_same_command_twice_gives_the_same_weights(home, tmp_path, unbroken):
    run(2, *TRAIN, "--checkpoint", tmp_path / "c.pth")
    same(tmp_path / "c.pth", unbroken)


def test_resume_with_other_options_is_refused(home, tmp_path, monkeypatch, unbroken):
    shutil.copy(unbroken, tmp_path / "d.pth")
    for option in (
        ["--channels", 16],
        ["--batch", 3],
        ["--region", 106, 109, 26, 29],
        ["--seed", 4],
        ["--learning-rate", 0.1],
    ):
        words = said(2, [*TRAIN, *option, "--checkpoint", tmp_path / "d.pth", "--resume"], monkeypatch)
        assert "--resume" in words and option[0].strip("-").replace("-", "_") in words and "asked" in words
    same(tmp_path / "d.pth", unbroken)


def test_resume_says_what_does_not_fit(home, tmp_path, monkeypatch, unbroken):
    torch.save({"format": 1, "weights": 3}, tmp_path / "odd.pth")
    words = said(2, [*TRAIN, "--checkpoint", tmp_path / "odd.pth", "--resume"], monkeypatch)
    assert words.startswith("error: ") and "odd.pth" in words
    words = said(2, [*TRAIN, "--checkpoint", unbroken.with_name("export.pth"), "--resume"], monkeypatch)
    assert words.startswith("error: ") and "export" in words


@pytest.mark.parametrize("kind", ["value", "gradient"])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(home, tmp_path, monkeypatch, kind):
    plain, calls = models.content_loss, []

    def broken(*args, **kwargs):
        loss = plain(*args, **kwargs)
        calls.append(1)
        if len(calls) == 4:  # step 3, after the checkpoint of step 2
            return loss * float("nan") if kind == "value" else loss + (loss - loss.detach()).abs().sqrt()
        return loss

    monkeypatch.setattr(models, "content_loss", broken)
    path = tmp_path / "n.pth"
    words = said(2, [*TRAIN, "--checkpoint", path], monkeypatch)
    assert words.startswith("error: ") and "step 3" in words and "1950_08_0" in words and "n.pth" in words
    state = utils.load_checkpoint(path)
    assert state["step"] == 2
    assert all(
        torch.isfinite(v).all()
        for part in ("generator", "averaged")
        for v in tensors(path, [part]).values()
        if torch.is_tensor(v)
    )


def test_a_loss_that_is_not_finite_at_once_does_not_promise_a_checkpoint(home, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "content_loss", lambda *args, **kwargs: args[1].sum() * float("nan"))
    words = said(2, [*TRAIN, "--checkpoint", tmp_path / "n.pth"], monkeypatch)
    assert "step 0" in words and not (tmp_path / "n.pth").exists() and "keeps" not in words


def test_checkpoints_are_plain_and_the_export_is_small_and_serves_stages_3_and_4(home, tmp_path, unbroken):
    state = torch.load(unbroken, weights_only=True)
    assert state["step"] == 7 and state["data_config"]["lr_step"] == 1 and state["train_config"]["batch"] == 2
    export = unbroken.with_name("export.pth")
    assert export.stat().st_size < unbroken.stat().st_size / 2
    run3("--checkpoint", unbroken, "--out", tmp_path / "full")
    run3("--checkpoint", export, "--out", tmp_path / "export")
    for full, small in zip(outputs(tmp_path / "full"), outputs(tmp_path / "export"), strict=True):
        np.testing.assert_array_equal(full, small)


def test_a_new_run_moves_the_old_checkpoint_aside(home, tmp_path, unbroken):
    path = tmp_path / "old.pth"
    shutil.copy(unbroken, path)
    run(2, *TRAIN, "--checkpoint", path, "--max-minutes", 1e-9)
    (moved,) = (home.home / "Data/DataResults/Historical_Records").glob("*/old.pth")
    same(moved, unbroken)
    shutil.rmtree(moved.parent)


def test_two_models_need_two_checkpoints_and_other_targets_a_step(home, tmp_path, monkeypatch):
    words = said(2, ["--hr-step", 0.1, "--checkpoint", tmp_path / "x.pth"], monkeypatch)
    assert "1, 0.4 degree" in words and "--lr-step" in words
    words = said(2, ["--hr-step", 0.1, "--export", tmp_path / "x.pth"], monkeypatch)
    assert "--export" in words and "--lr-step" in words
    assert "--lr-step" in said(2, ["--target", "coarsen"], monkeypatch)
    assert "holds no pairs" in said(2, ["--target", "paired"], monkeypatch)
    words = said(
        2, ["--target", "paired", "--lr-step", 1, "--hr-step", 0.1, "--checkpoint", tmp_path / "x.pth"], monkeypatch
    )
    assert "holds no pairs" in words and "--train-hr-folders" in words


SENSELESS = """--batch 0|--window 5|--window 5 4|--window 0 4|--content magic|--set transform=magic|--channels 0
--set noise_in_use=1.3,0|--set noise_in_use=1.3
--stage-blocks 1|--epoch-steps 0|--valid-windows 0|--valid-share 1.5|--content-steps -1|--seed -1|--recipe magic
--learning-rate -1|--max-minutes 0|--max-minutes nan|--max-minutes soon|--learning-rate nan|--crop -1
--lr-step 0.35|--lr-step inf|--units inch|--device cuda|--init gone.pth|--export day.nc|--checkpoint day.nc
--recipe srgan --vgg-weights gone.pth""".replace("\n", "|").split("|")
if torch.cuda.is_available():
    SENSELESS.remove("--device cuda")


@pytest.mark.parametrize("option", SENSELESS)
def test_senseless_options_of_training_are_refused_in_words(home, tmp_path, monkeypatch, capsys, option):
    code = said(2, [*TRAIN, "--checkpoint", tmp_path / "s.pth", *option.split()], monkeypatch)
    words = capsys.readouterr().err if code == 2 else code  # argparse, or a DataError
    name = re.split("[ =]", option)[-2].strip("-")
    assert isinstance(words, str) and (name in words.replace("_", "-").replace(" ", "-") or option.split()[-1] in words)
    assert not (tmp_path / "s.pth").exists()


@pytest.mark.parametrize("adversarial", [0, 400])
def test_the_schedule_follows_the_pace_of_the_machine_and_ends_in_time(adversarial):
    """--max-minutes 10 at 0.01 minutes a step, from step 300 on 0.03: the fitted length is made in time."""
    whole = TrainConfig(content_steps=2000 - adversarial, adversarial_steps=adversarial, epoch_steps=100)
    group = types.SimpleNamespace(largest=lambda number: number, rank=0)
    state = types.SimpleNamespace(train=whole, step=0, planned=False, group=group)
    clock = types.SimpleNamespace(minutes=10.0, elapsed=0.5, reserve=0.0, validated=0.0, one=0.0)
    fitted = set()
    while state.step < (state.train.content_steps + state.train.adversarial_steps):
        state.adversarial = state.step >= state.train.content_steps
        training.fit_length(state, clock, (0.5, 0), whole)
        fitted.add(state.train.content_steps + state.train.adversarial_steps)
        state.step, clock.elapsed = state.step + 1, clock.elapsed + (0.01 if state.step < 300 else 0.03)
    assert 8.5 < clock.elapsed <= 10 and len(fitted) > 2 and state.planned
    assert bool(state.train.adversarial_steps) == bool(adversarial) and state.train.adversarial_steps < 0.5 * state.step


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler (g++), which is not here")
def test_compiled_stages_learn_what_plain_ones_do(home, tmp_path):
    short = (
        "--amp",
        "off",
        "--window",
        4,
        4,
        "--content-steps",
        2,
        "--adversarial-steps",
        0,
        "--runs",
        tmp_path / "runs",
    )
    for name, options in (("plain", []), ("compiled", ["--compile"])):
        run(2, *TRAIN, *short, *options, "--checkpoint", tmp_path / f"{name}.pth")
    plain, compiled = (loss_curves(tmp_path / "runs" / name) for name in ("plain", "compiled"))
    assert plain.keys() == compiled.keys() >= {"Loss_c"}
    for name, curve in plain.items():
        np.testing.assert_allclose(compiled[name], curve, rtol=1e-3, err_msg=name)


def test_two_processes_equal_one(home, tmp_path, unbroken):
    """The loss curve of torchrun with two processes is that of one (float sums differ in their last digits)."""
    argv = [
        *TRAIN,
        "--checkpoint",
        tmp_path / "two.pth",
        "--amp",
        "off",
        "--device",
        "cpu",
        "--runs",
        tmp_path / "runs",
    ]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(ROOT / "2train.py"),
    ]
    done = subprocess.run(
        [*command, *map(str, argv)],
        capture_output=True,
        text=True,
        timeout=400,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    argv[argv.index(tmp_path / "two.pth")] = tmp_path / "one.pth"
    run(2, *argv)
    one, two = (utils.load_checkpoint(tmp_path / f"{name}.pth") for name in ("one", "two"))
    assert one["step"] == two["step"] == 7
    # Adam makes steps of the rounding noise where a gradient is 0, as at net.out.bias, which conservation cancels
    far = total = 0
    for name, value in one["averaged"]["weights"].items():
        far += int(((two["averaged"]["weights"][name] - value).abs() > 1e-4 + 1e-3 * value.abs()).sum())
        total += value.numel()
    assert far <= total / 1000
    assert two["best"] == pytest.approx(one["best"], rel=1e-3)
    one, two = (loss_curves(tmp_path / "runs" / name) for name in ("one", "two"))
    assert one.keys() == two.keys() >= {f"Loss_{kind}{grid}" for kind in "cdg" for grid in ("", "_coarse")}
    for name, curve in one.items():
        np.testing.assert_allclose(two[name], curve, rtol=1e-4, err_msg=name)


def test_more_processes_than_samples_are_refused(home, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    with pytest.raises(DataError, match="--batch 2: fewer samples a step than the 3 processes.*--batch 24"):
        run(2, *TRAIN, "--checkpoint", tmp_path / "a.pth", "--device", "cpu")


def loss_curves(folder):
    """{name: values} of the losses in TensorBoard's events."""
    events = EventAccumulator(str(folder)).Reload()
    names = [name for name in events.Tags()["scalars"] if name.startswith("Loss")]
    return {name: [event.value for event in events.Scalars(name)] for name in names}


def test_a_process_without_its_input_ends_the_others_with_the_cause(home, tmp_path):
    """torchrun ends the process that waits for the one that did not get so far."""
    words = ["--hr-step", "0.1", "--lr-step", "1", *map(str, TINY), "--checkpoint", str(tmp_path / "a.pth")]
    task = '[ "$RANK" = 0 ] && lists=Data/JsonPath || lists=nowhere; exec "$0" "$@" --data-folder "$lists"'
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
        + ["bash", "-c", task, sys.executable, str(ROOT / "2train.py"), *words],
        capture_output=True,
        text=True,
        timeout=400,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 1
    assert "error: nowhere/PreTrain.json: no such list" in done.stderr and "Root Cause" in done.stderr
    assert "SIGKILL" not in done.stderr  # the other did not have to be killed


def test_a_process_that_loses_another_says_so(monkeypatch):
    group = object.__new__(training.Group)
    group.rank, group.size, group.device = 0, 2, torch.device("cpu")

    def gone(*args):
        raise RuntimeError("Connection closed by peer [127.0.0.1]:1")

    monkeypatch.setattr(torch.distributed, "all_reduce", gone)
    for call in (lambda: group.mean([torch.ones(2)]), lambda: group.largest(1)):
        with pytest.raises(DataError, match="process 0 of 2 lost another one.*Connection closed"):
            call()


# ---------------------------------------------------------------- warnings, time, log, and the command that goes on


def standing(**changes):
    """What State.warnings looks at, of a fully trained model that beats bilinear interpolation."""
    return types.SimpleNamespace(**({"step": 1200, "whole_steps": 1200, "scores": {"ratio": 0.6}} | changes))


def test_a_model_that_is_no_model_is_warned_of():
    warnings = training.State.warnings
    assert warnings(standing(interpolated=False)) == [] == warnings(standing(interpolated=False, scores={}, step=300))
    (words,) = warnings(standing(interpolated=False, step=28))
    assert "only 28 steps (expected 300 or more)" in words and "--max-minutes" in words
    assert warnings(standing(interpolated=False, step=299, whole_steps=1200))
    for ratio in (1.07, 1.0, float("nan")):
        (words,) = warnings(standing(interpolated=False, scores={"ratio": ratio}))
        assert "bilinear" in words and f"{ratio:.3g}" in words
    assert warnings(standing(interpolated=True, scores={"ratio": 1.07})) == []  # there bilinear is the truth


def test_warnings_are_said_at_the_end_kept_and_said_again_where_the_model_is_used(home, tmp_path, capsys, unbroken):
    kept = [utils.load_checkpoint(unbroken.with_name(name))["warnings"] for name in ("a.pth", "export.pth")]
    assert kept[0] == kept[1] and "only 7 steps (expected 200 or more)" in kept[0][0]
    run(2, *TRAIN, "--checkpoint", tmp_path / "w.pth")
    assert f"WARNING: {tmp_path}/w.pth: {kept[0][0]}" in capsys.readouterr().out
    run3("--checkpoint", unbroken.with_name("export.pth"), "--out", tmp_path / "out")
    assert f"export.pth: {kept[0][0]}" in capsys.readouterr().out


@pytest.mark.parametrize(("crps", "worse"), [(0.5, []), (1.5, ["bilinear"]), (2.5, ["RainFARM", "bilinear"])])
def test_stage_3_warns_of_members_that_simple_methods_beat(capsys, crps, worse):
    rows = [{"name": "bilinear", "crps": 1.0}, {"name": "RainFARM", "crps": 2.0}, {"name": "ensemble", "crps": crps}]
    stage(3)["warn"](rows)
    words = capsys.readouterr().out
    assert [name for name in ("RainFARM", "bilinear") if name in words] == worse and bool(words) == bool(worse)
    stage(3)["warn"]([{"name": "bilinear", "crps": float("nan")}, {"name": "one member", "crps": float("nan")}])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("seconds", "window"), [(0.5, 0.2), (4.0, 2.0)])
def test_max_minutes_is_kept_with_the_last_validation_inside(home, tmp_path, monkeypatch, seconds, window):
    """On a clock of its own: steps of 0.5 or 4 s, validations of 24 windows; 3 minutes are kept within a tenth."""
    clock = types.SimpleNamespace(now=0.0, step=training.train_step, assess=validation.assess)

    def train_step(state, loader):
        clock.now += seconds
        return clock.step(state, loader)

    def assess(net, windows, group, members=4):
        clock.now += window * len(windows)
        return clock.assess(net, windows[:1], group, members)

    monkeypatch.setattr(processes, "time", types.SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(training, "train_step", train_step)
    monkeypatch.setattr(training, "assess", assess)
    monkeypatch.setattr(validation, "assess", assess)
    began = -10.0  # seconds before: imports and lists
    monkeypatch.setitem(stage(2)["main"].__globals__, "time", types.SimpleNamespace(monotonic=lambda: began))
    path = tmp_path / "m.pth"
    words = ["--epoch-steps", 200, "--valid-windows", 24, "--content-steps", 1200]
    args = stage(2)["parse_args"]([*map(str, [*TRAIN, *words, "--adversarial-steps", 0, "--checkpoint", path])])
    del args.content_steps  # not typed: the length is fitted
    args.max_minutes = 3.0
    monkeypatch.setitem(stage(2)["main"].__globals__, "parse_args", lambda argv: args)
    assert run(2) == 0
    assert 0.9 * 180 <= clock.now - began <= 1.1 * 180
    state = utils.load_checkpoint(path)
    assert state["judged"] == state["step"] > 20 and state["scores"]["crps"] > 0


def test_time_that_ends_before_the_last_step_still_validates_and_names_the_command(home, tmp_path, monkeypatch, capsys):
    path = tmp_path / "m.pth"
    monkeypatch.setattr(training.Clock, "over", property(lambda clock: clock.step == 3), raising=False)
    plain = training.train_step
    monkeypatch.setattr(training.Clock, "step", 0, raising=False)

    def train_step(state, loader):
        training.Clock.step = state.step + 1
        return plain(state, loader)

    monkeypatch.setattr(training, "train_step", train_step)
    assert run(2, *TRAIN, "--max-minutes", 5, "--checkpoint", path) == 0
    state = utils.load_checkpoint(path)
    assert state["step"] == 3 == state["judged"]
    assert (
        f"ended by --max-minutes; go on with: python 2train.py --resume --checkpoint {path}" in capsys.readouterr().out
    )


@pytest.fixture
def copied(project, tmp_path, monkeypatch):
    """A copy of the small project as current folder, for runs that replace its models."""
    monkeypatch.chdir(shutil.copytree(project.home, tmp_path / "copied"))
    return tmp_path / "copied"


def test_several_models_say_their_share_of_the_time(copied, capsys):
    run(2, "--hr-step", 0.1, *TINY, "--max-minutes", 20)
    words = capsys.readouterr().out
    assert re.search(r"pre_srgan_x10.pth: (9\.\d+|10) of 20 minutes are for this model", words)
    assert re.search(r"pre_srgan_x4.pth: (1\d\.\d+|20) of 20 minutes are for this model", words)


def test_a_log_has_a_line_a_minute_one_line_of_settings_and_tensorboard_all(home, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(utils, "LOG_EVERY", 0)
    run(2, *TRAIN, "--checkpoint", tmp_path / "l.pth", "--runs", tmp_path / "runs")
    words = capsys.readouterr().out
    assert re.search(r"x20: step 1 of 7, [\d.e-]+ s a step, [\d.]+ min left", words)
    (line,) = [line for line in words.splitlines() if line.startswith("settings other than the defaults: ")]
    assert "batch=2" in line and "scale" not in line and "beta" not in line
    tags = EventAccumulator(str(tmp_path / "runs/l")).Reload().Tags()
    assert "settings/text_summary" in tags["tensors"] and {"valid/members", "valid/qq"} <= set(tags["images"])
    losses = [f"{name}{grid}" for name in LOSSES for grid in ("", "_coarse")]
    names = {*losses, *(f"valid/{name}" for name in ("crps", "seams", "streaks_fine")), "learning_rate"}
    assert names <= set(tags["scalars"])
    lines = {step: next(line for line in words.splitlines() if line.startswith(f"step {step}/7 ")) for step in (4, 6)}
    assert all(f"  {name} " in lines[6] for name in names)  # both phases, both grids
    assert "Loss_c_coarse " in lines[4] and "Loss_d" not in lines[4] and "critic_right" not in lines[4]


def typed(words, folder):
    """Run the command that stands behind "go on with: " in these words, as a user would."""
    _, script, *argv = shlex.split(re.search("go on with: (python .*)", words).group(1))
    assert script == "2train.py"
    command = [sys.executable, str(ROOT / script), *argv]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300), argv


def test_the_hint_after_an_interrupt_is_the_command_that_goes_on(home, tmp_path, monkeypatch, capsys, unbroken):
    """The checkpoint knows data folder, region, steps and network: with them resumed equals unbroken."""
    path = tmp_path / "with blank/h.pth"
    with monkeypatch.context() as patch:
        interrupted(patch, 3, signal.SIGINT)
        assert run(2, *TRAIN, "--data-folder", "Data/JsonPath", "--checkpoint", path) == 130
    done, argv = typed(capsys.readouterr().out, home.home)
    assert argv == ["--resume", "--checkpoint", str(path)] and done.returncode == 0, done.stderr
    same(path, unbroken)


def test_resume_takes_the_data_folder_of_the_checkpoint(home, tmp_path, monkeypatch, capsys):
    path = tmp_path / "h.pth"
    with monkeypatch.context() as patch:
        interrupted(patch, 3, signal.SIGINT)
        truth = ["--target", "coarsen", "--region", "all", "--hr-step", 0.1, "--data-folder", "Data/JsonHr"]
        assert run(2, *TRAIN, *truth, "--checkpoint", path, "--threads", 1) == 130
    assert utils.load_checkpoint(path)["data_folder"] == "Data/JsonHr"
    done, argv = typed(capsys.readouterr().out, home.home)
    assert argv == ["--resume", "--checkpoint", str(path), "--threads", "1"] and done.returncode == 0, done.stderr
    assert utils.load_checkpoint(path)["step"] == 7 and "target coarsen" in done.stdout
    assert "region" in said(2, ["--resume", "--checkpoint", path, "--region", 105, 109, 25, 29], monkeypatch)


def test_an_interrupt_of_the_first_of_several_models_names_the_command_for_all(copied, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        interrupted(patch, 1, signal.SIGTERM)
        assert run(2, "--hr-step", 0.1, *TINY) == 143
    done, argv = typed(capsys.readouterr().out, copied)
    assert argv[-1] == "--resume" and "--checkpoint" not in argv and done.returncode == 0, done.stderr
    assert "pre_srgan_x10.pth at step 4 of 4" in done.stdout and "pre_srgan_x4.pth at step 4 of 4" in done.stdout


def test_a_new_run_says_what_it_discards_before_it_does(copied, capsys, unbroken):
    path = copied / "old.pth"
    shutil.copy(unbroken, path)
    run(2, *TRAIN, "--checkpoint", path, "--max-minutes", 1e-9)
    words = capsys.readouterr().out
    told = words.index(f"{path}: a model of ")
    assert "at step 7" in words[told:] and told < words.index("moved 1 earlier results")
    assert re.search(r"of 20\d\d-\d\d-\d\d \d\d:\d\d", words) and f"--resume --checkpoint {path}" in words


def paired_days(folder, count, *, shape=(12, 14), missing=slice(0, 4), holes=()):
    """Lists of days of 12 x 14 LR cells, without the northern ones, and of their whole truth x10, and its LR files."""
    h, w = shape
    for k in range(count):
        name, truth = f"2020_01_{k + 1:02d}.nc", rain((10 * h, 10 * w), k).astype("float32")
        low = 1.2 * datasets.block_mean(truth, 10)  # a product of its own: too wet
        low[missing] = np.nan
        for hole in holes:
            truth[hole] = np.nan
        mm = {"attrs": {"units": "mm"}}
        lat, lon = nodes(50.125, 50.125 + 0.25 * (h - 1), 0.25)[::-1], nodes(2.125, 2.125 + 0.25 * (w - 1), 0.25)
        write_nc(folder / "lr" / name, low, lat, lon, **mm)
        fine = nodes(50.0125, 50 + 0.25 * h - 0.0125, 0.025)[::-1], nodes(2.0125, 2 + 0.25 * w - 0.0125, 0.025)
        write_nc(folder / "hr" / name, truth, *fine, **mm)
    run(1, "--train-folders", folder / "lr", "--train-hr-folders", folder / "hr", "--output-folder", folder / "lists")
    return folder / "lists"


def test_pairs_train_at_once_on_whole_days_whatever_is_missing_in_lr(workdir, capsys):
    lists = paired_days(workdir, 24)
    settings = [*TINY[:6], "--content-steps", 2, "--adversarial-steps", 1, "--valid-windows", 2]
    run(2, "--data-folder", lists, "--target", "paired", "--region", "all", *settings, "--checkpoint", "p.pth")
    out = capsys.readouterr().out
    assert "leave no room for the default, --window 2 3 --crop 200" in out
    assert "2 whole days of 24, 2020-01-23 to 2020-01-24" in out and "nothing stops early" in out
    state = utils.load_checkpoint("p.pth")
    assert state["train_config"]["crop"] <= 80 and not state["generator_config"]["conserve"]
    data = datasets.SRDataset(lists, "train", **state["data_config"])
    windows = Windows(data, sides=(8, 8), crop=5)  # room for one row of windows alone: no draw fails
    assert all(np.isfinite(windows.batch(step, 4)["lr"]).all() for step in range(20))


def test_crops_fit_between_gaps_unless_they_were_typed(workdir, capsys):
    lists = paired_days(workdir, 20, shape=(12, 12), missing=slice(0, 0), holes=[np.s_[60], np.s_[:, 60]])
    config = datasets.DataConfig("paired", "all", 0.25, 0.025)
    data, train = datasets.SRDataset(lists, "train", **asdict(config)), TrainConfig()
    fitted = training.fitting_windows(train, config, data)
    assert (fitted.window, fitted.crop) == ((1, 1), 50) and "--window 1 1 --crop 50: gaps" in capsys.readouterr().out
    with pytest.raises(DataError, match="--window 1 1 with a smaller --crop"):
        training.fitting_windows(train, config, data, fixed=("crop",))


@pytest.mark.parametrize(("every", "window"), [(25, "--window 2 2"), (17, "--window 1 1"), (8, None)])
def test_windows_fit_between_gaps_and_nothing_is_moved_where_none_does(workdir, monkeypatch, capsys, every, window):
    """Rain of 9 x 9 LR cells with missing rows and columns: 24, 16 or 7 pixels between them, 10 pixels an LR cell."""
    for day in (1, 2):
        values = rain((90, 90), day)
        values[::every], values[:, ::every] = np.nan, np.nan
        write_nc(f"hr/2023_08_0{day}.nc", values, nodes(23.55, 32.45, 0.1)[::-1], nodes(103.55, 112.45, 0.1))
    run(1, "--train-folders", "hr", "--output-folder", "lists", "--units", "mm")
    typed = ["--data-folder", "lists", "--target", "coarsen", "--lr-step", 1, "--region", "all", *TINY]
    del typed[typed.index("--window") : typed.index("--window") + 3]
    (workdir / "a.pth").write_text("an earlier model")
    said_last = said(2, [*typed, "--valid-share", 0, "--checkpoint", "a.pth"], monkeypatch)
    if window:
        assert said_last in (None, 0) and window in capsys.readouterr().out
        assert tuple(utils.load_checkpoint("a.pth")["train_config"]["window"]) == tuple(map(int, window.split()[1:]))
    else:
        assert "without missing pixels" in said_last and (workdir / "a.pth").read_text() == "an earlier model"
