"""Random smooth deformation of the anatomy: diffeomorphic, in millimetres, each image by itself."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data_modules.augment.base import Augmentation, check_probability, happens, spacing_of
from data_modules.base import Sample
from dio_lightning.fields import compose, exponential, gaussian_smooth, identity, resize
from dio_lightning.fields import sample as sample_at

STEPS = 40
"""Damped steps to the place of a landmark; each halves its error, and more where the field hardly varies."""
PER_SIGMA = 2.0
"""Voxels per σ of the grid on which a velocity is drawn: fields this smooth are linear between its voxels."""


@dataclass(frozen=True)
class RandomDeformation(Augmentation):
    """Deforms the images by exponentials of random smooth velocities: few people become many.

    An image becomes I(exp(v)(x)), v white noise after a Gaussian of σ mm, scaled to a root mean square of `size` mm;
    both numbers are drawn uniformly for each image. Images are interpolated linearly, with edge values outside, labels
    and masks by nearest voxel; landmarks go through exp(-v), which is the inverse, and a true displacement follows. The
    grids stay. Where σ is below twice `size`, fields get rough enough for voxels to fold.

    Args:
        size: Least and largest root mean square of the velocity, in mm.
        smoothness: Least and largest σ, in mm.
        probability: Of deforming an image.
        separate: Fixed and moving image are deformed independently; otherwise by one velocity, on the fixed grid.
    """

    size: tuple[float, float] = (0.0, 4.0)
    smoothness: tuple[float, float] = (8.0, 16.0)
    probability: float = 0.8
    separate: bool = True

    def __post_init__(self) -> None:
        check_probability(self.probability)
        if not 0 <= self.size[0] <= self.size[1] or not 0 < self.smoothness[0] <= self.smoothness[1]:
            raise ValueError(
                f"size is {list(self.size)} and smoothness {list(self.smoothness)}, expected a least size of at least "
                "0 and a least smoothness above 0, each before the largest"
            )

    def __call__(self, sample: Sample) -> Sample:
        """The pair, deformed.

        Raises:
            ValueError: if the images lie on two grids and have a true displacement, or are to be deformed alike.
        """
        two = "moving_affine" in sample
        if two and ("displacement" in sample or not self.separate):
            raise ValueError("the pair has a moving_affine, expected one grid to deform images alike or a displacement")
        fixed = self._drawn(sample, "fixed")
        return deformed(sample, fixed, self._drawn(sample, "moving") if self.separate else fixed)

    def _drawn(self, sample: Sample, side: str) -> Tensor | None:
        """A random velocity over an image, on a grid of its own; None leaves the image as it is."""
        if not happens(self.probability):
            return None
        image = sample[side]
        spacing = spacing_of(sample, side)
        mm, sigma = (float(torch.empty(()).uniform_(*limits)) for limits in (self.size, self.smoothness))
        return velocity(image.shape[1:], spacing, mm, sigma).to(image.device)


def velocity(size: Sequence[int], spacing: Sequence[float], mm: float, sigma: float) -> Tensor:
    """White noise after a Gaussian of σ mm, with a root mean square of `mm` mm, over an image of this size.

    It lies on a grid (1, d, *t) of the same ends that has two voxels per σ, in voxels of that grid: exponentials are
    cheap there, and over one extent one state of torch gives one motion, whatever the resolution of the image.
    """
    lengths = [(n - 1) * step for n, step in zip(size, spacing, strict=True)]
    coarse = [max(2, 1 + round(PER_SIGMA * length / sigma)) if length > 0 else 1 for length in lengths]
    noise = gaussian_smooth(torch.randn(1, len(coarse), *[n + 8 for n in coarse]), PER_SIGMA)
    inside = tuple(slice(4, 4 + n) for n in coarse)  # the smoothing sees zeros outside
    noise = noise[(slice(None), slice(None), *inside)]
    noise = noise * (mm / noise.square().sum(1).mean().sqrt().clamp(min=1e-12))
    steps = torch.tensor([length / max(n - 1, 1) if n > 1 else 1.0 for length, n in zip(lengths, coarse, strict=True)])
    return noise / steps.view(1, -1, *[1] * len(coarse))


def deformed(sample: Sample, fixed: Tensor | None, moving: Tensor | None) -> Sample:
    """The pair with each image seen at exp(v)(x), v as of `velocity`; None leaves an image as it is."""
    changed: Sample = {}
    for side, v in (("fixed", fixed), ("moving", moving)):
        if v is None:
            continue
        u = resize(exponential(v), sample[side].shape[1:])
        points = identity(u.shape[2:], u) + u
        for key in (side, f"{side}_label", f"{side}_mask"):
            if key in sample:
                mode = "linear" if sample[key].is_floating_point() else "nearest"
                changed[key] = sample_at(sample[key][None], points, mode, padding="border")[0]
        if (marks := sample.get(f"{side}_points")) is not None:
            changed[f"{side}_points"] = _pulled(marks, u, resize(exponential(-v), sample[side].shape[1:]))
    if (u := sample.get("displacement")) is not None:
        # ϕ' = exp(-v_moving) ∘ ϕ ∘ exp(v_fixed)
        size = u.shape[1:]
        u = u[None] if fixed is None else compose(u[None], resize(exponential(fixed), size))
        changed["displacement"] = (u if moving is None else compose(resize(exponential(-moving), size), u))[0]
    return sample | changed


def _pulled(points: Tensor, u: Tensor, back: Tensor) -> Tensor:
    """Where points (d, n) go when the image is seen at x + u(x): y with y + u(y) = x, from the guess x + back(x).

    Exponentials are computed on a coarse grid and interpolated: exp(-v) undoes exp(v) to a fraction of a voxel only.
    """
    x = points.double()[None]
    y = x + sample_at(back, x)
    for _ in range(STEPS):
        y = y + 0.5 * (x - y - sample_at(u, y))
    return y[0].to(points.dtype)
