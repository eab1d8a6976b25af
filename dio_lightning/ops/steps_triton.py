"""A solver's step on CUDA: each pass reads and writes an element once, and nothing waits for the host.

Sums are added by pairs within a program, then in float64 over programs, always in one order: they are the same bits in
every run. Square roots and quotients are rounded as PyTorch rounds them; Triton's own are approximate in float32.
"""

import torch
from torch import Tensor

from dio_lightning.ops.grid_triton import jit, on, share, tl, wide

BLOCK = 2048
"""Elements of a program."""
WARPS = 8
SUMS = 1024
"""Sums of programs that are added at once."""


@jit
def _total(parts, count, WIDTH: tl.constexpr):  # noqa: ANN001, ANN202
    """The sum of so many numbers, in float64."""
    lane, total = tl.arange(0, WIDTH), tl.zeros([WIDTH], tl.float64)
    for first in range(0, count, WIDTH):
        total += tl.load(parts + first + lane, first + lane < count, 0.0).to(tl.float64)
    return tl.sum(total, 0)


@jit
def _root(x):  # noqa: ANN001, ANN202
    """Rounded to the nearest."""
    if x.dtype == tl.float32:
        return tl.sqrt_rn(x)
    else:  # the compiler takes one branch
        return tl.sqrt(x)


@jit
def _quotient(x, y):  # noqa: ANN001, ANN202
    """Rounded to the nearest."""
    if x.dtype == tl.float32:
        return tl.div_rn(x, y)
    else:
        return x / y


@jit(do_not_specialize=["blocks", "total"])
def _minus(fz, z, out, squares, blocks, count, total, BLOCK: tl.constexpr, WIDE: tl.constexpr):  # noqa: ANN001, ANN202
    """The difference fz - z; of a program, the sums of its squares and, `total` programs on, of those of fz."""
    sample, n = share(blocks, BLOCK, WIDE)
    first, inside = sample * count, n < count
    x = tl.load(fz + first + n, inside, 0.0)
    r = x - tl.load(z + first + n, inside, 0.0)
    tl.store(out + first + n, r, inside)
    tl.store(squares + tl.program_id(0), tl.sum(r * r, 0))
    tl.store(squares + total + tl.program_id(0), tl.sum(x * x, 0))


@jit(do_not_specialize=["blocks", "total"])
def _norms(squares, of_r, of_fz, blocks, total, WIDTH: tl.constexpr):  # noqa: ANN001, ANN202
    """Of a sample."""
    sample = tl.program_id(0)
    parts = squares + sample.to(tl.int64) * blocks
    tl.store(of_r + sample, tl.sqrt(_total(parts, blocks, WIDTH)))
    tl.store(of_fz + sample, tl.sqrt(_total(parts + total, blocks, WIDTH)))


