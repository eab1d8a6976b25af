"""Composition in one pass: compiled loops beside plain PyTorch, bit by bit, and maps whose composition is known."""

import pytest
import torch
from torch.testing import assert_close

from dio_lightning.fields import compose, warp
from dio_lightning.ops.composition import reference


@pytest.mark.parametrize("size", [(23, 31), (9, 14, 37), (1, 9, 8)], ids=str)
def test_one_pass_is_two_to_the_bit(size) -> None:
    """Also where vectors lead across every border, and for displacements that are not one piece of memory."""
    torch.manual_seed(0)
    u, v = torch.randn(3, len(size), *size) * 3, torch.randn(*size, 3, len(size)).movedim((-2, -1), (0, 1)) * 4
    factor = torch.tensor([0.3, 1.0, 0.0])
    with torch.no_grad():
        assert torch.equal(compose(u, v, factor), reference(u, v, factor))
        assert torch.equal(compose(u, v), v + warp(u, v))
        shared = u[:1].expand_as(u)
        assert torch.equal(compose(shared, v, factor), reference(shared.clone(), v, factor))
        assert torch.equal(compose(u[:1], v[:2]), v[:2] + warp(u[:1], v[:2]))


def test_translations_add_and_gradients_are_those_of_the_formula() -> None:
    u, v = torch.zeros(1, 3, 5, 6, 7), torch.zeros(1, 3, 5, 6, 7)
    u[:, 0], v[:, 1], factor = 1.5, 4.0, torch.tensor([0.5])
    expected = torch.tensor([1.5, 2.0, 0.0]).view(1, 3, 1, 1, 1).expand_as(u)
    with torch.no_grad():
        assert_close(compose(u, v, factor), expected)
    leaves = [x.double().requires_grad_() for x in (u + torch.rand_like(u), v + torch.rand_like(v), factor)]
    weight = torch.rand_like(leaves[0])
    found = torch.autograd.grad((weight * compose(*leaves)).sum(), leaves)
    step = leaves[2].view(-1, 1, 1, 1, 1) * leaves[1]
    assert_close(found, torch.autograd.grad((weight * (step + warp(leaves[0], step))).sum(), leaves))


def test_what_is_not_finite_stays_where_it_is() -> None:
    u, v = torch.zeros(2, 2, 8, 9), torch.ones(2, 2, 8, 9)
    v[0, 1, 3, 4], u[1, 0, 2, 2] = torch.nan, torch.nan
    with torch.no_grad():
        found = compose(u, v, torch.tensor([1.0, 0.5]))
        assert found[0].isnan().sum() == 2  # both components at the voxel whose vector is no number
        assert found[1].isnan().sum() == 4  # one component at the corners around the voxel that is none
        assert compose(u, v, torch.tensor([torch.nan, 0.5]))[0].isnan().all()
