"""A table of small pairs in a plane with label maps and landmarks, for the tests of `register --csv`."""

from pathlib import Path

import numpy as np
from scans import affine_of, moved, scene, turned, write

SIZE = (40, 36)
TURNS = ((15, 10), (-20, 5))
COLUMNS = ("fixed", "moving", "fixed_label", "moving_label", "fixed_points", "moving_points")


def table(folder: Path, more: list[str] = []) -> Path:
    """Two pairs whose second image is the first one turned, and further rows."""
    affine, fixed, rows = affine_of(SIZE), scene(SIZE), [",".join(COLUMNS)]
    write(folder, "fixed.nii.gz", fixed.astype(np.float32), affine)
    write(folder, "fixed_seg.nii.gz", (fixed > 60).astype(np.uint8), affine)
    for index, (degrees, shift) in enumerate(TURNS):
        truth = turned(SIZE, degrees, shift)
        image = moved(fixed, affine, truth)
        write(folder, f"m{index}.nii.gz", image.astype(np.float32), affine)
        write(folder, f"m{index}_seg.nii.gz", (image > 60).astype(np.uint8), affine)
        voxels = np.random.default_rng(index).uniform(14, 22, (6, 2))
        world = np.column_stack([voxels, np.zeros(6), np.ones(6)]) @ affine.T
        there = world @ truth.T @ np.linalg.inv(affine).T
        np.savetxt(folder / f"fixed{index}.csv", voxels, delimiter=",")
        np.savetxt(folder / f"m{index}.csv", there[:, :2], delimiter=",")
        rows.append(row(f"m{index}"))
    path = folder / "pairs.csv"
    path.write_text("\n".join([*rows, *more]) + "\n")
    return path


def row(name: str) -> str:
    """A line of the table."""
    return f"fixed.nii.gz,{name}.nii.gz,fixed_seg.nii.gz,{name}_seg.nii.gz,fixed{name[1:]}.csv,{name}.csv"


def third(folder: Path, values: np.ndarray) -> None:
    """Files of a third pair, m2, whose image holds these values."""
    affine = affine_of(SIZE)
    write(folder, "m2.nii.gz", values.astype(np.float32), affine)
    write(folder, "m2_seg.nii.gz", np.ones(SIZE, np.uint8), affine)
    for name in ("fixed2.csv", "m2.csv"):
        np.savetxt(folder / name, np.full((6, 2), 15.0), delimiter=",")
