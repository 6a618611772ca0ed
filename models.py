"""Networks, transforms and losses: tensors in, tensors out.

`Generator` turns coarse rain (N, 1, h, w) into fine rain (N, 1, h * scale, w * scale), both in mm per accumulation,
non-negative and without missing values. `Discriminator`, `TruncatedVGG19` and the losses are for training.

Reads    the VGG19 weights, where content loss vgg is asked for.
Writes   nothing.

    generator = Generator(GeneratorConfig(scale=100))
    sr = generator(torch.rand(2, 1, 4, 4))            # (2, 1, 400, 400); the mean of each block is the input's value
"""

import hashlib
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from operations import Fork, Jumps, Mixed, channels_last, enlarge, joined, repeating, shuffled, trim, window_means
from settings import GeneratorConfig, prime_factors
from utils import DataError

ACTIVATIONS = {  # in place where the gradient follows from the result
    "prelu": nn.PReLU,
    "relu": partial(nn.ReLU, inplace=True),
    "leakyrelu": partial(nn.LeakyReLU, 0.2, inplace=True),
    "tanh": nn.Tanh,
}
EMPTY = 1e-20  # mm: no logarithm of zero
RELAXATION = (1.03, 1.3, 2.08, 3.59)  # of the passes of even_levels: Chebyshev points for eigenvalues from 1/4 to 1
SEAMS_FROM = 10  # scale from which cells are evened: smaller ones are within reach of the last convolutions
CONTOURS = (3, 7)  # cells: squares over which the contours of LR are averaged
STILL = 0.02  # differences of log rain below which texture has no direction
DRY = 0.01  # mm: less than this in a pixel is no rain
EXP_LIMIT = 10.0  # exp(10) mm is beyond any rain
REACH = 10  # pixels that directed noise looks to each side
MANY_PIXELS = 20  # scale from which HR has too many pixels for layers of its own
STREAK = 0.35  # strength of streaks at the start of a training, logarithm of rain
VGG_FILE = "vgg19-dcbb9e9d.pth"

# fmt: off
__all__ = [
    "ACTIVATIONS", "ADVERSARIAL_LOSSES", "CONTENT_LOSSES", "CRITICS", "ConModel", "DirectedNoise", "Discriminator",
    "Generator", "GeneratorConfig", "OUTPUTS", "ResModel", "SRConModel", "SRGANDiscriminator", "SRResModel",
    "TRANSFORMS", "TruncatedVGG19", "conserve_mass", "content_loss", "even_levels", "fair_crps", "find_device",
    "generator_config", "gradient_penalty", "initialise_normal", "least_numbers", "load_generator", "local_structure",
    "structure_score",
]
# fmt: on


# ---------------------------------------------------------------- building blocks


class ConModel(nn.Module):
    """A convolution with optional batch normalisation and activation.

    padding "replicate" keeps the size by repeating edge values (zeros would be dry borders); "valid" loses k // 2
    pixels on each side, for inputs that come with their surroundings.
    """

    def __init__(self, c_in, c_out, kernel=3, *, stride=1, norm="none", activation=None, padding="replicate"):
        super().__init__()
        pad = {"padding": kernel // 2, "padding_mode": "replicate"} if padding == "replicate" else {}
        layers = [nn.Conv2d(c_in, c_out, kernel, stride, **pad)]
        if norm == "batch":
            layers.append(nn.BatchNorm2d(c_out))
        if activation:
            layers.append(ACTIVATIONS[activation]())
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x)  # (N, c_in, h, w) -> (N, c_out, h, w), or less 2 * (k // 2) when "valid"


class ResModel(nn.Module):
    """A residual block (Ledig et al. 2017): convolution, activation, convolution, and the input added."""

    def __init__(self, channels, *, norm="none", activation="prelu", padding="replicate"):
        super().__init__()
        self.crop = 0 if padding == "replicate" else 2
        self.body = nn.Sequential(
            ConModel(channels, channels, norm=norm, activation=activation, padding=padding),
            ConModel(channels, channels, norm=norm, padding=padding),
        )

    def forward(self, x):
        whole, inner = Fork.apply(x, self.crop)
        return self.body(whole).add_(inner)


class SRConModel(nn.Module):
    """One upsampling stage: makes the grid finer by `factor` with a sub-pixel convolution, and joins what is new there.

    Convolutions of the fields known at the finer grid (interpolated LR, learned maps) and of the noise are added. The
    sub-pixel filters start equal (ICNR, Aitken et al. 2017); with `resized` the pixels are repeated before the
    convolution instead (Odena et al. 2016), which cannot make a checkerboard in training either. All convolutions are
    "valid": the input has `margin_in` extra pixels around it at the coarse grid, the result `margin_out` at the fine
    one, so a tile has the same pixels as the whole field.
    """

    def __init__(
        self,
        c_in,
        c_out,
        factor,
        *,
        noise=0,
        streaks=0,
        known=1,
        norm="none",
        activation="relu",
        margin_out=0,
        resized=False,
    ):
        super().__init__()
        self.factor = factor
        self.margin_in = 1 + -(-margin_out // factor)
        self.surplus = (self.margin_in - 1) * factor - margin_out
        self.resized = resized
        self.up = nn.Conv2d(c_in, c_out if resized else c_out * factor**2, 3)
        self.join = nn.Conv2d(known + noise, c_out, 3)
        self.lay = nn.Conv2d(streaks, c_out, 1) if streaks else None
        self.norm = nn.BatchNorm2d(c_out) if norm == "batch" else nn.Identity()
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x, known, streaks=None):
        """Upsample x.

        Args: x (N, c_in, h + 2 margin_in, ...). known (N, K, factor h + 2 (margin_out + 1), ...): noise, and fields
            known at the finer grid. streaks (N, S, factor h + 2 margin_out, ...): of DirectedNoise, or None.
        Returns: (N, c_out, factor h + 2 margin_out, ...).
        """
        made = self.join(known).add_(self._upsampled(x))
        if self.lay is not None:  # a matrix product of the pixels' channels
            laid = F.linear(streaks.permute(0, 2, 3, 1), self.lay.weight.flatten(1), self.lay.bias)
            made = made.add_(laid.permute(0, 3, 1, 2))
        return self.activation(self.norm(made))

    def _upsampled(self, x):
        if not self.resized:
            weight, bias = (
                p.unflatten(0, (-1, self.factor**2)).transpose(0, 1) for p in (self.up.weight, self.up.bias)
            )
            return trim(shuffled(x, weight, bias, self.factor), self.surplus)
        return trim(shuffled(x, repeating(self.up.weight), self.up.bias.expand(4, -1), 2), self.surplus + 1)


