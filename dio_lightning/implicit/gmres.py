"""Restarted GMRES for one linear system per sample, matrix-free."""

from collections.abc import Callable

import torch
from torch import Tensor

from dio_lightning.implicit.batch import accumulate, dot, finite, norm, spread

Product = Callable[[Tensor], Tensor]


def gmres(product: Product, v: Tensor, *, rtol: float, max_steps: int, restart: int) -> tuple[Tensor, Tensor, int]:
    """Solve A w = v (b, ...) for each sample, `product` being w -> A w (Saad and Schultz 1986).

    Returns w (b, ...), the relative residual ||v - A w|| / ||v|| (b,), and the number of products. The residual
    of a sample whose products are not finite is infinite (its w is meaningless). Keeps `restart` + 1 fields.
    """
    goal = norm(v)
    safe = _Sanitised(product, torch.zeros(len(v), dtype=torch.bool, device=v.device))
    with torch.no_grad():
        w, left, steps = torch.zeros_like(v), v, 0
        while True:
            change, residual, used = _cycle(safe, left, rtol * goal, min(restart, max_steps - steps))
            w, steps = w + change, steps + used
            if steps + 1 >= max_steps or bool((safe.broken | (residual <= rtol * goal)).all()):
                break
            left, steps = v - safe(w), steps + 1
        broken = safe.broken | ~finite(w)
        relative = torch.where(goal > 0, residual / goal, 0)
    return w, torch.where(broken, torch.inf, relative), steps


class _Sanitised:
    """A product whose non-finite samples are remembered and set to zero."""

    def __init__(self, product: Product, broken: Tensor) -> None:
        self.product, self.broken = product, broken

    def __call__(self, w: Tensor) -> Tensor:
        q = self.product(w)
        self.broken = self.broken | ~finite(q)
        return torch.where(spread(self.broken, q), 0, q)


def _cycle(product: Product, left: Tensor, goal: Tensor, size: int) -> tuple[Tensor, Tensor, int]:
    """At most `size` Arnoldi steps from the residual `left`: change of w, new ||residual|| (b,), products."""
    beta = norm(left)
    basis = [left * _inverse(beta, left)]
    hessenberg = left.new_zeros(len(left), size + 1, size, dtype=torch.float64)
    y, residual, used = left.new_zeros(len(left), 0), beta, 0
    for k in range(size):
        q = product(basis[k])
        rounding = 10 * torch.finfo(q.dtype).eps * norm(q)
        for i, p in enumerate(basis):
            h = dot(p, q)
            hessenberg[:, i, k] = h.to(hessenberg)
            q = accumulate(q, -h, p)
        h = norm(q)
        h = torch.where(h > rounding, h, 0)
        hessenberg[:, k + 1, k] = h.to(hessenberg)
        y, residual = _least_squares(hessenberg[:, : k + 2, : k + 1], beta)
        used = k + 1
        if used == size or bool((residual <= goal).all()):
            break
        basis.append(q * _inverse(h, q))
    change = torch.zeros_like(left)
    for weight, p in zip(y.unbind(1), basis, strict=True):
        change = accumulate(change, weight, p)
    return change, residual, used


def _least_squares(hessenberg: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients y (b, k) that minimise ||beta e_1 - H y||, and that minimum (b,); H may lack rank."""
    right = torch.zeros_like(hessenberg[:, :, 0])
    right[:, 0] = beta.to(right)
    y = (torch.linalg.pinv(hessenberg) @ right[:, :, None])[:, :, 0]
    missing = right - (hessenberg @ y[:, :, None])[:, :, 0]
    return y, missing.norm(dim=1).to(beta)


def _inverse(length: Tensor, like: Tensor) -> Tensor:
    """1 / length, 0 where it is 0, as (b, 1, ..., 1)."""
    return spread(torch.where(length > 0, 1 / length, 0), like).to(like.dtype)
