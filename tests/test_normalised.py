"""Normalisation from the moments of channels, which large images take on a GPU, beside torch's."""

import pytest
import torch
from torch.testing import assert_close

from dio_lightning.features import blocks
from dio_lightning.networks.blocks import channels_last

SIZES = [(5, 6), (3, 4, 5), (1, 1, 1)]


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("s", SIZES)
def test_moments_of_channels_normalise_groups_as_torch_does(s, groups, last) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 6, *s, dtype=torch.float64) + 3 * torch.arange(6).view(-1, *[1] * len(s))
    x = (channels_last(x) if last else x).requires_grad_()
    weight, bias = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    ours = blocks.normalised(x, groups, weight, bias)
    theirs = torch.group_norm(x.contiguous(), groups, weight, bias)
    assert_close(ours, theirs)
    assert ours.stride() == x.stride()
    of = torch.randn(ours.shape, dtype=torch.float64)
    assert_close(torch.autograd.grad(ours, (x, weight, bias), of), torch.autograd.grad(theirs, (x, weight, bias), of))
    assert_close(blocks.normalised(x, groups), torch.group_norm(x.contiguous(), groups))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_computed_in_float32_and_a_large_mean_costs_no_digits(dtype) -> None:
    torch.manual_seed(0)
    x = (torch.randn(1, 4, 30, 30) + 1000).to(dtype)
    ours = blocks.normalised(x, 2)
    assert ours.dtype == torch.float32
    assert_close(ours.double(), torch.group_norm(x.double(), 2), rtol=1e-3, atol=1e-3)


def test_layers_take_it_where_a_group_is_large_and_agree_with_themselves(monkeypatch) -> None:
    torch.manual_seed(0)
    layer, bare = blocks.group_norm(16), blocks.InstanceNorm()
    torch.nn.init.normal_(layer.weight)
    x = torch.randn(2, 16, 4, 5, 6, requires_grad=True)
    before = layer(x), bare(x)
    calls = []
    monkeypatch.setattr(blocks, "_slow", lambda x, groups: calls.append(groups) or True)
    assert_close((layer(x), bare(x)), before)
    assert calls == [8, 16]
