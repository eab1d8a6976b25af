"""Volumes of different subjects to one spacing and one size."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms.croppad.array import ResizeWithPadOrCrop
from monai.transforms.spatial.array import Spacing
from monai.transforms.transform import Transform
from torch import Tensor


@dataclass(frozen=True)
class Conform(Transform):
    """Volumes as stored to the grid that is registered.

    Args:
        isotropic: resample to 1 mm.
        size: voxels after padding with zeros and cutting the centre. None: as they are.
    """

    isotropic: bool
    size: tuple[int, ...] | None

    def __call__(self, data: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`image` and `label`, (1, *s), on the new grid; the affine counts mm from its centre."""
        made = {"image": self._resampled(cast(MetaTensor, data["image"]).clamp(min=0), "bilinear")}
        if "label" in data:
            made["label"] = self._resampled(data["label"], "nearest")
        return {**data, **made}

    def _resampled(self, stored: Tensor, mode: str) -> MetaTensor:
        spacing = cast(MetaTensor, stored).affine[:3, :3].norm(dim=0)
        values = cast(MetaTensor, stored).as_tensor().float()
        volume = MetaTensor(values, affine=centred(values.shape[1:], spacing))
        if self.isotropic and not torch.allclose(spacing, torch.ones(3, dtype=spacing.dtype), atol=1e-3):
            # scale_extent: the voxels' outer faces stay, and with them the centre
            volume = cast(MetaTensor, Spacing((1.0, 1.0, 1.0), mode=mode, scale_extent=True)(volume))
            spacing = torch.ones(3)
        if self.size is not None:
            volume = cast(MetaTensor, ResizeWithPadOrCrop(self.size)(volume))
        return MetaTensor(volume.as_tensor().contiguous(), affine=centred(volume.shape[1:], spacing))


def centred(shape: Sequence[int], spacing: Tensor) -> Tensor:
    """The affine (4, 4) that counts mm from the centre of the grid, along its axes."""
    affine = torch.diag(torch.cat([spacing.double(), torch.ones(1, dtype=torch.float64)]))
    affine[:3, 3] = -spacing.double() * (torch.tensor(shape, dtype=torch.float64) - 1) / 2
    return affine
