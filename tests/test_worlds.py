"""Images on different grids of one world: what a voxel of one is on the other."""

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.ndimage import map_coordinates
from torch.testing import assert_close

from dio_lightning.features import Intensity
from dio_lightning.fields import gaussian_smooth, identity, on_moving_grid, on_one_grid, seen_from, warp
from dio_lightning.layers import OptimizerLayer
from dio_lightning.modules import DIO
from dio_lightning.pair import Pair
from dio_lightning.scores.pairs import score_pair
from dio_lightning.scores.registered import ScoreOptions

FIXED = torch.tensor([[-2.0, 0.1, 0, 20], [0.1, 2.0, 0, -18], [0, 0, 2.0, -15], [0, 0, 0, 1]], dtype=torch.float64)
MOVING = torch.tensor([[0, -1.5, 0, 18], [2.5, 0, 0, -20], [0, 0, 3.0, -17], [0, 0, 0, 1]], dtype=torch.float64)


@pytest.fixture
def pair() -> Pair:
    generator = torch.Generator().manual_seed(1)
    moving = gaussian_smooth(torch.rand(1, 1, 17, 25, 13, generator=generator), 1.5)
    fixed = torch.rand(1, 1, 20, 18, 16, generator=generator)
    points = torch.rand(1, 3, 5, generator=generator) * 8 + 4
    there = torch.linalg.solve(MOVING, FIXED)
    moving_points = (there[:3, :3] @ points[0].double() + there[:3, 3:])[None].float()
    return Pair(
        fixed=fixed,
        moving=moving,
        fixed_label=(fixed > 0.5).short(),
        moving_label=(moving > 0.5).short(),
        fixed_points=points,
        moving_points=moving_points,
        spacing=FIXED[None, :3, :3].norm(dim=1).float(),
        affine=FIXED[None],
        moving_affine=MOVING[None],
    )


def itk(image, affine):
    """The image with the same geometry for SimpleITK: axes reversed, world turned from RAS to LPS."""
    result = sitk.GetImageFromArray(image.numpy().transpose(2, 1, 0))
    turned = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine.numpy()
    spacing = np.linalg.norm(turned[:3, :3], axis=0)
    result.SetSpacing(spacing.tolist())
    result.SetDirection((turned[:3, :3] / spacing).flatten().tolist())
    result.SetOrigin(turned[:3, 3].tolist())
    return result


def test_the_moving_image_lies_where_simpleitk_puts_it(pair):
    affine = torch.diag(torch.tensor([-2.0, 2.0, 2.0, 1.0], dtype=torch.float64))
    affine[:3, 3] = torch.tensor([20.0, -18.0, -15.0])
    pair["affine"] = affine[None]
    reference = sitk.Resample(itk(pair["moving"][0, 0], MOVING), itk(pair["fixed"][0, 0], affine), sitk.Transform(3, 1))
    expected = torch.from_numpy(sitk.GetArrayFromImage(reference).transpose(2, 1, 0).copy())
    matrix = torch.linalg.solve(MOVING, affine)[None]
    inside = expected != 0
    assert inside.float().mean() > 0.3
    found = seen_from(pair["moving"], matrix, pair["fixed"].shape[2:])[0, 0]
    # an axis of the moving image is finer than the fixed grid, so it is smoothed; sampling is compared beside it
    plain = warp(pair["moving"], on_moving_grid(torch.zeros(1, 3, 20, 18, 16), pair), padding="zeros")[0, 0]
    assert_close(plain[inside], expected[inside], atol=2e-5, rtol=0)
    assert_close(found[inside], expected[inside], atol=0.1, rtol=0)