class DirectedNoise(nn.Module):
    """Noise laid along lines that follow a direction field: rain of a day lies in streaks along its storms' tracks.

    White noise is smoothed along lines of DIRECTIONS directions (Gaussians, ALONG and ACROSS pixels wide); at each
    pixel these are mixed with von Mises weights around the direction of the flow there. Noise smoothed along a flow is
    line integral convolution (Cabral and Leedom 1993); here the generator chooses the flow.
    """

    DIRECTIONS, ALONG, ACROSS = 16, 5.0, 0.75

    def __init__(self):
        super().__init__()
        angles = torch.arange(self.DIRECTIONS).view(-1, 1, 1) * math.pi / self.DIRECTIONS
        y, x = torch.meshgrid(*[torch.arange(-REACH, REACH + 1.0)] * 2, indexing="ij")
        along, across = x * angles.cos() + y * angles.sin(), y * angles.cos() - x * angles.sin()
        lines = (-((along / self.ALONG) ** 2 + (across / self.ACROSS) ** 2) / 2).exp()
        lines = lines.where(lines > 1e-20, 0.0)  # subnormal numbers are 50 times as slow where float32 is used
        lines = lines / lines.square().sum((1, 2), keepdim=True).sqrt()
        self.register_buffer("alike", torch.einsum("dyx,eyx->de", lines, lines), persistent=False)
        self.register_buffer("lines", lines[:, None], persistent=False)
        self.register_buffer("doubled", torch.cat([(2 * angles).cos(), (2 * angles).sin()], 2)[:, 0], persistent=False)

    def forward(self, noise, flow):
        """Lay noise along the flow.

        Args: noise (N, C, h + 2 REACH, w + 2 REACH), white. flow (N, 2, h, w): concentration times (cos, sin) of twice
            the angle, from the direction of the columns towards that of the rows; 0: no direction.
        Returns: (N, C, h, w), float32, of variance 1.
        """
        with torch.no_grad():  # directions last, as they lie in memory
            drawn = F.conv2d(channels_last(noise.flatten(0, 1)[:, None]), self.lines.to(noise.dtype))
            drawn = drawn.permute(0, 2, 3, 1).float().unflatten(0, noise.shape[:2])  # (N, C, h, w, D)
        with torch.autocast(noise.device.type, enabled=False):
            return Mixed.apply(flow.float().permute(0, 2, 3, 1), drawn, self.doubled, self.alike)


