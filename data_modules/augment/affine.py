"""Random affine motion of the anatomy; the grids, and where they lie in the world, stay."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import radians
from typing import cast

import torch
from monai.transforms.spatial.array import RandAffineGrid
from torch import Tensor

from data_modules.augment.base import Augmentation, check_probability, draw_seed, fixed_to_moving, happens
from data_modules.base import Sample
from dio_lightning.fields import identity
from dio_lightning.fields import sample as sample_at


@dataclass(frozen=True)
class RandomAffine(Augmentation):
    """Moves both images, in millimetres about the centre of the fixed grid; every number is drawn uniformly.

    Images are interpolated linearly and labels and masks by nearest voxel; what enters from outside is the image's
    least value and label 0. Landmarks are mapped exactly, and may leave the grid. A true displacement follows.

    Args:
        degrees: Largest rotation about each axis.
        scale: Least and largest magnification along each axis.
        translate: Largest shift along each axis, as a share of the grid's extent.
        shear: Largest shear between two axes, as a share of the distance.
        probability: Of moving a pair at all.
        separate: Fixed and moving image move independently of one another.
    """

    degrees: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    translate: float = 0.0
    shear: float = 0.0
    probability: float = 1.0
    separate: bool = False

    def __post_init__(self) -> None:
        check_probability(self.probability)
        if min(self.degrees, self.translate, self.shear) < 0 or not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(
                f"degrees is {self.degrees}, translate {self.translate}, shear {self.shear} and scale "
                f"{list(self.scale)}, expected numbers of at least 0 and a least scale above 0 before the largest"
            )

    def __call__(self, sample: Sample) -> Sample:
        """The pair after the motion."""
        if not happens(self.probability):
            return sample
        fixed = self._drawn(sample)
        return moved(sample, fixed, self._drawn(sample) if self.separate else fixed)

    def _drawn(self, sample: Sample) -> Tensor:
        """A random motion: where each point of the anatomy goes, (4, 4) in voxels of the fixed grid."""
        size = sample["fixed"].shape[1:]
        d = len(size)
        spacing = sample["spacing"].double() if "spacing" in sample else torch.ones(d, dtype=torch.float64)
        extent = torch.tensor(size) * spacing
        motion = RandAffineGrid(
            rotate_range=[radians(self.degrees)] * (1 if d == 2 else 3),
            shear_range=[self.shear] * (d * (d - 1)),
            translate_range=(self.translate * extent).tolist(),
            scale_range=[(self.scale[0] - 1, self.scale[1] - 1)] * d,
            lazy=True,
        )
        motion.set_random_state(seed=draw_seed())
        motion(size)
        return _in_voxels(cast(Tensor, motion.get_transformation_matrix()).double(), size, _directions(sample, spacing))


def moved(sample: Sample, fixed: Tensor, moving: Tensor) -> Sample:
    """The pair with its anatomy moved: a point x of an image goes to M x, M (4, 4) in voxels of the fixed grid."""
    matrix = fixed_to_moving(sample)
    own = moving if matrix is None else matrix @ moving @ matrix.inverse()
    changed: Sample = {}
    for side, motion in (("fixed", fixed), ("moving", own)):
        images = {key: sample[key] for key in (side, f"{side}_label", f"{side}_mask") if key in sample}
        changed |= _sampled(images, motion)
        if (points := sample.get(f"{side}_points")) is not None:
            changed[f"{side}_points"] = _mapped(motion, points.double()).to(points.dtype)
    if (u := sample.get("displacement")) is not None:
        # ϕ' = M_moving ∘ ϕ ∘ M_fixed⁻¹
        x = identity(u.shape[1:], u)
        before = _mapped(fixed.inverse(), x[0])
        changed["displacement"] = _mapped(moving, before + sample_at(u[None], before[None])[0]) - x[0]
    return sample | changed


def _sampled(images: dict[str, Tensor], motion: Tensor) -> dict[str, Tensor]:
    """Images (1, *s) of one grid after their content has moved."""
    first = next(iter(images.values()))
    if torch.equal(motion, torch.eye(4, dtype=motion.dtype)):
        return images
    points = _mapped(motion.inverse(), identity(first.shape[1:], first.new_empty(0, dtype=torch.float32))[0])[None]
    sampled = {}
    for key, image in images.items():
        least = image.min() if image.is_floating_point() else 0
        mode = "linear" if image.is_floating_point() else "nearest"
        sampled[key] = sample_at((image - least)[None], points, mode, padding="zeros")[0] + least
    return sampled


def _mapped(matrix: Tensor, points: Tensor) -> Tensor:
    """Points (d, …) as M x."""
    d = len(points)
    matrix = matrix.to(points.dtype)
    turned = torch.einsum("ij,j...->i...", matrix[:d, :d], points)
    return turned + matrix[:d, 3].view(d, *[1] * (points.ndim - 1))


def _directions(sample: Sample, spacing: Tensor) -> Tensor:
    """The (d, d) matrix from voxels of the fixed grid to millimetres, up to a turn of the world: a shear is in it."""
    d, plain = len(spacing), torch.diag(spacing)
    if "affine" not in sample:
        return plain
    shape = torch.linalg.qr(sample["affine"][:3, :d].double(), mode="r").R
    shape = shape * shape.diagonal().sign()[:, None]
    return plain if (shape - torch.diag(shape.diagonal())).abs().max() < 1e-6 * spacing.max() else shape


def _in_voxels(motion: Tensor, size: Sequence[int], directions: Tensor) -> Tensor:
    """A (d + 1, d + 1) matrix in millimetres about the centre of a grid, as (4, 4) in its voxels."""
    d, matrix = len(size), torch.eye(4, dtype=torch.float64)
    centre = (torch.tensor(size, dtype=torch.float64) - 1) / 2
    matrix[:d, :d] = torch.linalg.solve(directions, motion[:d, :d] @ directions)
    matrix[:d, 3] = centre - matrix[:d, :d] @ centre + torch.linalg.solve(directions, motion[:d, d])
    return matrix
