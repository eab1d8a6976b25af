"""Stencils on CUDA: neighbours are read again from the nearest cache, and nothing is written but results."""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from dio_lightning.ops.grid_triton import jit, on, place, precision, share, tl, volume, wide, write

BLOCK = 256
"""Voxels of a program."""
ROWS = 8
"""Of these, the lines along an axis other than the last, so that their neighbours are read once."""


@jit(do_not_specialize=["blocks", "voxels", "extent", "tail"])
def _correlate(  # noqa: ANN202
    x, taps, out, blocks, voxels, extent, inner, tail,  # noqa: ANN001
    ROWS: tl.constexpr, BLOCK: tl.constexpr, NUMBER: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Symmetric correlation along an axis whose voxels lie `inner` apart; with ROWS a program takes a tile of lines."""
    sample, n = share(blocks, BLOCK, WIDE)
    at, inside = n // inner % extent, n < voxels
    if ROWS > 1:
        width: tl.constexpr = BLOCK // ROWS
        tile, within = tl.program_id(0) % blocks, tl.arange(0, BLOCK)
        across, rows = (inner + width - 1) // width, (extent + ROWS - 1) // ROWS
        line, at = tile // across // rows, tile // across % rows * ROWS + within // width
        column = tile % across * width + within % width
        inside = (at < extent) & (column < inner)
        if WIDE:
            line = line.to(tl.int64)
        n = (line * extent + at) * inner + column
    x += sample * voxels + n
    total = tl.load(taps) * tl.load(x, inside, 0.0).to(NUMBER)
    for t in range(1, tail + 1):
        below = tl.load(x - t * inner, inside & (at >= t), 0.0).to(NUMBER)
        above = tl.load(x + t * inner, inside & (at + t < extent), 0.0).to(NUMBER)
        total += tl.load(taps + t) * (below + above)
    tl.store(out + sample * voxels + n, total, inside)


def correlate(x: Tensor, taps: Sequence[Sequence[float]]) -> Tensor:
    """See `dio_lightning.ops.stencils.correlate`; one pass an axis, in float32 at least between them."""
    x = x.detach().contiguous()
    kept, number = precision(x)
    total, size = x, x.shape[2:]
    offsets = wide(x, values=2 * x.shape[1])
    axes = [axis for axis, weights in enumerate(taps) if len(weights) > 1 or weights[0] != 1]
    for axis in axes:
        extent, inner, lines = size[axis], size[axis + 1 :].numel(), x.shape[1] * size[:axis].numel()
        rows = 1 if inner < BLOCK // ROWS else ROWS
        tiles = lines * -(-extent // ROWS) * -(-inner // (BLOCK // ROWS))
        voxels = x.shape[1:].numel()
        blocks = tiles if rows > 1 else -(-voxels // BLOCK)
        out = torch.empty_like(x, dtype=x.dtype if axis == axes[-1] else kept)
        weights = tuple(taps[axis][:extent])
        with on(x):
            _correlate[(len(x) * blocks,)](
                *(total, _weights(weights, kept, x.device), out, blocks, voxels, extent, inner),
                *(len(weights) - 1, rows, BLOCK, number, offsets),
            )
        total = out
    return total.clone() if total is x else total


@cache
def _weights(taps: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """On the device; copied there once, because a copy waits for all work that came before."""
    with torch.inference_mode(False):
        return torch.tensor(taps, dtype=dtype, device=device)


@jit
def _step(x, stride, exists, here, inside):  # noqa: ANN001, ANN202
    """The difference to a neighbour, 0 where there is none."""
    return tl.where(exists, tl.load(x + stride, inside & exists, 0.0).to(here.dtype) - here, 0.0)


@jit(do_not_specialize=["blocks", "voxels", "s0", "s1", "s2"])
def _differences(  # noqa: ANN202
    u, energy, slope, blocks, voxels, s0, s1, s2,  # noqa: ANN001
    D: tl.constexpr, BLOCK: tl.constexpr, NUMBER: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Of a program, the sum of squared forward differences; their slope at each voxel."""
    sample, n = share(blocks, BLOCK, WIDE)
    inside = n < voxels
    i, j, k = place(n, s1, s2)
    x = u + sample * voxels + n
    here = tl.load(x, inside, 0.0).to(NUMBER)
    up, down = _step(x, 1, k < s2 - 1, here, inside), _step(x, -1, k > 0, here, inside)
    total, bend = up * up, up + down
    up, down = _step(x, s2, j < s1 - 1, here, inside), _step(x, -s2, j > 0, here, inside)
    total, bend = total + up * up, bend + up + down
    if D == 3:
        plane = s1 * s2
        up, down = _step(x, plane, i < s0 - 1, here, inside), _step(x, -plane, i > 0, here, inside)
        total, bend = total + up * up, bend + up + down
    tl.store(energy + tl.program_id(0), tl.sum(tl.where(inside, total, 0.0), 0))
    tl.store(slope + sample * voxels + n, -2 * bend, inside)


def squared_differences(u: Tensor) -> tuple[Tensor, Tensor]:
    """See `dio_lightning.ops.stencils.squared_differences`."""
    u = u.detach().contiguous()
    (b, c), voxels, (kept, number) = u.shape[:2], u.shape[2:].numel(), precision(u)
    blocks = -(-voxels // BLOCK)
    energy, slope = torch.empty(b, c * blocks, dtype=kept, device=u.device), torch.empty_like(u)
    with on(u):
        _differences[(b * c * blocks,)](
            *(u, energy, slope, blocks, voxels, *volume(u), u.ndim - 2, BLOCK, number, wide(u, values=1))
        )
    return energy.sum(1, dtype=torch.float64).to(u.dtype), slope


@jit
def _central(x, place, extent, stride, inside, NUMBER: tl.constexpr):  # noqa: ANN001, ANN202
    """Central difference along an axis, one-sided at the border; 0 along an axis of one voxel."""
    below, above = (place > 0).to(tl.int32), (place < extent - 1).to(tl.int32)
    low, high = tl.load(x - below * stride, inside, 0.0), tl.load(x + above * stride, inside, 0.0)
    return (high.to(NUMBER) - low.to(NUMBER)) / tl.maximum(below + above, 1).to(NUMBER)


@jit
def _columns(x, voxels, i, j, k, s0, s1, s2, inside, D: tl.constexpr, NUMBER: tl.constexpr):  # noqa: ANN001, ANN202
    """Derivatives of id + u at voxels whose first component lies at x: of the components along each axis in turn."""
    y = x
    if D == 3:
        y = x + voxels
    z = y + voxels
    b1, b2 = _central(y, j, s1, s2, inside, NUMBER) + 1, _central(z, j, s1, s2, inside, NUMBER)
    c1, c2 = _central(y, k, s2, 1, inside, NUMBER), _central(z, k, s2, 1, inside, NUMBER) + 1
    zero = tl.zeros_like(b1)
    a0, a1, a2, b0, c0 = zero + 1, zero, zero, zero, zero
    if D == 3:
        plane = s1 * s2
        a0 = _central(x, i, s0, plane, inside, NUMBER) + 1
        a1, a2 = _central(y, i, s0, plane, inside, NUMBER), _central(z, i, s0, plane, inside, NUMBER)
        b0, c0 = _central(x, j, s1, s2, inside, NUMBER), _central(x, k, s2, 1, inside, NUMBER)
    return a0, a1, a2, b0, b1, b2, c0, c1, c2


@jit(do_not_specialize=["blocks", "voxels", "s0", "s1", "s2"])
def _determinants(  # noqa: ANN202
    u, out, blocks, voxels, s0, s1, s2,  # noqa: ANN001
    D: tl.constexpr, BLOCK: tl.constexpr, NUMBER: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Of the Jacobian of id + u at each voxel."""
    sample, n = share(blocks, BLOCK, WIDE)
    inside = n < voxels
    i, j, k = place(n, s1, s2)
    x = u + sample * D * voxels + n
    a0, a1, a2, b0, b1, b2, c0, c1, c2 = _columns(x, voxels, i, j, k, s0, s1, s2, inside, D, NUMBER)
    value = b1 * c2 - b2 * c1
    if D == 3:
        value = a0 * value - b0 * (a1 * c2 - a2 * c1) + c0 * (a1 * b2 - a2 * b1)
    tl.store(out + sample * voxels + n, value, inside)


def determinants(u: Tensor) -> Tensor:
    """See `dio_lightning.ops.stencils.determinants`."""
    u = u.detach().contiguous()
    (b, d, *s), voxels = u.shape, u.shape[2:].numel()
    out, blocks = u.new_empty(b, *s), -(-voxels // BLOCK)
    with on(u):
        _determinants[(b * blocks,)](
            *(u, out, blocks, voxels, *volume(u), d, BLOCK, precision(u)[1], wide(u, values=d))
        )
    return out


@jit
def _cross(v0, v1, v2, w0, w1, w2, weight):  # noqa: ANN001, ANN202
    return weight * (v1 * w2 - v2 * w1), weight * (v2 * w0 - v0 * w2), weight * (v0 * w1 - v1 * w0)


@jit
def _pull(  # noqa: ANN202
    u, determinant, voxels, i, j, k, s0, s1, s2, inside,  # noqa: ANN001
    AXIS: tl.constexpr, SHIFT: tl.constexpr, MARGIN: tl.constexpr, D: tl.constexpr, NUMBER: tl.constexpr,
):  # fmt: skip
    """What u at a voxel adds to the slope of the voxel SHIFT before it, by whose derivative along AXIS it counts.

    At the border a voxel is its own neighbour.
    """
    x, extent = i, s0
    if AXIS == 1:
        x, extent = j, s1
    if AXIS == 2:
        x, extent = k, s2
    y = x - SHIFT
    beyond = (y < 0) | (y >= extent)
    y = tl.where(beyond, x, y)
    if AXIS == 0:
        i = y
    if AXIS == 1:
        j = y
    if AXIS == 2:
        k = y
    at = (i * s1 + j) * s2 + k
    enough = tl.load(determinant + at, inside, 0.0).to(NUMBER) >= MARGIN
    lacks = inside & (extent > 1) & ~enough
    a0, a1, a2, b0, b1, b2, c0, c1, c2 = _columns(u + at, voxels, i, j, k, s0, s1, s2, lacks, D, NUMBER)
    span = tl.maximum((y > 0).to(tl.int32) + (y < extent - 1).to(tl.int32), 1)
    weight = tl.where(lacks, tl.where(beyond, -SHIFT, SHIFT).to(NUMBER) / span.to(NUMBER), 0.0)
    if AXIS == 0:
        x0, x1, x2 = _cross(b0, b1, b2, c0, c1, c2, weight)
    elif AXIS == 1:
        x0, x1, x2 = _cross(c0, c1, c2, a0, a1, a2, weight)
    else:
        x0, x1, x2 = _cross(a0, a1, a2, b0, b1, b2, weight)
    return x0, x1, x2


@jit(do_not_specialize=["blocks", "voxels", "s0", "s1", "s2"])
def _shortfall(  # noqa: ANN202
    u, determinant, slope, blocks, voxels, s0, s1, s2,  # noqa: ANN001
    MARGIN: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, NUMBER: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Slope by u of what the determinants lack of MARGIN, gathered: nothing is added to what another voxel adds to."""
    sample, n = share(blocks, BLOCK, WIDE)
    inside = n < voxels
    i, j, k = place(n, s1, s2)
    at, below = u + sample * D * voxels, determinant + sample * voxels
    total0 = tl.zeros([BLOCK], NUMBER)
    total1, total2 = total0, total0
    for axis in tl.static_range(3 - D, 3):
        for side in tl.static_range(2):
            x0, x1, x2 = _pull(
                at, below, voxels, i, j, k, s0, s1, s2, inside, axis, 1 - 2 * side, MARGIN, D, NUMBER
            )  # fmt: skip
            total0, total1, total2 = total0 - x0, total1 - x1, total2 - x2
    write(slope + sample * D * voxels + n, voxels, total0, total1, total2, inside, D)


def shortfall(u: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """See `dio_lightning.ops.stencils.shortfall`."""
    u = u.detach().contiguous()
    d, voxels, below, slope = u.shape[1], u.shape[2:].numel(), determinants(u), torch.empty_like(u)
    blocks = -(-voxels // BLOCK)
    with on(u):
        _shortfall[(len(u) * blocks,)](
            *(u, below, slope, blocks, voxels, *volume(u), margin, d, BLOCK, precision(u)[1], wide(u, values=d))
        )
    return (margin - below).clamp_(min=0).flatten(1).sum(1), slope
