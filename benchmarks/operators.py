"""The other operators of the inner loop against plain PyTorch, and local correlation and Dice against MONAI."""

from collections.abc import Callable, Iterator

import torch
from monai.losses.image_dissimilarity import LocalNormalizedCrossCorrelationLoss
from monai.metrics.meandice import DiceHelper
from plain import plain
from timing import Row, Size, Stopwatch, shifted_features
from torch import Tensor
from torch.testing import assert_close

from dio_lightning.fields import compose, gaussian_smooth, warp
from dio_lightning.metrics import dice_per_label
from dio_lightning.ops import determinants, local_correlation, mutual_information, shortfall, squared_differences

LABELS = 32


def rows(size: Size, watch: Stopwatch) -> Iterator[Row]:
    """A pair of images (1, 1, *size) and a displacement; ratios say how many times faster than the plain path."""
    fixed, moving, u = shifted_features(size, 1)
    fixed, moving = fixed - fixed.min(), moving - moving.min()
    fixed, moving, step = (fixed / fixed.max()).contiguous(), (moving / moving.max()).contiguous(), u / 10
    target = torch.empty_like(u)
    copy = watch.best({"copy": lambda: target.copy_(u)})["copy"]
    yield Row("copy of a displacement", copy, None)
    calls: dict[str, Callable[[], object]] = {
        "warp": lambda: warp(moving, u),
        "warp and its slope": lambda: _slope(lambda v: warp(moving, v).sum(), u),
        "composition": lambda: compose(u, step),
        "smoothing, σ = 1": lambda: gaussian_smooth(u, 1.0),
        "diffusion and its slope": lambda: squared_differences(u),
        "Jacobian determinants": lambda: determinants(u),
        "penalty on folds and its slope": lambda: shortfall(u, 0.1),
        "mutual information and its slope": lambda: _slope(lambda x: mutual_information(x, fixed, 32).sum(), moving),
    }
    for name, call in calls.items():
        yield from _beside_plain(name, call, watch)
    for window in (5, 7):
        yield from _correlation(window, fixed, moving, watch)
    yield from _dice(size, watch)


def _slope(value: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    at = at.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(value(at), at)[0]


def _beside_plain(name: str, call: Callable[[], object], watch: Stopwatch) -> Iterator[Row]:
    def reference() -> object:
        with plain():
            return call()

    with torch.no_grad():
        # where a point meets a voxel to the last bit, either side's slope is right: compare what is typical
        for ours, theirs in zip(_tensors(call()), _tensors(reference()), strict=True):
            assert (ours - theirs).abs().median() <= 1e-4 * theirs.abs().mean(), name
        seconds = watch.best({"plain": reference, "compiled": call})
    for which, value in seconds.items():
        yield Row(f"{name}: {which}", value, seconds["plain"] / value)


def _tensors(result: object) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)  # pyright: ignore[reportReturnType]


def _correlation(window: int, fixed: Tensor, moving: Tensor, watch: Stopwatch) -> Iterator[Row]:
    monai = LocalNormalizedCrossCorrelationLoss(kernel_size=window, smooth_nr=0.0)
    seconds = watch.best(
        {
            "MONAI": lambda: _slope(lambda x: monai(x, fixed), moving),
            "compiled": lambda: _slope(lambda x: local_correlation(x, fixed, window).mean(), moving),
        }
    )
    for which, value in seconds.items():
        yield Row(f"local correlation and its slope, window {window}: {which}", value, seconds["MONAI"] / value)


def _dice(size: Size, watch: Stopwatch) -> Iterator[Row]:
    generator = torch.Generator().manual_seed(0)
    fixed, moved = (torch.randint(0, LABELS + 1, (1, 1, *size), generator=generator) for _ in range(2))
    monai = DiceHelper(include_background=False, num_classes=LABELS + 1, reduction="none", apply_argmax=False)
    calls = {"MONAI": lambda: monai(moved, fixed)[0], "counted": lambda: dice_per_label(fixed, moved)}
    assert_close(calls["counted"]().flatten().double(), calls["MONAI"]().flatten().double(), rtol=1e-5, atol=1e-6)
    seconds = watch.best(calls)
    for which, value in seconds.items():
        yield Row(f"Dice of {LABELS} labels: {which}", value, seconds["MONAI"] / value)
