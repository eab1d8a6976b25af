"""The affine transformation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dio_lightning.fields import Grid
from dio_lightning.transformations.base import Transformation


@dataclass(frozen=True)
class Affine(Transformation):
    """u_i(x) = z_id + Σ_j z_ij n_j(x), n_j = 2 x_j / (S_j - 1) - 1 the coordinates of the grid, from -1 to 1.

    Parameters (b, d, d + 1): a unit of any of them moves the borders of the grid by one voxel, so that a solver's rate
    means what it means for a field. Steps are added. There is no field to smooth.
    """

    dense = False

    def initial(self, features: Tensor) -> Tensor:
        """Zeros (b, d, d + 1)."""
        d = features.ndim - 2
        return features.new_zeros(len(features), d, d + 1)

    def displacement(self, z: Tensor, size: Sequence[int]) -> Tensor:
        """The affine displacement with parameters z (b, d, d + 1)."""
        *columns, offset = (column.view(*column.shape, *[1] * len(size)) for column in z.unbind(2))
        u = offset
        for column, coordinates in zip(columns, _coordinates(size, z), strict=True):
            u = u + column * coordinates  # only the last sum is as large as the grid
        return u

    def gradient(self, z: Tensor, size: Sequence[int], slope: Callable[[Tensor], Tensor]) -> Tensor:
        """Parameters (b, d, d + 1) of the affine field closest to slope(u), in the sense of least squares.

        That is ∂E/∂z, a sum over N voxels, times 1 / N for z_id and 3 (S_j - 1) / ((S_j + 1) N) for z_ij: the gradient
        in the metric of displacements, so that steps are as long as those of a field.
        """
        rest, columns = slope(self.displacement(z, size)), []
        for axis, coordinates in reversed(list(enumerate(_coordinates(size, z)))):
            weights = coordinates.flatten() / coordinates.square().mean().clamp(min=1 / 3) / size[axis]
            columns.append((rest * weights).sum(-1).reshape(*z.shape[:2], -1).mean(2))
            rest = rest.mean(-1)  # the other coordinates do not vary along this axis
        return torch.stack([*reversed(columns), rest], 2)

    def retract(self, z: Tensor, step: Tensor) -> Tensor:
        """The parameters z + δ."""
        return z + step

    def smooth(self, x: Tensor, sigma: float) -> Tensor:
        """What is given: there is no field to smooth."""
        return x

    def regrid(self, z: Tensor, old: Grid, new: Grid) -> Tensor:
        """Voxels of the old grid to voxels of the new one: n_j of the one grid is α_j n_j + β_j of the other."""
        *columns, offset = z.unbind(2)
        for j, (n, m) in enumerate(zip(old.size, new.size, strict=True)):
            if n > 1 and m > 1:
                reach = old.step[j] * (n - 1)
                alpha = new.step[j] * (m - 1) / reach
                offset = offset + (2 * (new.start[j] - old.start[j]) / reach + alpha - 1) * columns[j]
                columns[j] = alpha * columns[j]
        ratio = z.new_tensor([a / b for a, b in zip(old.step, new.step, strict=True)])
        return torch.stack([*columns, offset], 2) * ratio[:, None]


def _coordinates(size: Sequence[int], like: Tensor) -> list[Tensor]:
    """Coordinates from -1 to 1 along each axis, shaped to broadcast over the grid; 0 where an axis has one voxel."""
    axes = []
    for axis, extent in enumerate(size):
        line = torch.linspace(-1, 1, extent, dtype=like.dtype, device=like.device) if extent > 1 else like.new_zeros(1)
        axes.append(line.view(-1, *[1] * (len(size) - 1 - axis)))
    return axes
