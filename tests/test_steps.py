"""What a solver's step does to every element: compiled loops beside plain PyTorch, bit by bit, and closed forms."""

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.testing import assert_close

from dio_lightning import ops
from dio_lightning.ops import steps

SHAPES = [(2, 3, 41, 43, 47), (3, 2, 91, 93)]
"""Neither a multiple of what a loop, nor of what a register takes at once."""


@pytest.fixture(params=SHAPES, ids=["volumes", "planes"])
def shape(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[int, ...]:
    monkeypatch.setattr(steps, "LEAST", 1)
    return request.param


def plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIO_OPS", "reference")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_residual_and_its_norms(shape, dtype) -> None:
    torch.manual_seed(0)
    fz, z = torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)
    r, norm, size = ops.residual(fz, z)
    assert torch.equal(r, fz - z)
    assert norm.dtype == size.dtype == dtype
    exact = (r.double().flatten(1).square().sum(1).sqrt(), fz.double().flatten(1).square().sum(1).sqrt())
    assert_close((norm.double(), size.double()), exact, atol=0, rtol=2e-7)


def test_the_norm_of_millions_is_that_of_double_precision() -> None:
    """PyTorch's own is off by a ten-thousandth here: it adds up in single precision."""
    z, fz = torch.zeros(1, 2**22), torch.randn(1, 2**22, generator=torch.Generator().manual_seed(0))
    assert_close(ops.residual(fz, z)[1], fz.double().square().sum(1).sqrt().float(), atol=0, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta1", [0.5, 0.9])
def test_steps_of_adam_are_those_of_plain_pytorch_to_the_bit(shape, beta1, dtype, monkeypatch) -> None:
    def taken() -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        m, s, increments = torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype), []
        for count in range(4):
            r = torch.randn(shape, generator=generator, dtype=dtype) * torch.logspace(-9, 0, shape[-1], dtype=dtype)
            active = torch.arange(len(r)) >= count - 1 if count > 0 else None
            r[~active if active is not None else slice(0)] = 0
            r[:, :, 0] = 0  # where there never was a residual
            before = m.clone(), s.clone()
            factor = torch.linspace(0.1, 0.4, len(r), dtype=dtype)
            ops.adam_step(r, m, s, factor, active, beta1, 0.99, 1e-2)
            if active is not None:
                assert torch.equal(m[~active], before[0][~active]) and torch.equal(s[~active], before[1][~active])
            increments.append(r)
        return [*increments, m, s]

    compiled = taken()
    plainly(monkeypatch)
    for found, expected in zip(compiled, taken(), strict=True):
        assert torch.equal(found, expected)
    assert not compiled[0][:, :, 0].any()


def test_what_does_not_lie_in_one_piece_is_computed_where_it_lies(shape) -> None:
    """Averages are views of larger fields, whose other elements stay."""
    torch.manual_seed(0)
    whole = torch.rand(2, *shape)
    m, s = whole.clone()[..., ::2].unbind(0)
    r = torch.randn(m.shape)
    expected = r.clone(), m.clone(), s.clone()
    ops.adam_step(r, m, s, torch.ones(len(r)), None, 0.5, 0.99, 1e-8)
    ops.adam_step(*expected, torch.ones(len(r)), None, 0.5, 0.99, 1e-8)
    for found, one in zip((r, m, s), expected, strict=True):
        assert_close(found, one, atol=1e-7, rtol=1e-6)
    left, right = m.transpose(-1, -2), s.transpose(-1, -2)
    assert torch.equal(ops.residual(left, right)[0], left - right)
    assert_close(ops.largest_square(left), left.square().sum(1).flatten(1).amax(1))


def test_the_longest_vector(shape, monkeypatch) -> None:
    torch.manual_seed(0)
    v = torch.randn(shape)
    v[0, :, 5, 7] = 40.0
    found = ops.largest_square(v)
    assert_close(found, v.square().sum(1).flatten(1).amax(1))
    assert found[0] == 1600 * shape[1]
    for bad in (torch.nan, torch.inf):
        v[1, 0, -1, -1] = bad
        assert_close(ops.largest_square(v)[:2], torch.tensor([found[0], bad]), equal_nan=True)
    v = v.nan_to_num(0.0, posinf=0.0)
    compiled = ops.largest_square(v)
    plainly(monkeypatch)
    assert torch.equal(compiled, ops.largest_square(v))
    assert_close(ops.largest_square(torch.zeros_like(v)), torch.zeros(len(v)))


def test_gradients_and_tangents_pass_the_residual_by_plain_pytorch(shape) -> None:
    fz, z = torch.randn(shape, requires_grad=True), torch.randn(shape)
    r, norm, size = ops.residual(fz, z)
    assert not norm.requires_grad and not size.requires_grad
    assert torch.equal(torch.autograd.grad(r.sum(), fz)[0], torch.ones(shape))
    with torch.no_grad(), forward_ad.dual_level():
        dual = forward_ad.make_dual(fz.detach(), torch.ones(shape))
        tangent = forward_ad.unpack_dual(ops.residual(dual, z)[0]).tangent
        assert tangent is not None and torch.equal(tangent, torch.ones(shape))


@pytest.mark.parametrize("choice", ["numba", "reference"])
def test_the_operators_say_what_they_return_and_what_they_write(choice, monkeypatch) -> None:
    monkeypatch.setenv("DIO_OPS", choice)
    monkeypatch.setattr(steps, "LEAST", 1)
    x, y = torch.randn(2, 3, 4, 5, 6), torch.rand(2, 3, 4, 5, 6)
    utils = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.dio.residual, (x, y), test_utils=utils)
    torch.library.opcheck(torch.ops.dio.largest_square, (x,), test_utils=utils)
    torch.library.opcheck(torch.ops.dio.compose, (x, y, torch.rand(2)), test_utils=utils)
    for active in (None, torch.tensor([True, False])):
        settings = x, y.clone(), y, torch.ones(2), active, 0.5, 0.99, 1e-8
        torch.library.opcheck(torch.ops.dio.adam_step, settings, test_utils=utils)
