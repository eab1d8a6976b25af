"""The inverse of a displacement in the world, as a fixed point."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dio_lightning.fields import sample
from dio_lightning.implicit import Anderson, PhantomAdjoint, Residual, fixed_point
from dio_lightning.transforms.world import ImageGrid, linear

TOGETHER = 12
"""Steps that all points take together; those that are not there yet go on alone."""
LATE = 1e-5
"""In voxels of the field: a point that is further off is not there yet."""
CHUNK = 2**17
"""Points that go on alone at a time."""


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
    w = origins(v, own, at[None], v.dtype, TOGETHER)[0]
    covered = own.contains(at + w)
    missed = torch.where(covered, _missed(v, own, at, w), 0)
    # few points take long, and all would wait for them
    for late in (missed > LATE * float(own.spacing.min())).nonzero().split(CHUNK):
        index = (slice(None), *late.T)
        alone = origins(v, own, at[index].T[:, :, None])[:, :, 0].T.to(w)
        rest = torch.where(own.contains(at[index] + alone), _missed(v, own, at[index], alone), torch.inf)
        better = rest < missed[index[1:]]
        w[index] = torch.where(better, alone, w[index])
        missed[index[1:]] = torch.where(better, rest, missed[index[1:]])
    missed = missed[covered]
    mean, largest = (float(missed.mean()), float(missed.max())) if len(missed) else (0.0, 0.0)
    return InverseField(w.to(v.dtype), mean, largest, float(covered.double().mean()))


def _missed(v: Tensor, own: ImageGrid, at: Tensor, w: Tensor) -> Tensor:
    """Millimetres between points (3, *t) and where w and then v take them."""
    return (w + sample(v[None], own.voxels(at + w)[None])[0]).norm(dim=0)


def origins(
    v: Float[Tensor, "3 *s"],
    own: ImageGrid,
    y: Float[Tensor, "b 3 *t"],
    dtype: torch.dtype = torch.float64,
    max_steps: int = 100,
) -> Float[Tensor, "b 3 *t"]:
    """The fixed point of w = -v(y + w), so that y + w is the point that v takes to y; each of a batch on its own.

    It converges where v is a contraction. v has the values of its border beside its grid, but where both y and y + w
    lie beside it w is zero, because v is zero there. It is solved in voxels, in `dtype`.
    """
    batch_last = y.movedim(1, 0)
    at = own.voxels(batch_last).movedim(0, 1).to(dtype)
    u = linear(np.linalg.pinv(own.affine[:3, : len(own.size)]), v.double())[None].to(dtype)
    size = at.new_tensor(own.size).view(1, -1, *[1] * (at.ndim - 2))

    def step(z: Tensor) -> Tensor:
        return -sample(u, (at + z).movedim(1, 0)[None])[0].movedim(0, 1)

    stop = Residual(1e-5 if dtype == torch.float32 else 1e-9, atol=1e-9)
    z = fixed_point(
        step, torch.zeros_like(at), Anderson(window=4), PhantomAdjoint(), max_steps=max_steps, stop=stop
    ).value.detach()
    # one more step, with all three components of a plane
    w = -sample(v[None], (at + z).movedim(1, 0)[None])[0].movedim(0, 1)
    near = [((x >= -0.5) & (x <= size - 0.5)).all(1, keepdim=True) for x in (at, at + z)]
    return torch.where(near[0] | near[1], w, 0.0)
