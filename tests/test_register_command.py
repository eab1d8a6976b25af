"""`dio-lightning register`: what it leaves, what it says, and what it refuses before any work."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scans import affine_of, moved, scene, turned, write, wrong_inputs


@pytest.mark.parametrize(
    "kind", ["nowhere", "text", "cut", "empty", "4-D", "constant", "NaN", "singular", "thin", "complex", "colour"]
)
@pytest.mark.parametrize("place", ["fixed", "moving"])
def test_wrong_input_is_one_sentence_before_any_work(kind, place, command, tmp_path, capsys) -> None:
    path, sentence = wrong_inputs(tmp_path)[kind]
    good = write(tmp_path, "good.nii.gz", scene((12, 12, 12)).astype(np.float32))
    images = (path, good) if place == "fixed" else (good, path)
    with pytest.raises(SystemExit) as stop:
        command("register", *images, "--out", "out")
    printed = capsys.readouterr().err
    assert stop.value.code == 2 and sentence in printed and Path(path).name in printed
    assert len(printed.strip().splitlines()) == 1 and not (tmp_path / "out").exists()


def test_the_command_leaves_whole_files_and_its_verdict(command, tmp_path, capsys) -> None:
    size = (40, 36)
    fixed, affine, truth = scene(size), affine_of(size), turned(size, 15, 10)
    paths = [
        write(tmp_path, f"{name}.nii.gz", values.astype(np.float32), affine)
        for name, values in (("fixed", fixed), ("moving", moved(fixed, affine, truth)))
    ]
    atlas = write(tmp_path, "atlas.nii.gz", (moved(fixed, affine, truth) > 60).astype(np.uint8), affine)
    command("register", *paths, "--out", "out", "--stages", "rigid", "--warp-labels", atlas)
    assert capsys.readouterr().out.startswith("good: ")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        *("warped.nii.gz", "transform.h5", "inverse.h5", "affine.tfm", "report.json", "picture.png", "report.html"),
        "warped_atlas.nii.gz",
    }
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["quality"]["verdict"] == "good" and report["stages"][0]["stage"] == "rigid"
    warped = np.asarray(nib.load(tmp_path / "out/warped_atlas.nii.gz").dataobj).reshape(size)
    assert 2 * ((warped > 0) & (fixed > 60)).sum() / ((warped > 0).sum() + (fixed > 60).sum()) > 0.95
    with pytest.raises(SystemExit):
        command("register", *paths, "--out", "out", "--stages", "rigid")
    assert "warped.nii.gz exists" in capsys.readouterr().err
    command("register", *paths, "--out", "out", "--stages", "rigid", "--overwrite", "--json")
    assert json.loads(capsys.readouterr().out)["quality"]["verdict"] == "good"
    noise = write(tmp_path, "noise.nii.gz", np.random.default_rng(1).normal(size=size) ** 2, affine)
    with pytest.raises(SystemExit) as stop:
        command("register", paths[0], noise, "--out", "noise", "--stages", "rigid")
    assert stop.value.code == 3 and (tmp_path / "noise/report.json").exists()


@pytest.mark.parametrize("kind", ["text", "4-D", "complex", "plane"])
def test_a_file_to_warp_that_cannot_be_is_refused_before_any_work(kind, command, tmp_path, capsys) -> None:
    good = write(tmp_path, "good.nii.gz", scene((12, 12, 12)).astype(np.float32))
    plane = write(tmp_path, "plane.nii.gz", scene((12, 12)).astype(np.float32))
    wrong = {**wrong_inputs(tmp_path), "plane": (plane, "has 2 dimensions, expected 3")}[kind]
    with pytest.raises(SystemExit) as stop:
        command("register", good, good, "--out", "out", "--warp-images", wrong[0])
    printed = capsys.readouterr().err
    assert stop.value.code == 2 and wrong[1] in printed and len(printed.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_images_beside_one_another_need_a_rigid_stage(command, tmp_path, capsys) -> None:
    image = scene((24, 22, 20)).astype(np.float32)
    far = affine_of(image.shape)
    far[0, 3] += 500
    fixed, moving = (
        write(tmp_path, "near.nii.gz", image, affine_of(image.shape)),
        write(tmp_path, "far.nii.gz", image, far),
    )
    with pytest.raises(SystemExit) as stop:
        command("register", fixed, moving, "--out", "out", "--stages", "deformable")
    assert stop.value.code == 2 and "lie beside one another" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    command("register", fixed, moving, "--out", "out", "--stages", "rigid")
    assert "good: " in capsys.readouterr().out


def test_a_place_that_cannot_be_written_is_refused_before_any_work(command, tmp_path, capsys) -> None:
    good = write(tmp_path, "good.nii.gz", scene((12, 12, 12)).astype(np.float32))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/inverse.h5").write_text("another's")
    for folder, sentence in ((good + "/out", "is a file, expected a folder"), ("out", "inverse.h5 exists")):
        with pytest.raises(SystemExit) as stop:
            command("register", good, good, "--out", folder)
        assert stop.value.code == 2 and sentence in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["inverse.h5"]
