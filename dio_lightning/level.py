"""What an update is given: two images, or their features, at one level of a pyramid."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dio_lightning.fields import Grid, average_pool, identity, sample, seen_from, spanning
from dio_lightning.pair import Pair

WHOLE = 1 - 1e-4
"""Share of what a value was averaged or interpolated from that counts as all of it."""

EDGE = 1e-3
"""Voxels beside a whole one within which a slope may be that of either cell."""


class Masks(NamedTuple):
    """Where two images count, (b, 1, *s) bool on one grid.

    A value that was averaged or interpolated from any voxel that is left out is left out itself.
    """

    fixed: Bool[Tensor, "b 1 *s"]
    moving: Bool[Tensor, "b 1 *s"]

    def weights(self, u: Float[Tensor, "b d *s"]) -> Float[Tensor, "b 1 *s"]:
        """1 where x counts in the fixed image and x + u(x) in the moving one, else 0; no function of u to autograd.

        It is no part of a slope: voxels would be pushed out of a mask, where nothing has to agree. In the moving image
        all corners of the cell have to count, and those of both cells at a whole voxel, whose slopes look at them.
        """
        cells = self.moving
        for axis in range(2, cells.ndim):
            beyond = torch.cat([cells.narrow(axis, 1, cells.shape[axis] - 1), cells.narrow(axis, -1, 1)], axis)
            cells = cells & beyond
        points = identity(u.shape[2:], u) + u.detach()
        below, above = (sample(cells, (points + side).floor(), "nearest") for side in (-EDGE, EDGE))
        return (self.fixed & below & above).to(u)


@dataclass(frozen=True, eq=False)
class Level:
    """Two feature maps on one grid, where that grid lies, and the pair that they were taken from.

    Args:
        fixed: features (b, c, *s) of the fixed image, or the image itself.
        moving: those of the moving image, on the same grid.
        grid: where the voxels lie in the image of the pair; by default the features are a whole image of their own.
        pair: the images, labels and landmarks on the grid of the image, both sides of it; None: features are all.
        index: the level's place in its pyramid, coarse to fine, from 0.
        masked: whether comparisons leave out what the pair's masks do not hold.
    """

    fixed: Float[Tensor, "b c *s"]
    moving: Float[Tensor, "b c *s"]
    grid: Grid | None = None
    pair: Pair | None = None
    index: int = 0
    masked: bool = False

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
        """The same level of a pair whose moving image is the fixed one; what either mask leaves out both leave out."""
        if self.pair is None:
            return replace(self, moving=self.fixed)
        pair = Pair(fixed=self.pair["fixed"], moving=self.pair["fixed"])
        masks = [mask > 0 for mask in (self.pair.get("fixed_mask"), self.pair.get("moving_mask")) if mask is not None]
        if masks:
            pair["fixed_mask"] = pair["moving_mask"] = torch.stack(masks).all(0)
        return replace(self, moving=self.fixed, pair=pair)

    @property
    def masks(self) -> "Masks | None":
        """Which voxels of this grid count in a comparison; None: all of them.

        Raises:
            ValueError: if the level is masked, but its pair has no mask.
        """
        if not self.masked:
            return None
        fixed, moving = (None if self.pair is None else self.pair.get(f"{side}_mask") for side in ("fixed", "moving"))
        given = fixed if fixed is not None else moving
        if given is None:
            raise ValueError("a masked update needs a fixed_mask or a moving_mask, which the pair does not have")
        masks = (torch.ones_like(given) if mask is None else mask > 0 for mask in (fixed, moving))
        return Masks(*(self.carried(mask.to(self.fixed)) >= WHOLE for mask in masks))

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
