"""Where the time of a pair goes on a GPU: kernels, launches and waits; and how feature matching is best dealt out."""

import torch
from gpu_checks import Machine
from gpu_kernels import KERNELS, inputs, seconds
from gpu_methods import prepared
from gpu_record import Found
from torch.profiler import ProfilerActivity, profile

from dio_lightning import ops

PROFILED = ("dio", "dio at half resolution", "deqreg, 128 cubed")
"""Names of `gpu_methods.PAIRS`."""
SHOWN = 20
"""Kernels that are listed, those that take longest."""
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")
TILES = {
    "rows of 32, 16 channels": (512, 4, 16, 32),
    "rows of 64, 8 channels": (512, 4, 8, 64),
    "rows of 128, 8 channels": (1024, 4, 8, 128),
    "2×2×8, 16 channels": (512, 4, 16, 8),
    "2×4×8, 8 channels": (512, 4, 8, 8),
    "2×2×16, 8 channels": (512, 4, 8, 16),
    "4×4×4, 8 channels": (512, 4, 8, 4),
    "4×4×8, 8 channels": (1024, 4, 8, 8),
    "2×4×8, 16 channels, 8 warps": (1024, 8, 16, 8),
    "1×2×8, 16 channels, 2 warps": (256, 2, 16, 8),
}
"""Elements of a chunk, warps, most channels of a chunk, most voxels of a tile along the last axis."""


def profiled(machine: Machine, name: str) -> Found:
    """Milliseconds on the GPU by kernel, those of the host, and how often the host launches and waits."""
    module, images = prepared(machine, name)
    cuda = machine.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with torch.inference_mode():
        for _ in range(2):
            module.test_step(images, 0)
        with profile(activities=activities) as profiler:
            module.test_step(images, 0)
            if cuda:
                torch.cuda.synchronize()
    events = profiler.key_averages()
    kernels = sorted((e for e in events if e.device_type.name != "CPU"), key=_time, reverse=True)
    return {
        "ok": True,
        "milliseconds": sum(map(_time, kernels)) / 1e3,
        "milliseconds_host": sum(e.self_cpu_time_total for e in events if e.key not in WAITS) / 1e3,
        "launches": sum(e.count for e in events if e.key in LAUNCHES),
        "waits": sum(e.count for e in events if e.key in WAITS),
        "kernels": [[e.key[:120], round(_time(e) / 1e3, 3), e.count] for e in kernels[:SHOWN]],
    }


def _time(event) -> float:  # noqa: ANN001
    return event.self_device_time_total


def dealt(machine: Machine, name: str) -> Found:
    """Milliseconds of an operator for each of `TILES`; only Triton's have them."""
    if ops.chosen(machine.device.type) != "triton":
        return {"ok": True, "operators": ops.chosen(machine.device.type)}
    from dio_lightning.ops import match_triton

    constants = ("ELEMENTS", "WARPS", "CHANNELS_OF_ADJOINT" if name == "match_adjoint" else "CHANNELS", "WIDTH")
    before = {constant: getattr(match_triton, constant) for constant in constants}
    x = inputs((8, 7, 9) if machine.small else (160, 192, 224), machine.device)
    found: Found = {"ok": True}
    try:
        for tile, values in TILES.items():
            for constant, value in zip(constants, values, strict=True):
                setattr(match_triton, constant, value)
            with torch.no_grad():
                found[tile] = 1e3 * seconds(lambda: KERNELS[name].call(x), machine)
    finally:
        for constant, value in before.items():
            setattr(match_triton, constant, value)
    return found
