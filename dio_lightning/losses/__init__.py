"""Losses: similarity of images, overlap of labels, landmarks, regularity of displacements, and their weighted sum."""

from dio_lightning.losses.landmarks import Landmarks
from dio_lightning.losses.objective import Objective, at_size
from dio_lightning.losses.overlap import Dice, soft_dice
from dio_lightning.losses.regularity import Diffusion, Folding, diffusion, folding
from dio_lightning.losses.similarity import LNCC, SSD

__all__ = [
    "LNCC",
    "SSD",
    "Dice",
    "Diffusion",
    "Folding",
    "Landmarks",
    "Objective",
    "at_size",
    "diffusion",
    "folding",
    "soft_dice",
]
