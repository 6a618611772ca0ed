"""Scores a generator on windows that training does not see, and fits the noise that it is given in use.

Reads    windows of the training files, through windows.py.
Writes   messages.

    validator = Validator(state, dataset)
    scores = validator.validate(state)              # {} where nothing is held out
    state.noise_scale = validator.calibrate(state)  # at the end of a training
"""

import copy
import math
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

import models
import realism
import utils
import verification
from utils import log
from windows import Windows, window_sides

STRIDES = (1.25, 1.1)  # of the search for its factors
LEAST, MOST = 0.5, 3.0  # what they may become

__all__ = ["Validator", "as_tensors", "assess", "draw_windows", "merit"]


class Validator:
    """Scores a generator on windows of held-out days, or of the held-out columns of a short list."""

    def __init__(self, state, dataset, maps=None, predictors=None):
        train, (crop, sides) = state.train, window_sides(state.train, state.config)
        whole = {  # windows' worth of crops, as they are
            "sides": (sides[1],) * 2 if sides else None,
            "crop": 2 * crop if sides else 0,
            "part": "valid",
            "valid_share": train.valid_share,
            "turn": False,
            "maps": maps,
            "predictors": predictors,
        }
        self.held_out = Windows(dataset, seed=train.seed, **whole) if train.valid_share else None
        self.shown = None  # (lr, hr, members, box) of the first window, for pictures

    def validate(self, state):
        """Scores of the averaged generator on held-out windows; {} where nothing is held out."""
        if not self.held_out:
            return {}
        windows = draw_windows(self.held_out, state.train.valid_windows, state.group)
        scores, self.shown = assess(state.averaged.module, windows, state.group)
        return scores

    def calibrate(self, state, over):
        """Fit the factors of the noise in use: those with the least merit on held-out windows.

        A network that has seen few days, and a critic, leave members too much alike on other days, and only there: in
        training they differ as they should. Factors: of the noise of trunk and first stage, by which members differ
        over cells, and of the others. Each in turn is moved while that helps, in smaller strides the second time.

        Args: state: State, whose best weights are used. over: function, True where no time is left.
        Returns: (coarse, fine), the factors: those of the settings where they were given; (1.0, 1.0) where nothing is
            held out, for a generator without noise, or where no time is left.
        """
        if all(state.train.noise_in_use):
            return state.train.noise_in_use
        factors = (1.0, 1.0)
        if not self.held_out or not state.shape.noise_channels or over():
            return factors
        net = copy.deepcopy(state.averaged.module)
        if state.best_weights:
            net.load_state_dict(state.best_weights["weights"])
        windows = draw_windows(self.held_out, state.train.valid_windows, state.group)

        def tried(factors):
            net.config = replace(state.shape, noise_scale=factors)
            scores, _ = assess(net, windows, state.group)
            return merit(scores), scores

        kept = state.best_weights and state.scores  # of the same weights on the same windows
        first = best = (merit(kept), kept) if kept else tried(factors)
        for stride, part in ((stride, part) for stride in STRIDES for part in (0, 1)):
            for factor in (stride, 1 / stride):
                before = factors
                while not over():
                    moved = tuple(round(f * factor, 3) if k == part else f for k, f in enumerate(factors))
                    found = tried(moved) if LEAST <= moved[part] <= MOST else (math.inf, {})
                    if found[0] >= best[0]:
                        break
                    factors, best = moved, found
                if factors != before:
                    break
        said = ", ".join(
            f"{name} {first[1].get(name, math.nan):.3g} to {best[1].get(name, math.nan):.3g}"
            for name in ("crps", "spread_skill")
        )
        if not state.group.rank:
            factor, other = factors
            log(f"noise in use times {factor:g} (trunk and first stage) and {other:g}: on held-out windows {said}")
        return factors


def as_tensors(batch, device="cpu"):
    """A batch of Windows with tensors on a device instead of arrays."""
    return {
        name: torch.from_numpy(part).to(device, non_blocking=True) if isinstance(part, np.ndarray) else part
        for name, part in batch.items()
    }


