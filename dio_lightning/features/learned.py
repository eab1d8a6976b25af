"""What every feature network shares: heads, residual start, precision."""

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dio_lightning.features.base import FeaturePyramid, average_pool
from dio_lightning.networks.blocks import Precision, autocast, channels_last, check_precision

START = 0.03
"""Size of the channels beside the image at a residual start; images are in [0, 1]."""


class FeatureNetwork(FeaturePyramid):
    """A pyramid with weights; subclasses fill `heads` (key: str of the level, last part a convolution).

    Args:
        in_channels: channels of the image.
        channels: feature channels at every level.
        levels: down-sampling factors, coarse to fine.
        residual: heads start near zero and are added to the image (averaged to the level, times a learned scale) in the
            first channels, so that training starts from image-space registration. The heads of the first channels start
            at zero; the others small and at random, because a channel that is zero in both images has no gradient.
        intensity_scale: first value of that learned scale, positive; a list has one for each channel of the image, each
            learned by itself.
        precision: "bfloat16" runs the convolutions in autocast; "float32" leaves the caller's precision as it is.

    Raises:
        ValueError: for a bad precision or scales, or if residual and channels < in_channels.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        levels: Sequence[int],
        residual: bool,
        intensity_scale: float | Sequence[float],
        precision: Precision,
    ) -> None:
        super().__init__(levels, channels)
        check_precision(precision)
        if residual and channels < in_channels:
            raise ValueError(f"A residual start needs channels >= in_channels, not {channels} < {in_channels}.")
        self.in_channels, self.residual = in_channels, residual
        self.precision: Precision = precision
        self.log_scale = nn.Parameter(_log_scale(intensity_scale, in_channels)) if residual else None
        self.heads = nn.ModuleDict()

    def extract(self, image: Tensor, levels: tuple[int, ...]) -> list[Tensor]:
        """Head outputs of the asked levels, plus the image if residual."""
        return self.started(image, levels, [average_pool(image, level) for level in levels] if self.residual else [])

    def started(self, image: Tensor, levels: tuple[int, ...], starts: Sequence[Tensor]) -> list[Tensor]:
        """Head outputs of the asked levels, plus what each level starts from, (b, in_channels, ...), if residual."""
        with autocast(image, self.precision):
            features = self.network(channels_last(image), levels)  # read several times faster by CPU convolutions
        if self.log_scale is None:
            return [features[level] for level in levels]
        return [self._add(features[level], start) for level, start in zip(levels, starts, strict=True)]

    @abstractmethod
    def network(self, image: Tensor, levels: tuple[int, ...]) -> dict[int, Tensor]:
        """Head output of each asked level."""

    def initialise(self) -> None:
        """Kaiming-uniform convolutions and zero biases; the last convolution of each head at zero if residual."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.kaiming_uniform_(module.weight, a=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for head in self.heads.values() if self.residual else ():
            last = list(head.modules())[-1]
            assert isinstance(last, nn.Conv2d | nn.Conv3d)
            with torch.no_grad():
                last.weight[: self.in_channels] = 0
                last.weight[self.in_channels :] *= START
        for parameter in self.parameters():
            if parameter.ndim > 1:
                parameter.data = channels_last(parameter.data)

    def _add(self, feature: Tensor, start: Tensor) -> Tensor:
        assert self.log_scale is not None
        scaled = start * self.log_scale.exp().view(-1, *[1] * (start.ndim - 2))
        # channels last, as features are: sums of tensors that lie differently take three times as long
        padded = F.pad(scaled.movedim(1, -1), [0, self.channels - start.shape[1]]).movedim(-1, 1)
        return feature.float() + padded


def _log_scale(scale: float | Sequence[float], channels: int) -> Tensor:
    """Logarithms of one scale, (), or of one a channel, (channels,).

    Raises:
        ValueError: if there is not one for every channel, or one is not positive.
    """
    scales = [scale] if isinstance(scale, int | float) else list(scale)
    if min(scales, default=0) <= 0 or len(scales) not in (1, channels):
        raise ValueError(f"intensity_scale must be one positive number, or {channels}, not {scale}.")
    return torch.tensor(math.log(scale) if isinstance(scale, int | float) else [math.log(x) for x in scales])
