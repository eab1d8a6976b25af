"""`dio-lightning register` with what else a user has: masks, landmarks, terms, transforms and points in files."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scans import SPACING, affine_of, moved, scene, turned, write

from dio_lightning.registration.options import made_term
from dio_lightning.transforms import Affine, Chain, Field, read_transform, warp_points, write_transform

SIZE = (40, 36)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Two images a rigid transform apart, masks, and landmarks of both in RAS millimetres."""
    fixed, affine, truth = scene(SIZE), affine_of(SIZE), turned(SIZE, 6, 5)
    images = {"fixed": fixed, "moving": moved(fixed, affine, truth), "mask": np.ones(SIZE), "empty": np.zeros(SIZE)}
    paths = {name: write(tmp_path, f"{name}.nii.gz", x.astype(np.float32), affine) for name, x in images.items()}
    points = np.array([[-20.0, 12.0], [16.0, -8.0], [4.0, 24.0]])
    for name, values in (("p", points), ("q", Affine(truth).points(points)), ("far", points + 500)):
        (tmp_path / f"{name}.csv").write_text("\n".join(f"{x:.6f},{y:.6f}" for x, y in values))
        paths[name] = str(tmp_path / f"{name}.csv")
    return paths


def rows(path: Path | str) -> np.ndarray:
    return np.loadtxt(path, delimiter=",")


def test_points_of_the_moving_image_come_to_the_fixed_one_as_transform_apply_takes_them(files, command, capsys) -> None:
    """The landmarks of one image land on those of the other, in each system of coordinates."""
    flipped = rows(files["q"]) * [-1, -1]
    inside = (rows(files["q"]) - affine_of(SIZE)[:2, 3]) / SPACING
    for name, values in (("lps", flipped), ("voxels", inside), ("ras", rows(files["q"]))):
        np.savetxt("moving.csv", values, delimiter=",", fmt="%.6f")
        images = ("register", files["fixed"], files["moving"], "--out", name, "--stages", "rigid", "--quiet")
        command(*images, "--warp-points", "moving.csv", "--coordinates", name)
        applied = ("--transforms", f"{name}/transform.h5", "--points-of", "moving", "--coordinates", name)
        grids = ("--fixed", files["fixed"], "--moving", files["moving"], "--out", "applied.csv", "--overwrite")
        command("transform", "apply", "moving.csv", *applied, *grids)
        np.testing.assert_allclose(rows(f"{name}/warped_moving.csv"), rows("applied.csv"), atol=1e-4)
    assert np.linalg.norm(rows("ras/warped_moving.csv") - rows(files["p"]), axis=1).max() < 0.5 * SPACING
    capsys.readouterr()


def test_landmarks_masks_and_terms_reach_the_deformable_stage(files, command, capsys) -> None:
    """Landmarks a voxel beside where the images put them: their weight decides whom the field follows."""
    np.savetxt("beside.csv", rows(files["q"]) + SPACING, delimiter=",", fmt="%.6f")
    options = ("--stages", "deformable", "--fixed-points", files["p"], "--moving-points", "beside.csv")
    images = ("register", files["fixed"], files["moving"], "--json", "--coordinates", "ras")
    after = {}
    for name, more in (
        ("plain", ()),
        ("light", ("--prompt-weight", "0.01", "--term", "Diffusion=0.2", "--term", "SSD")),
    ):
        command(*images, *options, *more, "--fixed-mask", files["mask"], "--out", name)
        landmarks = json.loads(capsys.readouterr().out)["landmarks_mm"]
        assert landmarks["after"] < landmarks["before"]
        after[name] = landmarks["after"]
    assert after["plain"] < 0.5 * SPACING < after["light"]