def residual(fz: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See `dio_lightning.ops.steps.residual`."""
    out, count, blocks = torch.empty_like(z), z.shape[1:].numel(), _blocks(z)
    squares = z.new_empty(2, len(z), blocks)
    norms = z.new_empty(len(z)), z.new_empty(len(z))
    total = len(z) * blocks
    with on(z):
        _minus[(total,)](
            *(fz.detach(), z.detach(), out, squares, blocks, count, total, BLOCK, wide(z, values=1)), num_warps=WARPS
        )
        _norms[(len(z),)](squares, *norms, blocks, total, SUMS)
    return out, *norms


@jit(do_not_specialize=["blocks"])
def _average(  # noqa: ANN202
    r, m, s, active, sums, blocks, count,  # noqa: ANN001
    BETA1: tl.constexpr, BETA2: tl.constexpr, MASKED: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Averages m and s go on towards r and r², unless the sample is not active; of a program, the sum of s."""
    sample, n = share(blocks, BLOCK, WIDE)
    first, inside = sample * count, n < count
    of_m, of_s = m + first + n, s + first + n
    x, mean, square = tl.load(r + first + n, inside, 0.0), tl.load(of_m, inside, 0.0), tl.load(of_s, inside, 0.0)
    goes = 1
    if MASKED:
        goes = tl.load(active + sample).to(tl.int32)
    if goes != 0:
        mean, square = _approach(mean, x, BETA1), _approach(square, x * x, BETA2)
        tl.store(of_m, mean, inside)
        tl.store(of_s, square, inside)
    tl.store(sums + tl.program_id(0), tl.sum(square, 0))


@jit
def _approach(x, end, BETA: tl.constexpr):  # noqa: ANN001, ANN202
    """1 - BETA of the way, as `torch.lerp` goes it."""
    if BETA > 0.5:
        return x + (1 - BETA) * (end - x)
    else:
        return end - BETA * (end - x)


@jit(do_not_specialize=["blocks", "count"])
def _floor(sums, out, blocks, count, EPS: tl.constexpr, TINY: tl.constexpr, WIDTH: tl.constexpr):  # noqa: ANN001, ANN202
    """See `dio_lightning.ops.steps._floor`; of a sample."""
    sample = tl.program_id(0)
    mean = _total(sums + sample.to(tl.int64) * blocks, blocks, WIDTH) / count.to(tl.float64)
    tl.store(out + sample, EPS * tl.sqrt(mean) + TINY)


@jit(do_not_specialize=["blocks"])
def _divide(r, m, s, floor, factor, blocks, count, BLOCK: tl.constexpr, WIDE: tl.constexpr):  # noqa: ANN001, ANN202
    """Writes factor m / (sqrt(s) + floor) where r is."""
    sample, n = share(blocks, BLOCK, WIDE)
    first, inside = sample * count, n < count
    size = _root(tl.load(s + first + n, inside, 0.0)) + tl.load(floor + sample)
    increment = _quotient(tl.load(m + first + n, inside, 0.0), size) * tl.load(factor + sample)
    tl.store(r + first + n, increment, inside)


def adam_step(
    r: Tensor, m: Tensor, s: Tensor, factor: Tensor, active: Tensor | None, beta1: float, beta2: float, eps: float
) -> None:
    """See `dio_lightning.ops.steps.adam_step`; what it divides by has to wait for the mean of s, so in two passes."""
    r, m, s, factor = (x.detach() for x in (r, m, s, factor))
    count, blocks, offsets = r.shape[1:].numel(), _blocks(r), wide(r, values=1)
    sums, floor = r.new_empty(len(r), blocks), torch.empty_like(factor)
    mask = r if active is None else active.contiguous()
    programs, tiny = (len(r) * blocks,), torch.finfo(r.dtype).tiny
    with on(r):
        _average[programs](
            *(r, m, s, mask, sums, blocks, count, beta1, beta2, active is not None, BLOCK, offsets), num_warps=WARPS
        )
        _floor[(len(r),)](sums, floor, blocks, count, eps, tiny, SUMS)
        _divide[programs](r, m, s, floor, factor, blocks, count, BLOCK, offsets, num_warps=WARPS)


@jit(do_not_specialize=["blocks", "channels"])
def _longest(v, out, blocks, count, channels, BLOCK: tl.constexpr, WIDE: tl.constexpr):  # noqa: ANN001, ANN202
    """Of a program's vectors (channels, count) the largest squared length; NaN where one is."""
    sample, n = share(blocks, BLOCK, WIDE)
    at, inside = v + sample * channels * count + n, n < count
    first = tl.load(at, inside, 0.0)
    total = first * first
    for _ in range(1, channels):
        at += count
        x = tl.load(at, inside, 0.0)
        total += x * x
    wrong = tl.max((total != total).to(tl.int32), 0)
    most = tl.max(tl.where(total == total, total, 0.0), 0)
    tl.store(out + tl.program_id(0), tl.where(wrong > 0, float("nan"), most))


def largest_square(v: Tensor) -> Tensor:
    """See `dio_lightning.ops.steps.largest_square`."""
    count = v.shape[2:].numel()
    blocks = -(-count // BLOCK)
    out = v.new_empty(len(v), blocks)
    with on(v):
        _longest[(len(v) * blocks,)](
            *(v.detach(), out, blocks, count, v.shape[1], BLOCK, wide(v, values=v.shape[1])), num_warps=WARPS
        )
    return out.amax(1)


def _blocks(x: Tensor) -> int:
    """Programs of a sample."""
    return -(-x.shape[1:].numel() // BLOCK)
