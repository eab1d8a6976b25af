"""Pictures of a registered pair: its slices as a NIfTI viewer has them, drawn on one sheet."""

from dio_lightning.pictures.drawing import draw
from dio_lightning.pictures.planes import Plane, Upright, cut

__all__ = ["Plane", "Upright", "cut", "draw"]