def draw_windows(windows, count, group):
    """This process's part of `count` windows to score: [(number, batch of one window, as_tensors)]."""
    first, number = group.share(max(count, group.size))
    return [(k, as_tensors(windows.batch(k, 1))) for k in range(first, first + number)]


def merit(scores):
    """What the best checkpoint has least of: CRPS over bilinear's error, and what is unlike real rain.

    A hundredth for each dB of the spectrum, a tenth for each factor e of the 99.9 % quantile, and a fiftieth for each
    of the seams and of both streaks.
    """
    weights = {"p999_ratio": 0.1, "seams": 0.02, "streaks_fine": 0.02, "streaks_broad": 0.02}
    unlike = [weight * abs(math.log(max(scores[name], 1e-3))) for name, weight in weights.items()]
    return scores["ratio"] + 0.01 * scores["lsd_db"] + sum(u for u in unlike if math.isfinite(u))


@torch.no_grad()
def assess(net, windows, group, members=4):
    """Score a generator on windows of draw_windows.

    Returns: ({"crps" and "mae_bilinear", mm; their "ratio"; "lsd_db", the distance of the spectra; "p999_ratio", 99.9 %
        quantile over the truth's; "spread_skill", the members' spread over the error of their mean; "seams",
        "streaks_fine", "streaks_broad" over the truth's, NaN where windows are too small}, (lr, hr, members, box) of
        the first window).
    """
    device, scale = group.device, net.scale
    sums, spectra, counts, textures, shown = torch.zeros(5, dtype=torch.float64), [], [], [], None
    for k, batch in windows if group.rank else utils.progress(windows, "validating"):
        lr, hr, *beside = (x if x is None else x.to(device) for x in map(batch.get, ("lr", "hr", "maps", "predictors")))
        box = batch["box"]
        sources = [torch.Generator().manual_seed(1000 * k + m) for m in range(members)]
        drawn = [net.draw_noise(1, lr.shape[-2:], box, source) for source in sources]
        drawn = [[z if z is None else z.to(device) for z in noise] for noise in drawn]
        made = torch.stack([net(lr, noise, box, *beside) for noise in drawn])
        r0, r1, c0, c1 = (n * scale for n in box)
        plain = F.interpolate(lr, scale_factor=scale, mode="bilinear")[..., r0:r1, c0:c1]
        spread, error = (1 + 1 / members) * made.var(0).mean(), F.mse_loss(made.mean(0), hr)  # Fortin et al. 2014
        sums += torch.tensor([models.fair_crps(made, hr, (1,)), F.l1_loss(plain, hr), spread, error, 1.0])
        fields = torch.cat([hr[None], made])[:, 0, 0].cpu().numpy()  # (1 + M, H, W)
        spectrum, count = verification.rapsd(fields), verification.histogram(fields.reshape(len(fields), -1))
        power = max(spectrum[0, 1:].sum(), 1e-30) ** 0.5  # by the root of its power, or a few storms would rule
        spectra.append([spectrum[0] / power, spectrum[1:].mean(0) / power]), counts.append([count[0], count[1:].sum(0)])
        textures.append([realism.texture_sums(part, scale) for part in (fields[1:], fields[:1])])
        shown = shown or (lr, hr, made, box)
    both, bins, texture = (torch.from_numpy(np.sum(p, 0).astype(np.float64)) for p in (spectra, counts, textures))
    group.mean([sums, both, bins, texture])
    crps, mae, spread, error = (sums[:4] / sums[4]).tolist()
    truth, mine = verification.histogram_quantile(bins.numpy(), np.array([0.999]))[:, 0]
    scores = {"crps": crps, "mae_bilinear": mae, "ratio": crps / max(mae, 1e-12)}
    scores["lsd_db"] = verification.lsd(both[1].numpy(), both[0].numpy())
    scores["p999_ratio"], scores["spread_skill"] = mine / max(truth, 1e-12), (spread / max(error, 1e-12)) ** 0.5
    return {**scores, **realism.texture_ratios(*texture.numpy())}, shown
