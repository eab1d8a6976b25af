"""A loss of parts has the gradient of the sum and the memory of one part; stability numbers have closed forms."""

import gc
import weakref

import pytest
import torch
from torch.testing import assert_close

from dio_lightning.implicit import jacobian_energy, piecewise_sum, spectral_radius


def parts(weight: torch.Tensor, count: int = 3):
    for k in range(count):
        yield (weight * (k + 1)).sin().sum()


def test_the_gradient_is_that_of_the_sum() -> None:
    weight = torch.randn(4, requires_grad=True)
    idle = torch.randn(2, requires_grad=True)
    total = piecewise_sum(parts(weight), [weight, idle])
    expected = torch.stack(list(parts(weight))).sum()
    assert_close(total, expected)
    (2 * total).backward()  # as a gradient scaler would
    assert_close(weight.grad, 2 * torch.autograd.grad(expected, weight)[0])
    assert_close(idle.grad, torch.zeros(2))


def test_a_part_is_freed_before_the_next_is_built() -> None:
    weight, alive = torch.randn(4, requires_grad=True), []

    def watched():
        for k in range(4):
            gc.collect()
            assert not any(part() is not None for part in alive)
            held = (weight * k).exp()
            alive.append(weakref.ref(held))
            loss = held.sum()
            del held
            yield loss
            del loss

    piecewise_sum(watched(), [weight])
    assert len(alive) == 4


def test_without_gradients_it_is_the_plain_sum() -> None:
    weight = torch.randn(4)
    assert_close(piecewise_sum(parts(weight), [weight]), torch.stack(list(parts(weight))).sum())
    with pytest.raises(ValueError, match="at least one part"):
        piecewise_sum([], [weight])


def test_the_spectral_radius_of_a_linear_map() -> None:
    matrix = torch.tensor([[0.6, 0.2, 0.0], [0.0, -0.9, 0.1], [0.0, 0.0, 0.3]])
    rotation = 0.8 * torch.tensor([[0.6, -0.8, 0.0], [0.8, 0.6, 0.0], [0.0, 0.0, 0.5]])
    for linear, radius in ((matrix, 0.9), (rotation, 0.8)):
        found = spectral_radius(lambda z, m=linear: z @ m.T + 1, torch.randn(2, 3), steps=200)
        assert_close(found, torch.full((2,), radius), rtol=1e-2, atol=0.0)
    with pytest.raises(ValueError, match="at least 2"):
        spectral_radius(lambda z: z, torch.zeros(1, 1), steps=1)


def test_the_jacobian_energy_estimates_the_frobenius_norm_and_can_be_minimised() -> None:
    matrix = torch.randn(5, 5, requires_grad=True)
    z = torch.randn(4000, 5, requires_grad=True)
    energy = jacobian_energy(z, z @ matrix.T).mean()
    assert_close(energy, matrix.square().sum() / 5, rtol=0.1, atol=0.0)
    (slope,) = torch.autograd.grad(energy, matrix)
    assert_close(slope, 2 * matrix / 5, rtol=0.3, atol=0.1)
