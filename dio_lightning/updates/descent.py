"""DIO's update f: one smoothed descent step on a sum of terms, by default the distance of features.

The settings are a frozen value; `on` binds them to a level and returns f, which names no solver.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, prod

import torch
from jaxtyping import Float
from torch import Tensor

from dio_lightning.implicit import Update
from dio_lightning.implicit.batch import norm, spread
from dio_lightning.level import Level
from dio_lightning.losses import Diffusion, FeatureDistance, Term
from dio_lightning.losses.distance import Matched
from dio_lightning.losses.term import Energy
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
    """Settings of a smoothed descent step on an energy, λ times the diffusion energy, and more terms.

    Raises:
        ValueError: if sigma or regularity is negative.
    """

    sigma: float
    regularity: float
    terms: Sequence[Term]

    def __post_init__(self) -> None:
        if not all(isfinite(x) and x >= 0 for x in (self.sigma, self.regularity)):
            raise ValueError(f"sigma is {self.sigma} and regularity {self.regularity}, expected numbers of at least 0")
        object.__setattr__(self, "terms", tuple(self.terms))  # the command line makes a list


@dataclass(frozen=True)
class Descent(SmoothedRule):
    """f(z) = z - S_σ ∂/∂z N [ E(u(z)) + λ R(u(z)) + Σ_i w_i T_i(u(z)) ], N the number of voxels.

    E is what compares the two images, the distance of their features; R is the diffusion energy and T_i are the other
    terms, all means over voxels. So a voxel's step does not depend on the size of the image, and a weight means the
    same at every level. `normalise=False` takes means in the coordinates of a grid from -1 to 1, as the official code
    does, for E and T_i.

    Args:
        sigma: smoothing S_σ of the gradient, in voxels of the level (σ_grad); an affine model has nothing to smooth.
        regularity: weight λ of Σ_ij (∂_i u_j)², short for a term `Diffusion(weight=λ)`.
        normalise: divide the distance by the variance of the fixed features. Beside `False`, an affine model needs a
            rate as many times larger as there are voxels: its gradient is a mean already.
        terms: what is descended on besides: regularisers, prompts, similarities of the images.
        distance: E; by default `FeatureDistance`, whatever the terms are.
    """

    sigma: float = 1.0
    regularity: float = 0.0
    normalise: bool = True
    terms: Sequence[Term] = ()
    distance: Term | None = None

    def on(self, level: Level, transformation: Transformation) -> "BoundDescent":
        """The update for this level.

        Raises:
            ValueError: if the level lacks what a term needs, such as labels.
        """
        return BoundDescent(self, level, transformation)

    @property
    def energy(self) -> tuple[Term, ...]:
        """Every term of the sum but the diffusion energy, the distance first."""
        return (FeatureDistance(self.normalise) if self.distance is None else self.distance, *self.terms)


class BoundDescent:
    """The update of `Descent` at a level; after a call, `energy`, (b,), is the energy at its argument."""

    def __init__(self, settings: Descent, level: Level, transformation: Transformation) -> None:
        self.settings, self.transformation, self.level = settings, transformation, level
        self.terms = settings.energy
        self.parts = [term.on(level) for term in self.terms]
        self.roughness = Diffusion(weight=settings.regularity).on(level)
        self.energy: Tensor | None = None
        self._least: dict[int, Tensor] = {}
        self._agreed: Tensor | None = None

    def __call__(self, z: Float[Tensor, "b d ..."]) -> Float[Tensor, "b d ..."]:
        """One plain step; differentiable in z and in the features."""
        return z + self.transformation.smooth(self.direction(z), self.settings.sigma)

    @property
    def scale(self) -> Float[Tensor, " b"]:
        """What the distance of the features is divided by."""
        return self._matched.scale

    @scale.setter
    def scale(self, scale: Float[Tensor, " b"]) -> None:
        self._matched.scale = scale

    @property
    def _matched(self) -> Matched:
        part = self.parts[0]
        assert isinstance(part, Matched)
        return part

    def direction(self, z: Tensor) -> Tensor:
        """Minus the gradient of the energy with respect to the parameters, before smoothing."""
        model, size = self.transformation, self.level.size
        if model.dense or torch.is_grad_enabled():
            return -model.gradient(z, size, self.slope)
        # of few parameters, it is their gradient that images that agree bound: over a field, noise averages out
        self.energy = None
        compared = model.gradient(z, size, lambda u: self._part(u, self.parts, [t.compares for t in self.terms]))
        others = model.gradient(
            z, size, lambda u: self._part(u, self.parts, [not t.compares for t in self.terms], True)
        )
        if self._agreed is None:
            parts = [t.on(self.level.agreeing) if t.compares else None for t in self.terms]
            kept, start = self.energy, model.initial(self.level.fixed)
            agreed = model.gradient(start, size, lambda u: self._part(u, parts, [t.compares for t in self.terms]))
            self._agreed, self.energy = AGREED * norm(agreed), kept
        return -(torch.where(spread(norm(compared) <= self._agreed, compared), 0, compared) + others)

    def slope(self, u: Tensor) -> Tensor:
        """Gradient of the energy with respect to the displacement; keeps the energy."""
        value, slope = self.parts[0].slope(u)
        return self._total(u, value, self.quiet(slope))

    def _part(
        self, u: Tensor, parts: Sequence[Energy | None], chosen: Sequence[bool], regularised: bool = False
    ) -> Tensor:
        """The weighted slopes of some terms; their energies are added to what is kept."""
        voxels, total, energy = prod(u.shape[2:]), torch.zeros_like(u), u.new_zeros(len(u))
        for part, term, on in zip(parts, self.terms, chosen, strict=True):
            if on and part is not None:
                value, slope = part.slope(u)
                energy, total = energy + term.weight * value.detach(), total + term.weight * slope
        total, energy = self._scaled(total, energy, voxels)
        if regularised and (weight := self.settings.regularity) > 0:
            value, slope = self.roughness.slope(u)
            energy, total = energy + weight * voxels * value.detach(), total + weight * slope
        self.energy = energy if self.energy is None else self.energy + energy
        return total

    def _scaled(self, total: Tensor, energy: Tensor, voxels: int) -> tuple[Tensor, Tensor]:
        """Slope and energy as sums over voxels, or in the coordinates of the official code."""
        if self.settings.normalise:
            return total, energy * voxels
        half = total.new_tensor([(extent - 1) / 2 for extent in total.shape[2:]])
        # once for the gradient, once for the step
        return total / voxels * half.view(1, -1, *[1] * (total.ndim - 2)) ** 2, energy

    def _total(self, u: Tensor, value: Tensor, slope: Tensor) -> Tensor:
        """The weighted sum of all terms' slopes, given energy and slope of the first; keeps the sum of energies."""
        first, voxels = self.terms[0].weight, prod(u.shape[2:])
        energy, total = first * value.detach(), slope if first == 1 else first * slope
        for i in range(1, len(self.parts)):
            value, slope = self.parts[i].slope(u)
            weight = self.terms[i].weight
            energy = energy + weight * value.detach()
            total = total + weight * (self.quiet(slope, i) if self.terms[i].compares else slope)
        total, energy = self._scaled(total, energy, voxels)
        if (weight := self.settings.regularity) > 0:
            value, slope = self.roughness.slope(u)
            energy, total = energy + weight * voxels * value.detach(), total + weight * slope
        self.energy = energy
        return total

    def quiet(self, slope: Float[Tensor, "b d *s"], part: int = 0) -> Float[Tensor, "b d *s"]:
        """The slope, but zero for a sample where images that agree have as large a one: that is no direction.

        The fixed features beside themselves have a slope of rounding, and, where a similarity counts windows of little
        contrast as uncorrelated, one towards more contrast. Solvers that divide by the gradient's size would
        follow it all the same. A slope that is differentiated stays as it is.
        """
        if torch.is_grad_enabled() or not self.terms[part].compares:
            return slope
        if part not in self._least:
            agreed = self.terms[part].on(self.level.agreeing).slope(torch.zeros_like(slope))[1]
            self._least[part] = AGREED * norm(agreed)
        # so written that NaN stays NaN
        return torch.where(spread(norm(slope) <= self._least[part], slope), 0, slope)
