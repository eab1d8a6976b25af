"""Displacements in files lie somewhere in the world: ITK's are resampled onto the fixed grid, others must lie on it."""

import itertools

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter

from dio_lightning.fields.files import read_displacement
from dio_lightning.headers import read_header
from dio_lightning.transforms import ImageGrid, read_transform

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def affine_of(d, spacing=2.0, flip=(), angle=0.0, offset=(0, 0, 0)):
    """An affine of equal voxels, with axes flipped about the grid's first voxel, turned in the plane and moved."""
    matrix = np.diag([*[spacing] * d, *[1.0] * (4 - d)])
    for axis in flip:
        matrix[axis, axis] *= -1
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    matrix = turn @ matrix
    matrix[:d, 3] += np.array(offset[:d], dtype=float)
    return matrix


def middle(affine, size, at):
    """The affine, moved so that the grid's centre lies at a place of the world."""
    centred, d = affine.copy(), len(size)
    centred[:d, 3] = np.array(at[:d]) - (affine[:d, :d] @ ((np.array(size) - 1) / 2))
    return centred


def smooth(size, seed=0, sigma=3.0):
    rng = np.random.default_rng(seed)
    return np.stack([gaussian_filter(rng.normal(size=size), sigma) * 60 for _ in size], -1)


def image_of(size, affine, vectors=None):
    """What SimpleITK has for a grid of ours: axes reversed, world turned to LPS; d components, or zeros."""
    d = len(size)
    world = (LPS @ affine)[np.ix_([*range(d), 3], [*range(d), 3])]
    if vectors is None:
        image = sitk.GetImageFromArray(np.zeros(size[::-1]))
    else:
        order = (*range(d - 1, -1, -1), d)
        image = sitk.GetImageFromArray(np.ascontiguousarray(vectors.transpose(order)), isVector=True)
    spacing = np.linalg.norm(world[:d, :d], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((world[:d, :d] / spacing).flatten().tolist())
    image.SetOrigin(world[:d, d].tolist())
    return image


def by_itk(transform, fixed, size):
    """u in voxels of the fixed grid, where SimpleITK takes every voxel of it."""
    d = len(size)
    found = np.zeros((d, *size))
    for x in itertools.product(*map(range, size)):
        there = transform.TransformPoint(fixed.TransformContinuousIndexToPhysicalPoint([float(c) for c in x]))
        found[(slice(None), *x)] = np.subtract(fixed.TransformPhysicalPointToContinuousIndex(there), x)
    return found


GRIDS = {
    "same": {},
    "flipped": {"flip": (0,)},
    "both flipped": {"flip": (0, 1)},
    "turned": {"angle": 0.4},
    "off by 7 mm": {"moved": (7.0, -5.0, 3.0)},
    "coarser": {"spacing": 4.5},
    "finer, turned, flipped": {"spacing": 1.5, "angle": -0.3, "flip": (1,)},
}


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("grid", GRIDS, ids=lambda name: name.replace(" ", "_"))
def test_a_field_of_itk_on_any_grid_is_the_map_that_itk_makes_of_it(tmp_path, d, grid):
    """A7: u of SimpleITK's DisplacementFieldTransform, whose grid is another one than the fixed image's."""
    options = dict(GRIDS[grid])
    moved = np.array(options.pop("moved", (0, 0, 0)), dtype=float)
    size = (9, 11, 8)[:d]
    fixed_affine = middle(affine_of(d, 2.0, flip=(0,), angle=0.2), size, (12, -30, 7))
    if grid == "same":
        own_size, own = size, fixed_affine
    else:
        reach = 40 / options.get("spacing", 2.0)
        own_size = tuple(int(reach) + i for i in range(d))
        own = middle(affine_of(d, **options), own_size, np.array((12, -30, 7)) + moved)
    vectors = smooth(own_size)
    image = image_of(own_size, own, vectors)
    sitk.WriteImage(image, tmp_path / "disp.nii.gz")
    fixed = image_of(size, fixed_affine)
    expected = by_itk(sitk.DisplacementFieldTransform(sitk.Cast(image, sitk.sitkVectorFloat64)), fixed, size)
    assert np.abs(expected).max() > 1
    found = read_displacement(tmp_path / "disp.nii.gz", size, fixed_affine).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_a_sheared_fixed_grid_takes_the_same_map_of_the_world(tmp_path):
    """A7, where ITK has no such image: the closed form of a linear map w = M p + t, which interpolation keeps."""
    size, own_size = (8, 9, 7), (20, 21, 22)
    sheared = np.array([[2.0, 1.0, 0, 3], [0, 2.0, 0.5, -4], [0, 0, 2.0, 5], [0, 0, 0, 1]])
    own = middle(affine_of(3, 3.0, flip=(0,), angle=0.3), own_size, (sheared @ [4, 4, 3, 1])[:3])
    m, t = np.array([[0.1, 0.02, 0], [0, -0.05, 0.03], [0.01, 0, 0.04]]), np.array([1.0, -2, 3])
    at = np.stack(np.meshgrid(*map(np.arange, own_size), indexing="ij"))
    ras = np.einsum("ij,jxyz->xyzi", m, np.einsum("ij,jxyz->ixyz", own[:3, :3], at) + own[:3, 3, None, None, None]) + t
    sitk.WriteImage(image_of(own_size, own, ras * [-1, -1, 1]), tmp_path / "disp.nii.gz")
    x = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"))
    p = np.einsum("ij,jxyz->ixyz", sheared[:3, :3], x) + sheared[:3, 3, None, None, None]
    world = np.einsum("ij,jxyz->ixyz", m, p) + t[:, None, None, None]
    expected = np.einsum("ij,jxyz->ixyz", np.linalg.inv(sheared[:3, :3]), world)
    found = read_displacement(tmp_path / "disp.nii.gz", size, sheared).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("unit", ["micron", "meter"])
def test_a_field_of_itk_in_another_unit_lies_where_itk_puts_it(tmp_path, unit):
    """A5: lengths of the header have a unit, vectors of ITK are millimetres."""
    size, own_size = (6, 7, 5), (12, 13, 11)
    fixed_affine = middle(affine_of(3, 2.0), size, (0, 0, 0))
    own = middle(affine_of(3, 2.0, flip=(0,)), own_size, (1, 0, 0))
    sitk.WriteImage(image_of(own_size, own, smooth(own_size)), tmp_path / "mm.nii.gz")
    stored = nib.load(tmp_path / "mm.nii.gz")
    scale = {"micron": 1e3, "meter": 1e-3}[unit]
    other = nib.Nifti1Image(np.asarray(stored.dataobj), np.diag([scale, scale, scale, 1]) @ stored.affine)
    other.header.set_xyzt_units(unit)
    other.header.set_intent(1007)
    nib.save(other, tmp_path / "disp.nii.gz")
    expected = read_displacement(tmp_path / "mm.nii.gz", size, fixed_affine)
    np.testing.assert_allclose(read_displacement(tmp_path / "disp.nii.gz", size, fixed_affine), expected, atol=1e-4)
    there = sitk.ReadImage(tmp_path / "disp.nii.gz")
    assert there.GetSpacing() == pytest.approx((2, 2, 2), rel=1e-5)


@pytest.mark.parametrize("d", [2, 3])
def test_a_field_of_itk_that_does_not_cover_the_fixed_image_is_refused(tmp_path, d):
    """A7: ten millimetres off; half a voxel beyond the border is still ITK's border value."""
    size = (9, 11, 8)[:d]
    fixed_affine = affine_of(d, 2.0)
    vectors = smooth(size)
    for offset, refused in ((0.9, False), (1.1, True), (10.0, True), (-10.0, True)):
        own = affine_of(d, 2.0, offset=(0, offset, 0))
        sitk.WriteImage(image_of(size, own, vectors), tmp_path / "disp.nii.gz")
        if refused:
            beyond = abs(offset) - 1
            with pytest.raises(ValueError, match=rf"does not cover .* reaches {beyond:.4g} mm beyond it along axis 1"):
                read_displacement(tmp_path / "disp.nii.gz", size, fixed_affine)
        else:
            read_displacement(tmp_path / "disp.nii.gz", size, fixed_affine)


def test_a_plane_of_the_body_that_itk_does_not_know_is_refused(tmp_path):
    size = (9, 11)
    sagittal = np.array([[0.0, 0, 2, 40], [2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 1]])
    sitk.WriteImage(image_of(size, affine_of(2, 2.0), smooth(size)), tmp_path / "disp.nii.gz")
    with pytest.raises(ValueError, match="expected a fixed image in that plane"):
        read_displacement(tmp_path / "disp.nii.gz", size, sagittal)


SIZE = (8, 10, 12)
FIXED = affine_of(3, 2.0, flip=(0,), offset=(14.0, -20.0, 5.0))


def voxels(path, affine, size=SIZE, **forms):
    image = nib.Nifti1Image(smooth(size).astype(np.float32), affine)
    for form, code in forms.items():
        getattr(image, f"set_{form}")(affine, code)
    nib.save(image, path)
    return image.get_fdata(dtype=np.float32)


@pytest.mark.parametrize(
    "affine",
    [None, np.eye(4), LPS, np.diag([2.0, 2, 2, 1]), FIXED, FIXED + 1e-5 * np.eye(4)],
    ids=["none", "identity", "identity of ITK", "voxel sizes", "fixed", "fixed, rounded"],
)
def test_voxels_of_the_fixed_grid_may_say_so_or_nothing(tmp_path, affine):
    """A7's kind: Learn2Reg's files, whose values are voxels whatever their affine."""
    expected = voxels(tmp_path / "disp.nii.gz", affine)
    found = read_displacement(tmp_path / "disp.nii.gz", SIZE, FIXED)
    np.testing.assert_array_equal(found, np.moveaxis(expected, -1, 0))


ELSEWHERE = {
    "flipped": affine_of(3, 2.0, offset=(0.0, -20.0, 5.0)),
    "off by 10 mm": affine_of(3, 2.0, flip=(0,), offset=(24.0, -20.0, 5.0)),
    "other spacing": affine_of(3, 2.5, flip=(0,), offset=(14.0, -20.0, 5.0)),
    "turned": affine_of(3, 2.0, flip=(0,), angle=0.1, offset=(14.0, -20.0, 5.0)),
}


@pytest.mark.parametrize("grid", ELSEWHERE, ids=lambda name: name.replace(" ", "_"))
@pytest.mark.parametrize("size", [SIZE, (4, 5, 6)], ids=["full", "half"])
def test_voxels_of_another_grid_are_refused(tmp_path, grid, size):
    """A7's kind: a real affine that contradicts the fixed image's."""
    affine = ELSEWHERE[grid]
    if size != SIZE and grid == "turned":
        affine = affine_of(3, 4.0, flip=(0,), angle=0.3, offset=(14.0, -20.0, 5.0))
    voxels(tmp_path / "disp.nii.gz", affine, size)
    with pytest.raises(ValueError, match=r"disp.nii.gz lies on another grid than the fixed image"):
        read_displacement(tmp_path / "disp.nii.gz", SIZE, FIXED)
    # where nothing is known of the fixed image, nothing contradicts
    read_displacement(tmp_path / "disp.nii.gz", SIZE)


def test_an_affine_that_is_not_finite_is_refused(tmp_path):
    voxels(tmp_path / "whole.nii", FIXED)
    data = bytearray((tmp_path / "whole.nii").read_bytes())
    data[280:284] = np.array([np.nan], "<f4").tobytes()  # srow_x
    (tmp_path / "disp.nii").write_bytes(data)
    with pytest.raises(ValueError, match=r"disp.nii lies on another grid"):
        read_displacement(tmp_path / "disp.nii", SIZE, FIXED)
    sitk.WriteImage(image_of(SIZE, FIXED, smooth(SIZE)), tmp_path / "whole.nii")
    data = bytearray((tmp_path / "whole.nii").read_bytes())
    data[280:284] = np.array([np.nan], "<f4").tobytes()
    (tmp_path / "disp.nii").write_bytes(data)
    with pytest.raises(ValueError, match="affine that is not invertible"):
        read_displacement(tmp_path / "disp.nii", SIZE, FIXED)


@pytest.mark.parametrize("ends", ["last voxels", "faces", "first voxels"])
def test_half_resolution_may_have_any_of_the_usual_grids(tmp_path, ends):
    half = (4, 5, 6)
    scale = np.diag(
        [*([(n - 1) / (h - 1) for n, h in zip(SIZE, half, strict=True)] if ends[0] == "l" else [2.0] * 3), 1]
    )
    if ends == "faces":
        scale[:3, 3] = 0.5
    voxels(tmp_path / "disp.nii.gz", FIXED @ scale, half)
    assert read_displacement(tmp_path / "disp.nii.gz", SIZE, FIXED).shape == (3, *SIZE)


def test_the_form_that_counts_is_the_one_that_images_are_read_by(tmp_path):
    """A1: the sform wins, here as there."""
    image = nib.Nifti1Image(smooth(SIZE).astype(np.float32), FIXED)
    image.set_qform(ELSEWHERE["off by 10 mm"], 1)
    image.set_sform(FIXED, 2)
    nib.save(image, tmp_path / "disp.nii.gz")
    assert read_header(tmp_path / "disp.nii.gz").source == "sform"
    read_displacement(tmp_path / "disp.nii.gz", SIZE, FIXED)
    image.set_sform(ELSEWHERE["off by 10 mm"], 2)
    image.set_qform(FIXED, 1)
    nib.save(image, tmp_path / "disp.nii.gz")
    with pytest.raises(ValueError, match=r"5 voxels away by its sform"):
        read_displacement(tmp_path / "disp.nii.gz", SIZE, FIXED)


def test_a_transformation_of_niftyreg_is_no_displacement_of_itk(tmp_path):
    image = nib.Nifti1Image(smooth(SIZE).astype(np.float32)[:, :, :, None], FIXED)
    image.header.set_intent(1007, name="NREG_TRANS")
    nib.save(image, tmp_path / "disp.nii.gz")
    with pytest.raises(ValueError, match="is a transformation of NiftyReg"):
        read_displacement(tmp_path / "disp.nii.gz", SIZE, FIXED)


@pytest.mark.parametrize("kind", [(1007, "Mapping", ""), (0, "", "Deformation"), (0, "", "Flow Field")])
def test_a_deformation_of_spm_is_no_displacement(tmp_path, kind):
    """Positions in RAS millimetres; its segmentation names no intent, only a description."""
    values = np.stack(np.meshgrid(*map(np.arange, SIZE), indexing="ij"), -1) @ FIXED[:3, :3].T + FIXED[:3, 3]
    image = nib.Nifti1Image(values.astype(np.float32)[:, :, :, None], FIXED)
    image.header.set_intent(kind[0], name=kind[1])
    image.header["descrip"] = kind[2].encode()
    nib.save(image, tmp_path / "disp.nii.gz")
    with pytest.raises(ValueError, match="is a deformation of SPM"):
        read_displacement(tmp_path / "disp.nii.gz", SIZE, FIXED)
    for format in (None, "itk", "learn2reg"):
        with pytest.raises(ValueError, match="is a deformation of SPM"):
            read_transform(tmp_path / "disp.nii.gz", ImageGrid(SIZE, FIXED), format=format)


@pytest.mark.parametrize("intent", [2006, 2007, 2008, 2009])
def test_what_fnirt_writes_is_no_displacement_in_voxels(tmp_path, intent):
    image = nib.Nifti1Image(smooth(SIZE).astype(np.float32), FIXED)
    image.header.set_intent(intent, allow_unknown=True)
    nib.save(image, tmp_path / "disp.nii.gz")
    what = "is a field of FSL in millimetres" if intent == 2006 else "holds coefficients of FNIRT"
    with pytest.raises(ValueError, match=f"{what}, expected .*transform convert --to learn2reg"):
        read_displacement(tmp_path / "disp.nii.gz", SIZE, FIXED)


def test_what_is_no_real_number_is_refused(tmp_path):
    for name, array in {"complex": np.zeros((*SIZE, 3), complex), "bool": np.zeros((*SIZE, 3), bool)}.items():
        np.savez(tmp_path / f"{name}.npz", array)
        with pytest.raises(ValueError, match=rf"{name}.npz has the type {name}.*, expected real numbers"):
            read_displacement(tmp_path / f"{name}.npz", SIZE)


def test_an_archive_with_any_damage_is_one_sentence_or_whole(tmp_path):
    """Bytes flipped, cut or exchanged: never another exception than the one sentence, and never other values."""
    rng = np.random.default_rng(0)
    whole = tmp_path / "whole.npz"
    values = smooth((3, 4, 3)).astype(np.float32)
    np.savez_compressed(whole, displacement=values)
    data = whole.read_bytes()
    np.save(tmp_path / "array.npy", values)
    damaged = [b"", data[:30], data[: len(data) // 2], (tmp_path / "array.npy").read_bytes()]
    for _ in range(400):
        torn = bytearray(data)
        for place in rng.integers(0, len(data), rng.integers(1, 4)):
            torn[place] = rng.integers(0, 256)
        damaged.append(bytes(torn))
    refused = 0
    for torn in damaged:
        (tmp_path / "torn.npz").write_bytes(torn)
        try:
            found = read_displacement(tmp_path / "torn.npz", (3, 4, 3))
        except ValueError as error:
            assert "torn.npz" in str(error)
            refused += 1
        else:
            np.testing.assert_array_equal(found, np.moveaxis(values, -1, 0))
    assert refused > 100