class SRResModel(nn.Module):
    """SRResNet: layers at the LR grid (the trunk), one upsampling stage for each prime factor, an output at each grid.

    The trunk (9 x 9 convolution, residual blocks, skip) sees the whole field, predictors, and noise, so that cells
    agree on what they share; from its features, and from the contours of the LR field, comes the flow that streaks
    follow. `stages` turns a part of its features into finer values, the largest prime factor first, so that the last
    steps towards HR are small. Behind each upsampling enter noise, the interpolated LR field, static fields, the
    learned maps of a fixed region and, short of HR, streaks; residual blocks follow, most of them where pixels are few.
    Each grid adds its own detail: a convolution of its features, and the streaks with an amplitude chosen at each
    pixel. A Laplacian pyramid (Denton et al. 2015): it can be stopped, and trained, at a coarser grid.
    """

    def __init__(self, config):
        super().__init__()
        c, kw = config.channels, {"norm": config.norm, "activation": config.activation}
        self.factors = prime_factors(config.scale)[::-1]
        self.grids = np.cumprod([1, *self.factors]).tolist()  # pixels per LR cell side before each stage, and at HR
        widths = [c, *(config.stage_channels or [_width(c, g, config.scale) for g in self.grids[1:]])]
        blocks = config.stage_blocks or [_depth(g, config.scale) for g in self.grids[1:]]
        noise, maps = config.noise_channels, config.position_channels + len(config.static_fields)
        known = 1 + maps + noise
        streaks = [noise * (config.directed and g < config.scale) for g in self.grids[1:]]
        self.noise_channels = noise
        self.head = ConModel(known + len(config.predictor_fields), c, 9, activation=config.activation)
        self.body = nn.Sequential(*(ResModel(c, **kw) for _ in range(config.blocks)), ConModel(c, c, norm=config.norm))
        ups, refine, margin = [], [], 1  # an output convolution needs one pixel around
        self.margins = []  # surroundings, in pixels, of what is known at each stage's grid
        for k in reversed(range(len(self.factors))):
            refine.insert(0, nn.Sequential(*(ResModel(widths[k + 1], padding="valid", **kw) for _ in range(blocks[k]))))
            margin += 2 * blocks[k]
            self.margins.insert(0, margin + 1)
            about = {"noise": noise, "streaks": streaks[k], "known": known - noise, "norm": config.norm}
            about["resized"] = self.factors[k] == 2 and config.scale >= MANY_PIXELS
            up = SRConModel(
                *widths[k : k + 2], self.factors[k], activation=config.stage_activation, margin_out=margin, **about
            )
            ups.insert(0, up)
            margin = up.margin_in
        self.ups, self.refine = nn.ModuleList(ups), nn.ModuleList(refine)
        self.halo = margin  # LR cells of trunk features needed around a part
        self.flow = nn.Conv2d(c, 2, 1)
        self.along = nn.Parameter(torch.ones(len(CONTOURS)))  # concentration that each width of contours gives
        self.directed = DirectedNoise()
        self.outs = nn.ModuleList(nn.Conv2d(width, 1, 3) for width in widths[1:])
        self.strength = nn.ModuleList(
            nn.Conv2d(width, s, 3) if s else nn.Identity() for width, s in zip(widths[1:], streaks, strict=True)
        )
        # where noise enters: pixels per LR cell side, and surroundings in pixels; the first, of the trunk, as LR
        self.entries = [(1, 0), *((g, m - 1 + REACH) for g, m in zip(self.grids[1:], self.margins, strict=True))]
        _initialise(self)

    def trunk(self, x):
        """Features (N, C + 2, h + 2 halo, ...), the last two the flow, of x (N, ..., h, w): transformed LR, maps,
        predictors, noise; edges repeated."""
        first = self.head(x)
        made = first + self.body(first)
        flow = self.flow(made) + torch.einsum("k,nkchw->nchw", self.along, contours(x[:, :1].float()))
        return F.pad(torch.cat([made, flow.to(made.dtype)], 1), (self.halo,) * 4, mode="replicate")

    def stages(self, features, x, noise, maps=None):
        """Detail of a part of h x w LR cells, at HR or, where noise ends earlier, at a coarser grid.

        Args: features (N, C + 2, h + 2 halo, w + 2 halo); x (N, 1, h + 2 halo, w + 2 halo), transformed LR; noise: one
            tensor or None for each stage to be made; maps: one (1 or N, P, H + 2 margin, ...) a stage, or None.
        Returns: (N, 1, h * grid, w * grid), float32, grid that of the last stage made.
        """
        top, total = self.grids[len(noise)], 0.0
        features, flow = features[:, :-2], features[:, -2:].float()
        for k, drawn in enumerate(noise):
            up, grid, margin = self.ups[k], self.grids[k + 1], self.margins[k]
            copy = enlarge(x, grid, self.halo, margin)  # (N, 1, grid h + 2 margin, ...)
            where = maps[k].expand(len(x), -1, -1, -1) if maps else None
            near = None if drawn is None else trim(drawn, REACH - 1)
            streaks = self.directed(drawn, enlarge(flow, grid, self.halo, margin - 1)) if up.lay is not None else None
            features = self.refine[k](up(features, joined(features.dtype, copy, where, near), streaks))
            detail = self._laid(k, features, streaks, margin - 1 - self._spare(k))
            total = total + enlarge(detail, top // grid, self._spare(k), 0)
        return total

    def _laid(self, k, features, streaks, spare):
        """Detail of stage k: a convolution of its features, and streaks (`spare` pixels larger) of chosen strength."""
        if streaks is None:
            return self.outs[k](features).float()
        weight, bias = (
            torch.cat(parts) for parts in zip(*(c.parameters() for c in (self.outs[k], self.strength[k])), strict=True)
        )
        made = F.conv2d(features, weight, bias).float()  # one convolution of few channels is as dear as of one
        return made[:, :1] + (made[:, 1:] * trim(streaks, spare)).sum(1, keepdim=True)

    def _spare(self, k):
        """Pixels around the part that the detail of stage k has."""
        return (self.ups[k + 1].margin_in if k + 1 < len(self.ups) else 1) - 1


def contours(x):
    """Direction of the contours of log rain at the LR grid, along which streaks of daily rain mostly lie.

    From the structure tensor (Bigun and Granlund 1987) of its slopes, averaged over squares of CONTOURS cells.

    Args: x (N, 1, h, w), transformed LR.
    Returns: (N, len(CONTOURS), 2, h, w): (cos, sin) of twice the angle, as DirectedNoise takes it, times a coherence
        from 0 (no direction) to 1.
    """
    around = F.pad(x, (1,) * 4, mode="replicate")
    across = around[..., 1:-1, 2:] - around[..., 1:-1, :-2]
    down = around[..., 2:, 1:-1] - around[..., :-2, 1:-1]
    tensor = torch.cat([down**2 - across**2, -2 * across * down, across**2 + down**2], 1)
    means = [F.avg_pool2d(F.pad(tensor, (side // 2,) * 4, mode="replicate"), side, 1) for side in CONTOURS]
    return torch.stack([mean[:, :2] / (mean[:, 2:] + STILL**2) for mean in means], 1)


# ---------------------------------------------------------------- generator


class Generator(nn.Module):
    """Makes one member of fine rain from coarse rain.

    transform -> SRResModel -> non-negative output -> conservation: every block of scale x scale pixels has the LR
    value as its mean (float32 rounding), a dry LR cell gives exactly 0.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.scale = config.scale
        self.net = SRResModel(config)
        self.centre = 1.0 if config.transform == "log" else 0.0  # 0.9 mm: rain on both sides of 0
        self.ring = len(RELAXATION) if config.conserve and config.scale >= SEAMS_FROM else 0  # see even_levels
        self.gain = nn.Parameter(torch.tensor(math.log(10.0)))  # undoes the log10 of the default transform
        self.position = None
        if config.position_channels:
            self.position = nn.Parameter(0.1 * torch.randn(1, config.position_channels, *config.position_shape))

    def draw_noise(self, n, cells, crop=None, generator=None, device=None, stages=None):
        """Standard normal noise for n members: one tensor for the trunk and one for each stage.

        Args: cells (h, w) of the LR field; crop (r0, r1, c0, c1), LR cells, of the part made (None: all of it); stages:
            number of stages to be made (None: all, up to HR).
        Returns: (n, C, h, w), then (n, C, grid (r1 - r0) + 2 margin, grid (c1 - c0) + 2 margin) for each stage.
        """
        r0, r1, c0, c1 = crop or (0, cells[0], 0, cells[1])
        sides = [cells, *((g * (r1 - r0) + 2 * m, g * (c1 - c0) + 2 * m) for g, m in self.net.entries[1:][:stages])]
        shapes = [(n, self.net.noise_channels, *side) for side in sides]
        return [torch.randn(s, generator=generator, device=device) if s[1] else None for s in shapes]

    def forward(self, lr, noise=None, crop=None, maps=None, predictors=None):
        """One member for each field of the batch.

        Args: lr (N, 1, h, w), mm, >= 0, nothing missing; noise from draw_noise for the part made (None: drawn from
            torch's global state); crop (r0, r1, c0, c1) in LR cells: the trunk sees all of lr, only this part is made;
            maps (1 or N, S, h * scale, w * scale): static fields, and predictors (1 or N, P, h, w): fields of the day,
            both as the checkpoint's normalisation leaves them.
        Returns: (N, 1, (r1 - r0) * scale, (c1 - c0) * scale), mm, float32.
        """
        crop = crop or (0, lr.shape[-2], 0, lr.shape[-1])
        noise = noise or self.draw_noise(len(lr), lr.shape[-2:], crop, device=lr.device)
        return self.finish(lr, self.detail(*self.encode(lr, noise[0], maps, predictors), noise[1:], crop, maps), crop)

    def encode(self, lr, noise=None, maps=None, predictors=None):
        """Transformed LR and trunk features, both with `net.halo` cells of repeated edge: what `detail` takes.

        noise (N, C, h, w): the trunk's; None without noise channels. maps, predictors: as forward.
        Raises: ValueError: predictors of another shape, or another number of them; or as detail.
        """
        fields = len(self.config.predictor_fields)
        if (predictors is None) == bool(fields) or fields and tuple(predictors.shape[1:]) != (fields, *lr.shape[-2:]):
            found = None if predictors is None else tuple(predictors.shape[1:])
            raise ValueError(f"predictors {found}, expected {(fields, *lr.shape[-2:]) if fields else None}")
        noise = self._in_use(noise, 0)
        x, ground = self._transformed(lr) - self.centre, self._ground(lr.shape[-2:], maps)
        where = None if ground is None else F.avg_pool2d(ground, self.scale).expand(len(x), -1, -1, -1)
        day = None if predictors is None else predictors.expand(len(x), -1, -1, -1)
        return F.pad(x, (self.net.halo,) * 4, mode="replicate"), self.net.trunk(joined(x.dtype, x, where, day, noise))

    def detail(self, x, features, noise, crop, maps=None):
        """What the network makes of the part `crop`, before amounts are put on it; arguments as encode returned them.

        noise: without the trunk's; of the first stages alone: detail at a coarser grid. maps: static fields, of all of
            lr, as forward.
        Returns: (N, 1, H, W), float32: 0 everywhere is the interpolated input.
        """
        r0, r1, c0, c1 = crop
        around = (..., slice(r0, r1 + 2 * self.net.halo), slice(c0, c1 + 2 * self.net.halo))
        ground = self._ground([n - 2 * self.net.halo for n in x.shape[-2:]], maps)
        known = None if ground is None else self._at_stages(ground, crop, len(noise))
        noise = [self._in_use(drawn, min(k, 1)) for k, drawn in enumerate(noise)]
        return self.net.stages(features[around], x[around], noise, known)

    def _in_use(self, noise, part):
        """Noise as it is given to the network: times a factor of config.noise_scale, but not in training."""
        factor = 1.0 if self.training else self.config.noise_scale[part]
        return noise if noise is None or factor == 1 else noise * factor

    def finish(self, lr, detail, crop):
        """Rain (N, 1, H, W), mm, from detail of any grid: the interpolated input added, non-negative, conserved."""
        r0, r1, c0, c1 = crop
        scale = detail.shape[-1] // (c1 - c0)
        with torch.autocast(detail.device.type, enabled=False):
            around = F.pad(self._transformed(lr), (1,) * 4, mode="replicate")[..., r0 : r1 + 2, c0 : c1 + 2]
            raw = detail + self.gain * enlarge(around, scale, 1, 0)
            if not self.config.conserve:
                return OUTPUTS[self.config.output](raw)
            lr = lr[..., r0:r1, c0:c1].float()
            logs = raw if self.config.output == "exp" else (OUTPUTS[self.config.output](raw) + EMPTY).log()
            return conserve_mass(even_levels(logs, lr, scale) if self.ring else logs, lr, scale)

    def _transformed(self, lr):
        return TRANSFORMS[self.config.transform].forward(lr.float(), self.config.transform_parameters)

    def _ground(self, cells, maps):
        """All that is known of the ground at HR, (1 or N, P + S, H, W): learned maps and static fields; None: nothing.

        Raises: ValueError: maps for another region or number of fields; a region that the learned maps are not of.
        """
        shape, fields = tuple(n * self.scale for n in cells), len(self.config.static_fields)
        if self.position is not None and shape != tuple(self.config.position_shape):
            raise ValueError(
                f"this generator is tied to a region of {self.config.position_shape} pixels; the input gives {shape}"
            )
        if (maps is None) == bool(fields) or fields and tuple(maps.shape[1:]) != (fields, *shape):
            found = None if maps is None else tuple(maps.shape[1:])
            raise ValueError(f"static fields {found}, expected {(fields, *shape) if fields else None}")
        if self.position is None or maps is None:
            return self.position if maps is None else maps
        return torch.cat([self.position.expand(len(maps), -1, -1, -1), maps], 1)

    def _at_stages(self, ground, crop, stages):
        """Block means of `ground` at the first stages' grids, on `crop` and the stage's margin, edges repeated."""
        (h, w), (r0, r1, c0, c1), parts = (n // self.scale for n in ground.shape[-2:]), crop, []
        for grid, margin in list(zip(self.net.grids[1:], self.net.margins, strict=True))[:stages]:
            near = -(-margin // grid)  # cells
            top, bottom, left, right = max(r0 - near, 0), min(r1 + near, h), max(c0 - near, 0), min(c1 + near, w)
            part = ground[..., top * self.scale : bottom * self.scale, left * self.scale : right * self.scale]
            part = F.avg_pool2d(part, self.scale // grid)
            there = [grid * n for n in (c0 - left, right - c1, r0 - top, bottom - r1)]
            part = F.pad(part, [max(margin - n, 0) for n in there], mode="replicate")
            y, x = (max(n - margin, 0) for n in (there[2], there[0]))
            parts.append(part[..., y : y + grid * (r1 - r0) + 2 * margin, x : x + grid * (c1 - c0) + 2 * margin])
        return parts


def conserve_mass(logs, lr, scale):
    """Distribute the rain of each LR cell over its scale x scale pixels in proportion to exp(logs).

    Pixels that would get less than DRY mm are dry, and their rain goes to the others. Only proportions count, like in
    a softmax: no block can overflow, underflow or be divided by zero.

    Args: logs (N, 1, h * scale, w * scale); lr (N, 1, h, w), mm.
    Returns: (N, 1, h * scale, w * scale), mm: block means are lr to float32 rounding, exactly 0 where lr is 0.
    """
    n, c, h, w = lr.shape
    amount = lr.reshape(n, c, h, 1, w, 1)
    blocks = logs.reshape(n, c, h, scale, w, scale)
    share = (blocks - blocks.amax((3, 5), keepdim=True)).exp()
    share = share / share.mean((3, 5), keepdim=True)
    share = F.relu(share - DRY / amount.clamp(min=2 * DRY))  # at most half a share: the mean stays above a half
    return (share / share.mean((3, 5), keepdim=True) * amount).reshape(n, c, h * scale, w * scale)


def even_levels(logs, lr, scale):
    """Correct logs smoothly so that the block means of exp(logs) nearly equal lr.

    conserve_mass alone gives each cell its own factor, which shows as a step at cell edges. Here the logarithms of the
    factors are placed at cell centres and interpolated between wet cells; after four such corrections conserve_mass
    has little left to do. A cell's result depends on cells up to four away.

    Args: logs (N, 1, h * scale, w * scale); lr (N, 1, h, w), mm. Returns: as logs.
    """
    n, c, h, w = lr.shape
    wet = (lr > 0).to(lr.dtype)

    def between(cells):  # (N, 1, h, w) -> (N, 1, h * scale, w * scale)
        return enlarge(F.pad(cells, (1,) * 4, mode="replicate"), scale, 1, 0)

    weight = between(wet).clamp(min=0.25)  # a wet cell's own share of the interpolation is never less
    moved, shift = logs, torch.zeros_like(lr)
    for relaxed in RELAXATION:
        level = moved.reshape(n, c, h, scale, w, scale).logsumexp((3, 5)) - 2 * math.log(scale)
        shift = shift + relaxed * wet * (lr.clamp(min=1e-30).log() - level)
        moved = logs + between(shift) / weight
    return moved


def load_generator(state, device="cpu"):
    """Rebuild the generator of a checkpoint or export, with its averaged weights, in evaluation mode.

    Args: state: "generator_config" (dict of GeneratorConfig) and "ema" (EMA.state_dict()).
    Raises: ValueError: an entry is absent, or settings and weights do not belong together.
    """
    for key in ("generator_config", "ema"):
        if key not in state:
            raise ValueError(f"no {key!r} in the checkpoint, found {', '.join(sorted(state))}: not one of 2train.py's")
    config, weights = generator_config(state), state["ema"]["weights"]
    least, held = least_numbers(config, 0, 0)[0], sum(value.numel() for value in weights.values())
    if any(value.is_complex() or value.is_sparse for value in weights.values()):
        raise ValueError("its weights are complex or sparse, expected real numbers")
    if least > held:  # not built: it may be larger than memory
        raise ValueError(f"its settings need {least:,} weights or more, it holds {held:,}")
    generator = Generator(config)
    generator.load_state_dict(weights)
    small, large = generator._transformed(torch.tensor([0.0, 1e4]).view(2, 1, 1, 1)).flatten()
    if not (torch.isfinite(small) and torch.isfinite(large) and large > small):
        raise ValueError(f"transform {config.transform} tells no amounts apart ({config.transform_parameters})")
    return generator.to(device).eval()


def least_numbers(config, seen, made):
    """The least that a generator takes: (weights, numbers of one member that its backward pass keeps).

    Args: config: GeneratorConfig. seen, made: LR cells of the field, and of the part that is made.
    """
    grids = np.cumprod([1, *prime_factors(config.scale)[::-1]]).tolist()
    widths = config.stage_channels or [_width(config.channels, g, config.scale) for g in grids[1:]]
    blocks = config.stage_blocks or [_depth(g, config.scale) for g in grids[1:]]
    widths, blocks = [config.channels, *widths], [config.blocks, *blocks]
    cells = [seen, *(made * g**2 for g in grids[1:])]
    weights = sum(18 * number * width**2 for number, width in zip(blocks, widths, strict=True))
    kept = sum(n * width * (1 + 2 * number) for n, width, number in zip(cells, widths, blocks, strict=True))
    return weights, kept


def find_device(choice):
    """The device, cpu or cuda, that --device auto, cpu or cuda stands for on this machine.

    Raises: DataError: cuda, where there is no GPU that PyTorch can use.
    """
    if choice == "cuda" and not torch.cuda.is_available():
        raise DataError("--device cuda: PyTorch finds no GPU here; expected one, or --device cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if choice == "auto" else choice


def generator_config(state):
    """Read the GeneratorConfig of a checkpoint or export.

    Raises: ValueError: made by an earlier version with a setting that no longer exists.
    """
    return GeneratorConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in state["generator_config"].items()})


# ---------------------------------------------------------------- critics


class Discriminator(nn.Module):
    """The critic: judges texture patch by patch, at HR and at the coarser grid of training.

    For each of the two a network of its own: convolutions (k3, then k4 of stride 2 three times, leaky ReLU 0.2) and one
    logit for each patch, which sees about 60 pixels to each side. It is shown how log rain differs from that of the LR
    cell, and the LR cell's log rain. No norm and no dense layer: with them such a critic stayed where it began.
    """

    def __init__(self, channels=24):
        super().__init__()
        self.networks = nn.ModuleList(self._network(channels) for _ in range(2))

    @staticmethod
    def _network(channels):
        widths, layers = [2, channels, 2 * channels, 4 * channels, 4 * channels], []
        for k in range(4):
            layers += [nn.Conv2d(widths[k], widths[k + 1], 4 if k else 3, 2 if k else 1, 1), nn.LeakyReLU(0.2)]
        layers += [nn.Conv2d(widths[-1], widths[-1], 3, 1, 1), nn.LeakyReLU(0.2), nn.Conv2d(widths[-1], 1, 3, 1, 1)]
        for m in layers[::2]:
            nn.init.kaiming_normal_(m.weight, 0.2), nn.init.zeros_(m.bias)
        layers[-1].weight.data.mul_(0.1)
        return nn.Sequential(*layers)

    def see(self, lr, field):
        """What is judged, (N, 2, H, W), of lr (N, 1, h, w) and field (N, 1, H, W), real or made, mm."""
        known = log_rain(F.interpolate(lr, size=field.shape[-2:], mode="nearest"))
        return torch.cat([2 * (log_rain(field) - known), known - 1], 1)

    def forward(self, seen, coarse=False):
        """Logits (N, 1, h, w), float32, of the patches of what `see` returned; coarse: by the other network."""
        return self.networks[coarse](seen.contiguous(memory_format=torch.channels_last)).float()


class SRGANDiscriminator(nn.Module):
    """The discriminator of SRGAN (Ledig et al. 2017), given LR too, for the recipes srgan and srgan-notes.

    Convolutions k3 of channels x (1, 1, 2, 2, 4, 4, 8, 8), stride 2 every other one, batch normalisation behind all but
    the first, pooled to 6 x 6, dense 16 x channels (SRGAN: 64 channels, 1024), 1.
    """

    def __init__(self, channels=64, blocks=8):
        super().__init__()
        layers, c_in, dense = [], 2, 16 * channels
        for k in range(blocks):
            c_out = channels * 2 ** (k // 2)
            norm = [nn.BatchNorm2d(c_out)] if k else []
            layers += [nn.Conv2d(c_in, c_out, 3, 1 + k % 2, 1), *norm, nn.LeakyReLU(0.2)]
            c_in = c_out
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(6))
        self.classify = nn.Sequential(nn.Linear(c_in * 36, dense), nn.LeakyReLU(0.2), nn.Linear(dense, 1))

    def see(self, lr, field):
        """What is judged, (N, 2, H, W): log rain of the field and of the LR values spread over their cells."""
        return log_rain(torch.cat([field, F.interpolate(lr, size=field.shape[-2:], mode="nearest")], 1))

    def forward(self, seen, coarse=False):
        """Logits (N, 1), float32, of what `see` returned."""
        return self.classify(self.features(seen.contiguous(memory_format=torch.channels_last)).flatten(1)).float()


class TruncatedVGG19(nn.Module):
    """Fixed VGG19 features after convolution j (activated) before pooling layer i, SRGAN's phi_i,j.

    weights: path of the ImageNet weights; None looks beside this file and in torch's cache. A file is taken only when
    its SHA-256 begins with the digits in its name (torch's convention; `vgg19-dcbb9e9d.pth`).

    Raises: FileNotFoundError, ValueError (wrong digest, no such convolution).
    """

    def __init__(self, i, j, weights=None):
        super().__init__()
        import torchvision  # takes seconds, and only this loss needs it

        state = torch.load(_vgg_weights(weights), map_location="cpu", weights_only=True)
        with torch.device("meta"):  # the dense layers, nine tenths of VGG19, are never made
            whole = torchvision.models.vgg19(weights=None).features
        whole.load_state_dict(
            {k.removeprefix("features."): v for k, v in state.items() if k.startswith("features.")}, assign=True
        )
        self.features = whole[: _vgg_depth(whole, i, j)].eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def train(self, mode=True):
        return super().train(False)  # frozen

    def forward(self, image):
        """image (N, 1, H, W), grey in [0, 1] -> features (N, C, H', W')."""
        return self.features((image.expand(-1, 3, -1, -1) - self.mean) / self.std)


# ---------------------------------------------------------------- losses


def log_rain(amounts):
    """log10(1 + 10 mm): rain as the critics and the scores of texture see it."""
    return torch.log10(1 + 10 * amounts)


def fair_score(distance, members, target):
    """Mean distance of M members from the target less half that over their M (M - 1) pairs: unbiased for any M >= 2
    (Ferro 2014, doi 10.1002/qj.2270). One member: its distance."""
    far = sum(distance(x, target) for x in members) / len(members)
    pairs = [distance(members[a], members[b]) for a in range(len(members)) for b in range(a)]
    return far - 0.5 * sum(pairs) / len(pairs) if pairs else far


def fair_crps(members, target, pools=(1, 4, 16)):
    """Mean fair CRPS of an ensemble over pixels and over block means at several scales.

    fair_score of the absolute difference. One member: the mean absolute error.

    Args: members (M, N, 1, H, W), target (N, 1, H, W), mm; pools: sides of the blocks in pixels, each block half over
        the next: those across LR cell edges teach most, since conservation settles the others (a remainder at the
        edge is left out; a side beyond the field is cut to it).
    Returns: scalar, mm.
    """
    total = 0.0
    for p in pools:
        p = min(p, *target.shape[-2:])
        x, y = (members, target) if p == 1 else (window_means(field, p) for field in (members, target))
        total = total + fair_score(lambda a, b: (a - b).abs().mean(), x, y)
    return total / len(pools)


def content_loss(name, members, target, *, pools=(1, 4, 16), vgg=None):
    """Compute the content loss of this name: crps, mse, l1 or vgg.

    Args: members (M, N, 1, H, W), target (N, 1, H, W), mm; pools for crps; vgg: the TruncatedVGG19 for vgg.
    Raises: ValueError: unknown name.
    """
    if name not in CONTENT_LOSSES:
        raise ValueError(f"content loss {name!r} is not one of {', '.join(CONTENT_LOSSES)}")
    return CONTENT_LOSSES[name](members, target, pools, vgg)


def local_structure(field, lags=(1, 2, 4, 8), block=24):
    """How much log rain differs from pixel to pixel, by distance and direction: local variograms of order 1.

    Args: field (N, 1, H, W), mm. lags: distances in pixels. block: side of the squares that share a mean.
    Returns: for each lag (N, 4, h, w): means of |log10(1 + 10 x)| differences to the east, south, south-east and
        north-east in squares of `block` pixels (or three lags), each half over the next.
    """
    x, parts = log_rain(field.float()), []
    for lag in lags:
        if min(x.shape[-2:]) < 3 * lag:
            break
        jumps = Jumps.apply(x, lag)
        parts.append(window_means(jumps, min(max(block, 3 * lag), *jumps.shape[-2:])))
    return parts


def structure_score(members, target, weight):
    """Fair scores of the amplitude and of the direction of local_structure (energy score, Gneiting and Raftery 2007;
    fair: Ferro 2014).

    They ask for the truth's texture, streaks and directions, each in its place, as an ensemble can know it. Variograms
    as features of a score are from Scheuerer and Hamill (2015). A proper score leaves no gain to one and the same
    direction everywhere, nor to smooth members.

    Args: members (M, N, 1, H, W), M >= 2 for a spread; target (N, 1, H, W), mm; weight (N, 1, 1, 1) of the samples.
    Returns: (amplitude, direction), scalars without unit, means over the lags.
    """

    def size(vectors):
        return (vectors.square().sum(1, keepdim=True) + 1e-6).sqrt()

    def parts(jumps):  # (N, 4, h, w): logarithm of the sum; differences of opposite directions over the sum
        total = jumps.sum(1, keepdim=True) + STILL
        turned = torch.stack([jumps[:, 0] - jumps[:, 1], jumps[:, 2] - jumps[:, 3]], 1)
        return total.log(), 2 * turned / total

    def distance(one, two):
        return (size(one - two) * weight).mean()

    lags = [[parts(jumps) for jumps in local_structure(field)] for field in (target, *members)]
    scores = [
        [fair_score(distance, made, real) for real, *made in zip(*lag, strict=True)] for lag in zip(*lags, strict=True)
    ]
    return [sum(kind) / len(kind) for kind in zip(*scores, strict=True)] or [target.new_zeros(())] * 2


def gradient_penalty(discriminator, seen, coarse=False):
    """Penalise the slope of each patch's logit at `seen` (R1 at real rain, R2 at made rain; Mescheder et al. 2018).

    The logits are added with random signs, over the root of their number: the expected square of the slope of that sum
    is the mean square of the slopes of the single logits, whatever crop, scale and number of patches.

    Args: seen (N, 2, H, W) as Discriminator.see returns it. Returns: scalar, mean squared norm of d logit / d field.
    """
    seen = seen.detach().requires_grad_(True)
    logits = discriminator(seen, coarse)
    signs = torch.randint(0, 2, logits.shape, device=logits.device) * 2 - 1
    total = (signs * logits).sum() / math.sqrt(logits[0].numel())
    (slope,) = torch.autograd.grad(total, seen, create_graph=True)
    return slope[:, :1].float().square().sum((1, 2, 3)).mean()


# ---------------------------------------------------------------- transforms


class Transform(NamedTuple):
    """One normalisation: fit(values in mm) -> parameters (plain floats); forward(x, p); inverse(y, p) back to mm."""

    fit: Callable
    forward: Callable
    inverse: Callable


def _linear(offset, size):
    """The Transform (x - offset) / size; both are taken from the parameters of _fit_range, size at least 1e-12."""
    return Transform(
        _fit_range,
        lambda x, p: (x - offset(p)) / max(size(p), 1e-12),
        lambda y, p: y * max(size(p), 1e-12) + offset(p),
    )


def _fit_range(values):
    v = np.asarray(values, np.float64)
    return {"min": float(v.min()), "max": float(v.max()), "mean": float(v.mean()), "std": float(v.std())}


def _fit_decimal(values):
    largest = float(np.abs(np.asarray(values)).max())
    return {"divisor": 10.0 ** math.ceil(math.log10(largest)) if largest > 0 else 1.0}


def _fit_binary(values, threshold=0.1):
    v = np.asarray(values, np.float64)
    wet, dry = v[v >= threshold], v[v < threshold]
    return {
        "threshold": threshold,
        "wet": float(wet.mean()) if wet.size else threshold,
        "dry": float(dry.mean()) if dry.size else 0.0,
    }


TRANSFORMS = {
    "log": Transform(
        lambda values: {"c": 10.0},
        lambda x, p: (1 + p["c"] * x).log10(),
        lambda y, p: (10**y - 1) / p["c"],
    ),
    "minmax": _linear(lambda p: p["min"], lambda p: p["max"] - p["min"]),
    "zscore": _linear(lambda p: p["mean"], lambda p: p["std"]),
    "decimal": Transform(_fit_decimal, lambda x, p: x / p["divisor"], lambda y, p: y * p["divisor"]),
    "mean": _linear(lambda p: p["mean"], lambda p: p["max"] - p["min"]),
    # Two classes: the way back gives each class its mean, the nearest thing to an inverse that exists.
    "binarise": Transform(
        _fit_binary,
        lambda x, p: (x >= p["threshold"]).to(x.dtype),
        lambda y, p: p["dry"] + (p["wet"] - p["dry"]) * y,
    ),
    "mean_over_max": _linear(lambda p: p["mean"], lambda p: p["max"]),
}


# ---------------------------------------------------------------- parts of the networks


def _width(channels, grid, scale):
    """Number of features at a grid: fewer where pixels are many (multiples of 8, for matrix units), at least 8."""
    many = scale >= MANY_PIXELS
    share = 1 if 10 * grid <= scale else 0.75 if 4 * grid <= scale or (grid < scale and not many) else 0.5
    return max(8, 8 * round((share / 2 if grid == scale and many else share) * channels / 8))


def _depth(grid, scale):
    """Residual blocks at a grid: most at a quarter of the HR grid's side, none at HR where its pixels are many."""
    if grid == scale:
        return 2 if scale < MANY_PIXELS else 1
    return 2 if 2 * grid >= scale else 4 if 5 * grid >= scale else 3


def initialise_normal(module, std=0.02):
    """Draw all weights from N(0, std) and set biases to 0 (DCGAN, Radford et al. 2016; the user's notes)."""
    for m in module.modules():
        if isinstance(m, nn.Conv2d | nn.Linear):
            nn.init.normal_(m.weight, 0.0, std)
            nn.init.zeros_(m.bias)


def _initialise(net):
    """Set the initial weights: He normal, biases 0, residual branches a tenth as large, equal sub-pixel filters.

    PyTorch's own start shrinks the signal in every layer; in a net this deep nothing would be left of the input.
    """
    for m in net.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, nonlinearity="relu")
            nn.init.zeros_(m.bias)
    for m in net.modules():
        if isinstance(m, ResModel):
            m.body[-1].layers[0].weight.data.mul_(0.1)
        elif isinstance(m, SRConModel):
            if not m.resized:
                _icnr(m.up, m.factor)
            m.up.weight.data.mul_(0.5), m.join.weight.data.mul_(0.5)  # their sum is as large as either was
    for out in net.outs:
        out.weight.data.mul_(0.1)
    for strength in net.strength:
        if isinstance(strength, nn.Conv2d):
            strength.weight.data.mul_(0.1), strength.bias.data.fill_(STREAK)


def _icnr(conv, factor):
    """Start the factor^2 filters of each shuffled channel equal (Aitken et al. 2017): no checkerboard at the start."""
    with torch.no_grad():
        weight = conv.weight[:: factor**2].repeat_interleave(factor**2, 0)
        conv.weight.copy_(weight)


def _vgg_weights(path):
    """Find the VGG19 weight file and verify its digest."""
    places = (
        [Path(path)]
        if path
        else [Path(__file__).with_name(VGG_FILE), Path(torch.hub.get_dir()) / "checkpoints" / VGG_FILE]
    )
    found = next((p for p in places if p.is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"VGG19 weights not found at {' or '.join(map(str, places))}: put {VGG_FILE} "
            f"(https://download.pytorch.org/models/{VGG_FILE}) there, or give its path (--vgg-weights)"
        )
    name = re.search(r"-([0-9a-f]{8,})\.", found.name) or re.search(r"-([0-9a-f]{8,})\.", VGG_FILE)
    digest = hashlib.sha256(found.read_bytes()).hexdigest()
    if not digest.startswith(name[1]):
        raise ValueError(
            f"{found}: SHA-256 begins {digest[:8]}, expected {name[1]}: the file is damaged or another one"
        )
    return found


def _vgg_depth(features, i, j):
    """Number of layers up to the activation after convolution j before pool i."""
    pool, conv = 1, 0
    for index, layer in enumerate(features):
        if isinstance(layer, nn.MaxPool2d):
            pool, conv = pool + 1, 0
        elif isinstance(layer, nn.Conv2d):
            conv += 1
            if (pool, conv) == (i, j):
                return index + 2
    raise ValueError(f"VGG19 has no convolution {j} before pool {i}")


def _exp(raw):
    return raw.clamp(max=EXP_LIMIT).exp()


def _vgg_loss(members, target, pools, vgg):
    if vgg is None:
        raise ValueError("content loss 'vgg' needs a TruncatedVGG19")
    grey = [log_rain(x).clamp(max=4) / 4 for x in (members.flatten(0, 1), target)]  # 1000 mm is white
    made, real = vgg(grey[0]), vgg(grey[1])
    return F.mse_loss(made, real.repeat(len(members), 1, 1, 1))


def _relativistic(real, fake):
    """Paired relativistic losses (Jolicoeur-Martineau 2019; with both penalties, Huang et al. 2024)."""
    return F.softplus(fake - real).mean(), F.softplus(real - fake).mean()


def _hinge(real, fake):
    """Hinge losses (Lim and Ye 2017)."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean(), -fake.mean()


def _bce(real, fake):
    """Sigmoid cross-entropy, non-saturating (Goodfellow et al. 2014; SRGAN)."""
    return F.softplus(-real).mean() + F.softplus(fake).mean(), F.softplus(-fake).mean()


OUTPUTS = {"softplus": F.softplus, "exp": _exp}
CONTENT_LOSSES = {
    "crps": lambda members, target, pools, vgg: fair_crps(members, target, pools),
    "mse": lambda members, target, pools, vgg: F.mse_loss(members, target.expand_as(members)),
    "l1": lambda members, target, pools, vgg: F.l1_loss(members, target.expand_as(members)),
    "vgg": _vgg_loss,
}
CRITICS = {"patches": Discriminator, "srgan": SRGANDiscriminator}
ADVERSARIAL_LOSSES = {"relativistic": _relativistic, "hinge": _hinge, "bce": _bce}
