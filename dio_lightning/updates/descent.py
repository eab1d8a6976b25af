"""DIO's update f: one smoothed descent step on a sum of terms, by default the distance of features.

The settings are a frozen value; `on` binds them to a level and returns f, which names no solver.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite, prod

import torch
from jaxtyping import Float
from torch import Tensor

from dio_lightning.implicit import Update
from dio_lightning.implicit.batch import norm, spread
from dio_lightning.implicit.graphs import repeats
from dio_lightning.level import Level
from dio_lightning.losses import Diffusion, FeatureDistance, FeatureSimilarity, Term
from dio_lightning.losses.distance import Matched
from dio_lightning.losses.term import Energy, Slope
from dio_lightning.ops import memory
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
    masked: bool

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
        masked: leave out of what compares images the voxels that the pair's masks do not hold: those of fixed_mask on
            the fixed grid, and those that u leads out of moving_mask, which goes along with the moving image.
    """

    sigma: float = 1.0
    regularity: float = 0.0
    normalise: bool = True
    terms: Sequence[Term] = ()
    distance: Term | None = None
    masked: bool = field(default=False, kw_only=True)

    def on(self, level: Level, transformation: Transformation) -> "BoundDescent":
        """The update for this level.

        Raises:
            ValueError: if the level lacks what a term needs, such as labels, or masks, or if a term takes no masks.
        """
        self.check_masks()
        return BoundDescent(self, replace(level, masked=True) if self.masked else level, transformation)

    def check_masks(self) -> None:
        """Raises ValueError if voxels are to be left out, but a term that compares images cannot do so."""
        for term in self.energy if self.masked else ():
            if term.compares and not term.maskable:
                named = term.similarity if isinstance(term, FeatureSimilarity) else term
                raise ValueError(f"{type(named).__name__} cannot leave out what masks leave out")

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
        self._half: Tensor | None = None
        self._agreed: Tensor | None = None

    def __call__(self, z: Float[Tensor, "b d ..."]) -> Float[Tensor, "b d ..."]:
        """One plain step; differentiable in z and in the features."""
        step = self.transformation.smooth(self.direction(z), self.settings.sigma)
        return z + step if torch.is_grad_enabled() or step.dtype != z.dtype else step.add_(z)

    @property
    def repeats(self) -> bool:
        """Whether it does the same operations at every call after the first, so that a GPU may record them."""
        return self.transformation.dense and all(map(repeats, self.terms))

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
        model = self.transformation
        if model.dense or torch.is_grad_enabled():
            return memory.negative(model.gradient(z, self.level.size, self.slope))
        return -self._of_few(z)

    def slope(self, u: Tensor) -> Tensor:
        """Gradient of the energy with respect to the displacement; keeps the energy."""
        return self._total(u, self.parts[0].slope(u))

    def _total(self, u: Tensor, first: Slope) -> Tensor:
        """The sum of all terms' slopes, given energy and slope of the first; keeps the sum of energies."""
        slopes = ((i, first if i == 0 else part.slope(u)) for i, part in enumerate(self.parts))
        quieted = ((self.terms[i].weight, value, self.quiet(slope, i, value)) for i, (value, slope) in slopes)
        self.energy, total = self._sum(u, quieted)
        return total

    def _of_few(self, z: Tensor) -> Tensor:
        """The gradient of a model of few parameters; keeps the energy.

        It is this gradient that images that agree bound, not the slope: over a field their noise averages out.
        """
        energies, paired = list[Tensor](), list(zip(self.terms, self.parts, strict=True))

        def gradient(z: Tensor, parts: Sequence[Energy], rests: bool) -> Tensor:
            def slope(u: Tensor) -> Tensor:
                chosen = [i for i, term in enumerate(self.terms) if _rests(term) == rests]
                slopes = ((i, *parts[i].slope(u)) for i in chosen)
                quieted = (
                    (self.terms[i].weight, v, slope if rests else self.quiet(slope, i, v)) for i, v, slope in slopes
                )
                energy, total = self._sum(u, quieted, not rests)
                energies.append(energy)
                return total

            return self.transformation.gradient(z, self.level.size, slope)

        if not any(map(_rests, self.terms)):
            total = gradient(z, self.parts, False)
            self.energy = energies[0]
            return total
        if self._agreed is None:
            agreeing = [term.on(self.level.agreeing) if _rests(term) else part for term, part in paired]
            self._agreed = AGREED * norm(gradient(torch.zeros_like(z), agreeing, True))
            energies.clear()
        compared = gradient(z, self.parts, True)
        compared = torch.where(spread(norm(compared) <= self._agreed, compared), 0, compared)
        if self.settings.regularity > 0 or not all(map(_rests, self.terms)):
            compared = compared + gradient(z, self.parts, False)
        self.energy = torch.stack(energies).sum(0)
        return compared

    def _sum(
        self, u: Tensor, slopes: Iterable[tuple[float, Tensor, Tensor]], regularised: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Energy and slope of weighted terms (weight, value, slope), and of the regulariser."""
        voxels, energy, total = prod(u.shape[2:]), u.new_zeros(len(u)), None
        for weight, value, slope in slopes:
            energy, total = energy + weight * value.detach(), _plus(total, weight, slope)
        total = torch.zeros_like(u) if total is None else total
        if self.settings.normalise:
            energy = energy * voxels
        else:
            if self._half is None:  # made once: a copy to a GPU waits for it
                half = u.new_tensor([(extent - 1) / 2 for extent in u.shape[2:]])
                self._half = half.view(1, -1, *[1] * (u.ndim - 2))
            total = total / voxels * self._half**2  # once for the gradient, once for the step
        if regularised and (weight := self.settings.regularity) > 0:
            value, slope = self.roughness.slope(u)
            energy, total = energy + weight * voxels * value.detach(), _plus(total, weight, slope)
        return energy, total

    def quiet(self, slope: Float[Tensor, "b d *s"], part: int, value: Float[Tensor, " b"]) -> Float[Tensor, "b d *s"]:
        """The slope, but zero for a sample where images that agree have as large a one: that is no direction.

        The fixed features beside themselves have a slope of rounding, which solvers that divide by the gradient's size
        would follow all the same. Where a term does not rest at agreement (`Term.rests`), such as one that likes
        contrast, its value says whether the images agree. A slope that is differentiated stays as it is.
        """
        term = self.terms[part]
        if torch.is_grad_enabled() or not term.compares:
            return slope
        if part not in self._least:
            agreeing = term.on(self.level.agreeing)
            zero = torch.zeros_like(slope)
            self._least[part] = AGREED * norm(agreeing.slope(zero)[1]) if term.rests else agreeing.value(zero)
        # so written that NaN stays NaN
        agreed = (norm(slope) if term.rests else value) <= self._least[part]
        # on a GPU the question would cost more than the answer
        return torch.where(spread(agreed, slope), 0, slope) if slope.is_cuda or bool(agreed.any()) else slope


def _plus(total: Tensor | None, weight: float, slope: Tensor) -> Tensor:
    """Total + weight × slope, without a copy where one is spared."""
    if total is None:
        return slope if weight == 1 else weight * slope
    return memory.add(total, slope, weight)


def _rests(term: Term) -> bool:
    """Whether the term has nothing to say to images that agree."""
    return term.compares and term.rests
