"""Feature matching on CUDA: one pass over the features for value and slope, as the compiled loops of the CPU make it.

A program takes a block of voxels and goes through the channels in chunks. Beside a voxel its channels are read as a
line, so that features with channels last in memory are read whole. Only the adjoint adds to memory that programs share,
by atomic additions into the gradient of the moving features.
"""

from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from dio_lightning.ops.grid_triton import (
    cell,
    jit,
    on,
    power_of_two,
    precision,
    strides,
    tile,
    tl,
    volume,
    wide,
    write,
)

ELEMENTS = 512
"""Voxels of a tile times channels of a chunk."""
WARPS = 4
"""Of 32 threads, for a program."""
CHANNELS, CHANNELS_OF_ADJOINT = 8, 16
"""Most channels of a chunk; on an H200 the best of 4, 8 and 16, with rows."""
WIDTH = 128
"""Most voxels of a tile along the last axis: a row. With 8 a tile is a block, whose cells share more; not measured."""


@jit
def cells(  # noqa: ANN201
    u, sample, n, i, j, k, inside, voxels, s0, s1, s2,  # noqa: ANN001
    D: tl.constexpr, NUMBER: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Of each point, along each axis: lower corner, step to the upper one, fraction, whether it moves."""
    at = u + sample * D * voxels + n
    if D == 3:
        i0, t0, f0, m0 = cell(i.to(NUMBER) + tl.load(at, inside, 0.0).to(NUMBER), s0, WIDE)
        at += voxels
    else:
        i0, t0, f0, m0 = i, i * 0, (i * 0).to(NUMBER), (i * 0).to(NUMBER)
    j0, t1, f1, m1 = cell(j.to(NUMBER) + tl.load(at, inside, 0.0).to(NUMBER), s1, WIDE)
    k0, t2, f2, m2 = cell(k.to(NUMBER) + tl.load(at + voxels, inside, 0.0).to(NUMBER), s2, WIDE)
    return i0, j0, k0, t0, t1, t2, f0, f1, f2, m0, m1, m2


@jit
def _face(at, step1, step2, f1, f2, mask):  # noqa: ANN001, ANN202
    """Of a plane of a cell: value, slopes along both axes, and the mixed second derivative."""
    a = tl.load(at, mask, 0.0).to(f1.dtype)
    e0 = tl.load(at + step2, mask, 0.0).to(f1.dtype) - a
    b = tl.load(at + step1, mask, 0.0).to(f1.dtype)
    e1 = tl.load(at + step1 + step2, mask, 0.0).to(f1.dtype) - b
    x = a + f2 * e0
    h = b + f2 * e1 - x
    return x + f1 * h, h, e0 + f1 * (e1 - e0), e1 - e0


@jit
def between(at, step0, step1, step2, f0, f1, f2, mask, D: tl.constexpr):  # noqa: ANN001, ANN201
    """Value, three slopes and three mixed second derivatives (01, 02, 12) of all channels of a chunk."""
    y, g1, g2, h12 = _face(at, step1, step2, f1, f2, mask)
    g0, h01, h02 = y * 0, y * 0, y * 0
    if D == 3:
        y1, h1, e1, c1 = _face(at + step0, step1, step2, f1, f2, mask)
        g0, h01, h02 = y1 - y, h1 - g1, e1 - g2
        y, g1, g2, h12 = y + f0 * g0, g1 + f0 * h01, g2 + f0 * h02, h12 + f0 * (c1 - h12)
    return y, g0, g1, g2, h01, h02, h12


@jit(do_not_specialize=["voxels", "s0", "s1", "s2"])
def _forward(  # noqa: ANN202
    fixed, moving, u, energy, gradient, block, residual,  # noqa: ANN001
    voxels, s0, s1, s2, channels,  # noqa: ANN001
    fb, f_0, f_1, f_2, fc, mb, m_0, m_1, m_2, mc,  # noqa: ANN001
    D: tl.constexpr, T0: tl.constexpr, T1: tl.constexpr, T2: tl.constexpr, CHUNK: tl.constexpr,
    BLOCKS: tl.constexpr, NUMBER: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Energy of a program and slope of each voxel; with BLOCKS also its Gauss-Newton block and its residual."""
    sample, n, i, j, k, inside = tile(s0, s1, s2, T0, T1, T2, WIDE)
    i0, j0, k0, t0, t1, t2, f0, f1, f2, m0, m1, m2 = cells(
        u, sample, n, i, j, k, inside, voxels, s0, s1, s2, D, NUMBER, WIDE
    )
    at_fixed = fixed + sample * fb + (i * f_0 + j * f_1 + k * f_2)
    at_moving = moving + sample * mb + (i0 * m_0 + j0 * m_1 + k0 * m_2)
    steps0, steps1, steps2 = (t0 * m_0)[:, None], (t1 * m_1)[:, None], (t2 * m_2)[:, None]
    zero = tl.zeros([T0 * T1 * T2], NUMBER)
    r0, r1, r2, rr = zero, zero, zero, zero
    q00, q01, q02, q11, q12, q22 = zero, zero, zero, zero, zero, zero
    for first in range(0, channels, CHUNK):
        c = first + tl.arange(0, CHUNK)
        mask = inside[:, None] & (c < channels)[None, :]
        if WIDE:
            c = c.to(tl.int64)
        y, g0, g1, g2, _, _, _ = between(
            at_moving[:, None] + (c * mc)[None, :], steps0, steps1, steps2,
            f0[:, None], f1[:, None], f2[:, None], mask, D,
        )  # fmt: skip
        r = y - tl.load(at_fixed[:, None] + (c * fc)[None, :], mask, 0.0).to(NUMBER)
        r0, r1, r2 = r0 + tl.sum(r * g0, 1), r1 + tl.sum(r * g1, 1), r2 + tl.sum(r * g2, 1)
        rr += tl.sum(r * r, 1)
        if BLOCKS:
            q00, q01, q02 = q00 + tl.sum(g0 * g0, 1), q01 + tl.sum(g0 * g1, 1), q02 + tl.sum(g0 * g2, 1)
            q11, q12, q22 = q11 + tl.sum(g1 * g1, 1), q12 + tl.sum(g1 * g2, 1), q22 + tl.sum(g2 * g2, 1)
    scale = 2.0 / (channels + zero)
    tl.store(energy + tl.program_id(0), tl.sum(tl.where(inside, rr, 0.0), 0) / channels)
    to = gradient + sample * D * voxels + n
    write(to, voxels, scale * m0 * r0, scale * m1 * r1, scale * m2 * r2, inside, D)
    if BLOCKS:
        tl.store(residual + sample * voxels + n, scale * rr, inside)
        to = block + sample * (D * (D + 1) // 2) * voxels + n
        if D == 3:
            write(to, voxels, scale * m0 * q00, scale * m0 * m1 * q01, scale * m0 * m2 * q02, inside, 3)
            to += 3 * voxels
        write(to, voxels, scale * m1 * q11, scale * m1 * m2 * q12, scale * m2 * q22, inside, 3)


def match(fixed: Tensor, moving: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """See `dio_lightning.ops.match`."""
    return _run(fixed, moving, u, False)[:2]


def match_blocks(fixed: Tensor, moving: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `dio_lightning.ops.match.Blocks`."""
    return _run(fixed, moving, u, True)


def match_adjoint(
    fixed: Tensor, moving: Tensor, u: Tensor, of_value: Tensor, of_gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ⟨of_value, E⟩ + ⟨of_gradient, ρ⟩ with respect to fixed, moving and u."""
    from dio_lightning.ops import match_adjoint_triton

    return match_adjoint_triton.match_adjoint(fixed, moving, u, of_value, of_gradient)


def _run(fixed: Tensor, moving: Tensor, u: Tensor, blocks: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    fixed, moving, u = fixed.detach(), moving.detach(), u.detach().contiguous()
    b, d, *s = u.shape
    kept, number = precision(fixed, moving, u)
    sizes = tiles(fixed, u, CHANNELS)
    energy = torch.empty(b, sizes.blocks, dtype=kept, device=u.device)
    gradient, none = torch.empty_like(u), u.new_empty(0)
    block = u.new_empty(b, d * (d + 1) // 2, *s) if blocks else none
    residual = u.new_empty(b, 1, *s) if blocks else none
    with on(u):
        _forward[(b * sizes.blocks,)](
            *(fixed, moving, u, energy, gradient, block, residual),
            *(u.shape[2:].numel(), *volume(u), fixed.shape[1], *strides(fixed), *strides(moving)),
            *(d, *sizes.extents, sizes.chunk, blocks, number, wide(fixed, moving, u)),
            num_warps=WARPS,
        )
    return energy.sum(1, dtype=torch.float64).to(u.dtype), gradient, block, residual


class Tiles(NamedTuple):
    """How the work is dealt: voxels of a program along each axis, channels of a chunk, programs of a sample."""

    extents: tuple[int, int, int]
    chunk: int
    blocks: int


def tiles(features: Tensor, u: Tensor, channels: int) -> Tiles:
    """As many voxels as make `ELEMENTS` with the channels that are read at once, at most `channels`, one a thread."""
    chunk = min(power_of_two(max(features.shape[1], 1)), channels)
    voxels = min(ELEMENTS // chunk, 32 * WARPS)
    third = min(voxels, WIDTH)
    beside = (voxels // third).bit_length() - 1
    first = 0 if u.ndim == 4 else beside // 2
    extents = 1 << first, 1 << (beside - first), third
    return Tiles(extents, chunk, prod(-(-n // extent) for n, extent in zip(volume(u), extents, strict=True)))
