"""Triton's sums of linearly warped labels against plain PyTorch, in the interpreter where there is no GPU."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

pytest.importorskip("triton", reason="needs Triton, which is made for Linux")

from dio_lightning import losses, ops
from dio_lightning.ops import grid_triton, soft_labels, soft_labels_triton

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SIZES = [(4, 5), (2, 3, 4), (1, 3, 2), (4, 1), (1, 1, 1)]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Several programs in a few voxels."""
    monkeypatch.setenv("DIO_OPS", "triton")
    monkeypatch.setattr(soft_labels_triton, "BLOCK", 16)


def problem(size: tuple[int, ...], dtype: torch.dtype = torch.float64, most: int = 4, b: int = 2) -> list[Tensor]:
    """Label maps, and displacements beyond the border; none of them lies in one piece."""
    torch.manual_seed(0)
    labels = [torch.randint(0, most + 1, (b, 1, *size, 2)).to(DEVICE, torch.int16)[..., 0] for _ in range(2)]
    u = 1.5 * torch.randn(b, len(size), *size, 2, dtype=dtype).to(DEVICE)[..., 0]
    u[0, 0].view(-1)[0] = 0  # a whole voxel: the cell above
    return [*labels, u]


@pytest.mark.parametrize("wide", [False, True], ids=["32 bits", "64 bits"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sums_and_slopes_are_those_of_plain_pytorch(size, dtype, wide, monkeypatch) -> None:
    if wide:
        monkeypatch.setattr(grid_triton, "LARGEST", 0)
    fixed, moving, u = problem(size, dtype)
    results = []
    for name in ("triton", "reference"):
        monkeypatch.setenv("DIO_OPS", name)
        assert soft_labels.implementation("soft_labels", u) is (soft_labels_triton if name == "triton" else None)
        v = u.clone().requires_grad_()
        sums = ops.label_sums(fixed, moving, v, 4)
        of = torch.linspace(-1, 2, 8, dtype=torch.float64).to(DEVICE).view(2, 4)
        (slope,) = torch.autograd.grad((sums[0] * of + sums[1] * of.flip(0)).sum(), v)
        results.append((*sums, slope))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-9
    assert all(x.dtype == torch.float64 for x in results[0][:2]) and results[0][2].dtype == dtype
    assert_close(results[0], results[1], rtol=tolerance, atol=tolerance)


def test_moving_labels_may_have_another_size_and_sums_are_the_same_bits_in_any_order(monkeypatch) -> None:
    fixed, _, u = problem((3, 4, 5), torch.float32)
    moving = torch.randint(0, 5, (2, 1, 2, 6, 3), device=DEVICE)
    sums = []
    for block in (16, 32):
        monkeypatch.setattr(soft_labels_triton, "BLOCK", block)
        sums.append(ops.label_sums(fixed, moving, u, 4))
    assert all(torch.equal(x, y) for x, y in zip(*sums, strict=True))
    monkeypatch.setenv("DIO_OPS", "reference")
    assert_close(sums[0], ops.label_sums(fixed, moving, u, 4), rtol=1e-5, atol=1e-5)


def test_a_shift_by_half_a_voxel_in_closed_form() -> None:
    """Of a row 0 1 1 0 the warped mask is 0.5 1 0.5 0, of which the fixed one has 1.5."""
    label, u = torch.tensor([[[[0, 1, 1, 0]]]], device=DEVICE), torch.zeros(1, 2, 1, 4, device=DEVICE)
    u[:, 1] = 0.5
    assert [x.tolist() for x in ops.label_sums(label, label, u, 1)] == [[[1.5]], [[2.0]]]
    assert_close(losses.soft_dice(label, label, u), torch.full((1, 1), 3 / 4, device=DEVICE))


def test_the_derivative_of_dice_is_that_of_differences() -> None:
    fixed, moving, u = problem((2, 3, 2), b=1)
    assert torch.autograd.gradcheck(lambda v: losses.soft_dice(fixed, moving, v, 4), ((u + 0.013).requires_grad_(),))


@pytest.mark.parametrize("name", ["triton", "reference"])
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_a_displacement_that_is_not_finite_has_no_sums(name, wrong, monkeypatch) -> None:
    monkeypatch.setenv("DIO_OPS", name)
    fixed, moving, u = problem((3, 4))
    u[1, 0, 2, 3] = wrong
    for sums in ops.label_sums(fixed, moving, u, 4):
        assert sums[0].isfinite().all() and sums[1].isnan().all()


def test_more_labels_than_a_kernel_looks_for_are_summed_all_the_same(monkeypatch) -> None:
    fixed, moving, u = problem((3, 4))
    expected = ops.label_sums(fixed, moving, u, 4)
    monkeypatch.setattr(soft_labels, "MOST", 3)
    monkeypatch.setattr(soft_labels_triton, "label_sums", None)
    assert_close(ops.label_sums(fixed, moving, u, 4), expected)
