"""The rigid transformation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dio_lightning.transformations.affine import Affine


@dataclass(frozen=True)
class Rigid(Affine):
    """ϕ(x) = R (x - c) + c + t about the centre c of the grid, R = exp(A), on voxels that are equal along all axes.

    Parameters (b, d, d + 1) are those of `Affine`, of whose linear part the antisymmetric half is A: a unit moves the
    borders of the grid by about a voxel. Steps are added. From level to level it is exact between grids of one centre,
    as those of a pyramid are to within half a voxel of the finer one.
    """

    def displacement(self, z: Tensor, size: Sequence[int]) -> Tensor:
        """The rigid displacement with parameters z (b, d, d + 1)."""
        half = z.new_tensor([max(extent - 1, 1) / 2 for extent in size])
        turned = torch.linalg.matrix_exp(_antisymmetric(z, half).double()).to(z) - torch.eye(len(size)).to(z)
        return super().displacement(torch.cat([turned * half, z[:, :, len(size) :]], 2), size)

    def gradient(self, z: Tensor, size: Sequence[int], slope: Callable[[Tensor], Tensor]) -> Tensor:
        """∂E/∂z, a mean over the voxels."""
        with torch.enable_grad():
            z = z if z.requires_grad else z.detach().requires_grad_()
            u = self.displacement(z, size)
        graph = torch.is_grad_enabled()
        (pulled,) = torch.autograd.grad(u, z, slope(u if graph else u.detach()), create_graph=graph)
        return pulled / u[0, 0].numel()

    def linear(self, z: Float[Tensor, "b d k"], size: Sequence[int]) -> Float[Tensor, "b d d"]:
        """R, in float64."""
        half = z.new_tensor([max(extent - 1, 1) / 2 for extent in size]).double()
        return torch.linalg.matrix_exp(_antisymmetric(z.double(), half))


def _antisymmetric(z: Tensor, half: Tensor) -> Tensor:
    """(L - Lᵀ) / 2 of the linear part L of the parameters."""
    linear = z[:, :, : len(half)] / half
    return (linear - linear.transpose(1, 2)) / 2
