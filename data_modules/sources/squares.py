"""Bright squares on a dark ground: the toy problem on which features show what they are for."""

from collections.abc import Sequence

import torch
from torch import Tensor

from data_modules.base import Sample, Split
from data_modules.drawing import generator
from data_modules.sources.drawn import DrawnPairs


class Squares(DrawnPairs):
    """One square, or cube, in each image, of equal size, at two places: half of the pairs do not overlap.

    The toy experiment of DIO (Jena et al., 2024), smaller. Where the squares overlap, the difference of intensities
    says where to go; where they do not, it is the same wherever the moving one lies, and only features whose support
    is wider than the square's can tell. Pairs of even index overlap (their centres differ by less than half an edge
    along every axis), those of odd index do not (by more than an edge along at least one). The truth is a translation,
    `displacement`. Both squares lie in the middle half of the grid, so that none leaves it.

    Args:
        size: The grid: two or three extents, each at least six edges.
        side: The square's edge in voxels.
        train_pairs: Training pairs; likewise `val_pairs`, `test_pairs`.
        seed: Pair i of a split depends on (seed, split, i) and the arguments above alone.
        batch_size: Pairs per batch.
        num_workers: Loader processes.
        steps_per_epoch: Training batches per epoch and process; default: every training pair once.

    Raises:
        ValueError: for arguments out of range.
    """

    def __init__(
        self,
        size: Sequence[int] = (96, 96),
        side: int = 16,
        train_pairs: int = 1024,
        val_pairs: int = 16,
        test_pairs: int = 64,
        seed: int = 0,
        batch_size: int = 1,
        num_workers: int = 0,
        steps_per_epoch: int | None = None,
    ) -> None:
        counts: dict[Split, int] = {"train": train_pairs, "val": val_pairs, "test": test_pairs}
        super().__init__(counts, batch_size, num_workers, steps_per_epoch, seed)
        if side < 2 or len(size) not in (2, 3) or min(size) < 6 * side:
            raise ValueError(
                f"size is {tuple(size)} and side {side}, expected a side of at least 2 voxels and two or three extents "
                "of at least six sides"
            )
        self.size, self.side = tuple(size), side

    @property
    def num_labels(self) -> int:
        """1, the square."""
        return 1

    @property
    def spatial_dims(self) -> int:
        """2 or 3."""
        return len(self.size)

    def draw(self, split: Split, index: int) -> Sample:
        """Pair `index` of a split; see `DrawnPairs`."""
        stream = generator("squares", self.seed, split, index)
        fixed = self._corner(stream)
        while not self._wanted(moving := self._corner(stream), fixed, overlap=index % 2 == 0):
            pass
        labels = [self._square(corner) for corner in (fixed, moving)]
        u = (moving - fixed).float().view(-1, *[1] * self.spatial_dims).expand(-1, *self.size).contiguous()
        return {
            "fixed": labels[0].float(),
            "moving": labels[1].float(),
            "fixed_label": labels[0],
            "moving_label": labels[1],
            "spacing": torch.ones(self.spatial_dims),
            "affine": torch.eye(4, dtype=torch.float64),
            "displacement": u,
        }

    def _corner(self, stream: torch.Generator) -> Tensor:
        """The first voxel of a square (d,) in the middle half of the grid."""
        places = [
            torch.randint(extent // 4, extent - extent // 4 - self.side + 1, (), generator=stream)
            for extent in self.size
        ]
        return torch.stack(places)

    def _wanted(self, moving: Tensor, fixed: Tensor, overlap: bool) -> bool:
        """Whether two corners lie as an overlapping pair's do, or as those of a pair that does not overlap."""
        apart = (moving - fixed).abs().max()
        return bool(2 * apart < self.side if overlap else apart > self.side)

    def _square(self, corner: Tensor) -> Tensor:
        """The square from this corner, (1, *size) int16."""
        label = torch.zeros(1, *self.size, dtype=torch.int16)
        label[(0, *(slice(at, at + self.side) for at in corner.tolist()))] = 1
        return label
