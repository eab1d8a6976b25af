"""What is wrong with a pair beyond its images: label maps, masks, landmarks, planes, weights; said before any work."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scans import affine_of, scene, write
from tables_of_pairs import SIZE, table
from test_register_batches import RIGID, refused, results

import dio_lightning
from dio_lightning.networks.blocks import conv
from dio_lightning.networks.dimension import check_dimension, dimension_of
from dio_lightning.registration import Scan, register
from dio_lightning.registration.outputs import Outputs
from dio_lightning.registration.scoring import tre
from dio_lightning.registration.starts import _mass

ROOT = Path(__file__).parents[1]
SLICES = ROOT / "experiments/dio/weights/slices.safetensors"


INSIDE = scene(SIZE) > 60
"""The foreground of the table's fixed image."""


def one_pair(folder: Path, fixed: np.ndarray, moving: np.ndarray) -> Path:
    """A table of an image onto itself, with these label maps."""
    affine = affine_of(SIZE)
    for name, values in (("image", scene(SIZE).astype(np.float32)), ("one", fixed), ("two", moving)):
        write(folder, f"{name}.nii.gz", values, affine)
    write(folder, "again.nii.gz", scene(SIZE).astype(np.float32), affine)
    path = folder / "one.csv"
    path.write_text("fixed,moving,fixed_label,moving_label\nimage.nii.gz,again.nii.gz,one.nii.gz,two.nii.gz\n")
    return path


@pytest.mark.parametrize("count", [1, 2, 5])
def test_numbers_of_landmarks_that_differ_are_said_before_the_first_pair(count, command, tmp_path, capsys) -> None:
    """One moving landmark was compared with every fixed one; two ended in a message of NumPy, the pair thrown away."""
    path = table(tmp_path)
    np.savetxt(tmp_path / "m1.csv", np.loadtxt(tmp_path / "m1.csv", delimiter=",")[:count], delimiter=",")
    lines = refused(command, capsys, "--csv", path, "--out", "out", *RIGID)
    assert len(lines) == 1 and f"m1.csv has {count} landmarks, expected 6 as in" in lines[0]
    assert "fixed1.csv" in lines[0] and not (tmp_path / "out").exists()


def test_a_landmark_is_compared_with_its_own_alone() -> None:
    image = scene((12, 12)).astype(np.float32)
    result = register(image, image, stages=("rigid",))
    points = np.array([[2.0, 3], [5, 5], [7, 2]])
    np.testing.assert_allclose(tre(result, points, points + np.array([3.0, 4])), 5, atol=1e-3)
    with pytest.raises(ValueError, match="3 fixed landmarks do not match 1 moving ones"):
        tre(result, points, points[:1])


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (lambda inside: np.where(inside, 0.75, 0).astype(np.float32), "has the value 0.75, expected integers"),
        (lambda inside: np.zeros(SIZE, np.uint8), "is 0 everywhere, expected labels above 0"),
        (lambda inside: np.where(inside, 1, np.nan).astype(np.float32), "has the value nan, expected integers"),
        (lambda inside: inside.astype(np.int16) - 1, "has the value -1, expected 0 and labels above it"),
    ],
    ids=["probabilities", "zeros", "NaN", "negative"],
)
@pytest.mark.parametrize("side", [0, 1])
def test_a_label_map_that_is_none_is_refused_before_the_first_pair(
    values, sentence, side, command, tmp_path, capsys
) -> None:
    maps = [INSIDE.astype(np.uint8)] * 2
    maps[side] = values(INSIDE)
    lines = refused(command, capsys, "--csv", one_pair(tmp_path, *maps), "--out", "out", *RIGID)
    assert len(lines) == 1 and f"{('one', 'two')[side]}.nii.gz {sentence}" in lines[0]
    assert not (tmp_path / "out").exists()


def test_labels_of_an_atlas_are_scored_by_their_places(command, tmp_path) -> None:
    """Allen's atlas counts to 600 million, and a number was kept for each; those above 2^24 are no float32 either."""
    inside, half = INSIDE, np.arange(SIZE[0])[:, None] < SIZE[0] // 2
    fixed = np.where(inside, np.where(half, 576073732, 576073733), 0).astype(np.int32)
    moving = np.where(fixed == 576073733, 3, fixed).astype(np.int32)
    moving[0, 0] = 614454277
    command("register", "--csv", one_pair(tmp_path, fixed, moving), "--out", "out", *RIGID, "--quiet")
    (row,) = results(tmp_path / "out").values()
    assert float(row["dice"]) > 0.99, "of the one label that both have"
    page = (tmp_path / "out" / row["pair"] / "report.html").read_text()
    assert f"<td>{float(row['dice']):.3f}</td>" in page, "the page counts the same labels"


