"""Sums over windows on CUDA, in float64: their cost does not grow with the window.

Along the last axis sums are differences of running sums of a whole line. Along the others a program walks down an axis
beside its neighbours, a voxel of the window in and one out, so that memory is read and written line by line.
"""

import torch
from torch import Tensor

from dio_lightning.ops.grid_triton import jit, power_of_two, tl

ELEMENTS = 512
"""Voxels of a program along the last axis."""
BLOCK = 128
"""Lines that a program walks down, a voxel each."""
CHUNK = 32
"""Voxels that it walks; what lies a window before it sums first."""


@jit
def scanned(value, carry, to, mask, WIDTH: tl.constexpr):  # noqa: ANN001, ANN201
    """Writes running sums along lines, and takes the last of each on."""
    total = tl.cumsum(value, 1) + carry[:, None]
    tl.store(to, total, mask)
    return tl.sum(tl.where((tl.arange(0, WIDTH) == WIDTH - 1)[None, :], total, 0.0), 1)


@jit(do_not_specialize=["lines", "total", "skip"])
def _lines(source, out, lines, total, skip, s2, ROWS: tl.constexpr, WIDTH: tl.constexpr):  # noqa: ANN001, ANN202
    """Running sums along the lines of some volumes; `skip` are left out after the first."""
    line = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = line < total
    source += (tl.where(line >= lines, skip, 0) * lines.to(tl.int64) + line)[:, None] * s2
    carry = tl.zeros([ROWS], tl.float64)
    for first in range(0, s2, WIDTH):
        k = first + tl.arange(0, WIDTH)
        mask = inside[:, None] & (k < s2)[None, :]
        value = tl.load(source + k[None, :], mask, 0.0)
        carry = scanned(value, carry, out + line[:, None] * s2 + k[None, :], mask, WIDTH)


@jit(do_not_specialize=["s1", "s2", "radius", "chunks", "across"])
def _down(source, out, s1, s2, radius, chunks, across, BLOCK: tl.constexpr, CHUNK: tl.constexpr):  # noqa: ANN001, ANN202
    """Sums over windows along the last two axes, of running sums along the last: planes (s1, s2)."""
    program = tl.program_id(0)
    k = program % across * BLOCK + tl.arange(0, BLOCK)
    first = program // across % chunks * CHUNK
    inside, width = k < s2, s2.to(tl.int64)
    plane = (program // across // chunks).to(tl.int64) * s1 * width
    source += plane
    upper, lower = source + tl.minimum(k + radius, s2 - 1), source + (k - radius - 1)
    more = inside & (k > radius)
    total = tl.zeros([BLOCK], tl.float64)
    for j in range(tl.maximum(first - radius, 0), tl.minimum(first + radius, s1)):
        total += tl.load(upper + j * width, inside, 0.0) - tl.load(lower + j * width, more, 0.0)
    for j in range(first, tl.minimum(first + CHUNK, s1)):
        enters, leaves = j + radius, j - radius - 1
        fresh, stale = enters < s1, (leaves >= 0) & (j > first)
        total += tl.load(upper + enters * width, inside & fresh, 0.0)
        total -= tl.load(lower + enters * width, more & fresh, 0.0)
        total -= tl.load(upper + leaves * width, inside & stale, 0.0)
        total += tl.load(lower + leaves * width, more & stale, 0.0)
        tl.store(out + plane + j * width + k, total, inside)


@jit
def moves(at, total, i, first, s0, plane, radius, inside):  # noqa: ANN001, ANN201
    """The sum over planes moves on to plane i: one enters, one leaves."""
    enters, leaves = i + radius, i - radius - 1
    total += tl.load(at + enters * plane, inside & (enters < s0), 0.0)
    return total - tl.load(at + leaves * plane, inside & (leaves >= 0) & (i > first), 0.0)


@jit
def before(at, first, s0, plane, radius, inside, BLOCK: tl.constexpr):  # noqa: ANN001, ANN201
    """The sum of what a window at plane `first` has, but for its last plane."""
    total = tl.zeros([BLOCK], tl.float64)
    for i in range(tl.maximum(first - radius, 0), tl.minimum(first + radius, s0)):
        total += tl.load(at + i * plane, inside, 0.0)
    return total


@jit
def within(place, extent, radius):  # noqa: ANN001, ANN201
    """How many voxels of a window lie inside along an axis."""
    return tl.minimum(place + radius, extent - 1) - tl.maximum(place - radius, 0) + 1


def down_planes(sums: Tensor, radius: int) -> Tensor:
    """Sums over windows along the last two axes of (q, n, s0, s1, s2), of running sums along the last."""
    out = torch.empty_like(sums)
    s1, s2 = sums.shape[3:]
    chunks, across = -(-s1 // CHUNK), -(-s2 // BLOCK)
    _down[(sums.shape[:3].numel() * chunks * across,)](sums, out, s1, s2, radius, chunks, across, BLOCK, CHUNK)
    return out


def running(slopes: Tensor, place: int) -> Tensor:
    """Running sums along the last axis of the first volume of (q, n, s0, s1, s2), and of the two for this place."""
    out = torch.empty_like(slopes[:3])
    lines, s2 = out[0, ..., 0].numel(), out.shape[-1]
    width, rows = tile(s2)
    _lines[(-(-3 * lines // rows),)](slopes, out, lines, 3 * lines, 2 * place, s2, rows, width)
    return out


def tile(s2: int) -> tuple[int, int]:
    """Voxels of a line that are summed at once, and lines of a program."""
    width = min(power_of_two(s2), ELEMENTS)
    return width, ELEMENTS // width
