"""Regularity of a displacement: folding and the spread of the log Jacobian determinant."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from dio_lightning.fields import jacobian_determinant

SMALLEST, LARGEST = 1e-9, 1e9


class Regularity(NamedTuple):
    """The three scores of `regularity`, each (b,)."""

    folds: Float[Tensor, " b"]
    sdlogj: Float[Tensor, " b"]
    std_logj: Float[Tensor, " b"]


def regularity(
    u: Float[Tensor, "b d *s"], border: int | Sequence[int] = 2, mask: Shaped[Tensor, "b 1 *s"] | None = None
) -> Regularity:
    """`folds`, `sdlogj` and `std_logj` from one Jacobian determinant, without a border as wide along all axes, or each.

    Raises:
        ValueError: the border leaves no voxel.
    """
    determinant, weight = _inner(u, border, mask)
    spread = [_spread(determinant + offset, weight) for offset in (3.0, 0.0)]
    return Regularity(_folded(determinant, weight), *spread)


def folds(
    u: Float[Tensor, "b d *s"], border: int | Sequence[int] = 2, mask: Shaped[Tensor, "b 1 *s"] | None = None
) -> Float[Tensor, " b"]:
    """Percentage of voxels with det ∇ϕ ≤ 0 per sample, u in voxels; border voxels and voxels outside the mask left out.

    NaN where a displacement is not finite or its mask is empty: neither passes as free of folds.

    Raises:
        ValueError: the border leaves no voxel.
    """
    return _folded(*_inner(u, border, mask))


def sdlogj(
    u: Float[Tensor, "b d *s"], border: int | Sequence[int] = 2, mask: Shaped[Tensor, "b 1 *s"] | None = None
) -> Float[Tensor, " b"]:
    """Learn2Reg's SDlogJ: standard deviation of log(clip(det ∇ϕ + 3, 1e-9, 1e9)) per sample.

    The offset of 3 is in the official evaluation code, which makes its values smaller than `std_logj`.

    Raises:
        ValueError: the border leaves no voxel.
    """
    determinant, weight = _inner(u, border, mask)
    return _spread(determinant + 3, weight)


def std_logj(
    u: Float[Tensor, "b d *s"], border: int | Sequence[int] = 2, mask: Shaped[Tensor, "b 1 *s"] | None = None
) -> Float[Tensor, " b"]:
    """Standard deviation of log(clip(det ∇ϕ, 1e-9, 1e9)) per sample, the definition of DEQReg and GraDIRN.

    Raises:
        ValueError: the border leaves no voxel.
    """
    return _spread(*_inner(u, border, mask))


def _inner(u: Tensor, border: int | Sequence[int], mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Determinants and mask (b, m), float64, of the voxels that are left without the border."""
    size = u.shape[2:]
    borders = [border] * len(size) if isinstance(border, int) else list(border)
    if min(borders) < 0 or any(n <= 2 * width for n, width in zip(size, borders, strict=True)):
        raise ValueError(f"a border of {border} voxels leaves nothing of a grid of {tuple(size)}")
    inner = (slice(None), *[slice(width, n - width) for n, width in zip(size, borders, strict=True)])
    determinant = jacobian_determinant(u.double())[inner].flatten(1)
    weight = torch.ones_like(determinant) if mask is None else (mask[:, 0] > 0)[inner].flatten(1).double()
    return determinant, weight


def _folded(determinant: Tensor, weight: Tensor) -> Tensor:
    return 100 * _mean(torch.where(determinant.isnan(), determinant, (determinant <= 0).double()), weight)


def _spread(values: Tensor, weight: Tensor) -> Tensor:
    """Standard deviation (of the population, as numpy) of the clipped logarithm."""
    logarithm = values.clamp(SMALLEST, LARGEST).log()
    return _mean((logarithm - _mean(logarithm, weight)[:, None]).square(), weight).sqrt()


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    return torch.where(weight > 0, values, 0).sum(1) / weight.sum(1)
