"""What lies over the images of a slice: outlines, grid lines, checkerboards, and the scales that panels share."""

import numpy as np
from contourpy import contour_generator

from dio_lightning.pictures.planes import Array, Plane

FIXED, MOVING, GRID = "#56B4E9", "#E69F00", "#ffffff"
"""Colours of outlines of the fixed and of the moving or warped image, which colour-blind people tell apart; grid."""
LINES = 20
"""Grid lines across the longer side."""
TILES = 8
"""Tiles of a checkerboard along the longer side."""


def window(*images: Array) -> tuple[float, float]:
    """Black and white of grey images, without the brightest thousandth."""
    low, high = min(float(i.min()) for i in images), max(float(np.quantile(i, 0.999)) for i in images)
    return low, high if high > low else low + 1.0


def difference_limit(plane: Plane) -> float:
    """The largest difference shown, the same before and after: that before, without the largest thousandth."""
    difference = plane.images["moving"] - plane.images["fixed"]
    return float(np.quantile(np.abs(difference), 0.999)) or 1.0


def checkerboard(plane: Plane) -> Array:
    """Fixed and warped image in turn, (h, v), each in its own window from 0 to 1; tiles are squares of the body."""
    both = []
    for image, (low, high) in (
        (plane.images["fixed"], window(plane.images["fixed"])),
        (plane.images["warped"], window(plane.images["moving"])),
    ):
        both.append(((image - low) / (high - low)).clip(0, 1))
    edge = max(n * s for n, s in zip(both[0].shape, plane.spacing, strict=True)) / TILES
    h, v = ((np.arange(n) * s // edge).astype(int) for n, s in zip(both[0].shape, plane.spacing, strict=True))
    return np.where((h[:, None] + v) % 2 == 0, *both)


def grid_lines(plane: Plane) -> list[Array]:
    """Where grid lines of equal distances go, each (n, 2) in voxels of the plane; about `LINES` on the longer side."""
    lengths = [n * s for n, s in zip(plane.points.shape[1:], plane.spacing, strict=True)]
    steps = [max(1, round(max(lengths) / LINES / s)) for s in plane.spacing]
    upwards = np.moveaxis(plane.points[:, steps[0] // 2 :: steps[0]], 0, -1)
    across = np.moveaxis(plane.points[:, :, steps[1] // 2 :: steps[1]], 0, -1).swapaxes(0, 1)
    return [*upwards, *across]


def outlines(plane: Plane, name: str, with_labels: bool | None = None) -> list[Array]:
    """Outlines in one image of a plane, each (n, 2) in voxels: of every label, or of what is bright without labels.

    Args:
        plane: the slice.
        name: fixed, moving or warped.
        with_labels: whether labels are outlined; None: where the image has some.
    """
    labels = plane.labels.get(name)
    if labels is not None and with_labels is not False:
        masks = [(labels == label).astype(np.float32) for label in np.unique(labels) if label > 0]
        return [line for mask in masks for line in contours(mask, 0.5)]
    image = plane.images[name]
    # bright is what the fixed or the moving image calls so: the warped one has the moving one's intensities
    return contours(image, threshold(plane.images["fixed" if name == "fixed" else "moving"]))


def contours(image: Array, level: float) -> list[Array]:
    """Lines (n, 2) in voxels along which an image (h, v) has a value; what reaches the border is closed there."""
    padded = np.pad(np.asarray(image, dtype=np.float32), 1, constant_values=float(np.min(image)))
    return [np.asarray(line)[:, ::-1] - 1 for line in contour_generator(z=padded).lines(level)]


def threshold(image: Array) -> float:
    """The value between dark and bright: halfway between the means of both (Ridler and Calvard 1978)."""
    level = float(image.mean())
    for _ in range(20):
        bright = image > level
        if not bright.any() or bright.all():
            return level
        level, before = (float(image[bright].mean()) + float(image[~bright].mean())) / 2, level
        if abs(level - before) < 1e-4 * (float(np.ptp(image)) or 1.0):
            break
    return level
