"""Random intensities and slice thickness of each image; labels, masks and landmarks stay."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from monai.transforms.compose import Compose
from monai.transforms.intensity.array import RandAdjustContrast, RandBiasField, RandGaussianNoise, ScaleIntensity
from monai.transforms.spatial.array import Resize
from monai.transforms.utility.array import EnsureType
from torch import Tensor

from data_modules.augment.base import Augmentation, check_probability, draw_seed, happens
from data_modules.base import Sample


@dataclass(frozen=True)
class RandomIntensity(Augmentation):
    """Bias field, contrast and noise, each with the same probability, independently in fixed and moving image.

    An image keeps its range, and its voxels of the least value (the background) keep it.

    Args:
        bias: Largest coefficient of the polynomial of degree 3 whose exponential multiplies the image.
        gamma: Least and largest exponent of the intensities as shares of the range.
        noise: Largest standard deviation of white noise, as a share of the range.
        probability: Of each of the three.
    """

    bias: float = 0.2
    gamma: tuple[float, float] = (0.7, 1.5)
    noise: float = 0.05
    probability: float = 0.5

    def __post_init__(self) -> None:
        check_probability(self.probability)
        if min(self.bias, self.noise) < 0 or not 0 < self.gamma[0] <= self.gamma[1]:
            raise ValueError(
                f"bias is {self.bias}, noise {self.noise} and gamma {list(self.gamma)}, expected numbers of at least "
                "0 and a least gamma above 0 before the largest"
            )

    def __call__(self, sample: Sample) -> Sample:
        """The pair with other intensities."""
        return sample | {side: self._changed(sample[side]) for side in ("fixed", "moving")}

    def _changed(self, image: Tensor) -> Tensor:
        least, extent = image.min(), float(image.max() - image.min())
        steps: list[Callable] = []
        if self.bias:
            steps.append(RandBiasField(coeff_range=(-self.bias, self.bias), prob=self.probability))
            steps.append(ScaleIntensity(0.0, extent))
        if tuple(self.gamma) != (1.0, 1.0):
            steps.append(RandAdjustContrast(prob=self.probability, gamma=self.gamma))
        if self.noise:
            steps.append(RandGaussianNoise(prob=self.probability, std=self.noise * extent))
        change = Compose([*steps, EnsureType(dtype=image.dtype, track_meta=False)])
        change.set_random_state(seed=draw_seed())
        changed = cast(Tensor, change(image - least)).clamp(0, extent) + least
        return torch.where(image == least, image, changed)


@dataclass(frozen=True)
class RandomAnisotropy(Augmentation):
    """Thick slices: an image is averaged along a random axis, then interpolated back; independently in the two images.

    Args:
        factors: Least and largest thickness of a slice, in voxels.
        probability: Of thick slices in an image.
    """

    factors: tuple[float, float] = (2.0, 4.0)
    probability: float = 0.5

    def __post_init__(self) -> None:
        check_probability(self.probability)
        if not 1 <= self.factors[0] <= self.factors[1]:
            raise ValueError(f"factors is {list(self.factors)}, expected a least of at least 1 before the largest")

    def __call__(self, sample: Sample) -> Sample:
        """The pair with thick slices in both, one or none of its images."""
        return sample | {side: self._changed(sample[side]) for side in ("fixed", "moving")}

    def _changed(self, image: Tensor) -> Tensor:
        if not happens(self.probability):
            return image
        axis = int(torch.randint(image.ndim - 1, ()))
        return thick(image, axis, float(torch.empty(()).uniform_(*self.factors)))


def thick(image: Tensor, axis: int, factor: float) -> Tensor:
    """Image (1, *s) seen through slices `factor` voxels thick along an array axis."""
    size = list(image.shape[1:])
    coarse = [max(1, round(n / factor)) if i == axis else n for i, n in enumerate(size)]
    back = "bilinear" if len(size) == 2 else "trilinear"
    resized = Compose([Resize(coarse, mode="area"), Resize(size, mode=back), EnsureType(track_meta=False)])
    return cast(Tensor, resized(image))
