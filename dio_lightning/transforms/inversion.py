"""The inverse of a displacement in the world."""

from math import prod
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dio_lightning.fields import sample
from dio_lightning.ops import preimages
from dio_lightning.transforms.world import ImageGrid, linear

PLANES = 16
"""Planes of a grid whose points are looked for at a time: a volume of points in float64 is large."""


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
    w, missed, fine = v.new_empty(3, *grid.size), list[Tensor](), v.double()
    u = _in_voxels(fine, own).to(v.dtype)
    for first in range(0, grid.size[0], PLANES):
        slab = grid.slab(first, min(first + PLANES, grid.size[0]))
        at = slab.points()
        back = _origins(fine, u, own, at)
        w[:, first : first + PLANES] = back
        origin = at + back
        covered = own.contains(origin)
        missed.append((back + sample(fine[None], own.voxels(origin)[None])[0]).norm(dim=0)[covered])
    distances = torch.cat(missed)
    mean, largest = (float(distances.mean()), float(distances.max())) if len(distances) else (0.0, 0.0)
    return InverseField(w, mean, largest, len(distances) / prod(grid.size))


def origins(v: Float[Tensor, "3 *s"], own: ImageGrid, y: Float[Tensor, "3 *t"]) -> Float[Tensor, "3 *t"]:
    """The w = -v(y + w), so that y + w is the point that v takes to y; in float64 (`ops.preimages`).

    v has the values of its border beside its grid, but where both y and y + w lie beside it w is zero, because v is
    zero there.
    """
    return _origins(v.double(), _in_voxels(v.double(), own).to(v.dtype), own, y)


def _in_voxels(v: Tensor, own: ImageGrid) -> Tensor:
    """The displacement (d, *s) in voxels of its own grid."""
    return linear(np.linalg.pinv(own.affine[:3, : len(own.size)]), v)


def _origins(v: Tensor, u: Tensor, own: ImageGrid, y: Tensor) -> Tensor:
    at = own.voxels(y).double()
    at_origin = at + preimages(u, at.flatten(1)).view(at.shape)
    # all three components, of a plane too
    w = -sample(v[None], at_origin[None])[0]
    size = at.new_tensor(own.size).view(-1, *[1] * (at.ndim - 1))
    near = [((x >= -0.5) & (x <= size - 0.5)).all(0) for x in (at, at_origin)]
    return torch.where(near[0] | near[1], w, 0.0)
