"""Rows of the table, and the clock."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from dio_lightning.fields import gaussian_smooth, warp
from dio_lightning.networks.blocks import channels_last

Size = tuple[int, ...]


class Row(NamedTuple):
    """One line of the table; None where a column was not measured."""

    name: str
    seconds: float | None = None
    ratio: float | None = None
    peak_mb: float | None = None


class Stopwatch(NamedTuple):
    """How functions are timed.

    Args:
        repetitions: of which the best counts.
        clock: `time.perf_counter`, or `time.process_time` (of all threads) on a machine that others keep busy.
    """

    repetitions: int
    clock: Callable[[], float]

    def best(self, functions: Mapping[str, Callable[[], object]]) -> dict[str, float]:
        """Shortest run of each in seconds: after one warm-up, A B A B, so that a slow minute meets all of them."""
        seconds = dict.fromkeys(functions, float("inf"))
        for repetition in range(self.repetitions + 1):
            for name, function in functions.items():
                start = self.clock()
                function()
                if repetition:
                    seconds[name] = min(seconds[name], self.clock() - start)
        return seconds


def shifted_features(size: Size, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Smooth random features (1, c, *s), channels-last: fixed, moving, and the u that warps moving onto fixed."""
    generator = torch.Generator().manual_seed(0)
    moving = gaussian_smooth(torch.randn(1, channels, *size, generator=generator), 2.0)
    moving /= moving.std()
    u = gaussian_smooth(torch.randn(1, len(size), *size, generator=generator), 3.0)
    u *= 2 / u.std()
    return channels_last(warp(moving, u)), channels_last(moving), u