def test_a_dice_that_is_missing_is_a_dash_and_the_result_stays(command, tmp_path, capsys) -> None:
    inside = INSIDE
    path = one_pair(tmp_path, inside.astype(np.uint8), 5 * inside.astype(np.uint8))
    command("register", "--csv", path, "--out", "out", *RIGID)
    (row,) = results(tmp_path / "out").values()
    folder = tmp_path / "out" / row["pair"]
    assert row["verdict"] == "good" and row["dice"] == "" and (folder / "transform.h5").is_file()
    assert json.loads((folder / "report.json").read_text())["scores"] == {"dice": None}
    assert "<dt>dice</dt><dd>–</dd>" in (folder / "report.html").read_text()
    capsys.readouterr()


def test_a_mask_counts_where_it_is_above_zero_and_one_of_many_values_is_warned_of(tmp_path) -> None:
    """A map of probabilities, which counts wherever it is not 0, and one of -1 were taken without a word."""
    image = scene((16, 16)).astype(np.float32)
    scan = Scan.of(image)
    grey = np.where(image > 100, 0.9, np.where(image > 50, 0.1, -0.2)).astype(np.float32)
    with pytest.warns(UserWarning, match=r"is no mask of two values: .* are above half of its largest value 0\.9"):
        masked = scan.masked(grey)
    assert masked.mask is not None and torch.equal(masked.mask[0, 0], torch.from_numpy(image > 50))
    with pytest.raises(ValueError, match="is nowhere above 0, expected numbers above 0"):
        scan.masked(np.full((16, 16), -1.0))


def test_masks_of_a_table_are_looked_at_before_the_first_pair(command, tmp_path, capsys) -> None:
    path = table(tmp_path)
    write(tmp_path, "minus.nii.gz", np.full(SIZE, -1, np.int16), affine_of(SIZE))
    head, *rows = path.read_text().splitlines()
    path.write_text("\n".join([f"{head},fixed_mask", *(f"{row},minus.nii.gz" for row in rows)]) + "\n")
    lines = refused(command, capsys, "--csv", path, "--out", "out", *RIGID)
    assert len(lines) == 1 and "minus.nii.gz is nowhere above 0, expected a mask" in lines[0]


def test_a_probability_map_as_a_mask_is_warned_of_in_the_report(command, tmp_path, capsys) -> None:
    images = [write(tmp_path, f"{name}.nii.gz", scene(SIZE).astype(np.float32), affine_of(SIZE)) for name in "ab"]
    with pytest.warns(UserWarning, match="is no mask of two values"):
        command("register", *images, "--out", "out", *RIGID, "--quiet", "--fixed-mask", images[0])
    (warning,) = json.loads((tmp_path / "out/report.json").read_text())["warnings"]
    assert "a.nii.gz is no mask of two values" in warning
    capsys.readouterr()


def test_weights_of_another_dimension_are_one_sentence_before_any_work(command, tmp_path, capsys) -> None:
    """They ended in "zip() argument 2 is shorter than argument 1" after the linear stages."""
    solid, plane = (write(tmp_path, f"{len(s)}.nii.gz", scene(s).astype(np.float32)) for s in ((12,) * 3, (12,) * 2))
    for image, model, sentence in (
        (solid, SLICES, "slices.safetensors was trained on 2 dimensions, "),
        (plane, "brain-t1", "brain-t1.safetensors was trained on 3 dimensions, "),
    ):
        d = 3 if image == solid else 2
        lines = refused(command, capsys, image, image, "--out", "out", "--model", model)
        assert len(lines) == 1 and lines[0].endswith(f"{sentence}{image} has {d}")
        other = write(tmp_path, f"other_{d}.nii.gz", scene((12,) * d).astype(np.float32))
        Path("pairs.csv").write_text(f"fixed,moving\n{image},{other}\n")
        lines = refused(command, capsys, "--csv", "pairs.csv", "--out", "out", "--model", model)
        assert [
            line.endswith(f"{sentence}{path} has {d}") for line, path in zip(lines, (image, other), strict=False)
        ] == [True] * 2
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="DIO is made for 2 dimensions, the fixed image has 3"):
        register(scene((12,) * 3), scene((12,) * 3), model=dio_lightning.load(SLICES))


@pytest.mark.parametrize("name", ["test", "validate", "predict", "features"])
def test_commands_on_data_of_another_dimension_say_so(name, command, tmp_path, capsys) -> None:
    plane = write(tmp_path, "plane.nii.gz", scene((24, 24)).astype(np.float32))
    other = write(tmp_path, "other.nii.gz", scene((24, 24)).astype(np.float32))
    Path("pairs.csv").write_text(f"fixed,moving\n{plane},{other}\n")
    data = ("--data", "PairsCSV", "--data.csv", "pairs.csv")
    words = ("brain-t1", "--out", "out", "--") if name == "features" else ("--ckpt_path", "brain-t1")
    with pytest.raises(SystemExit) as stop:
        command(name, *words, *data)
    printed = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2
    assert printed[-1].endswith("error: brain-t1.safetensors was trained on 3 dimensions, plane has 2")


