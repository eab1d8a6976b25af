"""How often `register` finds a transform again, and how often its verdict errs: real scans, moved at random.

    DIO_DATA=/data python benchmarks/starts.py [--first 0 --count 50 --wrong 3] [--out build/starts.csv]

Every case (its number is its seed) moves a scan by up to ±30° about every axis and ±30 mm along each, every second one
also by a scale from 0.8 to 1.2 along each axis, onto a grid of its own; every second one shows another contrast (T2, or
inverted intensities), every third lacks a fifth of its field of view. The error is the mean distance in mm over the
brain to where a point belongs. With `--wrong N` the verdict is asked of N transforms a case that miss by 4 to 40 mm.
"""

import argparse
import csv
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray
from scipy.ndimage import affine_transform

from dio_lightning.headers import read_header
from dio_lightning.registration import Scan, register
from dio_lightning.registration.quality import judge
from dio_lightning.registration.starts import rotation
from dio_lightning.transforms import Affine, Chain

DATA = Path(os.environ.get("DIO_DATA", "."))
PAIRS = (
    ("brain_real/colin27_2mm", "brain_real/colin27_2mm"),
    ("contrast/imagesTr/SynthSegBrain_0013_t1_0000", "contrast/imagesTr/SynthSegBrain_0013_t2_0000"),
    ("brain_real/colin27_2mm_wholehead", "brain_real/colin27_2mm_wholehead"),
    ("brain_real/mni152_2mm", "brain_real/mni152_2mm:inverted"),
    ("contrast/imagesTr/SynthSegBrain_0014_bias_0000", "contrast/imagesTr/SynthSegBrain_0014_t1_0000"),
    ("contrast/imagesTr/SynthSegBrain_0014_t2_0000", "contrast/imagesTr/SynthSegBrain_0014_t1_0000"),
    ("brain_real/mni152_2mm", "brain_real/mni152_2mm"),
    ("brain_real/colin27_2mm_wholehead", "brain_real/colin27_2mm_wholehead:inverted"),
)
"""The fixed scan, and the one that lies on it voxel by voxel and is moved; every second is of another contrast."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the cases and write a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--wrong", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("build/starts.csv"))
    options = parser.parse_args(arguments)
    rows = list[dict[str, object]]()
    for seed in range(options.first, options.first + options.count):
        rows += case(seed, options.wrong)
        print(*[f"{x:.3f}" if isinstance(x, float) else x for x in rows[-1 - options.wrong].values()], flush=True)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with options.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    summarise(rows)


def case(seed: int, wrong: int) -> list[dict[str, object]]:
    """What comes of one case: the row of its registration, and those of transforms that are wrong."""
    generator = np.random.default_rng(seed)
    names = PAIRS[seed % len(PAIRS)]
    truth, fixed, moving = scene(seed, *names, generator)
    began = time.perf_counter()
    result = register(fixed, moving, stages=("rigid", "affine") if seed % 4 > 1 else ("rigid",))
    seconds = time.perf_counter() - began
    scans = result.fixed, result.moving
    rows = [row(seed, *names, "registered", result.transform.links[0].matrix, truth, scans, seconds)]
    for _ in range(wrong):
        matrix = truth @ disturbance(generator, scans[0])
        rows.append(row(seed, *names, "wrong", matrix, truth, scans, 0.0))
    return rows


def row(
    seed: int, one: str, two: str, what: str, matrix: NDArray, truth: NDArray, scans: tuple[Scan, Scan], seconds: float
) -> dict[str, object]:
    """Error and verdict of one transform."""
    chain = Chain([Affine(matrix)])
    quality = judge(*scans, chain, chain.inverse(scans[1].grid))
    error = distance(scans[0], matrix, truth)
    short = [Path(name).name.removesuffix("_0000") for name in (one, two)]
    scores = {
        key: getattr(quality, key) for key in ("verdict", "overlap", "information", "start", "shifted", "scrambled")
    }
    return (
        {"seed": seed, "fixed": short[0], "moving": short[1], "what": what, "error": error}
        | scores
        | {
            "seconds": seconds,
            "sentence": quality.sentence,
        }
    )


def scene(seed: int, one: str, two: str, generator: np.random.Generator) -> tuple[NDArray, Nifti1Image, Nifti1Image]:
    """The transform that is looked for, the fixed scan and the moved one."""
    fixed, still = (read_header(DATA / f"{name.partition(':')[0]}.nii.gz") for name in (one, two))
    values = still.values().astype(np.float32)
    if two.endswith(":inverted"):
        values = np.where(values > 5, 255 - values, 0)
    truth = np.eye(4)
    scale = generator.uniform(0.8, 1.2, 3) if seed % 4 > 1 else np.ones(3)
    centre = fixed.affine[:3] @ [*(np.array(fixed.shape) - 1) / 2, 1]
    truth[:3, :3] = rotation(*np.radians(generator.uniform(-30, 30, 3))) * scale
    truth[:3, 3] = centre - truth[:3, :3] @ centre + generator.uniform(-30, 30, 3)
    pad = 12
    size = np.array(values.shape) + 2 * pad
    affine = still.affine @ np.block([[np.eye(3), -np.full((3, 1), pad)], [np.zeros(3), 1]])
    back = np.linalg.inv(still.affine) @ np.linalg.inv(truth) @ affine
    moved = affine_transform(values, back[:3, :3], back[:3, 3], tuple(size), order=1)
    moved += np.where(moved > 0, generator.normal(0, 3, moved.shape), 0)
    if seed % 3 == 2:
        body = np.argwhere(moved > 20)
        axis, low, high = int(generator.integers(3)), body.min(0), body.max(0)
        cut = [slice(None)] * 3
        lost = round(0.2 * (high[axis] - low[axis]))
        cut[axis] = slice(low[axis] + lost, None) if generator.random() < 0.5 else slice(0, high[axis] - lost)
        affine = affine.copy()
        affine[:3, 3] += affine[:3, axis] * (cut[axis].start or 0)
        moved = moved[tuple(cut)]
    reference = Nifti1Image(fixed.values().astype(np.float32), fixed.affine)
    return truth, reference, Nifti1Image(moved.clip(0).astype(np.float32), affine)


def disturbance(generator: np.random.Generator, fixed: Scan) -> NDArray:
    """A turn, a shift and a scale about the middle that move the brain by 4 to 40 mm on average."""
    kind, wanted = generator.normal(size=7), generator.uniform(4, 40)
    matrix = np.eye(4)
    for factor in np.geomspace(0.02, 10, 60):
        matrix = np.eye(4)
        matrix[:3, :3] = rotation(*(0.1 * factor * kind[:3])) * np.exp(0.03 * factor * kind[6])
        matrix[:3, 3] = fixed.grid.centre - matrix[:3, :3] @ fixed.grid.centre + 5 * factor * kind[3:6]
        if distance(fixed, matrix, np.eye(4)) > wanted:
            break
    return matrix


def distance(fixed: Scan, matrix: NDArray, truth: NDArray) -> float:
    """Mean distance in mm over the fixed image's foreground."""
    points = fixed.grid.points()[:, fixed.normalised[0, 0] > 0.1]
    return float((Affine(matrix).map(points) - Affine(truth).map(points)).norm(dim=0).mean())


def summarise(rows: list[dict[str, object]]) -> None:
    """Print the shares that matter."""
    for what in ("registered", "wrong"):
        some = [row for row in rows if row["what"] == what]
        if not some:
            continue
        errors = np.array([row["error"] for row in some], dtype=float)
        good = np.array([row["verdict"] == "good" for row in some])
        right = errors < 2
        seconds = np.array([row["seconds"] for row in some], dtype=float)
        counts = (
            f"{int(good[right].sum())} of {int(right.sum())} below 2 mm and {int(good[~right].sum())} of the others"
        )
        print(f"{what}: {len(some)}, {right.mean():.0%} below 2 mm, median {np.median(errors):.2f} mm")
        print(f"  {seconds.mean():.1f} s; called good: {counts}")


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
