"""Quick ways to the same numbers: operations on fields that torch does not have, or does slowly. Tensors in and out.

Reads and writes  nothing.

    near = enlarge(lr, 100, halo=1, margin=0)              # (N, 1, h + 2, w + 2) -> (N, 1, 100 h, 100 w), bilinear
    made = shuffled(x, repeating(weight), bias, 2)         # a convolution of pixels repeated twice

A room of its own: `models.py` was full.
"""

import torch
import torch.nn.functional as F

# fmt: off
__all__ = [
    "Fork", "Jumps", "Mixed", "channels_last", "enlarge", "joined", "repeating", "shuffled", "trim", "window_means",
]
# fmt: on


def joined(dtype, *parts):
    """Join tensors along the channels, leaving out None, in one type and memory layout (mixed ones are copied)."""
    parts = [p.to(dtype) for p in parts if p is not None]
    return (torch.cat(parts, 1) if len(parts) > 1 else parts[0]).contiguous(memory_format=torch.channels_last)


def channels_last(x):
    """x (N, C, H, W), each pixel's channels side by side in memory, also where C is 1 and torch sees no difference."""
    return torch.empty_like(x, memory_format=torch.channels_last).copy_(x)


def shuffled(x, weight, bias, factor):
    """Sub-pixel convolution: F.pixel_shuffle(conv2d(x)), but six times as fast in channels-last layout.

    The filters stand in the order in which the pixels will lie in memory, so that rows of `factor` pixels are moved
    whole; pixel_shuffle moves number by number.

    Args: weight (factor * factor, C, c_in, k, k), bias (factor * factor, C).
    Returns: (N, C, factor * (h - k + 1), ...).
    """
    made = F.conv2d(x, weight.flatten(0, 1), bias.flatten()).permute(0, 2, 3, 1)  # (N, h, w, factor * factor * C)
    n, h, w, _ = made.shape
    made = made.unflatten(3, (factor, -1)).transpose(2, 3)  # (N, h, factor, w, factor * C)
    return made.reshape(n, h * factor, w * factor, -1).permute(0, 3, 1, 2)


def repeating(weight):
    """Filters (4, C, c_in, 2, 2) of shuffled that give what `weight` (C, c_in, 3, 3) gives of pixels repeated twice.

    Two of the three pixels in a row are the same one: less than half of the arithmetic, and no repeated field.
    """
    taps = weight.new_tensor([[[1, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 1, 1]]])  # (place, pixel, tap)
    return torch.einsum("pay,qbx,oiyx->pqoiab", taps, taps, weight).flatten(0, 1)


class Mixed(torch.autograd.Function):
    """Noise of D directions (N, C, h, w, D), mixed by softmax weights of the flow (N, h, w, 2): (N, C, h, w).

    Its variance is brought to 1. doubled (D, 2), alike (D, D): of DirectedNoise.

    With weights s and b = alike s, s b = 1, the gradient at the logits is s (g - (s g) b): a half of the passes that
    autograd makes.
    """

    @staticmethod
    def forward(ctx, flow, drawn, doubled, alike):
        share = (flow @ doubled.T).softmax(-1)
        beside = share @ alike
        norm = (share * beside).sum(-1, keepdim=True).rsqrt()
        share, beside = share.mul_(norm), beside.mul_(norm)
        ctx.save_for_backward(share, beside, drawn, doubled)
        return torch.stack([(field * share).sum(-1) for field in drawn.unbind(1)], 1)

    @staticmethod
    def backward(ctx, slopes):
        share, beside, drawn, doubled = ctx.saved_tensors
        at_share = torch.zeros_like(share)
        for field, slope in zip(drawn.unbind(1), slopes.unbind(1), strict=True):
            at_share.addcmul_(field, slope[..., None])
        common = (share * at_share).sum(-1, keepdim=True)
        return share * at_share.addcmul_(beside, common, value=-1) @ doubled, None, None, None


