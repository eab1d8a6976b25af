"""The few operators that the inner loop lives in: one function each, a plain reference, fast kernels behind it."""

from dio_lightning.ops.correlation import local_correlation
from dio_lightning.ops.match import Blocks, match, match_blocks
from dio_lightning.ops.sampling import interpolate
from dio_lightning.ops.weighted_correlation import WeightedCorrelation, weighted_correlation

__all__ = [
    "Blocks",
    "WeightedCorrelation",
    "interpolate",
    "local_correlation",
    "match",
    "match_blocks",
    "weighted_correlation",
]
