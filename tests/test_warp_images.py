"""Images and points carried by transforms: in their own type, against SimpleITK."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from transform_worlds import FLIP, affine_of, itk_affine, itk_field, itk_grid, smooth_field

from dio_lightning.headers import Unreadable, read_header
from dio_lightning.transforms import Affine, Chain, Field, ImageGrid, warp_image, warp_points

FIXED = ImageGrid((12, 9, 8), affine_of(3, 1))
MOVING = ImageGrid((10, 11, 9), affine_of(3, -1, 1.3))


def chain_of(grid=FIXED):
    matrix = np.eye(4)
    matrix[:3, :3] += 0.05 * np.random.default_rng(1).normal(size=(3, 3))
    matrix[:3, 3] = 1.0, -2.0, 0.5
    return Chain([smooth_field(grid), Affine(matrix)])


def file_of(path, values, grid=MOVING, scale=None):
    image = nib.Nifti1Image(values, grid.affine, dtype=values.dtype)
    image.header.set_xyzt_units("mm")
    if scale is not None:
        image.header.set_slope_inter(*scale)
    nib.save(image, path)
    return read_header(path)


def by_itk(values, chain, mode, outside=0.0):
    composite = sitk.CompositeTransform(3)
    composite.AddTransform(itk_affine(chain.links[1].matrix, 3))
    composite.AddTransform(itk_field(chain.links[0]))
    image = itk_grid(MOVING, values.astype(float))
    return sitk.GetArrayFromImage(sitk.Resample(image, itk_grid(FIXED), composite, mode, outside)).T


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32", ">i2", "int64"])
def test_an_image_is_interpolated_once_in_its_own_type(tmp_path, dtype):
    low, high = (0, 250) if np.dtype(dtype).kind == "u" else (-1000, 1000)
    values = np.random.default_rng(0).uniform(low, high, MOVING.size).astype(dtype)
    header = file_of(tmp_path / "moving.nii.gz", values)
    warped = warp_image(header, chain_of(), FIXED)
    assert warped.dtype == np.dtype(dtype).newbyteorder("=")
    outside = min(0.0, float(values.min()))
    expected = by_itk(values, chain_of(), sitk.sitkLinear, outside)
    assert 0.1 < (expected == outside).mean() < 0.8, "the test needs both sides of the border"
    np.testing.assert_allclose(warped, expected, atol=0.5 + 1e-4 if warped.dtype.kind in "iu" else 1e-3)


def test_labels_are_gathered_and_keep_numbers_that_no_float_holds(tmp_path):
    labels = np.random.default_rng(0).integers(0, 5, MOVING.size)
    header = file_of(tmp_path / "labels.nii.gz", labels + (labels > 3) * 2**60)
    warped = warp_image(header, chain_of(), FIXED, mode="nearest")
    assert set(np.unique(warped)) <= {0, 1, 2, 3, 4 + 2**60} and (warped == 4 + 2**60).any()
    theirs = by_itk(labels, chain_of(), sitk.sitkNearestNeighbor)
    assert (np.where(warped > 3, 4, warped) != theirs).mean() < 1e-3


def test_scaled_files_are_interpolated_in_their_intensities_and_stored_as_they_were(tmp_path):
    raw = np.random.default_rng(0).integers(0, 200, MOVING.size).astype(np.int16)
    plain = warp_image(file_of(tmp_path / "plain.nii.gz", raw.astype(np.float32) * 0.5 + 3), chain_of(), FIXED)
    image = nib.Nifti1Image(raw, MOVING.affine)
    image.header.set_slope_inter(0.5, 3.0)
    nib.save(image, tmp_path / "scaled.nii.gz")
    raw_header = read_header(tmp_path / "scaled.nii.gz")
    if raw_header.scale == (1.0, 0.0):
        pytest.fail("the file was written without its scale")
    scaled = warp_image(raw_header, chain_of(), FIXED, outside=3.0)
    inside = plain != 0
    assert scaled.dtype == np.int16
    slope, intercept = raw_header.scale
    np.testing.assert_allclose((scaled * slope + intercept)[inside], plain[inside], atol=slope / 2 + 1e-4)


def test_what_a_type_cannot_hold_beside_the_image_is_the_nearest_that_it_can(tmp_path):
    """A scan stored from 1000 upwards has no 0; unless that is asked for, it is no error."""
    image = nib.Nifti1Image(np.ones(MOVING.size, np.uint8), MOVING.affine)
    image.header.set_slope_inter(2.0, 1000.0)
    nib.save(image, tmp_path / "scaled.nii.gz")
    header = read_header(tmp_path / "scaled.nii.gz")
    assert set(np.unique(warp_image(header, chain_of(), FIXED))) == {0, 1}
    with pytest.raises(ValueError, match="cannot be 0"):
        warp_image(header, chain_of(), FIXED, outside=0.0)


def test_points_go_forward_by_the_transform_and_back_by_its_inverse():
    """Issue 12: points of the fixed image lie in the moving one where `TransformPoint` puts them."""
    chain = chain_of()
    composite = sitk.CompositeTransform(3)
    composite.AddTransform(itk_affine(chain.links[1].matrix, 3))
    composite.AddTransform(itk_field(chain.links[0]))
    nodes = FIXED.points()[:, 2:-2, 2:-2, 2:-2].reshape(3, -1).T.numpy() + 0.3
    there = warp_points(nodes, chain)
    expected = np.array([composite.TransformPoint((p * FLIP).tolist()) for p in nodes]) * FLIP
    np.testing.assert_allclose(there.points, expected, atol=1e-6)
    back = warp_points(there.points, chain, to="fixed")
    np.testing.assert_allclose(back.points, nodes, atol=1e-4)
    assert back.missed.max() < 1e-4


def test_points_that_have_no_origin_say_so():
    """A field that ends at its full length of 5 mm takes nothing to the 5 mm behind its border."""
    field = Field(torch.tensor([5.0, 0, 0]).view(3, 1, 1, 1).expand(3, 12, 6, 6).contiguous(), np.eye(4))
    moved = warp_points(np.array([[3.0, 2, 2], [9.0, 2, 2], [30.0, 2, 2]]), field, to="fixed")
    np.testing.assert_allclose(moved.missed, [5.0, 0.0, 0.0], atol=1e-9)
    np.testing.assert_allclose(moved.points[1:], [[4.0, 2, 2], [30.0, 2, 2]], atol=1e-9)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((4, 4, 4, 3), np.float32), "in 4 dimensions"),
        (np.zeros((4, 4, 4), np.complex64), "complex64"),
    ],
)
def test_what_is_no_image_of_the_grid_is_refused(tmp_path, values, message):
    with pytest.raises(Unreadable, match=message):
        warp_image(file_of(tmp_path / "image.nii.gz", values), Chain(), FIXED)


def test_a_transform_that_leads_past_the_image_is_no_empty_image(tmp_path):
    far = np.eye(4)
    far[0, 3] = 1e4
    with pytest.raises(ValueError, match="leads past it"):
        warp_image(file_of(tmp_path / "image.nii.gz", np.ones(MOVING.size, np.float32)), Affine(far), FIXED)
