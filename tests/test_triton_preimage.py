"""Newton's method by Triton's kernel against closed forms and plain PyTorch, in the interpreter without a GPU."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

pytest.importorskip("triton", reason="needs Triton, which is made for Linux")

from dio_lightning import ops
from dio_lightning.fields import gaussian_smooth, identity, sample
from dio_lightning.ops import grid_triton, preimage, preimage_triton

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Several programs in a few points."""
    monkeypatch.setenv("DIO_OPS", "triton")
    monkeypatch.setattr(preimage_triton, "BLOCK", 16)


def plainly(u: Tensor, y: Tensor) -> Tensor:
    return preimage.newton(u.double(), y.double(), preimage.TOLERANCE, preimage.STEPS, preimage.FLAT)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("d", [2, 3])
def test_preimages_of_an_affine_map_are_those_of_its_inverse(d, dtype) -> None:
    size = (8, 9, 10)[:d]
    grid = identity(size, torch.empty(0, dtype=torch.float64, device=DEVICE))[0]
    matrix = torch.eye(d, dtype=torch.float64) + 0.25 * torch.randint(0, 2, (d, d)).triu(1)
    matrix, centre = matrix.to(DEVICE), grid.flatten(1).mean(1, keepdim=True)
    u = ((matrix - torch.eye(d, device=DEVICE)) @ (grid.flatten(1) - centre)).view_as(grid).to(dtype)
    y = centre + torch.rand(d, 21, dtype=torch.float64).to(DEVICE) * 2 - 1
    expected = torch.linalg.inv(matrix) @ (y - centre) + centre - y
    found = ops.preimages(u.transpose(-1, -2).contiguous().transpose(-1, -2), y)
    assert preimage.implementation("preimage", u) is preimage_triton
    assert found.dtype == torch.float64
    assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(12, 10), (1, 6, 5), (4, 5, 3)], ids=str)
def test_preimages_of_a_field_that_is_no_contraction(size) -> None:
    """Slopes up to 2 without a fold: a plain iteration z = -u(y + z) runs away. Points lie beside the grid too."""
    d = len(size)
    grid = identity(size, torch.empty(0, dtype=torch.float64))
    u = gaussian_smooth(torch.randn(1, d, *size, dtype=torch.float64), 3.0)[0]
    u[-1] += 2.0 * (grid[0, -1] - grid[0, -1].mean())
    u, y = u.to(DEVICE), ((grid[0].flatten(1) + u.flatten(1))[:, ::5]).to(DEVICE)
    y[:, 0] = -3.0
    z = ops.preimages(u, y)
    at = (y + z).view(1, d, *[1] * (d - 1), -1)
    assert float((z + sample(u[None], at)[0].flatten(1)).norm(dim=0).max()) < 1e-5
    assert_close(z, plainly(u, y), atol=1e-5, rtol=0)


def test_a_fold_and_points_that_are_no_numbers(monkeypatch) -> None:
    """Where Newton's step leads nowhere; other points have their preimages."""
    monkeypatch.setattr(preimage, "STEPS", 10)
    u, y = (4 * torch.rand(2, 6, 7) - 2).to(DEVICE), (torch.rand(2, 20) * 5).to(DEVICE)
    y[0, 2], y[1, 3] = torch.nan, torch.inf
    z, expected = ops.preimages(u, y), plainly(u, y)
    assert z[:, 2:4].isnan().all() and not z[:, 4:].isnan().any()
    assert torch.equal(z.isnan(), expected.isnan())

    def missed(z: Tensor) -> Tensor:
        return (z + sample(u.double()[None], (y + z).view(1, 2, 1, -1))[0, :, 0]).norm(dim=0)

    assert_close(missed(z), missed(expected), atol=1e-6, rtol=1e-6, equal_nan=True)
    monkeypatch.setattr(grid_triton, "LARGEST", 0)
    assert_close(ops.preimages(u, y), z, equal_nan=True)
    assert ops.preimages(u, y[:, :0]).shape == (2, 0)
