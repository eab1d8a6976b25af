"""Folders in the layouts that data sets are published in, with a few small volumes."""

import json
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

SHAPE = (8, 9, 10)
AFFINE = np.diag([-2.0, 2.0, 3.0, 1.0])


def write(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    """A NIfTI file; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, affine), path)  # pyright: ignore[reportPrivateImportUsage]


def write_case(root: Path, name: str, points: int = 0, shape: tuple[int, ...] = SHAPE, folder: str = "Tr") -> None:
    """Image, label with 0 to 3, full mask and, if asked for, landmarks, drawn from the name."""
    rng = np.random.default_rng([*name.encode()])
    write(root / f"images{folder}/{name}.nii.gz", rng.integers(0, 200, shape).astype(np.uint8))
    write(root / f"labels{folder}/{name}.nii.gz", rng.integers(0, 4, shape).astype(np.uint8))
    write(root / f"masks{folder}/{name}.nii.gz", np.ones(shape, np.uint8))
    if points:
        write_points(root, name, rng.uniform(0, 7, (points, len(shape))))


def write_points(root: Path, name: str, points: np.ndarray, header: str = "") -> None:
    """Landmarks (n, d) as rows."""
    (root / "keypointsTr").mkdir(exist_ok=True)
    np.savetxt(root / f"keypointsTr/{name}.csv", points, delimiter=",", fmt="%.4f", header=header, comments="")


def write_json(root: Path, task: str = "Mini", **content: object) -> None:
    """The dataset JSON of a task."""
    (root / f"{task}_dataset.json").write_text(json.dumps({"name": task, **content}))


def change_json(root: Path, task: str, **content: object) -> None:
    """Keys of a dataset JSON replaced; None removes one."""
    path = root / f"{task}_dataset.json"
    old = json.loads(path.read_text()) | content
    path.write_text(json.dumps({key: value for key, value in old.items() if value is not None}))


def image(i: int, modality: int = 0, task: str = "Mini", folder: str = "Tr") -> str:
    """The path of an image as a dataset JSON has it."""
    return f"./images{folder}/{task}_{i:04d}_{modality:04d}.nii.gz"


def listed(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    """Pairs as a dataset JSON has them."""
    return [{"fixed": fixed, "moving": moving} for fixed, moving in pairs]


def oasis(root: Path, subjects: int = 8, pairs: Sequence[tuple[int, int]] = ((5, 6), (6, 7), (7, 8))) -> Path:
    """Learn2Reg's OASIS: `training` has everybody, also who is in a validation pair; test images have no labels."""
    entries = []
    for i in range(1, subjects + 1):
        path = image(i, task="OASIS")
        name = Path(path).name.removesuffix(".nii.gz")
        rng = np.random.default_rng(i)
        write(root / path, rng.uniform(0, 1, SHAPE).astype(np.float32))
        write(root / f"labelsTr/{name}.nii.gz", rng.integers(0, 36, SHAPE).astype(np.uint8))
        write(root / f"masksTr/{name}.nii.gz", np.ones(SHAPE, np.uint8))
        entries.append({"image": path, "label": path.replace("images", "labels")})
        entries[-1]["mask"] = path.replace("images", "masks")
    for i in (subjects + 1, subjects + 2):
        write(root / image(i, task="OASIS", folder="Ts"), np.random.default_rng(i).uniform(0, 1, SHAPE))
    names = [image(i, task="OASIS", folder="Ts") for i in (subjects + 1, subjects + 2)]
    write_json(
        root, "OASIS", pairings="unpaired", provided_data={"0": ["image", "label", "mask"]},
        labels={"0": {str(i): f"structure {i}" for i in range(36)}}, tensorImageSize={"0": "3D"},
        tensorImageShape={"0": list(SHAPE)}, numTraining=subjects, training=entries, test=names,
        training_paired_images=[], numRegistration_val=len(pairs),
        registration_val=listed(*((image(i, task="OASIS"), image(j, task="OASIS")) for i, j in pairs)),
        registration_test=listed((names[0], names[1])),
    )  # fmt: skip
    return root


def nlst(root: Path, train: Sequence[int] = (1, 2, 3, 4), val: Sequence[int] = (101, 102)) -> Path:
    """Learn2Reg's NLST: HU, lung masks, landmarks without header that the JSON lists with an image's extension."""
    entries = []
    for i in [*train, *val]:
        for modality in (0, 1):
            path = image(i, modality, "NLST")
            name = Path(path).name.removesuffix(".nii.gz")
            rng = np.random.default_rng(2 * i + modality)
            write(root / path, rng.integers(-1100, 600, SHAPE).astype(np.int16))
            mask = np.zeros(SHAPE, np.uint8)
            mask[1:-1, 1:-1, 1:-1] = 1
            write(root / f"masksTr/{name}.nii.gz", mask)
            write_points(root, name, rng.uniform(1, 6, (5, 3)))
            masks, points = path.replace("images", "masks"), path.replace("images", "keypoints")
            entries.append({"image": path, "mask": masks, "keypoints": points})
    both = [[(image(i, 0, "NLST"), image(i, 1, "NLST")) for i in numbers] for numbers in (train, val)]
    write_json(
        root, "NLST", pairings="paired", registration_direction={"fixed": 0, "moving": 1},
        provided_data={"0": ["image", "mask", "keypoints"]}, modality={"0": "CT", "1": "CT"},
        tensorImageSize={"0": "3D"}, tensorImageShape={"0": list(SHAPE)}, numTraining=len(entries), training=entries,
        numPairedTraining=len(train), training_paired_images=listed(*both[0]), registration_val=listed(*both[1]),
    )  # fmt: skip
    return root
