"""Convolutional memory, and a U-Net that has it."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dio_lightning.networks.blocks import autocast, channels_last, conv
from dio_lightning.networks.unet import VxmUNet

Memory = tuple[Tensor | None, Tensor | None]
"""Hidden states at the bottleneck and before the head; None is zero."""


class ConvGRU(nn.Module):
    """Gated recurrent unit whose products are convolutions (Ballas et al., ICLR 2016).

    z, r = σ(W x + U h + b), h̃ = tanh(W' x + U' (r h) + b'), h ← (1 - z) h + z h̃; the input x has as many channels as h.
    torch.nn.GRUCell has 1 - z for our z and takes r (U' h + c) for U' (r h).

    Args:
        spatial_dims: 2 or 3.
        channels: of input and state.
        kernel: odd edge length of the convolutions.
    """

    def __init__(self, spatial_dims: int, channels: int, kernel: int = 3) -> None:
        super().__init__()
        self.of_input = conv(spatial_dims, channels, 3 * channels, kernel)
        self.of_state = conv(spatial_dims, channels, 2 * channels, kernel, bias=False)
        self.of_reset = conv(spatial_dims, channels, channels, kernel, bias=False)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                parameter.data = channels_last(parameter.data)

    def forward(self, x: Float[Tensor, "b c *s"], h: Float[Tensor, "b c *s"] | None) -> Float[Tensor, "b c *s"]:
        """The next state, in the precision of the convolutions; None is the zero state, and saves its products."""
        z, r, candidate = self.of_input(x).chunk(3, 1)
        if h is None:
            return torch.sigmoid(z) * torch.tanh(candidate)
        z_state, r_state = self.of_state(h).chunk(2, 1)
        r = torch.sigmoid(r + r_state)
        return torch.lerp(h, torch.tanh(candidate + self.of_reset(r * h)), torch.sigmoid(z + z_state))


class RecurrentUNet(nn.Module):
    """A U-Net with ConvGRUs in place of its coarsest and its last features: (input, memory) to (field, memory).

    Args:
        network: the U-Net; memory is as wide as its `bottom_channels` and `last_channels`.
    """

    def __init__(self, network: VxmUNet) -> None:
        super().__init__()
        d = next(network.parameters()).ndim - 2
        self.network = network
        self.bottom, self.last = ConvGRU(d, network.bottom_channels), ConvGRU(d, network.last_channels)

    def forward(self, x: Float[Tensor, "b c *s"], memory: Memory = (None, None)) -> tuple[Tensor, Memory]:
        """The field (b, k, *s) in the precision of x, and the memory after it."""
        with autocast(x, self.network.precision):
            bottom, skips = self.network.encode(x)
            bottom = self.bottom(bottom, memory[0])
            last = self.last(self.network.decode(bottom, skips), memory[1])
            field = self.network.head(last)
        return field.to(x.dtype), (bottom, last)
