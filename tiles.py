"""Makes a field of any size part by part: each pixel once, and the same whatever the parts.

Reads and writes  nothing. PyTorch is imported where the network runs.

    for rows, cols, sr in make_tiles(generator, lr, ["0|0|2023-08-01"]):   # slices, and (members, H, W), mm
        ...

A room of its own: `downscaling.py` chooses models and writes files.
"""

import contextlib
import hashlib
import math

import numpy as np

__all__ = ["make_tiles", "tile_shape"]

PART_PIXELS = 500_000  # HR pixels that the network makes at a time: its features there stay near the processor
BAND_PIXELS = 1_500_000  # square of the rows of a band
KEPT_PIXELS = 100_000_000  # of all members in a band and its ring: strips of columns are narrow enough for that


def tile_shape(generator, members, cells, side=None):
    """Rows and columns, in LR cells, of the tiles of make_tiles; arguments as there, cells (h, w) of the LR field."""
    if side:
        return min(side, cells[0]), min(side, cells[1])
    rows = max(1, int(math.sqrt(BAND_PIXELS)) // generator.scale)
    columns = KEPT_PIXELS // (members * (rows + 2 * generator.ring) * generator.scale**2)
    return min(rows, cells[0]), min(max(rows, columns), cells[1])


def make_tiles(generator, lr, keys, *, origin=(0, 0), side=None, pace=None, maps=None, predictors=None):
    """Make a member for each noise key, tile by tile.

    Tiles are as wide as memory allows, one below the other. The network makes each cell's detail once; a tile is
    finished when the `ring` of cells around it is made, whose rows are kept for the tile below.

    Args: generator: a Generator. lr (1, 1, h, w), mm, on its device, nothing missing. keys: texts. origin: absolute row
        and column of lr[0, 0], by which noise is keyed. side: of a tile in LR cells (None: tile_shape). pace: Threads
        that time the parts. maps (1, S, h * scale, w * scale), predictors (1, P, h, w): static fields and fields of the
        day, where the generator has any.
    Yields: (rows, columns, sr): slices of the HR field, and sr (members, H, W), mm, float32, numpy.
    """
    import torch

    s, ring, (h, w) = generator.scale, generator.ring, lr.shape[-2:]
    rows, columns = tile_shape(generator, len(keys), (h, w), side)
    first = generator.net.entries[:1]
    with torch.no_grad():
        drawn = (keyed_noise(generator.net, key, _shifted((0, h, 0, w), origin), first, lr.device)[0] for key in keys)
        trunks = [generator.encode(lr, noise, maps, predictors) for noise in drawn]
    for c0 in range(0, w, columns):
        c1 = min(c0 + columns, w)
        left, right = max(c0 - ring, 0), min(c1 + ring, w)
        bottom, kept = 0, [None] * len(keys)  # detail is made down to this row; that of the last rows
        for r0 in range(0, h, rows):
            r1 = min(r0 + rows, h)
            seen = max(r0 - ring, 0), min(r1 + ring, h), left, right
            sr = np.empty((len(keys), (r1 - r0) * s, (c1 - c0) * s), np.float32)
            for m, (trunk, key) in enumerate(zip(trunks, keys, strict=True)):
                detail = kept[m]
                if bottom < seen[1]:
                    new = _detail(generator, trunk, key, (bottom, seen[1], left, right), origin, pace, maps)
                    detail = new if detail is None else torch.cat([detail, new], 2)
                _finish(generator, lr, detail, seen, (r0, r1, c0, c1), sr[m])
                kept[m] = detail[:, :, (max(r1 - ring, 0) - seen[0]) * s :].clone()
            bottom = seen[1]
            yield slice(r0 * s, r1 * s), slice(c0 * s, c1 * s), sr


def _detail(generator, trunk, key, box, origin, pace, maps):
    """Detail (1, 1, H, W) of the cells `box` (r0, r1, c0, c1), made in parts of about PART_PIXELS."""
    import torch

    (r0, r1, c0, c1), s = box, generator.scale
    side = max(1, math.isqrt(PART_PIXELS) // s)
    detail = torch.empty(1, 1, (r1 - r0) * s, (c1 - c0) * s, device=trunk[0].device)
    noise = keyed_noise(generator.net, key, _shifted(box, origin), generator.net.entries[1:], detail.device)
    with torch.no_grad():
        for a0, a1 in _split(r0, r1, side):
            for b0, b1 in _split(c0, c1, side):
                part, place = (a0, a1, b0, b1), (a0 - r0, a1 - r0, b0 - c0, b1 - c0)
                near = [
                    None if drawn is None else drawn[_pixels(place, grid, 2 * margin)]
                    for drawn, (grid, margin) in zip(noise, generator.net.entries[1:], strict=True)
                ]
                with pace.piece((a1 - a0) * (b1 - b0)) if pace else contextlib.nullcontext():
                    detail[_pixels(place, s)] = generator.detail(*trunk, near, part, maps)
    return detail


def _finish(generator, lr, detail, seen, tile, out):
    """Put the rain of a tile into out (H, W), from the detail of `seen`, all as (r0, r1, c0, c1) in LR cells.

    In pieces of columns, each with the ring around it.
    """
    import torch

    s, ring, (r0, r1, c0, c1) = generator.scale, generator.ring, tile
    side = max(12 * ring, 10 * PART_PIXELS // (s**2 * (seen[1] - seen[0])))
    with torch.no_grad():
        for b0, b1 in _split(c0, c1, side):
            part = seen[0], seen[1], max(b0 - ring, seen[2]), min(b1 + ring, seen[3])
            wide = detail[..., (part[2] - seen[2]) * s : (part[3] - seen[2]) * s]
            place = r0 - part[0], r1 - part[0], b0 - part[2], b1 - part[2]
            made = generator.finish(lr, wide, part)[_pixels(place, s)]
            out[:, (b0 - c0) * s : (b1 - c0) * s] = made[0, 0].cpu().numpy()


def _pixels(box, scale, more=0):
    """Index of the pixels of the cells (r0, r1, c0, c1), and of `more` to the right and below."""
    r0, r1, c0, c1 = (n * scale for n in box)
    return (..., slice(r0, r1 + more), slice(c0, c1 + more))


def _split(first, last, size):
    """(first, last) of equal parts of a range, each of at most `size`, or of one."""
    number = max(1, -(-(last - first) // max(size, 1)))
    edges = [first + (last - first) * k // number for k in range(number + 1)]
    return list(zip(edges[:-1], edges[1:], strict=True))


def _shifted(box, origin):
    """The box (r0, r1, c0, c1) in absolute cells."""
    return tuple(n + origin[k // 2] for k, n in enumerate(box))


def keyed_noise(net, key, box, entries, device):
    """Noise of the cells box = (r0, r1, c0, c1) (absolute) and their surroundings, as Generator.draw_noise(1, ...).

    entries: [(pixels per LR cell side, pixels around)], those of net.entries that are asked for.
    """
    import torch

    if not net.noise_channels:
        return [None] * len(entries)
    r0, r1, c0, c1 = box
    noise = []
    for grid, margin in entries:
        around = -(-margin // grid)  # cells
        high, wide = r1 - r0 + 2 * around, c1 - c0 + 2 * around
        drawn = np.empty((1, net.noise_channels, high, grid, wide, grid), np.float32)
        for i in range(high):
            for j in range(wide):
                drawn[0, :, i, :, j] = _cell_noise(net.noise_channels, grid, key, r0 - around + i, c0 - around + j)
        spare = around * grid - margin
        field = torch.from_numpy(drawn.reshape(1, net.noise_channels, high * grid, wide * grid))
        noise.append(field[..., spare : high * grid - spare, spare : wide * grid - spare].to(device))
    return noise


def _cell_noise(channels, grid, key, row, column):
    """Standard normal noise (channels, grid, grid) of one LR cell at one grid, from a random stream of its own."""
    digest = hashlib.blake2b(f"{key}|{row}|{column}|{grid}".encode(), digest_size=16).digest()
    rng = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
    return rng.standard_normal((channels, grid, grid), np.float32)
