"""Published methods on a GPU: a training step beside the CPU's, its memory, and the seconds of a pair."""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from math import isfinite
from time import perf_counter
from typing import Any, NamedTuple, TypeVar

import torch
import yaml
from gpu_checks import Machine
from gpu_record import ROOT, Found
from plain import plain
from safetensors.torch import load_file
from timing import Size, shifted_features
from torch import Tensor

from dio_lightning.callbacks.cost import peak_memory
from dio_lightning.footprint import cost
from dio_lightning.modules import DIO, DEQReg, RegistrationModule
from dio_lightning.pair import Pair

T = TypeVar("T")
METHODS = ("dio", "deqreg", "deqreg12", "unrolling", "gradirn", "riir", "voxelmorph")
NAMES = {"brains": METHODS, "lab": (*METHODS, "voxelmorph_diffeomorphic")}
"""3-D and 2-D: folders of `experiments`, and what has trained weights there."""
LOSS, GRADIENT = 1e-3, 2e-2
"""Most relative difference from the CPU of the loss, and of all gradients together, in float32 and after few steps.

After a hundred of Adam's steps, which know a gradient's sign far better than its size, rounding errors are as large as
the solution of another run.
"""
ROUNDED = 0.05
"""The same of the loss with convolutions in bfloat16, as the weights were trained."""
FLAT = 0.02
"""Most growth of memory with the number of solver steps."""


class Timed(NamedTuple):
    """A pair to time: the method, the size, the factor of its resolution, the seconds asked of an H100 (0: none)."""

    method: str
    size: Size
    resolution: float = 1.0
    asked: float = 0.0


WHOLE = (160, 192, 224)
PAIRS = {
    "dio at half resolution": Timed("dio", WHOLE, 2.0),
    "dio": Timed("dio", WHOLE, asked=0.25),
    "deqreg at half resolution": Timed("deqreg", WHOLE, 2.0),
    "deqreg, 128 cubed": Timed("deqreg", (128, 128, 128), asked=0.3),
    "deqreg": Timed("deqreg", WHOLE),
}
STEPS = ("dio", "deqreg", "voxelmorph")
"""Whose training step is timed."""


def build(folder: str, name: str) -> RegistrationModule:
    """A published method with its weights, on the CPU, its convolutions in float32."""
    stem = ROOT / "experiments" / folder / "weights" / f"{name}_0"
    module = _made(yaml.safe_load(stem.with_suffix(".yaml").read_text())["model"])
    module.load_state_dict(load_file(stem.with_suffix(".safetensors")))
    module.resolution = 1.0
    if isinstance(module, DEQReg):
        module.replay = 0.0  # every step is then a function of its batch
    return in_precision(module, "float32")


def _made(node: Any) -> Any:  # noqa: ANN401
    """The object that a part of a config describes; optimizers are left out."""
    if isinstance(node, list):
        return [_made(part) for part in node]
    if not isinstance(node, dict) or "class_path" not in node:
        return node
    package, name = node["class_path"].rsplit(".", 1)
    options = {k: _made(v) for k, v in node.get("init_args", {}).items() if k not in ("optimizer", "scheduler")}
    return getattr(import_module(package), name)(**options)


def in_precision(module: RegistrationModule, precision: str) -> RegistrationModule:
    """The module with its convolutions in float32 or bfloat16."""
    for part in module.modules():
        if hasattr(part, "precision"):
            vars(part)["precision"] = precision
    return module


def pair(size: Size, device: torch.device) -> Pair:
    """A smooth random image and the same one moved, in [0, 1]."""
    fixed, moving, _ = shifted_features(size, 1)
    low, high = moving.amin(), moving.amax()
    return {"fixed": ((fixed - low) / (high - low)).to(device), "moving": ((moving - low) / (high - low)).to(device)}


