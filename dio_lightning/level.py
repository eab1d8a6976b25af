"""What an update is given: two images, or their features, at one level of a pyramid."""

from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from dio_lightning.fields import Grid, average_pool, seen_from, spanning
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

    @property
    def images(self) -> tuple[Float[Tensor, "b c *s"], Float[Tensor, "b c *s"]]:
        """Fixed and moving image of the pair on this grid; the features where there is no pair."""
        if self.pair is None:
            return self.fixed, self.moving
        return self.carried(self.pair["fixed"]), self.carried(self.pair["moving"])

    @property
    def agreeing(self) -> "Level":
        """The same level of a pair whose moving image is the fixed one."""
        pair = self.pair if self.pair is None else Pair(fixed=self.pair["fixed"], moving=self.pair["fixed"])
        return replace(self, moving=self.fixed, pair=pair)

    def carried(self, image: Float[Tensor, "b c *t"]) -> Float[Tensor, "b c *s"]:
        """An image on the grid of the pair's, brought to this one: block means, or smoothed and resampled."""
        place, old = self.place, image.shape[2:]
        if place == spanning(old, old):
            return image
        widths = [round(step) for step in place.step]
        size = tuple(-(-extent // width) for extent, width in zip(old, widths, strict=True))
        if place == Grid(size, tuple(map(float, widths)), tuple((width - 1) / 2 for width in widths)):
            return average_pool(image, widths)
        return seen_from(image, place.matrix().to(image.device)[None], place.size, padding="border")

    def located(self, points: Float[Tensor, "b d n"]) -> Float[Tensor, "b d n"]:
        """Points in voxels of the pair's images as points in voxels of this grid."""
        start, step = (points.new_tensor(x)[:, None] for x in (self.place.start, self.place.step))
        return (points - start) / step
