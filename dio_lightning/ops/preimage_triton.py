"""Newton's method on CUDA, point by point in float64: a point's steps stay in registers, and the host waits for none.

As in plain PyTorch a point starts at zero alone; a program ends when all of its points have arrived.
"""

import torch
from torch import Tensor

from dio_lightning.ops.grid_triton import cell, jit, on, tl, volume, wide, write
from dio_lightning.ops.sampling_triton import _sides

BLOCK = 128
"""Points of a program."""


@jit
def _linear(u, axis0, axis1, axis2, a0, b0, a1, b1, a2, b2, m0, m1, m2, active, D: tl.constexpr):  # noqa: ANN001, ANN202
    """A component at points of cells: weights (lower, upper), whether a point moves it; its value and three slopes."""
    value, slope1, slope2 = _sides(u, axis1, axis2, a1, b1, a2, b2, -m1, m1, -m2, m2, active)
    slope0 = value * 0
    if D == 3:
        far, far1, far2 = _sides(u + axis0, axis1, axis2, a1, b1, a2, b2, -m1, m1, -m2, m2, active)
        slope0 = m0 * (far - value)
        value, slope1, slope2 = a0 * value + b0 * far, a0 * slope1 + b0 * far1, a0 * slope2 + b0 * far2
    return value, slope0, slope1, slope2


@jit
def _minor(a, b, c, d):  # noqa: ANN001, ANN202
    return a * d - b * c


@jit
def _solved(m00, m01, m02, m10, m11, m12, m20, m21, m22, r0, r1, r2, FLAT: tl.constexpr):  # noqa: ANN001, ANN202
    """The x with M x = r by Cramer's rule, or r where the map folds; m01 is the slope of component 0 along axis 1."""
    c0, c1, c2 = _minor(m11, m12, m21, m22), _minor(m12, m10, m22, m20), _minor(m10, m11, m20, m21)
    determinant = m00 * c0 + m01 * c1 + m02 * c2
    regular = determinant > FLAT
    scale = 1.0 / tl.where(regular, determinant, 1.0)
    x0 = r0 * c0 + r1 * _minor(m02, m01, m22, m21) + r2 * _minor(m01, m02, m11, m12)
    x1 = r0 * c1 + r1 * _minor(m00, m02, m20, m22) + r2 * _minor(m02, m00, m12, m10)
    x2 = r0 * c2 + r1 * _minor(m01, m00, m21, m20) + r2 * _minor(m00, m01, m10, m11)
    return tl.where(regular, x0 * scale, r0), tl.where(regular, x1 * scale, r1), tl.where(regular, x2 * scale, r2)


@jit
def _step(  # noqa: ANN202
    u, s0, s1, s2, y0, y1, y2, z0, z1, z2, active,  # noqa: ANN001
    FLAT: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Newton's step at z, or minus the residual where the map folds, and the square of the residual."""
    i, more0, b0, m0 = cell(y0 + z0, s0, WIDE)
    j, more1, b1, m1 = cell(y1 + z1, s1, WIDE)
    k, more2, b2, m2 = cell(y2 + z2, s2, WIDE)
    axis0, axis1, voxels = more0 * s1 * s2, more1 * s2, s0.to(tl.int64) * s1 * s2
    at = u + (i * s1 + j) * s2 + k
    a0, a1, a2 = 1 - b0, 1 - b1, 1 - b2
    r0, m00, m01, m02 = z0, 1.0 + z0 * 0, z0 * 0, z0 * 0
    if D == 3:
        r0, m00, m01, m02 = _linear(at, axis0, axis1, more2, a0, b0, a1, b1, a2, b2, m0, m1, m2, active, D)
        at += voxels
        r0, m00 = r0 + z0, m00 + 1
    r1, m10, m11, m12 = _linear(at, axis0, axis1, more2, a0, b0, a1, b1, a2, b2, m0, m1, m2, active, D)
    r2, m20, m21, m22 = _linear(at + voxels, axis0, axis1, more2, a0, b0, a1, b1, a2, b2, m0, m1, m2, active, D)
    r1, r2, m11, m22 = r1 + z1, r2 + z2, m11 + 1, m22 + 1
    x0, x1, x2 = _solved(m00, m01, m02, m10, m11, m12, m20, m21, m22, -r0, -r1, -r2, FLAT)
    return x0, x1, x2, r0 * r0 + r1 * r1 + r2 * r2


@jit(do_not_specialize=["count", "s0", "s1", "s2"])
def _newton(  # noqa: ANN202
    u, points, out, count, s0, s1, s2,  # noqa: ANN001
    SQUARE: tl.constexpr, STEPS: tl.constexpr, FLAT: tl.constexpr,
    D: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The z of each point whose residual is the smallest, up to a square of SQUARE."""
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside, at = n < count, points + n
    y0 = tl.zeros([BLOCK], tl.float64)
    if D == 3:
        y0 = tl.load(at, inside, 0.0)
        at += count
    y1, y2 = tl.load(at, inside, 0.0), tl.load(at + count, inside, 0.0)
    z0 = tl.zeros([BLOCK], tl.float64)
    z1, z2, least = z0, z0, z0 + float("inf")
    best0, best1, best2 = z0 + float("nan"), z0 + float("nan"), z0 + float("nan")
    active, step = inside, 0
    while (step < STEPS) & (tl.max(active.to(tl.int32), 0) > 0):
        x0, x1, x2, square = _step(u, s0, s1, s2, y0, y1, y2, z0, z1, z2, active, FLAT, D, WIDE)
        better = active & (square < least)
        least = tl.where(better, square, least)
        best0, best1, best2 = tl.where(better, z0, best0), tl.where(better, z1, best1), tl.where(better, z2, best2)
        active = active & (square > SQUARE)
        z0, z1, z2 = tl.where(active, z0 + x0, z0), tl.where(active, z1 + x1, z1), tl.where(active, z2 + x2, z2)
        step += 1
    write(out + n, count, best0, best1, best2, inside, D)


def newton(u: Tensor, y: Tensor, tolerance: float, steps: int, flat: float) -> Tensor:
    """See `dio_lightning.ops.preimages`."""
    field, points = u.detach()[None].contiguous(), y.detach().contiguous()
    out, count = torch.empty_like(points), points.shape[1]
    settings = tolerance**2, steps, flat, len(points), BLOCK, wide(field, values=len(points))
    with on(points):
        _newton[(-(-count // BLOCK),)](field, points, out, count, *volume(field), *settings)
    return out
