"""Update maps f, whose fixed point is the registration."""

from dio_lightning.updates.descent import Descent, UpdateRule
from dio_lightning.updates.gauss_newton import GaussNewton

__all__ = ["Descent", "GaussNewton", "UpdateRule"]
