"""`dio-lightning transform`: on files, as a user would, against SimpleITK; wrong inputs are one sentence."""

import csv
import itertools
import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from transform_worlds import FLIP, affine_of, random_points, smooth_field, turned

from dio_lightning.cli import main
from dio_lightning.headers import read_header
from dio_lightning.transforms import Affine, Chain, Field, ImageGrid, read_transform, write_transform

FIXED = ImageGrid((12, 9, 8), affine_of(3, 1))
MOVING = ImageGrid((10, 11, 9), affine_of(3, -1, 1.3))
CHAIN = Chain([smooth_field(FIXED), turned(0.05, (1.0, -2.0, 0.5))])


def image(path, grid, dtype=np.int16):
    values = np.random.default_rng(0).integers(0, 100, grid.size).astype(dtype)
    volume = nib.Nifti1Image(values, grid.affine)
    volume.header.set_xyzt_units("mm")
    nib.save(volume, path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The files of one registration."""
    monkeypatch.chdir(tmp_path)
    image("fixed.nii.gz", FIXED)
    image("moving.nii.gz", MOVING)
    write_transform(tmp_path / "warp.h5", CHAIN)
    write_transform(tmp_path / "field.nii.gz", Chain(CHAIN.links[:1]))
    write_transform(tmp_path / "affine.mat", Chain(CHAIN.links[1:]))
    return tmp_path


def run(line):
    main(["transform", *line.split()])


def refused(line, capsys):
    with pytest.raises(SystemExit) as error:
        run(line)
    text = capsys.readouterr().err
    assert error.value.code == 2 and text.count("\n") == 1, text
    return text


def table(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_apply_warps_another_image_as_simpleitk_does(folder, mode):
    run(f"apply moving.nii.gz --transforms field.nii.gz affine.mat --fixed fixed.nii.gz --out out.nii.gz --mode {mode}")
    how = sitk.sitkLinear if mode == "linear" else sitk.sitkNearestNeighbor
    moving, fixed = (sitk.ReadImage(name, sitk.sitkFloat64) for name in ("moving.nii.gz", "fixed.nii.gz"))
    theirs = sitk.GetArrayFromImage(sitk.Resample(moving, fixed, sitk.ReadTransform("warp.h5"), how, 0.0)).T
    ours = nib.load("out.nii.gz")
    assert ours.get_data_dtype() == np.int16 and (theirs > 0).mean() > 0.3
    np.testing.assert_allclose(ours.affine, FIXED.affine, atol=1e-5)
    differs = np.abs(np.asarray(ours.dataobj) - theirs) > (0.51 if mode == "linear" else 0)
    assert differs.mean() < 2e-3


def test_the_first_listed_is_applied_first_to_fixed_points(folder):
    run("compose field.nii.gz affine.mat --out one.h5")
    run("compose affine.mat field.nii.gz --out other.h5")
    points = random_points(FIXED)
    np.testing.assert_allclose(read_transform(folder / "one.h5").points(points), CHAIN.points(points), atol=1e-4)
    assert np.abs(read_transform(folder / "other.h5").points(points) - CHAIN.points(points)).max() > 0.1


def test_points_go_to_the_other_image_in_lps_ras_and_voxels(folder):
    nodes = FIXED.points()[:, 3:-3, 3:-3, 3:-3].reshape(3, -1).T.numpy()
    transform = sitk.ReadTransform("warp.h5")
    there = np.array([transform.TransformPoint(point.tolist()) for point in nodes * FLIP])
    with open("points.csv", "w") as file:
        file.write("name,x,y,z\n" + "".join(f"p,{x},{y},{z}\n" for x, y, z in nodes * FLIP))
    run("apply points.csv --transforms warp.h5 --points-of fixed --coordinates lps --out there.csv")
    rows = table("there.csv")
    assert rows[0] == ["name", "x", "y", "z"] and rows[1][0] == "p"
    np.testing.assert_allclose(np.array([row[1:] for row in rows[1:]], dtype=float), there, atol=1e-5)
    run("apply there.csv --transforms warp.h5 --points-of moving --coordinates lps --out back.csv")
    np.testing.assert_allclose(np.array([row[1:] for row in table("back.csv")[1:]], float), nodes * FLIP, atol=1e-4)
    voxels = np.array([[4.0, 4, 4], [5.5, 3, 4]])
    np.savetxt("voxels.csv", voxels, delimiter=",")
    both = "--fixed fixed.nii.gz --moving moving.nii.gz"
    run(f"apply voxels.csv --transforms warp.h5 --points-of fixed --coordinates voxels {both} --out out.csv")
    world = CHAIN.points(voxels @ FIXED.affine[:3, :3].T + FIXED.affine[:3, 3])
    expected = (world - MOVING.affine[:3, 3]) @ np.linalg.inv(MOVING.affine[:3, :3]).T
    np.testing.assert_allclose(np.loadtxt("out.csv", delimiter=","), expected, atol=1e-5)


@pytest.mark.parametrize("system", ["LPS", "RAS"])
def test_slicers_points_keep_their_names_and_their_system(folder, system):
    point = FIXED.points()[:, 5, 4, 4].numpy()
    flip = FLIP if system == "LPS" else np.ones(3)
    expected = CHAIN.points([point])[0] * flip
    x, y, z = point * flip
    control = {"id": "1", "label": "tip", "position": [x, y, z]}
    content = {"markups": [{"type": "Fiducial", "coordinateSystem": system, "controlPoints": [control]}]}
    (folder / "p.mrk.json").write_text(json.dumps(content))
    run("apply p.mrk.json --transforms warp.h5 --points-of fixed --out q.mrk.json")
    (markup,) = json.loads((folder / "q.mrk.json").read_text())["markups"]
    assert markup["controlPoints"][0]["label"] == "tip" and markup["coordinateSystem"] == system
    np.testing.assert_allclose(markup["controlPoints"][0]["position"], expected, atol=1e-6)
    number = {"LPS": 1, "RAS": 0}[system]
    text = f"# Markups fiducial file version = 4.6\n# CoordinateSystem = {number}\n# columns = id,x,y,z,ow,label\n"
    (folder / "p.fcsv").write_text(text + f"1,{x},{y},{z},0,tip\n")
    run("apply p.fcsv --transforms warp.h5 --points-of fixed --out q.fcsv")
    last = (folder / "q.fcsv").read_text().splitlines()[-1].split(",")
    assert last[4:] == ["0", "tip"]
    np.testing.assert_allclose(np.array(last[1:4], dtype=float), expected, atol=1e-6)


def test_invert_says_how_far_it_is_off(folder, capsys):
    run("invert field.nii.gz affine.mat --out inverse.h5")
    assert "mm on average" in capsys.readouterr().out
    inner = random_points(FIXED, beyond=-0.35)
    there = CHAIN.points(inner)
    np.testing.assert_allclose(read_transform(folder / "inverse.h5").points(there), inner, atol=0.3)
    run("invert affine.mat --out inverse.tfm")
    affine = Chain(CHAIN.links[1:])
    np.testing.assert_allclose(read_transform(folder / "inverse.tfm").points(affine.points(inner)), inner, atol=1e-9)
    run("compose inverse:affine.mat affine.mat --out identity.tfm")
    np.testing.assert_allclose(read_transform(folder / "identity.tfm").points(inner), inner, atol=1e-9)


OWN_GRIDS = ["fsl:flirt.mat", "fsl:fnirt.nii.gz", "learn2reg:field.npz", "learn2reg:field_l2r.nii.gz"]
"""Files that are read with an image beside them."""


@pytest.fixture
def own_grids(folder):
    """The same map, an affine or a field, in every format that needs an image; both images have voxels alike."""
    image("moving.nii.gz", ImageGrid(FIXED.size, MOVING.affine))
    fixed, moving = (ImageGrid.of(read_header(folder / f"{name}.nii.gz")) for name in ("fixed", "moving"))
    for name in OWN_GRIDS:
        kind, file = name.split(":")
        chain = Chain(CHAIN.links[1:]) if file.endswith("mat") else CHAIN
        write_transform(folder / file, chain, fixed, moving, kind)
    return folder


@pytest.mark.parametrize("name", OWN_GRIDS)
def test_an_inverted_file_is_read_with_its_own_images(own_grids, name):
    """A file from the fixed to the moving image warps the fixed one onto the moving one: the two change places."""
    chain = Chain(CHAIN.links[1:]) if name.endswith("mat") else CHAIN
    both = "--fixed moving.nii.gz --moving fixed.nii.gz"
    run(f"convert inverse:{name} {both} --out back.h5")
    inner = random_points(FIXED, beyond=-0.35)
    np.testing.assert_allclose(read_transform(own_grids / "back.h5").points(chain.points(inner)), inner, atol=0.3)
    run(f"convert inverse:inverse:{name} --fixed fixed.nii.gz --moving moving.nii.gz --out there.h5")
    np.testing.assert_allclose(read_transform(own_grids / "there.h5").points(inner), chain.points(inner), atol=0.3)
    # a field too ends at the fixed grid in ITK's file of one
    itk = "itk.tfm" if name.endswith("mat") else "itk.nii.gz"
    write_transform(own_grids / itk, chain, FIXED)
    warped = []
    for file in (name, itk):
        run(f"apply fixed.nii.gz --transforms inverse:{file} --fixed moving.nii.gz --out out.nii.gz --overwrite")
        warped.append(np.asarray(nib.load("out.nii.gz").dataobj).astype(float))
    assert (warped[0] > 0).mean() > 0.3 and (np.abs(warped[0] - warped[1]) > 1).mean() < 5e-3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "convert inverse:flirt.mat --fixed moving.nii.gz --out a.tfm",
            "without its fixed image: name it with --moving",
        ),
        (
            "convert inverse:flirt.mat --moving fixed.nii.gz --out a.tfm",
            "without its moving image: name it with --fixed",
        ),
        ("invert fsl:fnirt.nii.gz --out a.h5", "fnirt.nii.gz means nothing without the moving image"),
        ("convert warp.h5 --to fsl --moving moving.nii.gz --out a.nii.gz", "without the fixed image"),
    ],
)
def test_the_image_that_is_missing_is_named(own_grids, capsys, line, message):
    assert message in refused(line, capsys)


@pytest.mark.parametrize("name", OWN_GRIDS)
@pytest.mark.parametrize("order", ["{} affine.mat", "affine.mat {}", "{} inverse:{}"])
def test_one_of_several_is_not_read_with_the_images_of_the_whole(own_grids, capsys, name, order):
    """Which images each of several lies between is not said, so it would be read with the wrong ones."""
    names, both = order.replace("{}", name), "--fixed fixed.nii.gz --moving moving.nii.gz"
    file = name.partition(":")[2]
    for line in (
        f"compose {names} {both} --out a.h5",
        f"apply moving.nii.gz --transforms {names} {both} --out a.nii.gz",
    ):
        text = refused(line, capsys)
        assert f"{file} needs its own fixed and moving image" in text and "convert it to .tfm or .h5" in text
    assert not list(own_grids.glob("a.*"))


def test_an_inverse_as_an_image_lies_on_the_moving_grid(folder):
    run("invert warp.h5 --moving moving.nii.gz --out inverse.nii.gz")
    assert nib.load("inverse.nii.gz").shape == (*MOVING.size, 1, 3)
    inner = random_points(FIXED, beyond=-0.35)
    np.testing.assert_allclose(read_transform(folder / "inverse.nii.gz").points(CHAIN.points(inner)), inner, atol=0.3)


@pytest.mark.parametrize("target", ["fsl out.nii.gz", "learn2reg out.npz", "learn2reg out.nii.gz", "itk out.nii.gz"])
def test_convert_changes_the_format_and_not_the_map(folder, target):
    kind, name = target.split()
    both = "--fixed fixed.nii.gz --moving moving.nii.gz"
    run(f"convert warp.h5 --to {kind} {both} --out {name}")
    run(f"convert {kind}:{name} {both} --to itk --out back.h5")
    nodes = FIXED.points().reshape(3, -1).T.numpy()
    np.testing.assert_allclose(read_transform(folder / "back.h5").points(nodes), CHAIN.points(nodes), atol=1e-4)


IMAGE = "apply moving.nii.gz --transforms warp.h5 --fixed fixed.nii.gz"
POINTS = "apply points.csv --transforms warp.h5"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("aply moving.nii.gz", "did you mean 'apply'"),
        (f"{IMAGE}", "required: --out"),
        (f"{IMAGE} --out fixed.nii.gz", "fixed.nii.gz exists"),
        (f"{IMAGE} --out out.png", "out.png has another ending"),
        (f"{IMAGE} --out out.nii.gz --points-of fixed", "no file of points"),
        (f"{IMAGE} --out out.nii.gz --mode cubic", "invalid choice"),
        (f"{IMAGE} --out out.nii.gz --outside nan", "cannot be nan"),
        (f"{IMAGE} --out out.nii.gz --mode nearest --outside 1e6", "cannot be 1e+06"),
        ("apply moving.nii.gz --transforms warp.h5 --out out.nii.gz", "--fixed"),
        ("apply none.nii.gz --transforms warp.h5 --fixed fixed.nii.gz --out out.nii.gz", "none.nii.gz does not exist"),
        ("apply warp.h5 --transforms warp.h5 --fixed fixed.nii.gz --out out.nii.gz", "cannot be read"),
        ("apply moving.nii.gz --transforms none.h5 --fixed fixed.nii.gz --out out.nii.gz", "none.h5 does not exist"),
        ("apply moving.nii.gz --transforms moving.nii.gz --fixed fixed.nii.gz --out out.nii.gz", "expected 12x9x8x3"),
        ("apply moving.nii.gz --transforms points.csv --fixed fixed.nii.gz --out out.nii.gz", "no ending"),
        ("apply field.nii.gz --transforms warp.h5 --fixed fixed.nii.gz --out out.nii.gz", "expected an image of two"),
        (f"{POINTS} --out out.csv", "--points-of fixed|moving"),
        (f"{POINTS} --points-of fixed --out out.csv", "--coordinates ras|lps|voxels"),
        (f"{POINTS} --points-of fixed --coordinates voxels --out out.csv", "--fixed and --moving"),
        (f"{POINTS} --points-of fixed --coordinates ras --out out.fcsv", "expected .csv"),
        ("apply bad.csv --transforms warp.h5 --points-of fixed --coordinates ras --out out.csv", "row 3"),
        ("apply empty.csv --transforms warp.h5 --points-of fixed --coordinates ras --out out.csv", "no points"),
        ("invert warp.h5 --out out.tfm", "cannot hold a displacement field"),
        ("convert warp.h5 affine.mat --out out.h5", "unrecognized"),
        ("convert affine.mat --to fsl --out out.mat", "--fixed"),
        ("convert affine.mat --to learn2reg --out out.mat", "expected one of .nii.gz"),
        ("convert warp.h5 --out out", "no ending"),
    ],
)
def test_wrong_inputs_are_one_sentence(folder, capsys, line, message):
    (folder / "points.csv").write_text("1,2,3\n4,5,6\n")
    (folder / "bad.csv").write_text("x,y,z\n1,2,3\n4,five,6\n")
    (folder / "empty.csv").write_text("x,y,z\n")
    before = sorted(path.name for path in folder.iterdir())
    assert message in refused(line, capsys)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_overwrite_replaces(folder, capsys):
    run("convert affine.mat --out a.tfm")
    assert "exists" in refused("convert affine.mat --out a.tfm", capsys)
    run("convert inverse:affine.mat --out a.tfm --overwrite")
    np.testing.assert_allclose(
        read_transform(folder / "a.tfm").points(CHAIN.links[1].points([[1.0, 2, 3]])), [[1, 2, 3]]
    )


def test_points_without_origin_are_told(folder, capsys):
    """A field that ends at its full length of 5 mm takes nothing to the 5 mm behind its border."""
    shift = torch.tensor([5.0, 0, 0]).view(3, 1, 1, 1).expand(3, 12, 6, 6).contiguous()
    write_transform(folder / "shift.h5", Chain([Field(shift, np.eye(4))]))
    (folder / "p.csv").write_text("3,2,2\n9,2,2\n")
    run("apply p.csv --transforms shift.h5 --points-of moving --coordinates ras --out q.csv")
    text = capsys.readouterr()
    assert "2 points of the moving image in the fixed one" in text.out
    assert "warning: 1 of 2 points have no origin: they are off by up to 5 mm" in text.err


def test_labels_that_would_be_interpolated_are_told(folder, capsys):
    labels = nib.Nifti1Image(np.random.default_rng(0).integers(0, 9, MOVING.size).astype(np.uint8), MOVING.affine)
    nib.save(labels, "labels.nii.gz")
    line = "apply labels.nii.gz --transforms warp.h5 --fixed fixed.nii.gz --out"
    run(f"{line} one.nii.gz")
    assert "looks like a label map" in capsys.readouterr().err
    run(f"{line} two.nii.gz --mode nearest")
    run("apply moving.nii.gz --transforms warp.h5 --fixed fixed.nii.gz --out three.nii.gz")
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (np.array([0, 17, 53], np.float32), True),
        (np.array([0, 17, 53], np.float64), True),
        (np.array([0, 0.5, 1], np.float32), False),
        (np.array([0, 17, np.nan], np.float32), False),
        (np.arange(1000, dtype=np.float32), False),
    ],
    ids=["float32", "float64", "a share", "NaN", "many"],
)
def test_labels_are_labels_in_any_type(folder, capsys, values, told):
    drawn = np.random.default_rng(0).integers(0, len(values), MOVING.size)
    nib.save(nib.Nifti1Image(values[drawn], MOVING.affine), "labels.nii.gz")
    run("apply labels.nii.gz --transforms warp.h5 --fixed fixed.nii.gz --out one.nii.gz")
    assert ("looks like a label map" in capsys.readouterr().err) is told


def test_points_of_two_coordinates_go_through_no_volume(folder, capsys):
    (folder / "p.csv").write_text("10,5\n-3,4\n")
    turned_out = np.eye(4)
    turned_out[1:3, 1:3] = [[0.8, -0.6], [0.6, 0.8]]
    write_transform(folder / "turned.tfm", Chain([Affine(turned_out)]))
    line = "apply p.csv --points-of {} --coordinates ras --out out.csv --transforms {}"
    for whose, name in itertools.product(("fixed", "moving"), ("warp.h5", "field.nii.gz", "turned.tfm")):
        expected = "p.csv has points of 2 coordinates, expected 3 as their transform has"
        assert expected in refused(line.format(whose, name), capsys)
    image("plane.nii.gz", ImageGrid((14, 12), affine_of(2)))
    for option in ("--fixed fixed.nii.gz", "--moving moving.nii.gz --fixed plane.nii.gz"):
        expected = f"p.csv has points of 2 coordinates, expected 3 as {option.split()[1]} has"
        assert expected in refused(f"{line.format('fixed', 'affine.mat')} {option}", capsys)
    assert not (folder / "out.csv").exists()
    # where x and y need no z, they are right whatever z is
    matrix = np.array([[0.0, -1, 0, 2], [1, 0, 0, 3], [0, 0, 1, 7], [0, 0, 0, 1]])
    write_transform(folder / "plane.tfm", Chain([Affine(matrix)]))
    run(line.format("fixed", "plane.tfm"))
    np.testing.assert_allclose(np.loadtxt("out.csv", delimiter=","), [[-3, 13], [-2, 0]])


def test_planes_go_through_the_command_too(folder):
    fixed, moving = ImageGrid((14, 12), affine_of(2)), ImageGrid((11, 13), affine_of(2, -1, 1.2))
    image("fixed2.nii.gz", fixed)
    image("moving2.nii.gz", moving)
    chain = Chain([smooth_field(fixed), turned(0.05, (1.0, -2.0), 2)])
    write_transform(folder / "plane.h5", chain)
    run("apply moving2.nii.gz --transforms plane.h5 --fixed fixed2.nii.gz --out out.nii.gz --mode linear")
    volumes = (sitk.ReadImage(name, sitk.sitkFloat64) for name in ("moving2.nii.gz", "fixed2.nii.gz"))
    values, target = volumes
    theirs = sitk.Resample(values, target, sitk.ReadTransform("plane.h5"), sitk.sitkLinear, 0.0)
    ours = np.asarray(nib.load("out.nii.gz").dataobj).squeeze()
    assert (ours > 0).mean() > 0.3
    assert (np.abs(ours - sitk.GetArrayFromImage(theirs).T) > 0.51).mean() < 0.02
    points = random_points(fixed)[:, :2]
    np.savetxt("p.csv", points, delimiter=",")
    run("apply p.csv --transforms plane.h5 --points-of fixed --coordinates ras --fixed fixed2.nii.gz --out q.csv")
    transform = sitk.ReadTransform("plane.h5")
    there = [np.array(transform.TransformPoint((-point).tolist())) * -1 for point in points]
    np.testing.assert_allclose(np.loadtxt("q.csv", delimiter=","), there, atol=1e-4)


def test_a_folder_that_may_not_be_written_is_one_sentence(folder, capsys, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(13, "Permission denied", "out.tfm")

    monkeypatch.setattr("pathlib.Path.mkdir", denied)
    assert "out.tfm: Permission denied" in refused("convert affine.mat --out out.tfm", capsys)


@pytest.mark.real
def test_two_heads_are_warped_as_simpleitk_warps_them(tmp_path, monkeypatch, data_root):
    """Issue 12.1: the composite reproduces our warped image, and its labels ride along."""
    monkeypatch.chdir(tmp_path)
    brains = data_root / "brain_real"
    fixed = read_header(brains / "mni152_2mm.nii.gz")
    write_transform(tmp_path / "warp.h5", Chain([smooth_field(ImageGrid.of(fixed), 6.0), turned(0.1)]))
    transform, target = sitk.ReadTransform("warp.h5"), sitk.ReadImage(fixed.path, sitk.sitkFloat64)
    for name, mode, how in (
        ("colin27_2mm", "linear", sitk.sitkLinear),
        ("colin27_2mm_aal", "nearest", sitk.sitkNearestNeighbor),
    ):
        path = brains / f"{name}.nii.gz"
        run(f"apply {path} --transforms warp.h5 --fixed {fixed.path} --out {name}.nii.gz --mode {mode}")
        ours = sitk.GetArrayFromImage(sitk.ReadImage(f"{name}.nii.gz", sitk.sitkFloat64))
        theirs = sitk.GetArrayFromImage(sitk.Resample(sitk.ReadImage(path, sitk.sitkFloat64), target, transform, how))
        assert theirs.max() > 50
        if mode == "linear":
            assert np.abs(ours - theirs).mean() < 0.005 * theirs.max()
        else:
            assert (ours != theirs).mean() < 1e-4


def test_help_shows_examples_first(capsys):
    run("--help")
    text = capsys.readouterr().out
    assert text.index("transform apply") < text.index("antsApplyTransforms") and len(text.splitlines()) <= 25
