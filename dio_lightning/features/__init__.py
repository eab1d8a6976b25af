"""Feature pyramids: one image in, features coarse to fine out."""

from dio_lightning.features.base import FeaturePyramid
from dio_lightning.features.contrast import LocalContrast, local_contrast
from dio_lightning.features.described import Described
from dio_lightning.features.encoders import LKUE, UNetE
from dio_lightning.features.gradient import GradientMagnitude, gradient_magnitude
from dio_lightning.features.identity import Intensity
from dio_lightning.features.joined import Joined
from dio_lightning.features.learned import FeatureNetwork
from dio_lightning.features.lku import LKU
from dio_lightning.features.mind import MIND, mind
from dio_lightning.features.posteriors import Posteriors
from dio_lightning.features.unet import UNet

__all__ = [
    "LKU",
    "LKUE",
    "MIND",
    "Described",
    "FeatureNetwork",
    "FeaturePyramid",
    "GradientMagnitude",
    "Intensity",
    "Joined",
    "LocalContrast",
    "Posteriors",
    "UNet",
    "UNetE",
    "gradient_magnitude",
    "local_contrast",
    "mind",
]
