"""Joint histograms of two images with linear windows, and their mutual information with its gradient.

A voxel touches four bins, so the cost does not grow with the number of bins. Loops and kernels are compiled
(`ops.choice`); the second derivative is plain PyTorch.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from dio_lightning.ops.choice import backward_alone, implementation

SPREAD = 1e-4
"""Share of the mass that is spread evenly over all bins, so that the logarithm of an empty one is finite."""


def joint_histogram(a: Tensor, b: Tensor, bins: int, weights: Tensor | None = None) -> Tensor:
    """How often intensities of two images in [0, 1] meet, in float64; its entries sum to 1. Not differentiable.

    Bin k lies at k / (bins - 1); a voxel counts for the two bins beside its intensity in each image, the nearer the
    more (windows of first order; Viola and Wells, IJCV 24, 1997, Mattes et al., TMI 22, 2003, with others). Intensities
    outside [0, 1] count as those at its ends.

    Args:
        a: the first image (b, 1, *s); its bins are the rows.
        b: the second image, on the same voxels.
        bins: n, at least 2.
        weights: how much each voxel counts (b, 1, *s), at least 0; all the same where None.

    Returns:
        The histograms (b, n, n).
    """
    backward_alone("a joint histogram", a, b, weights)
    each = None if weights is None else weights.detach().flatten(1).double()
    counts = _counted(a.flatten(1), b.flatten(1), bins, each)
    return counts / counts.sum((1, 2), keepdim=True)


def mutual_information(a: Tensor, b: Tensor, bins: int, weights: Tensor | None = None) -> Tensor:
    """Mutual information (b,) in nats, of the joint histogram of two images in [0, 1]; twice differentiable in both.

    A share `SPREAD` of the histogram's mass is spread over all bins. See `joint_histogram` for the arguments; weights
    are constants.
    """
    backward_alone("mutual information", a, b, weights)
    each = None if weights is None else weights.detach().flatten(1).double()
    return _Information.apply(a.flatten(1), b.flatten(1), bins, each)


class _Information(Function):
    """The gradient is written out; only a second one is left to autograd."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, bins: int, weights: Tensor | None) -> Tensor:  # noqa: ANN401
        counts = _counted(a, b, bins, weights)
        ctx.bins, ctx.weights = bins, weights
        ctx.save_for_backward(a, b, counts)
        return _of_counts(counts)[0].to(torch.promote_types(a.dtype, b.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:  # noqa: ANN401
        a, b, counts = ctx.saved_tensors
        needs = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():
            value = _of_counts(_counts(a.double(), b.double(), ctx.bins, ctx.weights))[0]
            wanted = [image for image, need in zip((a, b), needs, strict=True) if need]
            each = iter(torch.autograd.grad(value, wanted, gradients[0].to(value), create_graph=True))
            return next(each) if needs[0] else None, next(each) if needs[1] else None, None, None
        factor = gradients[0].double() * (1 - SPREAD) * (ctx.bins - 1) / counts.sum((1, 2))
        log = _of_counts(counts)[1] * factor[:, None, None]
        of_a = _slope(a, b, log, ctx.weights) if needs[0] else None
        of_b = _slope(b, a, log.transpose(1, 2), ctx.weights) if needs[1] else None
        return of_a, of_b, None, None


def _of_counts(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Information (b,), and log p_ij / (p_i p_j), whose mean it is."""
    p = (1 - SPREAD) * counts / counts.sum((1, 2), keepdim=True) + SPREAD / counts.shape[1] ** 2
    log = p.log() - p.sum(2, keepdim=True).log() - p.sum(1, keepdim=True).log()
    return (p * log).sum((1, 2)), log


def _slope(a: Tensor, b: Tensor, log: Tensor, weights: Tensor | None) -> Tensor:
    """Per voxel of a, the difference of two rows of a table (b, n, n), where b's intensity reads it."""
    steps = (log[:, 1:] - log[:, :-1]).contiguous()
    kernels = implementation("information", a)
    return (_read if kernels is None else kernels.slope)(a, b, steps, weights)


def _read(a: Tensor, b: Tensor, steps: Tensor, weights: Tensor | None) -> Tensor:
    """Steps (b, n - 1, n) at the lower bin of a, between the two bins beside b; 0 where a is outside [0, 1]."""
    bins = steps.shape[2]
    low, _, inside = _window(a.double(), bins)
    column, part, _ = _window(b.double(), bins)
    flat, index = steps.flatten(1), low * bins + column
    slope = torch.lerp(flat.gather(1, index), flat.gather(1, index + 1), part) * inside
    return (slope if weights is None else slope * weights).to(a.dtype)


def _counted(a: Tensor, b: Tensor, bins: int, weights: Tensor | None) -> Tensor:
    """`_counts` by the backend of the device; without derivatives."""
    kernels = implementation("information", a)
    if kernels is not None and bins <= kernels.LARGEST:
        return kernels.joint_counts(a, b, bins, weights)
    return _counts(a.detach().double(), b.detach().double(), bins, weights)


def _counts(a: Tensor, b: Tensor, bins: int, weights: Tensor | None) -> Tensor:
    """Weights of the voxels (b, n) that meet in each pair of bins."""
    i, f, _ = _window(a, bins)
    j, g, _ = _window(b, bins)
    counts = torch.zeros(len(a), bins * bins, dtype=a.dtype, device=a.device)
    for row, x in ((0, 1 - f), (1, f)):
        for column, y in ((0, 1 - g), (1, g)):
            mass = x * y if weights is None else x * y * weights
            counts = counts.scatter_add(1, (i + row) * bins + j + column, mass)
    return counts.view(-1, bins, bins)


def _window(x: Tensor, bins: int) -> tuple[Tensor, Tensor, Tensor]:
    """The lower bin of each intensity, the share of the upper one, and whether it lies in [0, 1]."""
    position = x.clamp(0, 1) * (bins - 1)
    low = position.detach().nan_to_num(0).floor().clamp(max=bins - 2)
    return low.long(), position - low, (x >= 0) & (x <= 1)
