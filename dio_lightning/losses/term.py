"""Terms: what a layer descends on and what a training minimises are weighted sums of the same energies."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from math import isfinite, prod
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dio_lightning.level import Level
from dio_lightning.pair import full_precision

Slope = tuple[Tensor, Tensor]
"""Energy (b,) and slope (b, d, *s)."""


class Energy:
    """A term at one level: what does not depend on the displacement is computed before the first call.

    Args:
        value: (u, *inputs) to (b,), a mean over the voxels of each sample.
        inputs: the tensors that it needs; a slope can be differentiated with respect to them.
        slope: (u, *inputs) to energy and slope, in closed form; by default autograd finds it.
    """

    def __init__(
        self, value: Callable[..., Tensor], *inputs: Tensor, slope: Callable[..., Slope] | None = None
    ) -> None:
        self._value, self._slope, self.inputs = value, slope, inputs
        if slope is None:
            with torch.inference_mode(False):
                self.inputs = tuple(x.clone() if x.is_inference() else x for x in inputs)

    def value(self, u: Float[Tensor, "b d *s"]) -> Float[Tensor, " b"]:
        """The energy of each sample, in float32 at least; differentiable in u and the inputs."""
        with exact(u):
            return self._value(full_precision(u), *self.inputs)

    def slope(self, u: Float[Tensor, "b d *s"]) -> tuple[Float[Tensor, " b"], Float[Tensor, "b d *s"]]:
        """The energy, and the gradient of (voxels of a sample × energy) with respect to u.

        So a voxel's slope does not depend on the size of the image. Works where gradients are off, in inference mode
        too; where they are on, the slope can be differentiated once more.
        """
        with exact(u):
            fine = full_precision(u)
            if self._slope is not None:
                return self._slope(fine, *self.inputs)
            return slope_of(self._value, fine, *self.inputs)


class Term(nn.Module, ABC):
    """A named energy of a displacement, with its weight in the sum that it is part of.

    A subclass says what it is at a level (`on`). In a training objective it is called by what its slot has: a
    similarity by two images, a regulariser by u.

    Args:
        weight: factor in a sum of terms, at least 0.

    Raises:
        ValueError: if the weight is negative or not finite.
    """

    compares: ClassVar[bool] = False
    """Whether the term compares images or features, so that two images that agree have nothing to say to it."""
    rests: ClassVar[bool] = True
    """Whether a term that compares is at rest where images agree, so that a slope no larger than theirs is none."""
    maskable: ClassVar[bool] = False
    """Whether a term that compares can leave out what the masks of a level leave out (`Level.masks`)."""
    repeats: ClassVar[bool] = False
    """Whether its energies do the same operations at every call, so that a GPU may record them (`implicit.graphs`)."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        if not (isfinite(weight) and weight >= 0):
            raise ValueError(f"the weight of {type(self).__name__} is {weight}, expected a number of at least 0")
        self.weight = weight

    @abstractmethod
    def on(self, level: Level) -> Energy:
        """The term at this level, without its weight.

        Raises:
            ValueError: if the level lacks what the term needs.
        """

    def value(self, level: Level, u: Float[Tensor, "b d *s"]) -> Float[Tensor, " b"]:
        """The energy of u, in voxels of the level, without the weight; see `Energy.value`."""
        return self.on(level).value(u)

    def slope(self, level: Level, u: Float[Tensor, "b d *s"]) -> tuple[Float[Tensor, " b"], Float[Tensor, "b d *s"]]:
        """Energy and slope at u, in voxels of the level, without the weight; see `Energy.slope`."""
        return self.on(level).slope(u)


def exact(u: Tensor) -> AbstractContextManager[object]:
    """Autocast off; where it is off already, nothing, which is quicker."""
    kind = u.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def slope_of(value: Callable[..., Tensor], u: Float[Tensor, "b d *s"], *inputs: Tensor) -> Slope:
    """The value at (u, *inputs), and the gradient of its sum with respect to u, times the voxels of a sample.

    Where gradients are enabled and u or an input has one, the slope can be differentiated; where they are not, in
    inference mode too, it is computed all the same.
    """
    record = torch.is_grad_enabled() and any(x.requires_grad for x in (u, *inputs))
    with torch.inference_mode(False), torch.enable_grad():
        inputs = tuple(x.clone() if x.is_inference() else x for x in inputs)
        at = u if record and u.requires_grad else (u.clone() if u.is_inference() else u.detach()).requires_grad_()
        energy = value(at, *inputs)
        (slope,) = torch.autograd.grad(energy, at, torch.full_like(energy, prod(u.shape[2:])), create_graph=record)
    return energy if record else energy.detach(), slope
