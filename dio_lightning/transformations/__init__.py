"""Transformation models: what parameters mean, and how a step changes them."""

from dio_lightning.transformations.affine import Affine
from dio_lightning.transformations.base import Transformation
from dio_lightning.transformations.bspline import BSpline
from dio_lightning.transformations.dense import Diffeomorphism, FreeForm, StationaryVelocity
from dio_lightning.transformations.rigid import Rigid

__all__ = ["Affine", "BSpline", "Diffeomorphism", "FreeForm", "Rigid", "StationaryVelocity", "Transformation"]
