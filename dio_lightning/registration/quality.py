"""How much a result is to be trusted: what can be seen of two images without knowing the truth."""

from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dio_lightning.fields import sample
from dio_lightning.metrics import regularity
from dio_lightning.registration.grids import blurred, isotropic
from dio_lightning.registration.scan import Scan
from dio_lightning.registration.similarity import normalised_information
from dio_lightning.transforms import Field, Inverse, Transform
from dio_lightning.transforms.world import linear

Verdict = Literal["good", "doubtful", "failed"]
VOXELS = 48
"""Voxels along the longest axis on which images are compared."""
SHIFT = 24
"""A shift by the longest axis over this is a mistake that a right result can be told from."""


@dataclass(frozen=True)
class Quality:
    """What is known of one result.

    Attributes:
        verdict: in one word.
        sentence: why.
        overlap: Dice of what is brighter than the mean in both images.
        information: normalised mutual information of the result, 1 to 2.
        start: of the images as their headers place them.
        shifted: the highest with the warped image shifted a little (`SHIFT`): where it is right, that is much worse.
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
    shifted: float
    scrambled: float
    folds: float
    std_logj: float
    inverse_mm: float


def judge(fixed: Scan, moving: Scan, transform: Transform, inverse: Inverse) -> Quality:
    """The quality of a transform from the fixed world to the moving one; what masks leave out has no say."""
    edge = float(((np.array(fixed.grid.size) - 1) * fixed.grid.spacing).max()) / VOXELS
    grid = isotropic(fixed.grid, max(edge, float(fixed.grid.spacing.min())))
    points = grid.points()
    image, counts = _looked_at(fixed, edge, points).split(1, 1)
    before, warped = (_looked_at(moving, edge, at) for at in (points, transform.map(points)))
    shift = max(1, round(max(grid.size) / SHIFT))

    def information(others: Tensor) -> Tensor:
        """Of images with their masks."""
        return normalised_information(others[:, :1], image, weights=others[:, 1:] * counts)

    start, result = information(torch.cat([before, warped])).tolist()
    chance = float(information(torch.cat(_scrambled(warped))).max())
    near, shifted = (float(information(_shifted(warped, by)).max()) for by in (1, shift))
    valid = (counts * warped[:, 1:]) > 0
    inside = [(x > x[valid].mean()) & valid for x in (image, warped[:, :1])]
    total = int(inside[0].sum() + inside[1].sum())
    overlap = 2 * int((inside[0] & inside[1]).sum()) / max(total, 1)
    regular = [_regularity(link) for link in _fields(transform)]
    folded, spread = (max(values, default=0.0) for values in (zip(*regular, strict=True) if regular else ((), ())))
    quality = Quality("good", "", overlap, result, start, shifted, chance, folded, spread, inverse.mean)
    verdict, sentence = _verdict(quality, near, float(grid.spacing[0]), shift * float(grid.spacing[0]))
    return replace(quality, verdict=verdict, sentence=sentence)


def _looked_at(scan: Scan, edge: float, points: Float[Tensor, "3 *t"]) -> Float[Tensor, "1 2 *t"]:
    """A blurred scan at points of its world, 0 beside it, and 1 where it counts; all counts without a mask."""
    places = scan.grid.voxels(points).float()[None]
    image = sample(blurred(scan, edge), places, padding="zeros")
    if scan.mask is None:
        return torch.cat([image, torch.ones_like(image)], 1)
    return torch.cat([image, (sample((~scan.mask).float(), places, padding="zeros") < 0.5).float()], 1)


def _verdict(q: Quality, near: float, voxel: float, shift: float) -> tuple[Verdict, str]:
    """The verdict, from the rest, the information one voxel beside it, and the lengths of both shifts in mm.

    The bounds lie between results that are right and wrong ones, of scans moved at random: benchmarks/starts.py.
    """
    beside, mirrored = ((q.information - 1) / max(other - 1, 1e-6) for other in (q.shifted, q.scrambled))
    alike = f"the images are {{}} alike ({q.information:.3f}) than when"
    one_shifted = f"one is shifted by {shift:.3g} mm ({q.shifted:.3f})"
    one_mirrored = f"one is mirrored ({q.scrambled:.3f})"
    failures = {
        f"the foregrounds overlap by {q.overlap:.2f} (Dice) after registration": q.overlap < 0.4,
        f"{alike.format('less')} their headers place them ({q.start:.3f})": q.information < q.start - 0.005,
        f"{alike.format('hardly more')} {one_shifted}": beside < 1.1,
        f"{alike.format('hardly more')} {one_mirrored}": mirrored < 1.1,
    }
    doubts = {
        f"the foregrounds overlap by {q.overlap:.2f} (Dice) only": q.overlap < 0.7,
        f"{alike.format('less')} one is shifted by {voxel:.3g} mm ({near:.3f})": q.information < near,
        f"{alike.format('little more')} {one_shifted}": beside < 1.25,
        f"{alike.format('little more')} {one_mirrored}": mirrored < 1.25,
        f"{q.folds:.1f} % of the voxels fold": q.folds > 1,
        f"the inverse misses by {q.inverse_mm:.2f} mm on average": q.inverse_mm > 1,
    }
    if failed := [sentence for sentence, holds in failures.items() if holds]:
        return "failed", failed[0]
    if doubted := [sentence for sentence, holds in doubts.items() if holds]:
        return "doubtful", doubted[0]
    same = f"shifted by {shift:.3g} mm {q.shifted:.3f}, mirrored {q.scrambled:.3f}"
    return "good", f"the images are alike ({q.information:.3f}, {same}) and overlap by {q.overlap:.2f}"


def _shifted(image: Tensor, by: int) -> Tensor:
    """The image (1, c, *s) moved by voxels along each axis, either way: (2 d, c, *s), 0 where it comes from outside."""
    moved = []
    for axis, sign in product(range(2, image.ndim), (1, -1)):
        rest = image.shape[axis] - by
        target, source = (by, 0) if sign > 0 else (0, by)
        moved.append(torch.zeros_like(image))
        moved[-1].narrow(axis, target, rest).copy_(image.narrow(axis, source, rest))
    return torch.cat(moved)


def _scrambled(image: Tensor) -> list[Tensor]:
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
    to_voxels = np.linalg.pinv(field.affine[:3, : len(field.grid.size)])
    scores = regularity(linear(to_voxels, field.displacement.double())[None], 0)
    return scores.folds.item(), scores.std_logj.item()
