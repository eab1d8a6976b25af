"""The picture that `register` leaves: a slice of both images, before and after."""

from pathlib import Path

import numpy as np
import torch

from dio_lightning.pair import Pair
from dio_lightning.pictures import cut
from dio_lightning.pictures import draw as drawn
from dio_lightning.registration.grids import seen_at
from dio_lightning.registration.scan import Scan
from dio_lightning.transforms import Transform


def draw(path: Path, fixed: Scan, moving: Scan, transform: Transform) -> None:
    """Write the panels of a test for one pair; the moving image is shown where its header places it."""
    image = seen_at(moving.normalised, moving.grid, np.eye(4)[None], fixed.grid)
    affine = torch.from_numpy(fixed.grid.affine)[None]
    u = transform.on_grid(fixed.grid.size, fixed.grid.affine).float()
    pair = Pair(fixed=fixed.normalised, moving=image, affine=affine)
    figure = drawn(cut(pair, u, 0, 1), f"{Path(moving.name).name} onto {Path(fixed.name).name}")
    figure.savefig(path, dpi=110)