def test_a_deformable_stage_goes_on_from_a_field_in_a_file(files, command, capsys) -> None:
    """Learn2Reg's too, which needs the fixed image; linear stages cannot follow it."""
    affine, push = affine_of(SIZE), torch.zeros(3, *SIZE)
    push[0] = 3.0
    write_transform(Path("start.npz"), Chain([Field(push, affine)]), None, format="learn2reg")
    images = ("register", files["fixed"], files["moving"], "--out", "out", "--start", "start.npz")
    with pytest.raises(SystemExit) as stop:
        command(*images)
    assert stop.value.code == 2 and "no rigid stage can follow" in capsys.readouterr().err
    command(*images, "--stages", "deformable")
    written = read_transform(Path("out/transform.h5"))
    assert len(written.links) == 2
    np.testing.assert_allclose(Chain([written.links[1]]).points([[0.0, 0.0]]), [[3.0, 0.0]], atol=1e-4)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--fixed-mask", "empty"), "empty.nii.gz is 0 everywhere"),
        (("--moving-mask", "nowhere.nii.gz"), "nowhere.nii.gz does not exist"),
        (("--fixed-points", "p"), "--coordinates ras|lps|voxels"),
        (("--fixed-points", "p", "--coordinates", "ras"), "landmarks of one image alone"),
        (("--fixed-points", "p", "--moving-points", "far", "--coordinates", "ras"), "3 landmarks lie beside"),
        (("--term", "Bendin=1"), "--term Bendin: expected one of Bending"),
        (("--term", "Bending=much"), "--term Bending=much: expected a number as weight"),
        (("--term", "Bending=-1"), "the weight of Bending is -1.0"),
        (("--term", "LandmarkPrompt"), "give --fixed-points and --moving-points instead"),
        (("--term", "Bending", "--stages", "rigid"), "terms is for the deformable stage"),
        (("--warp-points", "fixed", "--coordinates", "ras"), "fixed.nii.gz has no ending of points"),
        (("--warp-points", "p"), "p.csv does not say what its numbers are"),
        (("--start", "nowhere.h5"), "nowhere.h5 does not exist"),
    ],
)
def test_what_cannot_be_is_one_sentence_before_any_work(options, sentence, files, command, tmp_path, capsys) -> None:
    words = [files.get(word, word) for word in options]
    with pytest.raises(SystemExit) as stop:
        command("register", files["fixed"], files["moving"], "--out", "out", *words)
    # what is read by slow imports is said to be read
    printed = [line for line in capsys.readouterr().err.splitlines() if line.strip() not in ("", "reading")]
    assert stop.value.code == 2 and len(printed) == 1 and sentence in printed[0]
    assert not (tmp_path / "out").exists()


def test_every_term_that_needs_nothing_can_be_named() -> None:
    for name in ("Bending", "Diffusion", "TotalVariation", "JacobianPenalty", "LNCC", "SSD", "MutualInformation"):
        term = made_term(f"{name}=0.25")
        assert type(term).__name__ == name and term.weight == 0.25 and made_term(name).weight == 1


@pytest.mark.real
def test_a_lesion_in_a_brain_that_is_cut_out_pulls_at_nothing(data_root, tmp_path) -> None:
    """A bright ball in Colin27's white matter: with its mask, what is around it lands as it does without it."""
    from dio_lightning import register

    brains = data_root / "brain_real"
    image = nib.load(brains / "colin27_2mm.nii.gz")
    values, affine = np.asarray(image.dataobj)[::2, ::2, ::2], image.affine @ np.diag([2, 2, 2, 1])
    fixed = nib.load(brains / "mni152_2mm.nii.gz")
    fixed = nib.Nifti1Image(np.asarray(fixed.dataobj)[::2, ::2, ::2], fixed.affine @ np.diag([2, 2, 2, 1]))
    grid = np.stack(np.meshgrid(*map(np.arange, values.shape), indexing="ij"))
    ball = ((grid - np.array([14, 25, 30]).reshape(3, 1, 1, 1)) ** 2).sum(0) < 25
    lesion = nib.Nifti1Image(np.where(ball, 255, values).astype(np.uint8), affine)
    mask = nib.Nifti1Image((~ball).astype(np.uint8), affine)
    healthy = register(fixed, nib.Nifti1Image(values, affine))
    around = np.argwhere((((grid - np.array([14, 25, 30]).reshape(3, 1, 1, 1)) ** 2).sum(0) < 36) & ~ball)
    world = around @ affine[:3, :3].T + affine[:3, 3]
    expected = warp_points(world, healthy.transform, "fixed").points
    errors = [
        np.linalg.norm(warp_points(world, result.transform, "fixed").points - expected, axis=1).mean()
        for result in (register(fixed, lesion), register(fixed, lesion, moving_mask=mask))
    ]
    assert errors[1] < 0.6 * errors[0], errors
