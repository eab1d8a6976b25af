"""Methods that work on voxels of one size, whatever the images' own are."""

import pytest
import torch

from dio_lightning.features import Intensity
from dio_lightning.fields import gaussian_smooth, warp
from dio_lightning.layers import OptimizerLayer
from dio_lightning.modules import DIO
from dio_lightning.pair import Pair


def model(**settings) -> DIO:
    return DIO(Intensity((1,)), OptimizerLayer([80]), **settings)


def pair(shape, spacing, steps=2.0) -> Pair:
    """A pair whose moving image lies this many voxels further along the first axis; smooth in mm."""
    torch.manual_seed(0)
    sigma = [5.0 / step for step in spacing]
    moving = gaussian_smooth(torch.randn(1, 1, *shape), sigma, truncate=3.0)
    moving = (moving - moving.amin()) / (moving.amax() - moving.amin())
    u = torch.zeros(1, len(shape), *shape)
    u[:, 0] = steps
    return Pair(fixed=warp(moving, u), moving=moving, spacing=torch.tensor([spacing]))


@pytest.mark.parametrize(
    ("shape", "spacing", "size"),
    [
        ((40, 44), (1.0, 1.0), [20, 22]),
        ((20, 22), (2.0, 2.0), [20, 22]),
        ((40, 8), (1.0, 5.0), [20, 20]),
        ((22, 8, 24), (2.0, 6.0, 2.0), [22, 24, 24]),
        ((22, 1), (2.0, 0.1), [22, 1]),
    ],
)
def test_the_working_grid_has_voxels_of_that_size(shape, spacing, size) -> None:
    work = model(voxel=2.0).work(pair(shape, spacing))
    assert list(work["fixed"].shape[2:]) == list(work["moving"].shape[2:]) == size
    assert "spacing" in work
    # what lies between the first voxel and the last is as long as before
    lengths = [(n - 1) * step for n, step in zip(shape, spacing, strict=True)]
    working = [(n - 1) * step for n, step in zip(size, work["spacing"][0].tolist(), strict=True)]
    assert working == pytest.approx(lengths)


def test_voxels_of_that_size_and_images_without_spacing_stay_as_they_are() -> None:
    images = pair((24, 20), (2.0, 2.0))
    assert model(voxel=2.0).work(images)["fixed"] is images["fixed"]
    del images["spacing"]
    assert model(voxel=3.0).work(images)["fixed"] is images["fixed"]


@pytest.mark.parametrize(
    ("shape", "spacing", "size"),
    [
        ((40, 44), (1.0, 1.0), [40, 44]),
        ((40, 8), (1.0, 5.0), [40, 20]),
        ((22, 8, 24), (2.0, 6.0, 2.0), [22, 24, 24]),
        ((22, 8, 24), (0.5, 4.0, 2.1), [22, 16, 25]),
        ((22, 1), (2.0, 5.0), [22, 1]),
    ],
)
def test_only_voxels_with_a_longer_side_are_divided(shape, spacing, size) -> None:
    work = model(max_voxel=2.0).work(pair(shape, spacing))
    assert list(work["fixed"].shape[2:]) == size


def test_thick_slices_are_registered_as_on_voxels_of_that_size() -> None:
    images = pair((28, 10, 24), (2.0, 6.0, 2.0))
    with torch.no_grad():
        assert torch.equal(model(max_voxel=2.0).register(images), model(voxel=2.0).register(images))


def test_it_is_the_resolution_that_makes_such_voxels() -> None:
    images = pair((32, 40), (1.0, 1.0))
    with torch.no_grad():
        assert torch.equal(model(voxel=2.0).register(images), model(resolution=2.0).register(images))


@pytest.mark.parametrize(("shape", "spacing"), [((40, 44), (1.0, 1.0)), ((28, 10, 24), (2.0, 6.0, 2.0))])
def test_the_answer_is_in_voxels_of_the_images(shape, spacing) -> None:
    images = pair(shape, spacing)
    with torch.no_grad():
        u = model(voxel=2.0).register(images)
    assert u.shape == (1, len(shape), *shape)
    inner = (slice(None), 0, *[slice(n // 4, -(n // 4)) for n in shape])
    assert abs(float(u[inner].mean()) - 2.0) < 0.3
    assert float(u[inner[0], 1:, *inner[2:]].abs().mean()) < 0.3


@pytest.mark.parametrize(
    "settings",
    [
        {"voxel": 0.0},
        {"max_voxel": -1.0},
        {"max_voxel": float("nan")},
        {"voxel": float("inf")},
        {"voxel": 2.0, "resolution": 2.0},
        {"voxel": 2.0, "max_voxel": 2.0},
    ],
)
def test_settings_that_contradict_are_refused(settings) -> None:
    with pytest.raises(ValueError, match="voxel is"):
        model(**settings)


@pytest.mark.parametrize("resolution", [0.5, float("nan"), float("inf")])
def test_a_resolution_that_is_no_factor_is_refused(resolution) -> None:
    with pytest.raises(ValueError, match=f"resolution is {resolution}, expected a factor of at least 1"):
        model(resolution=resolution)
