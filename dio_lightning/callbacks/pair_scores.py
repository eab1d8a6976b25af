"""The scores of one pair: from a displacement and what is known of the pair to one row of numbers."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dio_lightning.callbacks.gathering import Row
from dio_lightning.fields import moving_points, on_moving_grid
from dio_lightning.metrics import dice_per_label, hausdorff_per_label, label_sizes, regularity, tre, warp_label
from dio_lightning.metrics.landmarks import Order
from dio_lightning.metrics.overlap import LabelMode
from dio_lightning.pair import Pair, in_mm

BORDER = 2
IDENTITY = ("dice", "hd95", "hd", "mask_dice", "tre")
"""Scores that are also given for u = 0; the others are constants there."""
SOLVER = ("steps", "converged", "residual")
"""What a step may report of its solver, (b,) each."""


@dataclass(frozen=True)
class ScoreOptions:
    """How a pair is scored; the meaning of each is in `RegistrationScores`."""

    dice: LabelMode = "nearest"
    surface: bool = True
    landmarks_order: Order = 3
    unit_spacing: bool = False
    masked: bool = False
    min_voxels: int = 1


def one_pair(pair: Pair, index: int) -> Pair:
    """Sample `index` of a batch, as a batch of one."""
    return Pair(**{key: value[index : index + 1] for key, value in pair.items()})  # pyright: ignore


def score_pair(u: Tensor, pair: Pair, options: ScoreOptions) -> tuple[Row, list[Row]]:
    """Scores of a batch of one, u (1, d, *s) in voxels: one row, and one row per label that counts.

    Only scores whose inputs the pair holds. <score>_identity are those of u = 0. dice, hd95 and hd are means over
    labels, hd95 and hd without the hd_missed structures that the warp lost; mask_dice is that of the two masks.

    Raises:
        ValueError: masked scores are asked for and the pair has no fixed_mask.
    """
    row, labels = _fit(u, pair, options)
    still, still_labels = _fit(torch.zeros_like(u), pair, options)
    row |= {f"{name}_identity": still[name] for name in IDENTITY if name in still}
    for label, before in zip(labels, still_labels, strict=True):
        label["dice_identity"] = before["dice"]
    if options.masked and "fixed_mask" not in pair:
        raise ValueError("masked scores need pairs with a fixed_mask")
    # an axis too short for a border keeps at least its middle
    borders = [min(BORDER, (extent - 1) // 2) for extent in u.shape[2:]]
    if max(u.shape[2:]) > 2 * BORDER:
        found = regularity(u, borders, pair.get("fixed_mask") if options.masked else None)
        row |= {"folds": found.folds.item(), "sdlogj": found.sdlogj.item(), "std_logj": found.std_logj.item()}
    return row, labels


def solver_report(outputs: Mapping[str, object], index: int) -> Row:
    """Steps, convergence (0 or 1) and residual of one sample, as far as the step reported them."""
    found = {name: torch.as_tensor(outputs[name]).flatten() for name in SOLVER if name in outputs}
    return {name: float(value[index if len(value) > 1 else 0]) for name, value in found.items()}


def _fit(u: Tensor, pair: Pair, options: ScoreOptions) -> tuple[Row, list[Row]]:
    """Scores that compare two images: labels, masks and landmarks. The moving one is sampled on its own grid."""
    spacing = in_mm(pair, u)
    v = on_moving_grid(u, pair)
    row: Row = {}
    labels: list[Row] = []
    if "fixed_label" in pair and "moving_label" in pair:
        row, labels = _overlap(v, pair["fixed_label"], pair["moving_label"], spacing, options)
    if "fixed_mask" in pair and "moving_mask" in pair:
        fixed, moving = ((pair[side] > 0).to(torch.int16) for side in ("fixed_mask", "moving_mask"))
        warped = warp_label(moving, v, options.dice)
        row["mask_dice"] = dice_per_label(fixed, warped, moving, 1).item()
    if "fixed_points" in pair and "moving_points" in pair:
        there = moving_points(pair)
        error = tre(u, pair["fixed_points"], there, spacing, options.landmarks_order)
        row["tre"] = error.mean().item()
    return row, labels


def _overlap(u: Tensor, fixed: Tensor, moving: Tensor, spacing: Tensor, options: ScoreOptions) -> tuple[Row, list[Row]]:
    warped = warp_label(moving, u, options.dice)
    largest = max(int(fixed.max()), int(moving.max()), 0)
    counts = torch.minimum(label_sizes(fixed, largest), label_sizes(moving, largest))[0] >= options.min_voxels
    values = (counts.nonzero().flatten() + 1).tolist()
    dice = dice_per_label(fixed, warped, moving, largest)[0].where(counts, torch.nan)
    row: Row = {"dice": dice.nanmean().item()}
    labels: list[Row] = [{"label": value, "dice": dice[value - 1].item()} for value in values]
    if options.surface:
        unit = spacing.new_ones(1, u.shape[1]) if options.unit_spacing else spacing
        hd95, hd = hausdorff_per_label(fixed, warped, unit, values)
        for label, near, far in zip(labels, hd95[0].tolist(), hd[0].tolist(), strict=True):
            label |= {"hd95": near, "hd": far}
        row |= {"hd95": hd95.nanmean().item(), "hd": hd.nanmean().item(), "hd_missed": int(hd95.isnan().sum())}
    return row, labels
