"""Joint histograms and mutual information: by hand, in closed form, with both backends, and their gradients."""

from math import log

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from dio_lightning.ops import information, information_numba, joint_histogram, mutual_information
from dio_lightning.registration.similarity import normalised_information

SIZES = [(7, 6), (5, 4, 6)]
every_size = pytest.mark.parametrize("size", SIZES, ids=["2d", "3d"])


def images(size: tuple[int, ...], *, beyond: float = 0.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two images that have to do with each other, and weights; some intensities lie beyond [0, 1]."""
    a = torch.rand(2, 1, *size, dtype=torch.float64) * (1 + 2 * beyond) - beyond
    return a, 0.6 * (1 - a) ** 2 + 0.4 * torch.rand_like(a), torch.rand_like(a)


def by_hand(a: np.ndarray, b: np.ndarray, bins: int, weights: np.ndarray) -> np.ndarray:
    """The same table as a matrix product of triangles."""
    centres = np.arange(bins)
    one, two = (np.clip(1 - np.abs(np.clip(x, 0, 1)[:, None] * (bins - 1) - centres), 0, None) for x in (a, b))
    table = (one * weights[:, None]).T @ two
    return table / table.sum()


@every_size
@pytest.mark.parametrize("weighted", [False, True], ids=["even", "weighted"])
def test_a_histogram_is_its_definition(size, weighted) -> None:
    a, b, weights = images(size, beyond=0.1)
    ours = joint_histogram(a, b, 6, weights if weighted else None)
    for i in range(2):
        w = weights[i].flatten().numpy() if weighted else np.ones(a[i].numel())
        np.testing.assert_allclose(ours[i], by_hand(a[i].flatten().numpy(), b[i].flatten().numpy(), 6, w))


@every_size
@pytest.mark.parametrize("weighted", [False, True], ids=["even", "weighted"])
def test_both_backends_count_and_slope_alike(size, weighted) -> None:
    a, b, weights = (x.flatten(1) for x in images(size, beyond=0.1))
    each = weights if weighted else None
    ours, plain = information_numba.joint_counts(a, b, 5, each), information._counts(a, b, 5, each)
    assert_close(ours, plain)
    table = information._of_counts(plain)[1]
    steps = (table[:, 1:] - table[:, :-1]).contiguous()
    expected = torch.autograd.grad((plain * 0 + information._counts(a.requires_grad_(), b, 5, each) * table).sum(), a)
    assert_close(4 * information_numba.slope(a, b, steps, each), expected[0])
    assert_close(4 * information._read(a.detach(), b, steps, each), expected[0])


def test_many_chunks_make_one_histogram(monkeypatch) -> None:
    a, b, weights = images((9, 8))
    expected = joint_histogram(a, b, 4, weights)
    monkeypatch.setattr(information_numba, "_CHUNK", 7)
    assert_close(joint_histogram(a, b, 4, weights), expected)


@pytest.mark.parametrize("size", [(4, 5), (3, 2, 3)], ids=["2d", "3d"])
def test_derivatives_of_the_information_are_those_of_finite_differences(size) -> None:
    a, b, weights = (x.requires_grad_() for x in images(size))
    for each in (None, weights.detach()):
        assert torch.autograd.gradcheck(lambda x, y, w=each: mutual_information(x, y, 5, w), (a, b))
        assert torch.autograd.gradgradcheck(lambda x, y, w=each: mutual_information(x, y, 5, w), (a, b))


def test_information_has_a_closed_form() -> None:
    """Nothing of independent images, the entropy of an image of itself; an empty bin has a logarithm."""
    halves = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    halves[:, :, 4:] = 1
    assert mutual_information(halves, halves, 2).item() == pytest.approx(log(2), abs=1e-3)
    assert mutual_information(halves, 1 - halves, 9).item() == pytest.approx(log(2), abs=2e-3)
    assert mutual_information(halves, halves.transpose(2, 3), 2).item() == pytest.approx(0, abs=1e-9)
    assert normalised_information(halves, 1 - halves, 9).item() == pytest.approx(2)
    assert normalised_information(halves, halves.transpose(2, 3), 9).item() == pytest.approx(1)


def test_a_weight_of_nothing_is_a_voxel_that_is_not_there() -> None:
    a, b, weights = images((6, 7))
    weights[..., 3:] = 0
    short = [x[..., :3] for x in (a, b, weights)]
    assert_close(mutual_information(a, b, 5, weights), mutual_information(*short[:2], 5, short[2]))
    a.requires_grad_()
    (slope,) = torch.autograd.grad(mutual_information(a, b, 5, weights).sum(), a)
    assert not slope[..., 3:].any() and slope[..., :3].any()


def test_what_is_no_number_stays_none_and_beyond_the_ends_there_is_no_slope() -> None:
    a, b, _ = images((6, 7), beyond=0.2)
    a.requires_grad_()
    (slope,) = torch.autograd.grad(mutual_information(a, b, 5).sum(), a)
    outside = (a < 0) | (a > 1)
    assert outside.any() and not slope[outside].any()
    a.data[0, 0, 2, 2] = torch.nan
    values = mutual_information(a, b, 5)
    assert values[0].isnan() and values[1].isfinite()
    assert information._counts(a[:1].flatten(1), b[:1].flatten(1), 5, None).isnan().any()
