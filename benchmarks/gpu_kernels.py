"""Operators on a GPU, one by one: whether they compute what plain PyTorch does in double precision, and how fast."""

from collections.abc import Callable
from time import perf_counter
from typing import NamedTuple

import torch
from gpu_checks import Machine
from gpu_record import Found
from plain import plain
from timing import Size
from torch import Tensor

from dio_lightning import ops
from dio_lightning.fields import compose, gaussian_smooth, warp
from dio_lightning.losses import soft_dice
from dio_lightning.networks.blocks import channels_last

CHANNELS = 16
LABELS = 400
NORM, TYPICAL = 1e-2, 1e-4
"""Most difference from double precision: of a result's norm, and of its median as a share of the mean.

Where float32 rounds a point to the other side of a voxel, the slope is that of another cell, and as right.
"""
ASKED = {"match": 0.6}
"""Least share of the bandwidth of a copy."""
REPETITIONS = 20


class Kernel(NamedTuple):
    """An operator, and how many float32 of each voxel it reads and writes at least, all once."""

    call: Callable[[dict[str, Tensor]], object]
    values: int


def _slope(value: Callable[[Tensor], Tensor], at: Tensor) -> tuple[Tensor, Tensor]:
    at = at.detach().requires_grad_()
    with torch.enable_grad():
        total = value(at)
        return total.detach(), torch.autograd.grad(total.sum(), at)[0]


def _adjoint(x: dict[str, Tensor]) -> object:
    ones = torch.ones(1, dtype=x["u"].dtype, device=x["u"].device)
    return torch.ops.dio.match_adjoint(x["fixed"], x["moving"], x["u"], ones, x["u"])


def _adam(x: dict[str, Tensor]) -> tuple[Tensor, ...]:
    r, m, s = x["u"].clone(), x["v"].clone(), x["v"].square()
    ops.adam_step(r, m, s, torch.ones(1, dtype=r.dtype, device=r.device), None, 0.5, 0.99, 1e-2)
    return r, m, s


def _counts(x: dict[str, Tensor]) -> tuple[Tensor, ...]:
    return tuple(n.double() for n in ops.overlap_counts(x["fixed_label"], x["moving_label"], LABELS))


