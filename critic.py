"""What keeps generator and critic in balance: the penalty, the joined gradient, and a guard that speaks.

Reads    the state of a training and its losses.
Writes   messages, where the critic has won or learns nothing.

    gradient = duel(state, Rain(lr, hr, made, detail), content, losses, share=1.0, coarse=False)
    Guard().update(loss_d=0.6, right=0.7)
"""

import math
from typing import NamedTuple

import torch

import models
from utils import log

PENALTY_EVERY = 4  # steps between gradient penalties, each weighted so much more (Karras et al. 2020)
SLOWEST = 0.2  # share of its learning rate that the critic keeps to the end

__all__ = ["Guard", "Rain", "SLOWEST", "duel", "joined_gradient", "slope_penalty"]


class Rain(NamedTuple):
    """What the critic is asked about: lr (N, 1, h, w), hr and made (N, 1, H, W), mm; made follows from the generator's
    output `detail` (M * N, 1, H, W)."""

    lr: torch.Tensor
    hr: torch.Tensor
    made: torch.Tensor
    detail: torch.Tensor


def duel(state, rain, content, losses, share, coarse):
    """The critic against the generator, then the generator against the critic (Goodfellow et al. 2014).

    Args: state: State. content: the generator's content loss. losses: dict, to which Loss_d, Loss_g, critic_right and
        both gradients' norms are added. share: weight of this process. coarse: judged at the coarser grid.
    Returns: the gradient of both of the generator's losses at rain.detail; the critic's own is in its parameters.
    """
    judge, adversary = state.discriminator, models.ADVERSARIAL_LOSSES[state.train.adversarial]
    real, made = judge.see(rain.lr, rain.hr), judge.see(rain.lr, rain.made)

    # the critic learns to tell real from made rain
    with state.autocast():
        of_real, of_made = judge(real, coarse), judge(made.detach(), coarse)
    losses["Loss_d"], _ = adversary(of_real, of_made)
    slope = slope_penalty(state, real, made, coarse)
    state.scaler.scale((losses["Loss_d"] + state.train.penalty * slope) * share).backward()

    # the generator learns to pass for real: its two gradients meet at its output
    judge.requires_grad_(False)
    with state.autocast():
        _, losses["Loss_g"] = adversary(of_real.detach(), judge(made, coarse))
    judge.requires_grad_(True)
    losses["critic_right"] = (of_real > of_made).float().mean()
    return joined_gradient(state, content, rain.detail, losses, share, coarse)


def joined_gradient(state, content, detail, losses, share, coarse):
    """The gradient of both losses at the generator's output `detail` (M * N, 1, H, W), scaled for fp16.

    By rule, not by hand: the critic's gradient is brought to `beta` times the norm of the content's, whatever crop,
    scale and number of patches (a running mean of the ratio, as in VQGAN, Esser et al. 2021); the recipes of SRGAN
    take `beta` as the weight of the loss. Adds both norms to `losses`.
    """
    parts = [
        torch.autograd.grad(state.scaler.scale(loss * share), detail, retain_graph=loss is content)[0]
        for loss in (content, losses["Loss_g"])
    ]
    norms = torch.stack([part.float().square().sum() for part in parts])
    state.group.mean([norms])
    sizes = norms.sqrt().nan_to_num(0.0, 0.0) / state.scaler.get_scale()  # 0: too large for fp16, a step left out
    losses["gradient_c"], losses["gradient_g"] = sizes / max(share, 1e-12)
    if state.train.balanced:
        now = math.sqrt(float(norms[0] / norms[1].clamp(min=1e-24)))
        if math.isfinite(now) and math.isfinite(norms[1]):
            old = state.balance[coarse] or now
            state.balance[coarse] = 0.98 * old + 0.02 * min(now, 3 * old)
    return parts[0] + state.train.beta * (state.balance[coarse] if state.train.balanced else 1.0) * parts[1]


def slope_penalty(state, real, made, coarse):
    """Gradient penalties at real and at made rain, in some steps, weighted for those without."""
    if not state.train.penalty or state.step // 2 % PENALTY_EVERY:
        return 0.0
    with state.autocast():
        both = [models.gradient_penalty(state.discriminator, seen, coarse) for seen in (real, made)]
    return PENALTY_EVERY / 2 * sum(both)


class Guard:
    """Says in words when the critic has won, and lowers its learning rate, or when it learns nothing.

    It has won when its loss stays under WON for `patience` steps in a row: `share`, by which its learning rate is
    multiplied, is then halved, and counting starts again. It learns nothing where, on a running mean, it is right in
    about half of the patches at a loss of about ln 2 for `asleep` steps: said once.
    """

    WON, NEAR = 0.05, 0.02

    def __init__(self, patience=50, asleep=400):
        self.patience, self.asleep = patience, asleep
        self.low, self.share, self.idle, self.right, self.loss = 0, 1.0, 0, 0.5, math.log(2)

    def update(self, loss_d, right):
        """Take the discriminator's loss of one step (float, without penalty) and its share of right answers."""
        self.low = self.low + 1 if loss_d < self.WON else 0
        self.right, self.loss = 0.98 * self.right + 0.02 * right, 0.98 * self.loss + 0.02 * loss_d
        nothing = abs(self.right - 0.5) < self.NEAR and abs(self.loss - math.log(2)) < self.NEAR
        self.idle = self.idle + 1 if nothing else 0
        if self.idle == self.asleep:
            log(
                f"the critic learns nothing: in {self.asleep} steps it was right in {self.right:.0%} of the patches, "
                f"at a loss of {self.loss:.3f} (chance: 50%, 0.693), so its gradient is noise; train longer, or with a "
                "larger --crop or --batch; --recipe crps leaves it out"
            )
        if self.low >= self.patience:
            self.low, self.share = 0, self.share / 2
            log(
                f"the critic has won: its loss was under {self.WON:g} for {self.patience} steps (now {loss_d:.2g}, "
                f"right in {right:.0%} of the patches); its learning rate is lowered to {self.share:.3g} of what it was"
            )

    def state_dict(self):
        return dict(vars(self))

    def load_state_dict(self, state):
        vars(self).update(state)
