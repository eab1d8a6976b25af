"""What a method compares: the channels of its features at every level, and their principal components."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from dio_lightning.fields import average_pool, regrid, spanning, warp
from dio_lightning.layers.optimizer import pyramid
from dio_lightning.modules import RegistrationModule
from dio_lightning.modules.iterative import IterativeModule
from dio_lightning.pair import Pair
from dio_lightning.pictures.planes import standing, turned
from dio_lightning.volume_files import grid_affine

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDES = ("fixed", "moving", "warped")
COMPONENTS = 3
"""Principal components that are shown, as red, green and blue."""


@dataclass(frozen=True, eq=False)
class FeatureMaps:
    """The features of one pair at one level, by `SIDES`; "warped" are the moving ones where the registration reads."""

    factor: int
    """Voxels of the image that a voxel of the level is wide, along the first axis."""
    images: dict[str, Float[Tensor, "1 1 *s"]]
    features: dict[str, Float[Tensor, "1 c *s"]]

    @property
    def distances(self) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
        """Mean squared difference to the fixed features before and after, over the variance of these, by channel."""
        fixed = self.features["fixed"][0].flatten(1)
        scale = fixed.var(1, correction=0).clamp_min(1e-12)
        before, after = (
            (self.features[side][0].flatten(1) - fixed).square().mean(1) / scale for side in ("moving", "warped")
        )
        return before, after

    @property
    def principal(self) -> tuple[dict[str, Float[Tensor, "1 k *s"]], Float[Tensor, " c"]]:
        """The first components of every side, and the share of the variance of each of all components.

        They are those of fixed and moving features together, c of them at most; of each the largest loading is
        positive.
        """
        both = torch.cat([self.features[side][0].flatten(1) for side in SIDES[:2]], 1).double()
        mean = both.mean(1, keepdim=True)
        centred = both - mean
        variances, axes = torch.linalg.eigh(centred @ centred.T / both.shape[1])
        variances, axes = variances.flip(0).clamp_min(0), axes.flip(1)
        largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
        axes = (axes * torch.where(largest < 0, -1.0, 1.0))[:, :COMPONENTS]
        shown = {}
        for side, x in self.features.items():
            projected = axes.T @ (x[0].flatten(1).double() - mean)
            shown[side] = projected.view(1, -1, *x.shape[2:]).float()
        return shown, variances / variances.sum().clamp_min(1e-300)


def feature_maps(module: RegistrationModule, pair: Pair) -> Iterator[FeatureMaps]:
    """The features of every level, coarse to fine, of a batch of one pair on one grid.

    Raises:
        ValueError: for a method that has no features.
    """
    if not isinstance(module, IterativeModule):
        raise ValueError(f"{module.title} compares no features, expected a method that iterates on them")
    work = module.work(pair)
    size = work["fixed"].shape[2:]
    with torch.no_grad():
        u = module.align(work, pair)[-1].value
        u = regrid(u, spanning(size, u.shape[2:]), spanning(size, size))
        for level in pyramid(*module.pyramids(work, pair), size, work):
            factor = round(level.place.step[0])
            on_level = regrid(u, spanning(size, size), level.place)
            features = {"fixed": level.fixed, "moving": level.moving, "warped": warp(level.moving, on_level)}
            images = {side: average_pool(work[side], factor) for side in ("fixed", "moving")}
            yield FeatureMaps(factor, {**images, "warped": warp(images["moving"], on_level)}, features)


def draw(maps: FeatureMaps, pair: Pair, axis: int = 1, channels: int = 8) -> "Figure":
    """Rows fixed, moving, warped; columns image, principal components as colours, and the first channels.

    Volumes are cut through the middle across an axis of the standing body, as `Panels` cuts them.
    """
    from matplotlib.figure import Figure

    components, shares = maps.principal
    count = min(channels, maps.features["fixed"].shape[1])
    figure = Figure(figsize=(1.6 * (2 + count), 5.4), layout="constrained")
    figure.suptitle(
        f"level {maps.factor}: the colours are {100 * float(shares[:COMPONENTS].sum()):.0f} % of the variance"
    )
    cuts = {side: [cut(x[side], pair, axis) for x in (maps.images, components, maps.features)] for side in SIDES}
    limits = [_limits(np.concatenate([cuts[side][kind] for side in SIDES[:2]], 1)) for kind in range(3)]
    for row, side in zip(figure.subplots(3, 2 + count, squeeze=False), SIDES, strict=True):
        image, colours, maps_ = ((x - low) / (high - low) for x, (low, high) in zip(cuts[side], limits, strict=True))
        rgb = np.zeros((3, *colours.shape[1:]))
        rgb[: len(colours)] = colours.clip(0, 1)
        shown = [(image[0], "image"), (rgb.transpose(2, 1, 0), "components"), *zip(maps_, map(str, range(count)))]
        for place, (ax, (picture, title)) in enumerate(zip(row, shown, strict=True)):
            ax.imshow(picture if place == 1 else picture.T, "gray", vmin=0, vmax=1, origin="lower")
            ax.set(xticks=[], yticks=[], title=title if side == "fixed" else "", ylabel="" if place else side)
    return figure


def cut(x: Float[Tensor, "1 c *s"], pair: Pair, axis: int) -> NDArray[np.float32]:
    """Channels (c, h, v) of a slice, h to the right and v upwards as the affine of the pair has it."""
    whole = turned(x[0].cpu(), standing(grid_affine(pair, 0), x.ndim - 2))
    return whole if x.ndim == 4 else whole.take(whole.shape[1 + axis] // 2, 1 + axis)


def _limits(x: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What is black and what is white of each channel (c, 1, 1): all but the lowest and the highest hundredth."""
    low, high = np.quantile(x.reshape(len(x), -1), [0.01, 0.99], axis=1)
    return low[:, None, None], np.where(high > low, high, low + 1)[:, None, None]
