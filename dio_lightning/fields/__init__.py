"""Displacement fields: how they are sampled, combined and measured."""

from dio_lightning.fields.grid import downsample, identity, resample, resize, sample, warp
from dio_lightning.fields.jacobian import jacobian, jacobian_determinant
from dio_lightning.fields.levels import Grid, average_pool, blocks, regrid, spanning
from dio_lightning.fields.maps import compose, exponential, inverse
from dio_lightning.fields.smoothing import gaussian_average, gaussian_smooth
from dio_lightning.fields.worlds import (
    alike_voxels,
    fixed_to_moving,
    moving_points,
    on_moving_grid,
    on_one_grid,
    seen_from,
)

__all__ = [
    "Grid",
    "alike_voxels",
    "average_pool",
    "blocks",
    "compose",
    "downsample",
    "exponential",
    "fixed_to_moving",
    "gaussian_average",
    "gaussian_smooth",
    "identity",
    "inverse",
    "jacobian",
    "jacobian_determinant",
    "moving_points",
    "on_moving_grid",
    "on_one_grid",
    "regrid",
    "resample",
    "resize",
    "sample",
    "seen_from",
    "spanning",
    "warp",
]
