"""FSL's and Learn2Reg's files by their conventions, written out here, and every format into every other."""

import itertools

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.ndimage import map_coordinates
from transform_worlds import affine_of, random_points, smooth_field, turned

from dio_lightning.headers import read_header
from dio_lightning.transforms import Affine, Chain, Field, ImageGrid
from dio_lightning.transforms.files import read_transform, write_transform

FIXED = {handed: ImageGrid((11, 9, 8), affine_of(3, handed)) for handed in (1, -1)}
MOVING = {handed: ImageGrid((10, 12, 9), affine_of(3, handed, 1.2, 0.1)) for handed in (1, -1)}
HANDS = list(itertools.product((1, -1), (1, -1)))


def fsl_millimetres(points, grid):
    """FSL's coordinates of world points: voxels times edges, x from the other end in a right-handed image."""
    voxels = (points - grid.affine[:3, 3]) @ np.linalg.inv(grid.affine[:3, :3]).T
    scaled = voxels * np.linalg.norm(grid.affine[:3, :3], axis=0)
    if np.linalg.det(grid.affine[:3, :3]) > 0:
        scaled[:, 0] = (grid.size[0] - 1) * np.linalg.norm(grid.affine[:3, 0]) - scaled[:, 0]
    return scaled


@pytest.mark.parametrize(("one", "other"), HANDS)
def test_flirt_leads_from_the_moving_image_to_the_fixed_one(tmp_path, one, other):
    fixed, moving, path = FIXED[one], MOVING[other], tmp_path / "flirt.mat"
    chain = Chain([turned(0.2), turned(0.1)])
    write_transform(path, chain, fixed, moving, "fsl")
    points = random_points(fixed)
    there = fsl_millimetres(chain.points(points), moving)
    matrix = np.loadtxt(path)
    np.testing.assert_allclose(there @ matrix[:3, :3].T + matrix[:3, 3], fsl_millimetres(points, fixed), atol=1e-8)
    np.testing.assert_allclose(read_transform(path, fixed, moving).points(points), chain.points(points), atol=1e-8)


def test_flirt_with_numbers_of_hand(tmp_path):
    """Two images of 10 voxels of 2 mm, the fixed one right-handed: FLIRT's identity mirrors x about its middle."""
    fixed = ImageGrid((10, 10, 10), np.diag([2.0, 2, 2, 1]))
    moving = ImageGrid((10, 10, 10), np.diag([-2.0, 2, 2, 1]))
    path = tmp_path / "identity.mat"
    path.write_text("1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n")
    # voxel 3 is 12 mm from FSL's origin at voxel 9; in the left-handed image that is voxel 6, at -12 mm
    np.testing.assert_allclose(read_transform(path, fixed, moving).points([[6.0, 4, 2]]), [[-12.0, 4, 2]])


@pytest.mark.parametrize(("one", "other"), HANDS)
def test_fnirt_fields_are_relative_millimetres_of_fsl(tmp_path, one, other):
    fixed, moving, path = FIXED[one], MOVING[other], tmp_path / "warp.nii.gz"
    chain = Chain([smooth_field(fixed), turned(0.1)])
    write_transform(path, chain, fixed, moving, "fsl")
    image = nib.load(path)
    assert image.shape == (*fixed.size, 3) and int(image.header["intent_code"]) == 2006
    nodes = fixed.points().reshape(3, -1).T.numpy()
    v = image.get_fdata().reshape(-1, 3)
    np.testing.assert_allclose(
        fsl_millimetres(nodes, fixed) + v, fsl_millimetres(chain.points(nodes), moving), atol=1e-5
    )
    np.testing.assert_allclose(read_transform(path, None, moving).points(nodes), chain.points(nodes), atol=1e-5)


