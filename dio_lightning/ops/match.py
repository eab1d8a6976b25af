"""Feature matching: the energy that DIO's inner loop lives in, its gradient, and the adjoint of both.

E(u) = Σ_x 1/C Σ_c r_c(x)²,   r_c(x) = M_c(x + u(x)) - F_c(x),   ρ(x) = ∂E/∂u(x) = 2/C Σ_c r_c ∇M_c(x + u(x))

for fixed features F and moving features M, (b, c, *s), and a displacement u, (b, d, *s), in voxels. The moving features
are interpolated linearly and continued beyond the border. No warped feature volume is ever stored on the fast path.

`match` is a custom operator: plain PyTorch, Numba's loops on the CPU, Triton's kernels on CUDA (`ops.choice`).
"""

from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dio_lightning.ops import match_reference
from dio_lightning.ops.choice import backward_alone, immediate, implementation


class Blocks(NamedTuple):
    """What a Gauss-Newton step needs of every voxel, beside the energy."""

    value: Tensor
    """(b,) the energy E."""
    gradient: Tensor
    """(b, d, *s) ρ."""
    block: Tensor
    """(b, d(d+1)/2, *s) upper triangle, row by row, of 2/C Σ_c ∇M_c ∇M_cᵀ."""
    residual: Tensor
    """(b, 1, *s) 2/C Σ_c r_c²."""


def match(fixed: Tensor, moving: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Energy E, (b,), and its gradient ρ with respect to u, (b, d, *s); both differentiable once in all arguments.

    Raises:
        ValueError: if the features differ in shape, or u does not lie on their grid.
    """
    _check(fixed, moving, u)
    return _computed(fixed, moving, u) if immediate() else torch.ops.dio.match(fixed, moving, u)


def match_blocks(fixed: Tensor, moving: Tensor, u: Tensor) -> Blocks:
    """The same pass, with each voxel's Gauss-Newton block; not differentiable."""
    _check(fixed, moving, u)
    with torch.no_grad():
        return Blocks(*torch.ops.dio.match_blocks(fixed, moving, u))


def _check(fixed: Tensor, moving: Tensor, u: Tensor) -> None:
    backward_alone("feature matching", fixed, moving, u)
    d = fixed.ndim - 2
    if fixed.shape != moving.shape or d not in (2, 3):
        raise ValueError(
            f"cannot match fixed features {tuple(fixed.shape)} with moving features {tuple(moving.shape)}: "
            "expected equal shapes (b, c, *s) in 2-D or 3-D"
        )
    if u.shape != (len(fixed), d, *fixed.shape[2:]):
        raise ValueError(f"displacement {tuple(u.shape)} does not lie on the features' grid {tuple(fixed.shape[2:])}")


@torch.library.custom_op("dio::match", mutates_args=())
def _match(fixed: Tensor, moving: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    return _computed(fixed, moving, u)


def _computed(fixed: Tensor, moving: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    value, gradient = _backend(u).match(fixed, moving, u)
    return value, gradient.contiguous()


@torch.library.custom_op("dio::match_adjoint", mutates_args=())
def _match_adjoint(
    fixed: Tensor, moving: Tensor, u: Tensor, of_value: Tensor, of_gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    of_fixed, of_moving, of_u = _backend(u).match_adjoint(fixed, moving, u, of_value, of_gradient)
    return _channels_last(of_fixed), _channels_last(of_moving), of_u.contiguous()


@torch.library.custom_op("dio::match_blocks", mutates_args=())
def _match_blocks(fixed: Tensor, moving: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    value, gradient, block, residual = _backend(u).match_blocks(fixed, moving, u)
    return value, gradient.contiguous(), block, residual


def _channels_last(features: Tensor) -> Tensor:
    """The same with channels last in memory, as compiled kernels write gradients: one layout, whoever computes."""
    return features.movedim(1, -1).contiguous().movedim(-1, 1)


def _backend(u: Tensor) -> ModuleType:
    """The file whose functions compute it."""
    return implementation("match", u) or match_reference


@_match.register_fake
def _match_fake(fixed: Tensor, moving: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    return u.new_empty(len(u)), u.new_empty(u.shape)


@_match_adjoint.register_fake
def _match_adjoint_fake(
    fixed: Tensor, moving: Tensor, u: Tensor, of_value: Tensor, of_gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    of_fixed, of_moving = (_channels_last(features.new_empty(features.shape)) for features in (fixed, moving))
    return of_fixed, of_moving, u.new_empty(u.shape)


@_match_blocks.register_fake
def _match_blocks_fake(fixed: Tensor, moving: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    b, d, *s = u.shape
    return u.new_empty(b), u.new_empty(u.shape), u.new_empty(b, d * (d + 1) // 2, *s), u.new_empty(b, 1, *s)


def _remember(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:  # noqa: ANN401
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, of_value: Tensor, of_gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ANN401
    return torch.ops.dio.match_adjoint(*ctx.saved_tensors, of_value.contiguous(), of_gradient.contiguous())


_match.register_autograd(_backward, setup_context=_remember)
