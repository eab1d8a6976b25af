"""A pair and a displacement of it, with what several scores need of them."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from dio_lightning.fields import on_moving_grid
from dio_lightning.metrics import Regularity, dice_per_label, hausdorff_per_label, label_sizes, regularity, warp_label
from dio_lightning.metrics.landmarks import Order
from dio_lightning.metrics.overlap import LabelMode
from dio_lightning.pair import Pair, in_mm

BORDER = 2


@dataclass(frozen=True)
class ScoreOptions:
    """How a pair is scored; the meaning of each is in `callbacks.RegistrationScores`."""

    dice: LabelMode = "nearest"
    surface: bool = True
    landmarks_order: Order = 3
    unit_spacing: bool = False
    masked: bool = False
    min_voxels: int = 1

    @property
    def units(self) -> dict[str, str]:
        """Units of scores, where they are others than the vocabulary's."""
        return dict.fromkeys(("hd95", "hd"), "voxels") if self.unit_spacing else {}


@dataclass(frozen=True)
class Registered:
    """A batch of one and its displacement (1, d, *s) in voxels of the fixed grid; what scores share is made once."""

    u: Float[Tensor, "1 d *s"]
    pair: Pair
    options: ScoreOptions

    def side(self, key: str) -> Tensor:
        """What the pair holds under a key that a score needs."""
        return self.pair[key]  # pyright: ignore[reportTypedDictNotRequiredAccess, reportGeneralTypeIssues]

    def warp(self, label: Shaped[Tensor, "1 1 *t"]) -> Shaped[Tensor, "1 1 *s"]:
        """A label map of the moving grid, warped as the options say."""
        return warp_label(label, self.on_moving_grid, self.options.dice)

    @cached_property
    def on_moving_grid(self) -> Float[Tensor, "1 d *s"]:
        """The displacement in voxels of the moving grid, so that labels are interpolated once, on their own grid."""
        return on_moving_grid(self.u, self.pair)

    @cached_property
    def in_mm(self) -> Tensor:
        """What turns voxels into mm: the affine (1, 4, 4), or the spacing (1, d)."""
        return in_mm(self.pair, self.u)

    @cached_property
    def warped(self) -> Shaped[Tensor, "1 1 *s"]:
        """The moving labels on the fixed grid."""
        return self.warp(self.side("moving_label"))

    @cached_property
    def labels(self) -> list[int]:
        """Labels that count: `min_voxels` of them in both maps, before the warp."""
        maps = self.side("fixed_label"), self.side("moving_label")
        largest = max(int(maps[0].max()), int(maps[1].max()), 0)
        smaller = torch.minimum(*(label_sizes(one, largest) for one in maps))[0]
        return ((smaller >= self.options.min_voxels).nonzero().flatten() + 1).tolist()

    @cached_property
    def dice(self) -> Float[Tensor, " n"]:
        """Dice of the labels that count."""
        largest = max(self.labels, default=0)
        dice = dice_per_label(self.side("fixed_label"), self.warped, self.side("moving_label"), largest)[0]
        return dice[[label - 1 for label in self.labels]]

    @cached_property
    def surfaces(self) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """HD95 and HD of the labels that count, in mm; NaN where the warp lost one."""
        unit = self.in_mm.new_ones(1, self.u.shape[1]) if self.options.unit_spacing else self.in_mm
        near, far = hausdorff_per_label(self.side("fixed_label"), self.warped, unit, self.labels)
        return near[0], far[0]

    @cached_property
    def regularity(self) -> Regularity | None:
        """Folds and spread of the Jacobian without the border; None where the image is nothing but border.

        An axis too short for a border keeps at least its middle.
        """
        size = self.u.shape[2:]
        if max(size) <= 2 * BORDER:
            return None
        borders = [min(BORDER, (extent - 1) // 2) for extent in size]
        return regularity(self.u, borders, self.pair.get("fixed_mask") if self.options.masked else None)
