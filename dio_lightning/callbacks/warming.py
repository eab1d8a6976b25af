"""What a process does once, done before the clock starts: kernels are compiled or read, libraries choose algorithms."""

from contextlib import AbstractContextManager, nullcontext

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from dio_lightning.pair import Pair

EXTENT = 48
"""Voxels along an axis at most: a small part of a volume costs little beside the volume."""


def warm_up(module: LightningModule, batch: Pair, precision: AbstractContextManager | None = None) -> None:
    """Run a method once on the middle of the first fixed image and that image moved by a voxel.

    The random state and what the module logs are left as they were. A module without `forward`, or one for which the
    part is too small, is left as it is: its first pair is slower then.

    Args:
        module: of the method.
        batch: the first of the test; fixed (b, c, *s).
        precision: of the trainer, as its own steps are run in.
    """
    if type(module).forward is LightningModule.forward:
        return
    fixed = middle(batch["fixed"][:1])
    moving = fixed.roll([1] * (fixed.ndim - 2), list(range(2, fixed.ndim)))
    devices = [module.device] if module.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices), precision or nullcontext():
        try:
            module(fixed, moving)
        except (ValueError, RuntimeError, NotImplementedError):
            return


def middle(image: Tensor) -> Tensor:
    """The central part of an image (b, c, *s), at most `EXTENT` voxels along every axis."""
    for axis, extent in enumerate(image.shape[2:], 2):
        size = min(extent, EXTENT)
        image = image.narrow(axis, (extent - size) // 2, size)
    return image.clone()
