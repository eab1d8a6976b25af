"""The adjoint of feature matching on CUDA: gradients with respect to features and displacement, in one pass.

What a voxel gives the moving features goes to the corners of its cell by atomic additions, of a line of channels each;
their order, and so the last digits, differ from run to run.
"""

import torch
from torch import Tensor

from dio_lightning.ops import match_triton
from dio_lightning.ops.grid_triton import jit, on, precision, strides, tile, tl, unordered, volume, wide, write
from dio_lightning.ops.match_triton import between, cells, tiles


@jit
def _give(to, a0, a1, a2, d0, d1, d2, total, r, mask):  # noqa: ANN001, ANN202
    """Adds to one corner: its weight times the total, and the derivative of its weight times the residual."""
    w = a1 * a2
    tl.atomic_add(to, a0 * w * total + (d0 * w + a0 * (d1 * a2 + a1 * d2)) * r, mask, sem="relaxed")


@jit
def _give_face(to, step1, step2, a0, d0, f1, f2, v1, v2, total, r, mask):  # noqa: ANN001, ANN202
    _give(to, a0, 1 - f1, 1 - f2, d0, -v1, -v2, total, r, mask)
    _give(to + step2, a0, 1 - f1, f2, d0, -v1, v2, total, r, mask)
    _give(to + step1, a0, f1, 1 - f2, d0, v1, -v2, total, r, mask)
    _give(to + step1 + step2, a0, f1, f2, d0, v1, v2, total, r, mask)


@jit(do_not_specialize=["voxels", "s0", "s1", "s2"])
def backward(  # noqa: ANN201
    fixed, moving, u, of_value, v, of_fixed, of_moving, of_u,  # noqa: ANN001
    voxels, s0, s1, s2, channels,  # noqa: ANN001
    fb, f_0, f_1, f_2, fc, mb, m_0, m_1, m_2, mc,  # noqa: ANN001
    D: tl.constexpr, T0: tl.constexpr, T1: tl.constexpr, T2: tl.constexpr, CHUNK: tl.constexpr,
    NUMBER: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Gradients of ⟨of_value, E⟩ + ⟨v, ρ⟩; those of the features have channels last in memory."""
    sample, n, i, j, k, inside = tile(s0, s1, s2, T0, T1, T2, WIDE)
    i0, j0, k0, t0, t1, t2, f0, f1, f2, m0, m1, m2 = cells(
        u, sample, n, i, j, k, inside, voxels, s0, s1, s2, D, NUMBER, WIDE
    )
    at_fixed = fixed + sample * fb + (i * f_0 + j * f_1 + k * f_2)
    at_moving = moving + sample * mb + (i0 * m_0 + j0 * m_1 + k0 * m_2)
    steps0, steps1, steps2 = (t0 * m_0)[:, None], (t1 * m_1)[:, None], (t2 * m_2)[:, None]
    to_fixed = of_fixed + sample * voxels * channels + n * channels
    to_moving = of_moving + sample * voxels * channels + ((i0 * s1 + j0) * s2 + k0) * channels
    to0, to1, to2 = (t0 * s1 * s2 * channels)[:, None], (t1 * s2 * channels)[:, None], (t2 * channels)[:, None]
    weight = tl.load(of_value + sample).to(NUMBER)
    at = v + sample * D * voxels + n
    v0 = f0 * 0
    if D == 3:
        v0 = m0 * tl.load(at, inside, 0.0).to(NUMBER)
        at += voxels
    v1, v2 = m1 * tl.load(at, inside, 0.0).to(NUMBER), m2 * tl.load(at + voxels, inside, 0.0).to(NUMBER)
    v0, v1, v2, f0, f1, f2 = v0[:, None], v1[:, None], v2[:, None], f0[:, None], f1[:, None], f2[:, None]
    zero = tl.zeros([T0 * T1 * T2], NUMBER)
    u0, u1, u2 = zero, zero, zero
    scale = 2.0 / (channels + zero)[:, None]
    for first in range(0, channels, CHUNK):
        c = first + tl.arange(0, CHUNK)
        mask = inside[:, None] & (c < channels)[None, :]
        if WIDE:
            c = c.to(tl.int64)
        y, g0, g1, g2, h01, h02, h12 = between(
            at_moving[:, None] + (c * mc)[None, :], steps0, steps1, steps2, f0, f1, f2, mask, D
        )
        r = scale * (y - tl.load(at_fixed[:, None] + (c * fc)[None, :], mask, 0.0).to(NUMBER))
        total = scale * (v0 * g0 + v1 * g1 + v2 * g2) + weight * r
        u0 += tl.sum(total * g0 + r * (h01 * v1 + h02 * v2), 1)
        u1 += tl.sum(total * g1 + r * (h01 * v0 + h12 * v2), 1)
        u2 += tl.sum(total * g2 + r * (h02 * v0 + h12 * v1), 1)
        tl.store(to_fixed[:, None] + c[None, :], -total, mask)
        to = to_moving[:, None] + c[None, :]
        if D == 3:
            _give_face(to, to1, to2, 1 - f0, -v0, f1, f2, v1, v2, total, r, mask)
            _give_face(to + to0, to1, to2, f0, v0, f1, f2, v1, v2, total, r, mask)
        else:
            _give_face(to, to1, to2, 1 - f0, v0, f1, f2, v1, v2, total, r, mask)
    write(of_u + sample * D * voxels + n, voxels, m0 * u0, m1 * u1, m2 * u2, inside, D)


def match_adjoint(
    fixed: Tensor, moving: Tensor, u: Tensor, of_value: Tensor, of_gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See `match_triton.match_adjoint`; gradients of features have channels last in memory."""
    fixed, moving, u = fixed.detach(), moving.detach(), u.detach().contiguous()
    kept, number = precision(fixed, moving, u)
    unordered("the adjoint of feature matching", u)
    (b, c), s, sizes = fixed.shape[:2], u.shape[2:], tiles(fixed, u, match_triton.CHANNELS_OF_ADJOINT)
    of_fixed = torch.empty(b, *s, c, dtype=fixed.dtype, device=u.device)
    of_moving = torch.zeros(b, *s, c, dtype=kept, device=u.device)
    of_u = torch.empty_like(u)
    with on(u):
        backward[(b * sizes.blocks,)](
            *(fixed, moving, u, of_value.detach().contiguous(), of_gradient.detach().contiguous()),
            *(of_fixed, of_moving, of_u),
            *(s.numel(), *volume(u), c, *strides(fixed), *strides(moving)),
            *(u.shape[1], *sizes.extents, sizes.chunk, number, wide(fixed, moving, u, values=max(c, 7))),
            num_warps=match_triton.WARPS,
        )
    return of_fixed.movedim(-1, 1), of_moving.to(moving.dtype).movedim(-1, 1), of_u