class Jumps(torch.autograd.Function):
    """How much x (N, 1, H, W) differs from its neighbours `lag` pixels to the east, south, south-east and north-east.

    (N, 4, H - 2 lag, W - 2 lag), without sign; the gradient is put together in one field.
    """

    @staticmethod
    def forward(ctx, x, lag):
        ctx.lag, (h, w) = lag, x.shape[-2:]
        middle, *others = Jumps.places(lag, h, w)
        jumps = torch.cat([x[other] - x[middle] for other in others], 1)
        ctx.save_for_backward(jumps)
        return jumps.abs()

    @staticmethod
    def backward(ctx, slopes):
        lag, (jumps,) = ctx.lag, ctx.saved_tensors
        slopes = slopes * jumps.sign()
        n, _, h, w = slopes.shape
        whole = slopes.new_zeros(n, 1, h + 2 * lag, w + 2 * lag)
        middle, *others = Jumps.places(lag, h + 2 * lag, w + 2 * lag)
        whole[middle] -= slopes.sum(1, keepdim=True)
        for k, other in enumerate(others):
            whole[other] += slopes[:, k : k + 1]
        return whole, None

    @staticmethod
    def places(lag, h, w):
        """Indices of the pixels that have all neighbours, and of those neighbours."""
        steps = ((0, 0), (0, lag), (lag, 0), (lag, lag), (-lag, lag))
        return [(..., slice(lag + a, h - lag + a), slice(lag + b, w - lag + b)) for a, b in steps]


class Fork(torch.autograd.Function):
    """x (N, C, h, w), and x without n pixels on each side: a residual block's two ways.

    The gradients meet by one addition in place; those of slices are filled up with zeros and copied first.
    """

    @staticmethod
    def forward(ctx, x, n):
        ctx.n = n
        return x.detach(), x[..., n : x.shape[-2] - n, n : x.shape[-1] - n]

    @staticmethod
    def backward(ctx, whole, inner):
        n = ctx.n
        whole[..., n : whole.shape[-2] - n, n : whole.shape[-1] - n] += inner
        return whole, None


class Trim(torch.autograd.Function):
    """x (N, C, h, w) without n pixels on each side; its gradient is channels-last, and written once."""

    @staticmethod
    def forward(ctx, x, n):
        ctx.n = n
        return x[..., n:-n, n:-n]

    @staticmethod
    def backward(ctx, inner):
        n, (h, w) = ctx.n, inner.shape[-2:]
        whole = inner.new_zeros(*inner.shape[:2], h + 2 * n, w + 2 * n).contiguous(memory_format=torch.channels_last)
        whole[..., n:-n, n:-n] = inner
        return whole, None


def trim(x, n):
    """Cut n pixels off each side of x (N, C, h, w)."""
    return Trim.apply(x, n) if n else x


def enlarge(x, grid, halo, margin):
    """Interpolate x bilinearly: (N, 1, h + 2 halo, ...) -> (N, 1, grid h + 2 margin, ...), float32.

    Two products with small matrices make only the pixels that are looked at: 6 to 30 times as fast as F.interpolate,
    which makes those of the whole halo too (x100, crops of one cell). At its own grid x is cut.
    """
    if grid == 1:
        return trim(x.float(), halo - margin)

    def weights(cells):  # (grid h + 2 margin, h + 2 halo)
        pixels = torch.arange(grid * (cells - 2 * halo) + 2 * margin, device=x.device)
        place = (pixels - margin + 0.5) / grid - 0.5 + halo
        return F.relu(1 - (place[:, None] - torch.arange(cells, device=x.device)).abs())

    with torch.autocast(x.device.type, enabled=False):
        return weights(x.shape[-2]) @ x.float() @ weights(x.shape[-1]).T


def window_means(x, side):
    """Means of x (..., H, W) over squares of `side` pixels, each half over the next; a remainder is left out.

    Two products with small matrices: avg_pool2d adds every pixel four times, and takes three times as long.
    """

    def weights(pixels):  # (windows, pixels)
        first = torch.arange(0, pixels - side + 1, max(1, side // 2), device=x.device)[:, None]
        place = torch.arange(pixels, device=x.device)
        return ((place >= first) & (place < first + side)).to(x.dtype) / side

    return weights(x.shape[-2]) @ x @ weights(x.shape[-1]).T
