"""Sums of linearly warped labels on CUDA: a program counts the corners of its cells label by label, in whole numbers.

Weights are added as multiples of a power of two, so that the order of the additions does not matter, and the host waits
for nothing.
"""

import torch
from torch import Tensor

from dio_lightning.ops.grid_triton import cell, jit, on, place, precision, share, tl, volume, wide, write

BLOCK = 256
"""Voxels of a program."""


@jit
def _axis(at, line, extent, inside, NUMBER: tl.constexpr, WIDE: tl.constexpr):  # noqa: ANN001, ANN202
    """Of an axis: the cell of a displaced voxel; that of the voxel 0 where the displacement is not finite."""
    p = tl.load(at, inside, 0.0).to(NUMBER) + line.to(NUMBER)
    return cell(tl.where(tl.abs(p) < float("inf"), p, 0.0), extent, WIDE)


@jit
def _cells(  # noqa: ANN202
    u, moving, sample, n, inside, total, s0, s1, s2, t1, t2,  # noqa: ANN001
    D: tl.constexpr, NUMBER: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Where the cell of each voxel begins, steps to its other corners, fractions, and which axes move."""
    i, j, k = place(n, t1, t2)
    at = u + sample * D * total + n
    low0, step0, f0, moves0 = 0 * i, 0 * i, 0 * i.to(NUMBER), 0 * i.to(NUMBER)
    if D == 3:
        low0, step0, f0, moves0 = _axis(at, i, s0, inside, NUMBER, WIDE)
        at += total
    low1, step1, f1, moves1 = _axis(at, j, s1, inside, NUMBER, WIDE)
    low2, step2, f2, moves2 = _axis(at + total, k, s2, inside, NUMBER, WIDE)
    first = moving + sample * (s0 * s1 * s2) + (low0 * s1 + low1) * s2 + low2
    return first, step0 * (s1 * s2), step1 * s2, step2, f0, f1, f2, moves0, moves1, moves2


@jit
def _face(at, step1, step2, inside):  # noqa: ANN001, ANN202
    """The four labels of a plane of a cell."""
    x00, x01 = tl.load(at, inside, 0), tl.load(at + step2, inside, 0)
    x10, x11 = tl.load(at + step1, inside, 0), tl.load(at + step1 + step2, inside, 0)
    return x00.to(tl.int32), x01.to(tl.int32), x10.to(tl.int32), x11.to(tl.int32)


@jit
def _share_of(label, x00, x01, x10, x11, f1, f2):  # noqa: ANN001, ANN202
    """The weight of a label among the corners of a plane of a cell."""
    low = tl.where(x00 == label, 1 - f2, 0.0) + tl.where(x01 == label, f2, 0.0)
    high = tl.where(x10 == label, 1 - f2, 0.0) + tl.where(x11 == label, f2, 0.0)
    return (1 - f1) * low + f1 * high


@jit(do_not_specialize=["blocks", "total", "s0", "s1", "s2", "t1", "t2", "labels", "unit"])
def _sum(  # noqa: ANN202
    u, fixed, moving, out, blocks, total, s0, s1, s2, t1, t2, labels, unit,  # noqa: ANN001
    D: tl.constexpr, NUMBER: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Per label 1..labels two whole numbers: its weight where the fixed map has it, and everywhere."""
    sample, n = share(blocks, BLOCK, WIDE)
    inside = n < total
    first, step0, step1, step2, f0, f1, f2, _, _, _ = _cells(
        u, moving, sample, n, inside, total, s0, s1, s2, t1, t2, D, NUMBER, WIDE
    )
    target = tl.load(fixed + sample * total + n, inside, 0).to(tl.int32)
    x00, x01, x10, x11 = _face(first, step1, step2, inside)
    y00, y01, y10, y11 = x00, x01, x10, x11
    if D == 3:
        y00, y01, y10, y11 = _face(first + step0, step1, step2, inside)
    to = out + sample * 2 * labels
    for label in range(1, labels + 1):
        weight = _share_of(label, x00, x01, x10, x11, f1, f2)
        if D == 3:
            weight = (1 - f0) * weight + f0 * _share_of(label, y00, y01, y10, y11, f1, f2)
        weight = (tl.where(inside, weight, 0.0).to(tl.float64) * unit).to(tl.int64)
        either = tl.sum(weight, 0)
        both = tl.sum(tl.where(target == label, weight, 0), 0)
        tl.atomic_add(to + label - 1, both, both != 0, sem="relaxed")
        tl.atomic_add(to + labels + label - 1, either, either != 0, sem="relaxed")


@jit
def _worth(table, label, target, labels, inside):  # noqa: ANN001, ANN202
    """What a corner adds to the result: by its label, and by whether the fixed map has it."""
    counts = inside & (label > 0) & (label <= labels)
    at = tl.where(counts, label - 1, 0)
    own = tl.load(table + labels + at, counts, 0.0)
    return own + tl.load(table + at, counts & (label == target), 0.0)


@jit
def _worths(at, table, target, labels, step1, step2, inside):  # noqa: ANN001, ANN202
    x00, x01, x10, x11 = _face(at, step1, step2, inside)
    return (
        _worth(table, x00, target, labels, inside), _worth(table, x01, target, labels, inside),
        _worth(table, x10, target, labels, inside), _worth(table, x11, target, labels, inside),
    )  # fmt: skip


@jit(do_not_specialize=["blocks", "total", "s0", "s1", "s2", "t1", "t2", "labels"])
def _slope(  # noqa: ANN202
    u, fixed, moving, table, out, blocks, total, s0, s1, s2, t1, t2, labels,  # noqa: ANN001
    D: tl.constexpr, NUMBER: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Derivatives of what the corners add up to along each axis."""
    sample, n = share(blocks, BLOCK, WIDE)
    inside = n < total
    first, step0, step1, step2, f0, f1, f2, moves0, moves1, moves2 = _cells(
        u, moving, sample, n, inside, total, s0, s1, s2, t1, t2, D, NUMBER, WIDE
    )
    target, table = tl.load(fixed + sample * total + n, inside, 0).to(tl.int32), table + sample * 2 * labels
    a, b, c, d = _worths(first, table, target, labels, step1, step2, inside)
    g0, g1, g2 = 0 * f1, (1 - f2) * (c - a) + f2 * (d - b), (1 - f1) * (b - a) + f1 * (d - c)
    if D == 3:
        near = (1 - f1) * ((1 - f2) * a + f2 * b) + f1 * ((1 - f2) * c + f2 * d)
        a, b, c, d = _worths(first + step0, table, target, labels, step1, step2, inside)
        g0 = (1 - f1) * ((1 - f2) * a + f2 * b) + f1 * ((1 - f2) * c + f2 * d) - near
        g1 = (1 - f0) * g1 + f0 * ((1 - f2) * (c - a) + f2 * (d - b))
        g2 = (1 - f0) * g2 + f0 * ((1 - f1) * (b - a) + f1 * (d - c))
    write(out + sample * D * total + n, total, g0 * moves0, g1 * moves1, g2 * moves2, inside, D)


def label_sums(fixed: Tensor, moving: Tensor, u: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """See `dio_lightning.ops.soft_labels.label_sums`."""
    fixed, moving, u = (x.detach().contiguous() for x in (fixed, moving, u))
    out = torch.zeros(len(u), 2, count, dtype=torch.int64, device=u.device)
    unit = 2.0 ** (62 - (u.shape[2:].numel()).bit_length())  # sums of weights of at most 1 stay below 2^63
    with on(u):
        settings = _settings(fixed, moving, u)
        _sum[settings[0]](u, fixed, moving, out, *settings[1], count, unit, *settings[2])
    both, either = (out.double() / unit).unbind(1)
    return both, either


def slope(fixed: Tensor, moving: Tensor, u: Tensor, of_both: Tensor, of_either: Tensor) -> Tensor:
    """The gradient of a displacement, given those of the sums (b, count)."""
    fixed, moving, u = (x.detach().contiguous() for x in (fixed, moving, u))
    table, out = torch.stack((of_both, of_either), 1).to(precision(u)[0]), torch.empty_like(u)
    with on(u):
        settings = _settings(fixed, moving, u)
        _slope[settings[0]](u, fixed, moving, table, out, *settings[1], of_both.shape[1], *settings[2])
    return out


def _settings(fixed: Tensor, moving: Tensor, u: Tensor) -> tuple[tuple[int], tuple[int, ...], tuple[object, ...]]:
    """How many programs, sizes, and what is compiled into a kernel."""
    total = u.shape[2:].numel()
    blocks = -(-total // BLOCK)
    sizes = (blocks, total, *volume(moving), *volume(fixed)[1:])
    return (len(u) * blocks,), sizes, (u.shape[1], precision(u)[1], BLOCK, wide(fixed, moving, u))
