"""The inverse of a displacement in the world, as a fixed point."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from dio_lightning.fields import sample
from dio_lightning.implicit import Anderson, PhantomAdjoint, Residual, fixed_point
from dio_lightning.transforms.world import ImageGrid


class InverseField(NamedTuple):
    """A displacement w on a grid with y + w(y) + v(y + w(y)) ≈ y, and how far it is from that."""

    displacement: Float[Tensor, "3 *t"]
    mean: float
    """Millimetres between y and where w and then v take it, on average over the voxels y that come from v's grid."""
    largest: float
    """The same, at most."""
    covered: float
    """The share of such voxels."""


def inverse_displacement(v: Float[Tensor, "3 *s"], own: ImageGrid, grid: ImageGrid) -> InverseField:
    """The inverse of v at the voxels of `grid`; v lies on `own`, both are RAS millimetres.

    Where y comes from beside v's grid no inverse may exist: w goes on there as if v had the values of its border.
    """
    at = grid.points()
    w = origins(v, own, at[None], v.dtype)[0]
    covered = own.contains(at + w)
    missed = (w + _at(v, own, at + w)).norm(dim=0)[covered]
    mean, largest = (float(missed.mean()), float(missed.max())) if len(missed) else (0.0, 0.0)
    return InverseField(w, mean, largest, float(covered.double().mean()))


def origins(
    v: Float[Tensor, "3 *s"],
    own: ImageGrid,
    y: Float[Tensor, "b 3 *t"],
    dtype: torch.dtype = torch.float64,
    max_steps: int = 100,
    rtol: float = 1e-6,
) -> Float[Tensor, "b 3 *t"]:
    """The fixed point of w = -v(y + w), so that y + w is the point that v takes to y; each of a batch on its own.

    It converges where v is a contraction. v has the values of its border beside its grid, but where both y and y + w
    lie beside it w is zero, because v is zero there.
    """

    def step(w: Tensor) -> Tensor:
        return -_at(v, own, (y + w).movedim(1, 0)).movedim(0, 1).to(w)

    start = torch.zeros_like(y, dtype=dtype)
    stop = Residual(rtol, atol=1e-12)
    w = fixed_point(step, start, Anderson(window=4), PhantomAdjoint(), max_steps=max_steps, stop=stop).value.detach()
    near = own.contains(y.movedim(1, 0)) | own.contains((y + w).movedim(1, 0))
    return torch.where(near[:, None], w, 0.0)


def _at(v: Tensor, own: ImageGrid, points: Tensor) -> Tensor:
    """V at points (3, *t), with the values of its border beside its grid."""
    return sample(v[None], own.voxels(points)[None])[0]
