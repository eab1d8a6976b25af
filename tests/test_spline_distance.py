"""The distance of features by splines, against SciPy's, and what it is for: an energy without kinks."""

import numpy as np
import torch
from levels import between, every_size, level_of
from scipy.ndimage import map_coordinates
from torch.testing import assert_close

from dio_lightning.fields import identity
from dio_lightning.losses import FeatureDistance, SplineDistance


@every_size
def test_the_distance_of_splines_is_that_of_scipys_and_has_no_kinks(size) -> None:
    level = level_of(size)
    u = between(level)
    still, warped = ((identity(size, u) + v).numpy() for v in (torch.zeros_like(u), u))

    def splines(features: torch.Tensor, points: np.ndarray) -> torch.Tensor:
        options = {"order": 3, "mode": "nearest", "prefilter": False}
        rows = [[map_coordinates(c.numpy(), points[i], **options) for c in features[i]] for i in range(2)]
        return torch.from_numpy(np.array(rows))

    fixed, moving = splines(level.fixed, still.repeat(2, 0)), splines(level.moving, warped)
    scale = fixed.flatten(2).var(2).mean(1)
    assert_close(SplineDistance().value(level, u), (moving - fixed).square().flatten(1).mean(1) / scale)
    whole, h = torch.ones_like(u), 1e-6
    jumps = [
        (term.slope(level, whole + h)[1] - term.slope(level, whole - h)[1]).abs().amax()
        for term in (SplineDistance(), FeatureDistance())
    ]
    assert jumps[0] < 1e-3 < jumps[1]
