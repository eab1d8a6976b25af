"""Fields of any tool in `evaluate` and `submit`: where they lie, and what is said of wrong ones before any work."""

import csv
from pathlib import Path
from zipfile import ZipFile

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from dio_lightning.modules import Precomputed

SIZE, SHIFT = (32, 36, 28), (3, -2, 1)
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


@pytest.fixture
def phantom(tmp_path):
    """A box in an image, the moving one shifted by whole voxels: u is the same everywhere."""
    label = np.zeros(SIZE, np.uint8)
    label[10:20, 12:24, 9:19] = 1
    label[13:17, 15:21, 11:16] = 2
    lines = ["fixed,moving,fixed_label,moving_label"]
    for name in ("a", "b"):
        for side, shift in (("fixed", (0, 0, 0)), ("moving", SHIFT)):
            values = np.roll(label, shift, (0, 1, 2))
            nib.save(nib.Nifti1Image(values * np.uint8(100), AFFINE), tmp_path / f"{name}_{side}.nii.gz")
            nib.save(nib.Nifti1Image(values, AFFINE), tmp_path / f"{name}_{side}_label.nii.gz")
        cells = [f"{name}_{side}{kind}.nii.gz" for kind in ("", "_label") for side in ("fixed", "moving")]
        lines.append(",".join(cells))
    (tmp_path / "pairs.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "fields").mkdir()
    for name in ("a", "b"):
        voxels(tmp_path / "fields", AFFINE, name)
    return tmp_path


def voxels(folder, affine, name="a"):
    values = np.broadcast_to(np.array(SHIFT, np.float32), (*SIZE, 3))
    nib.save(nib.Nifti1Image(np.array(values), affine), folder / f"disp_{name}-fixed_{name}-moving.nii.gz")


def by_itk(folder, flip, offset, margin, name="a"):
    """The shift as ITK writes it, on a grid with a margin of voxels around the fixed one, flipped and moved by mm."""
    size = [n + 2 * margin for n in SIZE]
    vectors = np.broadcast_to(np.array([-2.0, -2.0, 2.0]) * SHIFT, (*size[::-1], 3)).copy()
    origin = np.array([0.0, 0, 0]) - 2 * margin + np.array(offset)
    image = sitk.GetImageFromArray(vectors, isVector=True)
    direction = np.diag([-1.0, -1, 1])
    for axis in flip:
        origin[axis] += 2 * (size[axis] - 1)
        direction[axis, axis] *= -1
    image.SetSpacing((2.0, 2.0, 2.0))
    image.SetDirection(direction.flatten().tolist())
    image.SetOrigin((np.array([-1, -1, 1]) * origin).tolist())
    sitk.WriteImage(image, folder / f"disp_{name}-fixed_{name}-moving.nii.gz")


def options(phantom):
    return ["--data", "PairsCSV", "--data.csv", phantom / "pairs.csv", "--data.common_grid", "true"]


def dices(phantom, command):
    quiet = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    command("evaluate", phantom / "fields", *options(phantom), "--out", phantom / "out", *quiet)
    with open(phantom / "out/metrics.csv", encoding="utf-8") as file:
        return [float(row["dice"]) for row in csv.DictReader(file)]


def refusal(phantom, command, capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        command(*arguments, *options(phantom))
    lines = capsys.readouterr().err.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("dio-lightning: error: "))
    assert stopped.value.code == 2
    return "\n".join(lines[first:])


@pytest.mark.parametrize(
    ("flip", "offset", "margin"),
    [((), (0, 0, 0), 0), ((0,), (0, 0, 0), 0), ((0, 1, 2), (10, -6, 4), 5), ((), (10, 0, 0), 5)],
    ids=["same grid", "flipped", "flipped and off", "off by 10 mm"],
)
def test_a_field_of_itk_is_scored_where_it_lies(phantom, command, flip, offset, margin):
    """A7: Dice 1, whatever grid the same map of the world is stored on."""
    by_itk(phantom / "fields", flip, offset, margin)
    assert dices(phantom, command) == [1.0, 1.0]


def test_fields_that_lie_elsewhere_are_refused_before_any_is_scored(phantom, command, capsys, monkeypatch):
    """A7: one of ITK that lies 10 mm off and so leaves voxels without a displacement; one of voxels that is flipped."""
    monkeypatch.setattr(Precomputed, "register", lambda *_: pytest.fail("nothing may be scored"))
    evaluate = ("evaluate", phantom / "fields")
    by_itk(phantom / "fields", (), (10, 0, 0), 0, "b")
    sentence = refusal(phantom, command, capsys, *evaluate)
    assert "disp_b-fixed_b-moving.nii.gz does not cover the fixed image, which reaches 9 mm" in sentence
    flipped = np.diag([-2.0, 2, 2, 1])
    flipped[0, 3] = 62
    voxels(phantom / "fields", flipped, "b")
    assert "disp_b-fixed_b-moving.nii.gz lies on another grid" in refusal(phantom, command, capsys, *evaluate)
    submit = ("submit", phantom / "fields", "--out", phantom / "out.zip")
    assert "disp_b-fixed_b-moving.nii.gz lies on another grid" in refusal(phantom, command, capsys, *submit)
    assert not (phantom / "out.zip").exists() and not list(phantom.glob("runs/**/metrics*"))
    voxels(phantom / "fields", np.eye(4), "b")
    command(*submit, *options(phantom))
    with ZipFile(phantom / "out.zip") as archive:
        assert sorted(archive.namelist()) == [f"disp_{n}-fixed_{n}-moving.nii.gz" for n in ("a", "b")]


def nothing(path):
    path.write_bytes(b"")


def objects(path):
    np.savez(path, np.array([None], dtype=object))


def not_a_number(path):
    values = np.zeros((*SIZE, 3), np.float32)
    values[0, 0, 0, 0] = np.nan
    np.savez(path, values)


def another_subject(path):
    np.savez(path, np.zeros((30, 36, 28, 3), np.float32))


def whole(path):
    np.savez(path, np.zeros((*SIZE, 3), np.complex64))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (nothing, "cannot be read"),
        (objects, "cannot be read"),
        (not_a_number, "has 1 values that are NaN or infinite"),
        (another_subject, "has shape 30x36x28x3, expected 32x36x28x3"),
        (whole, "has the type complex64, expected real numbers"),
    ],
)
@pytest.mark.parametrize("name", ["evaluate", "submit"])
def test_a_wrong_file_is_told_before_any_is_scored(phantom, command, capsys, monkeypatch, name, wrong, words):
    monkeypatch.setattr(Precomputed, "register", lambda *_: pytest.fail("nothing may be scored"))
    (phantom / "fields/disp_b-fixed_b-moving.nii.gz").unlink()
    path: Path = phantom / "fields/disp_b-fixed_b-moving.npz"
    wrong(path)
    arguments = {"evaluate": (), "submit": ("--out", phantom / "out.zip")}[name]
    sentence = refusal(phantom, command, capsys, name, phantom / "fields", *arguments)
    assert str(path) in sentence and words in sentence and "\n" not in sentence
    assert not (phantom / "out.zip").exists() and not list(phantom.glob("runs/**/metrics*"))
