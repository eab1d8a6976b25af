"""Large-kernel U-Net with a feature head at each level."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dio_lightning.features.blocks import LargeKernel, conv_norm
from dio_lightning.features.learned import FeatureNetwork, Precision
from dio_lightning.networks.blocks import conv


class LKU(FeatureNetwork):
    """DIO's LKU: strided convolutions and large-kernel blocks down, linear up, heads on the concatenated tensors.

    With `width` c the encoder has c, 2c, 4c, 8c, 8c channels, the decoder 2c, 2c, 2c, 4c (fine to coarse).

    Args:
        in_channels: channels of the image.
        channels: feature channels at every level.
        levels: down-sampling factors, coarse to fine, at most 2^(scales - 1).
        spatial_dims: 2 or 3.
        width: channels of the finest scale.
        scales: number of scales.
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
        width: int = 16,
        scales: int = 5,
        residual: bool = False,
        intensity_scale: float | Sequence[float] = 1.0,
        precision: Precision = "float32",
    ) -> None:
        super().__init__(in_channels, channels, levels, residual, intensity_scale, precision)
        self.deepest = 2 ** (scales - 1)
        if self.levels[0] > self.deepest:
            raise ValueError(f"{scales} scales have levels up to {self.deepest}, not {self.levels[0]}.")
        d, down = spatial_dims, [width * min(2**i, 8) for i in range(scales)]
        deeper = (nn.Sequential(conv_norm(d, a, b, stride=2), LargeKernel(d, b)) for a, b in pairwise(down))
        self.encoder = nn.ModuleList([_two_convs(d, in_channels, width), *deeper])
        self.up, self.decoder = nn.ModuleDict(), nn.ModuleDict()
        below, inputs = down[-1], {self.deepest: down[-1]}
        for i in range(scales - 2, self.levels[-1].bit_length() - 2, -1):
            inputs[2**i] = below + down[i]
            self.up[str(2**i)] = nn.Sequential(conv(d, below, below), nn.PReLU())
            below = width * (4 if i == 3 else 2)
            if 2**i > self.levels[-1]:
                self.decoder[str(2**i)] = _two_convs(d, inputs[2**i], below)
        for level in self.levels:
            last = conv(d, inputs[level] if level > 1 else below, channels, bias=False)
            self.heads[str(level)] = last if level > 1 else nn.Sequential(_two_convs(d, inputs[1], below), last)
        self.mode = {2: "bilinear", 3: "trilinear"}[spatial_dims]
        self.initialise()

    def network(self, image: Tensor, levels: tuple[int, ...]) -> dict[int, Tensor]:
        """Head output of each asked level; the decoder stops at the finest of them."""
        skips = [self.encoder[0](image)]
        for block in self.encoder[1:]:
            skips.append(block(skips[-1]))
        x, level, features = skips.pop(), self.deepest, {}
        while True:
            if level in levels:
                features[level] = self.heads[str(level)](x)
            if level == levels[-1]:
                return features
            if level < self.deepest:
                x = self.decoder[str(level)](x)
            level //= 2
            skip = skips.pop()
            above = F.interpolate(x, skip.shape[2:], mode=self.mode, align_corners=True)
            x = torch.cat([skip, self.up[str(level)](above)], 1)


def _two_convs(spatial_dims: int, inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(conv_norm(spatial_dims, inputs, outputs), conv_norm(spatial_dims, outputs, outputs))
