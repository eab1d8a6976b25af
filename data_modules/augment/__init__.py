"""Random changes of training pairs, named in a config as `augment`; what belongs to an image follows it."""

from data_modules.augment.affine import RandomAffine
from data_modules.augment.base import FIELDS, POINTS, Augmentation, Augmented
from data_modules.augment.contrast import RandomContrast
from data_modules.augment.deformation import RandomDeformation
from data_modules.augment.grids import Crop, Flip, cropped, flipped
from data_modules.augment.intensity import RandomAnisotropy, RandomIntensity
from data_modules.augment.swap import Swap

__all__ = [
    "FIELDS",
    "POINTS",
    "Augmentation",
    "Augmented",
    "Crop",
    "Flip",
    "RandomAffine",
    "RandomAnisotropy",
    "RandomContrast",
    "RandomDeformation",
    "RandomIntensity",
    "Swap",
    "cropped",
    "flipped",
]
