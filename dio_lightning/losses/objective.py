"""The training objective: named, weighted terms."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dio_lightning.fields import downsample, resample, resize, warp
from dio_lightning.pair import Pair


class Objective(nn.Module):
    """Weighted sum of an image, a label, a landmark and a regularity term; terms that are None are left out.

    Args:
        image: (warped, fixed) to scalar, such as LNCC.
        image_weight: its weight.
        label: (fixed_label, moving_label, u) to scalar, such as Dice.
        label_weight: its weight.
        regularity: u to scalar, such as Diffusion.
        regularity_weight: its weight.
        landmarks: (u, fixed_points, moving_points, affine or spacing) to scalar, such as Landmarks.
        landmarks_weight: its weight.

    Raises:
        ValueError: if there is no term.
    """

    def __init__(
        self,
        image: nn.Module | None = None,
        image_weight: float = 1.0,
        label: nn.Module | None = None,
        label_weight: float = 1.0,
        regularity: nn.Module | None = None,
        regularity_weight: float = 0.0,
        landmarks: nn.Module | None = None,
        landmarks_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if image is None and label is None and landmarks is None and regularity is None:
            raise ValueError("An Objective needs at least one of image, label, landmarks and regularity.")
        self.image, self.label, self.landmarks, self.regularity = image, label, landmarks, regularity
        self.weights = {
            "image": image_weight,
            "label": label_weight,
            "landmarks": landmarks_weight,
            "regularity": regularity_weight,
        }

    def forward(self, pair: Pair, u: Float[Tensor, "b d *s"]) -> dict[str, Tensor]:
        """The terms by name and their weighted sum, "loss"; u in voxels of the pair's grid.

        Raises:
            ValueError: if there is a label or landmark term but the pair has no labels or landmarks.
        """
        terms: dict[str, Tensor] = {}
        if self.image is not None:
            terms["image"] = self.image(warp(pair["moving"], u), pair["fixed"])
        if self.label is not None:
            if "fixed_label" not in pair or "moving_label" not in pair:
                raise ValueError("The objective has a label term, but the pair has no fixed_label and moving_label.")
            terms["label"] = self.label(pair["fixed_label"], pair["moving_label"], u)
        if self.landmarks is not None:
            if "fixed_points" not in pair or "moving_points" not in pair:
                raise ValueError("The objective has a landmark term, but the pair has no fixed_points, moving_points.")
            points = pair["fixed_points"], pair["moving_points"]
            terms["landmarks"] = self.landmarks(u, *points, pair.get("affine", pair.get("spacing")))
        if self.regularity is not None:
            terms["regularity"] = self.regularity(u)
        loss = torch.stack([self.weights[name] * value for name, value in terms.items()]).sum()
        return {"loss": loss, **terms}


def at_size(pair: Pair, size: Sequence[int]) -> Pair:
    """The pair on another grid of the same extent: images smoothed and resampled, labels and masks by nearest voxel.

    Landmarks, spacing, affine and displacement follow the grid.
    """
    old = pair["fixed"].shape[2:]
    if tuple(size) == tuple(old):
        return pair
    ratio = [(n - 1) / (o - 1) if n > 1 and o > 1 else 1.0 for n, o in zip(size, old, strict=True)]
    scale = pair["fixed"].new_tensor(ratio)
    small = pair.copy()
    small["fixed"], small["moving"] = downsample(pair["fixed"], size), downsample(pair["moving"], size)
    for key in ("fixed_label", "moving_label", "fixed_mask", "moving_mask"):
        if (integers := pair.get(key)) is not None:
            small[key] = resample(integers, size, mode="nearest")
    for key in ("fixed_points", "moving_points"):
        if (points := pair.get(key)) is not None:
            small[key] = points * scale[:, None]
    if (spacing := pair.get("spacing")) is not None:
        small["spacing"] = spacing / scale
    if (affine := pair.get("affine")) is not None:
        columns = [1 / r for r in ratio] + [1.0] * (4 - len(ratio))
        small["affine"] = affine * affine.new_tensor(columns)
    if (displacement := pair.get("displacement")) is not None:
        small["displacement"] = resize(displacement, size)
    return small