def _soft_dice(x: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    fixed, moving = (x[f"{side}_label"].short() for side in ("fixed", "moving"))
    return _slope(lambda u: soft_dice(fixed, moving, u, LABELS), x["u"])


def _preimages(x: dict[str, Tensor]) -> Tensor:
    """Of the voxels of every eighth plane; slopes are so small that nothing folds."""
    u = x["u"][0] / 4
    voxels = torch.stack(torch.meshgrid(*[torch.arange(n, device=u.device) for n in u.shape[1:]], indexing="ij"))
    return ops.preimages(u, voxels[:, ::8].flatten(1).double())


KERNELS = {
    "match": Kernel(lambda x: ops.match(x["fixed"], x["moving"], x["u"]), 2 * CHANNELS + 6),
    "match_blocks": Kernel(lambda x: tuple(ops.match_blocks(x["fixed"], x["moving"], x["u"])), 2 * CHANNELS + 13),
    "match_adjoint": Kernel(_adjoint, 4 * CHANNELS + 9),
    "warp": Kernel(lambda x: warp(x["a"], x["u"]), 5),
    "warp and its slope": Kernel(lambda x: _slope(lambda u: warp(x["a"], u).square(), x["u"]), 8),
    "warp and the image's slope": Kernel(lambda x: _slope(lambda a: warp(a, x["u"]).square(), x["a"]), 6),
    "compose": Kernel(lambda x: compose(x["u"], x["u"]), 6),
    "residual and its norms": Kernel(lambda x: ops.residual(x["u"], x["v"]), 9),
    "Adam's step and three copies": Kernel(_adam, 42),
    "longest vector": Kernel(lambda x: ops.largest_square(x["u"]), 3),
    "labels, warped": Kernel(lambda x: ops.nearest(x["fixed_label"], x["u"], "centres", relative=True), 4),
    "labels, counted": Kernel(_counts, 1),
    "soft Dice's sums and slope": Kernel(_soft_dice, 8),
    "preimages of every eighth plane": Kernel(_preimages, 2),
    "smoothing": Kernel(lambda x: gaussian_smooth(x["u"], 1.0), 6),
    "diffusion": Kernel(lambda x: ops.squared_differences(x["u"]), 6),
    "determinants": Kernel(lambda x: ops.determinants(x["u"]), 4),
    "penalty on folds": Kernel(lambda x: ops.shortfall(x["u"], 0.1), 7),
    "correlation, window 5": Kernel(lambda x: _slope(lambda a: ops.local_correlation(a, x["b"], 5), x["a"]), 3),
    "correlation, window 9": Kernel(lambda x: _slope(lambda a: ops.local_correlation(a, x["b"], 9), x["a"]), 3),
    "information": Kernel(lambda x: _slope(lambda a: ops.mutual_information(a, x["b"], 32), x["a"]), 3),
}


def inputs(size: Size, device: torch.device) -> dict[str, Tensor]:
    """Smooth features, images in [0, 1], their values as labels, and displacements of two voxels."""
    generator = torch.Generator(device).manual_seed(0)

    def smooth(channels: int, sigma: float) -> Tensor:
        x = gaussian_smooth(torch.randn(1, channels, *size, device=device, generator=generator), sigma)
        return x / x.std()

    images = {name: smooth(1, 2.0) for name in "ab"}
    images = {name: (x - x.amin()) / (x.amax() - x.amin()) for name, x in images.items()}
    features = {name: channels_last(smooth(CHANNELS, 2.0)) for name in ("fixed", "moving")}
    labels = {f"{name}_label": (LABELS * x).short() for name, x in zip(features, images.values(), strict=True)}
    return {**images, **features, **labels, **{name: 2 * smooth(len(size), 3.0) for name in "uv"}}


def kernel(machine: Machine, name: str) -> Found:
    """Differences from double precision, milliseconds beside plain PyTorch, and the share of a copy's bandwidth."""
    call, values = KERNELS[name]
    small, large = ((6, 5, 7), (8, 7, 9)) if machine.small else ((80, 96, 112), (160, 192, 224))
    with torch.no_grad():
        found = _differences(call, inputs(small, machine.device))
        x = inputs(large, machine.device)
        ours = seconds(lambda: call(x), machine)
        with plain():
            beside = seconds(lambda: call(x), machine)
        source, target = x["fixed"], torch.empty_like(x["fixed"])
        copy = seconds(lambda: target.copy_(source), machine)
    share = (values * x["a"].numel() / ours) / (2 * source.numel() / copy)
    asked = 0.0 if machine.device.type == "cpu" or machine.small else ASKED.get(name, 0.0)
    return {
        "ok": found["norm"] <= NORM and found["typical"] <= TYPICAL and share >= asked,
        "operators": ops.chosen(machine.device.type),
        **found,
        "milliseconds": 1e3 * ours,
        "milliseconds_plain": 1e3 * beside,
        "share_of_copy": share,
        "copy_gb_per_s": 2 * source.nbytes / copy / 1e9,
        **({"share_asked": asked} if asked else {}),
        "size": list(large),
    }


def _differences(call: Callable[[dict[str, Tensor]], object], x: dict[str, Tensor]) -> dict[str, float]:
    """The largest over all results; NaN is larger than any."""
    ours = call(x)
    with plain():
        exact = call({name: value.double() for name, value in x.items()})
    norm, typical = 0.0, 0.0
    for found, expected in zip(_tensors(ours), _tensors(exact), strict=True):
        off = (found.double() - expected).abs()
        if not bool(off.isfinite().all()):
            return {"norm": float("inf"), "typical": float("inf")}
        norm = max(norm, float(off.norm() / expected.norm()))
        typical = max(typical, float(off.median() / expected.abs().mean()))
    return {"norm": norm, "typical": typical}


def _tensors(result: object) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)  # pyright: ignore[reportReturnType]


def seconds(call: Callable[[], object], machine: Machine) -> float:
    """Of a call, after three that compile and warm up; on a GPU many in a row, by its own clock."""
    if machine.device.type == "cpu":
        start = perf_counter()
        call()
        return perf_counter() - start
    for _ in range(3):
        call()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    repetitions = 3 if machine.small else REPETITIONS
    start.record()
    for _ in range(repetitions):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / repetitions