def test_the_dimension_of_a_method_is_that_of_its_convolutions() -> None:
    one, two = conv(2, 1, 1), conv(3, 1, 1)
    assert dimension_of(one) == 2 and dimension_of(two) == 3
    assert dimension_of(torch.nn.Sequential(one, two)) is dimension_of(torch.nn.Linear(2, 2)) is None
    check_dimension(torch.nn.Sequential(one, two), {"any": 3})
    with pytest.raises(ValueError, match=r"w\.ckpt was trained on 2 dimensions, b has 3"):
        check_dimension(one, {"a": 2, "b": 3}, "folder/w.ckpt")


@pytest.mark.parametrize("place", [0, 1])
def test_a_slice_beside_the_plane_x_y_is_refused_by_its_name_before_any_work(place, command, tmp_path, capsys) -> None:
    coronal = np.array([[4.0, 0, 0, 0], [0, 0, 4, 0], [0, 4, 0, 0], [0, 0, 0, 1]])
    images = [write(tmp_path, f"{name}.nii.gz", scene(SIZE).astype(np.float32), affine_of(SIZE)) for name in "ab"]
    images[place] = write(tmp_path, "coronal.nii.gz", scene(SIZE).astype(np.float32), coronal)
    sentence = "coronal.nii.gz is a slice that leaves the plane x, y, which ITK's transforms"
    lines = refused(command, capsys, *images, "--out", "out")
    assert len(lines) == 1 and sentence in lines[0]
    Path("pairs.csv").write_text(f"fixed,moving\n{images[0]},{images[1]}\n")
    lines = refused(command, capsys, "--csv", "pairs.csv", "--out", "out")
    assert len(lines) == 1 and sentence in lines[0] and not (tmp_path / "out").exists()


def test_what_an_earlier_result_had_besides_goes_and_nothing_else(command, tmp_path, capsys) -> None:
    """Fields of the first pair in other formats, and labels that it warped, lay beside the transform of the second."""
    size = (12, 12, 12)
    images = [write(tmp_path, f"{name}.nii.gz", scene(size, i).astype(np.float32)) for i, name in enumerate("ab")]
    labels = write(tmp_path, "seg.nii.gz", (scene(size) > 60).astype(np.uint8))
    words = ("--out", "out", "--stages", "affine", "--overwrite", "--quiet")
    more = ("--also", "fsl", "learn2reg", "--warp-labels", labels, "--warp-images", images[0])
    command("register", images[0], images[0], *words, *more)
    out = tmp_path / "out"
    besides = {"displacement_fsl.nii.gz", "displacement_learn2reg.nii.gz", "warped_seg.nii.gz", "warped_a.nii.gz"}
    before = {path.name for path in out.iterdir()}
    assert besides < before
    report = json.loads((out / "report.json").read_text())
    # a report may be anyone's: only plain names in its own folder are taken from it
    report["files"]["passengers"] += ["../a.nii.gz", str(tmp_path / "b.nii.gz"), "..", "", 7, "gone.nii.gz"]
    (out / "report.json").write_text(json.dumps(report))
    (out / "mine.txt").write_text("mine")
    # what is read now stays, though the result before made it
    command("register", images[0], images[0], *words, "--fixed-mask", out / "warped_seg.nii.gz")
    assert {path.name for path in out.iterdir()} == (before - besides) | {"mine.txt", "warped_seg.nii.gz"}
    assert all(Path(image).is_file() for image in images)
    capsys.readouterr()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": 3}', '{"files": {"passengers": 3}}', "\x00"])
def test_a_report_of_something_else_names_no_files(text, tmp_path) -> None:
    (tmp_path / "report.json").write_text(text)
    assert Outputs.in_folder(tmp_path).earlier == [] == Outputs.in_folder(tmp_path / "none").earlier


@pytest.mark.parametrize("size", [(20, 20), (14, 14, 14)])
def test_images_of_one_bright_voxel_are_registered(size) -> None:
    """The moments of one point are no number, and "Eigenvalues did not converge"."""
    fixed, moving = np.zeros(size, np.float32), np.zeros(size, np.float32)
    middle = tuple(n // 2 for n in size)
    fixed[middle], moving[(middle[0] + 1, *middle[1:])] = 100, 100
    result = register(fixed, moving, stages=("rigid",))
    d = len(size)
    np.testing.assert_allclose(result.warp_points([middle])[0, :d], [middle[0] + 1, *middle[1:]], atol=0.5)


def test_the_moments_of_two_points_are_theirs_and_of_one_none() -> None:
    image = np.zeros((8, 8), np.float32)
    image[2, 3] = 1
    centre, moments = _mass(Scan.of(image))
    assert centre.tolist() == [2, 3, 0] and not moments.any()
    image[4, 3] = 1
    centre, moments = _mass(Scan.of(image))
    assert centre.tolist() == [3, 3, 0] and moments.tolist() == [[2, 0, 0], [0, 0, 0], [0, 0, 0]]