@pytest.mark.parametrize("name", ["field.nii.gz", "field.npz"])
@pytest.mark.parametrize("d", [2, 3])
def test_learn2reg_samples_the_moving_image_on_the_fixed_grid(tmp_path, name, d):
    """Its evaluation: map_coordinates(moving, identity + field), both on one grid, component i along axis i."""
    grid, path = ImageGrid((11, 9, 8)[:d], affine_of(d, -1)), tmp_path / name
    chain = Chain([smooth_field(grid), turned(0.05, d=d)])
    write_transform(path, chain, grid, format="learn2reg")
    field = np.load(path)["displacement"] if name.endswith("npz") else nib.load(path).get_fdata()
    assert field.shape == (*grid.size, *[1] * (3 - d), d)
    u = np.moveaxis(field, -1, 0).reshape(d, *grid.size)
    at = np.stack(np.meshgrid(*map(np.arange, grid.size), indexing="ij")) + u
    # the world's own coordinates as images: linear, so that sampling them is exact
    nodes = grid.points().numpy()
    inside = ((at > 0) & (at < np.array(grid.size).reshape(-1, *[1] * d) - 1)).all(0)
    there = np.stack([map_coordinates(axis, at, order=1) for axis in nodes])[:, inside].T
    expected = chain.points(nodes.reshape(3, -1).T).reshape(*grid.size, 3)[inside]
    np.testing.assert_allclose(there[:, :d], expected[:, :d], atol=1e-5)
    back = read_transform(path, grid).points(nodes.reshape(3, -1).T[:, :d])
    np.testing.assert_allclose(back, chain.points(nodes.reshape(3, -1).T[:, :d]), atol=1e-4)


FILES = {
    "ITK composite": ("a.h5", "itk"),
    "ITK displacement": ("a.nii.gz", "itk"),
    "FNIRT": ("a.nii.gz", "fsl"),
    "Learn2Reg NIfTI": ("a.nii.gz", "learn2reg"),
    "Learn2Reg NumPy": ("a.npz", "learn2reg"),
}
LINEAR_FILES = {
    "ITK text": ("a.tfm", "itk"),
    "ITK composite": ("a.h5", "itk"),
    "ANTs": ("a.mat", "itk"),
    "FLIRT": ("a.mat", "fsl"),
}


def there_and_back(tmp_path, chain, fixed, moving, first, second):
    """Through both formats, in folders of their own."""
    for folder, (name, kind) in (("one", first), ("two", second)):
        path = tmp_path / folder / name
        write_transform(path, chain, fixed, moving, kind)
        chain = read_transform(path, fixed, moving, kind if kind != "itk" else None)
    return chain


@pytest.mark.parametrize(("first", "second"), [*itertools.product(FILES, FILES)])
def test_every_pair_of_formats_of_fields(tmp_path, first, second):
    fixed, moving = FIXED[1], MOVING[-1]
    chain = Chain([smooth_field(fixed), turned(0.1)])
    nodes = fixed.points().reshape(3, -1).T.numpy()
    back = there_and_back(tmp_path, chain, fixed, moving, FILES[first], FILES[second])
    np.testing.assert_allclose(back.points(nodes), chain.points(nodes), atol=2e-5)


@pytest.mark.parametrize(("first", "second"), [*itertools.product(LINEAR_FILES, LINEAR_FILES)])
def test_every_pair_of_formats_of_affines(tmp_path, first, second):
    fixed, moving = FIXED[-1], MOVING[1]
    chain = Chain([turned(0.1), turned(0.2)])
    points = random_points(fixed, beyond=3.0)
    back = there_and_back(tmp_path, chain, fixed, moving, LINEAR_FILES[first], LINEAR_FILES[second])
    np.testing.assert_allclose(back.points(points), chain.points(points), atol=1e-7)


@pytest.mark.parametrize(
    ("name", "format", "message"),
    [
        ("a.mat", None, "without the fixed image"),
        ("a.nii.gz", "fsl", "without the moving image"),
        ("a.npz", None, "without the fixed image"),
        ("a.nii.gz", None, "without the fixed image"),
        ("a.nii.gz", "itk", "no displacement of ITK"),
    ],
)
def test_what_a_file_needs_beside_itself_is_asked_for(tmp_path, name, format, message):
    grid, path = FIXED[1], tmp_path / name
    if name == "a.mat":
        write_transform(path, Chain([turned()]), grid, grid, "fsl")
    else:
        write_transform(path, Chain([smooth_field(grid)]), grid, grid, "learn2reg")
    with pytest.raises(ValueError, match=message):
        read_transform(path, format=format)


