"""What every transform can do.

All of them pull back: they take a point of the fixed world, in RAS millimetres, to the point of the moving world whose
value belongs there, as ITK's and ANTs' transforms do in LPS. So a chain lists first what is nearest to the fixed image.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from dio_lightning.fields import identity
from dio_lightning.transforms.world import ImageGrid, as_columns, as_rows, checked_affine, to_voxels


class Inverse(NamedTuple):
    """An inverse, and how far it is from being one.

    The distances are those between a point and where the inverse and then the transform take it, over the voxels of the
    inverse's fields whose points the fields cover; affines are inverted exactly.
    """

    transform: "Transform"
    mean: float
    """Millimetres, on average."""
    largest: float
    """Millimetres, at most."""
    covered: float
    """The share of voxels whose point lies where the fields do; beside them an inverse is a continuation."""


class Transform(ABC):
    """A map from the fixed world to the moving one, in RAS millimetres."""

    @property
    @abstractmethod
    def links(self) -> Sequence["Transform"]:
        """What it consists of, applied first to last; an affine or a field consists of itself."""

    @property
    @abstractmethod
    def planar(self) -> bool:
        """Whether x and y alone say where x and y go, as in the plane of a slice."""

    @abstractmethod
    def map(self, points: Float[Tensor, "3 *t"]) -> Float[Tensor, "3 *t"]:
        """Where points of the fixed world lie in the moving one."""

    @abstractmethod
    def origins(self, points: Float[Tensor, "3 *t"]) -> Float[Tensor, "3 *t"]:
        """The points of the fixed world that lie at these of the moving one, each solved for on its own."""

    @abstractmethod
    def inverse(self, grid: ImageGrid | None = None) -> Inverse:
        """The map from the moving world to the fixed one; a field's lies on `grid`, by default on its own."""

    def points(self, points: ArrayLike) -> NDArray[np.float64]:
        """The same for rows: (n, 3) to (n, 3), or (n, 2) to (n, 2) in the plane x, y of the world.

        Raises:
            ValueError: for another shape, or two coordinates where the transform needs three.
        """
        columns, d = self.columns(points)
        return as_rows(self.map(columns), d)

    def columns(self, points: ArrayLike) -> tuple[Float[Tensor, "3 n"], int]:
        """Rows of 2 or 3 coordinates as columns of 3, those of a plane with z = 0; and how many there were.

        Raises:
            ValueError: as `points`.
        """
        columns, d = as_columns(points)
        if d == 2 and not self.planar:
            raise ValueError("points have 2 coordinates, expected 3 as their transform has")
        return columns, d

    def on_grid(
        self, size: Sequence[int], affine: NDArray[np.float64], moving_affine: NDArray[np.float64] | None = None
    ) -> Float[Tensor, "1 d *s"]:
        """The displacement u for which moving(x + u(x)) lies on the fixed image, float64: composed exactly.

        Args:
            size: of the fixed grid, x its voxels.
            affine: (4, 4), voxels of the fixed grid to RAS millimetres.
            moving_affine: (4, 4) of the moving grid, in whose voxels x + u(x) is; None: voxels of the fixed grid, as in
                Learn2Reg's files.
        """
        fixed = ImageGrid(tuple(size), affine)
        to = fixed.affine if moving_affine is None else checked_affine(moving_affine, "the moving image")
        at = identity(fixed.size, torch.empty(0, dtype=torch.float64))
        return to_voxels(self.at(fixed), to, len(fixed.size))[None] - at

    def at(self, grid: ImageGrid) -> Float[Tensor, "3 *s"]:
        """Where the voxels of a grid in the fixed world lie in the moving one, RAS millimetres."""
        return self.map(grid.points())
