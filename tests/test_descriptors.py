"""Descriptors against SciPy, what they do not depend on, and networks that start from them."""

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d
from torch import Tensor
from torch.testing import assert_close

from dio_lightning.features import (
    MIND,
    Described,
    FeaturePyramid,
    GradientMagnitude,
    Intensity,
    Joined,
    LocalContrast,
    UNet,
    gradient_magnitude,
    local_contrast,
)
from dio_lightning.fields import average_pool, warp
from dio_lightning.fields.smoothing import _taps
from dio_lightning.implicit import Adam
from dio_lightning.layers import OptimizerLayer
from dio_lightning.modules import DIO
from dio_lightning.transformations import Diffeomorphism
from dio_lightning.updates import Descent

SIZES = [(13, 11), (9, 8, 10)]


def image(*size: int, seed: int = 0) -> Tensor:
    return torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(seed))


def window(x: np.ndarray, sigma: float) -> np.ndarray:
    """Mean in a Gaussian window over what lies inside, by SciPy."""
    taps = np.array(_taps(sigma, 2.0))
    kernel = np.concatenate([taps[:0:-1], taps])

    def sums(y: np.ndarray) -> np.ndarray:
        for axis in range(y.ndim):
            y = correlate1d(y, kernel, axis, mode="constant")
        return y

    return sums(x) / sums(np.ones_like(x))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_local_contrast_is_its_definition(size: tuple[int, ...]) -> None:
    x, sigma, eps = image(*size).double(), 1.2, 0.05
    array = x[0, 0].numpy()
    mean = window(array, sigma)
    variance = window(array**2, sigma) - mean**2
    expected = (array - mean) / np.sqrt(variance + eps**2)
    assert_close(local_contrast(x, sigma, eps)[0, 0], torch.from_numpy(expected))


def test_local_contrast_does_not_see_brightness_bias_or_scale() -> None:
    x = image(20, 24)
    assert_close(local_contrast(0.5 * x + 40, eps=1e-6), local_contrast(x, eps=1e-6), atol=2e-3, rtol=1e-3)
    assert_close(local_contrast(-x), -local_contrast(x))
    flat = torch.full((1, 1, 9, 9), 0.7)
    assert_close(local_contrast(flat), torch.zeros_like(flat))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_gradient_magnitude_is_its_definition(size: tuple[int, ...]) -> None:
    x, sigma, eps = image(*size).double(), 1.5, 0.05
    squared = np.sum(np.square(np.gradient(x[0, 0].numpy())), axis=0)
    expected = (np.sqrt(squared + eps**2) - eps) / np.sqrt(window(squared, sigma) + eps**2)
    assert_close(gradient_magnitude(x, sigma, eps)[0, 0], torch.from_numpy(expected))


def test_gradient_magnitude_has_no_sign_and_is_zero_where_nothing_changes() -> None:
    x = image(20, 24)
    assert_close(gradient_magnitude(1 - x), gradient_magnitude(x), atol=1e-5, rtol=1e-4)
    assert_close(gradient_magnitude(torch.ones(1, 1, 6, 7)), torch.zeros(1, 1, 6, 7))
    assert_close(gradient_magnitude(x[:, :, :1]), gradient_magnitude(x[:, :, :1].transpose(2, 3)).transpose(2, 3))


@pytest.mark.parametrize("pyramid", [LocalContrast(), GradientMagnitude()])
def test_images_of_several_channels_are_refused(pyramid: FeaturePyramid) -> None:
    with pytest.raises(ValueError, match="one channel, not 2"):
        pyramid(torch.rand(1, 2, 8, 8))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_levels_describe_the_averaged_image(size: tuple[int, ...]) -> None:
    x = image(*size)
    features = LocalContrast((4, 1), (1.0, 2.0), intensity=3.0)(x)
    for level, feature in zip((4, 1), features, strict=True):
        small = average_pool(x, level)
        expected = [local_contrast(small, 1.0), local_contrast(small, 2.0), 3 * small]
        assert_close(feature, torch.cat(expected, 1))
    assert_close(GradientMagnitude((2,), (1.0,))(x)[0], gradient_magnitude(average_pool(x, 2), 1.0))