def test_coefficients_of_fnirt_are_no_field(tmp_path):
    image = nib.Nifti1Image(np.zeros((4, 4, 4, 3), np.float32), np.eye(4))
    image.header.set_intent(2007, allow_unknown=True)
    nib.save(image, tmp_path / "coefficients.nii.gz")
    with pytest.raises(ValueError, match="--fout"):
        read_transform(tmp_path / "coefficients.nii.gz", FIXED[1], MOVING[1])


def test_absolute_fields_of_fsl_are_refused(tmp_path):
    fixed, path = FIXED[1], tmp_path / "absolute.nii.gz"
    write_transform(path, Chain([smooth_field(fixed)]), fixed, fixed, "fsl")
    image = nib.load(path)
    coordinates = fsl_millimetres(fixed.points().reshape(3, -1).T.numpy(), fixed).reshape(image.shape)
    nib.save(nib.Nifti1Image(image.get_fdata() + coordinates, image.affine, image.header), path)
    with pytest.raises(ValueError, match="absolute"):
        read_transform(path, fixed, fixed)


def misdescribed(path, kind, grid):
    """An image whose pixdim, which is all that FSL asks for lengths, is not as long as the columns of its affine."""
    affine, factor = grid.affine.copy(), 500.0 if kind == "microns" else 1.0
    affine[:3] *= factor
    image = nib.Nifti1Image(np.zeros(grid.size, np.float32), affine)
    image.header.set_xyzt_units("micron" if kind == "microns" else "mm")
    image.set_qform(affine, 1)
    if kind == "sform of a template":
        affine = affine.copy()
        affine[:3] *= 1.1
        image.header.set_sform(affine, 4)
        image = nib.Nifti1Image(image.dataobj, None, image.header)
    nib.save(image, path)
    return ImageGrid.of(read_header(path)), np.asarray(nib.load(path).header.get_zooms(), dtype=float)


def by_pixdim(points, grid, pixdim):
    """FSL's coordinates of world points."""
    voxels = (points - grid.affine[:3, 3]) @ np.linalg.inv(grid.affine[:3, :3]).T
    if np.linalg.det(grid.affine[:3, :3]) > 0:
        voxels[:, 0] = grid.size[0] - 1 - voxels[:, 0]
    return voxels * pixdim


@pytest.mark.parametrize("kind", ["microns", "sform of a template"])
@pytest.mark.parametrize(("one", "other"), HANDS)
def test_fsl_counts_in_pixdim_and_in_no_unit(tmp_path, kind, one, other):
    fixed, pixdim = misdescribed(tmp_path / "fixed.nii.gz", kind, FIXED[one])
    moving, moving_pixdim = misdescribed(tmp_path / "moving.nii.gz", kind, MOVING[other])
    assert np.abs(pixdim / fixed.spacing - 1).min() > 0.05 and np.abs(moving_pixdim / moving.spacing - 1).min() > 0.05
    matrix = turned(0.1).matrix.copy()
    matrix[:3, 3] *= fixed.spacing[0]
    affine = Chain([Affine(matrix)])
    points = random_points(fixed)
    write_transform(tmp_path / "flirt.mat", affine, fixed, moving, "fsl")
    flirt = np.loadtxt(tmp_path / "flirt.mat")
    there = by_pixdim(affine.points(points), moving, moving_pixdim) @ flirt[:3, :3].T + flirt[:3, 3]
    np.testing.assert_allclose(there, by_pixdim(points, fixed, pixdim), rtol=1e-6, atol=1e-6 * pixdim[0])
    back = read_transform(tmp_path / "flirt.mat", fixed, moving).points(points)
    np.testing.assert_allclose(back, affine.points(points), atol=1e-6)
    chain = Chain([smooth_field(fixed, fixed.spacing[0]), affine])
    write_transform(tmp_path / "warp.nii.gz", chain, fixed, moving, "fsl")
    image, nodes = nib.load(tmp_path / "warp.nii.gz"), fixed.points().reshape(3, -1).T.numpy()
    np.testing.assert_allclose(image.header.get_zooms()[:3], pixdim, rtol=1e-6)
    np.testing.assert_allclose(read_header(tmp_path / "warp.nii.gz").affine, fixed.affine, atol=1e-5)
    there = by_pixdim(chain.points(nodes), moving, moving_pixdim)
    v = image.get_fdata().reshape(-1, 3)
    np.testing.assert_allclose(by_pixdim(nodes, fixed, pixdim) + v, there, rtol=1e-5, atol=1e-5 * pixdim[0])
    back = read_transform(tmp_path / "warp.nii.gz", None, moving).points(nodes)
    np.testing.assert_allclose(back, chain.points(nodes), atol=1e-4)


