"""VoxelMorph's U-Net: the published one, and indifferent to size and memory format."""

import logging

import pytest
import torch
from monai.networks.nets.voxelmorph import VoxelMorphUNet
from torch import nn
from torch.testing import assert_close

from dio_lightning.features import UNet
from dio_lightning.networks import VxmUNet, blocks, joining


def convolutions(network: nn.Module) -> list[nn.Module]:
    return [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)]


@pytest.mark.parametrize(("inputs", "weights"), [(2, 327_331), (5, 328_627)])
def test_it_has_the_published_number_of_weights(inputs, weights) -> None:
    assert sum(p.numel() for p in VxmUNet(inputs).parameters()) == weights


@pytest.mark.parametrize("size", [(32, 48), (16, 32, 16)])
def test_it_computes_what_monai_computes(size) -> None:
    d = len(size)
    ours = VxmUNet(2, d)
    theirs = VoxelMorphUNet(
        spatial_dims=d,
        in_channels=2,
        unet_out_channels=32,
        channels=(16, 32, 32, 32, 32, 32, 32, 32),
        final_conv_channels=(16, 16),
    )
    nn.init.normal_(ours.head.weight, std=0.1)
    # MONAI nests its scales, so that its order is another: down, bottom, up, final
    order = [*ours.encoder, *ours.decoder, *ours.final, ours.head]
    mine, other = [c for part in order for c in convolutions(part)], convolutions(theirs)
    assert [c.weight.shape for c in mine] == [c.weight.shape for c in other]
    joined = [c for part in (*ours.decoder[1:], ours.final[0]) for c in convolutions(part)]
    for source, target in zip(mine, other, strict=True):
        state = source.state_dict()
        if source in joined:
            # MONAI joins skip and field in the other order
            state["weight"] = torch.cat([state["weight"][:, 32:], state["weight"][:, :32]], 1)
        target.load_state_dict(state)
    x = torch.rand(2, 2, *size)
    assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(17, 30), (9, 16, 21), (1, 33)])
def test_any_size_is_taken(size) -> None:
    assert VxmUNet(3, len(size), 1)(torch.rand(1, 3, *size)).shape == (1, 1, *size)


def test_without_instructions_for_bfloat16_it_is_float32_and_says_so_once(monkeypatch, caplog) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    blocks.computes_bfloat16.cache_clear()
    x, network, types = torch.rand(1, 2, 16, 16), VxmUNet(2, 2, precision="bfloat16"), []
    network.head.register_forward_hook(lambda module, inputs, output: types.append(output.dtype))
    try:
        with caplog.at_level(logging.INFO, "lightning.pytorch"):
            network(x), network(x)
        with torch.autocast("cpu", torch.bfloat16):  # the caller's own wish
            network(x)
    finally:
        blocks.computes_bfloat16.cache_clear()
    assert types == [torch.float32, torch.float32, torch.bfloat16]
    assert [record.message for record in caplog.records if "bfloat16" in record.message] == [
        "This CPU has no instructions for bfloat16: networks that ask for it are computed in float32."
    ]


@pytest.mark.usefixtures("bfloat16")
def test_it_starts_near_zero_and_float32_comes_out_of_bfloat16() -> None:
    x = torch.rand(1, 2, 32, 32)
    full, half = VxmUNet(2, 2), VxmUNet(2, 2, precision="bfloat16")
    half.load_state_dict(full.state_dict())
    assert 0 < float(full(x).detach().abs().max()) < 1e-3
    assert half(x).dtype == torch.float32
    assert_close(half(x), full(x), rtol=0.1, atol=1e-6)


def test_the_memory_format_changes_nothing() -> None:
    net, x = VxmUNet(2, 2), torch.rand(2, 2, 24, 16)
    assert_close(net(x), net(x.contiguous(memory_format=torch.channels_last)))


