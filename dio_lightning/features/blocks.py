"""Blocks of the feature networks, in 2-D and 3-D."""

import torch
from torch import Tensor, nn

from dio_lightning import ops
from dio_lightning.networks import joining
from dio_lightning.networks.blocks import channels_last, conv, too_small
from dio_lightning.networks.joining import plain, through, two_and_more


class GroupNorm(nn.GroupNorm):
    """Group normalisation; a group of one value becomes its bias, where torch's class refuses it."""

    def forward(self, input: Tensor) -> Tensor:
        """Same shape as the input; what follows an image in training has its channels last."""
        y = ops.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)
        return y if input.requires_grad or not torch.is_grad_enabled() else channels_last(y)


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation with 8 groups, or 1 if 8 does not divide the channels."""
    return GroupNorm(8 if channels % 8 == 0 else 1, channels)


class InstanceNorm(nn.Module):
    """Instance normalisation without weights; a single voxel becomes 0, where torch's class refuses it."""

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as x."""
        return ops.group_norm(x, x.shape[1])


def norm_conv(spatial_dims: int, inputs: int, outputs: int) -> nn.Sequential:
    """GroupNorm, 3^d convolution without bias, LeakyReLU 0.01."""
    return nn.Sequential(
        group_norm(inputs), conv(spatial_dims, inputs, outputs, bias=False), nn.LeakyReLU(0.01, inplace=True)
    )


def double_conv(spatial_dims: int, inputs: int, middle: int, outputs: int) -> nn.Sequential:
    """Two norm_conv."""
    return nn.Sequential(norm_conv(spatial_dims, inputs, middle), norm_conv(spatial_dims, middle, outputs))


def of_image(block: nn.Module, image: Tensor) -> Tensor:
    """A `double_conv` of an image to which no slope goes.

    In training the weights of its first normalisation are moved into those of the convolution behind it, its biases
    beside a channel of ones: as they stand, their slopes take that of the whole image.
    """
    norm, layer, *rest = two_and_more(block)
    if not (isinstance(norm, nn.GroupNorm) and norm.affine and plain(layer)):
        return block(image)
    small = image[0, 0].numel() < joining.LEAST or too_small(layer, image)
    if small or image.requires_grad or not torch.is_grad_enabled():
        return block(image)
    weight, each = layer.weight, (-1, *[1] * (image.ndim - 2))
    biases = (weight * norm.bias.view(each)).sum(1, keepdim=True)
    folded = torch.cat([weight * norm.weight.view(each), biases], 1)
    x = ops.group_norm(image, norm.num_groups, eps=norm.eps)
    x = channels_last(torch.cat([x, torch.ones_like(x[:, :1])], 1))
    return through(rest, layer._conv_forward(x, folded, None))


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
