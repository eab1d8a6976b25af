"""Fields against closed forms, SciPy and MONAI, in 2-D and 3-D by the same tests."""

import numpy as np
import pytest
import torch
from monai.networks.blocks import DVF2DDF, Warp
from scipy import ndimage
from torch.testing import assert_close

from dio_lightning.fields import (
    compose,
    downsample,
    exponential,
    gaussian_smooth,
    identity,
    inverse,
    jacobian,
    jacobian_determinant,
    resample,
    resize,
    sample,
    warp,
)

SIZES = [(9, 12), (7, 9, 8)]


def smooth_field(size: tuple[int, ...], amplitude: float, seed: int = 0, sigma: float = 2.0) -> torch.Tensor:
    """A smooth random displacement (1, d, *size) of that largest component, zero towards the border."""
    generator = torch.Generator().manual_seed(seed)
    u = gaussian_smooth(torch.randn(1, len(size), *size, generator=generator, dtype=torch.float64), sigma)
    return u / u.abs().max() * amplitude


@pytest.fixture(params=SIZES, ids=["2d", "3d"])
def size(request: pytest.FixtureRequest) -> tuple[int, ...]:
    return request.param


@pytest.mark.parametrize(("padding", "mode"), [("border", "nearest"), ("zeros", "grid-constant")])
def test_sample_agrees_with_scipy(size: tuple[int, ...], padding: str, mode: str) -> None:
    image = torch.randn(1, 2, *size, dtype=torch.float64)
    points = identity(size, image) + 1.5 * torch.randn(1, len(size), *size, dtype=torch.float64)
    ours = sample(image, points, padding=padding)
    for channel in range(2):
        theirs = ndimage.map_coordinates(image[0, channel].numpy(), points[0].numpy(), order=1, mode=mode)
        assert_close(ours[0, channel], torch.from_numpy(theirs))


def test_nearest_sampling_keeps_labels_and_dtype(size: tuple[int, ...]) -> None:
    label = torch.randint(0, 300, (1, 1, *size), dtype=torch.int16)
    u = 0.4 * (torch.rand(1, len(size), *size) * 2 - 1)
    warped = warp(label, u, mode="nearest")
    assert warped.dtype == torch.int16
    assert torch.equal(warped, label)


def test_warp_agrees_with_monai(size: tuple[int, ...]) -> None:
    image, u = torch.rand(1, 1, *size), smooth_field(size, 2.0).float()
    assert_close(warp(image, u), Warp(padding_mode="border")(image, u), atol=1e-5, rtol=1e-5)


def test_exponential_agrees_with_monai(size: tuple[int, ...]) -> None:
    velocity = smooth_field(size, 1.0).float()
    theirs = DVF2DDF(num_steps=7, padding_mode="border")(velocity)
    assert_close(exponential(velocity, 7), theirs, atol=1e-5, rtol=1e-5)


def test_exponential_of_a_constant_is_the_constant(size: tuple[int, ...]) -> None:
    velocity = torch.ones(1, len(size), *size, dtype=torch.float64)
    assert_close(exponential(velocity), velocity)


def test_a_translation_moves_voxels(size: tuple[int, ...]) -> None:
    image = torch.rand(1, 1, *size)
    u = torch.zeros(1, len(size), *size)
    u[:, 0] = 2.0
    assert_close(warp(image, u)[:, :, :-2], image[:, :, 2:], atol=1e-5, rtol=1e-5)


def test_zero_is_the_unit_of_composition_and_it_is_associative_on_translations(size: tuple[int, ...]) -> None:
    u, zero = smooth_field(size, 1.0), torch.zeros(1, len(size), *size, dtype=torch.float64)
    assert_close(compose(u, zero), u)
    assert_close(compose(zero, u), u)
    one = torch.ones_like(zero)
    assert_close(compose(one, 2 * one), 3 * one)


def test_composition_warps_twice(size: tuple[int, ...]) -> None:
    """Exactly so for an image that is linear in its position, as long as nothing leaves the grid."""
    image = identity(size, torch.zeros(1, dtype=torch.float64)).sum(1, keepdim=True)
    u, v = smooth_field(size, 1.5, 1), smooth_field(size, 1.5, 2)
    inner = (slice(None), slice(None), *[slice(3, -3)] * len(size))
    assert_close(warp(warp(image, u), v)[inner], warp(image, compose(u, v))[inner])


