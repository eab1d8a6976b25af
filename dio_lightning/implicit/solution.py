"""What a solve returns."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

Update = Callable[[Tensor], Tensor]
"""f: state (b, ...) -> state of the same shape; may leave its energy (b,) at the last argument in `.energy`."""


@dataclass
class AdjointReport:
    """How the linear solve of the backward pass went; empty until backward has run."""

    residual: Tensor | None = None
    """Relative residual of the adjoint system, shape (b,)."""
    steps: int = 0
    """Vector-Jacobian products taken."""
    converged: Tensor | None = None
    """Shape (b,) bool; False also marks a sample that fell back to its incoming gradient (JFB)."""


@dataclass(frozen=True, eq=False)
class Solution:
    """The end of a solve: z* with f(z*) = z*, and how far each sample of the batch came."""

    value: Tensor
    """z*, shape (b, ...); for a failed sample its last finite state, which carries no implicit or phantom gradient."""
    residual: Tensor
    """||f(z) - z|| / (||f(z)|| + 1e-9) at the sample's last evaluation of f, shape (b,); infinite where f gave NaN.

    For a sample that used every step, this evaluation is the one before its last step.
    """
    steps: Tensor
    """Steps each sample took, shape (b,) int64."""
    converged: Tensor
    """Whether the stop rule fired, shape (b,) bool."""
    failed: Tensor
    """Whether the sample diverged or met NaN, shape (b,) bool."""
    step: Update | None = None
    """One more step of the solver, its state frozen at the solution; differentiable; None means the plain update."""
    backward: AdjointReport = field(default_factory=AdjointReport)
    """Filled by the backward pass of `ImplicitAdjoint`."""

    @classmethod
    def of_one_step(cls, value: Tensor) -> Self:
        """What one evaluation gave, (b, ...), with no solve behind it: its residual says nothing and is infinite."""
        once = torch.ones(len(value), dtype=torch.int64, device=value.device)
        off = torch.zeros_like(once, dtype=torch.bool)
        return cls(value, torch.full_like(once, torch.inf, dtype=value.dtype), once, off, off)
