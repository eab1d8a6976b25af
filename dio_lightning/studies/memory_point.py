"""One training step in a process of its own: what it keeps in memory, measured and counted."""

import gc
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

import torch
from torch import nn

from dio_lightning.callbacks.cost import peak_memory
from dio_lightning.fields import gaussian_smooth
from dio_lightning.implicit import PhantomAdjoint
from dio_lightning.modules import DEQReg, RegistrationModule
from dio_lightning.pair import Pair
from dio_lightning.studies.live import MIB, LiveTensors, SavedTensors
from dio_lightning.studies.loading import load

# glibc gives every tensor back when it is freed; by default it keeps some, and the peak varies by a quarter
EXACT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0"}


@dataclass(frozen=True)
class Point:
    """What to measure: a method, as `load` takes it, on one batch of random images."""

    weights: str
    options: Sequence[str]
    size: Sequence[int]
    batch: int
    steps: int | None
    """Steps at the finest level; None: as configured."""
    phantom: int | None = None
    """Phantom steps T of a DEQReg; None: as configured."""
    checkpointed: bool = False


@dataclass(frozen=True)
class Cost:
    """Of one training step (forward, loss, backward), beyond weights and images."""

    seconds: float
    peak_mb: float
    """MiB: peak of the memory allocated on a GPU; on the CPU growth of the process's peak resident memory."""
    tensors_mb: float
    """MiB: peak of the tensors alive."""
    saved_mb: float
    """MiB: peak of the tensors saved for a backward pass; those that a checkpoint recomputes are not among them."""


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
    module = load(point.weights, point.options).module
    module.check_trainable()
    if point.steps is not None:
        module.steps = point.steps
    if point.phantom is not None:
        if not isinstance(module, DEQReg):
            raise ValueError(f"{point.weights}: {module.title} has no phantom steps to set, only DEQReg has")
        module.layer.adjoint = PhantomAdjoint(point.phantom, checkpointed=point.checkpointed)
    return module.train()


def cost(module: RegistrationModule, pair: Pair) -> Cost:
    """Two training steps: one counted, one measured when all that is kept between steps is there."""
    known = [*module.parameters(), *module.buffers(), *(x for x in pair.values() if isinstance(x, torch.Tensor))]
    with SavedTensors(known) as saved, LiveTensors(known) as tensors:
        module.training_step(pair, 0).backward()
    before, start = _reset(module), perf_counter()
    module.training_step(pair, 0).backward()
    peak = peak_memory(module.device) - before  # the GPU is read when its work is queued: it is allocated by then
    if module.device.type == "cuda":
        torch.cuda.synchronize(module.device)
    return Cost(perf_counter() - start, peak, tensors.peak / MIB, saved.peak / MIB)


def images(batch: int, size: Sequence[int], device: torch.device) -> Pair:
    """Smooth random images in [0, 1], each with a label of half its voxels."""
    generator = torch.Generator().manual_seed(0)

    def image() -> torch.Tensor:
        smooth = gaussian_smooth(torch.randn(batch, 1, *size, generator=generator), 2.0)
        low, high = smooth.amin(), smooth.amax()
        return ((smooth - low) / (high - low)).to(device)

    fixed, moving = image(), image()
    labels: Pair = {"fixed": fixed, "moving": moving, "fixed_label": (fixed > 0.5).short()}
    return {**labels, "moving_label": (moving > 0.5).short()}


def dimension(module: nn.Module) -> int:
    """2 or 3: the dimension of the first convolution.

    Raises:
        ValueError: if there is none.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Conv3d):
            return 2 if isinstance(layer, nn.Conv2d) else 3
    raise ValueError(f"{type(module).__name__} has no convolutions, its dimension is unknown: name the size")


def _reset(module: RegistrationModule) -> float:
    """Forget gradients and earlier peaks; the memory in use now, MiB."""
    module.zero_grad()
    gc.collect()
    if module.device.type == "cuda":
        torch.cuda.synchronize(module.device)
        torch.cuda.reset_peak_memory_stats(module.device)
    else:
        forget = Path("/proc/self/clear_refs")
        if forget.exists():
            forget.write_text("5")  # the peak becomes what is resident now
    return peak_memory(module.device)


if __name__ == "__main__":
    print(json.dumps(asdict(here(Point(**json.loads(sys.argv[1]))))))
