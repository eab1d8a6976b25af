"""Distances between the surfaces of labels: Hausdorff distance and its 95th percentile.

The definition is that of DeepMind's surface-distance (Nikolov et al., J. Med. Internet Res. 2021), used by Learn2Reg:
surface elements sit in the cells between 2^d voxels, distances are between cells, and the percentile is one of area.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Integer
from scipy.ndimage import find_objects
from scipy.spatial import KDTree
from torch import Tensor

from dio_lightning.metrics.overlap import FEW
from dio_lightning.metrics.surface_area import Metric, element_areas

Box = tuple[slice, ...]


class Surface(NamedTuple):
    """Surface elements of a structure: points (m, d) in mm and areas (m,) in mm² (lengths in mm for d = 2)."""

    points: np.ndarray
    areas: np.ndarray


def hausdorff_per_label(
    fixed_label: Integer[Tensor, "b 1 *s"],
    warped_label: Integer[Tensor, "b 1 *s"],
    spacing: Float[Tensor, "b d"] | Float[Tensor, "b 4 4"],
    labels: Sequence[int],
) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b k"]]:
    """HD95 and HD (largest distance) in mm of each of the k labels, the larger of both directions; float64 on the CPU.

    NaN where the fixed or the warped image lacks the label: a structure without a surface has no distance. Whoever
    averages must report how many were missed. spacing is that of the grid in mm, or its affine, which may be oblique or
    sheared. Unit spacing gives distances in voxels, the Learn2Reg number.

    Raises:
        ValueError: a label is not positive, or the spacing is not (d = 2 or 3).
    """
    if any(label < 1 for label in labels):
        raise ValueError(f"surface distances need labels of 1 or more, not {sorted(labels)[0]}")
    result = torch.full((2, len(fixed_label), len(labels)), torch.nan, dtype=torch.float64)
    for sample in range(len(fixed_label)):
        millimetres = _metric(spacing[sample], fixed_label.ndim - 2)
        maps, numbers = _numbered([label[sample, 0] for label in (fixed_label, warped_label)], labels)
        boxes = [find_objects(label, max(numbers, default=1)) for label in maps]
        for column, label in enumerate(numbers):
            boxed = [box[label - 1] for box in boxes]
            if boxed[0] is None or boxed[1] is None:
                continue
            surfaces = [surface(m, label, box, millimetres) for m, box in zip(maps, boxed, strict=True)]
            result[:, sample, column] = torch.from_numpy(hausdorff(surfaces[0], surfaces[1], (0.95, 1.0)))
    return result[0], result[1]


def surface(label_map: np.ndarray, label: int, box: Box, spacing: Metric) -> Surface:
    """Surface of one label of a map (*s), which lies inside the box; beyond the image is background."""
    mask = np.pad(label_map[box] == label, 1)
    codes = np.zeros([size - 1 for size in mask.shape], dtype=np.int32)
    for bit, corner in enumerate(np.ndindex(*[2] * mask.ndim)):
        shifted = mask[tuple(slice(c, c + size) for c, size in zip(corner, codes.shape, strict=True))]
        codes |= shifted.astype(np.int32) << bit
    table = element_areas(spacing)
    where = np.nonzero((codes > 0) & (codes < len(table) - 1))
    start = np.array([axis.start for axis in box])
    # a cell's centre lies half a voxel before its last corner; the offset is common to all surfaces, so it is left out
    points, metric = np.stack(where, axis=1) + start, np.array(spacing)
    return Surface(points * metric if metric.ndim == 1 else points @ metric.T, table[codes[where]])


def hausdorff(first: Surface, second: Surface, fractions: Sequence[float]) -> np.ndarray:
    """For each fraction of area, the distance in mm within which it lies of the other surface; 1 is HD.

    The larger of the two directions; the distance is the first, sorted, at which the accumulated area reaches the
    fraction (no interpolation).
    """
    forth = _quantiles(KDTree(second.points).query(first.points)[0], first.areas, fractions)
    back = _quantiles(KDTree(first.points).query(second.points)[0], second.areas, fractions)
    return np.maximum(forth, back)


def _quantiles(distances: np.ndarray, areas: np.ndarray, fractions: Sequence[float]) -> np.ndarray:
    order = np.argsort(distances)
    accumulated = np.cumsum(areas[order]) / areas.sum()
    first = np.searchsorted(accumulated, fractions)
    # rounding may end the sum beside 1, but the largest distance is the last in any case
    first = np.where(np.asarray(fractions) >= 1, len(order) - 1, first)
    return distances[order][first.clip(max=len(order) - 1)]


def _metric(spacing: Tensor, d: int) -> Metric:
    """Spacings (d,) in mm, or the (d, d) map whose lengths are those of an affine (4, 4), up to a turn of the world."""
    if spacing.ndim == 1:
        return tuple(map(float, spacing))
    directions = spacing[:3, :d].double().cpu().numpy()
    gram, lengths = directions.T @ directions, np.linalg.norm(directions, axis=0)
    if np.abs(gram - np.diag(lengths**2)).max() <= 1e-12 * gram.max():
        return tuple(map(float, lengths))
    return tuple(tuple(map(float, row)) for row in np.linalg.qr(directions, mode="r"))


def _numbered(maps: Sequence[Tensor], labels: Sequence[int]) -> tuple[list[np.ndarray], list[int]]:
    """Maps as int32, and the labels in them; large ones by their place, for boxes are listed up to the largest."""
    wide = [label.detach().cpu().long() for label in maps]
    if max(labels, default=1) <= FEW:
        return [label.clamp(0, FEW + 1).to(torch.int32).numpy() for label in wide], [*labels]
    arrays = [label.numpy() for label in wide]
    order = np.unique(np.asarray(labels, dtype=np.int64))
    places = [np.searchsorted(order, array).clip(max=len(order) - 1) for array in arrays]
    placed = [np.where(order[at] == array, at + 1, 0) for at, array in zip(places, arrays, strict=True)]
    return [one.astype(np.int32) for one in placed], [int(at) + 1 for at in np.searchsorted(order, labels)]
