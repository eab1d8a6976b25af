"""Triton's kernels of a solver's step against plain PyTorch and double precision, in the interpreter without a GPU."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

pytest.importorskip("triton", reason="needs Triton, which is made for Linux")

from dio_lightning import ops
from dio_lightning.ops import composition, grid_triton, sampling_triton, steps, steps_triton

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SHAPES = [(2, 2, 3, 5), (3, 2, 1, 3), (1, 3, 2, 3, 2), (2, 37)]
DTYPES = [torch.float32, torch.float64]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Several programs, whose sums are added in several rounds, in a few elements."""
    monkeypatch.setenv("DIO_OPS", "triton")
    monkeypatch.setattr(steps, "LEAST", 1)
    monkeypatch.setattr(steps_triton, "BLOCK", 8)
    monkeypatch.setattr(steps_triton, "SUMS", 2)
    monkeypatch.setattr(sampling_triton, "BLOCK", 16)


def randn(*size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*size, dtype=dtype).to(DEVICE)


def close(found: object, expected: object, dtype: torch.dtype) -> None:
    rtol = 1e-6 if dtype == torch.float32 else 1e-14
    assert_close(found, expected, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_residual_and_its_norms(shape, dtype, monkeypatch) -> None:
    fz, z = randn(*shape, dtype=dtype), randn(*shape, dtype=dtype)
    r, norm, size = ops.residual(fz, z)
    assert torch.equal(r, fz - z)
    assert norm.dtype == size.dtype == dtype
    exact = (r.double().flatten(1).norm(dim=1), fz.double().flatten(1).norm(dim=1))
    close((norm.double(), size.double()), exact, dtype)
    assert all(torch.equal(x, y) for x, y in zip(ops.residual(fz, z), (r, norm, size), strict=True))
    fz.view(len(z), -1)[0, 0] = torch.nan
    assert all(x.isnan()[0] and not x[1:].isnan().any() for x in ops.residual(fz, z)[1:])


def test_the_norm_of_many_is_that_of_double_precision(monkeypatch) -> None:
    monkeypatch.setattr(steps_triton, "BLOCK", 2048)
    z, fz = torch.zeros(1, 2**16, device=DEVICE), randn(1, 2**16, dtype=torch.float32)
    assert_close(ops.residual(fz, z)[1], fz.double().norm(dim=1).float(), atol=0, rtol=2e-7)


@pytest.mark.parametrize(("beta1", "dtype"), [(0.0, DTYPES[0]), (0.5, DTYPES[1]), (0.9, DTYPES[0])], ids=str)
def test_steps_of_adam(beta1, dtype, monkeypatch) -> None:
    """Residuals from 1e-22, whose squares vanish in single precision, to 1."""
    shape = (3, 2, 5, 7)

    def taken() -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        m, s = torch.zeros(2, *shape, dtype=dtype, device=DEVICE).unbind(0)
        increments = []
        for count in range(3):
            r = torch.randn(shape, generator=generator, dtype=dtype) * torch.logspace(-22, 0, shape[-1], dtype=dtype)
            active = torch.arange(len(r)) >= count if count > 0 else None
            r[~active if active is not None else slice(0)] = 0
            r[:, :, 0] = 0  # where there never was a residual
            before = m.clone(), s.clone()
            factor, r = torch.linspace(0.1, 0.4, len(r), dtype=dtype).to(DEVICE), r.to(DEVICE)
            active = None if active is None else active.to(DEVICE)
            ops.adam_step(r, m, s, factor, active, beta1, 0.99, 1e-2 if count else 0.0)
            if active is not None:
                assert torch.equal(m[~active], before[0][~active]) and torch.equal(s[~active], before[1][~active])
            increments.append(r)
        return [*increments, m, s]

    ours = taken()
    monkeypatch.setenv("DIO_OPS", "reference")
    close(ours, taken(), dtype)
    assert not ours[0][:, :, 0].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES[:3], (2, 4, 1)], ids=str)
def test_the_longest_vector(shape, dtype) -> None:
    v = randn(*shape, dtype=dtype)
    v[0, :, ..., -1] = 40.0
    close(ops.largest_square(v), v.square().sum(1).flatten(1).amax(1), dtype)
    assert ops.largest_square(v)[0] == 1600 * shape[1]
    for bad in (torch.nan, torch.inf):
        v[-1, 0, ..., 0] = bad
        expected = v.square().sum(1).flatten(1).amax(1)
        assert_close(ops.largest_square(v), expected, equal_nan=True)
    assert not ops.largest_square(torch.zeros_like(v)).any()


