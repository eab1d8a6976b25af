"""From volumes to tensors, with MONAI's dictionary transforms.

Images keep the storage order of their axes: displacements, landmarks and Learn2Reg's files count in array axes, so
reorienting would change what a displacement means. `affine` says where the axes point.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms.compose import Compose
from monai.transforms.intensity.dictionary import (
    MaskIntensityd,
    ScaleIntensityd,
    ScaleIntensityRanged,
)
from monai.transforms.transform import Transform
from monai.transforms.utility.dictionary import EnsureTyped, Lambdad
from torch import Tensor

from data_modules.checking.volumes import CaseVolumes
from dio_lightning.intensities import between, limits

Normalise = Literal["max", "percentile", "window", "none"]


def tensors(volumes: CaseVolumes) -> dict[str, MetaTensor]:
    """A case that was read as MONAI's transforms take it: (1, *s) float32, affine float64 in RAS millimetres."""
    arrays = {"image": volumes.image, "label": volumes.label, "mask": volumes.inside}
    affine = torch.from_numpy(volumes.headers.image.affine)
    return {
        kind: MetaTensor(torch.from_numpy(array)[None].float(), affine=affine.clone())
        for kind, array in arrays.items()
        if array is not None
    }


def preparing(
    normalise: Normalise,
    clip: Sequence[float] | None,
    mask_images: bool = False,
    extra: Sequence[Transform] = (),
) -> Compose:
    """Checked volumes to what training sees: image in [0, 1] float32, label int16, mask uint8, spacing and affine.

    `extra` comes first: MONAI's dictionary transforms of the keys image, label and mask, which may change the grid.
    `max` maps the least and largest value to 0 and 1, `percentile` those of 0.5 % and 99.5 % or, where these are equal,
    the least and largest, `window` the two values of `clip`; `none` leaves intensities. `max` and `percentile` make 0
    of an image that `extra` left constant. `clip` limits intensities before. With `mask_images` the image is 0 outside
    its mask in the end.
    """
    steps: list = [*extra, _Grid()]
    if normalise == "window" and clip is not None:
        steps += [ScaleIntensityRanged("image", clip[0], clip[1], 0.0, 1.0, clip=True)]
    elif clip is not None:
        steps += [ScaleIntensityRanged("image", clip[0], clip[1], clip[0], clip[1], clip=True)]
    if normalise == "max":
        steps.append(ScaleIntensityd("image", minv=0.0, maxv=1.0))
    elif normalise == "percentile":
        steps.append(_Percentiles())
    if mask_images:
        steps.append(MaskIntensityd("image", mask_key="mask"))
    steps += [
        Lambdad("mask", _binary, allow_missing_keys=True),
        EnsureTyped("image", dtype=torch.float32, track_meta=False),
        EnsureTyped("label", dtype=torch.int16, track_meta=False, allow_missing_keys=True),
        EnsureTyped("mask", dtype=torch.uint8, track_meta=False, allow_missing_keys=True),
    ]
    return Compose(steps)


def carried(points: Tensor, stored: Tensor, prepared: Tensor) -> Tensor:
    """Points (d, n) in voxels of one grid as voxels of another, both given by their affines (4, 4) float64."""
    if torch.equal(stored, prepared):
        return points
    d, change = len(points), torch.linalg.solve(prepared, stored)
    return (change[:d, :d] @ points.double() + change[:d, 3:]).to(points.dtype)


class _Grid(Transform):
    """Adds where the image lies: spacing (d,) in mm, affine (4, 4) float64."""

    def __call__(self, data: dict[str, MetaTensor]) -> dict[str, Tensor]:
        d, stored = data["image"].ndim - 1, torch.as_tensor(data["image"].affine, dtype=torch.float64)
        affine = torch.eye(4, dtype=torch.float64)
        # MONAI's spatial transforms leave (3, 3) for an image of two axes
        rows = len(stored) - 1
        affine[:rows, :rows], affine[:rows, 3] = stored[:rows, :rows], stored[:rows, rows]
        return {**data, "spacing": affine[:3, :d].norm(dim=0).float(), "affine": affine}


class _Percentiles(Transform):
    """Intensities to [0, 1], whatever share of the voxels has any (`intensities.limits`)."""

    def __call__(self, data: dict[str, MetaTensor]) -> dict[str, Tensor]:
        image = data["image"]
        return {**data, "image": between(image, *limits(image.detach().cpu().numpy()))}


def _binary(mask: Tensor) -> Tensor:
    return mask > 0
