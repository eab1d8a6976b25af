"""Label maps on CUDA: voxels are gathered and counted in one pass, and the host waits for nothing.

A program counts its voxels in a histogram of its own and adds what is not 0 to that of all, integers whose order does
not matter. Labels that do not fit into one histogram are counted by further programs, which read the map again.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from dio_lightning.ops.grid_triton import jit, on, place, power_of_two, share, strides, tl, volume, wide

BLOCK = 256
"""Points of a program."""
COUNTED = 2048
"""Voxels of a program that counts."""
LEAST, MOST = 64, 1024
"""Bins of a histogram; the first is that of no label."""
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_RULES = {"border": 0, "zeros": 1, "centres": 2}


@jit
def _round(at, line, extent, inside, RULE: tl.constexpr, RELATIVE: tl.constexpr, WIDE: tl.constexpr):  # noqa: ANN001, ANN202
    """Of an axis: the nearest voxel, whether the point lies on the grid, and whether it is a number."""
    p = tl.load(at, inside, 0.0)
    if RULE == 2:
        p = p.to(tl.float64)
    if RELATIVE:
        p += line.to(p.dtype)
    p = p.to(tl.float64)
    last = (extent - 1).to(tl.float64)
    near = tl.floor(p + 0.5)
    if RULE == 2:
        within = (p >= 0) & (p <= last)
    else:
        within = (near >= 0) & (near <= last)
    near = tl.where(near > 0, near, 0.0)
    low = tl.where(near > last, last, near).to(tl.int32)
    if WIDE:
        low = low.to(tl.int64)
    return low, within, p == p


@jit(do_not_specialize=["missing", "blocks", "total", "s0", "s1", "s2", "t1", "t2"])
def _gather(  # noqa: ANN202
    image, points, out, missing, blocks, total, s0, s1, s2, t1, t2, channels, ib, i0, i1, i2, ic,  # noqa: ANN001
    D: tl.constexpr, RULE: tl.constexpr, RELATIVE: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Values (b, c, total) nearest to the points; RULE is a number of `_RULES`."""
    sample, n = share(blocks, BLOCK, WIDE)
    inside = n < total
    i, j, k = place(n, t1, t2)
    source, at = image + sample * ib, points + sample * D * total + n
    within, number = inside, inside
    if D == 3:
        low, within, number = _round(at, i, s0, inside, RULE, RELATIVE, WIDE)
        source += low * i0
        at += total
    low, within1, number1 = _round(at, j, s1, inside, RULE, RELATIVE, WIDE)
    source += low * i1
    low, within2, number2 = _round(at + total, k, s2, inside, RULE, RELATIVE, WIDE)
    source += low * i2
    within, number = within & within1 & within2, number & number1 & number2
    to = out + sample * channels * total + n
    for _ in range(0, channels):
        value = tl.load(source, inside, 0)
        if RULE > 0:
            value = tl.where(within, value, 0)
        if RULE < 2:
            value = tl.where(number, value, missing.to(value.dtype))
        tl.store(to, value, inside)
        source += ic
        to += total


def nearest(image: Tensor, points: Tensor, padding: str, relative: bool) -> Tensor:
    """See `dio_lightning.ops.labels.nearest`; values are moved as integers of as many bytes."""
    image, points = image.detach(), points.detach().contiguous()
    (b, d, *t), c, total = points.shape, image.shape[1], points.shape[2:].numel()
    out, blocks, bits = image.new_empty(b, c, *t), -(-total // BLOCK), _BITS[image.itemsize]
    with on(points):
        _gather[(b * blocks,)](
            *(image.view(bits), points, out.view(bits), _missing(image.dtype), blocks, total),
            *(*volume(image), *volume(points)[1:], c, *strides(image)),
            *(d, _RULES[padding], relative, BLOCK, wide(image, out, values=max(c, 3))),
        )
    return out


@cache
def _missing(dtype: torch.dtype) -> int:
    """The bits of NaN, or 0 where the type has none."""
    if not dtype.is_floating_point:
        return 0
    with torch.inference_mode(False):
        return int(torch.full((1,), torch.nan, dtype=dtype).view(_BITS[dtype.itemsize]))


@jit
def _bins(x, first, last, BINS: tl.constexpr):  # noqa: ANN001, ANN202
    """Labels from first + 1 on are bins from 1 on, and all others 0."""
    counts = (x > first) & (x < first + BINS) & (x <= last)
    return tl.where(counts, x - first, 0).to(tl.int32)


@jit
def _add(out, first, last, bins, BINS: tl.constexpr):  # noqa: ANN001, ANN202
    """Adds a histogram to that of a sample's labels 1..last."""
    lane, counted = tl.arange(0, BINS), tl.histogram(bins, BINS)
    label = first + lane
    some = (lane > 0) & (label <= last) & (counted > 0)
    tl.atomic_add(out + label - 1, counted.to(tl.int64), some, sem="relaxed")


@jit(do_not_specialize=["blocks", "voxels", "last", "step"])
def _count(  # noqa: ANN202
    x, y, out, blocks, voxels, last, step,  # noqa: ANN001
    PAIRED: tl.constexpr, BINS: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Voxels of labels 1..last of x, and with PAIRED those of y, `step` on, and those of both."""
    sample, n = share(blocks, BLOCK, WIDE)
    inside, first = n < voxels, tl.program_id(1) * (BINS - 1)
    left = _bins(tl.load(x + sample * voxels + n, inside, 0), first, last, BINS)
    out += sample * last
    _add(out, first, last, left, BINS)
    if PAIRED:
        right = _bins(tl.load(y + sample * voxels + n, inside, 0), first, last, BINS)
        _add(out + step, first, last, right, BINS)
        _add(out + 2 * step, first, last, tl.where(left == right, left, 0), BINS)


def label_counts(label: Tensor, count: int) -> Tensor:
    """See `dio_lightning.ops.labels.label_counts`."""
    return _counted(label, None, count)[0]


def overlap_counts(first: Tensor, second: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """See `dio_lightning.ops.labels.overlap_counts`."""
    sizes, others, common = _counted(first, second, count)
    return sizes, others, common


def _counted(first: Tensor, second: Tensor | None, count: int) -> Tensor:
    x: Any = _integers(first)
    voxels = x.shape[1:].numel()
    out = torch.zeros(1 if second is None else 3, len(x), count, dtype=torch.int64, device=x.device)
    width = min(max(power_of_two(count + 1), LEAST), MOST)
    blocks = -(-voxels // COUNTED)
    with on(x):
        _count[(len(x) * blocks, -(-count // (width - 1)))](
            *(x, x if second is None else _integers(second), out, blocks, voxels, count, len(x) * count),
            *(second is not None, width, COUNTED, voxels + COUNTED >= 2**31),
        )
    return out


def _integers(label: Tensor) -> Tensor:
    """In one piece; a mask as 0 and 1."""
    x = label.detach().contiguous()
    return x.view(torch.uint8) if x.dtype == torch.bool else x
