"""Sampling and resampling; the only place where a coordinate convention is decided.

A displacement u is (b, d, *s) in voxels of its own grid, channel i along array axis i. Voxel 0 and voxel S - 1 of an
axis are its two ends on every grid (align_corners=True), so changing the grid maps S - 1 to s - 1.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from dio_lightning.fields.smoothing import gaussian_smooth
from dio_lightning.ops import sampling


def identity(size: Sequence[int], like: Tensor) -> Float[Tensor, "1 d *s"]:
    """Voxel coordinates of a grid, with the dtype and device of `like`."""
    axes = [torch.arange(extent, dtype=like.dtype, device=like.device) for extent in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


def sample(
    image: Shaped[Tensor, "b c *s"],
    points: Float[Tensor, "#b d *t"],
    mode: str = "linear",
    padding: str = "border",
) -> Shaped[Tensor, "b c *t"]:
    """Image at points in voxels; `linear` (twice differentiable) or `nearest` (any dtype, no gradient).

    Outside the image it is the nearest border value (`border`) or zero (`zeros`).

    Raises:
        ValueError: for another mode or padding, or points whose channels are not the image's dimensions.
    """
    if mode not in ("linear", "nearest") or padding not in ("border", "zeros"):
        raise ValueError(
            f"cannot sample with mode={mode!r}, padding={padding!r}: expected linear|nearest, border|zeros"
        )
    d = image.ndim - 2
    if points.shape[1] != d:
        raise ValueError(f"points have {points.shape[1]} channels, expected {d}, the dimensions of the image")
    points = points.expand(len(image), *points.shape[1:])
    flat = points.reshape(*points.shape[:2], *[1] * (d - 1), -1) if points.ndim != d + 2 else points
    if mode == "linear":
        values = sampling.interpolate(image, flat, padding)
    else:
        values = sampling.native(image.to(points.dtype), flat, "nearest", padding).to(image.dtype)
    return values.reshape(*image.shape[:2], *points.shape[2:])


def warp(
    image: Shaped[Tensor, "b c *s"], u: Float[Tensor, "b d *t"], mode: str = "linear", padding: str = "border"
) -> Shaped[Tensor, "b c *t"]:
    """Image at x + u(x): the moving image, seen on the fixed grid."""
    return sample(image, identity(u.shape[2:], u) + u, mode, padding)


def resample(image: Shaped[Tensor, "b c *s"], size: Sequence[int], mode: str = "linear") -> Shaped[Tensor, "b c *t"]:
    """Image on another grid, values kept; no smoothing."""
    if tuple(size) == tuple(image.shape[2:]):
        return image
    like = image if image.is_floating_point() else image.new_empty(0, dtype=torch.float32)
    return sample(image, identity(size, like) * _ratio(size, image.shape[2:], like), mode)


def resize(u: Float[Tensor, "b d *s"], size: Sequence[int]) -> Float[Tensor, "b d *t"]:
    """The same map on another grid; values are voxels, so they scale with the grid."""
    if tuple(size) == tuple(u.shape[2:]):
        return u
    return resample(u, size) * _ratio(u.shape[2:], size, u)


def downsample(image: Float[Tensor, "b c *s"], size: Sequence[int]) -> Float[Tensor, "b c *t"]:
    """Image on a coarser grid, smoothed before by a Gaussian of half the factor (DIO, FireANTs)."""
    factors = [old / new for old, new in zip(image.shape[2:], size, strict=True)]
    return resample(gaussian_smooth(image, [0.5 * f if f > 1 else 0.0 for f in factors]), size)


def _ratio(old: Sequence[int], new: Sequence[int], like: Tensor) -> Tensor:
    """(new - 1) / (old - 1) per axis, shaped to multiply a field."""
    ratio = [(n - 1) / max(o - 1, 1) for o, n in zip(old, new, strict=True)]
    return like.new_tensor(ratio).view(1, -1, *[1] * len(ratio))
