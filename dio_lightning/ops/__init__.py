"""The few operators that the inner loop lives in: one function each, a plain reference, fast kernels behind it."""

from dio_lightning.ops.choice import chosen
from dio_lightning.ops.composition import compose
from dio_lightning.ops.correlation import local_correlation
from dio_lightning.ops.information import joint_histogram, mutual_information
from dio_lightning.ops.labels import label_counts, nearest, overlap_counts
from dio_lightning.ops.match import Blocks, match, match_blocks
from dio_lightning.ops.norm import group_norm, variances
from dio_lightning.ops.preimage import preimages
from dio_lightning.ops.sampling import interpolate
from dio_lightning.ops.soft_labels import label_sums
from dio_lightning.ops.stencils import correlate, determinants, shortfall, squared_differences
from dio_lightning.ops.steps import adam_step, largest_square, residual
from dio_lightning.ops.weighted_correlation import WeightedCorrelation, weighted_correlation

__all__ = [
    "Blocks",
    "WeightedCorrelation",
    "adam_step",
    "chosen",
    "compose",
    "correlate",
    "determinants",
    "group_norm",
    "interpolate",
    "joint_histogram",
    "label_counts",
    "label_sums",
    "largest_square",
    "local_correlation",
    "match",
    "match_blocks",
    "mutual_information",
    "nearest",
    "overlap_counts",
    "preimages",
    "residual",
    "shortfall",
    "squared_differences",
    "variances",
    "weighted_correlation",
]
