"""The few operators that the inner loop lives in: one function each, a plain reference, fast kernels behind it."""

from dio_lightning.ops.correlation import local_correlation
from dio_lightning.ops.information import joint_histogram, mutual_information
from dio_lightning.ops.match import Blocks, match, match_blocks
from dio_lightning.ops.sampling import interpolate

__all__ = [
    "Blocks",
    "interpolate",
    "joint_histogram",
    "local_correlation",
    "match",
    "match_blocks",
    "mutual_information",
]
