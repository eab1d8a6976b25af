"""The few operators that the inner loop lives in: one function each, a plain reference, fast kernels behind it."""

from dio_lightning.ops.choice import chosen
from dio_lightning.ops.correlation import local_correlation
from dio_lightning.ops.information import joint_histogram, mutual_information
from dio_lightning.ops.match import Blocks, match, match_blocks
from dio_lightning.ops.preimage import preimages
from dio_lightning.ops.sampling import interpolate
from dio_lightning.ops.stencils import correlate, determinants, squared_differences
from dio_lightning.ops.weighted_correlation import WeightedCorrelation, weighted_correlation

__all__ = [
    "Blocks",
    "WeightedCorrelation",
    "chosen",
    "correlate",
    "determinants",
    "interpolate",
    "joint_histogram",
    "local_correlation",
    "match",
    "match_blocks",
    "mutual_information",
    "preimages",
    "squared_differences",
    "weighted_correlation",
]
