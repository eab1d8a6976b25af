"""Random contrast: images painted anew from their label maps, so that no one contrast can be learned by heart."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from data_modules.augment.base import Augmentation, check_probability, happens, spacing_of
from data_modules.augment.grids import mirrored_labels
from data_modules.base import Sample
from dio_lightning.fields import gaussian_average

Table = tuple[Tensor, Tensor]
"""Mean and deviation of every label's intensities, as shares of the image's range."""


@dataclass(frozen=True)
class RandomContrast(Augmentation):
    """Images with a random mean for every label, texture and partial volume (after SynthSeg, Billot et al., 2023).

    An image keeps its range, and its voxels of the least value (the background) keep it; tissue without a label is one
    more structure. Bias, gamma, noise and thick slices are `RandomIntensity` and `RandomAnisotropy` after it. Labels,
    masks and landmarks stay.

    Args:
        probability: Of painting a pair.
        different: Of a table of intensities of its own for the moving image, as of T1 and T2; otherwise both have one.
        texture: Least and largest deviation of a structure's intensities, as a share of the range, for each structure.
        blur: Least and largest σ of the Gaussian that mixes what lies within a voxel, in mm.
        keep: Least and largest share of the image that remains: with 0 nothing does, with (0.5, 1) contrast is shaken.
        alike: Label to label of structures with one intensity, such as {1: 20}; `names` pairs the labels whose names
            differ in left and right (or lh and rh) alone: no contrast has a border between the halves of a brain.
    """

    probability: float = 0.8
    different: float = 0.5
    texture: tuple[float, float] = (0.02, 0.12)
    blur: tuple[float, float] = (0.4, 2.4)
    keep: tuple[float, float] = (0.0, 0.0)
    alike: Literal["names"] | dict[int, int] | None = None

    def __post_init__(self) -> None:
        check_probability(self.probability)
        check_probability(self.different)
        for name, (least, largest), limit in (
            ("texture", self.texture, 1.0),
            ("blur", self.blur, float("inf")),
            ("keep", self.keep, 1.0),
        ):
            if not 0 <= least <= largest <= limit:
                raise ValueError(f"{name} is {[least, largest]}, expected 0 <= least <= largest <= {limit}")

    def named(self, names: Mapping[int, str]) -> "RandomContrast":
        """With pairs of labels instead of `names`.

        Raises:
            ValueError: if no label has a side in its name, or one has no partner on the other side.
        """
        return replace(self, alike=mirrored_labels(names)) if self.alike == "names" else self

    def __call__(self, sample: Sample) -> Sample:
        """The pair with other intensities.

        Raises:
            ValueError: if an image has no labels, or labels below 0, or `names` were never given.
        """
        if self.alike == "names":
            raise ValueError("alike is 'names', expected a data set that names its labels")
        for side in ("fixed", "moving"):
            if f"{side}_label" not in sample or int(sample[f"{side}_label"].min()) < 0:
                raise ValueError(
                    "random contrast is painted from label maps, expected labels of at least 0 in the pair"
                )
        if not happens(self.probability):
            return sample
        count = 2 + max(int(sample[f"{side}_label"].max()) for side in ("fixed", "moving"))
        table = self._table(count)
        other = self._table(count) if happens(self.different) else table
        return sample | {side: self._painted(sample, side, t) for side, t in (("fixed", table), ("moving", other))}

    def _table(self, count: int) -> Table:
        means, deviations = torch.rand(count), torch.empty(count).uniform_(*self.texture)
        if isinstance(self.alike, dict):
            for one, other in self.alike.items():
                if max(one, other) < count - 1:  # the last is tissue without a label
                    means[other], deviations[other] = means[one], deviations[one]
        return means, deviations

    def _painted(self, sample: Sample, side: str, table: Table) -> Tensor:
        image, label = sample[side], sample[f"{side}_label"].long()
        least, extent = image.min(), image.max() - image.min()
        means, deviations = (x.to(image) for x in table)
        label = torch.where((label == 0) & (image > least), len(means) - 1, label)
        paint = means[label] + deviations[label] * torch.randn(label.shape).to(image)
        sigma = float(torch.empty(()).uniform_(*self.blur))
        paint = gaussian_average(paint[None], [sigma / step for step in spacing_of(sample, side)])[0]
        keep = float(torch.empty(()).uniform_(*self.keep))
        changed = torch.lerp(least + extent * paint.clamp(0, 1), image, keep)
        return torch.where((label == 0) & (image == least), image, changed)
