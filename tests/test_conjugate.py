"""Conjugate gradients against a dense solve, and the adjoint that they make."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from dio_lightning.implicit import GradientDescent, ImplicitAdjoint, Residual, conjugate_gradients, fixed_point


def symmetric(eigenvalues: Tensor, seed: int) -> Tensor:
    """A matrix with these eigenvalues."""
    size = len(eigenvalues)
    basis = torch.linalg.qr(
        torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    ).Q
    return basis @ torch.diag(eigenvalues) @ basis.T


def product_of(matrices: Tensor):
    return lambda w: (matrices @ w.flatten(1)[:, :, None]).view(w.shape)


def test_every_sample_is_solved_as_a_dense_solve_does() -> None:
    """One that is zero, and one that takes more steps than the others, leave them alone."""
    eigenvalues = [torch.linspace(1, high, 12, dtype=torch.float64) for high in (2.0, 5.0, 400.0)]
    matrices = torch.stack([symmetric(e, i) for i, e in enumerate(eigenvalues)])
    v = torch.randn(3, 3, 4, dtype=torch.float64)
    v[0] = 0
    before = v.clone()
    w, residual, steps = conjugate_gradients(product_of(matrices), v, rtol=1e-10, max_steps=60)
    assert_close(w, torch.linalg.solve(matrices, v.flatten(1)).view(v.shape))
    assert (residual <= 1e-9).all() and residual[0] == 0 and steps < 60 and torch.equal(v, before)
    few, residual, steps = conjugate_gradients(product_of(matrices), v, rtol=1e-10, max_steps=5)
    assert steps == 5 and residual[2] > 1e-3
    assert_close(
        residual, (v - product_of(matrices)(few)).flatten(1).norm(dim=1) / v.flatten(1).norm(dim=1).clamp(1e-9)
    )


def test_what_is_not_positive_definite_is_no_solution() -> None:
    matrices = torch.stack([symmetric(torch.linspace(low, 2, 8, dtype=torch.float64), 0) for low in (-1.0, 0.5)])
    v = torch.randn(2, 8, dtype=torch.float64)
    w, residual, _ = conjugate_gradients(product_of(matrices), v, rtol=1e-10, max_steps=40)
    assert residual[0].isinf() and residual[1] <= 1e-9
    assert_close(w[1], torch.linalg.solve(matrices[1], v[1]))
    lost = conjugate_gradients(lambda w: w * torch.tensor([[torch.nan], [2.0]]), v, rtol=1e-10, max_steps=9)[1]
    assert lost[0].isinf() and lost[1] <= 1e-9


def test_the_symmetric_adjoint_is_that_of_gmres_at_a_minimum_and_falls_back_elsewhere() -> None:
    hessian = symmetric(torch.linspace(0.1, 1.0, 10, dtype=torch.float64), 4)
    b = torch.randn(2, 10, dtype=torch.float64, requires_grad=True)

    def gradient(adjoint: ImplicitAdjoint, h: Tensor, start: Tensor) -> Tensor:
        solution = fixed_point(
            lambda z: z - (z @ h - b), start, GradientDescent(1.0), adjoint, max_steps=400, stop=Residual(1e-12)
        )
        return torch.autograd.grad(solution.value.pow(3).sum(), b)[0]

    zero = torch.zeros_like(b)
    by_gmres, by_conjugate = (gradient(ImplicitAdjoint(1e-10, 40, 40, s), hessian, zero) for s in (False, True))
    assert_close(by_conjugate, by_gmres)
    minimum = torch.linalg.solve(hessian, b.detach().T).T
    assert_close(by_conjugate, torch.linalg.solve(hessian, 3 * minimum.square().T).T)
    saddle = symmetric(torch.linspace(-0.5, 1.0, 10, dtype=torch.float64), 4)
    at = torch.linalg.solve(saddle, b.detach().T).T
    with pytest.warns(UserWarning, match="ImplicitAdjoint reached"):
        assert_close(gradient(ImplicitAdjoint(1e-10, 40, 40, True), saddle, at), 3 * at.square())