def test_inverse_undoes_the_map_and_reports_its_residual(size: tuple[int, ...]) -> None:
    u = smooth_field(size, 0.8)
    solution = inverse(u, rtol=1e-10)
    assert bool(solution.converged.all())
    assert compose(u, solution.value).abs().max() < 1e-8


def test_resize_maps_the_same_points(size: tuple[int, ...]) -> None:
    matrix = 0.1 * torch.randn(len(size), len(size), dtype=torch.float64)
    fine = [2 * n - 1 for n in size]
    linear = torch.einsum("ij,bj...->bi...", matrix, identity(size, matrix))
    expected = torch.einsum("ij,bj...->bi...", matrix, identity(fine, matrix))
    assert_close(resize(linear, fine), expected)
    assert_close(resize(resize(linear, fine), size), linear)


def test_resample_keeps_the_ends_of_every_axis(size: tuple[int, ...]) -> None:
    image = torch.rand(1, 1, *size, dtype=torch.float64)
    corners = resample(image, [2] * len(size))
    assert_close(corners.flatten()[0], image.flatten()[0])
    assert_close(corners.flatten()[-1], image.flatten()[-1])


def test_downsampling_keeps_a_constant_inside() -> None:
    small = downsample(torch.ones(1, 1, 32, 32), (16, 16))
    assert_close(small[:, :, 4:-4, 4:-4], torch.ones(1, 1, 8, 8))


def test_smoothing_agrees_with_scipy(size: tuple[int, ...]) -> None:
    x = torch.randn(1, 1, *size, dtype=torch.float64)
    from dio_lightning.fields.smoothing import _taps

    taps = np.array(_taps(1.0, 2.0))
    expected = x[0, 0].numpy()
    for axis in range(len(size)):
        expected = ndimage.correlate1d(expected, np.r_[taps[:0:-1], taps], axis=axis, mode="constant")
    assert_close(gaussian_smooth(x, 1.0)[0, 0], torch.from_numpy(expected))
    assert sum(taps) * 2 - taps[0] == pytest.approx(1)


def test_smoothing_is_its_own_transpose(size: tuple[int, ...]) -> None:
    x, y = torch.randn(2, 1, 1, *size, dtype=torch.float64)
    assert_close((gaussian_smooth(x, 1.3) * y).sum(), (x * gaussian_smooth(y, 1.3)).sum())


def test_jacobian_of_an_affine_map_is_its_matrix(size: tuple[int, ...]) -> None:
    d = len(size)
    matrix = torch.eye(d, dtype=torch.float64) + 0.2 * torch.randn(d, d, dtype=torch.float64)
    u = torch.einsum("ij,bj...->bi...", matrix, identity(size, matrix)) - identity(size, matrix)
    found = jacobian(u)
    assert_close(found, matrix.view(1, d, d, *[1] * d).expand_as(found))
    assert_close(jacobian_determinant(u), torch.det(matrix).expand(1, *size))


def test_sampling_has_the_right_first_and_second_derivatives(size: tuple[int, ...]) -> None:
    small = [3] * len(size)
    image = torch.randn(1, 2, *small, dtype=torch.float64, requires_grad=True)
    points = (torch.rand(1, len(size), *small, dtype=torch.float64) * 4 - 1).requires_grad_()
    for padding in ("border", "zeros"):
        function = lambda i, p, padding=padding: sample(i, p, padding=padding)  # noqa: E731
        assert torch.autograd.gradcheck(function, (image, points))
        assert torch.autograd.gradgradcheck(function, (image, points))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"mode": "cubic"}, "mode='cubic'"), ({"padding": "mirror"}, "padding='mirror'"), ({}, "3 channels, expected 2")],
)
def test_wrong_arguments_get_one_sentence(arguments: dict[str, str], message: str) -> None:
    channels = 2 if arguments else 3
    with pytest.raises(ValueError, match=message):
        sample(torch.zeros(1, 1, 4, 4), torch.zeros(1, channels, 4, 4), **arguments)


def test_a_point_that_is_not_a_number_gives_no_number_and_no_crash(size: tuple[int, ...]) -> None:
    image = torch.rand(1, 1, *size, requires_grad=True)
    u = torch.zeros(1, len(size), *size)
    u[0, 0, 0] = torch.nan
    warped = warp(image, u.requires_grad_())
    assert bool(warped[0, 0, 0].isnan().all()) and bool(warped[0, 0, 1:].isfinite().all())
    warped[0, 0, 1:].sum().backward()
    assert bool(image.grad.isfinite().all())
