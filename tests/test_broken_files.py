"""One broken copy of each kind of file: one sentence that names the file, and what was expected of it."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from miniature import SHAPE, change_json, image, listed, nlst, oasis, write, write_points

from data_modules import NLST, OASIS, Learn2Reg
from data_modules.checking.findings import Findings
from data_modules.checking.headers import Asked, check_headers, check_pairs
from data_modules.layout import Case, unique_cases

BRAIN, LABEL, MASK = (f"{kind}Tr/OASIS_0005_0000.nii.gz" for kind in ("images", "labels", "masks"))
LUNG, POINTS = "imagesTr/NLST_0101_0001.nii.gz", "keypointsTr/NLST_0101_0001.csv"
SWAPPED = (8, 10, 9)


def cut(root: Path, name: str, left: float = 0.5) -> None:
    whole = (root / name).read_bytes()
    (root / name).write_bytes(whole[: int(len(whole) * left)])


def value(root: Path, name: str, number: float) -> None:
    data = np.ones(SHAPE, np.float32)
    data[1, 2, 3] = number
    write(root / name, data)


def entries(root: Path, task: str, key: str) -> list[dict[str, str]]:
    return json.loads((root / f"{task}_dataset.json").read_text())[key]


def check_files(pairs: list[tuple[Case, Case]]) -> None:
    found = Findings()
    headers = check_headers(unique_cases(pairs), Asked(), found)
    check_pairs(pairs, headers, Asked(), found)
    found.stop()


def unlist(root: Path, task: str, key: str, which: str) -> None:
    old = entries(root, task, key)
    del old[0][which]
    change_json(root, task, **{key: old})


def again(root: Path, task: str, key: str) -> None:
    old = entries(root, task, key)
    change_json(root, task, **{key: [*old, old[0]]})


def test_healthy_folders_load(tmp_path: Path) -> None:
    for name, make, module in [("a", oasis, OASIS), ("b", nlst, NLST), ("c", oasis, Learn2Reg), ("d", nlst, Learn2Reg)]:
        data = module(str(make(tmp_path / name)))
        data.setup()
        sizes = [len(data.dataset(split)) for split in ("train", "val", "test")]  # type: ignore[arg-type]
        assert sizes == {"a": [12, 3, 3], "b": [4, 2, 2], "c": [12, 3, 1], "d": [4, 2, 2]}[name]


def test_keys_that_a_json_may_lack(tmp_path: Path) -> None:
    keys = ["training", "training_paired_images", "tensorImageShape", "labels", "pairings", "numTraining"]
    change_json(oasis(tmp_path / "a"), "OASIS", **dict.fromkeys([*keys, "registration_test"]))
    change_json(nlst(tmp_path / "b"), "NLST", **dict.fromkeys(keys))
    brains, lungs = OASIS(str(tmp_path / "a")), NLST(str(tmp_path / "b"))
    brains.setup()
    lungs.setup()
    assert len(brains.layout.cases) == 4 and [len(lungs.layout.train), len(lungs.layout.val)] == [4, 2]
    assert {"fixed_points", "fixed_mask"} <= next(iter(lungs.val_dataloader())).keys()


BROKEN: dict[str, tuple[type[Learn2Reg], Callable[[Path], object], list[str]]] = {
    "image missing": (
        OASIS,
        lambda root: (root / BRAIN).unlink(),
        [BRAIN, "does not exist, expected the image of a case"],
    ),
    "label missing": (OASIS, lambda root: (root / LABEL).unlink(), [LABEL, "does not exist, expected the label"]),
    "mask missing": (OASIS, lambda root: (root / MASK).unlink(), [MASK, "does not exist, expected the mask"]),
    "landmarks missing": (
        NLST,
        lambda root: (root / POINTS).unlink(),
        [POINTS, "does not exist, expected the landmarks of NLST_0101_0001.nii.gz"],
    ),
    "image half": (OASIS, lambda root: cut(root, BRAIN), [BRAIN, "is cut off (", "expected all 8x9x10 voxels"]),
    "label half": (OASIS, lambda root: cut(root, LABEL), [LABEL, "cannot be read (", "expected a NIfTI"]),
    "mask in its header": (OASIS, lambda root: cut(root, MASK, 0.3), [MASK, "cannot be read (", "expected a NIfTI"]),
    "image empty": (OASIS, lambda root: cut(root, BRAIN, 0), [BRAIN, "cannot be read (", "expected a NIfTI"]),
    "landmarks half": (
        NLST,
        lambda root: (root / POINTS).write_text((root / POINTS).read_text()[:44]),
        [POINTS, "cannot be read as landmarks", "expected rows of 3 numbers and no header"],
    ),
    "label shape": (
        OASIS,
        lambda root: write(root / LABEL, np.zeros((8, 9, 9), np.uint8)),
        [LABEL, "has shape 8x9x9, expected 8x9x10 as in", BRAIN],
    ),
    "image shape": (
        NLST,
        lambda root: [write(root / kind / Path(LUNG).name, np.ones((8, 9, 9))) for kind in ("imagesTr", "masksTr")],
        [LUNG, "has shape 8x9x9, expected 8x9x10 as in", "NLST_0101_0000.nii.gz"],
    ),
    "four axes": (
        OASIS,
        lambda root: write(root / BRAIN, np.zeros((8, 9, 10, 2))),
        [BRAIN, "has shape 8x9x10x2, expected two or three axes"],
    ),
    "label fraction": (OASIS, lambda root: value(root, LABEL, 2.5), [LABEL, "value 2.5, expected integers from 0"]),
    "label negative": (OASIS, lambda root: value(root, LABEL, -1), [LABEL, "value -1, expected integers from 0"]),
    "label NaN": (OASIS, lambda root: value(root, LABEL, np.nan), [LABEL, "value nan, expected integers from 0"]),
    "image NaN": (OASIS, lambda root: value(root, BRAIN, np.nan), [BRAIN, "1 voxels that are NaN", "expected finite"]),
    "image infinite": (NLST, lambda root: value(root, LUNG, np.inf), [LUNG, "NaN or infinite, expected finite"]),
    "mask empty": (
        OASIS,
        lambda root: write(root / MASK, np.zeros(SHAPE, np.uint8)),
        [MASK, "is 0 everywhere, expected a mask with voxels above 0"],
    ),
    "landmark count": (
        NLST,
        lambda root: write_points(root, Path(POINTS).stem, np.ones((4, 3))),
        [POINTS, "has 4 landmarks, expected 5 as in", "NLST_0101_0000.csv, with which it is paired"],
    ),
    "landmark header": (
        NLST,
        lambda root: write_points(root, Path(POINTS).stem, np.ones((5, 3)), header="x,y,z"),
        [POINTS, "cannot be read as landmarks", "and no header"],
    ),
    "landmark outside": (
        NLST,
        lambda root: write_points(root, Path(POINTS).stem, np.full((5, 3), 8.5)),
        [POINTS, "has 5 of 5 landmarks outside of the image of 8x9x10 voxels, the first in row 1: (8.5, 8.5, 8.5)"],
    ),
    "landmark columns": (
        NLST,
        lambda root: write_points(root, Path(POINTS).stem, np.ones((5, 2))),
        [POINTS, "has 5 rows of 2 numbers, expected rows of 3"],
    ),
    "label axes": (
        OASIS,
        lambda root: write(root / LABEL, np.zeros(SWAPPED, np.uint8)),
        [LABEL, "has shape 8x10x9, expected 8x9x10 as in", "its axes look swapped"],
    ),
    "image axes": (
        OASIS,
        lambda root: [write(root / name, np.ones(SWAPPED, np.uint8)) for name in (BRAIN, LABEL, MASK)],
        [BRAIN, "has shape 8x10x9, expected 8x9x10 as in", "its axes look swapped"],
    ),
    "no fixed": (
        OASIS,
        lambda root: unlist(root, "OASIS", "registration_val", "fixed"),
        ["OASIS_dataset.json: entry 0 of 'registration_val'", "expected the keys 'fixed' and 'moving'"],
    ),
    "no moving": (
        NLST,
        lambda root: unlist(root, "NLST", "training_paired_images", "moving"),
        ["NLST_dataset.json: entry 0 of 'training_paired_images'", "expected the keys 'fixed' and 'moving'"],
    ),
    "no image": (
        OASIS,
        lambda root: unlist(root, "OASIS", "training", "image"),
        ["OASIS_dataset.json: entry 0 of 'training'", "expected the path of an image under the key 'image'"],
    ),
    "no list": (
        NLST,
        lambda root: change_json(root, "NLST", registration_val={"a": 1}),
        ["NLST_dataset.json: 'registration_val' is a dict, expected a list"],
    ),
    "image twice": (
        OASIS,
        lambda root: again(root, "OASIS", "training"),
        ["OASIS_dataset.json: entry 8 of 'training' repeats entry 0", image(1, task="OASIS"), "every image once"],
    ),
    "pair twice": (
        NLST,
        lambda root: again(root, "NLST", "registration_val"),
        ["NLST_dataset.json: entry 2 of 'registration_val' repeats entry 0", "expected every pair once"],
    ),
    "image with itself": (
        OASIS,
        lambda root: change_json(root, "OASIS", registration_val=listed(("./" + BRAIN, "./" + BRAIN))),
        ["OASIS_dataset.json: entry 0 of 'registration_val'", "expected two images"],
    ),
    "id twice": (
        OASIS,
        lambda root: change_json(
            root, "OASIS", registration_val=listed((f"./imagesTs/{Path(BRAIN).name}", image(6, task="OASIS")))
        ),
        ["imagesTs/OASIS_0005_0000.nii.gz and", BRAIN, "are both OASIS_0005_0000, expected one image for one id"],
    ),
    "leak": (
        Learn2Reg,
        lambda root: change_json(
            root, "NLST", training_paired_images=listed(*[(image(i, 0, "NLST"), image(i, 1, "NLST")) for i in (1, 102)])
        ),
        ["leaks:", "NLST_0102_0000.nii.gz is in a training pair and in a validation pair, expected it in one"],
    ),
    "paired without pairs": (
        Learn2Reg,
        lambda root: change_json(
            root, "NLST", training_paired_images=None, training=entries(root, "NLST", "training")[:3]
        ),
        ["NLST_dataset.json has no pairs under 'training_paired_images'", "expected them as its 'pairings' is"],
    ),
    "empty path": (
        Learn2Reg,
        lambda root: change_json(root, "NLST", pairings="paired", registration_val=listed(("a", ""))),
        ["NLST_dataset.json: entry 0 of 'registration_val'", "expected the path of an image"],
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_one_sentence_names_the_file(tmp_path: Path, name: str) -> None:
    module, breaker, fragments = BROKEN[name]
    (oasis if module is OASIS else nlst)(tmp_path)
    breaker(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        module(str(tmp_path)).setup()
    text = str(caught.value)
    assert all(fragment in text for fragment in fragments), text
    assert "\n" not in text and str(tmp_path) in text


@pytest.mark.parametrize("preset", [OASIS, NLST])
def test_a_split_that_is_asked_for_must_be_there(tmp_path: Path, preset: type[Learn2Reg]) -> None:
    make, task = (oasis, "OASIS") if preset is OASIS else (nlst, "NLST")
    change_json(make(tmp_path), task, registration_test=None)
    with pytest.raises(
        ValueError, match=r"has no pairs under 'registration_test', expected one of \[.*'registration_v"
    ):
        preset(str(tmp_path), test_split="registration_test").setup("test")


def test_pairs_that_are_trained_and_validated_on_purpose_give_a_warning(tmp_path: Path) -> None:
    nlst(tmp_path)
    change_json(tmp_path, "NLST", training_paired_images=entries(tmp_path, "NLST", "registration_val"))
    with pytest.warns(UserWarning, match="has the same pairs for training, validation and test"):
        Learn2Reg(str(tmp_path)).setup()


def test_the_axis_orders_of_oasis_are_named(tmp_path: Path) -> None:
    case = Case(tmp_path / "neurite.nii.gz", shape=(160, 224, 192))
    write(case.image, np.zeros((160, 192, 224), np.uint8))
    with pytest.raises(ValueError, match=r"neurite\.nii\.gz has shape 160x192x224, expected 160x224x192 .*look swap"):
        check_files([(case, case)])
    check_files([(Case(case.image, shape=(80, 96, 112)),) * 2])


def test_files_are_whole_however_they_were_packed(tmp_path: Path) -> None:
    write(tmp_path / "plain.nii", np.ones(SHAPE))
    whole = (tmp_path / "plain.nii").read_bytes()
    (tmp_path / "parts.nii.gz").write_bytes(gzip.compress(whole[:999]) + gzip.compress(whole[999:]))
    (tmp_path / "longer.nii").write_bytes(whole + b"0")
    cases = [Case(tmp_path / name) for name in ("plain.nii", "parts.nii.gz", "longer.nii")]
    check_files([(cases[0], case) for case in cases[1:]])
    cut(tmp_path, "plain.nii", 0.9)
    with pytest.raises(ValueError, match=r"plain\.nii is cut off \(.*, expected all 8x9x10 voxels of its header$"):
        check_files([(cases[0], cases[1])])


def test_the_command_line_prints_one_sentence(tmp_path: Path, command, capsys) -> None:
    oasis(tmp_path)
    cut(tmp_path, BRAIN)
    model = ["--model", "DIO", "--model.features", "Intensity", "--model.layer", "OptimizerLayer"]
    with pytest.raises(SystemExit) as stopped:
        command("test", "--data", "OASIS", "--data.root", tmp_path, *model)
    lines = [line for line in capsys.readouterr().err.splitlines() if "Seed set" not in line]
    assert stopped.value.code == 2 and len(lines) == 1
    assert lines[0].startswith("dio-lightning: error: ") and f"{BRAIN} is cut off" in lines[0]