def training(machine: Machine, folder: str, name: str) -> Found:
    """Loss and gradients of one step with few iterations, beside those of the CPU, then of one as configured."""
    size = {"lab": (64, 56), "brains": (40, 48, 44)}[folder]
    if machine.small:
        size = tuple(max(16, extent // 3) for extent in size)
    module, cpu = build(folder, name), torch.device("cpu")
    expected = _step(fewer(module), pair(size, cpu))
    there, images = copy.deepcopy(module).to(machine.device), pair(size, machine.device)
    # two implementations meet on a CPU that stands in for a GPU, too
    with full_float32(), plain() if machine.device.type == "cpu" else nullcontext():
        found = _step(there, images)
        rounded = _step(in_precision(there, "bfloat16"), images)
        whole = (
            None if machine.small else _step(in_precision(build(folder, name).to(machine.device), "bfloat16"), images)
        )
    steps = [step for step in (expected, found, rounded, whole) if step is not None]
    finite = all(bool(gradient.isfinite().all()) for _, gradient in steps)
    of_loss, of_rounding = (abs(loss - expected[0]) / abs(expected[0]) for loss, _ in (found, rounded))
    of_gradient = float((found[1] - expected[1]).norm() / expected[1].norm())
    return {
        "ok": finite and of_loss <= LOSS and of_gradient <= GRADIENT and of_rounding <= ROUNDED,
        "finite": finite,
        "loss": found[0],
        "loss_difference": of_loss,
        "gradient_difference": of_gradient,
        "bfloat16_difference": of_rounding,
        "loss_as_configured": whole and whole[0],
        "size": list(size),
    }


def fewer(module: RegistrationModule) -> RegistrationModule:
    """The module with few iterations."""
    if isinstance(module, DIO):
        module.layer.iterations = (2,) * len(module.layer.iterations)
    if isinstance(module, DEQReg):
        module.steps = 6
    return module


def _step(module: RegistrationModule, images: Pair) -> tuple[float, Tensor]:
    """Loss, and all gradients as one float64 vector on the CPU."""
    warnings.filterwarnings("ignore", ".*self.log.*")  # the module runs without a trainer here
    torch.manual_seed(0)
    module.train().zero_grad()
    loss = module.training_step(images, 0)
    loss.backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in module.parameters()]
    return float(loss.detach()), torch.cat([g.detach().double().cpu().flatten() for g in gradients])


@contextmanager
def full_float32() -> Iterator[None]:
    """TensorFloat-32 off."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def flat(machine: Machine) -> Found:
    """Peak memory (MiB) of a DEQReg training step for each number of solver steps, weights and images not counted."""
    size, numbers = ((12, 12, 12), (3, 6)) if machine.small else ((96, 112, 96), (12, 48, 96))
    warnings.filterwarnings("ignore", ".*self.log.*")
    module = build("brains", "deqreg").to(machine.device).train()
    images, peaks = pair(size, machine.device), []
    for steps in numbers:
        module.steps = steps
        found = cost(module, images)
        peaks.append(found.peak_mb if machine.device.type == "cuda" else found.tensors_mb)
    growth = [peak / peaks[0] - 1 for peak in peaks]
    return {
        "ok": max(growth) <= FLAT,
        "peak_mib": dict(zip(map(str, numbers), peaks, strict=True)),
        "growth": max(growth),
        "size": list(size),
    }


def pair_seconds(machine: Machine, name: str) -> Found:
    """Seconds of the registration of one pair, the best of three after a warm-up, and its peak memory (MiB)."""
    module, images = prepared(machine, name)
    with torch.inference_mode():
        found, measured = _timed(lambda: module.test_step(images, 0), machine)
    if PAIRS[name].asked and not machine.small:
        measured |= {"seconds_asked": PAIRS[name].asked}
    ok = bool(found["displacement"].isfinite().all())
    means = {key: float(found[key].float().mean()) for key in ("steps", "residual")}
    return {"ok": ok, **measured, **means, "size": list(images["fixed"].shape[2:])}


def prepared(machine: Machine, name: str) -> tuple[RegistrationModule, Pair]:
    """The method and the images of one of `PAIRS`."""
    method, size, resolution, _ = PAIRS[name]
    module = in_precision(build("brains", method), "float32" if machine.small else "bfloat16")
    module.resolution = resolution
    if machine.small:
        fewer(module)
    return module.to(machine.device).eval(), pair((16, 20, 24) if machine.small else size, machine.device)


def step_seconds(machine: Machine, name: str) -> Found:
    """Seconds of a training step of whole images (loss and gradients), likewise; without labels."""
    size = (16, 20, 24) if machine.small else WHOLE
    module = in_precision(build("brains", name), "float32" if machine.small else "bfloat16").to(machine.device)
    if machine.small:
        fewer(module)
    images = pair(size, machine.device)
    (loss, _), measured = _timed(lambda: _step(module, images), machine)
    return {"ok": isfinite(loss), **measured, "loss": loss, "size": list(size)}


def _timed(call: Callable[[], T], machine: Machine) -> tuple[T, dict[str, float]]:
    """What a call returns; the seconds of the first and of the fastest of the rest, and on a GPU its peak memory."""
    cuda, seconds = machine.device.type == "cuda", []
    while True:
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        start = perf_counter()
        result = call()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(perf_counter() - start)
        if len(seconds) == (2 if machine.small else 4):
            break
    peak = {"peak_mib": peak_memory(machine.device)} if cuda else {}
    return result, {"seconds": min(seconds[1:]), "seconds_first": seconds[0], **peak}
