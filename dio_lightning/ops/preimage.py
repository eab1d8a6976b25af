"""Where the points come from that a displacement takes somewhere: its inverse, point by point."""

import torch
from torch import Tensor

from dio_lightning.ops.choice import backward_alone, implementation
from dio_lightning.ops.sampling import interpolate

TOLERANCE = 1e-6
"""Of z + u(y + z), in voxels."""
STEPS = 60
FLAT = 1e-3
"""Up to this determinant of its Jacobian a map folds, or nearly so, and Newton's step leads nowhere."""


def preimages(u: Tensor, points: Tensor) -> Tensor:
    """The z (d, n) with z + u(y + z) = 0 for each of the points y (d, n), so that id + u takes y + z to y.

    Every point is a problem of its own with d unknowns, on which Newton's method takes a handful of steps: u is linear
    between voxels, so that its slope is that of the cell where y + z lies. A point that several others are taken to,
    or none, in a fold, may end where the equation holds badly. Not differentiable.

    Args:
        u: a displacement (d, *s) in voxels of its own grid, continued beyond the border.
        points: in voxels of that grid; computed in float64 whatever they are.
    """
    backward_alone("a preimage", u, points)
    field, y = u.detach(), points.detach().double()
    kernels = implementation("preimage", u)
    if kernels is not None:
        return kernels.newton(field, y, TOLERANCE, STEPS, FLAT)
    return newton(field.double(), y, TOLERANCE, STEPS, FLAT)


def newton(u: Tensor, y: Tensor, tolerance: float, steps: int, flat: float) -> Tensor:
    """The same in plain PyTorch, all points together, from zero; NaN where a point or its displacement is none."""
    d, n = y.shape
    z, best = torch.zeros_like(y), torch.full_like(y, torch.nan)
    least, eye = y.new_full((n,), torch.inf), torch.eye(d, dtype=y.dtype, device=y.device)
    for _ in range(steps):
        with torch.enable_grad():
            at = (y + z).view(1, d, *[1] * (d - 1), n).requires_grad_()
            value = interpolate(u[None], at).view(d, n)
            rows = [torch.autograd.grad(value[c].sum(), at, retain_graph=True)[0].view(d, n) for c in range(d)]
        residual = z + value.detach()
        square = residual.square().sum(0)
        best = torch.where(square < least, z, best)
        least = torch.minimum(square, least)
        if not bool((least > tolerance**2).any()):
            break
        slope = torch.stack(rows).movedim(2, 0) + eye
        slope = torch.where((torch.linalg.det(slope) > flat)[:, None, None], slope, eye)
        z = z - torch.linalg.solve(slope, residual.T[:, :, None])[:, :, 0].T
    return best
