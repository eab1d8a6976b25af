"""Free-form deformation on a grid of control points."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from dio_lightning.fields import Grid, gaussian_smooth, regrid
from dio_lightning.transformations.base import Transformation

SMOOTH = 1e-3
"""Weight of the squared second difference at both ends of the control points beside squared errors at voxels, in a fit.

The outermost control points hardly reach a voxel: without it, they follow the rounding of a displacement a hundredfold.
"""


@dataclass(frozen=True)
class BSpline(Transformation):
    """u(x) = Σ_c z_c Π_i β³(x_i / h - c_i + 1), cubic B-splines (Rueckert et al., TMI 1999); steps are added.

    Parameters z (b, d, *control), ⌈(S - 1) / h⌉ + 3 control points along an axis of S voxels, the first one spacing
    outside the grid, so that every voxel has four. Nothing keeps it from folding; it is smooth, twice differentiable.

    Args:
        spacing: h, voxels of the level between control points. At every level of a pyramid it is a longer way in the
            image, so that a coarse level moves larger parts.

    Raises:
        ValueError: if the spacing is below 1.
    """

    spacing: int = 2

    dense = False

    def __post_init__(self) -> None:
        if self.spacing < 1:
            raise ValueError(f"spacing is {self.spacing}, expected at least 1 voxel")

    def initial(self, features: Tensor) -> Tensor:
        """Zeros (b, d, *control)."""
        size = [_count(extent, self.spacing) for extent in features.shape[2:]]
        return features.new_zeros(len(features), features.ndim - 2, *size)

    def displacement(self, z: Tensor, size: Sequence[int]) -> Tensor:
        """The splines at the voxels of a grid of this size."""
        for axis, extent in enumerate(size):
            z = _evaluated(z, 2 + axis, extent, self.spacing)
        return z

    def parameters(self, u: Float[Tensor, "b d *s"]) -> Float[Tensor, "b d ..."]:
        """Control points of the splines that are closest to u at the voxels, by least squares.

        The ends are kept a little straight; an affine displacement is met exactly.
        """
        z = u.double()  # a matrix product, which autocast would round
        for axis, extent in enumerate(u.shape[2:], start=2):
            inverse = _inverse(extent, self.spacing).to(z.device)
            z = (z.movedim(axis, -1) @ inverse.T).movedim(-1, axis)
        return z.to(u.dtype).contiguous()

    def gradient(self, z: Tensor, size: Sequence[int], slope: Callable[[Tensor], Tensor]) -> Tensor:
        """Of each control point the mean of the slope, weighted by its spline.

        That is ∂E/∂z over the sum of the weights, so that steps are as long as those of a field.
        """
        pulled = super().gradient(z, size, slope)
        for axis, extent in enumerate(size):
            weight = _matrix(extent, self.spacing).sum(0).clamp(min=1e-6).to(pulled)
            pulled = pulled / weight.view(-1, *[1] * (len(size) - 1 - axis))
        return pulled

    def retract(self, z: Tensor, step: Tensor) -> Tensor:
        """z + δ."""  # noqa: D403
        return z + step

    def smooth(self, x: Tensor, sigma: float) -> Tensor:
        """Smoothed by a Gaussian of sigma control points: a solver's noise is that of parameters, not of voxels."""
        return gaussian_smooth(x, sigma)

    def regrid(self, z: Tensor, old: Grid, new: Grid) -> Tensor:
        """The splines of the new grid that are closest to the displacement, as `parameters`; an affine one stays."""
        return self.parameters(regrid(self.displacement(z, old.size), old, new))


def _count(extent: int, spacing: int) -> int:
    """Control points along an axis."""
    return max(-(-(extent - 1) // spacing), 1) + 3


def _weights(extent: int, spacing: int) -> tuple[Tensor, Tensor]:
    """For every voxel the first of its four control points, and their weights (extent, 4), float64."""
    at = torch.arange(extent, dtype=torch.float64) / spacing
    first = at.floor().clamp(max=_count(extent, spacing) - 4)
    t = at - first
    weights = [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]
    return first.long(), torch.stack(weights, 1) / 6


def _evaluated(z: Tensor, axis: int, extent: int, spacing: int) -> Tensor:
    """Control points along one axis to voxels."""
    first, weights = _weights(extent, spacing)
    first, shape = first.to(z.device), (-1, *[1] * (z.ndim - 1 - axis))
    terms = [z.index_select(axis, first + k) * weights[:, k].to(z).view(shape) for k in range(4)]
    return terms[0] + terms[1] + terms[2] + terms[3]


@lru_cache(maxsize=64)
def _matrix(extent: int, spacing: int) -> Tensor:
    """Control points to voxels, (extent, control), float64."""
    with torch.inference_mode(False):  # what is kept must be of use to autograd
        first, weights = _weights(extent, spacing)
        matrix = weights.new_zeros(extent, _count(extent, spacing))
        return matrix.scatter_(1, first[:, None] + torch.arange(4), weights)


@lru_cache(maxsize=64)
def _inverse(extent: int, spacing: int) -> Tensor:
    """Voxels to the control points that fit them best, (control, extent), float64."""
    with torch.inference_mode(False):
        matrix = _matrix(extent, spacing)
        bends = SMOOTH**0.5 * torch.eye(matrix.shape[1], dtype=matrix.dtype).diff(n=2, dim=0)
        return torch.linalg.pinv(torch.cat([matrix, bends[[0, -1]]]))[:, :extent]
