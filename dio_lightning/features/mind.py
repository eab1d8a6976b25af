"""The modality-independent neighbourhood descriptor with self-similarity context (MIND-SSC)."""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dio_lightning.features.base import FeaturePyramid, average_pool


class MIND(FeaturePyramid):
    """MIND-SSC of the image, averaged to each level; no weights. 12 channels in 3-D, 4 in 2-D; see mind."""

    def __init__(
        self, levels: Sequence[int] = (4, 2, 1), spatial_dims: int = 3, radius: int = 2, dilation: int = 2
    ) -> None:
        super().__init__(levels, channels=2 * spatial_dims * (spatial_dims - 1))
        self.radius, self.dilation = radius, dilation

    def extract(self, image: Tensor, levels: tuple[int, ...]) -> list[Tensor]:
        """The descriptor at the image's resolution, averaged over blocks of each level's size."""
        descriptor = mind(image.float(), self.radius, self.dilation)
        return [average_pool(descriptor, level) for level in levels]


def mind(image: Float[Tensor, "b 1 *s"], radius: int = 2, dilation: int = 2) -> Float[Tensor, "b k *s"]:
    """exp(-(D - min D) / V) for each pair of adjacent neighbours (Heinrich et al., MICCAI 2013), values in [0, 1].

    The neighbours of a voxel are the 2d voxels at distance `dilation` along the axes; adjacent are those of different
    axes, which makes k = 2d(d - 1) pairs. D is the mean squared difference of the two neighbours over the window of
    (2 radius + 1)^d voxels; V is the mean of D - min D over pairs, within a factor 1000 of its mean over the image.

    Raises:
        ValueError: if the image has more than one channel.
    """
    if image.shape[1] != 1:
        raise ValueError(f"MIND describes images of one channel, not {image.shape[1]}.")
    d = image.ndim - 2
    padded = F.pad(image, [dilation] * (2 * d), mode="replicate")
    pairs = itertools.combinations(itertools.product(range(d), (-dilation, dilation)), 2)
    differences = [_shift(padded, *a, dilation) - _shift(padded, *b, dilation) for a, b in pairs if a[0] != b[0]]
    distance = _box_mean(torch.cat(differences, 1).square(), radius)
    distance = distance - distance.amin(1, keepdim=True)
    variance = distance.mean(1, keepdim=True)
    mean = variance.mean(dim=tuple(range(1, image.ndim)), keepdim=True)
    variance = variance.clamp(min=mean * 1e-3, max=mean * 1e3).clamp(min=torch.finfo(image.dtype).tiny)
    return torch.exp(-distance / variance)


def _shift(padded: Tensor, axis: int, offset: int, margin: int) -> Tensor:
    """The unpadded grid, moved by offset along axis."""
    for i, n in enumerate(padded.shape[2:]):
        padded = padded.narrow(2 + i, margin + (offset if i == axis else 0), n - 2 * margin)
    return padded


def _box_mean(x: Tensor, radius: int) -> Tensor:
    """Mean over a centred window, with edge values outside."""
    d, window = x.ndim - 2, 2 * radius + 1
    x = F.pad(x, [radius] * (2 * d), mode="replicate")
    for axis in range(2, 2 + d):
        size = x.shape[axis] - 2 * radius
        total = x.narrow(axis, 0, size).clone()  # sums of slices: far faster than pooling on a CPU
        for start in range(1, window):
            total += x.narrow(axis, start, size)
        x = total
    return x / window**d
