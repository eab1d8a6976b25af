"""Transforms as values: against SimpleITK, closed forms and SciPy."""

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from transform_worlds import FLIP, affine_of, itk_affine, itk_field, itk_grid, random_points, smooth_field, turned

from dio_lightning.fields import sample
from dio_lightning.transforms import Affine, Chain, Field, ImageGrid

SIZES = {2: (13, 10), 3: (9, 12, 7)}


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("handed", [1, -1])
def test_chains_take_points_where_simpleitk_takes_them(d, handed):
    """Issue 12.4: either handedness, anisotropic, oblique; inside and outside of the field."""
    grid = ImageGrid(SIZES[d], affine_of(d, handed))
    chain = Chain([smooth_field(grid), turned(d=d)])
    composite = sitk.CompositeTransform(d)
    composite.AddTransform(itk_affine(chain.links[1].matrix, d))
    composite.AddTransform(itk_field(chain.links[0]))
    points = random_points(grid)[:, :d]
    expected = np.array([composite.TransformPoint((point * FLIP[:d]).tolist()) for point in points]) * FLIP[:d]
    np.testing.assert_allclose(chain.points(points), expected, atol=1e-6)


@pytest.mark.parametrize("d", [2, 3])
def test_a_displacement_on_a_grid_resamples_as_simpleitk_does(d):
    fixed, moving = ImageGrid(SIZES[d], affine_of(d, 1)), ImageGrid(SIZES[d][::-1], affine_of(d, -1, 1.3))
    chain = Chain([smooth_field(fixed), turned(0.1, (1.0, -1.0, 0.5), d)])
    values = np.random.default_rng(0).normal(size=moving.size)
    u = chain.on_grid(fixed.size, fixed.affine, moving.affine)
    at = torch.from_numpy(np.stack(np.meshgrid(*map(np.arange, fixed.size), indexing="ij"))) + u[0]
    ours = sample(torch.from_numpy(values)[None, None], at[None])[0, 0].numpy()
    composite = sitk.CompositeTransform(d)
    composite.AddTransform(itk_affine(chain.links[1].matrix, d))
    composite.AddTransform(itk_field(chain.links[0]))
    image = itk_grid(moving, values)
    theirs = sitk.GetArrayFromImage(
        sitk.Resample(image, itk_grid(fixed), composite, sitk.sitkLinear, np.nan, sitk.sitkFloat64)
    ).T
    inside = np.isfinite(theirs)
    assert inside.mean() > 0.2
    np.testing.assert_allclose(ours[inside], theirs[inside], atol=1e-5)


def test_beyond_half_a_voxel_a_field_is_zero():
    field = Field(torch.full((3, 4, 5, 6), 2.0), np.eye(4))
    inside, outside = [[-0.5, 2, 2], [3.5, 4.5, 5.5]], [[-0.51, 2, 2], [1, 2, 5.51]]
    np.testing.assert_allclose(field.points(np.array(inside)) - inside, 2.0)
    np.testing.assert_allclose(field.points(np.array(outside)) - outside, 0.0)


@pytest.mark.parametrize("d", [2, 3])
def test_an_inverse_takes_points_back_and_says_how_far_it_is_off(d):
    grid = ImageGrid(SIZES[d], affine_of(d, 1))
    chain = Chain([turned(d=d), smooth_field(ImageGrid(SIZES[d], turned(d=d).matrix @ grid.affine), 1.0), turned(d=d)])
    back = chain.inverse()
    assert back.largest < 1e-4 and back.covered > 0.6
    inner = random_points(grid, beyond=-0.35)
    assert np.abs(chain.points(inner) - inner).max() > 1
    # at voxels it is solved to rounding; between them both fields are interpolated
    np.testing.assert_allclose(back.transform.points(chain.points(inner)), inner, atol=0.15)
    node = back.transform.links[1].grid.points().reshape(3, -1).T.numpy()
    there = back.transform.links[1].points(node)
    kept = chain.links[1].grid.contains(torch.from_numpy(there.T)).numpy()
    np.testing.assert_allclose(chain.links[1].points(there)[kept], node[kept], atol=1e-3)


def test_a_place_that_is_nearly_folded_does_not_spoil_its_inverse():
    """Steep and gentle places are solved for alike: x + a sin x, whose slope is 0.97 at its steepest."""
    x = torch.arange(64, dtype=torch.float32)
    steep = -9.7 * torch.sin((x - 32) / 10) * torch.exp(-(((x - 32) / 12) ** 2))
    field = torch.zeros(3, 64, 10, 9)
    field[0] = steep[:, None, None]
    inverse = Field(field, np.eye(4)).inverse()
    assert inverse.largest < 1e-3 and inverse.covered > 0.9
    there = Field(field, np.eye(4)).map(inverse.transform.map(ImageGrid((64, 10, 9), np.eye(4)).points()[:, 4:-4]))
    torch.testing.assert_close(there, ImageGrid((64, 10, 9), np.eye(4)).points()[:, 4:-4], atol=1e-3, rtol=0)


