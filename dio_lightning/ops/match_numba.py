"""Feature matching on the CPU: tensors to the compiled loops and back, on as many threads as torch has.

A 2-D problem is a 3-D one with a single plane: clamping removes every derivative across it.
"""

import numba
import torch
from torch import Tensor

from dio_lightning.ops import match_kernels
from dio_lightning.ops.choice import started
from dio_lightning.ops.memory import empty_like

_COPIES = 4
"""Most private copies of the moving gradient, which threads scatter to."""


def match(fixed: Tensor, moving: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """See `dio_lightning.ops.match`."""
    return _run_forward(fixed, moving, u, blocks=False)[:2]


def match_blocks(fixed: Tensor, moving: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `dio_lightning.ops.match.Blocks`."""
    value, gradient, extra = _run_forward(fixed, moving, u, blocks=True)
    d = u.shape[1]
    triangle = [0, 1, 2, 3, 4, 5] if d == 3 else [3, 4, 5]
    return value, gradient, _lower(extra[:, triangle], u), _lower(extra[:, 6:], u)


def _run_forward(fixed: Tensor, moving: Tensor, u: Tensor, blocks: bool) -> tuple[Tensor, Tensor, Tensor]:
    f, m, v = _lift(fixed), _lift(moving), _lift_field(u)
    b, s0, s1, s2, _ = f.shape
    energy = torch.empty(b * s0 * s1, dtype=torch.float64)
    gradient = empty_like(v)
    extra = v.new_empty((b, 7, s0, s1, s2) if blocks else (1, 1, 1, 1, 1))
    _threads()
    kernel = match_kernels.forward_blocks if blocks else match_kernels.forward
    kernel(*(t.numpy() for t in (f, m, v, energy, gradient, extra)))
    return energy.view(b, -1).sum(1).to(u.dtype), _lower(gradient[:, 3 - u.shape[1] :], u), extra


def match_adjoint(
    fixed: Tensor, moving: Tensor, u: Tensor, of_value: Tensor, of_gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ⟨of_value, E⟩ + ⟨of_gradient, ρ⟩ with respect to fixed, moving and u."""
    f, m, w, v = _lift(fixed), _lift(moving), _lift_field(u), _lift_field(of_gradient)
    of_fixed, of_u = torch.empty_like(f), torch.empty_like(w)
    of_moving = f.new_zeros(min(_threads(), _COPIES), *f.shape)
    match_kernels.backward(
        *(t.numpy() for t in (f, m, w, of_value.detach().contiguous(), v, of_fixed, of_moving, of_u))
    )
    of_moving = of_moving[0] if len(of_moving) == 1 else of_moving.sum(0)
    return _drop(of_fixed, u), _drop(of_moving, u), _lower(of_u[:, 3 - u.shape[1] :], u)


def _threads() -> int:
    """As many threads as torch uses, so that one setting rules both, and torch keeps its own."""
    # numba fills its config from the environment, where no type checker sees it
    started()
    most: int = numba.config.NUMBA_NUM_THREADS  # pyright: ignore[reportPrivateImportUsage, reportAttributeAccessIssue]
    wanted = torch.get_num_threads()
    threads = min(wanted, most)
    numba.set_num_threads(threads)
    # the first call starts numba's pool, which sets the number of OpenMP's threads to that of all cores: torch's number
    if torch.get_num_threads() != wanted:
        torch.set_num_threads(wanted)
    return threads


def _lift(features: Tensor) -> Tensor:
    """(b, c, *s) as contiguous (b, s0, s1, s2, c); no copy if it is channels-last already."""
    if features.ndim == 4:
        features = features[:, :, None]
    return features.detach().movedim(1, -1).contiguous()


def _drop(features: Tensor, u: Tensor) -> Tensor:
    """The inverse of `_lift`; a stride of a single sample is that of many, by which torch sees how features lie."""
    features = features[:, 0] if u.ndim == 4 else features
    return features.movedim(-1, 1)


def _lift_field(u: Tensor) -> Tensor:
    """(b, d, *s) as (b, 3, s0, s1, s2): a plane gets a component across it, which is zero."""
    if u.ndim == 4:
        u = torch.cat((torch.zeros_like(u[:, :1]), u), 1)[:, :, None]
    return u.detach().contiguous()


def _lower(field: Tensor, like: Tensor) -> Tensor:
    """The inverse of `_lift`'s added plane, for fields (b, k, s0, s1, s2)."""
    field = field[:, :, 0] if like.ndim == 4 else field
    return field.contiguous() if field.storage_offset() == 0 else field.clone()
