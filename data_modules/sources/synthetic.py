"""Pairs with a known deformation, drawn from a seed: no files, two or three dimensions."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Generator, Tensor

from data_modules.base import Sample, Split
from data_modules.drawing import generator
from data_modules.sources.drawn import DrawnPairs
from dio_lightning.fields import gaussian_smooth, identity, jacobian_determinant, warp

LANDMARKS = 16


class SyntheticPairs(DrawnPairs):
    """Random anatomies, their known deformation, and images whose intensities need not agree.

    A moving label map is the largest of `num_labels` smooth random fields inside a round body; the fixed one is its
    nearest-neighbour warp by a smooth displacement u, so `displacement` is the exact answer. Each of the two images is
    then drawn from its own label map: intensities per label, texture, blur, bias field and noise. With random contrast
    the intensities of one image say nothing about those of the other (Hoffmann et al., SynthMorph, IEEE TMI 41, 2022),
    while edges and the strength of each label's texture do.

    Args:
        size: The grid: two or three extents of at least 12 voxels.
        num_labels: Structures, background not counted.
        train_pairs: Training pairs; likewise `val_pairs`, `test_pairs`. No pair is in two splits.
        amplitude: Root mean square length of u in voxels; less where u would fold (min det ∇(id + u) > 0.2).
        smoothness: Standard deviation in voxels of the Gaussian that u is smoothed with.
        structure: The same for the label maps: larger structures are easier.
        contrast: `random`: every image draws which label gets which intensity; `shared`: label k always has k / n.
        texture: Standard deviation of the fine texture of the most textured label, falling to 0 for the least.
        bias: Standard deviation of the logarithm of the bias field.
        noise: Standard deviation of the white noise.
        seed: Pair i of a split depends on (seed, split, i) and the arguments above alone.
        batch_size: Pairs per batch.
        num_workers: Loader processes.
        steps_per_epoch: Training batches per epoch and process; default: every training pair once.

    Raises:
        ValueError: for arguments out of range.
    """

    def __init__(
        self,
        size: Sequence[int] = (48, 48),
        num_labels: int = 6,
        train_pairs: int = 64,
        val_pairs: int = 8,
        test_pairs: int = 8,
        amplitude: float = 3.0,
        smoothness: float = 8.0,
        structure: float = 5.0,
        contrast: Literal["shared", "random"] = "random",
        texture: float = 0.2,
        bias: float = 0.2,
        noise: float = 0.03,
        seed: int = 0,
        batch_size: int = 1,
        num_workers: int = 0,
        steps_per_epoch: int | None = None,
    ) -> None:
        counts: dict[Split, int] = {"train": train_pairs, "val": val_pairs, "test": test_pairs}
        super().__init__(counts, batch_size, num_workers, steps_per_epoch, seed)
        if len(size) not in (2, 3) or min(size) < 12:
            raise ValueError(f"size is {tuple(size)}, expected two or three extents of at least 12 voxels")
        if num_labels < 1:
            raise ValueError(f"num_labels is {num_labels}, expected at least 1")
        if min(smoothness, structure) <= 0 or min(amplitude, texture, bias, noise) < 0:
            raise ValueError("smoothness and structure must be above 0; amplitude, texture, bias and noise at least 0")
        self.size, self.labels, self.contrast = tuple(size), num_labels, contrast
        self.amplitude, self.smoothness, self.structure = amplitude, smoothness, structure
        self.texture, self.bias, self.noise = texture, bias, noise

    @property
    def num_labels(self) -> int:
        """Structures, background not counted."""
        return self.labels

    @property
    def spatial_dims(self) -> int:
        """2 or 3."""
        return len(self.size)

    def draw(self, split: Split, index: int) -> Sample:
        """Pair `index` of a split; see `DrawnPairs`."""
        stream = generator("synthetic", self.seed, split, index)
        moving = self._anatomy(stream)
        u = self._displacement(stream)
        fixed = warp(moving, u, "nearest")
        fixed_points, moving_points = self._landmarks(fixed, u, stream)
        return {
            "fixed": self._image(fixed, stream)[0],
            "moving": self._image(moving, stream)[0],
            "fixed_label": fixed[0],
            "moving_label": moving[0],
            "fixed_mask": (fixed[0] > 0).to(torch.uint8),
            "moving_mask": (moving[0] > 0).to(torch.uint8),
            "fixed_points": fixed_points,
            "moving_points": moving_points,
            "spacing": torch.ones(self.spatial_dims),
            "affine": torch.eye(4, dtype=torch.float64),
            "displacement": u[0],
        }

    def _smooth(self, channels: int, sigma: float, stream: Generator) -> Tensor:
        """Gaussian random fields (1, channels, *size) of unit standard deviation, uncorrelated beyond a few sigma."""
        x = gaussian_smooth(torch.randn(1, channels, *self.size, generator=stream), sigma, truncate=4.0)
        return x / x.std().clamp(min=1e-6)

    def _anatomy(self, stream: Generator) -> Tensor:
        """A label map (1, 1, *size) int16: 0 outside the body, 1..n inside."""
        fields = self._smooth(self.labels, self.structure, stream)
        half = torch.tensor(self.size).view(1, -1, *[1] * self.spatial_dims) / 2
        radius = ((identity(self.size, fields) - half + 0.5) / (0.75 * half)).norm(dim=1, keepdim=True)
        body = radius < 1 + 0.1 * self._smooth(1, 2 * self.structure, stream)
        return torch.where(body, fields.argmax(1, keepdim=True) + 1, 0).to(torch.int16)

    def _displacement(self, stream: Generator) -> Tensor:
        """A fold-free displacement (1, d, *size), shrunk until its least Jacobian determinant is above 0.2."""
        u = self._smooth(self.spatial_dims, self.smoothness, stream)
        u = u * self.amplitude / u.norm(dim=1).square().mean().sqrt()
        while jacobian_determinant(u).min() <= 0.2:
            u = 0.95 * u
        return u

    def _image(self, label: Tensor, stream: Generator) -> Tensor:
        """An image (1, 1, *size) float32 of a label map, from 0 to 1."""
        n = self.labels
        levels = torch.arange(1, n + 1) / n
        if self.contrast == "random":
            levels = levels[torch.randperm(n, generator=stream)]
        index = label.long()
        strength = torch.cat([torch.zeros(1), torch.linspace(0, self.texture, n)])[index]
        grain = strength * torch.randn(label.shape, generator=stream)
        image = gaussian_smooth(torch.cat([torch.zeros(1), levels])[index] + grain, 0.6, truncate=4.0)
        image = image * torch.exp(self.bias * self._smooth(1, min(self.size) / 4, stream))
        image = image + self.noise * torch.randn(label.shape, generator=stream)
        return (image - image.min()) / (image.max() - image.min()).clamp(min=1e-6)

    def _landmarks(self, fixed: Tensor, u: Tensor, stream: Generator) -> tuple[Tensor, Tensor]:
        """Fixed voxels (d, n) inside the body and where u takes them; those that stay on the grid."""
        size = torch.tensor(self.size).view(1, -1, *[1] * self.spatial_dims)
        target = identity(self.size, u) + u
        inside = (fixed > 0) & ((target >= 0) & (target <= size - 1)).all(1, keepdim=True)
        voxels = inside[0, 0].nonzero()
        chosen = voxels[torch.randperm(len(voxels), generator=stream)[:LANDMARKS]].T
        return chosen.float(), target[0][(slice(None), *chosen)]
