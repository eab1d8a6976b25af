"""Images of thick slices: `register` divides their voxels into cubes, unless there would be too many."""

import numpy as np
import pytest

from dio_lightning import register
from dio_lightning.registration import deformable
from dio_lightning.registration.deformable import MOST, local_correlation, longest_side


@pytest.mark.parametrize(
    ("size", "spacing", "longest"),
    [
        ((80, 96, 112), (2.0, 2.0, 2.0), None),
        ((80, 70, 112), (2.0, 2.9, 2.0), None),
        ((80, 32, 112), (2.0, 6.0, 2.0), 2.0),
        ((12, 80), (5.0, 0.5), 0.5),
        # a plane that was cut out of a volume has no thickness
        ((80, 1, 112), (2.0, 6.0, 2.0), None),
        ((1, 1), (1.0, 9.0), None),
    ],
)
def test_voxels_that_are_no_cubes_are_divided_by_the_shortest_side(size, spacing, longest) -> None:
    side = longest_side(size, spacing)
    assert side is None if longest is None else side == pytest.approx(longest)


def test_there_are_never_more_voxels_than_the_most_or_than_the_image_has() -> None:
    def count(size, spacing, side):
        return np.prod([n * max(1.0, s / side) for n, s in zip(size, spacing, strict=True)])

    size, spacing = (400, 400, 30), (0.5, 0.5, 5.0)
    side = longest_side(size, spacing)
    assert side is not None and 0.5 < side < 5.0
    assert 0.9 * MOST < count(size, spacing, side) <= MOST
    large = (600, 600, 60)
    side = longest_side(large, spacing)
    assert side is None or count(large, spacing, side) == np.prod(large)


def test_levels_are_those_of_the_voxels_that_are_worked_on() -> None:
    """Twelve slices are too few for a coarser level, the cubes that they are divided into are not."""
    assert local_correlation((40, 12, 40)).features.levels == (1,)
    assert local_correlation((40, 12, 40), (2.0, 6.0, 2.0)).features.levels == (4, 2, 1)


def blobs(size, spacing, bend: float) -> np.ndarray:
    """Smooth balls in a box, seen with voxels that are means over themselves, moved along the first axis by a wave."""
    fine = [round(n * s) for n, s in zip(size, spacing, strict=True)]
    x = np.stack(np.meshgrid(*[np.arange(n, dtype=float) for n in fine], indexing="ij"))
    x[0] += bend * np.sin(np.pi * x[1] / fine[1])
    values = np.zeros(fine)
    generator = np.random.default_rng(0)
    for _ in range(25):
        centre = generator.uniform(0.1, 0.9, len(size)) * fine
        square = ((x - centre.reshape(-1, *[1] * len(size))) ** 2).sum(0)
        values += generator.uniform(0.3, 1.0) * np.exp(-square / (2 * generator.uniform(2.0, 5.0) ** 2))
    for axis, s in enumerate(spacing):
        parts = values.shape[axis] // int(s)
        values = np.stack([part.mean(axis) for part in np.split(values, parts, axis)], axis)
    return values


def test_a_bend_is_recovered_better_where_slices_are_divided(monkeypatch) -> None:
    size, spacing = (48, 8, 40), (1.0, 6.0, 1.0)
    fixed, moving = blobs(size, spacing, 0.0), blobs(size, spacing, 3.0)
    affine = np.diag([*spacing, 1.0])

    def error() -> float:
        result = register(fixed, moving, fixed_affine=affine, moving_affine=affine, stages=("deformable",))
        axes = [np.arange(8.0, n - 8.0) for n in (48, 48, 40)]
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
        there = result.warp_points(grid)
        # slices of 6 mm: the middle of the first lies 2.5 mm beside the first of its six
        wanted = -3.0 * np.sin(np.pi * (grid[:, 1] + 2.5) / 48)
        return float(np.abs(there[:, 0] - grid[:, 0] - wanted).mean())

    divided = error()
    monkeypatch.setattr(deformable, "CUBIC", np.inf)
    assert divided < 0.7 * error()
