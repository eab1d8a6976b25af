"""Memory that shows when it is read before it was written: what is freed or not yet filled holds NaN.

`make test-poisoned` runs the suite so (DIO_POISON=1 here, MALLOC_PERTURB_ for what the C library hands out).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

CONVOLUTIONS = nn.Conv2d | nn.Conv3d


def foul(*shapes: torch.Size) -> None:
    """Leave freed blocks of NaN in the sizes of these tensors, in 32 and 16 bits, for the next allocation to find."""
    kinds = (torch.float32, torch.bfloat16)
    blocks = [torch.full(shape, torch.nan, dtype=kind) for shape in shapes for kind in kinds for _ in range(4)]
    del blocks


@contextmanager
def poisoned() -> Iterator[None]:
    """New tensors are NaN until written, and free memory holds NaN before every convolution, forth and back."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # pyright: ignore[reportAttributeAccessIssue]

    def forth(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if isinstance(module, CONVOLUTIONS):
            foul(arguments[0].shape, module.weight.shape)

    def back(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, CONVOLUTIONS) and output.requires_grad:
            shapes = output.shape, arguments[0].shape, module.weight.shape
            output.register_hook(lambda gradient: foul(*shapes))

    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # pyright: ignore[reportAttributeAccessIssue]
    hooks = [register_module_forward_pre_hook(forth), register_module_forward_hook(back)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        torch.utils.deterministic.fill_uninitialized_memory = filled  # pyright: ignore[reportAttributeAccessIssue]
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
