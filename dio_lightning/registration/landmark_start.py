"""A start for rigid and affine stages from landmarks: the turn and shift that bring them closest."""

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from dio_lightning.registration.grids import body_axes
from dio_lightning.transforms import ImageGrid

FLAT = 1e-3
"""Share of the largest extent of landmarks below which they have none."""


def rigid_fit(points: Float[Tensor, "3 n"], onto: Float[Tensor, "3 n"], grid: ImageGrid) -> NDArray[np.float64] | None:
    """The rigid matrix (4, 4) with the least Σ_j ‖M p_j - q_j‖² (Kabsch, Acta Cryst. A32, 1976).

    Args:
        points: p, landmarks of the fixed world, RAS millimetres.
        onto: q, the same landmarks of the moving world.
        grid: the fixed image's; on a plane, a turn is one about its normal.

    Returns:
        None where the landmarks do not say it: fewer than three, or all on a line; in two dimensions fewer than two.
    """
    axes, d = body_axes(grid)[0], len(grid.size)
    p, q = (axes[:, :d].T @ x.double().numpy() for x in (points, onto))
    centres = [x.mean(1, keepdims=True) for x in (p, q)]
    spread = [np.linalg.svd(x - c, compute_uv=False) for x, c in zip((p, q), centres, strict=True)]
    if any(len(s) < d - 1 or s[d - 2] <= FLAT * max(s[0], FLAT) for s in spread):
        return None
    left, _, right = np.linalg.svd((q - centres[1]) @ (p - centres[0]).T)
    proper = np.ones(d)
    proper[-1] = np.sign(np.linalg.det(left @ right))
    turn = np.eye(3)
    turn[:d, :d] = left * proper @ right
    matrix = np.eye(4)
    matrix[:3, :3] = axes @ turn @ axes.T
    middle = [x.double().mean(1).numpy() for x in (points, onto)]
    matrix[:3, 3] = middle[1] - matrix[:3, :3] @ middle[0]
    return matrix
