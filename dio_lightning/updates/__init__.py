"""Update maps f, whose fixed point is the registration."""

from dio_lightning.updates.descent import Descent, UpdateRule
from dio_lightning.updates.gauss_newton import GaussNewton
from dio_lightning.updates.image import ImageDescent
from dio_lightning.updates.learned import LearnedStep, PerLevel
from dio_lightning.updates.similarity import SimilarityStep, similarity_slope

__all__ = [
    "Descent",
    "GaussNewton",
    "ImageDescent",
    "LearnedStep",
    "PerLevel",
    "SimilarityStep",
    "UpdateRule",
    "similarity_slope",
]
