"""Compiles every Triton kernel for an NVIDIA GPU, without one: what its interpreter runs its compiler may refuse.

A process of its own, because the interpreter is chosen when Triton is imported. Prints one line a kernel: its name,
bytes of registers that did not fit, and reads of sixteen bytes at once.
"""

import re
import sys
from pathlib import Path
from subprocess import PIPE, run
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from dio_lightning.ops import (
    correlation_triton,
    information_triton,
    labels_triton,
    match_triton,
    preimage_triton,
    sampling_triton,
    soft_labels_triton,
    stencil_triton,
    steps_triton,
)

TARGET = GPUTarget("cuda", 90, 32)
ASSEMBLERS = sorted(Path(str(nvidia.__file__)).parent.glob("bin/ptxas*"))
"""One or more, by age of the architecture; which of them Triton takes is its own affair."""
launch = JITFunction.run


def compile_only(kernel: JITFunction, *arguments: Any, grid: Any, **settings: Any) -> None:
    """Stands for a launch."""
    settings.pop("warmup", None)
    assembly = launch(kernel, *arguments, grid=grid, warmup=True, **settings).asm["ptx"]
    architecture = re.search(r"\.target (\w+)", assembly)
    assert architecture is not None
    with TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(assembly)
        options = ["-v", f"--gpu-name={architecture[1]}", source, "-o", Path(folder, "kernel.o")]
        attempts = [run([assembler, *options], stderr=PIPE, text=True) for assembler in ASSEMBLERS]
    said = next(attempt.stderr for attempt in attempts if attempt.returncode == 0)
    spilt = re.search(r"(\d+) bytes spill stores", said)
    name = f"{kernel.fn.__module__.rpartition('.')[2]}.{kernel.fn.__name__}"
    print(name, spilt and spilt[1], len(re.findall(r"ld\.global[^;]*\.v4", assembly)))


def main() -> int:
    """Runs what launches every kernel, on a small volume and a plane."""
    none = SimpleNamespace(
        get_current_target=lambda: TARGET,
        get_current_device=lambda: 0,
        get_current_stream=lambda device=0: 0,
    )
    driver.set_active(none)
    JITFunction.run = compile_only
    size, one = (8, 16, 16), torch.ones(1)
    x, u = torch.rand(1, 1, *size), torch.rand(1, 3, *size)
    features = torch.rand(1, 16, *size).to(memory_format=torch.channels_last_3d)
    match_triton.match_blocks(features, features, u)
    match_triton.match_adjoint(features, features, u, one, u)
    sampling_triton.interpolate(u, u, "border", True)
    sampling_triton.backward(u, u, u, "zeros", True, [True, True])
    sampling_triton.compose(u, u, one)
    steps_triton.residual(u, u)
    steps_triton.adam_step(u, u, u, one, one > 0, 0.5, 0.99, 1e-2)
    steps_triton.largest_square(u)
    label = torch.ones(1, 1, *size, dtype=torch.int16)
    labels_triton.nearest(label, u, "centres", True)
    labels_triton.overlap_counts(label, label, labels_triton.MOST)
    soft_labels_triton.label_sums(label, label, u, 3)
    soft_labels_triton.slope(label, label, u, one[:, None], one[:, None])
    preimage_triton.newton(u[0], u[0].flatten(1).double(), 1e-6, 60, 1e-3)
    stencil_triton.correlate(u, [[0.5, 0.2]] * 2)
    stencil_triton.squared_differences(u)
    stencil_triton.determinants(u)
    stencil_triton.shortfall(u, 0.1)
    stencil_triton.shortfall(u[:, 1:, 0], 0.1)
    _, slopes = correlation_triton.mean(x, x, 5, 1e-5, False)
    correlation_triton.gradient(slopes, (x, x), 1, 5, one)
    flat = x.flatten(1)
    information_triton.joint_counts(flat, flat, 32, None)
    information_triton.slope(flat, flat, torch.rand(1, 31, 32, dtype=torch.float64), None)
    plane, v = features[:, :, 0], u[:, 1:, 0]
    match_triton.match(plane, plane, v)
    return 0


if __name__ == "__main__":
    sys.exit(main())
