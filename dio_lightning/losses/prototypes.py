"""Features that tell structures apart: each voxel is nearest to the mean of its own structure in the other image."""

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from dio_lightning.losses.distance import variance

Features = Float[Tensor, "b c *s"]
Label = Integer[Tensor, "b 1 *s"]


class Prototypes(nn.Module):
    """Cross-entropy of each image's voxels, classified by the prototypes of the other (Snell et al., NeurIPS 2017).

    A structure's prototype is the mean of its features in one image; a voxel of the other image belongs to structure k
    with the softmax over k of -‖F - μ_k‖² / (τ s), s the variance of the features, the mean of channels and images. It
    is the distance that `FeatureDistance` descends on, so nothing is learned beside the features, and their scale does
    not matter. Structures count alike, whatever their size, and the two directions too; structures that only one image
    has, and no others, are left out. Background is a structure.

    Args:
        temperature: τ.
        weight: of the term in the loss of `DIO`.
        voxels: how many voxels of an image are classified, drawn at random anew each time; all of a smaller image.
            Prototypes are means over all of them.

    Raises:
        ValueError: if the temperature or the number of voxels is not positive or the weight is negative.
    """

    def __init__(self, temperature: float = 1.0, weight: float = 1.0, voxels: int = 32768) -> None:
        super().__init__()
        if temperature <= 0 or weight < 0 or voxels < 1:
            raise ValueError(
                f"temperature is {temperature}, weight {weight} and voxels {voxels}, expected a positive number, one "
                "of at least 0 and a count of at least 1"
            )
        self.temperature, self.weight, self.voxels = temperature, weight, voxels

    def forward(self, fixed: Features, moving: Features, fixed_label: Label, moving_label: Label) -> Float[Tensor, ""]:
        """The cross-entropy in nats, the mean over structures, directions and samples; 0 without a shared label."""
        with torch.autocast(fixed.device.type, enabled=False):  # a matrix product would keep three digits
            scale = self.temperature * (variance(fixed) + variance(moving)) / 2
            flat = fixed.flatten(2), moving.flatten(2), fixed_label.flatten(1).long(), moving_label.flatten(1).long()
            both = [
                (self._entropy(f, a, m, b, s) + self._entropy(m, b, f, a, s)) / 2
                for f, m, a, b, s in zip(*flat, scale, strict=True)
            ]
        return torch.stack(both).mean()

    def _entropy(self, x: Tensor, label: Tensor, other: Tensor, other_label: Tensor, scale: Tensor) -> Tensor:
        """Cross-entropy of x (c, n) under prototypes of the other features (c, m), the mean over shared structures."""
        count = 1 + int(torch.maximum(label.max(), other_label.max()))
        others = torch.bincount(other_label, minlength=count)
        prototypes = x.new_zeros(count, len(x)).index_add(0, other_label, other.T) / others.clamp(min=1)[:, None]
        if len(label) > self.voxels:
            drawn = torch.randperm(len(label))[: self.voxels].to(x.device)
            x, label = x[:, drawn], label[drawn]
        own = (others > 0)[label]
        x, label = x[:, own], label[own]
        # ‖x‖² is the same for every structure, and the softmax does not see it
        logits = (2 * prototypes @ x - prototypes.square().sum(1)[:, None]) / scale
        logits = logits.masked_fill((others == 0)[:, None], -torch.inf)
        values = torch.logsumexp(logits, 0) - logits.gather(0, label[None])[0]
        voxels = torch.bincount(label, minlength=count)
        sums = x.new_zeros(count).index_add(0, label, values)
        return (sums / voxels.clamp(min=1)).sum() / (voxels > 0).sum().clamp(min=1)
