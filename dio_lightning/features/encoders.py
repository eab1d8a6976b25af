"""Encoder-only feature networks: one independent encoder for each level, nothing shared between levels."""

from collections.abc import Sequence

from torch import Tensor, nn

from dio_lightning.features.blocks import LargeKernel, conv_norm, double_conv
from dio_lightning.features.learned import FeatureNetwork, Precision
from dio_lightning.networks.blocks import conv, max_pool


class UNetE(FeatureNetwork):
    """DIO's UNet-E: for level 2^i, i + 1 double convolutions with max-pooling between them, then one convolution.

    Args:
        in_channels: channels of the image.
        channels: feature channels at every level.
        levels: down-sampling factors, coarse to fine, at most 2^(len(widths) - 1).
        spatial_dims: 2 or 3.
        widths: channels of each scale, fine to coarse.
        residual: start from the image itself (see FeatureNetwork).
        intensity_scale: first scale of the image in a residual start, one or one a channel.
        precision: of the convolutions, "float32" or "bfloat16"; features are always float32.

    Raises:
        ValueError: if a level is deeper than the widths.
    """

    def __init__(
        self,
        in_channels: int = 1,
        channels: int = 16,
        levels: Sequence[int] = (4, 2, 1),
        spatial_dims: int = 3,
        widths: Sequence[int] = (16, 32, 64),
        residual: bool = False,
        intensity_scale: float | Sequence[float] = 1.0,
        precision: Precision = "float32",
    ) -> None:
        super().__init__(in_channels, channels, levels, residual, intensity_scale, precision)
        deepest = 2 ** (len(widths) - 1)
        if self.levels[0] > deepest:
            raise ValueError(f"{len(widths)} widths have levels up to {deepest}, not {self.levels[0]}.")
        for level in self.levels:
            parts, inputs = [], in_channels
            for width in widths[: level.bit_length()]:
                parts += [max_pool(spatial_dims)] if parts else []
                parts.append(double_conv(spatial_dims, inputs, max(width // 2, inputs), width))
                inputs = width
            self.heads[str(level)] = nn.Sequential(*parts, conv(spatial_dims, inputs, channels))
        self.initialise()

    def network(self, image: Tensor, levels: tuple[int, ...]) -> dict[int, Tensor]:
        """Output of the asked levels' encoders."""
        return {level: self.heads[str(level)](image) for level in levels}


class LKUE(FeatureNetwork):
    """DIO's LKU-E: two convolutions, then per halving a strided convolution to twice the channels and a large kernel.

    Args:
        in_channels: channels of the image.
        channels: feature channels at every level.
        levels: down-sampling factors, coarse to fine.
        spatial_dims: 2 or 3.
        width: channels of the finest scale.
        residual: start from the image itself (see FeatureNetwork).
        intensity_scale: first scale of the image in a residual start, one or one a channel.
        precision: of the convolutions, "float32" or "bfloat16"; features are always float32.
    """

    def __init__(
        self,
        in_channels: int = 1,
        channels: int = 16,
        levels: Sequence[int] = (4, 2, 1),
        spatial_dims: int = 3,
        width: int = 16,
        residual: bool = False,
        intensity_scale: float | Sequence[float] = 1.0,
        precision: Precision = "float32",
    ) -> None:
        super().__init__(in_channels, channels, levels, residual, intensity_scale, precision)
        for level in self.levels:
            parts = [conv_norm(spatial_dims, in_channels, width), conv_norm(spatial_dims, width, width)]
            outputs = width
            for _ in range(level.bit_length() - 1):
                parts += [
                    conv_norm(spatial_dims, outputs, 2 * outputs, stride=2),
                    LargeKernel(spatial_dims, 2 * outputs),
                ]
                outputs *= 2
            self.heads[str(level)] = nn.Sequential(*parts, conv(spatial_dims, outputs, channels, bias=False))
        self.initialise()

    def network(self, image: Tensor, levels: tuple[int, ...]) -> dict[int, Tensor]:
        """Output of the asked levels' encoders."""
        return {level: self.heads[str(level)](image) for level in levels}
