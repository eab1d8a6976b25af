"""Volumes of a pair for the viewer of a page: small, in bytes, as NIfTI files in base64."""

import base64
import gzip
from math import ceil

import numpy as np
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray

from dio_lightning.pictures.overlays import LINES, window
from dio_lightning.pictures.planes import NAMES, Array, Upright

LONGEST = 128
"""Voxels along the longest axis at most: larger images are averaged over blocks."""


def volumes(pair: Upright) -> dict[str, str]:
    """What the viewer shows: fixed, moving, warped, their labels, and the deformed grid of each kind of slice.

    Empty in two dimensions, whose panels show everything.
    """
    if len(pair.deformation) != 3:
        return {}
    factor = ceil(max(pair.inside.shape) / LONGEST)
    affine = pair.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ np.full(3, (factor - 1) / 2)
    affine[:3, :3] *= factor
    scales = {name: window(pair.images["fixed" if name == "fixed" else "moving"]) for name in ("fixed", "moving")}
    made: dict[str, Array] = {}
    for name in ("fixed", "moving", "warped"):
        low, high = scales["fixed" if name == "fixed" else "moving"]
        small = block_means(pair.images[name], factor)
        made[name] = np.rint(((small - low) / (high - low)).clip(0, 1) * 255).astype(np.uint8)
    everything = np.unique(np.concatenate([np.unique(label) for label in pair.labels.values()] or [np.zeros(1)]))
    for name, label in pair.labels.items():
        # outlines alone are shown, so that labels may be renumbered to fit into bytes
        made[f"{name}_labels"] = (np.searchsorted(everything, _every(label, factor)) % 256).astype(np.uint8)
    made |= _grids(pair, factor)
    return {name: encoded(array, affine) for name, array in made.items()}


def block_means(image: Array, factor: int) -> Array:
    """Means over blocks of factor³ voxels; what is left over at the upper ends is cut off."""
    size = [n // factor for n in image.shape]
    cropped = image[tuple(slice(n * factor) for n in size)]
    blocks = cropped.reshape([part for n in size for part in (n, factor)])
    return blocks.mean(tuple(range(1, 2 * image.ndim, 2)))


def borders(label: Array, axes: tuple[int, ...] = (0, 1, 2)) -> NDArray[np.bool_]:
    """Voxels of a label map whose next one along an axis has another label."""
    inside = np.zeros(label.shape, dtype=bool)
    for axis in axes:
        differs = np.diff(label, axis=axis) != 0
        lower = tuple(slice(-1) if a == axis else slice(None) for a in range(label.ndim))
        inside[lower] |= differs
    return inside


def encoded(array: NDArray[np.uint8], affine: NDArray[np.float64]) -> str:
    """A .nii.gz file in base64."""
    image = Nifti1Image(np.ascontiguousarray(array), affine)
    image.header.set_xyzt_units("mm")
    return base64.b64encode(gzip.compress(image.to_bytes(), 6, mtime=0)).decode()


def _every(array: Array, factor: int) -> Array:
    """The middle voxel of each block."""
    size = [n // factor * factor for n in array.shape]
    return array[tuple(slice(factor // 2, n, factor) for n in size)]


def _grids(pair: Upright, factor: int) -> dict[str, Array]:
    """Where lines of a grid come to lie, for slices across each axis: borders of cells of the moving image."""
    longest = max(n * s for n, s in zip(pair.inside.shape, pair.spacing, strict=True))
    cells = []
    for axis in range(3):
        # lines are finer than voxels where cells are small
        edge = max(longest / LINES / pair.spacing[axis], 3 * factor)
        cells.append(np.floor(_every(pair.deformation[axis], factor) / edge).astype(np.int16))
    made = {}
    for axis, name in enumerate(NAMES):
        within = tuple(a for a in range(3) if a != axis)
        lines = borders(cells[within[0]], within) | borders(cells[within[1]], within)
        made[f"{name}_grid"] = lines.astype(np.uint8)
    return made
