"""Where grids lie in the world: RAS millimetres, three coordinates for images of two dimensions too."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from dio_lightning.errors import times
from dio_lightning.fields import identity
from dio_lightning.fields.placing import SAME_GRID, same_grid
from dio_lightning.headers import Header


@dataclass(frozen=True, eq=False)
class ImageGrid:
    """The voxels of an image and where they lie.

    Attributes:
        size: extents of its 2 or 3 axes.
        affine: (4, 4) float64, voxels to RAS millimetres; of a plane, its first two columns and its last one count.
        pixdim: edges of a voxel as the header lists them (`Header.pixdim`), for FSL, which asks no affine and no unit
            for lengths; None: `spacing`.

    Raises:
        ValueError: for another dimension, or an affine that is not finite or maps two voxels to one place.
    """

    size: tuple[int, ...]
    affine: NDArray[np.float64]
    pixdim: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        affine = checked_affine(self.affine, f"a grid of {times(self.size)} voxels")
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "size", tuple(int(extent) for extent in self.size))
        if len(self.size) not in (2, 3) or min(self.size) < 1:
            raise ValueError(f"a grid has {times(self.size)} voxels, expected 2 or 3 axes of one voxel or more")
        edges = affine[:3, : len(self.size)]
        if np.linalg.matrix_rank(edges, tol=1e-6 * np.linalg.norm(edges, axis=0).min()) < len(self.size):
            raise ValueError(f"the affine of a grid of {times(self.size)} voxels is not invertible")

    @classmethod
    def of(cls, header: Header) -> "ImageGrid":
        """The grid of an image file."""
        return cls(header.shape, header.affine, header.pixdim)

    @property
    def spacing(self) -> NDArray[np.float64]:
        """Edges of a voxel in millimetres, (d,)."""
        return np.linalg.norm(self.affine[:3, : len(self.size)], axis=0)

    @property
    def centre(self) -> NDArray[np.float64]:
        """The middle of the image, (3,), RAS millimetres."""
        d = len(self.size)
        return self.affine[:3, :d] @ ((np.array(self.size) - 1) / 2) + self.affine[:3, 3]

    @property
    def corners(self) -> Float[Tensor, "3 n"]:
        """The centres of the outermost voxels, n = 2^d, RAS millimetres."""
        ends = torch.tensor([[0.0, extent - 1.0] for extent in self.size], dtype=torch.float64)
        return to_world(torch.stack(torch.meshgrid(*ends, indexing="ij")).flatten(1), self.affine)

    def points(self, device: torch.device | str = "cpu") -> Float[Tensor, "3 *s"]:
        """Where the voxels lie, RAS millimetres in float64."""
        like = torch.empty(0, dtype=torch.float64, device=device)
        return to_world(identity(self.size, like)[0], self.affine)

    def slab(self, first: int, last: int) -> "ImageGrid":
        """The planes of this grid from `first` up to before `last`, along the first axis."""
        affine = self.affine.copy()
        affine[:3, 3] += first * affine[:3, 0]
        return ImageGrid((last - first, *self.size[1:]), affine)

    def voxels(self, points: Float[Tensor, "3 *t"]) -> Float[Tensor, "d *t"]:
        """Points of the world in voxels of the grid; those beside a plane fall onto it at a right angle."""
        return to_voxels(points, self.affine, len(self.size))

    def contains(self, points: Float[Tensor, "3 *t"]) -> Bool[Tensor, "*t"]:
        """Whether points lie in its voxels, half a voxel beyond the centres of the last ones included."""
        at = self.voxels(points)
        # rounding must not put the edge of the last voxels outside
        return ((at >= -0.5 - 1e-9) & (at <= column(np.array(self.size) - 0.5 + 1e-9, at))).all(0)

    def like(self, other: "ImageGrid", tolerance: float = SAME_GRID) -> bool:
        """Whether both have the same voxels at the same places, to this many voxels (`placing.same_grid`)."""
        return same_grid(self.size, self.affine, other.size, other.affine, tolerance)


def to_world(voxels: Float[Tensor, "d *t"], affine: NDArray) -> Float[Tensor, "3 *t"]:
    """Voxels of a grid in RAS millimetres."""
    d = len(voxels)
    return linear(affine[:3, :d], voxels) + column(affine[:3, 3], voxels)


def to_voxels(points: Float[Tensor, "3 *t"], affine: NDArray[np.float64], d: int) -> Float[Tensor, "d *t"]:
    """Points in RAS millimetres as voxels of a grid of d dimensions."""
    return linear(np.linalg.pinv(affine[:3, :d]), points - column(affine[:3, 3], points))


def linear(matrix: NDArray, points: Float[Tensor, "n *t"]) -> Float[Tensor, "m *t"]:
    """A matrix (m, n) times vectors along the first axis."""
    return torch.einsum("ij,j...->i...", torch.from_numpy(np.ascontiguousarray(matrix)).to(points), points)


def column(vector: NDArray, like: Tensor) -> Tensor:
    """A vector, shaped to be added to vectors along the first axis."""
    return torch.from_numpy(np.ascontiguousarray(vector)).to(like).view(-1, *[1] * (like.ndim - 1))


def as_columns(points: ArrayLike) -> tuple[Float[Tensor, "3 n"], int]:
    """Rows of 2 or 3 coordinates as columns of 3, those of a plane with z = 0; and how many there were.

    Raises:
        ValueError: for another shape, or values that are not finite.
    """
    rows = np.array(points, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] not in (2, 3):
        raise ValueError(f"points have shape {times(rows.shape)}, expected one row of 2 or 3 coordinates a point")
    if not np.isfinite(rows).all():
        raise ValueError("points have values that are NaN or infinite, expected finite coordinates")
    columns = np.zeros((3, len(rows)))
    columns[: rows.shape[1]] = rows.T
    return torch.from_numpy(columns), rows.shape[1]


def as_rows(points: Float[Tensor, "3 n"], d: int) -> NDArray[np.float64]:
    """The first d coordinates of columns as rows (n, d)."""
    return points[:d].T.numpy().copy()


def checked_affine(matrix: NDArray, what: str) -> NDArray[np.float64]:
    """The matrix (4, 4) in float64.

    Raises:
        ValueError: for another shape, values that are not finite, or another last row than 0 0 0 1.
    """
    affine = np.array(matrix, dtype=np.float64)
    if affine.shape != (4, 4):
        raise ValueError(f"the affine of {what} has shape {times(affine.shape)}, expected 4x4")
    if not np.isfinite(affine).all():
        raise ValueError(f"the affine of {what} has values that are NaN or infinite, expected finite ones")
    if np.abs(affine[3] - (0, 0, 0, 1)).max() > 1e-6:
        raise ValueError(f"the affine of {what} has the last row {affine[3].tolist()}, expected 0 0 0 1")
    return affine
