"""Feature pyramids: sizes, levels, shared weights, residual start, MIND against its definition."""

import itertools

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter
from torch import Tensor
from torch.testing import assert_close

from dio_lightning.features import LKU, LKUE, MIND, FeatureNetwork, Intensity, UNet, UNetE, mind
from dio_lightning.features.blocks import double_conv, of_image
from dio_lightning.networks import blocks, joining

NETWORKS = [UNet, LKU, UNetE, LKUE]
SIZES = [(18, 25), (16, 16), (9, 18, 11)]


def image(size: tuple[int, ...], channels: int = 1) -> Tensor:
    return torch.rand(1, channels, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_any_size_gives_float32_features_of_the_rounded_up_size(
    network: type[FeatureNetwork], size: tuple[int, ...], precision: str
) -> None:
    pyramid = network(channels=8, spatial_dims=len(size), precision=precision)  # pyright: ignore[reportCallIssue]
    features = pyramid(image(size))
    assert [x.shape for x in features] == [(1, 8, *(-(-n // level) for n in size)) for level in (4, 2, 1)]
    assert all(x.dtype == torch.float32 and x.isfinite().all() for x in features)
    assert all(x.stride(1) == 1 for x in features)  # channels-last


@pytest.mark.parametrize("network", NETWORKS)
def test_only_what_the_asked_levels_need_gets_a_gradient(network: type[FeatureNetwork]) -> None:
    pyramid = network(spatial_dims=2)  # pyright: ignore[reportCallIssue]
    coarse = network(levels=(4, 2), spatial_dims=2)  # pyright: ignore[reportCallIssue]
    torch.stack([x.square().mean() for x in pyramid(image((20, 24)), levels=(4, 2))]).sum().backward()
    used = {name for name, p in pyramid.named_parameters() if p.grad is not None}
    assert used == {name for name, _ in coarse.named_parameters()} < {name for name, _ in pyramid.named_parameters()}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("levels", [(4, 2, 1), (4, 2), (2,)], ids=str)
def test_every_weight_of_a_pyramid_is_used(network: type[FeatureNetwork], levels: tuple[int, ...]) -> None:
    pyramid = network(levels=levels, spatial_dims=2)  # pyright: ignore[reportCallIssue]
    torch.stack([x.square().mean() for x in pyramid(image((20, 24)))]).sum().backward()
    assert all(p.grad is not None for p in pyramid.parameters())


@pytest.mark.parametrize("network", NETWORKS)
def test_a_level_is_the_same_alone_and_among_others(network: type[FeatureNetwork]) -> None:
    pyramid = network(spatial_dims=2)  # pyright: ignore[reportCallIssue]
    together = pyramid(image((18, 25)))
    for level, feature in zip(pyramid.levels, together, strict=True):
        assert_close(pyramid(image((18, 25)), levels=[level])[0], feature)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_residual_start_is_the_image_pyramid(network: type[FeatureNetwork], size: tuple[int, ...]) -> None:
    pyramid = network(spatial_dims=len(size), residual=True, intensity_scale=3.0)  # pyright: ignore[reportCallIssue]
    raw = Intensity()(image(size))
    features = pyramid(image(size))
    for feature, intensity in zip(features, raw, strict=True):
        assert_close(feature[:, :1], 3 * intensity)
        rest = feature[:, 1:].detach()
        assert rest.abs().max() < 1.0  # small beside 3, but not zero, where matching has no gradient
        assert rest.flatten(2).std(dim=2).min() > 0


def test_intensity_is_the_mean_over_blocks() -> None:
    x = image((5, 8))
    coarse, fine = Intensity(levels=(4, 1))(x)
    assert_close(fine, x)
    assert_close(coarse[0, 0, 0, 1], x[0, 0, :4, 4:].mean())
    assert_close(coarse[0, 0, 1, 0], x[0, 0, 4:, :4].mean())  # what is left of a block


@pytest.mark.usefixtures("bfloat16")
def test_bfloat16_features_are_close_to_float32() -> None:
    torch.manual_seed(0)
    widths = (16, 16, 32)
    exact, rounded = UNet(spatial_dims=2, widths=widths), UNet(spatial_dims=2, widths=widths, precision="bfloat16")
    rounded.load_state_dict(exact.state_dict())
    for a, b in zip(exact(image((32, 48))), rounded(image((32, 48))), strict=True):
        assert (a - b).norm() < 0.06 * a.norm()


@pytest.mark.parametrize("size", [(13, 11), (9, 8, 10)], ids=str)
def test_mind_is_its_definition(size: tuple[int, ...]) -> None:
    x, d, radius, dilation = image(size).double(), len(size), 1, 2
    array = x[0, 0].numpy()
    wide = np.pad(array, dilation, mode="edge")
    grid = tuple(slice(dilation, dilation + n) for n in size)
    moved = {(i, o): np.roll(wide, -o, axis=i)[grid] for i in range(d) for o in (-dilation, dilation)}
    pairs = [(a, b) for a, b in itertools.combinations(moved, 2) if a[0] != b[0]]
    squares = [uniform_filter((moved[a] - moved[b]) ** 2, 2 * radius + 1, mode="nearest") for a, b in pairs]
    distance = np.stack(squares) - np.min(squares, axis=0)
    variance = distance.mean(0)
    expected = np.exp(-distance / np.clip(variance, variance.mean() * 1e-3, variance.mean() * 1e3))
    assert_close(mind(x, radius, dilation)[0], torch.from_numpy(expected))
    assert len(expected) == MIND(spatial_dims=d).channels == 2 * d * (d - 1)


def test_mind_ignores_contrast_and_takes_constant_images() -> None:
    x = image((12, 14))
    assert_close(mind(5 - 3 * x), mind(x), atol=1e-4, rtol=1e-3)
    assert_close(mind(torch.zeros(1, 1, 8, 8)), torch.ones(1, 4, 8, 8))


def test_a_residual_start_from_mind() -> None:
    descriptor = mind(image((12, 14)))
    network = UNet(in_channels=4, channels=8, levels=(2, 1), spatial_dims=2, residual=True)
    assert_close(network(descriptor)[1][:, :4], descriptor)


@pytest.mark.parametrize("levels", [(), (1, 2), (2, 2), (3, 1), (0,)], ids=str)
def test_bad_levels_are_refused(levels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="powers of two"):
        Intensity(levels)


def test_levels_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="levels up to 4"):
        UNetE(levels=(8, 1))
    with pytest.raises(ValueError, match="among"):
        Intensity((4, 2))(image((8, 8)), levels=(1,))
    with pytest.raises(ValueError, match="channels >= in_channels"):
        UNet(in_channels=12, channels=8, residual=True)


@pytest.mark.parametrize("size", [(5, 6), (1, 7), (4, 5, 6), (1, 1, 3)])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_normalisation_moves_into_the_convolution_of_an_image(size, channels, monkeypatch) -> None:
    monkeypatch.setattr(joining, "LEAST", 1)
    torch.manual_seed(0)
    block = double_conv(len(size), channels, 4, 3).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter)
    image = torch.rand(2, channels, *size, dtype=torch.float64)
    ours, theirs = of_image(block, image), block(image)
    assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert not torch.equal(ours, theirs), "it is computed otherwise"
    of, parameters = torch.randn_like(ours), list(block.parameters())
    slopes, expected = (torch.autograd.grad(y, parameters, of) for y in (ours, theirs))
    assert_close(slopes, expected, rtol=1e-8, atol=1e-8)
    followed = image.clone().requires_grad_()
    (slope,) = torch.autograd.grad(of_image(block, followed), followed, of)
    assert_close(slope, torch.autograd.grad(block(followed), followed, of)[0])
    with torch.no_grad():
        assert torch.equal(of_image(block, image), block(image)), "published features keep their digits"


def test_a_block_that_something_is_wrapped_around_is_left_whole(monkeypatch) -> None:
    monkeypatch.setattr(joining, "LEAST", 1)

    class Wrapped(torch.nn.Module):
        def __init__(self, block: torch.nn.Module) -> None:
            super().__init__()
            self.block = block

        def forward(self, x: Tensor) -> Tensor:
            return self.block(x)

    network, image = UNet(channels=4, levels=[2, 1], spatial_dims=2, widths=(4, 8)), torch.rand(1, 1, 12, 16)
    expected = network(image)
    network.encoder[0] = Wrapped(network.encoder[0])
    network.decoder["1"] = Wrapped(network.decoder["1"])
    for ours, theirs in zip(network(image), expected, strict=True):
        assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_convolutions_whose_weights_lie_in_parts_are_called(monkeypatch) -> None:
    """`fully_shard` makes each layer one of a class of its own, which fetches weights when it is called."""
    monkeypatch.setattr(joining, "LEAST", 1)
    network, image = UNet(channels=4, levels=[2, 1], spatial_dims=2, widths=(8, 16)), torch.rand(1, 1, 12, 16)
    expected, called = network(image), []
    for layer in [part for part in network.modules() if isinstance(part, blocks.Conv2d)]:
        layer.__class__ = type("Split", (blocks.Conv2d,), {})
        layer.register_forward_hook(lambda module, *_: called.append(module))
    for ours, theirs in zip(network(image), expected, strict=True):
        assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert len(called) == len({*called}) == sum(isinstance(part, blocks.Conv2d) for part in network.modules())
