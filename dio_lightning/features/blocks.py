"""Blocks of the feature networks, in 2-D and 3-D."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dio_lightning.networks.blocks import channels_last, conv

MANY = 2**19
"""Values of a group from which on torch's kernel for CUDA, one block of threads a group, waits for itself."""


def normalised(
    x: Float[Tensor, "b c *s"],
    groups: int,
    weight: Float[Tensor, " c"] | None = None,
    bias: Float[Tensor, " c"] | None = None,
    eps: float = 1e-5,
) -> Float[Tensor, "b c *s"]:
    """`torch.group_norm`, from the moments of channels, which a GPU sums by all its threads."""
    kept = x.dtype if x.dtype == torch.float64 else torch.float32
    x = x.to(kept)
    of_channel, means = torch.var_mean(x.flatten(2), 2, correction=0)
    means, of_channel = (y.unflatten(1, (groups, -1)) for y in (means, of_channel))
    mean = means.mean(2, keepdim=True)
    variance = (of_channel + (means - mean).square()).mean(2, keepdim=True)
    scale = (variance + eps).rsqrt().expand_as(means).flatten(1)
    scale = scale if weight is None else scale * weight.to(kept)
    shift = -scale * mean.expand_as(means).flatten(1)
    shift = shift if bias is None else shift + bias.to(kept)
    scale, shift = (y[(..., *[None] * (x.ndim - 2))] for y in (scale, shift))
    return torch.addcmul(shift, x, scale)


def _slow(x: Tensor, groups: int) -> bool:
    return x.is_cuda and x[0].numel() // groups >= MANY


class GroupNorm(nn.GroupNorm):
    """Group normalisation; a group of one value becomes its bias, where torch's class refuses it."""

    def forward(self, input: Tensor) -> Tensor:
        """Same shape as the input."""
        if _slow(input, self.num_groups):
            return normalised(input, self.num_groups, self.weight, self.bias, self.eps)
        if input.requires_grad or not torch.is_grad_enabled():
            return torch.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)
        # torch 2.13's backward ends the process on CPUs for channels-last inputs that need no gradient
        return channels_last(torch.group_norm(input.contiguous(), self.num_groups, self.weight, self.bias, self.eps))


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation with 8 groups, or 1 if 8 does not divide the channels."""
    return GroupNorm(8 if channels % 8 == 0 else 1, channels)


class InstanceNorm(nn.Module):
    """Instance normalisation without weights; a single voxel becomes 0, where torch's class refuses it."""

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as x."""
        return normalised(x, x.shape[1]) if _slow(x, x.shape[1]) else torch.group_norm(x, x.shape[1])


def norm_conv(spatial_dims: int, inputs: int, outputs: int) -> nn.Sequential:
    """GroupNorm, 3^d convolution without bias, LeakyReLU 0.01."""
    return nn.Sequential(
        group_norm(inputs), conv(spatial_dims, inputs, outputs, bias=False), nn.LeakyReLU(0.01, inplace=True)
    )


def double_conv(spatial_dims: int, inputs: int, middle: int, outputs: int) -> nn.Sequential:
    """Two norm_conv."""
    return nn.Sequential(norm_conv(spatial_dims, inputs, middle), norm_conv(spatial_dims, middle, outputs))


def conv_norm(spatial_dims: int, inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """3^d convolution, instance normalisation, PReLU."""
    return nn.Sequential(conv(spatial_dims, inputs, outputs, stride=stride), InstanceNorm(), nn.PReLU())


class LargeKernel(nn.Module):
    """Kernels of 1, 3 and 5 voxels and the identity in parallel, summed, then PReLU (LKU-Net, Jia et al. 2022)."""

    def __init__(self, spatial_dims: int, channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(conv(spatial_dims, channels, channels, kernel), InstanceNorm()) for kernel in (1, 3, 5)
        )
        self.activation = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as x."""
        total = x
        for branch in self.branches:
            total = total + branch(x)
        return self.activation(total)
