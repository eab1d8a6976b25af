"""The distance of features that are interpolated by cubic B-splines: a smooth energy, whose minima are at rest."""

from itertools import product
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from dio_lightning.fields import identity
from dio_lightning.level import Level
from dio_lightning.losses.distance import variance
from dio_lightning.losses.similarity import Image
from dio_lightning.losses.term import Energy, Term


class SplineDistance(Term):
    """1/C Σ_c (M_c(ϕ(x)) - F_c(x))² over the variance of F, where M and F are the features' cubic B-splines.

    The energy of `FeatureDistance` has a kink wherever a component of x + u(x) is a whole number, as its features are
    interpolated linearly, and its minima sit in kinks, where no solver comes to rest. This one is twice differentiable.
    The features are the coefficients of the splines, which smooths them (1/6, 2/3, 1/6 along each axis), both images'
    alike, and are continued beyond the border. In plain PyTorch, with 4^d products a voxel and channel: for studies.

    Args:
        weight: see `Term`.
    """

    compares = True

    def on(self, level: Level) -> Energy:
        """The distance of the level's features."""
        fixed = spline(level.fixed, torch.zeros_like(level.fixed[:, : level.fixed.ndim - 2]))
        return Energy(_distance, fixed, level.moving, variance(fixed))


def spline(features: Image, u: Float[Tensor, "b d *s"]) -> Image:
    """Σ_k β³(x + u(x) - k) c_k for coefficients c (b, c, *s) and u in voxels; twice differentiable in u.

    β³ is the cubic B-spline, of support 4 (Unser, IEEE Signal Processing Magazine 16, 1999). Coefficients beyond the
    border are those at it.
    """
    size = u.shape[2:]
    points = identity(size, u) + u
    cells = points.detach().floor()
    weights, cells = _weights(points - cells), cells.long()
    flat, total = features.flatten(2), torch.zeros((), dtype=features.dtype, device=u.device)
    for corner in product(range(4), repeat=len(size)):
        index = torch.zeros_like(cells[:, 0])
        for axis, (step, extent) in enumerate(zip(corner, size, strict=True)):
            index = index * extent + (cells[:, axis] + step - 1).clamp(0, extent - 1)
        weight = torch.stack([weights[step][:, axis] for axis, step in enumerate(corner)]).prod(0)
        value = flat.gather(2, index.flatten(1)[:, None].expand(-1, flat.shape[1], -1)).view(features.shape)
        total = total + weight[:, None] * value
    return total


def _weights(t: Float[Tensor, "b d *s"]) -> list[Float[Tensor, "b d *s"]]:
    """β³ at t + 1, t, 1 - t and 2 - t, for t in [0, 1)."""
    rest = 1 - t
    return [
        rest**3 / 6,
        2 / 3 - t**2 + t**3 / 2,
        2 / 3 - rest**2 + rest**3 / 2,
        t**3 / 6,
    ]


def _distance(
    u: Float[Tensor, "b d *s"], fixed: Image, moving: Image, scale: Float[Tensor, " b"]
) -> Float[Tensor, " b"]:
    squares = (spline(moving, u) - fixed).square()
    return squares.flatten(1).sum(1) / (prod(squares.shape[1:]) * scale)
