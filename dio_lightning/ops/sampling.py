"""Linear interpolation, twice differentiable: loops on the CPU, kernels on CUDA (`ops.choice`), or PyTorch's own.

The first derivative is an operator too; the second is plain PyTorch on every device (`sampling_reference`).
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dio_lightning.ops import sampling_reference as reference
from dio_lightning.ops.choice import backward_alone, immediate, implementation

LARGEST = 2**31 - 1
"""Voxels of the largest volume that is taken by compiled loops."""


def interpolate(image: Tensor, points: Tensor, padding: str = "border", relative: bool = False) -> Tensor:
    """Image (b, c, *s) at points (b, d, *t), in voxels of the image, linearly: (b, c, *t); twice differentiable.

    With `relative` the points are displacements of the voxels of their own grid, *t. Where a point is not finite there
    is NaN.
    """
    backward_alone("interpolation", image, points)
    if padding == "zeros" and 1 in image.shape[2:]:
        # `grid_sample` has no coordinate along an axis of one voxel; beside a second one, of zeros, it has
        image = F.pad(image, [pad for extent in reversed(image.shape[2:]) for pad in (0, int(extent == 1))])
    if torch.is_grad_enabled() and (image.requires_grad or points.requires_grad):
        return _Interpolate.apply(image, points, padding, relative)
    if immediate():
        return _computed(image, points, padding, relative)
    return torch.ops.dio.interpolate(image, points, padding, relative)


def _plain(image: Tensor, points: Tensor, padding: str, relative: bool) -> Tensor:
    return reference.native(image, reference.absolute(points) if relative else points, "bilinear", padding)


def _plain_backward(
    gradient: Tensor, image: Tensor, points: Tensor, padding: str, relative: bool, needs: list[bool]
) -> tuple[Tensor, Tensor]:
    where = reference.absolute(points) if relative else points
    of_image, of_points = reference.interpolate_backward(gradient, image, where, padding, (needs[0], needs[1]))
    return of_image if needs[0] else image.new_empty(0), of_points if needs[1] else points.new_empty(0)


def _computed(image: Tensor, points: Tensor, padding: str, relative: bool) -> Tensor:
    kernels = _kernels(image)
    return (_plain if kernels is None else kernels.interpolate)(image, points, padding, relative)


@torch.library.custom_op("dio::interpolate", mutates_args=())
def _interpolate(image: Tensor, points: Tensor, padding: str, relative: bool) -> Tensor:
    return _computed(image, points, padding, relative)


@torch.library.custom_op("dio::interpolate_backward", mutates_args=())
def _interpolate_backward(
    gradient: Tensor, image: Tensor, points: Tensor, padding: str, relative: bool, needs: list[bool]
) -> tuple[Tensor, Tensor]:
    kernels = _kernels(image)
    return (_plain_backward if kernels is None else kernels.backward)(gradient, image, points, padding, relative, needs)


def _kernels(image: Tensor) -> ModuleType | None:
    """Loops on the CPU count the voxels of a volume in 32 bits."""
    if image.device.type == "cpu" and image.shape[2:].numel() > LARGEST:
        return None
    return implementation("sampling", image)


@_interpolate.register_fake
def _interpolate_fake(image: Tensor, points: Tensor, padding: str, relative: bool) -> Tensor:
    return image.new_empty(len(points), image.shape[1], *points.shape[2:])


@_interpolate_backward.register_fake
def _interpolate_backward_fake(
    gradient: Tensor, image: Tensor, points: Tensor, padding: str, relative: bool, needs: list[bool]
) -> tuple[Tensor, Tensor]:
    return image.new_empty(image.shape if needs[0] else 0), points.new_empty(points.shape if needs[1] else 0)


class _Interpolate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, points: Tensor, padding: str, relative: bool) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(image, points)
        ctx.settings = padding, relative
        return torch.ops.dio.interpolate(image, points, padding, relative)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:  # noqa: ANN401
        image, points = ctx.saved_tensors
        needs = list(ctx.needs_input_grad[:2])
        return *_InterpolateBackward.apply(gradients[0], image, points, *ctx.settings, needs), None, None


class _InterpolateBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        gradient: Tensor,
        image: Tensor,
        points: Tensor,
        padding: str,
        relative: bool,
        needs: list[bool],
    ) -> tuple[Tensor | None, Tensor | None]:
        ctx.save_for_backward(gradient, image, points)
        ctx.settings = padding, relative
        parts = torch.ops.dio.interpolate_backward(gradient.contiguous(), image, points, padding, relative, needs)
        return parts[0] if needs[0] else None, parts[1] if needs[1] else None

    @staticmethod
    @torch.autograd.function.once_differentiable
    # once_differentiable has no types of its own
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: ANN401  # pyright: ignore[reportIncompatibleMethodOverride]
        gradient, image, points = ctx.saved_tensors
        padding, relative = ctx.settings
        where = reference.absolute(points) if relative else points
        of_points = torch.zeros_like(points) if gradients[1] is None else gradients[1]
        parts = reference.interpolate_double_backward(gradient, image, where, gradients[0], of_points, padding)
        return *parts, None, None, None
