"""Levels with a pair behind them, and displacements between voxels, in double precision."""

import pytest
import torch
from torch import Tensor

from dio_lightning.fields import blocks, gaussian_smooth
from dio_lightning.level import Level
from dio_lightning.pair import Pair

SIZES = {"2d": (13, 14), "3d": (9, 8, 10)}
every_size = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)


def smooth(batch: int, channels: int, *size: int, sigma: float = 1.2) -> Tensor:
    field = gaussian_smooth(torch.randn(batch, channels, *size, dtype=torch.float64), sigma)
    return field / field.std()


def pair_of(size: tuple[int, ...], batch: int = 2) -> Pair:
    """Images, labels 0 to 5 that depend on them, and landmarks inside."""
    images = [0.5 + 0.2 * smooth(batch, 1, *size) for _ in range(2)]
    labels = [(4 * image).clamp(0, 5).short() for image in images]
    last = torch.tensor(size, dtype=torch.float64).view(1, -1, 1) - 1
    points = [0.15 * last + 0.7 * last * torch.rand(batch, len(size), 6, dtype=torch.float64) for _ in range(2)]
    return Pair(
        fixed=images[0],
        moving=images[1],
        fixed_label=labels[0],
        moving_label=labels[1],
        fixed_points=points[0],
        moving_points=points[1],
    )


def level_of(size: tuple[int, ...], factor: int = 1, batch: int = 2) -> Level:
    """Random features on blocks of an image of this size, with its pair."""
    grid = blocks(size, factor)
    return Level(smooth(batch, 3, *grid.size), smooth(batch, 3, *grid.size), grid, pair_of(size, batch))


def between(level: Level) -> Tensor:
    """A displacement that leads nowhere near a whole voxel, where linear interpolation has a kink."""
    shape = (len(level.fixed), len(level.size), *level.size)
    return torch.randint(-1, 2, shape).double() + 0.2 + 0.6 * torch.rand(shape, dtype=torch.float64)
