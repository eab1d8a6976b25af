"""Transforms in files: what we write SimpleITK reads as the same map, and we read what it writes."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from transform_worlds import FLIP, affine_of, itk_affine, itk_field, random_points, smooth_field, turned

from dio_lightning.transforms import Affine, Chain, Field, ImageGrid
from dio_lightning.transforms.files import read_transform, write_transform

SIZES = {2: (13, 10), 3: (9, 12, 7)}


def by_itk(transform, points):
    d = transform.GetDimension()
    return np.array([transform.TransformPoint((p[:d] * FLIP[:d]).tolist()) for p in points]) * FLIP[:d]


def case(d, handed=1, dtype=torch.float64):
    grid = ImageGrid(SIZES[d], affine_of(d, handed))
    return grid, Chain([smooth_field(grid, dtype=dtype), turned(d=d)]), random_points(grid)[:, :d]


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("handed", [1, -1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_composite_is_read_by_simpleitk(tmp_path, d, handed, dtype):
    _, chain, points = case(d, handed, dtype)
    write_transform(tmp_path / "chain.h5", chain)
    np.testing.assert_allclose(
        by_itk(sitk.ReadTransform(tmp_path / "chain.h5"), points), chain.points(points), atol=1e-6
    )
    back = read_transform(tmp_path / "chain.h5")
    assert [type(link) for link in back.links] == [Field, Affine]
    assert back.links[0].displacement.dtype == dtype
    np.testing.assert_allclose(back.points(points), chain.points(points), atol=1e-9)


@pytest.mark.parametrize("d", [2, 3])
def test_what_simpleitk_writes_is_read(tmp_path, d):
    _, chain, points = case(d)
    composite = sitk.CompositeTransform([itk_affine(chain.links[1].matrix, d), itk_field(chain.links[0])])
    sitk.WriteTransform(composite, tmp_path / "composite.h5")
    np.testing.assert_allclose(
        read_transform(tmp_path / "composite.h5").points(points), chain.points(points), atol=1e-9
    )


LINEAR = {
    "affine": itk_affine(turned().matrix, 3),
    "affine 2-D": itk_affine(turned(d=2).matrix, 2),
    "euler": sitk.Euler3DTransform((1, 2, 3), 0.1, -0.2, 0.3, (4, 5, 6)),
    "versor rigid": sitk.VersorRigid3DTransform((0.1, 0.2, -0.3, 0.9), (1, 2, 3), (4, 5, 6)),
    "versor": sitk.VersorTransform((0.1, 0.2, -0.3, 0.9), (4, 5, 6)),
    "similarity": sitk.Similarity3DTransform(1.2, (0.1, 0.2, -0.3, 0.9), (1, 2, 3), (4, 5, 6)),
    "scale": sitk.ScaleTransform(3, (1.0, 2.0, 0.5)),
    "translation": sitk.TranslationTransform(3, (1.0, 2.0, 3.0)),
    "identity": sitk.Transform(3, sitk.sitkIdentity),
    "euler 2-D": sitk.Euler2DTransform((1, 2), 0.3, (4, 5)),
    "similarity 2-D": sitk.Similarity2DTransform(1.2, 0.3, (1, 2), (4, 5)),
}
ZYX = sitk.Euler3DTransform((1, 2, 3), 0.1, -0.2, 0.3, (4, 5, 6))
ZYX.SetComputeZYX(True)
LINEAR["euler, z first"] = ZYX


# ITK's MATLAB file of an identity is empty
READ = [
    (name, end) for name in LINEAR for end in (".tfm", ".txt", ".h5", ".mat") if (name, end) != ("identity", ".mat")
]


@pytest.mark.parametrize(("name", "ending"), READ)
def test_every_linear_class_is_read_with_its_centre(tmp_path, name, ending):
    theirs, path = LINEAR[name], tmp_path / f"linear{ending}"
    sitk.WriteTransform(theirs, path)
    points = np.random.default_rng(0).normal(0, 30, (10, theirs.GetDimension()))
    np.testing.assert_allclose(read_transform(path).points(points), by_itk(theirs, points), atol=1e-9)


def test_composites_of_affines_in_text_keep_their_order(tmp_path):
    chain = Chain([turned(0.2), turned(1.0, (30.0, 0, 0))])
    points = np.random.default_rng(0).normal(0, 30, (10, 3))
    write_transform(tmp_path / "two.tfm", chain)
    np.testing.assert_allclose(
        by_itk(sitk.ReadTransform(tmp_path / "two.tfm"), points), chain.points(points), atol=1e-9
    )
    np.testing.assert_allclose(read_transform(tmp_path / "two.tfm").points(points), chain.points(points), atol=1e-9)
    assert len(read_transform(tmp_path / "two.tfm").links) == 2


@pytest.mark.parametrize("d", [2, 3])
def test_ants_affine_is_a_matlab_file_that_itk_reads(tmp_path, d):
    """ANTs' 0GenericAffine.mat: x' = A (x - c) + c + t in LPS, written out."""
    fixed = ImageGrid(SIZES[d], affine_of(d))
    chain = Chain([turned(0.2, d=d), turned(d=d)])
    points = random_points(fixed)[:, :d]
    write_transform(tmp_path / "0GenericAffine.mat", chain, fixed)
    itk = sitk.ReadTransform(tmp_path / "0GenericAffine.mat")
    np.testing.assert_allclose(by_itk(itk, points), chain.points(points), atol=1e-9)
    np.testing.assert_allclose(read_transform(tmp_path / "0GenericAffine.mat").points(points), chain.points(points))
    sitk.WriteTransform(itk_affine(turned(d=d).matrix, d), tmp_path / "theirs.mat")
    from scipy.io import loadmat

    content = loadmat(tmp_path / "theirs.mat")
    p, c = content[f"AffineTransform_double_{d}_{d}"].ravel(), content["fixed"].ravel()
    lps = points * FLIP[:d]
    expected = ((lps - c) @ p[: d * d].reshape(d, d).T + c + p[d * d :]) * FLIP[:d]
    np.testing.assert_allclose(read_transform(tmp_path / "theirs.mat").points(points), expected, atol=1e-9)


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("handed", [1, -1])
def test_a_displacement_image_is_that_of_itk(tmp_path, d, handed):
    """Ecosystem 3.6: d_LPS = diag(-1, -1, 1) A u, five axes, intent 1007."""
    grid, chain, points = case(d, handed)
    path = tmp_path / "field.nii.gz"
    write_transform(path, chain)
    image = nib.load(path)
    assert image.shape == (*SIZES[d], *[1] * (4 - d), d) and int(image.header["intent_code"]) == 1007
    theirs = sitk.DisplacementFieldTransform(sitk.ReadImage(path, sitk.sitkVectorFloat64))
    inner = points[grid.contains(torch.from_numpy(np.pad(points, ((0, 0), (0, 3 - d))).T)).numpy()]
    ours = read_transform(path)
    assert len(inner) > 10
    np.testing.assert_allclose(by_itk(theirs, inner), ours.points(inner), atol=1e-5)
    nodes = grid.points().reshape(3, -1).T.numpy()[:, :d]
    np.testing.assert_allclose(ours.points(nodes), chain.points(nodes), atol=1e-5)
    sitk.WriteImage(theirs.GetDisplacementField(), tmp_path / "theirs.nii.gz")
    np.testing.assert_allclose(read_transform(tmp_path / "theirs.nii.gz").points(inner), ours.points(inner), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "chain", "message"),
    [
        ("field.tfm", Chain([smooth_field(ImageGrid((4, 4, 4), np.eye(4)))]), "cannot hold a displacement"),
        ("field.mat", Chain([smooth_field(ImageGrid((4, 4, 4), np.eye(4)))]), "cannot hold a displacement"),
        ("affine.nii.gz", Chain([turned()]), "without the fixed image"),
        ("affine.xyz", Chain([turned()]), "no ending of a transform"),
        ("affine.npz", Chain([turned()]), "without the fixed image"),
    ],
)
def test_what_a_format_cannot_hold_is_one_sentence_and_no_file(tmp_path, name, chain, message):
    with pytest.raises(ValueError, match=message):
        write_transform(tmp_path / name, chain)
    assert not list(tmp_path.iterdir())


def test_sheared_grids_and_planes_beside_x_y_are_not_written_for_itk(tmp_path):
    shear = np.eye(4)
    shear[0, 1] = 0.3
    sheared = Chain([smooth_field(ImageGrid((5, 5, 5), shear))])
    with pytest.raises(ValueError, match="sheared"):
        write_transform(tmp_path / "sheared.nii.gz", sheared)
    write_transform(tmp_path / "sheared.h5", sheared)
    points = random_points(sheared.links[0].grid)
    np.testing.assert_allclose(by_itk(sitk.ReadTransform(tmp_path / "sheared.h5"), points), sheared.points(points))
    coronal = np.array([[2.0, 0, 0, 1], [0, 0, 1, 5], [0, 3.0, 0, -7], [0, 0, 0, 1]])
    with pytest.raises(ValueError, match="leaves the plane"):
        write_transform(tmp_path / "plane.h5", Chain([Field.of_voxels(torch.ones(1, 2, 5, 5), coronal)]))


def test_nothing_is_overwritten_unless_asked(tmp_path):
    path = tmp_path / "affine.tfm"
    write_transform(path, Chain([turned()]))
    with pytest.raises(FileExistsError, match="--overwrite"):
        write_transform(path, Chain())
    write_transform(path, Chain(), overwrite=True)
    np.testing.assert_array_equal(read_transform(path).points([[1.0, 2, 3]]), [[1.0, 2, 3]])


@pytest.mark.parametrize("name", ["chain.h5", "affine.tfm", "affine.mat", "field.nii.gz", "field.npz"])
@pytest.mark.parametrize("damage", ["half", "empty", "noise"])
def test_damaged_files_are_one_sentence(tmp_path, name, damage):
    grid, chain, _ = case(3)
    path = tmp_path / name
    write_transform(path, Chain([turned()]) if name.startswith("affine") else chain)
    content = path.read_bytes()
    noise = np.random.default_rng(0).integers(0, 256, 300, dtype=np.uint8).tobytes()
    path.write_bytes({"half": content[: len(content) // 2 - 7], "empty": b"", "noise": noise}[damage])
    with pytest.raises(ValueError, match=name):
        read_transform(path, grid, grid)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("#Insight Transform File V1.0\nTransform: BSplineTransform_double_3_3\n", "holds a BSplineTransform"),
        ("#Insight Transform File V1.0\nTransform: AffineTransform_double_3_3\nParameters: 1 2\n", "2 parameters"),
        ("#Insight Transform File V1.0\nTransform: AffineTransform_double_3_3\nParameters: 1 x\n", "no numbers"),
        ("#Insight Transform File V1.0\nTransform: something\n", "something"),
        ("#Insight Transform File V1.0\n", "no transform"),
        ("Parameters: 1 2\n", "before the first"),
        ("hello: world\n", "hello"),
        ("1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n", "whose it is"),
        (
            "Transform: AffineTransform_double_3_3\nParameters: 1 0 0 0 0 0 0 0 0 1 1 1\nFixedParameters: 0 0 0\n",
            "not invertible",
        ),
        (
            "Transform: AffineTransform_double_3_3\nParameters: 1 0 0 0 nan 0 0 0 0 1 1 1\nFixedParameters: 0 0 0\n",
            "NaN",
        ),
    ],
)
def test_texts_that_are_no_transform_are_one_sentence(tmp_path, text, message):
    path = tmp_path / "transform.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_transform(path)
