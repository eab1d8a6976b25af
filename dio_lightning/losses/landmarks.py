"""Distance of mapped landmarks."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from dio_lightning.fields import sample
from dio_lightning.pair import full_precision, to_mm

Unit = Literal["mm", "voxels"]
SMOOTHING = 1e-3
"""Distance, in the unit, within which the loss is a parabola instead of a cone."""


class Landmarks(nn.Module):
    """Mean over landmarks and batch of √(‖p + u(p) - q‖² + δ²) - δ, δ = 0.001: the target registration error, smooth.

    p is a fixed landmark, q its moving one, u(p) is interpolated linearly with the border repeated.

    Args:
        unit: "mm", or "voxels" of the grid of u, where a coarse level weighs less in millimetres.

    Raises:
        ValueError: for any other unit.
    """

    def __init__(self, unit: Unit = "mm") -> None:
        super().__init__()
        if unit not in ("mm", "voxels"):
            raise ValueError(f'unit must be "mm" or "voxels", not {unit!r}.')
        self.unit: Unit = unit

    def forward(
        self,
        u: Float[Tensor, "b d *s"],
        fixed_points: Float[Tensor, "b d n"],
        moving_points: Float[Tensor, "b d m"],
        spacing: Float[Tensor, "b d"] | Float[Tensor, "b 4 4"] | None = None,
    ) -> Float[Tensor, ""]:
        """Scalar distance; u and points in voxels of the grid of u, spacing in mm of that grid, or its affine.

        Raises:
            ValueError: if there are no landmarks, their numbers differ, or the unit is mm and there is no spacing.
        """
        if fixed_points.shape != moving_points.shape or not fixed_points.numel():
            raise ValueError(
                f"the landmark term got {fixed_points.shape[-1]} fixed and {moving_points.shape[-1]} moving "
                "landmarks, expected as many of each and at least one."
            )
        u = full_precision(u)
        p, q = fixed_points.to(u), moving_points.to(u)
        error = p + sample(u, p) - q
        if self.unit == "mm":
            if spacing is None:
                raise ValueError('the landmark term measures in "mm", but the pair has no spacing: use unit "voxels".')
            error = to_mm(error, spacing)
        return ((error.square().sum(1) + SMOOTHING**2).sqrt() - SMOOTHING).mean()
