"""Landmarks: target registration error."""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from scipy.ndimage import map_coordinates
from torch import Tensor

from dio_lightning.fields import sample
from dio_lightning.pair import to_mm

Order = Literal[1, 3]


def tre(
    u: Float[Tensor, "b d *s"],
    fixed_points: Float[Tensor, "b d n"],
    moving_points: Float[Tensor, "b d n"],
    spacing: Float[Tensor, "b d"] | Float[Tensor, "b 4 4"],
    order: Order = 1,
) -> Float[Tensor, "b n"]:
    """Distance in mm of every mapped fixed landmark p + u(p) to its moving landmark; u and points in voxels.

    spacing is that of the grid in mm, or its affine: where that is oblique or sheared, only it knows the distances.
    order is that of the interpolation of u at the landmarks: 1 is linear with the border repeated, 3 is the cubic
    spline of Learn2Reg's evaluation (scipy's `map_coordinates`, zero outside the grid; runs on the CPU).

    Raises:
        ValueError: order is neither 1 nor 3, or the two sets of landmarks differ in size.
    """
    if fixed_points.shape != moving_points.shape:
        raise ValueError(f"{fixed_points.shape[-1]} fixed landmarks do not match {moving_points.shape[-1]} moving ones")
    if order == 1:
        displacement = sample(u, fixed_points.to(u))
    elif order == 3:
        displacement = _cubic(u, fixed_points)
    else:
        raise ValueError(f"the interpolation order of landmarks must be 1 or 3, not {order!r}")
    error = fixed_points.to(displacement) + displacement - moving_points.to(displacement)
    return to_mm(error, spacing).norm(dim=1)


def _cubic(u: Tensor, points: Tensor) -> Tensor:
    """Displacement at the points (b, d, n) by cubic splines, float64, zero outside."""
    fields, at = u.detach().cpu().double().numpy(), points.detach().cpu().double().numpy()
    values = [[map_coordinates(channel, p, order=3) for channel in field] for field, p in zip(fields, at, strict=True)]
    return torch.from_numpy(np.array(values)).to(u.device)
