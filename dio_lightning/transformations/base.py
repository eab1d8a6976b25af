"""Transformation models: how parameters become a displacement, how a solver's step is applied, how the grid changes.

Nothing else distinguishes them. Parameters z are (b, d, ...) in voxels of their grid and zero is the identity: fields
(b, d, *s), the control points of a `BSpline`, or the few numbers per axis of an `Affine`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from dio_lightning.fields import Grid, gaussian_smooth, regrid, spanning


class Transformation(ABC):
    """Parameters z → displacement u, and the retraction by which a step δ moves z."""

    dense: ClassVar[bool] = True
    """Whether the parameters are a field on the grid of the features."""
    repeats: ClassVar[bool] = False
    """Whether its functions do the same operations at every call, so that a GPU may record them (`implicit.graphs`)."""

    @property
    def direct(self) -> bool:
        """Whether the parameters are the displacement itself."""
        return type(self).displacement is Transformation.displacement

    def initial(self, features: Float[Tensor, "b c *s"]) -> Float[Tensor, "b d ..."]:
        """Parameters of the identity on the grid of these features."""
        return features.new_zeros(len(features), features.ndim - 2, *features.shape[2:])

    def displacement(self, z: Float[Tensor, "b d ..."], size: Sequence[int]) -> Float[Tensor, "b d *s"]:
        """The displacement u of ϕ = id + u on a grid of this size; z itself unless the model says otherwise."""
        return z

    def parameters(self, u: Float[Tensor, "b d *s"]) -> Float[Tensor, "b d ..."]:
        """Parameters of a displacement, or of the closest one: u itself where they are the displacement.

        Raises:
            ValueError: if the model has no parameters for every displacement.
        """
        if not self.direct:
            raise ValueError(
                f"{type(self).__name__} cannot start from a displacement, FreeForm, Diffeomorphism and BSpline can"
            )
        return u

    def gradient(
        self, z: Float[Tensor, "b d ..."], size: Sequence[int], slope: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, "b d ..."]:
        """Gradient of an energy with respect to z, given its gradient `slope(u)` with respect to the displacement.

        A model may measure it in its own metric, so long as it is zero where the plain gradient is.
        """
        if self.direct:
            return slope(z)
        graph = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            z = z if z.requires_grad else (z.clone() if z.is_inference() else z.detach()).requires_grad_()
            u = self.displacement(z, size)
        pull = slope(u if graph else u.detach())
        with torch.inference_mode(False):
            pull = pull.clone() if pull.is_inference() else pull
            (pulled,) = torch.autograd.grad(u, z, pull, create_graph=graph)
        return pulled

    @abstractmethod
    def retract(self, z: Float[Tensor, "b d ..."], step: Float[Tensor, "b d ..."]) -> Float[Tensor, "b d ..."]:
        """The parameters after a step δ in voxels."""

    def smooth(self, x: Float[Tensor, "b d ..."], sigma: float) -> Float[Tensor, "b d ..."]:
        """Parameters or a step, smoothed by a Gaussian of sigma voxels."""
        return gaussian_smooth(x, sigma)

    def resize(self, z: Float[Tensor, "b d ..."], old: Sequence[int], size: Sequence[int]) -> Float[Tensor, "b d ..."]:
        """The same transformation on a grid of another size than the old one."""
        return self.regrid(z, spanning(size, old), spanning(size, size))

    def regrid(self, z: Float[Tensor, "b d ..."], old: Grid, new: Grid) -> Float[Tensor, "b d ..."]:
        """The same transformation on another grid of the same image, such as the next level of a pyramid."""
        return regrid(z, old, new)
