"""Linear interpolation on the CPU: tensors to the compiled loops and back, on as many threads as torch has.

An image of two dimensions is a volume of one plane, on which all points lie.
"""

import torch
from torch import Tensor

from dio_lightning.ops import sampling_kernels
from dio_lightning.ops.match_numba import _COPIES, _lift_field, _threads
from dio_lightning.ops.memory import empty

CHUNK = 4096
"""Points that one thread takes at a time."""


def interpolate(image: Tensor, points: Tensor, padding: str, relative: bool) -> Tensor:
    """In float32 or float64; see `dio_lightning.ops.sampling.interpolate`."""
    return _forward(image, points, image.new_empty(0), padding, relative)


def compose(u: Tensor, v: Tensor, factor: Tensor) -> Tensor:
    """Of fields of one grid; see `dio_lightning.ops.composition.compose`."""
    return _forward(u, v, factor.detach().contiguous(), "border", True)


def _forward(image: Tensor, points: Tensor, factor: Tensor, padding: str, relative: bool) -> Tensor:
    source, places, sizes = *_flat(image, points), (_volume(image), _volume(points))
    out = empty((len(points), image.shape[1], places.shape[2]), source.dtype)
    _threads()
    arrays = source.numpy(), places.numpy(), factor.numpy()
    sampling_kernels.forward(*arrays, *sizes, relative, padding == "zeros", CHUNK, out.numpy())
    return out.view(len(points), image.shape[1], *points.shape[2:])


def backward(
    gradient: Tensor, image: Tensor, points: Tensor, padding: str, relative: bool, needs: list[bool]
) -> tuple[Tensor, Tensor]:
    """Gradients with respect to image and points; what is not needed is empty, points that are not finite give 0."""
    g, (source, places) = gradient.detach().contiguous().flatten(2), _flat(image, points)
    settings = _volume(image), _volume(points), relative, padding == "zeros"
    of_image, of_points, threads = image.new_empty(0), points.new_empty(0), _threads()
    if needs[0]:
        parts = image.new_zeros(min(threads, _COPIES), *image.shape[:2], source.shape[2])
        sampling_kernels.scatter(g.numpy(), places.numpy(), *settings, parts.numpy())
        of_image = (parts[0] if len(parts) == 1 else parts.sum(0)).view(image.shape)
    if needs[1]:
        slopes = torch.empty_like(places)
        sampling_kernels.slopes(g.numpy(), source.numpy(), places.numpy(), *settings, CHUNK, slopes.numpy())
        of_points = (slopes if points.shape[1] == 3 else slopes[:, 1:].clone()).view(points.shape)
    return of_image, of_points


def _flat(image: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Image (n, c, s) and points (b, 3, t), contiguous; an image that is expanded over a batch is taken once."""
    if len(image) > 1 and image.stride(0) == 0:
        image = image[:1]
    return image.detach().contiguous().flatten(2), _lift_field(points).flatten(2)


def _volume(x: Tensor) -> tuple[int, int, int]:
    """The size of a volume, or of a plane as one."""
    size = (1, *x.shape[2:])[-3:]
    return size[0], size[1], size[2]
