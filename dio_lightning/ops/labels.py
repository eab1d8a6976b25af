"""The nearest voxel of a label map, and how many voxels a label has: kernels on CUDA (`ops.choice`), or PyTorch."""

from types import ModuleType

import torch
from torch import Tensor

from dio_lightning.ops.choice import implementation, tangents

LARGEST = 2**16
"""Label up to which kernels count."""
MOST = 2**22
"""Label up to which anything is counted: there is a number for each, whichever a map has."""


def nearest(image: Tensor, points: Tensor, padding: str = "border", relative: bool = False) -> Tensor:
    """Voxels of an image (b, c, *s) of any type nearest to points (b, d, *t), (b, c, *t); halves round up.

    Coordinates are rounded in float64. Where a point is NaN there is NaN, or 0 where the type has no NaN; infinite
    points are outside. Values are differentiable with respect to the image.

    Args:
        image: (b, c, *s); one that is expanded over the batch is not copied by kernels.
        points: in voxels of the image, or with `relative` displacements of the voxels of their own grid, *t.
        padding: outside is the nearest voxel (`border`) or 0 (`zeros`; voxels end at halves). With `centres` it is 0
            beyond the outer voxels' centres, as in SciPy, and where a point is NaN; coordinates are added in float64.
        relative: what the points are.
    """
    fits = image.ndim == points.ndim in (4, 5) and len(image) == len(points) and not image.is_complex()
    recorded = torch.is_grad_enabled() and image.requires_grad
    plain = recorded or tangents(image) or not fits or points.dtype not in (torch.float32, torch.float64)
    kernels = None if plain else implementation("labels", image)
    return (reference if kernels is None else kernels.nearest)(image, points, padding, relative)


def reference(image: Tensor, points: Tensor, padding: str, relative: bool) -> Tensor:
    """`nearest` in plain PyTorch."""
    flat = torch.zeros_like(points[:, 0], dtype=torch.int64)
    inside = torch.ones_like(flat, dtype=torch.bool)
    wrong = torch.zeros_like(inside)
    for axis, extent in enumerate(image.shape[2:]):
        p = points[:, axis].double() if padding == "centres" else points[:, axis]
        if relative:
            p = p + torch.arange(p.shape[axis + 1], dtype=p.dtype, device=p.device).view(-1, *[1] * (p.ndim - 2 - axis))
        p = p.double()
        at = (p + 0.5).floor()
        inside &= (p >= 0) & (p <= extent - 1) if padding == "centres" else (at >= 0) & (at < extent)
        wrong |= p.isnan()
        flat = flat * extent + at.nan_to_num(0.0).clamp(0, extent - 1).long()
    where = flat.flatten(1)[:, None].expand(-1, image.shape[1], -1)
    values = image.flatten(2).gather(2, where).view(len(image), image.shape[1], *flat.shape[1:])
    if padding != "border":
        values = torch.where(inside[:, None], values, torch.zeros_like(values))
    if padding == "centres":
        return values
    missing = torch.zeros_like(values) if not image.is_floating_point() else torch.full_like(values, torch.nan)
    return torch.where(wrong[:, None], missing, values)


def label_counts(label: Tensor, count: int) -> Tensor:
    """Voxels of labels 1..count in every sample of a map of integers (b, ...), (b, count); others are left out.

    Raises:
        ValueError: if count is above `MOST`.
    """
    check_count(count)
    kernels = _kernels(label, count)
    if kernels is not None:
        return kernels.label_counts(label, count)
    flat = label.long().flatten(1)
    flat = torch.where((flat < 0) | (flat > count), 0, flat)
    rows = torch.arange(len(flat), device=flat.device)[:, None] * (count + 1)
    return torch.bincount((flat + rows).flatten(), minlength=len(flat) * (count + 1)).view(len(flat), -1)[:, 1:]


def overlap_counts(first: Tensor, second: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """`label_counts` of two maps of one shape, and of the voxels where both have the label, each (b, count).

    Raises:
        ValueError: as `label_counts`.
    """
    check_count(count)
    kernels = _kernels(first, count)
    if kernels is not None:
        return kernels.overlap_counts(first, second, count)
    common = label_counts(torch.where(first == second, first, 0), count)
    return label_counts(first, count), label_counts(second, count), common


def check_count(count: int) -> None:
    """Raises ValueError for labels of which a table of all numbers up to the largest would not fit into memory."""
    if count > MOST:
        raise ValueError(f"labels go up to {count}, expected {MOST} at most: give them other numbers")


def _kernels(label: Tensor, count: int) -> ModuleType | None:
    return implementation("labels", label) if 0 < count <= LARGEST and not label.is_floating_point() else None
