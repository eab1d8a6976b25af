"""Inverse consistency: closed forms, an exact inverse, SciPy's interpolation, gradients."""

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from torch.testing import assert_close

from dio_lightning.fields import exponential, gaussian_smooth
from dio_lightning.losses import inverse_consistency

SIZES = [(12, 15), (9, 8, 10), (7, 1, 6)]


def velocity(size: tuple[int, ...], length: float = 1.5) -> torch.Tensor:
    v = gaussian_smooth(torch.randn(2, len(size), *size, dtype=torch.float64), 2.0)
    return v * length / v.abs().max()


@pytest.mark.parametrize("size", SIZES)
def test_shifts_are_off_by_their_sum(size):
    forth = torch.full((2, len(size), *size), 1.25)
    back = -forth + torch.tensor([0.0, 0.5]).view(2, *[1] * (len(size) + 1))
    assert_close(inverse_consistency(forth, back), torch.tensor(len(size) * 0.25 / 2))


@pytest.mark.parametrize("size", SIZES)
def test_the_round_trip_is_that_of_scipy_and_has_no_order(size):
    forth, back = (velocity(size).numpy() for _ in range(2))
    grid = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"))
    expected = [
        sum((v[c] + map_coordinates(u[c], grid + v, order=1, mode="nearest")) ** 2 for c in range(len(size))).mean()
        for ways in ((forth, back), (back, forth))
        for u, v in zip(*ways, strict=True)
    ]
    pair = torch.from_numpy(forth), torch.from_numpy(back)
    assert float(inverse_consistency(*pair)) == pytest.approx(np.mean(expected), rel=1e-10)
    assert_close(inverse_consistency(*pair), inverse_consistency(*pair[::-1]))


def test_flows_there_and_back_are_consistent_and_their_lengths_are_not():
    v = velocity((24, 20))
    there_and_back = float(inverse_consistency(exponential(v), exponential(-v)))
    assert there_and_back < 1e-3 * float(inverse_consistency(exponential(v), exponential(v)))


def test_its_gradient():
    forth, back = (velocity((5, 6), 0.4).requires_grad_() for _ in range(2))
    torch.autograd.gradcheck(inverse_consistency, (forth, back))


def test_half_precision_counts_in_single():
    forth, back = (velocity((16, 16)).to(torch.bfloat16) for _ in range(2))
    value = inverse_consistency(forth, back)
    assert value.dtype == torch.float32
    assert_close(value, inverse_consistency(forth.float(), back.float()))
