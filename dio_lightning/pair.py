"""The batch contract: what a module, a callback and a data module know of each other."""

from typing import NotRequired, Required, TypedDict

from torch import Tensor


class Pair(TypedDict, total=False):
    """One batch of image pairs; b pairs, d spatial dimensions, grid *s, n landmarks.

    Images are (b, 1, *s) float32, labels (b, 1, *s) int16 with 0 as background, masks (b, 1, *s) uint8, landmarks
    (b, d, n) in voxels; row n of the fixed landmarks corresponds to row n of the moving ones.
    """

    fixed: Required[Tensor]
    moving: Required[Tensor]
    fixed_label: NotRequired[Tensor]
    moving_label: NotRequired[Tensor]
    fixed_mask: NotRequired[Tensor]
    moving_mask: NotRequired[Tensor]
    fixed_points: NotRequired[Tensor]
    moving_points: NotRequired[Tensor]
    spacing: NotRequired[Tensor]
    """(b, d) millimetres per voxel of the fixed grid."""
    affine: NotRequired[Tensor]
    """(b, 4, 4) float64, voxel to world (RAS millimetres) of the fixed grid."""
    moving_affine: NotRequired[Tensor]
    """(b, 4, 4) float64, the same of the moving grid; only where that is another one than the fixed grid.

    The moving image, label and mask then have a shape of their own, and moving landmarks are voxels of that grid. A
    displacement stays one of the fixed grid: moving(A (x + u(x))), A from fixed to moving voxels (`fields.worlds`).
    """
    displacement: NotRequired[Tensor]
    """(b, d, *s) the true displacement in voxels, where it is known (synthetic pairs)."""
    fixed_id: NotRequired[list[str]]
    moving_id: NotRequired[list[str]]
    fixed_file: NotRequired[list[str]]
    moving_file: NotRequired[list[str]]
    """Paths of the image files that the images are whole volumes of, intensities apart; only where they are.

    Their headers place them in the world of `affine` (`headers.read_header`), so that a displacement can be carried to
    the moving file as it is stored.
    """