def test_the_inverse_of_a_translation_is_exact_on_the_grid_it_was_asked_for():
    """A field of large constant values covers another place after it than before it."""
    field = Field(torch.full((3, 6, 6, 6), 40.0, dtype=torch.float64), np.eye(4))
    moved = np.eye(4)
    moved[:3, 3] = 40
    back = field.inverse(ImageGrid((6, 6, 6), moved))
    assert back.covered == 1 and back.largest < 1e-9
    np.testing.assert_allclose(back.transform.points([[42.0, 43.0, 41.5]]), [[2.0, 3.0, 1.5]])
    # on its own grid no voxel comes from the field
    assert field.inverse().covered == 0


def test_where_neither_point_is_on_the_field_its_inverse_is_the_identity():
    field = Field(torch.full((3, 6, 6, 6), 1.0, dtype=torch.float64), np.eye(4))
    far = np.eye(4)
    far[:3, 3] = 100
    np.testing.assert_allclose(field.inverse(ImageGrid((3, 3, 3), far)).transform.points([[101.0, 101, 101]]), 101.0)


def test_voxels_and_world_say_the_same():
    fixed, moving = affine_of(3, -1), affine_of(3, 1, 1.7)
    u = torch.randn(1, 3, *SIZES[3], dtype=torch.float64)
    field = Field.of_voxels(u, fixed, moving)
    torch.testing.assert_close(field.on_grid(SIZES[3], fixed, moving), u, atol=1e-9, rtol=0)
    same = Field.of_voxels(u, fixed).on_grid(SIZES[3], fixed)
    torch.testing.assert_close(same, u, atol=1e-9, rtol=0)
    matrix = np.linalg.inv(moving) @ turned().matrix @ fixed
    np.testing.assert_allclose(Affine.of_voxels(matrix, fixed, moving).matrix, turned().matrix, atol=1e-9)


def test_a_plane_may_stand_anywhere_in_the_world():
    """A coronal slice: its displacement leaves the plane x, y of the world."""
    coronal = np.array([[2.0, 0, 0, 1], [0, 0, 1, 5], [0, 3.0, 0, -7], [0, 0, 0, 1]])
    u = torch.randn(1, 2, 8, 9, dtype=torch.float64)
    field = Field.of_voxels(u, coronal)
    np.testing.assert_allclose(field.displacement[2], 3 * u[0, 1])
    torch.testing.assert_close(field.on_grid((8, 9), coronal), u, atol=1e-9, rtol=0)


def test_chains_are_opened_added_and_merged():
    grid = ImageGrid(SIZES[3], affine_of(3, 1))
    a, b, field = turned(0.1), turned(0.7, (9.0, 1, 2)), smooth_field(grid)
    chain = Chain([a, Chain([b]), field]) + b + a
    assert [type(link).__name__ for link in chain.links] == ["Affine", "Affine", "Field", "Affine", "Affine"]
    points = random_points(grid)
    assert [type(link).__name__ for link in chain.merged().links] == ["Affine", "Field", "Affine"]
    np.testing.assert_allclose(chain.merged().points(points), chain.points(points), atol=1e-9)
    two = Chain([field, b])
    one = Field.of(two, grid)
    nodes = grid.points().reshape(3, -1).T.numpy()
    np.testing.assert_allclose(one.points(nodes), two.points(nodes), atol=1e-9)
    np.testing.assert_array_equal(Chain().points(points), points)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Affine(np.diag([1.0, 1, 0, 1])), "not invertible"),
        (lambda: Affine(np.full((4, 4), np.nan)), "NaN"),
        (lambda: Affine(np.eye(3)), "expected 4x4"),
        (lambda: Affine(np.ones((4, 4))), "last row"),
        (lambda: Field(torch.zeros(3, 4), np.eye(4)), "shape 3x4 "),
        (lambda: Field(torch.full((3, 4, 4), torch.inf), np.eye(4)), "infinite"),
        (lambda: Field(torch.zeros(3, 4, 4, 4), np.zeros((4, 4)) + np.diag([0, 0, 0, 1.0])), "not invertible"),
        (lambda: Affine(np.eye(4)).points(np.zeros(3)), "points have shape 3"),
        (lambda: ImageGrid((4,), np.eye(4)), "2 or 3 axes"),
    ],
)
def test_what_is_no_transform_is_one_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()
