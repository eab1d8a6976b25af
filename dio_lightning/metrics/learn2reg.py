"""The numbers of Learn2Reg's official evaluation, its quirks included, beside what they were meant to say.

Learn2Reg: Hering et al., IEEE TMI 42, 2023; definitions as in its evaluation script, version 2.0. Where that agrees
with our own scores they are reused: Dice with nearest-neighbour labels and TRE by cubic splines are the same.
The quirks are four. HD95 is in voxels whatever the spacing is, and infinite where the warp lost a structure; the
logarithm is that of det ∇ϕ + 3; folds are counted after that shift and its clipping, so that none is ever found; and
the value at 30 % of the pairs, a measure of robustness, takes the best pairs of a score where less is better.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from dio_lightning.fields import jacobian_determinant, moving_points, on_moving_grid
from dio_lightning.metrics.landmarks import tre
from dio_lightning.metrics.overlap import dice_per_label, label_sizes, warp_label
from dio_lightning.metrics.regularity import LARGEST, SMALLEST, sdlogj
from dio_lightning.metrics.surface import hausdorff_per_label
from dio_lightning.pair import Pair, in_mm

SHIFT, BORDER = 3, 2
SCORES = ("dice", "hd95", "tre", "sdlogj", "num_foldings")


def learn2reg(u: Float[Tensor, "1 d *s"], pair: Pair, masked: bool = False) -> dict[str, float]:
    """The official scores of a batch of one, u in voxels of the fixed grid; those whose inputs the pair holds.

    With `masked` (LungCT, NLST) sdlogj is taken inside fixed_mask, and without a mask everywhere.
    """
    u = u.double()
    v = on_moving_grid(u, pair)
    scores: dict[str, float] = {}
    if "fixed_label" in pair and "moving_label" in pair:
        labels = pair["fixed_label"], pair["moving_label"]
        scores["dice"] = dice(v, *labels).nanmean().item()
        scores["hd95"] = hd95(v, *labels).nanmean().item()
    if "fixed_points" in pair and "moving_points" in pair:
        # millimetres are those of the world, whichever grid the moving landmarks were given on
        scores["tre"] = tre(u, pair["fixed_points"], moving_points(pair), in_mm(pair, u), order=3).mean().item()
    if min(u.shape[2:]) > 2 * BORDER:
        scores["sdlogj"] = sdlogj(u, BORDER, pair.get("fixed_mask") if masked else None).item()
        scores["num_foldings"] = float(num_foldings(u))
    return scores


def dice(
    u: Float[Tensor, "1 d *s"], fixed_label: Integer[Tensor, "1 1 *s"], moving_label: Integer[Tensor, "1 1 *t"]
) -> Float[Tensor, " k"]:
    """Dice of labels 1..k, warped to the nearest voxel; NaN where the fixed or the moving image lacks the label."""
    return dice_per_label(fixed_label, warp_label(moving_label, u), moving_label)[0]


def hd95(
    u: Float[Tensor, "1 d *s"], fixed_label: Integer[Tensor, "1 1 *s"], moving_label: Integer[Tensor, "1 1 *t"]
) -> Float[Tensor, " k"]:
    """HD95 of labels 1..k in voxels; NaN as in `dice`, infinite where the warp lost the structure."""
    warped = warp_label(moving_label, u)
    largest = max(int(fixed_label.max()), int(moving_label.max()), 0)
    sizes = torch.minimum(label_sizes(fixed_label, largest), label_sizes(moving_label, largest))[0]
    both = (sizes > 0).nonzero().flatten() + 1
    distances = hausdorff_per_label(fixed_label, warped, torch.ones(1, u.shape[1]), both.tolist())[0][0]
    result = torch.full((largest,), torch.nan, dtype=torch.float64)
    result[both.cpu() - 1] = distances.where(~distances.isnan(), torch.inf)
    return result


def num_foldings(u: Float[Tensor, "1 d *s"]) -> int:
    """Voxels whose shifted and clipped Jacobian determinant is 0 or less; it never is, so this is always 0."""
    inner = (0, *[slice(BORDER, size - BORDER) for size in u.shape[2:]])
    shifted = (jacobian_determinant(u)[inner] + SHIFT).clamp(SMALLEST, LARGEST)
    return int((shifted <= 0).sum())


def aggregate(values: Sequence[float]) -> dict[str, float]:
    """`mean`, population `std` and `30`, the quantile at 0.3, of a score over pairs; NaN in one pair is NaN in all."""
    array = np.asarray(values, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return {"mean": float(array.mean()), "std": float(array.std()), "30": float(np.quantile(array, 0.3))}


def robust(values: Sequence[float], rising: bool) -> float:
    """What `30` was meant to be: the value that 30 % of the pairs do not reach, at 0.7 where less is better."""
    finite = np.asarray([value for value in values if not np.isnan(value)], dtype=np.float64)
    return float(np.quantile(finite, 0.3 if rising else 0.7)) if len(finite) else float("nan")