def test_a_pixdim_that_is_no_number_is_refused_for_fsl_alone(tmp_path):
    image = nib.Nifti1Image(np.zeros((5, 6, 7), np.float32), np.eye(4))
    image.header["pixdim"][2] = np.nan
    image.header["qform_code"] = 0
    nib.save(image, tmp_path / "image.nii.gz")
    grid = ImageGrid.of(read_header(tmp_path / "image.nii.gz"))
    write_transform(tmp_path / "itk.h5", Chain([turned()]), grid, grid)
    with pytest.raises(ValueError, match="has the pixdim 1, nan, 1, expected positive"):
        write_transform(tmp_path / "a.mat", Chain([turned()]), grid, grid, "fsl")


def test_fsl_has_no_planes(tmp_path):
    plane = ImageGrid((5, 6), np.eye(4))
    with pytest.raises(ValueError, match="is a plane"):
        write_transform(tmp_path / "a.mat", Chain([Affine(np.eye(4))]), plane, plane, "fsl")


@pytest.mark.parametrize("stored", ["right to left", "left to right"])
def test_the_worked_number_of_the_documentation(tmp_path, stored):
    """docs/register.md: one point in voxels, RAS, LPS and FSL's millimetres."""
    affine = np.diag([-2.0, 2, 2, 1])
    affine[:3, 3] = 90, -126, -72
    voxel, u = (10, 20, 30), torch.zeros(1, 3, 91, 41, 51, dtype=torch.float64)
    u[0, :, 10, 20, 30] = torch.tensor([1, 0.5, -1])
    if stored == "left to right":
        affine[0] = 2, 0, 0, -90
        voxel = (80, 20, 30)
        u[0, :, 10, 20, 30], u[0, :, 80, 20, 30] = torch.zeros(3), torch.tensor([-1, 0.5, -1])
    grid = ImageGrid(u.shape[2:], affine)
    chain = Chain([Field.of_voxels(u, affine)])
    np.testing.assert_allclose(chain.points([[70.0, -86, -12]]), [[68.0, -85, -14]])
    for kind, expected in (("learn2reg", u[0, :, *voxel].numpy()), ("itk", (2, -1, -2)), ("fsl", (2, 1, -2))):
        write_transform(tmp_path / f"{kind}.nii.gz", chain, grid, grid, kind)
        value = nib.load(tmp_path / f"{kind}.nii.gz").get_fdata()[voxel].squeeze()
        np.testing.assert_allclose(value, expected, atol=1e-5, err_msg=kind)
    itk = sitk.DisplacementFieldTransform(sitk.ReadImage(tmp_path / "itk.nii.gz", sitk.sitkVectorFloat64))
    np.testing.assert_allclose(itk.TransformPoint((-70.0, 86.0, -12.0)), (-68, 85, -14), atol=1e-5)
    np.testing.assert_allclose(fsl_millimetres(np.array([[70.0, -86, -12]]), grid), [[20, 40, 60]])
