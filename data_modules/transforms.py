"""From files to tensors, with MONAI's dictionary transforms.

Images keep the storage order of their axes: displacements, landmarks and Learn2Reg's files count in array axes, so
reorienting would change what a displacement means. `affine` says where the axes point.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from monai.transforms.compose import Compose
from monai.transforms.intensity.dictionary import (
    ScaleIntensityd,
    ScaleIntensityRanged,
    ScaleIntensityRangePercentilesd,
)
from monai.transforms.io.dictionary import LoadImaged
from monai.transforms.utility.dictionary import EnsureChannelFirstd, EnsureTyped, Lambdad
from torch import Tensor

Normalise = Literal["max", "percentile", "window", "none"]
VOLUMES = ("image", "label", "mask")


def reading() -> Compose:
    """Paths to (1, *s) float32 volumes as stored; two-dimensional files may carry a third axis of one voxel."""
    return Compose(
        [
            LoadImaged(keys=VOLUMES, reader="NibabelReader", image_only=True, allow_missing_keys=True),
            EnsureChannelFirstd(keys=VOLUMES, channel_dim="no_channel", allow_missing_keys=True),
            Lambdad(keys=VOLUMES, func=_drop_last_single, allow_missing_keys=True),
        ]
    )


def preparing(normalise: Normalise, clip: Sequence[float] | None, labels: Sequence[int] | None) -> Compose:
    """Checked volumes to what training sees: image in [0, 1] float32, label int16, mask uint8.

    `max` maps the least and largest value to 0 and 1, `percentile` those of 0.5 % and 99.5 %, `window` the two values
    of `clip`; `none` leaves intensities. `clip` limits them before. Labels that are not listed become background.
    """
    steps: list = []
    if normalise == "window" and clip is not None:
        steps = [ScaleIntensityRanged("image", clip[0], clip[1], 0.0, 1.0, clip=True)]
    elif clip is not None:
        steps = [ScaleIntensityRanged("image", clip[0], clip[1], clip[0], clip[1], clip=True)]
    if normalise == "max":
        steps.append(ScaleIntensityd("image", minv=0.0, maxv=1.0))
    elif normalise == "percentile":
        steps.append(ScaleIntensityRangePercentilesd("image", 0.5, 99.5, 0.0, 1.0, clip=True))
    if labels is not None:
        steps.append(Lambdad("label", _Keep(labels), allow_missing_keys=True))
    steps += [
        Lambdad("mask", _binary, allow_missing_keys=True),
        EnsureTyped("image", dtype=torch.float32, track_meta=False),
        EnsureTyped("label", dtype=torch.int16, track_meta=False, allow_missing_keys=True),
        EnsureTyped("mask", dtype=torch.uint8, track_meta=False, allow_missing_keys=True),
    ]
    return Compose(steps)


class _Keep:
    """Listed labels stay, others become 0."""

    def __init__(self, labels: Sequence[int]) -> None:
        self.labels = torch.tensor(list(labels))

    def __call__(self, label: Tensor) -> Tensor:
        return torch.where(torch.isin(label, self.labels.to(label.dtype)), label, 0)


def _binary(mask: Tensor) -> Tensor:
    return mask > 0


def _drop_last_single(volume: Tensor) -> Tensor:
    return volume.squeeze(-1) if volume.ndim == 4 and volume.shape[-1] == 1 else volume
