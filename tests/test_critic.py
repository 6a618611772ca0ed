"""Laws of critic.py: a critic learns what there is to learn, is held in balance, and the guard says when it is not."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import critic
import models
from critic import Guard, joined_gradient
from models import ADVERSARIAL_LOSSES, Discriminator, gradient_penalty


def rain(smooth, source, side=48):
    """Rain (4, 1, side, side) from white noise, or from the same noise smoothed."""
    noise = torch.randn(4, 1, side + 8, side + 8, generator=source)
    return F.relu(((9 * F.avg_pool2d(noise, 9, 1) if smooth else noise[..., 4:-4, 4:-4]) - 0.2).exp() - 0.8)


@pytest.mark.parametrize(("kinds", "low", "high"), [((False, True), 0.9, 1.0), ((True, True), 0.4, 0.6)])
def test_a_critic_learns_where_two_kinds_of_rain_differ_and_only_there(kinds, low, high):
    torch.manual_seed(0)
    judge, source, right = Discriminator(), torch.Generator().manual_seed(0), []
    optimizer = torch.optim.Adam(judge.parameters(), 4e-4, betas=(0.0, 0.99))
    for step in range(60):
        seen = [judge.see(F.avg_pool2d(field, 48), field) for field in (rain(kind, source) for kind in kinds)]
        real, made = map(judge, seen)
        loss, _ = ADVERSARIAL_LOSSES["relativistic"](real, made)
        if step % critic.PENALTY_EVERY == 0:
            loss = loss + 0.1 * critic.PENALTY_EVERY * sum(gradient_penalty(judge, part) for part in seen) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        right.append((real > made).float().mean().item())
    assert low <= sum(right[-20:]) / 20 <= high


# ---------------------------------------------------------------- the guard


def told(capsys, guard, plays):
    """What the guard says to these (loss, share of right answers)."""
    for loss, right in plays:
        guard.update(loss, right)
    return capsys.readouterr().out


def test_a_critic_that_has_won_is_named_and_slowed_each_time(capsys):
    guard = Guard(patience=5)
    assert not told(capsys, guard, [(0.01, 1.0)] * 4) and guard.share == 1
    words = told(capsys, guard, [(0.01, 0.98)])
    assert "the critic has won" in words and "98%" in words and "0.5 of what it was" in words and guard.share == 0.5
    assert told(capsys, guard, [(0.01, 1.0)] * 10).count("the critic has won") == 2 and guard.share == 0.125


def test_a_critic_that_learns_nothing_is_named_once(capsys):
    guard = Guard(asleep=30)
    assert not told(capsys, guard, [(math.log(2), 0.5)] * 29)
    words = told(capsys, guard, [(math.log(2), 0.5)] * 100)
    assert words.count("the critic learns nothing") == 1 and "--crop" in words and guard.share == 1


def test_a_fair_game_is_not_spoken_of(capsys):
    guard = Guard(patience=3, asleep=30)
    assert not told(capsys, guard, [(0.01, 1.0), (0.01, 1.0), (0.4, 0.8)] * 3 + [(0.5, 0.7)] * 200)
    assert guard.share == 1


def test_the_guard_goes_on_where_it_stood(capsys):
    whole, first = Guard(patience=5, asleep=30), Guard(patience=5, asleep=30)
    plays = [(0.01, 1.0)] * 8 + [(math.log(2), 0.5)] * 250
    told(capsys, first, plays[:7])
    second = Guard()
    second.load_state_dict(first.state_dict())
    assert all(isinstance(value, int | float) for value in first.state_dict().values())  # for the checkpoint
    told(capsys, first, plays[7:])
    told(capsys, second, plays[7:])
    told(capsys, whole, plays)
    assert second.state_dict() == whole.state_dict() == first.state_dict()


# ---------------------------------------------------------------- the two gradients of the generator


def state_of(**train):
    """What critic.py looks at of a training.State."""
    return SimpleNamespace(
        train=SimpleNamespace(**({"beta": 0.35, "balanced": True, "penalty": 0.1} | train)),
        scaler=torch.amp.GradScaler(enabled=False),
        group=SimpleNamespace(mean=lambda tensors: 0),
        balance=[0.0, 0.0],
        discriminator=Discriminator(channels=4),
        step=0,
    )


def joined(state, size=1.0, share=1.0, coarse=False):
    """(joined gradient, the content's, the critic's, losses): of two losses whose gradients are perpendicular."""
    detail = torch.ones(2, 1, 3, 3, requires_grad=True)
    content, losses = detail[0].square().sum(), {"Loss_g": size * detail[1].sum()}
    both = [torch.autograd.grad(loss, detail, retain_graph=True)[0] for loss in (content, losses["Loss_g"])]
    return joined_gradient(state, content, detail, losses, share, coarse), *both, losses


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_the_critics_part_has_beta_times_the_norm_of_the_contents(size):
    gradient, content, made, losses = joined(state_of(), size)
    torch.testing.assert_close(gradient[:1], content[:1])
    assert (gradient[1] / made[1]).std() < 1e-3 / size  # its direction is kept
    assert gradient[1].norm().item() == pytest.approx(0.35 * content.norm().item(), rel=1e-4)
    norms = [losses[name].item() for name in ("gradient_c", "gradient_g")]
    assert norms == pytest.approx([content.norm().item(), made.norm().item()], rel=1e-4)


def test_unbalanced_beta_is_the_weight_of_the_loss():
    gradient, content, made, _ = joined(state_of(balanced=False, beta=1e-3), 7.0, share=0.5)
    torch.testing.assert_close(gradient, 0.5 * (content + 1e-3 * made))


def test_the_balance_is_a_running_mean_for_each_grid():
    """One odd step, or none of the critic's gradient, does not upset it; coarse steps have their own."""
    state = state_of()
    joined(state, 1.0)
    first = state.balance[0]
    joined(state, 1e-9)
    assert state.balance[0] == pytest.approx(1.04 * first) and state.balance[1] == 0
    joined(state, 0.0), joined(state, 10.0, coarse=True)
    assert state.balance[0] < 1.1 * first and state.balance[1] == pytest.approx(0.1 * first)


def test_the_norms_do_not_depend_on_the_scaler_and_the_share():
    state = state_of()
    state.scaler = SimpleNamespace(scale=lambda loss: 1024 * loss, get_scale=lambda: 1024.0)
    scaled, plain = joined(state, share=0.25), joined(state_of())
    torch.testing.assert_close(scaled[0], 256 * plain[0])
    for name in ("gradient_c", "gradient_g"):
        torch.testing.assert_close(scaled[3][name], plain[3][name])


def test_the_penalty_comes_every_few_steps_weighted_for_the_others(monkeypatch):
    monkeypatch.setattr(models, "gradient_penalty", lambda judge, seen, coarse: seen)
    state = state_of()
    state.autocast = lambda: torch.autocast("cpu", enabled=False)
    given = []
    for state.step in range(32):
        given.append(critic.slope_penalty(state, 1.0, 3.0, bool(state.step % 2)))
    assert sum(given[::2]) / 16 == sum(given[1::2]) / 16 == 2.0  # the mean of real and made, on either grid
    assert sum(value > 0 for value in given) == 32 / critic.PENALTY_EVERY
    state.train.penalty, state.step = 0.0, 0
    assert critic.slope_penalty(state, 1.0, 3.0, False) == 0
