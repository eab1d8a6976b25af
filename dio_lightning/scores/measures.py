"""What each score is of a registered pair. torch is imported where a score is taken, not where one is named."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from dio_lightning.scores.registered import Registered


def dice(found: "Registered") -> "Tensor":
    """Dice of every label that counts (n,)."""
    return found.dice


def hd95(found: "Registered") -> "Tensor":
    """95 % Hausdorff distance of every label that counts (n,), in mm; NaN where the warp lost it."""
    return found.surfaces[0]


def hd(found: "Registered") -> "Tensor":
    """Hausdorff distance of every label that counts (n,), in mm; NaN where the warp lost it."""
    return found.surfaces[1]


def hd_missed(found: "Registered") -> int:
    """Number of labels that the warp lost, which `hd95` and `hd` leave out."""
    return int(found.surfaces[0].isnan().sum())


def mask_dice(found: "Registered") -> float:
    """Dice of the two masks."""
    import torch

    from dio_lightning.metrics import dice_per_label

    fixed, moving = ((found.side(f"{side}_mask") > 0).to(torch.int16) for side in ("fixed", "moving"))
    return dice_per_label(fixed, found.warp(moving), moving, 1).item()


def tre(found: "Registered") -> float:
    """Mean distance of the landmarks in mm."""
    from dio_lightning.fields import moving_points
    from dio_lightning.metrics import tre

    there, order = moving_points(found.pair), found.options.landmarks_order
    return tre(found.u, found.side("fixed_points"), there, found.in_mm, order).mean().item()


def folds(found: "Registered") -> float | None:
    """Percentage of voxels that are folded."""
    return None if found.regularity is None else found.regularity.folds.item()


def sdlogj(found: "Registered") -> float | None:
    """Learn2Reg's standard deviation of the logarithm of det ∇ϕ + 3."""
    return None if found.regularity is None else found.regularity.sdlogj.item()


def std_logj(found: "Registered") -> float | None:
    """Standard deviation of the logarithm of det ∇ϕ."""
    return None if found.regularity is None else found.regularity.std_logj.item()
