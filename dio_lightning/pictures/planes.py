"""A registered pair as it stands in the body, and slices of it: the affine says where right, front and top are."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from nibabel.orientations import inv_ornt_aff, io_orientation
from numpy.typing import NDArray
from torch import Tensor

from dio_lightning.fields import identity, jacobian_determinant, on_moving_grid, on_one_grid, warp
from dio_lightning.metrics import dice_per_label, warp_label
from dio_lightning.pair import Pair
from dio_lightning.volume_files import grid_affine

Array = NDArray[Any]
SIDES = (("L", "R"), ("P", "A"), ("I", "S"))
NAMES = ("sagittal", "coronal", "axial")
"""Of a slice across each of the three axes."""


@dataclass(frozen=True)
class Plane:
    """One slice of a pair: arrays (h, v) with h to the right and v upwards, ready to draw.

    Attributes:
        images: fixed, moving and warped, and the determinant of the whole deformation's Jacobian.
        points: (2, h, v) where the deformation takes each point, in voxels of the plane.
        spacing: lengths of a voxel to the right and upwards, in mm where the pair says so, else 1.
        sides: letters at the left, right, lower and upper edge; empty without anatomy.
        labels: maps of the fixed, moving and warped labels, as far as there are any.
        name: sagittal, coronal or axial; empty for an image that is a slice itself.
    """

    images: dict[str, Array]
    points: Array
    spacing: tuple[float, float]
    sides: tuple[str, str, str, str]
    labels: dict[str, Array] = field(default_factory=dict)
    name: str = ""

    @property
    def aspect(self) -> float:
        """Height of a voxel by its width."""
        return self.spacing[1] / self.spacing[0]

    @property
    def lengths(self) -> Array:
        """How far each point goes within the plane, (h, v), in the unit of `spacing`."""
        grid = np.stack(np.meshgrid(*map(np.arange, self.points.shape[1:]), indexing="ij"))
        return np.linalg.norm((self.points - grid) * np.array(self.spacing)[:, None, None], axis=0)


@dataclass(frozen=True)
class Upright:
    """A pair with its axes to the right, to the front and to the top, on the fixed grid.

    Attributes:
        images: fixed, moving, warped and determinant, each (*s).
        labels: fixed, moving and warped, as far as the pair has them.
        deformation: (d, *s) where each voxel is taken, in voxels.
        inside: (*s) bool, where the object is: by labels, mask or intensity.
        affine: (4, 4), these voxels to RAS millimetres.
        spacing: (d,) lengths of a voxel's edges.
        anatomical: whether the pair said where it lies.
        dice: mean over labels before and after; None unless both images have labels.
    """

    images: dict[str, Array]
    labels: dict[str, Array]
    deformation: Array
    inside: Array
    affine: NDArray[np.float64]
    spacing: Array
    anatomical: bool
    dice: tuple[float, float] | None

    @classmethod
    def of(cls, batch: Pair, displacement: Tensor, sample: int = 0) -> "Upright":
        """One pair of a batch; the displacement is (b, d, *s), in voxels of the fixed grid."""
        u = displacement[sample : sample + 1].detach().float().cpu()
        one = Pair(**{key: value[sample : sample + 1] for key, value in batch.items()})  # pyright: ignore
        one = Pair(**{k: v.detach().cpu() if isinstance(v, Tensor) else v for k, v in one.items()})  # pyright: ignore
        labels, dice = _labels(one, u)
        common, affine, d = on_one_grid(one), grid_affine(one, 0), u.shape[1]
        fixed, moving = common["fixed"].float(), common["moving"].float()
        images = {"fixed": fixed, "moving": moving, "warped": warp(moving, u), "determinant": jacobian_determinant(u)}
        turn = standing(affine, d)
        deformation = turned(identity(u.shape[2:], u)[0] + u[0], turn)
        for old, (new, flip) in enumerate(turn):
            if flip < 0:
                deformation[old] = u.shape[2 + old] - 1 - deformation[old]
        whole = np.vstack([turn, [[2, 1]]]) if d == 2 else turn
        inside = common.get("fixed_label", common.get("fixed_mask", common["fixed"])) > 0
        return cls(
            {name: turned(image.flatten(0, -d - 1)[:1], turn)[0] for name, image in images.items()},
            {name: turned(label[0], turn)[0] for name, label in labels.items()},
            deformation[np.argsort(turn[:, 0])],
            turned(inside[0], turn)[0],
            affine @ inv_ornt_aff(whole, (*u.shape[2:], *[1] * (3 - d))),
            np.linalg.norm(affine[:, np.argsort(turn[:, 0])], axis=0),
            "affine" in batch and d > 2,
            dice,
        )

    def plane(self, axis: int, index: int | None = None) -> Plane:
        """The slice across an axis, by default through the middle of the object; a 2-D image is its own slice."""
        d = len(self.deformation)
        if d == 2:
            return Plane(self.images, self.deformation, self._edges(0, 1), ("", "", "", ""), self.labels)
        index = middle(self.inside, axis) if index is None else index
        h, v = (a for a in range(d) if a != axis)
        letters = (*SIDES[h], *SIDES[v]) if self.anatomical else ("", "", "", "")
        return Plane(
            {name: image.take(index, axis) for name, image in self.images.items()},
            self.deformation.take(index, axis + 1)[[h, v]],
            self._edges(h, v),
            letters,
            {name: label.take(index, axis) for name, label in self.labels.items()},
            NAMES[axis],
        )

    def _edges(self, h: int, v: int) -> tuple[float, float]:
        return float(self.spacing[h]), float(self.spacing[v])


def standing(affine: NDArray[np.float64], d: int) -> NDArray[np.int_]:
    """Which axis of the body each of d axes is, and its direction, as nibabel has orientations (d, 2).

    A slice keeps two of the body's three axes, in their order.
    """
    turn = io_orientation(affine)[:d].astype(int)
    turn[:, 0] = turn[:, 0].argsort().argsort()
    return turn


def cut(batch: Pair, displacement: Tensor, sample: int, axis: int) -> Plane:
    """The slice of one pair of a batch to draw; displacement is (b, d, *s)."""
    return Upright.of(batch, displacement, sample).plane(axis)


def middle(inside: Array, axis: int) -> int:
    """Centre of the object along an axis; that of the grid if there is none."""
    area = inside.sum(axis=tuple(a for a in range(inside.ndim) if a != axis))
    return int(np.average(np.arange(len(area)), weights=area)) if area.any() else len(area) // 2


def _labels(pair: Pair, u: Tensor) -> tuple[dict[str, Tensor], tuple[float, float] | None]:
    """Label maps on the fixed grid, each interpolated once, as for scores; mean Dice before and after."""
    labels = {"fixed": pair["fixed_label"]} if "fixed_label" in pair else {}
    if "moving_label" not in pair:
        return labels, None
    own = pair["moving_label"]
    labels |= {
        name: warp_label(own, on_moving_grid(field, pair))
        for name, field in (("moving", torch.zeros_like(u)), ("warped", u))
    }
    if "fixed_label" not in pair:
        return labels, None
    before, after = (
        float(dice_per_label(labels["fixed"], labels[name], own).nanmean()) for name in ("moving", "warped")
    )
    return labels, (before, after)


def turned(channels: Tensor, turn: Array) -> Array:
    """Channels (c, *s) with axes to the right, front and top."""
    order = np.argsort(turn[:, 0])
    array = np.transpose(channels.numpy(), (0, *(order + 1)))
    return np.flip(array, tuple(1 + new for new, old in enumerate(order) if turn[old, 1] < 0))
