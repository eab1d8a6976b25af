"""Conjugate gradients for one symmetric linear system per sample, matrix-free."""

from collections.abc import Callable

import torch
from torch import Tensor

from dio_lightning.implicit.batch import accumulate, dot, finite, norm, spread

Product = Callable[[Tensor], Tensor]


def conjugate_gradients(product: Product, v: Tensor, *, rtol: float, max_steps: int) -> tuple[Tensor, Tensor, int]:
    """Solve A w = v (b, ...) for each sample, `product` being w -> A w, symmetric and positive definite.

    Hestenes and Stiefel, 1952. Returns w (b, ...), the relative residual ||v - A w|| / ||v|| (b,), and the number of
    products, the last of which checks the residual. Keeps four fields, however many products. A sample stops where it
    is solved; where a product is not finite, or A turns out not to be positive definite, its residual is infinite (its
    w is meaningless).
    """
    with torch.no_grad():
        goal = norm(v)
        w, left, steps = torch.zeros_like(v), v.clone(), 0
        along, squared = left.clone(), dot(left, left)
        broken, active = ~finite(v), goal > 0
        while steps + 1 < max_steps and bool((active & ~broken).any()):
            image, steps = product(along), steps + 1
            curvature = dot(along, image)
            broken = broken | (active & ~((curvature > 0) & finite(image)))
            active = active & ~broken
            step = torch.where(active, squared / torch.where(active, curvature, 1), 0)
            w = accumulate(w, step, along)
            left = accumulate(left, -step, torch.where(spread(active, image), image, 0))
            before, squared = squared, dot(left, left)
            active = active & (norm(left) > rtol * goal)
            along = left + spread(torch.where(active, squared / torch.where(active, before, 1), 0), left) * along
        relative = torch.where(goal > 0, norm(v - product(w)) / goal, 0)
    return w, torch.where(broken | ~relative.isfinite(), torch.inf, relative), steps + 1
