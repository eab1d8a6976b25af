"""Normalisation and its slope, with channels last on a CPU and from the moments of channels, beside torch's."""

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.testing import assert_close

from dio_lightning import ops
from dio_lightning.features import blocks
from dio_lightning.networks.blocks import channels_last
from dio_lightning.ops import norm

SIZES = [(5, 6), (3, 4, 5), (1, 1, 1)]


def values(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Channels last, with a mean of its own each."""
    torch.manual_seed(0)
    x = torch.randn(shape) + 0.5 * (torch.arange(shape[1]) % 3).view(-1, *[1] * (len(shape) - 2))
    return channels_last(x.to(dtype)).requires_grad_()


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("s", SIZES)
def test_moments_of_channels_normalise_groups_as_torch_does(s, groups, last) -> None:
    x = values(2, 6, *s)
    x = x if last else x.detach().contiguous().requires_grad_()
    weight, bias = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    ours = norm.normalised(x, groups, weight, bias)
    theirs = torch.group_norm(x.contiguous(), groups, weight, bias)
    assert_close(ours, theirs)
    assert ours.stride() == x.stride()
    of = torch.randn(ours.shape, dtype=torch.float64)
    assert_close(torch.autograd.grad(ours, (x, weight, bias), of), torch.autograd.grad(theirs, (x, weight, bias), of))
    assert_close(norm.normalised(x, groups), torch.group_norm(x.contiguous(), groups))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_computed_in_float32_and_a_large_mean_costs_no_digits(dtype) -> None:
    torch.manual_seed(0)
    x = (torch.randn(1, 4, 30, 30) + 1000).to(dtype)
    ours = norm.normalised(x, 2)
    assert ours.dtype == torch.float32
    assert_close(ours.double(), torch.group_norm(x.double(), 2), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weighted", [True, False], ids=["weights", "bare"])
@pytest.mark.parametrize(
    ("c", "groups", "s"), [(6, 2, (37, 41)), (16, 8, (11, 13, 17)), (5, 5, (9, 40, 41)), (3000, 8, (3, 2))]
)
def test_slopes_with_channels_last_are_those_of_torch(kind, weighted, c, groups, s, monkeypatch) -> None:
    """Sizes that no block of a loop divides, and a voxel that is larger than one."""
    monkeypatch.setattr(norm, "LEAST", 1)
    x = values(2, c, *s, dtype=kind)
    exact = x.detach().double().contiguous().requires_grad_()
    numbers = [torch.randn(c, dtype=torch.float64) if weighted else None for _ in range(2)]
    kept = torch.float64 if kind == torch.float64 else torch.float32
    ours, theirs = ([y if y is None else y.to(t).requires_grad_() for y in numbers] for t in (kept, torch.float64))
    one, other = ops.group_norm(x, groups, ours[0], ours[1]), torch.group_norm(exact, groups, theirs[0], theirs[1])
    assert one.dtype == kind and one.stride() == x.stride() and "_GroupNorm" in str(one.grad_fn)
    of = torch.randn(x.shape).to(kind)  # channels first: what follows may ask for it so
    rtol, atol = {torch.float64: (1e-9, 1e-9), torch.float32: (1e-4, 1e-4), torch.bfloat16: (2e-2, 2e-2)}[kind]
    found = torch.autograd.grad(one, (x, *(y for y in ours if y is not None)), of)
    assert found[0].dtype == kind and found[0].stride() == x.stride() and all(y.dtype == kept for y in found[1:])
    right = torch.autograd.grad(other, (exact, *(y for y in theirs if y is not None)), of.double())
    sizes = [1.0, *(y.abs().max() for y in right[1:])]
    for y, z, size in zip(found, right, sizes, strict=True):
        assert_close(y.double() / size, z / size, rtol=rtol, atol=atol)


@pytest.mark.parametrize("of", ["input", "weights"])
def test_whatever_needs_a_slope_gets_it(of, monkeypatch) -> None:
    """torch 2.13 ends the process where only the weights do."""
    monkeypatch.setattr(norm, "LEAST", 1)
    x, weight = values(2, 4, 5, 6).detach(), torch.randn(4, dtype=torch.float64)
    wanted = (x if of == "input" else weight).requires_grad_()
    (found,) = torch.autograd.grad(ops.group_norm(x, 2, weight).square().sum(), wanted)
    (right,) = torch.autograd.grad(torch.group_norm(x.contiguous(), 2, weight).square().sum(), wanted)
    assert_close(found, right)


def test_second_and_forward_derivatives(monkeypatch) -> None:
    monkeypatch.setattr(norm, "LEAST", 1)
    x, weight, bias = values(1, 4, 2, 3), *torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *y: ops.group_norm(y[0], 2, *y[1:]), (x, weight, bias))
    assert torch.autograd.gradgradcheck(lambda *y: ops.group_norm(y[0], 2, *y[1:]), (x, weight, bias))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x.detach(), torch.ones_like(x))
        tangent = forward_ad.unpack_dual(ops.group_norm(dual, 2, weight)).tangent
    assert_close(tangent, torch.zeros_like(x))  # a shift of all values is taken away


def test_nan_in_a_bfloat16_stays_nan(monkeypatch) -> None:
    monkeypatch.setattr(norm, "LEAST", 1)
    x, of = values(1, 4, 5, 6, dtype=torch.bfloat16), torch.ones(1, 4, 5, 6, dtype=torch.bfloat16)
    of[0, 0, 0, 0] = torch.nan
    (slope,) = torch.autograd.grad(ops.group_norm(x, 2), x, of)
    assert slope[:, :2].isnan().all() and slope[:, 2:].isfinite().all()


@pytest.mark.skipif(norm._kernels(torch.zeros(norm.LEAST)) is None, reason="no compiled loops here")
def test_the_slope_is_an_operator_that_torch_compiles() -> None:
    x = values(1, 8, 96, 96)
    y, mean, scale = torch.native_group_norm(x, None, None, 1, 8, 96 * 96, 2, 1e-5)
    settings = (torch.randn_like(y), x.detach(), torch.ones(8, dtype=torch.float64), mean.detach(), scale.detach())
    torch.library.opcheck(torch.ops.dio.group_norm_backward, settings, test_utils=("test_schema", "test_faketensor"))


def test_layers_take_moments_where_a_group_is_large_on_a_gpu_and_agree_with_themselves(monkeypatch) -> None:
    layer, bare = blocks.group_norm(16), blocks.InstanceNorm()
    torch.nn.init.normal_(layer.weight)
    x = values(2, 16, 4, 5, 6, dtype=torch.float32)
    before = layer(x), bare(x)
    calls = []
    monkeypatch.setattr(norm, "_many", lambda x, groups: calls.append(groups) or True)
    assert_close((layer(x), bare(x)), before)
    assert calls == [8, 16]


@pytest.mark.parametrize("s", [(1, 1), (2, 1), (70, 80), (21, 22, 23)])
def test_variances_are_those_of_torch_to_the_second_derivative(s) -> None:
    x = values(2, 3, *s)
    found, right = ops.variances(x), x.flatten(2).var(2) if s != (1, 1) else torch.zeros(2, 3, dtype=torch.float64)
    assert_close(found, right)
    if s != (1, 1):
        slopes = [torch.autograd.grad(y.square().sum(), x, create_graph=True)[0] for y in (found, right)]
        assert_close(*slopes)
        assert_close(*[torch.autograd.grad(y.pow(3).sum(), x)[0] for y in slopes])
    assert torch.autograd.gradcheck(ops.variances, (values(1, 2, 3, 2),))


def test_the_variance_of_what_varies_little_about_a_large_mean() -> None:
    x = (1000 + torch.randn(1, 1, 200, 300, generator=torch.Generator().manual_seed(0))).requires_grad_()
    assert_close(ops.variances(x).double(), x.double().flatten(2).var(2), rtol=1e-5, atol=0)
