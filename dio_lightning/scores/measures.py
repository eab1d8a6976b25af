"""What each score is of a registered pair. torch is imported where a score is taken, not where one is named."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from dio_lightning.scores.registered import Registered


def dice(registered: "Registered") -> "Tensor":
    """Dice of every label that counts (n,)."""
    return registered.dice


def hd95(registered: "Registered") -> "Tensor":
    """95 % Hausdorff distance of every label that counts (n,), in mm; NaN where the warp lost it."""
    return registered.surfaces[0]


def hd(registered: "Registered") -> "Tensor":
    """Hausdorff distance of every label that counts (n,), in mm; NaN where the warp lost it."""
    return registered.surfaces[1]


def hd_missed(registered: "Registered") -> int:
    """Number of labels that the warp lost, which `hd95` and `hd` leave out."""
    return int(registered.surfaces[0].isnan().sum())


def mask_dice(registered: "Registered") -> float:
    """Dice of the two masks."""
    import torch

    from dio_lightning.metrics import dice_per_label

    fixed, moving = ((registered.side(f"{side}_mask") > 0).to(torch.int16) for side in ("fixed", "moving"))
    return dice_per_label(fixed, registered.warp(moving), moving, 1).item()


def tre(registered: "Registered") -> float:
    """Mean distance of the landmarks in mm."""
    from dio_lightning.fields import moving_points
    from dio_lightning.metrics import tre

    points, order = moving_points(registered.pair), registered.options.landmarks_order
    return tre(registered.u, registered.side("fixed_points"), points, registered.in_mm, order).mean().item()


def folds(registered: "Registered") -> float | None:
    """Percentage of voxels that are folded."""
    return None if registered.regularity is None else registered.regularity.folds.item()


def sdlogj(registered: "Registered") -> float | None:
    """Learn2Reg's standard deviation of the logarithm of det ∇ϕ + 3."""
    return None if registered.regularity is None else registered.regularity.sdlogj.item()


def std_logj(registered: "Registered") -> float | None:
    """Standard deviation of the logarithm of det ∇ϕ."""
    return None if registered.regularity is None else registered.regularity.std_logj.item()
