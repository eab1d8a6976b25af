"""Local correlation on CUDA, in float64 as on the CPU; `box_triton` sums over windows along the last two axes.

Along the first axis a program walks down all sums at once, so that what it makes of them needs no memory in between.
"""

import torch
from torch import Tensor

from dio_lightning.ops.box_triton import BLOCK, CHUNK, before, down_planes, moves, running, scanned, tile, within
from dio_lightning.ops.grid_triton import jit, on, tl, volume


@jit(do_not_specialize=["lines", "planes", "samples"])
def _products(a, b, zeros, out, lines, planes, samples, s2, ROWS: tl.constexpr, WIDTH: tl.constexpr):  # noqa: ANN001, ANN202
    """Running sums of a, b, a², b² and ab along all lines (n s0 s1, s2), counted from their zeros (2, n)."""
    line = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = line < lines
    za = tl.load(zeros + line // planes, inside, 0.0)[:, None]
    zb = tl.load(zeros + samples + line // planes, inside, 0.0)[:, None]
    step = lines.to(tl.int64) * s2
    of_a = tl.zeros([ROWS], tl.float64)
    of_b, of_aa, of_bb, of_ab = of_a, of_a, of_a, of_a
    for first in range(0, s2, WIDTH):
        k = first + tl.arange(0, WIDTH)
        mask = inside[:, None] & (k < s2)[None, :]
        at = line[:, None] * s2 + k[None, :]
        p = tl.where(mask, tl.load(a + at, mask, 0.0).to(tl.float64) - za, 0.0)
        q = tl.where(mask, tl.load(b + at, mask, 0.0).to(tl.float64) - zb, 0.0)
        of_a = scanned(p, of_a, out + at, mask, WIDTH)
        of_b = scanned(q, of_b, out + step + at, mask, WIDTH)
        of_aa = scanned(p * p, of_aa, out + 2 * step + at, mask, WIDTH)
        of_bb = scanned(q * q, of_bb, out + 3 * step + at, mask, WIDTH)
        of_ab = scanned(p * q, of_ab, out + 4 * step + at, mask, WIDTH)


@jit
def _judge(  # noqa: ANN202
    sum_a, sum_b, sum_aa, sum_bb, sum_ab, within, count, za, zb,  # noqa: ANN001
    FLOOR: tl.constexpr, SIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Correlation and five slopes of windows, of which so many voxels count; see `correlation_kernels._row`."""
    floor = tl.full([BLOCK], FLOOR, tl.float64)
    part = 1.0 / count
    outside = count - within
    # what a window has beyond the image counts as -zero: moments of the outside
    off_a, off_b, lack = outside * za * part, outside * zb * part, outside * (1.0 - outside * part)
    mean_a, mean_b = sum_a * part - off_a, sum_b * part - off_b
    var_a = sum_aa + lack * za * za - sum_a * (mean_a - off_a)
    var_b = sum_bb + lack * zb * zb - sum_b * (mean_b - off_b)
    cross = sum_ab + lack * za * zb - sum_a * mean_b + off_a * sum_b
    free_a, free_b = var_a > floor, var_b > floor
    # so written that NaN stays NaN
    var_a, var_b = tl.where(var_a <= floor, floor, var_a), tl.where(var_b <= floor, floor, var_b)
    product = 1.0 / (var_a * var_b + floor)
    if SIGNED:
        root = tl.sqrt(product)
        value = cross * root
    else:
        root = 2.0 * cross * product
        value = cross * cross * product
    value = tl.where(value > 1, 1.0, value)
    value = tl.where(value < -1, -1.0, value)
    bend = -root * cross * product
    slope_a, slope_b = tl.where(free_a, bend * var_b, 0.0), tl.where(free_b, bend * var_a, 0.0)
    return value, root, slope_a, root * mean_b + slope_a * mean_a, slope_b, root * mean_a + slope_b * mean_b


@jit(do_not_specialize=["samples", "s0", "s1", "s2", "radius0", "radius", "count", "chunks", "across"])
def _correlations(  # noqa: ANN202
    sums, zeros, value, slopes, samples, s0, s1, s2, radius0, radius, count, chunks, across,  # noqa: ANN001
    FLOOR: tl.constexpr, SIGNED: tl.constexpr, BOTH: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Sum of the correlations of a program's voxels, and the slopes of each, from sums over windows of planes."""
    program = tl.program_id(0)
    n = program % across * BLOCK + tl.arange(0, BLOCK)
    first = program // across % chunks * CHUNK
    sample = (program // across // chunks).to(tl.int64)
    plane = s1.to(tl.int64) * s2
    inside = n < plane
    step = samples * s0 * plane
    at = sums + sample * s0 * plane + n
    to = slopes + sample * s0 * plane + n
    za, zb = tl.load(zeros + sample), tl.load(zeros + samples + sample)
    around = within(n // s2, s1, radius) * within(n % s2, s2, radius)
    of_a = before(at, first, s0, plane, radius0, inside, BLOCK)
    of_b = before(at + step, first, s0, plane, radius0, inside, BLOCK)
    of_aa = before(at + 2 * step, first, s0, plane, radius0, inside, BLOCK)
    of_bb = before(at + 3 * step, first, s0, plane, radius0, inside, BLOCK)
    of_ab = before(at + 4 * step, first, s0, plane, radius0, inside, BLOCK)
    summed = tl.zeros([BLOCK], tl.float64)
    for i in range(first, tl.minimum(first + CHUNK, s0)):
        of_a = moves(at, of_a, i, first, s0, plane, radius0, inside)
        of_b = moves(at + step, of_b, i, first, s0, plane, radius0, inside)
        of_aa = moves(at + 2 * step, of_aa, i, first, s0, plane, radius0, inside)
        of_bb = moves(at + 3 * step, of_bb, i, first, s0, plane, radius0, inside)
        of_ab = moves(at + 4 * step, of_ab, i, first, s0, plane, radius0, inside)
        counted = (around * within(i, s0, radius0)).to(tl.float64)
        correlation, root, slope_a, mean_a, slope_b, mean_b = _judge(
            of_a, of_b, of_aa, of_bb, of_ab, counted, count.to(tl.float64), za, zb, FLOOR, SIGNED, BLOCK
        )
        summed += tl.where(inside, correlation, 0.0)
        target = to + i * plane
        tl.store(target, root, inside)
        tl.store(target + step, slope_a, inside)
        tl.store(target + 2 * step, mean_a, inside)
        if BOTH:
            tl.store(target + 3 * step, slope_b, inside)
            tl.store(target + 4 * step, mean_b, inside)
    tl.store(value + program, tl.sum(summed, 0))


@jit(do_not_specialize=["samples", "s0", "s1", "s2", "radius0", "chunks", "across"])
def _gradient(  # noqa: ANN202
    sums, a, b, zeros, factor, out, samples, s0, s1, s2, radius0, chunks, across,  # noqa: ANN001
    BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Factor times the derivative of the sum of all correlations with respect to a."""
    program = tl.program_id(0)
    n = program % across * BLOCK + tl.arange(0, BLOCK)
    first = program // across % chunks * CHUNK
    sample = (program // across // chunks).to(tl.int64)
    plane = s1.to(tl.int64) * s2
    inside = n < plane
    step = samples * s0 * plane
    base = sample * s0 * plane + n
    at = sums + base
    za, zb, scale = tl.load(zeros + sample), tl.load(zeros + samples + sample), tl.load(factor)
    of_b = before(at, first, s0, plane, radius0, inside, BLOCK)
    of_a = before(at + step, first, s0, plane, radius0, inside, BLOCK)
    rest = before(at + 2 * step, first, s0, plane, radius0, inside, BLOCK)
    for i in range(first, tl.minimum(first + CHUNK, s0)):
        of_b = moves(at, of_b, i, first, s0, plane, radius0, inside)
        of_a = moves(at + step, of_a, i, first, s0, plane, radius0, inside)
        rest = moves(at + 2 * step, rest, i, first, s0, plane, radius0, inside)
        here = base + i * plane
        p = tl.load(a + here, inside, 0.0).to(tl.float64) - za
        q = tl.load(b + here, inside, 0.0).to(tl.float64) - zb
        tl.store(out + here, scale * (of_b * q + of_a * p - rest), inside)


def mean(a: Tensor, b: Tensor, window: int, floor: float, signed: bool, both: bool = True) -> tuple[Tensor, Tensor]:
    """Mean correlation, and the slopes of all windows that `gradient` takes; see `correlation_numba.mean`."""
    x, y = a.detach().contiguous(), b.detach().contiguous()
    (s0, s1, s2), n, radius = volume(x), x.shape[:2].numel(), window // 2
    zeros = _zeros(x, y)
    lines = n * s0 * s1
    width, rows = tile(s2)
    sums = torch.empty(5, n, s0, s1, s2, dtype=torch.float64, device=x.device)
    with on(x):
        _products[(-(-lines // rows),)](x, y, zeros, sums, lines, s0 * s1, n, s2, rows, width)
        sums = down_planes(sums, radius)
        chunks, across = -(-s0 // CHUNK), -(-s1 * s2 // BLOCK)
        slopes = torch.empty(5 if both else 3, *sums.shape[1:], dtype=torch.float64, device=x.device)
        value = torch.empty(n * chunks * across, dtype=torch.float64, device=x.device)
        radius0, count = (radius, window**3) if x.ndim == 5 else (0, window**2)
        _correlations[(len(value),)](
            *(sums, zeros, value, slopes, n, s0, s1, s2, radius0, radius, count, chunks, across),
            *(floor, signed, both, BLOCK, CHUNK),
        )
    return value.sum() / x.numel(), slopes


def gradient(slopes: Tensor, images: tuple[Tensor, Tensor], place: int, window: int, factor: Tensor) -> Tensor:
    """The derivative of factor times the mean correlation with respect to the image at this place, 0 or 1."""
    x, y = (image.detach().contiguous() for image in (images[place], images[1 - place]))
    (s0, s1, s2), n, radius = volume(x), x.shape[:2].numel(), window // 2
    out = torch.empty_like(x)
    with on(x):
        sums = down_planes(running(slopes, place), radius)
        chunks, across = -(-s0 // CHUNK), -(-s1 * s2 // BLOCK)
        radius0 = radius if x.ndim == 5 else 0
        _gradient[(n * chunks * across,)](
            *(sums, x, y, _zeros(x, y), factor.double() / x.numel(), out),
            *(n, s0, s1, s2, radius0, chunks, across, BLOCK, CHUNK),
        )
    return out


def _zeros(*images: Tensor) -> Tensor:
    """The mean of every volume, (2, n), from which sums are counted: what is left is its contrast."""
    return torch.stack([image.flatten(0, 1).flatten(1).mean(1, dtype=torch.float64) for image in images])
