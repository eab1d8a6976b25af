"""One training step in a process of its own: what it keeps in memory, measured and counted."""

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import nn

from dio_lightning.footprint import Cost, cost, images
from dio_lightning.implicit import PhantomAdjoint
from dio_lightning.loaded import load
from dio_lightning.modules import DEQReg, RegistrationModule

# glibc gives every tensor back when it is freed; by default it keeps some, and the peak varies by a quarter
EXACT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0"}


@dataclass(frozen=True)
class Point:
    """What to measure: a method, as `load` takes it, on one batch of random images.

    Steps (at the finest level) and the phantom steps of a DEQReg are as configured where they are None.
    """

    weights: str
    options: Sequence[str]
    size: Sequence[int]
    batch: int
    steps: int | None = None
    phantom: int | None = None
    checkpointed: bool = False


def in_a_process(point: Point) -> Cost:
    """The cost in a fresh process, which starts with no memory of anything.

    Raises:
        ValueError: if that process fails, with its last line; exit code -9 is what lack of memory looks like.
    """
    command = [sys.executable, "-m", __name__, json.dumps(asdict(point))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **EXACT})
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ValueError(
            f"{point.weights} with {point.steps} steps could not be measured, exit code {done.returncode}: {last}"
        )
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def here(point: Point) -> Cost:
    """The cost in this process; its peak is that of a process that is no longer fresh."""
    warnings.filterwarnings("ignore", ".*self.log.*")  # the module runs without a trainer here
    torch.manual_seed(0)
    module = prepare(point)
    small = images(point.batch, [min(extent, 16) for extent in point.size], module.device)
    module.training_step(small, 0).backward()  # loads all code
    return cost(module, images(point.batch, point.size, module.device))


def prepare(point: Point) -> RegistrationModule:
    """The method, ready to train.

    Raises:
        ValueError: if it cannot be trained, or has no phantom steps to set.
    """
    module = load(point.weights, point.options, ready=False).module
    module.check_trainable()
    if point.steps is not None:
        module.steps = point.steps
    if point.phantom is not None:
        if not isinstance(module, DEQReg):
            raise ValueError(f"{point.weights}: {module.title} has no phantom steps to set, only DEQReg has")
        module.layer.adjoint = PhantomAdjoint(point.phantom, checkpointed=point.checkpointed)
    return module.train()


def dimension(module: nn.Module) -> int:
    """2 or 3: the dimension of the first convolution.

    Raises:
        ValueError: if there is none.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Conv3d):
            return 2 if isinstance(layer, nn.Conv2d) else 3
    raise ValueError(f"{type(module).__name__} has no convolutions, its dimension is unknown: name the size")


if __name__ == "__main__":
    print(json.dumps(asdict(here(Point(**json.loads(sys.argv[1]))))))