def test_joined_pyramids_lie_side_by_side() -> None:
    x = image(16, 18)
    parts = LocalContrast((2, 1), intensity=0.0), GradientMagnitude((2, 1)), MIND((2, 1), spatial_dims=2)
    joined = Joined(list(parts), [1.0, 2.0, 0.5])
    assert joined.channels == 6
    for level in (0, 1):
        expected = [w * part(x)[level] for part, w in zip(parts, (1.0, 2.0, 0.5), strict=True)]
        assert_close(joined(x)[level], torch.cat(expected, 1))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Joined([]), "one or more pyramids"),
        (lambda: Joined([Intensity((2, 1)), Intensity((4, 1))]), r"levels \[\[2, 1\], \[4, 1\]\]"),
        (lambda: Joined([Intensity()], [1.0, 2.0]), "a positive one for each of 1"),
        (lambda: LocalContrast(sigmas=[]), "positive widths"),
        (lambda: LocalContrast(eps=0.0), "eps 0.0"),
        (lambda: GradientMagnitude(sigmas=[-1.0]), r"sigmas are \[-1.0\]"),
        (lambda: UNet(in_channels=2, residual=True, intensity_scale=[1.0] * 3), "one positive number, or 2"),
        (lambda: UNet(residual=True, intensity_scale=0.0), "one positive number"),
    ],
)
def test_what_makes_no_descriptor_is_refused(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def registered(features, fixed: Tensor, moving: Tensor) -> Tensor:
    layer = OptimizerLayer((8, 8), Descent(1.0, 0.1), Adam(0.3), Diffeomorphism(), field_sigma=0.5)
    with torch.no_grad():
        return DIO(features, layer)(fixed, moving)[-1].value


@pytest.mark.parametrize("size", [(24, 20), (12, 14, 10)], ids=str)
@pytest.mark.parametrize("scales", [1.0, [1.0, 1.0, 1.0]], ids=["one scale", "a scale a channel"])
def test_a_residual_start_registers_exactly_as_the_descriptor(size: tuple[int, ...], scales) -> None:
    descriptor = LocalContrast((2, 1), (1.0, 2.0))
    network = UNet(3, 3, (2, 1), len(size), widths=(4, 8), residual=True, intensity_scale=scales)
    moving = image(*size)
    fixed = warp(moving, torch.full((1, len(size), *size), 0.7))
    expected = registered(descriptor, fixed, moving)
    assert expected.abs().max() > 0.1
    assert torch.equal(registered(Described(descriptor, network), fixed, moving), expected)


def test_every_channel_of_a_residual_start_has_a_scale_of_its_own() -> None:
    x = image(12, 14)
    network = UNet(2, 4, (2, 1), 2, widths=(4, 8), residual=True, intensity_scale=[0.5, 2.0])
    features, raw = Described(LocalContrast((2, 1)), network)(x), LocalContrast((2, 1))(x)
    for feature, start in zip(features, raw, strict=True):
        assert_close(feature[:, :2], start * torch.tensor([0.5, 2.0]).view(1, 2, 1, 1))
    features[1][:, 0].square().sum().backward()
    assert network.log_scale is not None and network.log_scale.grad is not None
    assert network.log_scale.grad[0] != 0 and network.log_scale.grad[1] == 0


def test_levels_that_a_descriptor_does_not_have_start_from_its_average() -> None:
    x = image(12, 14)
    network = UNet(2, 2, (2, 1), 2, widths=(4, 8), residual=True)
    coarse, fine = Described(LocalContrast((1,)), network)(x)
    assert_close(coarse, average_pool(LocalContrast((1,))(x)[0], 2))
    assert_close(fine, LocalContrast((1,))(x)[0])
