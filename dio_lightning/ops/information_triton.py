"""Joint histograms on CUDA: sums of outer products of windows, which need no additions into shared memory.

Every voxel has a column of weights over the bins of each image, all but two of them 0. A program multiplies the columns
of its voxels, so that its histogram stays in registers, whatever intensities are frequent.
"""

import torch
from torch import Tensor

from dio_lightning.ops.grid_triton import jit, on, power_of_two, precision, tl

BLOCK = 32
"""Voxels whose windows are multiplied at once."""
STEPS = 64
"""How many times a program does so."""
READ = 256
"""Voxels of a program that reads the table."""
LARGEST = 128
"""Bins up to which a histogram fits into registers; more are counted by plain PyTorch."""


@jit
def _bins(x, bins, NUMBER: tl.constexpr):  # noqa: ANN001, ANN202
    """The lower bin of each intensity, and the share of the upper one; a share that is NaN stays so."""
    x = x.to(NUMBER)
    x = tl.where(x < 0, 0.0, x)
    x = tl.where(x > 1, 1.0, x)
    position = x * (bins - 1).to(NUMBER)
    low = tl.minimum(tl.where(position == position, position, 0.0).to(tl.int32), bins - 2)
    return low, position - low.to(NUMBER)


@jit
def _weights(low, share, row):  # noqa: ANN001, ANN202
    """Of bins `row`, which is 0 but for the two beside each intensity."""
    return tl.where(row == low, 1.0 - share, tl.where(row == low + 1, share, 0.0))


@jit(do_not_specialize=["voxels", "parts", "bins"])
def _counts(  # noqa: ANN202
    a, b, weights, out, voxels, parts, bins,  # noqa: ANN001
    BINS: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr, NUMBER: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    """The histogram (bins, bins) of a program's voxels."""
    program = tl.program_id(0)
    sample, part = (program // parts).to(tl.int64), (program % parts).to(tl.int64)
    row = tl.arange(0, BINS)
    table = tl.zeros([BINS, BINS], NUMBER)
    for step in range(0, STEPS):
        n = (part * STEPS + step) * BLOCK + tl.arange(0, BLOCK)
        inside = n < voxels
        i, f = _bins(tl.load(a + sample * voxels + n, inside, 0.0), bins, NUMBER)
        j, g = _bins(tl.load(b + sample * voxels + n, inside, 0.0), bins, NUMBER)
        mass = inside.to(NUMBER)
        if WEIGHTED:
            mass = tl.load(weights + sample * voxels + n, inside, 0.0).to(NUMBER)
        left = _weights(i[None, :], f[None, :], row[:, None])
        right = _weights(j[:, None], g[:, None], row[None, :]) * mass[:, None]
        table = tl.dot(left, right, table, input_precision="ieee", out_dtype=NUMBER)
    at = out + program.to(tl.int64) * bins * bins + row[:, None] * bins + row[None, :]
    tl.store(at, table, (row < bins)[:, None] & (row < bins)[None, :])


def joint_counts(a: Tensor, b: Tensor, bins: int, weights: Tensor | None) -> Tensor:
    """See `ops.information._counts`: images (b, n), result (b, bins, bins) float64, summed in it between programs."""
    x, y = a.detach().contiguous(), b.detach().contiguous()
    kept, number = precision(x, y)
    parts = -(-x.shape[1] // (BLOCK * STEPS))
    out = torch.empty(len(x), parts, bins, bins, dtype=kept, device=x.device)
    mass = x if weights is None else weights.expand(len(x), -1).contiguous()
    width = max(16, power_of_two(bins))
    with on(x):
        _counts[(len(x) * parts,)](
            *(x, y, mass, out, x.shape[1], parts, bins),
            *(width, BLOCK, STEPS, number, weights is not None),
            num_warps=4 if width < LARGEST else 8,
        )
    return out.sum(1, dtype=torch.float64)


@jit(do_not_specialize=["blocks", "voxels", "bins"])
def _slope(  # noqa: ANN202
    a, b, weights, steps, out, blocks, voxels, bins,  # noqa: ANN001
    BLOCK: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    """Per voxel of a, a row of steps (bins - 1, bins), read between the columns beside b; 0 outside [0, 1]."""
    program = tl.program_id(0)
    sample = (program // blocks).to(tl.int64)
    n = (program % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = n < voxels
    x = tl.load(a + sample * voxels + n, inside, 0.0)
    i, _ = _bins(x, bins, tl.float64)
    j, g = _bins(tl.load(b + sample * voxels + n, inside, 0.0), bins, tl.float64)
    at = steps + sample * (bins - 1) * bins + i * bins + j
    low = tl.load(at, inside, 0.0)
    value = low + g * (tl.load(at + 1, inside, 0.0) - low)
    if WEIGHTED:
        value *= tl.load(weights + sample * voxels + n, inside, 0.0).to(tl.float64)
    value *= ((x >= 0) & (x <= 1)).to(tl.float64)
    tl.store(out + sample * voxels + n, value, inside)


def slope(a: Tensor, b: Tensor, steps: Tensor, weights: Tensor | None) -> Tensor:
    """See `ops.information._slope`: images (b, n), steps (b, bins - 1, bins) float64."""
    x, y = a.detach().contiguous(), b.detach().contiguous()
    mass = x if weights is None else weights.expand(len(x), -1).contiguous()
    out, blocks = torch.empty_like(x), -(-x.shape[1] // READ)
    with on(x):
        _slope[(len(x) * blocks,)](
            *(x, y, mass, steps.contiguous(), out, blocks, x.shape[1], steps.shape[2], READ, weights is not None)
        )
    return out
