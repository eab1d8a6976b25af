"""The batch contract: what a module, a callback and a data module know of each other."""

from typing import Any, NotRequired, Required, TypedDict, cast

import torch
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
    In a batch some of whose pairs lie on two grids, it is the `affine` again for those that lie on one.
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


def expect_batch(x: object, name: str, shape: str = "(b, c, *s)") -> Tensor:
    """The tensor x, if it has a batch axis, a channel axis and two or three spatial ones.

    Raises:
        ValueError: with the shape that was expected, for anything else.
    """
    if not isinstance(x, Tensor):
        raise ValueError(f"{name} is of type {type(x).__name__}, expected a tensor {shape} in 2-D or 3-D")
    if x.ndim not in (4, 5):
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}, expected {shape}: a batch and a channel axis before two or three "
            "spatial ones"
        )
    return x


def both_ways(pair: Pair) -> Pair:
    """The batch as it is, and after it with fixed and moving exchanged: 2 b pairs; a true displacement is left out.

    Raises:
        ValueError: if the moving image has a grid of its own.
    """
    if "moving_affine" in pair:
        raise ValueError("the pair has a moving_affine, expected both images on one grid to exchange them")
    whole, doubled = cast(dict[str, Any], pair), dict[str, Any]()
    for key, value in whole.items():
        side, _, rest = key.partition("_")
        other = f"{'moving' if side == 'fixed' else 'fixed'}{'_' if rest else ''}{rest}"
        if key == "displacement" or (side in ("fixed", "moving") and other not in whole):
            continue
        exchanged = whole[other] if side in ("fixed", "moving") else value
        doubled[key] = torch.cat([value, exchanged]) if isinstance(value, Tensor) else [*value, *exchanged]
    return cast(Pair, doubled)


def in_mm(pair: Pair, like: Tensor) -> Tensor:
    """What turns voxels of the fixed grid into millimetres: its affine (b, 4, 4), else its spacing (b, d), else ones.

    An affine may be oblique or sheared, which a spacing, the lengths of its columns, does not say.
    """
    scale = pair.get("affine", pair.get("spacing"))
    return like.new_ones(len(like), like.ndim - 2) if scale is None else scale


def to_mm(offsets: Tensor, voxels: Tensor) -> Tensor:
    """Offsets (b, d, n) in voxels as vectors in mm, (b, d, n) by a spacing (b, d), (b, 3, n) by an affine (b, 4, 4)."""
    voxels, d = voxels.to(offsets), offsets.shape[1]
    if voxels.ndim == 2:
        return voxels[:, :, None] * offsets
    # no matrix product: autocast would round it to three digits
    return (voxels[:, :3, :d, None] * offsets[:, None]).sum(2)


def full_precision(x: Tensor) -> Tensor:
    """At least float32: float64 stays, integers and half precision become float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
