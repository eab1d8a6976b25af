"""Displacement fields: how they are sampled, combined and measured."""

from dio_lightning.fields.grid import downsample, identity, resample, resize, sample, warp
from dio_lightning.fields.jacobian import jacobian, jacobian_determinant
from dio_lightning.fields.maps import compose, exponential, inverse
from dio_lightning.fields.smoothing import gaussian_smooth

__all__ = [
    "compose",
    "downsample",
    "exponential",
    "gaussian_smooth",
    "identity",
    "inverse",
    "jacobian",
    "jacobian_determinant",
    "resample",
    "resize",
    "sample",
    "warp",
]
