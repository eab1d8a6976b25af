"""DIO's update f: one smoothed descent step on the distance between warped moving and fixed features.

The settings are a frozen value; `on` binds them to two feature maps and returns f, which names no solver.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dio_lightning.implicit import Update
from dio_lightning.implicit.batch import norm, spread
from dio_lightning.level import Level
from dio_lightning.ops import match
from dio_lightning.transformations import Transformation

AGREED = 1.01
"""Slopes up to this many times that of images that agree are none."""


class UpdateRule(ABC):
    """Settings that become an update f once features are known."""

    # no dataclass itself: the command line would take a dataclass for the only class allowed

    @abstractmethod
    def on(self, level: Level, transformation: Transformation) -> Update:
        """The update for the features of a level; it may leave its energy, (b,), in `.energy` for the stop rule."""


class SmoothedRule(UpdateRule):
    """Settings of a smoothed descent step on an energy and λ times the diffusion energy.

    Raises:
        ValueError: if sigma or regularity is negative.
    """

    sigma: float
    regularity: float

    def __post_init__(self) -> None:
        if self.sigma < 0 or self.regularity < 0:
            raise ValueError(f"sigma is {self.sigma} and regularity {self.regularity}, expected numbers of at least 0")


@dataclass(frozen=True)
class Descent(SmoothedRule):
    """f(z) = z - S_σ ∂/∂z [ E(u(z)) / s + λ R(u(z)) ], E the feature distance of `ops.match`, R the diffusion energy.

    The scale s is the variance of the fixed features, so that nothing depends on the scale of the features, which
    training is free to change. It is differentiated too: without that, an adjoint would spend itself on growing the
    features, which changes nothing. `normalise=False` takes the mean over voxels, and steps in the coordinates of a
    grid from -1 to 1, as the official code does.

    Args:
        sigma: smoothing S_σ of the gradient, in voxels of the level (σ_grad); an affine model has nothing to smooth.
        regularity: weight λ of Σ_x Σ_ij (∂_i u_j)², forward differences in voxels.
        normalise: divide by the variance of the fixed features. Beside `False`, an affine model needs a rate as many
            times larger as there are voxels: its gradient is a mean already.
    """

    sigma: float = 1.0
    regularity: float = 0.0
    normalise: bool = True

    def on(self, level: Level, transformation: Transformation) -> "BoundDescent":
        """The update for these features."""
        return BoundDescent(self, level, transformation)


class BoundUpdate(ABC):
    """An update f; after a call, `energy`, (b,), is the energy at its argument."""

    def __init__(self, settings: SmoothedRule, level: Level, transformation: Transformation) -> None:
        self.settings, self.transformation = settings, transformation
        self.fixed, self.moving = level.fixed, level.moving
        self.energy: Tensor | None = None
        self._least: Tensor | None = None

    def __call__(self, z: Float[Tensor, "b d ..."]) -> Float[Tensor, "b d ..."]:
        """One plain step; differentiable in z and in the features."""
        return z + self.transformation.smooth(self.direction(z), self.settings.sigma)

    def direction(self, z: Tensor) -> Tensor:
        """Minus the gradient of the energy with respect to the parameters, before smoothing."""
        return -self.transformation.gradient(z, self.fixed.shape[2:], self.slope)

    @abstractmethod
    def slope(self, u: Tensor) -> Tensor:
        """Gradient of the energy with respect to the displacement; keeps the energy."""

    @abstractmethod
    def plain(self, fixed: Tensor, moving: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Energy (b,) and slope of these features, as they come."""

    def quiet(self, slope: Float[Tensor, "b d *s"]) -> Float[Tensor, "b d *s"]:
        """The slope, but zero for a sample where images that agree have as large a one: that is no direction.

        The fixed features beside themselves have a slope of rounding, and, where a similarity counts windows of little
        contrast as uncorrelated, one towards more contrast. Solvers that divide by the gradient's size would
        follow it all the same. A slope that is differentiated stays as it is.
        """
        if torch.is_grad_enabled():
            return slope
        if self._least is None:
            agreed = self.plain(self.fixed, self.fixed, torch.zeros_like(slope))[1]
            self._least = AGREED * norm(agreed)
        # so written that NaN stays NaN
        return torch.where(spread(norm(slope) <= self._least, slope), 0, slope)

    def _with_roughness(self, u: Tensor, energy: Tensor, slope: Tensor) -> Tensor:
        """Adds the regulariser to the slope, and keeps the energy for the stop rule."""
        if self.settings.regularity > 0:
            roughness, pull = diffusion_slope(u)
            energy = energy + self.settings.regularity * roughness.detach()
            slope = slope + self.settings.regularity * pull
        self.energy = energy
        return slope


class BoundDescent(BoundUpdate):
    """The update of `Descent` for two feature maps."""

    def __init__(self, settings: Descent, level: Level, transformation: Transformation) -> None:
        super().__init__(settings, level, transformation)
        self.normalise, self.scale = settings.normalise, _scale(level.fixed, settings.normalise)

    def slope(self, u: Tensor) -> Tensor:
        """Gradient of the energy with respect to the displacement."""
        value, slope = self.plain(self.fixed, self.moving, u)
        return self._regularise(u, value, self.quiet(slope))

    def plain(self, fixed: Tensor, moving: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Energy and slope of `ops.match`."""
        return match(fixed, moving, u)

    def _regularise(self, u: Tensor, value: Tensor, slope: Tensor) -> Tensor:
        """Scales energy and slope, adds those of the regulariser, and keeps the energy for the stop rule."""
        slope = slope / spread(self.scale, u)
        if not self.normalise:
            half = u.new_tensor([(extent - 1) / 2 for extent in u.shape[2:]]).view(1, -1, *[1] * (u.ndim - 2))
            slope = slope * half**2  # once for the gradient, once for the step
        return self._with_roughness(u, value.detach() / self.scale.detach(), slope)


def diffusion_slope(u: Float[Tensor, "b d *s"]) -> tuple[Float[Tensor, " b"], Float[Tensor, "b d *s"]]:
    """R(u) = Σ_x Σ_ij (∂_i u_j)², forward differences, and its gradient -2 Δu with Neumann borders."""
    energy, slope = u.new_zeros(len(u)), torch.zeros_like(u)
    for axis in range(2, u.ndim):
        step = u.diff(dim=axis)
        energy = energy + step.square().flatten(1).sum(1)
        edge = torch.zeros_like(u.narrow(axis, 0, 1))
        slope = slope - 2 * torch.cat((edge, step, edge), axis).diff(dim=axis)
    return energy, slope


def _scale(fixed: Tensor, normalise: bool) -> Tensor:
    """What the energy is divided by, (b,)."""
    flat = fixed.flatten(2)
    if not normalise:
        return torch.full((len(fixed),), float(flat.shape[2]), dtype=flat.dtype, device=flat.device)
    variance = flat.var(dim=2).mean(1)
    return torch.where(variance > 0, variance, torch.ones_like(variance))
