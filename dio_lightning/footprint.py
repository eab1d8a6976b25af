"""Memory of a training step: bytes of tensors, counted and so the same in every run, and what the machine measures."""

import gc
import json
import os
import subprocess
import sys
import warnings
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dio_lightning.callbacks.cost import peak_memory
from dio_lightning.fields import gaussian_smooth
from dio_lightning.implicit import PhantomAdjoint
from dio_lightning.loaded import load
from dio_lightning.modules import DEQReg, RegistrationModule
from dio_lightning.pair import Pair

MIB = 2**20
# glibc gives every tensor back when it is freed; by default it keeps some, and the peak varies by a quarter
EXACT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0"}


class _Tally:
    """Bytes of the storages that are kept now, and the most that were at once; each counts once."""

    def __init__(self, apart: Iterable[Tensor] = ()) -> None:
        self.now = self.peak = 0
        self._apart = {tensor.untyped_storage()._cdata for tensor in apart}
        self._keepers: dict[int, int] = {}

    def _keep(self, storage: torch.UntypedStorage, keeper: object) -> None:
        """Count a storage until its last keeper is gone."""
        key, size = storage._cdata, storage.nbytes()
        if key in self._apart:
            return
        self._keepers[key] = self._keepers.get(key, 0) + 1
        if self._keepers[key] == 1:
            self.now += size
            self.peak = max(self.peak, self.now)
        weakref.finalize(keeper, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._keepers[key] -= 1
        if self._keepers[key] == 0:
            del self._keepers[key]
            self.now -= size


class SavedTensors(_Tally):
    """While it is entered: what autograd keeps for backward passes, freed graphs subtracted.

    `peak` and `now` are bytes; tensors `apart` (weights, images) are not counted. What a checkpoint recomputes is kept
    by the checkpoint and not counted here; `LiveTensors` counts it.
    """

    def __init__(self, apart: Iterable[Tensor] = ()) -> None:
        super().__init__(apart)
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda saved: saved.tensor)

    def __enter__(self) -> Self:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)

    def _pack(self, tensor: Tensor) -> "_Saved":
        saved = _Saved(tensor.detach())
        self._keep(tensor.untyped_storage(), saved)
        return saved


@dataclass(eq=False)
class _Saved:
    """What a node of the graph holds of a tensor, until the graph lets it go."""

    tensor: Tensor


class LiveTensors(_Tally, TorchDispatchMode):
    """While it is entered: every tensor that an operator returns, in forward and backward, until it is freed.

    `peak` and `now` are bytes, as CUDA's allocator would count them but without an operator's own workspace.
    """

    def __init__(self, apart: Iterable[Tensor] = ()) -> None:
        TorchDispatchMode.__init__(self)
        _Tally.__init__(self, apart)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """The operator's own result, counted."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            # storages keep their Python object as long as they live
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self._keepers:
                self._keep(tensor.untyped_storage(), tensor.untyped_storage())
        return result


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


def cost(module: RegistrationModule, pair: Pair) -> Cost:
    """Two training steps: one counted, one measured when all that is kept between steps is there."""
    apart = [*module.parameters(), *module.buffers(), *(x for x in pair.values() if isinstance(x, Tensor))]
    with SavedTensors(apart) as saved, LiveTensors(apart) as tensors:
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

    def image() -> Tensor:
        smooth = gaussian_smooth(torch.randn(batch, 1, *size, generator=generator), 2.0)
        low, high = smooth.amin(), smooth.amax()
        return ((smooth - low) / (high - low)).to(device)

    fixed, moving = image(), image()
    labels: Pair = {"fixed": fixed, "moving": moving, "fixed_label": (fixed > 0.5).short()}
    return {**labels, "moving_label": (moving > 0.5).short()}


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
