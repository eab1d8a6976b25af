"""Overlap of labels: warped label maps and the Dice score of every label."""

import itertools
from typing import Literal

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from dio_lightning import ops

LabelMode = Literal["nearest", "linear"]
FEW = 2**16
"""Labels up to which a table of all numbers costs nothing beside a map."""


def warp_label(
    label: Integer[Tensor, "b 1 *t"], u: Float[Tensor, "b d *s"], mode: LabelMode = "nearest"
) -> Integer[Tensor, "b 1 *s"]:
    """Label map at x + u(x), u in voxels; background (0) outside the grid and where u is not finite.

    "nearest" takes the label of the nearest voxel, as Learn2Reg does (scipy's `map_coordinates` with order 0). "linear"
    interpolates the mask of every label linearly and keeps the label whose mask exceeds 0.5, background if none does.

    Raises:
        ValueError: the mode is neither "nearest" nor "linear".
    """
    if mode == "nearest":
        return ops.nearest(label, u, "centres", relative=True)
    if mode == "linear":
        return _majority(label, [u[:, axis].double() + _line(axis, u) for axis in range(u.shape[1])])
    raise ValueError(f"label mode must be 'nearest' or 'linear', not {mode!r}")


def dice_per_label(
    fixed_label: Integer[Tensor, "b 1 *s"],
    warped_label: Integer[Tensor, "b 1 *s"],
    moving_label: Integer[Tensor, "b 1 *t"] | None = None,
    num_labels: int | None = None,
) -> Float[Tensor, "b k"]:
    """Dice 2|A∩B| / (|A| + |B|) of labels 1..k, k = num_labels (default: the largest label); column j is label j + 1.

    NaN where a label is absent from the fixed or the moving image (the Learn2Reg rule), so that `nanmean(dim=1)` is the
    score of a pair. A structure that the warp lost scores 0. Without moving_label, the warped label stands for it.

    Raises:
        ValueError: if k is above `ops.labels.MOST`: `ranked` gives such labels other numbers.
    """
    count = num_labels if num_labels is not None else _largest(fixed_label, warped_label, moving_label)
    fixed, warped, common = ops.overlap_counts(fixed_label, warped_label, count)
    moving = warped if moving_label is None else ops.label_counts(moving_label, count)
    dice = 2 * common.double() / (fixed + warped)
    return torch.where((fixed > 0) & (moving > 0), dice, torch.nan)


def dice_linear(
    fixed_label: Integer[Tensor, "b 1 *s"],
    moving_label: Integer[Tensor, "b 1 *t"],
    u: Float[Tensor, "b d *s"],
    num_labels: int | None = None,
) -> Float[Tensor, "b k"]:
    """Dice of labels 1..k, each mask warped linearly and thresholded at 0.5; NaN as in `dice_per_label`."""
    return dice_per_label(fixed_label, warp_label(moving_label, u, "linear"), moving_label, num_labels)


def label_sizes(label: Integer[Tensor, "b 1 *s"], num_labels: int) -> Integer[Tensor, "b k"]:
    """Voxels of labels 1..num_labels in every sample; other values count as background."""
    return ops.label_counts(label, num_labels)


def ranked(*labels: Integer[Tensor, "..."]) -> list[Integer[Tensor, "..."]]:
    """Several maps with small numbers for their labels, one label the same in all of them; 0 and below become 0.

    Maps whose largest label is at most `FEW` come back as they are; in others, such as an atlas that counts to 600
    million, a label becomes its place among those that are there.
    """
    if _largest(*labels) <= FEW:
        return list(labels)
    present = torch.cat([label.unique().long() for label in labels]).unique()
    present = present[present > 0]
    return [torch.where(label > 0, torch.searchsorted(present, label.long().contiguous()) + 1, 0) for label in labels]


def _largest(*labels: Tensor | None) -> int:
    return max(0, *(int(label.max()) for label in labels if label is not None))


def _line(axis: int, u: Tensor) -> Tensor:
    """Coordinates 0..n-1 along one axis, broadcastable against (b, *s)."""
    size = u.shape[2 + axis]
    return torch.arange(size, device=u.device).view(-1, *[1] * (u.ndim - 3 - axis))


def _gather(label: Tensor, index: list[Tensor], inside: Tensor) -> Tensor:
    """Labels (b, *s) at integer positions inside the grid, 0 elsewhere."""
    flat = torch.zeros_like(index[0])
    for position, size in zip(index, label.shape[2:], strict=True):
        flat = flat * size + position.clamp(0, size - 1)
    values = label.flatten(1).gather(1, flat.flatten(1)).view(inside.shape)
    return torch.where(inside, values, 0)


def _majority(label: Tensor, points: list[Tensor]) -> Tensor:
    """The label that holds more than half of the linear weights of the 2^d voxels around each point."""
    finite = torch.stack([p.isfinite() for p in points]).all(0)
    points = [torch.where(finite, p, -2).clamp(-2, n + 1) for p, n in zip(points, label.shape[2:], strict=True)]
    base = [p.floor().long() for p in points]
    offsets = list(itertools.product((0, 1), repeat=len(points)))
    corners = torch.stack([_corner(label, base, offset) for offset in offsets])
    # inside a structure all voxels around a point agree; only the points between structures need weights
    mixed = (corners != corners[0]).any(0)
    part = [(p - b)[mixed] for p, b in zip(points, base, strict=True)]
    near = [torch.stack([p if o else 1 - p for p, o in zip(part, offset, strict=True)]) for offset in offsets]
    result = corners[0].clone()
    result[mixed] = _winner(corners[:, mixed], torch.stack(near).prod(1))
    return result[:, None]


def _corner(label: Tensor, base: list[Tensor], offset: tuple[int, ...]) -> Tensor:
    index = [b + o for b, o in zip(base, offset, strict=True)]
    inside = torch.stack([(i >= 0) & (i < n) for i, n in zip(index, label.shape[2:], strict=True)]).all(0)
    return _gather(label, index, inside)


def _winner(corners: Tensor, weights: Tensor) -> Tensor:
    """Of the labels (2^d, m) the one that holds more than half of the weights, else 0."""
    result = torch.zeros_like(corners[0])
    for label in corners:
        result = torch.where((weights * (corners == label)).sum(0) > 0.5, label, result)
    return result