@pytest.mark.parametrize(
    ("size", "dtype"),
    [((4, 5), DTYPES[0]), ((2, 3, 4), DTYPES[1]), ((1, 3, 2), DTYPES[0]), ((4, 1), DTYPES[1])],
    ids=str,
)
def test_composition_is_one_pass(size, dtype) -> None:
    """Also where vectors lead across every border, and for displacements that are not one piece of memory."""
    d = len(size)
    u = 3 * randn(2, d, *size, dtype=dtype)
    v = 4 * randn(*size, 2, d, dtype=dtype).movedim((-2, -1), (0, 1))
    factor = torch.tensor([0.3, 1.0], dtype=dtype, device=DEVICE)
    with torch.no_grad():
        for first in (u, u.transpose(-1, -2).contiguous().transpose(-1, -2), u[:1].expand_as(u)):
            assert composition._kernels(first, v, factor) is sampling_triton
            close(ops.compose(first, v, factor), composition.reference(first, v, factor), dtype)
        close(ops.compose(u, v), composition.reference(u, v), dtype)
        v[0, 0, ..., 0] = torch.nan
        found, expected = ops.compose(u, v, factor), composition.reference(u, v, factor)
        assert torch.equal(found.isnan(), expected.isnan())
        assert int(found[0].isnan().sum()) == d * v[0, 0, ..., 0].numel()


def test_what_kernels_do_not_take_is_plain_pytorch(monkeypatch) -> None:
    """Half precision, what is not one piece of memory, and gradients."""

    def refuse(operator: str, x: Tensor) -> None:
        pytest.fail("a kernel was asked for")

    monkeypatch.setattr(steps, "implementation", refuse)
    monkeypatch.setattr(composition, "implementation", refuse)
    half, whole = randn(1, 2, 3, 4).bfloat16(), randn(1, 2, 3, 4)
    for x in (half, whole.transpose(-1, -2), whole.clone().requires_grad_()):
        assert torch.equal(ops.residual(x, x)[0], torch.zeros_like(x))
        close(ops.largest_square(x), x.square().sum(1).flatten(1).amax(1), torch.float32)
    ops.adam_step(half.clone(), half.clone(), half.square(), half.new_ones(1), None, 0.5, 0.99, 1e-2)
    ops.compose(half, half)
    r, _, _ = ops.residual(leaf := whole.clone().requires_grad_(), whole)
    assert torch.equal(torch.autograd.grad(r.sum(), leaf)[0], torch.ones_like(whole))


def test_offsets_of_64_bits_and_empty_batches(monkeypatch) -> None:
    x, y = randn(2, 3, 2, 3, 2), randn(2, 3, 2, 3, 2)

    def everything(x: Tensor, y: Tensor) -> list[Tensor]:
        r, m, s = x.clone(), y.clone(), y.square()
        ops.adam_step(r, m, s, x.new_ones(len(x)), None, 0.5, 0.99, 1e-2)
        return [*ops.residual(x, y), r, m, s, ops.largest_square(x), ops.compose(x, y)]

    expected = everything(x, y)
    monkeypatch.setattr(grid_triton, "LARGEST", 0)
    assert all(torch.equal(found, one) for found, one in zip(everything(x, y), expected, strict=True))
    assert [len(found) for found in everything(x[:0], y[:0])] == [0] * len(expected)


def test_the_operators_say_what_they_return_and_what_they_write() -> None:
    x, y = randn(2, 3, 2, 2), randn(2, 3, 2, 2).square()
    utils = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.dio.residual, (x, y), test_utils=utils)
    torch.library.opcheck(torch.ops.dio.largest_square, (x,), test_utils=utils)
    torch.library.opcheck(torch.ops.dio.compose, (x[:, :2], y[:, :2], x[:, 0, 0, 0]), test_utils=utils)
    for active in (None, torch.tensor([True, False], device=DEVICE)):
        settings = x, y.clone(), y, x.new_ones(2), active, 0.5, 0.99, 1e-8
        torch.library.opcheck(torch.ops.dio.adam_step, settings, test_utils=utils)
