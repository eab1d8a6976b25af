"""Scores of a registration: pure functions of displacements, labels and landmarks."""

from dio_lightning.metrics.landmarks import tre
from dio_lightning.metrics.overlap import dice_linear, dice_per_label, label_sizes, warp_label
from dio_lightning.metrics.regularity import Regularity, folds, regularity, sdlogj, std_logj
from dio_lightning.metrics.surface import hausdorff_per_label
from dio_lightning.metrics.surface_area import element_areas

__all__ = [
    "Regularity",
    "dice_linear",
    "dice_per_label",
    "element_areas",
    "folds",
    "hausdorff_per_label",
    "label_sizes",
    "regularity",
    "sdlogj",
    "std_logj",
    "tre",
    "warp_label",
]
