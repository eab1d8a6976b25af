"""How much a result is to be trusted: what can be seen of two images without knowing the truth."""

from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
import torch

from dio_lightning.fields import sample
from dio_lightning.metrics import regularity
from dio_lightning.registration.grids import blurred, isotropic, seen_at
from dio_lightning.registration.scan import Scan
from dio_lightning.registration.similarity import normalised_information
from dio_lightning.transforms import Field, Inverse, Transform

Verdict = Literal["good", "doubtful", "failed"]
VOXELS = 48
"""Voxels along the longest axis on which images are compared."""


@dataclass(frozen=True)
class Quality:
    """What is known of one result.

    Attributes:
        verdict: in one word.
        sentence: why.
        overlap: Dice of what is brighter than the mean in both images.
        information: normalised mutual information of the result, 1 to 2.
        start: of the images as their headers place them.
        scrambled: the highest with the warped image mirrored or shifted by a quarter: what chance gives.
        folds: percentage of voxels where the deformable part folds.
        std_logj: standard deviation of the logarithm of the deformable part's Jacobian determinant.
        inverse_mm: mean distance between a point and where the inverse and then the transform take it.
    """

    verdict: Verdict
    sentence: str
    overlap: float
    information: float
    start: float
    scrambled: float
    folds: float
    std_logj: float
    inverse_mm: float


def judge(fixed: Scan, moving: Scan, transform: Transform, inverse: Inverse) -> Quality:
    """The quality of a transform from the fixed world to the moving one."""
    edge = float(((np.array(fixed.grid.size) - 1) * fixed.grid.spacing).max()) / VOXELS
    grid = isotropic(fixed.grid, max(edge, float(fixed.grid.spacing.min())))
    image = seen_at(blurred(fixed, edge), fixed.grid, np.eye(4)[None], grid)
    other = blurred(moving, edge)
    places = moving.grid.voxels(transform.map(grid.points())).to(other)
    warped = sample(other, places[None], padding="zeros")
    before = seen_at(other, moving.grid, np.eye(4)[None], grid)
    start, result = normalised_information(torch.cat([before, warped]), image).tolist()
    chance = float(normalised_information(torch.cat(_scrambled(warped)), image).max())
    inside = [x > x.mean() for x in (image, warped)]
    total = int(inside[0].sum() + inside[1].sum())
    overlap = 2 * int((inside[0] & inside[1]).sum()) / max(total, 1)
    regular = [_regularity(link) for link in _fields(transform)]
    folded, spread = (max(values, default=0.0) for values in (zip(*regular, strict=True) if regular else ((), ())))
    verdict, sentence = _verdict(overlap, result, start, chance, folded, inverse.mean)
    return Quality(verdict, sentence, overlap, result, start, chance, folded, spread, inverse.mean)


def _verdict(
    overlap: float, result: float, start: float, chance: float, folded: float, inverse: float
) -> tuple[Verdict, str]:
    if overlap < 0.4:
        return "failed", f"the foregrounds overlap by {overlap:.2f} (Dice) after registration"
    if result < start - 0.005:
        return "failed", f"the images are less alike ({result:.3f}) than where their headers place them ({start:.3f})"
    gain = (result - 1) / max(chance - 1, 1e-6)
    if gain < 1.1:
        return "failed", f"the images are hardly more alike ({result:.3f}) than when one is mirrored ({chance:.3f})"
    if overlap < 0.7:
        return "doubtful", f"the foregrounds overlap by {overlap:.2f} (Dice) only"
    if gain < 1.25:
        return "doubtful", f"the images are little more alike ({result:.3f}) than when one is mirrored ({chance:.3f})"
    if folded > 1:
        return "doubtful", f"{folded:.1f} % of the voxels fold"
    if inverse > 1:
        return "doubtful", f"the inverse misses by {inverse:.2f} mm on average"
    return "good", f"the images are alike ({result:.3f}, mirrored {chance:.3f}) and overlap by {overlap:.2f}"


def _scrambled(image: torch.Tensor) -> list[torch.Tensor]:
    """The image mirrored along every two axes or more, and shifted round by a quarter along each."""
    axes = range(2, image.ndim)
    sets = [[a for a, on in zip(axes, chosen, strict=True) if on] for chosen in product((0, 1), repeat=len(axes))]
    # across its midplane alone a brain is like itself
    mirrored = [image.flip(chosen) for chosen in sets if len(chosen) > 1]
    return mirrored + [image.roll(image.shape[a] // 4, a) for a in axes]


def _fields(transform: Transform) -> list[Field]:
    return [link for link in getattr(transform, "links", [transform]) if isinstance(link, Field)]


def _regularity(field: Field) -> tuple[float, float]:
    """Percentage of the voxels of a field where it folds, and the spread of the logarithm of its determinant."""
    d = len(field.grid.size)
    at = field.grid.points()
    u = field.grid.voxels(at + field.displacement.to(at)) - field.grid.voxels(at)
    scores = regularity(u[None, :d], 0)
    return scores.folds.item(), scores.std_logj.item()
