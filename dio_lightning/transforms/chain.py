"""Transforms as values: where the moving image has what lies at a point of the fixed world.

All of them pull back: they take a point of the fixed world, in RAS millimetres, to the point of the moving world whose
value belongs there, as ITK's and ANTs' transforms do in LPS. So a chain lists first what is nearest to the fixed image.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from dio_lightning.errors import times
from dio_lightning.fields import sample
from dio_lightning.transforms.inversion import inverse_displacement, origins
from dio_lightning.transforms.world import ImageGrid, as_columns, as_rows, checked_affine, to_voxels, to_world


class Inverse(NamedTuple):
    """An inverse, and how far it is from being one.

    The distances are those between a point and where the inverse and then the transform take it, over the voxels of the
    inverse's fields whose points the fields cover; affines are inverted exactly.
    """

    transform: "Chain"
    mean: float
    """Millimetres, on average."""
    largest: float
    """Millimetres, at most."""
    covered: float
    """The share of voxels whose point lies where the fields do; beside them an inverse is a continuation."""


class Transform(ABC):
    """A map from the fixed world to the moving one, in RAS millimetres."""

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
            ValueError: for another shape.
        """
        columns, d = as_columns(points)
        return as_rows(self.map(columns), d)

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
        there = self.map(fixed.points())
        return (to_voxels(there, to, len(fixed.size)) - fixed.voxels(fixed.points()))[None]

    def field(self, grid: ImageGrid) -> "Field":
        """The whole transform as one displacement on a grid."""
        at = grid.points()
        return Field(self.map(at) - at, grid.affine)

    def __add__(self, after: "Transform") -> "Chain":
        """First this one, then `after`."""
        return Chain([*_links(self), *_links(after)])


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

    def map(self, points: Float[Tensor, "3 *t"]) -> Float[Tensor, "3 *t"]:
        """M x."""
        return to_world(points, self.matrix)

    def origins(self, points: Float[Tensor, "3 *t"]) -> Float[Tensor, "3 *t"]:
        """M⁻¹ y."""
        return to_world(points, np.linalg.inv(self.matrix))

    def inverse(self, grid: ImageGrid | None = None) -> Inverse:
        """The inverse matrix."""
        return Inverse(Chain([Affine(np.linalg.inv(self.matrix))]), 0.0, 0.0, 1.0)


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

    @property
    def grid(self) -> ImageGrid:
        """Where it lies."""
        return ImageGrid(tuple(self.displacement.shape[1:]), self.affine)

    def map(self, points: Float[Tensor, "3 *t"]) -> Float[Tensor, "3 *t"]:
        """The points x + v(x)."""
        v = sample(self.displacement[None], self.grid.voxels(points)[None])[0]
        return points + torch.where(self.grid.contains(points), v, 0.0)

    def origins(self, points: Float[Tensor, "3 *t"]) -> Float[Tensor, "3 *t"]:
        """The points x with x + v(x) = y; where v folds there are several, and one is taken."""
        flat = points.double().reshape(3, -1).T[:, :, None]
        return points + origins(self.displacement, self.grid, flat)[:, :, 0].T.reshape(points.shape)

    def inverse(self, grid: ImageGrid | None = None) -> Inverse:
        """The field w with y + w(y) + v(y + w(y)) = y (`inversion.inverse_displacement`)."""
        grid = grid or self.grid
        w, mean, largest, covered = inverse_displacement(self.displacement, self.grid, grid)
        return Inverse(Chain([Field(w, grid.affine)]), mean, largest, covered)


@dataclass(frozen=True, eq=False)
class Chain(Transform):
    """Transforms applied first to last to points of the fixed world; none is the identity."""

    links: Sequence[Affine | Field] = ()

    def __init__(self, links: Iterable[Transform] = ()) -> None:
        """Chains among the links are opened."""
        object.__setattr__(self, "links", tuple(one for link in links for one in _links(link)))

    def map(self, points: Float[Tensor, "3 *t"]) -> Float[Tensor, "3 *t"]:
        """Where points of the fixed world lie in the moving one."""
        for link in self.links:
            points = link.map(points)
        return points

    def origins(self, points: Float[Tensor, "3 *t"]) -> Float[Tensor, "3 *t"]:
        """The points of the fixed world that lie at these of the moving one."""
        for link in reversed(self.links):
            points = link.origins(points)
        return points

    def inverse(self, grid: ImageGrid | None = None) -> Inverse:
        """The inverses of all links, last to first; distances of several fields are added, as their errors may be.

        A grid, in the moving world, is carried to each field through the affines behind it.
        """
        links: list[Transform] = []
        mean = largest = 0.0
        covered = 1.0
        for link in reversed(self.links):
            back = link.inverse(grid)
            links += back.transform.links
            mean, largest, covered = mean + back.mean, largest + back.largest, min(covered, back.covered)
            if grid is not None and isinstance(link, Affine):
                grid = ImageGrid(grid.size, np.linalg.inv(link.matrix) @ grid.affine)
        return Inverse(Chain(links), mean, largest, covered)

    def merged(self) -> "Chain":
        """The same map with neighbouring affines multiplied."""
        links: list[Affine | Field] = []
        for link in self.links:
            if links and isinstance(link, Affine) and isinstance(last := links[-1], Affine):
                links[-1] = Affine(link.matrix @ last.matrix)
            else:
                links.append(link)
        return Chain(links)


def _links(transform: Transform) -> Sequence[Affine | Field]:
    if isinstance(transform, Chain):
        return transform.links
    if isinstance(transform, Affine | Field):
        return (transform,)
    raise TypeError(f"{type(transform).__name__} is no Affine, Field or Chain")
