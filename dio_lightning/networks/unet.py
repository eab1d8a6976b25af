"""VoxelMorph's U-Net, which VoxelMorph, RIIR and DEQReg share."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dio_lightning.networks.blocks import (
    Precision,
    autocast,
    channels_last,
    check_precision,
    conv,
    conv_leaky,
    max_pool,
)
from dio_lightning.networks.joining import join


class VxmUNet(nn.Module):
    """Images to a field: VoxelMorph's U-Net (Balakrishnan et al., IEEE TMI 38, 2019, with the later widths).

    Convolutions of 3^d and LeakyReLU 0.2, max-pooling down, nearest neighbours up; no normalisation, so that one
    sample never depends on another and the map is the same in training and in use. The last convolution starts at
    N(0, 1e-5). Any size is taken: halves round up. MONAI's VoxelMorphUNet computes the same where 16 divides the size
    (a test holds the two together); it takes no other size, and no layer of it can be given a memory (`RIIR`).

    Args:
        in_channels: channels of the input.
        spatial_dims: 2 or 3.
        out_channels: channels of the field; one an axis by default.
        encoder: channels of each scale, fine to coarse.
        decoder: channels of each scale, coarse to fine; as many.
        final: channels of the convolutions at full size.
        precision: of the convolutions, "float32" or "bfloat16"; the field is always float32.

    Raises:
        ValueError: if encoder and decoder differ in length, or for another precision.
    """

    repeats: ClassVar[bool] = True

    def __init__(
        self,
        in_channels: int,
        spatial_dims: int = 3,
        out_channels: int | None = None,
        encoder: Sequence[int] = (16, 32, 32, 32),
        decoder: Sequence[int] = (32, 32, 32, 32),
        final: Sequence[int] = (32, 16, 16),
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        if len(encoder) != len(decoder) or not final:
            raise ValueError(f"encoder {list(encoder)} and decoder {list(decoder)} differ in length, or final is empty")
        check_precision(precision)
        self.in_channels = in_channels
        self.precision: Precision = precision
        inputs = [in_channels, *encoder]
        self.pool = max_pool(spatial_dims)
        self.encoder = nn.ModuleList(conv_leaky(spatial_dims, a, b) for a, b in zip(inputs, encoder, strict=False))
        joined = [encoder[-1], *(a + b for a, b in zip(decoder, reversed(encoder), strict=True))]
        self.decoder = nn.ModuleList(conv_leaky(spatial_dims, a, b) for a, b in zip(joined, decoder, strict=False))
        widths = [joined[-1], *final]
        self.final = nn.Sequential(*(conv_leaky(spatial_dims, a, b) for a, b in zip(widths, final, strict=False)))
        self.head = conv(spatial_dims, final[-1], out_channels or spatial_dims)
        self.bottom_channels, self.last_channels = decoder[0], final[-1]
        self._initialise()
        for parameter in self.parameters():
            if parameter.ndim > 1:
                parameter.data = channels_last(parameter.data)

    def forward(self, x: Float[Tensor, "b c *s"]) -> Float[Tensor, "b k *s"]:
        """The field of an input, float32."""
        with autocast(x, self.precision):
            bottom, skips = self.encode(x)
            field = self.head(self.decode(bottom, skips))
        return field.float()

    def encode(self, x: Float[Tensor, "b c *s"]) -> tuple[Tensor, list[Tensor]]:
        """The coarsest features (b, bottom_channels, *t) and the skips, fine to coarse."""
        skips, x = [], channels_last(x)
        for block in self.encoder:
            skips.append(block(x))
            with torch.autocast(x.device.type, enabled=False):  # which pools in float32, to the same values
                x = self.pool(skips[-1])
        return self.decoder[0](x), skips

    def decode(self, bottom: Tensor, skips: Sequence[Tensor]) -> Tensor:
        """The last features (b, last_channels, *s), to which `head` is applied."""
        x = bottom
        for skip, block in zip(reversed(skips), [*self.decoder[1:], self.final], strict=True):
            x = join(block, x, skip)
        return x

    def _initialise(self) -> None:
        assert isinstance(self.head, nn.Conv2d | nn.Conv3d)
        nn.init.normal_(self.head.weight, std=1e-5)
        if self.head.bias is not None:
            nn.init.zeros_(self.head.bias)