def test_a_displacement_moves_to_the_moving_grid_through_the_world(pair):
    u = gaussian_smooth(torch.randn(1, 3, 20, 18, 16), 2.0) * 3
    v = on_moving_grid(u, pair)
    x = identity((20, 18, 16), u)
    to_world = FIXED[:3, :3] @ (x + u)[0].double().flatten(1) + FIXED[:3, 3:]
    moved = MOVING[:3, :3] @ (x + v)[0].double().flatten(1) + MOVING[:3, 3:]
    assert_close(moved, to_world, atol=1e-4, rtol=0)
    warped = map_coordinates(pair["moving"][0, 0].numpy(), (x + v)[0].numpy(), order=1, mode="nearest")
    assert_close(warp(pair["moving"], v)[0, 0], torch.from_numpy(warped), atol=1e-4, rtol=0)


def test_landmarks_that_agree_in_the_world_have_no_error_and_scores_use_the_moving_grid(pair):
    u = torch.zeros(1, 3, 20, 18, 16)
    row, _ = score_pair(u, pair, ScoreOptions(surface=False))
    assert row["tre"] < 1e-3
    u[:, 0] = 1
    row, _ = score_pair(u, pair, ScoreOptions(surface=False, landmarks_order=1))
    assert row["tre"] == pytest.approx(float(FIXED[:3, 0].norm()), abs=1e-3)
    common = on_one_grid(pair)
    assert_close(common["moving_points"], pair["fixed_points"], atol=1e-4, rtol=0)
    assert common["moving_label"].shape == pair["fixed_label"].shape and "moving_affine" not in common


def test_a_pair_on_one_grid_is_left_alone(pair):
    del pair["moving_affine"]
    assert on_one_grid(pair) is pair
    u = torch.randn(1, 3, 20, 18, 16)
    assert on_moving_grid(u, pair) is u


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("levels", [(1,), (2, 1)])
@pytest.mark.parametrize("voxel", [1.0, 2.0], ids=["own grid", "resampled"])
def test_dio_registers_a_moving_image_of_another_size(d, levels, voxel):
    """The moving image is the fixed one, cropped or coarser along one axis, and moved by two voxels along another."""
    size = (24, 30, 26)[:d]
    image = gaussian_smooth(torch.rand(1, 1, *size), 3.0)
    image = (image - image.min()) / (image.max() - image.min())
    affine, other = torch.eye(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    other[0, 0] = voxel
    moving = image[:, :, ::2] if voxel == 2 else image[:, :, 3:-2]
    other[0, 3] = 0.0 if voxel == 2 else 3.0
    other[1, 3] = 2.0  # what the fixed image has at y, the moving one has at y + 2
    pair = Pair(fixed=image, moving=moving, affine=affine[None], moving_affine=other[None])
    module = DIO(Intensity(levels), OptimizerLayer(iterations=[60] * len(levels)))
    assert module.keeps_grid(pair) == (voxel == 1)
    u = module.register(pair)
    inner = (0, slice(None), *[slice(6, -6)] * d)
    before = (warp(moving, on_moving_grid(torch.zeros_like(u), pair)) - image)[inner].square().mean()
    after = (warp(moving, on_moving_grid(u, pair)) - image)[inner].square().mean()
    assert after < 0.2 * before


def test_features_on_a_grid_of_their_own_are_those_of_a_padded_image():
    """A moving image that is the middle of a larger one gives the displacement of the larger one, inside."""
    image = gaussian_smooth(torch.rand(1, 1, 32, 28), 2.0)
    moving, affine = torch.nn.functional.pad(image, [0, 0, 8, 8]), torch.eye(4, dtype=torch.float64)
    other = affine.clone()
    other[0, 3] = -8.0
    layer = OptimizerLayer(iterations=[10])
    shifted = torch.roll(image, 1, 3)
    wide = Pair(fixed=shifted, moving=moving, affine=affine[None], moving_affine=other[None])
    u = DIO(Intensity((1,)), layer).register(wide)
    v = DIO(Intensity((1,)), layer).register(Pair(fixed=shifted, moving=image))
    assert_close(u[:, :, 6:-6, 6:-6], v[:, :, 6:-6, 6:-6], atol=0.02, rtol=0)
