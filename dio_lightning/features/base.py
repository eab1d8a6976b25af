"""What every feature pyramid shares: its levels, and the size and memory format of its output."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from dio_lightning.fields import Grid, average_pool, blocks
from dio_lightning.networks.blocks import channels_last
from dio_lightning.pair import expect_batch

__all__ = ["FeaturePyramid", "average_pool"]


class FeaturePyramid(nn.Module, ABC):
    """Features of one image at several levels; fixed and moving images go through the same weights.

    Images of any size are taken: every halving rounds up, a last odd voxel is a block of its own.

    Args:
        levels: down-sampling factors, powers of two from coarse to fine, such as (4, 2, 1).
        channels: feature channels, the same at every level.

    Raises:
        ValueError: if levels are empty, not powers of two, or not from coarse to fine.
    """

    def __init__(self, levels: Sequence[int], channels: int) -> None:
        super().__init__()
        falling = all(a > b for a, b in pairwise(levels))
        if not levels or not falling or any(n < 1 or n & (n - 1) for n in levels):
            raise ValueError(f"levels must be powers of two from coarse to fine, such as (4, 2, 1), not {levels}.")
        self.levels, self.channels = tuple(levels), channels

    def __call__(self, image: object, levels: Sequence[int] | None = None) -> list[Tensor]:
        """See `forward`.

        Raises:
            ValueError: if the image is no tensor with a batch and a channel axis, or a level is not the pyramid's.
        """
        return super().__call__(expect_batch(image, "the image"), levels)

    def forward(
        self, image: Float[Tensor, "b c *s"], levels: Sequence[int] | None = None
    ) -> list[Float[Tensor, "b k *_"]]:
        """Features (b, channels, *ceil(s / level)) of the asked levels, coarse to fine, float32, channels-last.

        Only what the asked levels (default: all) need is computed.

        Raises:
            ValueError: if a level is asked that this pyramid does not have.
        """
        return [channels_last(x.float()) for x in self.extract(image, self._asked(levels))]

    def grids(self, size: Sequence[int], levels: Sequence[int] | None = None) -> list[Grid]:
        """Where the voxels of the features of an image of this size lie, for the asked levels, coarse to fine.

        Raises:
            ValueError: if a level is asked that this pyramid does not have.
        """
        return [blocks(size, level) for level in self._asked(levels)]

    @abstractmethod
    def extract(self, image: Tensor, levels: tuple[int, ...]) -> list[Tensor]:
        """Features of the image at these levels, which are checked and go from coarse to fine."""

    def _asked(self, levels: Sequence[int] | None) -> tuple[int, ...]:
        asked = self.levels if levels is None else tuple(sorted(levels, reverse=True))
        if not asked or not set(asked) <= set(self.levels):
            raise ValueError(f"levels must be among {self.levels}, not {asked}.")
        return asked


def one_channel(image: Tensor, pyramid: FeaturePyramid) -> Tensor:
    """The image in float32.

    Raises:
        ValueError: if it has more than one channel.
    """
    if image.shape[1] != 1:
        raise ValueError(f"{type(pyramid).__name__} describes images of one channel, not {image.shape[1]}.")
    return image.float()
