"""Terms: similarities, distances of features, regularisers, prompts; other losses, and the training objective."""

from dio_lightning.losses.consistency import inverse_consistency
from dio_lightning.losses.distance import FeatureDistance, FeatureSimilarity
from dio_lightning.losses.information import MutualInformation
from dio_lightning.losses.landmarks import Landmarks
from dio_lightning.losses.objective import Objective, at_size
from dio_lightning.losses.overlap import Dice, soft_dice
from dio_lightning.losses.prompts import LabelPrompt, LandmarkPrompt
from dio_lightning.losses.recognition import DiceCrossEntropy
from dio_lightning.losses.regularity import (
    Bending,
    Diffusion,
    Folding,
    JacobianPenalty,
    Regulariser,
    TotalVariation,
    diffusion,
    folding,
)
from dio_lightning.losses.similarity import LNCC, SSD, Similarity
from dio_lightning.losses.spline_distance import SplineDistance
from dio_lightning.losses.term import Energy, Term, slope_of

__all__ = [
    "LNCC",
    "SSD",
    "Bending",
    "Dice",
    "DiceCrossEntropy",
    "Diffusion",
    "Energy",
    "FeatureDistance",
    "FeatureSimilarity",
    "Folding",
    "JacobianPenalty",
    "LabelPrompt",
    "LandmarkPrompt",
    "Landmarks",
    "MutualInformation",
    "Objective",
    "Regulariser",
    "Similarity",
    "SplineDistance",
    "Term",
    "TotalVariation",
    "at_size",
    "diffusion",
    "folding",
    "inverse_consistency",
    "slope_of",
    "soft_dice",
]
