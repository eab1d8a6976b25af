"""U-Net with a feature head at each level."""

from collections.abc import Sequence

from torch import Tensor, nn

from dio_lightning.features.blocks import double_conv, norm_conv, of_image
from dio_lightning.features.learned import FeatureNetwork, Precision
from dio_lightning.networks.blocks import conv, max_pool
from dio_lightning.networks.joining import join_normalised


class UNet(FeatureNetwork):
    """DIO's U-Net: GroupNorm, convolution, LeakyReLU; max-pooling down, nearest up, heads on the decoder.

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
        ValueError: if a level is deeper than the network.
    """

    def __init__(
        self,
        in_channels: int = 1,
        channels: int = 16,
        levels: Sequence[int] = (4, 2, 1),
        spatial_dims: int = 3,
        widths: Sequence[int] = (16, 16, 32, 32, 64),
        residual: bool = False,
        intensity_scale: float | Sequence[float] = 1.0,
        precision: Precision = "float32",
    ) -> None:
        super().__init__(in_channels, channels, levels, residual, intensity_scale, precision)
        self.deepest = 2 ** (len(widths) - 1)
        if self.levels[0] > self.deepest:
            raise ValueError(f"{len(widths)} scales have levels up to {self.deepest}, not {self.levels[0]}.")
        inputs, last = [in_channels, *widths], len(widths) - 1
        self.pool = max_pool(spatial_dims)
        self.encoder = nn.ModuleList(
            double_conv(spatial_dims, a, max(b // 2, a), b) for a, b in zip(inputs, widths, strict=False)
        )
        self.decoder = nn.ModuleDict(
            {str(2**i): double_conv(spatial_dims, widths[i] + widths[i + 1], widths[i], widths[i])
             for i in range(last) if 2**i >= self.levels[-1]}
        )  # fmt: skip
        for level in self.levels:
            width = widths[level.bit_length() - 1]
            self.heads[str(level)] = nn.Sequential(
                norm_conv(spatial_dims, width, channels), conv(spatial_dims, channels, channels)
            )
        self.initialise()

    def network(self, image: Tensor, levels: tuple[int, ...]) -> dict[int, Tensor]:
        """Head output of each asked level; the decoder stops at the finest of them."""
        skips = [of_image(self.encoder[0], image)]
        for block in self.encoder[1:]:
            skips.append(block(self.pool(skips[-1])))
        x, level, features = skips.pop(), self.deepest, {}
        while True:
            if level in levels:
                features[level] = self.heads[str(level)](x)
            if level == levels[-1]:
                return features
            level //= 2
            x = join_normalised(self.decoder[str(level)], skips.pop(), x)
