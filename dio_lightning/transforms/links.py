"""The two kinds of transforms that chains are made of."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from dio_lightning.errors import times
from dio_lightning.fields import sample
from dio_lightning.fields.placing import EXACT
from dio_lightning.transforms.base import Inverse, Transform
from dio_lightning.transforms.inversion import inverse_displacement, origins
from dio_lightning.transforms.world import ImageGrid, checked_affine, to_world

LEVEL = 1e-4
"""Millimetres per millimetre by which a plane's affine may mix z with x and y, as headers of float32 do."""


@dataclass(frozen=True, eq=False)
class Affine(Transform):
    """x → M x, M (4, 4) float64: RAS millimetres of the fixed world to those of the moving one.

    Raises:
        ValueError: if it has another shape, or is not finite or not invertible.
    """

    matrix: NDArray

    def __post_init__(self) -> None:
        matrix = checked_affine(self.matrix, "a transform")
        edges = float(np.prod(np.linalg.norm(matrix[:3, :3], axis=0)))
        if not abs(float(np.linalg.det(matrix[:3, :3]))) > 1e-6 * edges:
            raise ValueError("the affine of a transform is not invertible")
        object.__setattr__(self, "matrix", matrix)

    @classmethod
    def of_voxels(cls, matrix: NDArray, affine: NDArray[np.float64], moving_affine: NDArray[np.float64]) -> "Affine":
        """That of a matrix (4, 4) which takes voxels of the fixed grid to voxels of the moving one."""
        return cls(moving_affine @ np.asarray(matrix, dtype=np.float64) @ np.linalg.inv(affine))

    @property
    def links(self) -> Sequence[Transform]:
        """Itself."""
        return (self,)

    @property
    def planar(self) -> bool:
        """Whether planes of one z become such planes."""
        return bool(max(np.abs(self.matrix[2, :2]).max(), np.abs(self.matrix[:2, 2]).max()) <= LEVEL)

    def map(self, points: Float[Tensor, "3 *t"]) -> Float[Tensor, "3 *t"]:
        """M x."""
        return to_world(points, self.matrix)

    def origins(self, points: Float[Tensor, "3 *t"]) -> Float[Tensor, "3 *t"]:
        """M⁻¹ y."""
        return to_world(points, np.linalg.inv(self.matrix))

    def inverse(self, grid: ImageGrid | None = None) -> Inverse:
        """The inverse matrix."""
        return Inverse(Affine(np.linalg.inv(self.matrix)), 0.0, 0.0, 1.0)


@dataclass(frozen=True, eq=False)
class Field(Transform):
    """x → x + v(x), v a displacement in RAS millimetres on a grid in the fixed world.

    Between voxels v is linear; up to half a voxel beyond the last ones it has their values, and further out it is zero,
    as in ITK's DisplacementFieldTransform.

    Attributes:
        displacement: (3, *s), float32 or float64; three components on a plane too. Kept on the CPU.
        affine: (4, 4), voxels of the grid to RAS millimetres.

    Raises:
        ValueError: for another shape, values that are not finite, or an affine that is not invertible.
    """

    displacement: Float[Tensor, "3 *s"]
    affine: NDArray[np.float64]

    def __post_init__(self) -> None:
        v = self.displacement
        if v.ndim not in (3, 4) or len(v) != 3 or v.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"a field has shape {times(v.shape)} ({v.dtype}), expected floats, 3 on each voxel")
        if not bool(v.isfinite().all()):
            raise ValueError("a field has values that are NaN or infinite, expected finite displacements")
        object.__setattr__(self, "displacement", v.detach().cpu())
        object.__setattr__(self, "affine", self.grid.affine)

    @classmethod
    def of_voxels(
        cls,
        u: Float[Tensor, "1 d *s"],
        affine: NDArray[np.float64],
        moving_affine: NDArray[np.float64] | None = None,
    ) -> "Field":
        """That of a displacement u on the fixed grid: x + u(x) in voxels of the moving grid, None: of the fixed one."""
        grid = ImageGrid(tuple(u.shape[2:]), affine)
        to = grid.affine if moving_affine is None else checked_affine(moving_affine, "the moving image")
        at = grid.points(u.device)
        v = to_world(grid.voxels(at) + u[0].double(), to) - at
        return cls(v.to(torch.promote_types(u.dtype, torch.float32)), affine)

    @classmethod
    def of(cls, transform: Transform, grid: ImageGrid) -> "Field":
        """Any transform, sampled at the voxels of a grid in the fixed world; float64."""
        return cls(transform.at(grid) - grid.points(), grid.affine)

    @property
    def grid(self) -> ImageGrid:
        """Where it lies."""
        return ImageGrid(tuple(self.displacement.shape[1:]), self.affine)

    @property
    def links(self) -> Sequence[Transform]:
        """Itself."""
        return (self,)

    @property
    def planar(self) -> bool:
        """Whether its grid has two dimensions."""
        return len(self.grid.size) == 2

    def map(self, points: Float[Tensor, "3 *t"]) -> Float[Tensor, "3 *t"]:
        """The points x + v(x)."""
        v = sample(self.displacement[None], self.grid.voxels(points)[None])[0]
        return points + torch.where(self.grid.contains(points), v, 0.0)

    def at(self, grid: ImageGrid) -> Float[Tensor, "3 *s"]:
        """The same at the voxels of a grid; nothing is interpolated where it is the field's own."""
        return grid.points() + self.displacement if self.grid.like(grid, EXACT) else super().at(grid)

    def origins(self, points: Float[Tensor, "3 *t"]) -> Float[Tensor, "3 *t"]:
        """The points x with x + v(x) = y; where v folds there are several, and one is taken."""
        return points + origins(self.displacement, self.grid, points)

    def inverse(self, grid: ImageGrid | None = None) -> Inverse:
        """The field w with y + w(y) + v(y + w(y)) = y (`inversion.inverse_displacement`)."""
        grid = grid or self.grid
        w, mean, largest, covered = inverse_displacement(self.displacement, self.grid, grid)
        return Inverse(Field(w, grid.affine), mean, largest, covered)
