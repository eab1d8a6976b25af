"""Sampling and resampling; the only place where a coordinate convention is decided.

A displacement u is (b, d, *s) in voxels of its own grid, channel i along array axis i. Voxel 0 and voxel S - 1 of an
axis are its two ends on every grid (align_corners=True), so changing the grid maps S - 1 to s - 1.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from dio_lightning.fields.smoothing import gaussian_average
from dio_lightning.ops import labels, sampling
from dio_lightning.pair import expect_batch, full_precision


def identity(size: Sequence[int], like: Tensor) -> Float[Tensor, "1 d *s"]:
    """Voxel coordinates of a grid, with the dtype and device of `like`."""
    axes = [torch.arange(extent, dtype=like.dtype, device=like.device) for extent in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


def sample(
    image: Shaped[Tensor, "#b c *s"],
    points: Float[Tensor, "#b d *t"],
    mode: str = "linear",
    padding: str = "border",
) -> Shaped[Tensor, "b c *t"]:
    """Image at points in voxels; `linear` (twice differentiable) or `nearest` (values are gathered, halves round up).

    Outside the image it is the nearest border value (`border`) or zero (`zeros`). One image is sampled at the points of
    many samples, and many images at the points of one. `linear` promotes the types of image and points, and computes in
    float32 at least; `nearest` keeps the image's, integers and bool too. At a point that is not finite there is NaN, or
    0 where the type has no NaN; infinite points are outside for `nearest`.

    Raises:
        ValueError: for another mode or padding, or shapes that do not fit.
    """
    return _sample(image, points, mode, padding, relative=False)


def warp(
    image: Shaped[Tensor, "#b c *s"], u: Float[Tensor, "#b d *t"], mode: str = "linear", padding: str = "border"
) -> Shaped[Tensor, "b c *t"]:
    """Image at x + u(x): the moving image, seen on the fixed grid; batches and types as in `sample`."""
    if mode == "linear" and padding in ("border", "zeros") and one_precision(image, u):
        return sampling.interpolate(image, u, padding, relative=True)
    fine = full_precision(expect_batch(u, "the displacement", "(b, d, *s)"))  # bfloat16 has no coordinates above 256
    warped = _sample(image, fine, mode, padding, relative=True)
    return warped if mode == "nearest" else warped.to(torch.promote_types(image.dtype, u.dtype))


def one_precision(image: Tensor, u: Tensor) -> bool:
    """Whether nothing is to be checked, converted or expanded: as many fields as images, in one precision."""
    fits = image.ndim == u.ndim in (4, 5) and len(image) == len(u) and u.shape[1] == u.ndim - 2
    return fits and image.dtype == u.dtype and u.dtype in (torch.float32, torch.float64)


def resample(image: Shaped[Tensor, "b c *s"], size: Sequence[int], mode: str = "linear") -> Shaped[Tensor, "b c *t"]:
    """Image on another grid, values kept; no smoothing."""
    if tuple(size) == tuple(expect_batch(image, "the image").shape[2:]):
        return image
    like = image.new_empty(0, dtype=torch.promote_types(image.dtype, torch.float32))
    resized = sample(image, identity(size, like) * _ratio(size, image.shape[2:], like), mode)
    return resized.to(image.dtype) if image.is_floating_point() else resized


def resize(u: Float[Tensor, "b d *s"], size: Sequence[int]) -> Float[Tensor, "b d *t"]:
    """The same map on another grid; values are voxels, so they scale with the grid."""
    if tuple(size) == tuple(u.shape[2:]):
        return u
    return resample(u, size) * _ratio(u.shape[2:], size, u)


def downsample(image: Float[Tensor, "b c *s"], size: Sequence[int]) -> Float[Tensor, "b c *t"]:
    """Image on a coarser grid, smoothed before by a Gaussian of half the factor (DIO, FireANTs).

    Where the Gaussian reaches beyond the image it is normalised over what lies inside: no dark frame holds the image.
    """
    factors = [old / new for old, new in zip(image.shape[2:], size, strict=True)]
    return resample(gaussian_average(image, [0.5 * f if f > 1 else 0.0 for f in factors]), size)


def _sample(image: Tensor, points: Tensor, mode: str, padding: str, relative: bool) -> Tensor:
    """`sample`, at points or at displacements of the voxels of their own grid."""
    if mode not in ("linear", "nearest") or padding not in ("border", "zeros"):
        raise ValueError(
            f"cannot sample with mode={mode!r}, padding={padding!r}: expected linear|nearest, border|zeros"
        )
    d = expect_batch(image, "the image").ndim - 2
    if points.shape[1] != d:
        raise ValueError(f"points have {points.shape[1]} channels, expected {d}, the dimensions of the image")
    if len(image) != len(points) and 1 not in (len(image), len(points)):
        raise ValueError(f"{len(image)} images do not go with the points of {len(points)} samples, expected as many")
    b = len(points) if len(image) == 1 else len(image)
    image, points = image.expand(b, *image.shape[1:]), points.expand(b, *points.shape[1:])
    flat = points.reshape(b, d, *[1] * (d - 1), -1) if points.ndim != d + 2 else points
    if mode == "nearest":
        values = labels.nearest(image, flat, padding, relative)
    else:
        common = torch.promote_types(image.dtype, points.dtype)
        within = torch.promote_types(common, torch.float32)
        values = sampling.interpolate(image.to(within), flat.to(within), padding, relative).to(common)
    return values.reshape(b, image.shape[1], *points.shape[2:])


def _ratio(old: Sequence[int], new: Sequence[int], like: Tensor) -> Tensor:
    """(new - 1) / (old - 1) per axis, shaped to multiply a field."""
    ratio = [(n - 1) / max(o - 1, 1) for o, n in zip(old, new, strict=True)]
    return like.new_tensor(ratio).view(1, -1, *[1] * len(ratio))
