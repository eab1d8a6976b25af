"""Memory of one DIO training step (forward, loss, backward), as a function of the solver's iterations.

`python benchmarks/memory.py --steps 50 --size 40 48 56` measures one setting in a fresh process and prints it as JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import warnings
from time import perf_counter
from typing import NamedTuple

import torch
from timing import Row, Size, shifted_features
from torch import Tensor

from dio_lightning.callbacks.cost import peak_memory
from dio_lightning.features import UNet
from dio_lightning.implicit import Never
from dio_lightning.layers import OptimizerLayer
from dio_lightning.losses import LNCC, Dice, Diffusion, Objective
from dio_lightning.modules import DIO
from dio_lightning.pair import Pair

MB = 2**20
# glibc gives every tensor back when it is freed; by default it keeps some, and the peak varies by a quarter
EXACT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0"}


class Step(NamedTuple):
    """What one training step took."""

    seconds: float
    saved_mb: float
    """All that was ever saved for a backward pass."""
    peak_mb: float
    """Growth of the process's peak resident memory."""


def rows(size: Size, steps: Size, processes: bool) -> list[Row]:
    """For each number of iterations a level: saved bytes and, with `processes`, seconds and peak of a fresh process."""
    measured = [_in_a_process(n, size) if processes else training_step(n, size) for n in steps]
    first = measured[0]
    found = [
        Row(f"training step, saved for backward: {n} iterations", None, step.saved_mb / first.saved_mb, step.saved_mb)
        for n, step in zip(steps, measured, strict=True)
    ]
    if processes:
        found += [
            Row(f"training step, peak memory: {n} iterations", step.seconds, step.peak_mb / first.peak_mb, step.peak_mb)
            for n, step in zip(steps, measured, strict=True)
        ]
    return found


def training_step(steps: int, size: Size) -> Step:
    """One step with `steps` iterations at each of three levels, after a small one has loaded all code."""
    warnings.filterwarnings("ignore", ".*self.log.*")  # the module runs without a trainer here
    _run(1, tuple(min(extent, 16) for extent in size))
    saved = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal saved
        saved += tensor.nbytes
        return tensor

    before, start = peak_memory(torch.device("cpu")), perf_counter()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        _run(steps, size)
    return Step(perf_counter() - start, saved / MB, peak_memory(torch.device("cpu")) - before)


def _run(steps: int, size: Size) -> None:
    torch.manual_seed(0)
    objective = Objective(LNCC(), label=Dice(2), regularity=Diffusion(), regularity_weight=1e-6)
    module = DIO(UNet(spatial_dims=len(size)), OptimizerLayer([steps] * 3, stop=Never()), objective)
    fixed, moving, _ = shifted_features(size, 1)
    pair: Pair = {
        "fixed": fixed,
        "moving": moving,
        "fixed_label": (fixed > 0).short(),
        "moving_label": (moving > 0).short(),
    }
    module.training_step(pair, 0).backward()


def _in_a_process(steps: int, size: Size) -> Step:
    command = [sys.executable, __file__, "--steps", str(steps), "--size", *map(str, size)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **EXACT})
    return Step(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Measure one setting in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--size", type=int, nargs="+", required=True)
    arguments = parser.parse_args()
    print(json.dumps(training_step(arguments.steps, tuple(arguments.size))._asdict()))


if __name__ == "__main__":
    main()
