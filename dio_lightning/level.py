"""What an update is given: two images, or their features, at one level of a pyramid."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from dio_lightning.fields import Grid, spanning
from dio_lightning.pair import Pair


@dataclass(frozen=True, eq=False)
class Level:
    """Two feature maps on one grid, where that grid lies, and the pair that they were taken from.

    Args:
        fixed: features (b, c, *s) of the fixed image, or the image itself.
        moving: those of the moving image, on the same grid.
        grid: where the voxels lie in the image of the pair; by default the features are a whole image of their own.
        pair: the images, labels and landmarks on the grid of the image, both sides of it; None: features are all.
        index: the level's place in its pyramid, coarse to fine, from 0.
    """

    fixed: Float[Tensor, "b c *s"]
    moving: Float[Tensor, "b c *s"]
    grid: Grid | None = None
    pair: Pair | None = None
    index: int = 0

    @property
    def size(self) -> tuple[int, ...]:
        """Voxels along each axis."""
        return tuple(self.fixed.shape[2:])

    @property
    def place(self) -> Grid:
        """Where the voxels lie in the image."""
        return spanning(self.size, self.size) if self.grid is None else self.grid