def test_a_sample_does_not_depend_on_its_batch() -> None:
    net, x = VxmUNet(2, 2), torch.rand(3, 2, 32, 16)
    nn.init.normal_(net.head.weight)
    assert_close(net(x)[1:2], net(x[1:2]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wrong", [{"encoder": (16,)}, {"final": ()}])
def test_a_wrong_setting_is_one_sentence(wrong) -> None:
    with pytest.raises(ValueError, match="encoder"):
        VxmUNet(2, **wrong)


def test_one_sample_in_three_dimensions_is_convolved_as_two_are() -> None:
    """torch would unfold so few channels of so small a grid (`slow_conv3d`)."""
    layer, x = blocks.conv(3, 5, 4), torch.rand(2, 5, 8, 9, 10)
    with torch.profiler.profile() as profile:
        alone = layer(x[:1])
    names = {event.key for event in profile.key_averages()}
    assert "aten::mkldnn_convolution" in names and "aten::slow_conv3d" not in names
    assert_close(alone, layer(x)[:1])


def test_gradients_of_one_sample_are_those_in_double_precision() -> None:
    layer, x = blocks.conv(3, 2, 3, stride=2), torch.rand(1, 2, 5, 6, 7, requires_grad=True)
    inputs = [x, *layer.parameters()]
    ours = torch.autograd.grad(layer(x).square().sum(), inputs)
    exact = blocks.conv(3, 2, 3, stride=2).double()
    exact.load_state_dict(layer.state_dict())
    y = x.detach().double().requires_grad_()
    expected = torch.autograd.grad(exact(y).square().sum(), [y, *exact.parameters()])
    for gradient, other in zip(ours, expected, strict=True):
        assert_close(gradient.double(), other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(3, 4), (2, 1, 3)])
def test_a_split_convolution_is_that_of_the_joined_channels(size) -> None:
    d = len(size)
    layer = (nn.Conv2d if d == 2 else nn.Conv3d)(5, 4, 3, padding=1).double()
    coarse, skip = torch.rand(2, 3, *size).double(), torch.rand(2, 2, *(2 * n for n in size)).double()
    finer = coarse
    for axis in range(2, 2 + d):
        finer = finer.repeat_interleave(2, axis)
    expected = layer(torch.cat([finer, skip], 1))
    with torch.no_grad():
        weights = layer.weight[:, :3], layer.weight[:, 3:]
        assert_close(joining.split(layer, coarse, skip, *weights), expected, rtol=1e-12, atol=1e-12)
    assert_close(joining.join(layer, coarse, skip), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [(40, 48), (16, 20, 24), (16, 20, 23)])
def test_a_network_computes_the_same_with_split_convolutions(size, monkeypatch) -> None:
    network, x = VxmUNet(3, len(size)), torch.rand(1, 3, *size)
    nn.init.normal_(network.head.get_parameter("weight"), std=0.1)
    split, calls = joining.split, []
    monkeypatch.setattr(joining, "LEAST", 1)
    monkeypatch.setattr(joining, "split", lambda *inputs: calls.append(None) or split(*inputs))
    ours = _with_slopes(network, x)
    assert len(calls) == (1 if 23 in size else 2 if len(size) == 3 else 3)
    monkeypatch.setattr(joining, "LEAST", 2**20)
    assert_close(ours, _with_slopes(network, x), rtol=1e-4, atol=1e-5)


def _with_slopes(network: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """What a network computes, all of it, and the slopes of its squares by its weights, as one vector of length 1."""
    torch.manual_seed(0)
    outputs = network(x)
    outputs = outputs if isinstance(outputs, list) else [outputs]
    slopes = torch.autograd.grad(sum(y.square().mean() for y in outputs), list(network.parameters()))
    slope = torch.cat([y.flatten() for y in slopes])
    return [*outputs, slope / slope.norm()]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", [(32, 48), (16, 32, 16)])
def test_features_are_trained_the_same_with_split_convolutions(size, precision, monkeypatch) -> None:
    """Exactly in double precision; else they are as near to that as whole ones are."""
    torch.manual_seed(0)
    network = UNet(channels=4, levels=[4, 2, 1], spatial_dims=len(size), widths=(8, 8, 16), precision=precision)
    x, split, calls = torch.rand(2, 1, *size), joining.split, []
    with torch.no_grad():
        in_use = network(x)
    monkeypatch.setattr(joining, "LEAST", 1)
    monkeypatch.setattr(joining, "split", lambda *inputs: calls.append(None) or split(*inputs))
    ours = _with_slopes(network, x)
    assert len(calls) == 1, "of the coarser joint one group has channels of both"
    with torch.no_grad():
        assert all(map(torch.equal, network(x), in_use)), "published features keep their digits"
    monkeypatch.setattr(joining, "LEAST", 2**20)
    whole = _with_slopes(network, x)
    network.double().precision = "float32"
    exact = _with_slopes(network, x.double())
    monkeypatch.setattr(joining, "LEAST", 1)
    assert_close(_with_slopes(network, x.double()), exact, rtol=1e-5, atol=1e-6)
    for mine, other, right in zip(ours, whole, exact, strict=True):
        # where two voxels are nearly the same, rounding says which is the larger, and gets the slope
        assert (mine - right).norm() <= 3 * (other - right).norm() + 2e-3 * right.norm()


@pytest.mark.parametrize(("extent", "splits"), [(3, False), (4, True)])
def test_no_joined_convolution_in_16_bits_is_split_on_few_voxels(extent, splits, monkeypatch) -> None:
    """There oneDNN's gradients read memory that nobody wrote; whether autocast or the caller rounds does not matter."""
    calls: list[None] = []
    monkeypatch.setattr(joining, "LEAST", 1)
    monkeypatch.setattr(joining, "split", lambda layer, coarse, skip, *_: calls.append(None) or skip)
    layer = blocks.conv(3, 5, 2)
    coarse, skip = torch.rand(1, 3, extent, 6, 6), torch.rand(1, 2, 2 * extent, 12, 12)
    with torch.autocast("cpu", torch.bfloat16):
        joining.join(layer, coarse, skip)
    joining.join(layer.to(torch.bfloat16), coarse.bfloat16(), skip.bfloat16())
    assert len(calls) == (2 if splits else 0)


@pytest.mark.parametrize("last", [True, False])
def test_what_comes_back_to_a_part_lies_as_it_does(last) -> None:
    parts = [torch.rand(2, c, 3, 4, 5, dtype=torch.float64, requires_grad=True) for c in (2, 3)]
    given = [blocks.channels_last(x) if last else x for x in parts]
    joined = joining.beside(*given)
    assert torch.equal(joined, torch.cat(given, 1)) and joined.stride() == torch.cat(given, 1).stride()
    single = joining.beside(*(x[:1] for x in given))
    assert single.stride() == torch.cat([x[:1] for x in given], 1).stride(), "which one sample may lose"
    of = torch.rand_like(joined)
    for slope, expected in zip(torch.autograd.grad(joined, given, of), of.split([2, 3], 1), strict=True):
        assert torch.equal(slope, expected)
        assert not last or slope.is_contiguous(memory_format=torch.channels_last_3d)
    assert torch.autograd.gradgradcheck(joining.beside, [x[:1, :, :2, :2, :2].detach().requires_grad_() for x in given])


@pytest.mark.parametrize("size", [(2, 3), (1, 2, 3)])
def test_voxels_are_repeated_as_their_nearest_neighbours(size) -> None:
    torch.manual_seed(0)
    coarse = blocks.channels_last(torch.randn(2, 3, *size, dtype=torch.float64)).requires_grad_()
    ours = joining.repeated(coarse)
    fine = [2 * n for n in size]
    theirs = torch.nn.functional.interpolate(coarse, fine, mode="nearest")
    assert torch.equal(ours, theirs) and ours.stride(1) == 1
    of = torch.randn(ours.shape, dtype=torch.float64)
    assert_close(torch.autograd.grad(ours, coarse, of), torch.autograd.grad(theirs, coarse, of))
    odd = [2 * n - 1 for n in size]
    assert torch.equal(joining.nearest(coarse, odd), torch.nn.functional.interpolate(coarse, odd, mode="nearest"))
