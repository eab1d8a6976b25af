"""One list of scored pairs out of several processes: the list that one process would have made.

Rows are gathered whole, with the index of their pair in the data set. torchmetrics reduces states over processes, and a
pair that a distributed sampler dealt to two of them, to make their numbers equal, would count twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch.utils.data import DataLoader, DistributedSampler

from dio_lightning.pair import Pair
from dio_lightning.processes import of_all
from dio_lightning.scores.rows import Row


@dataclass(frozen=True, order=True)
class Key:
    """Which pair a row is about: loader, index in its data set, ids of the images."""

    loader: int
    index: int
    fixed_id: str
    moving_id: str


@dataclass(frozen=True)
class Scored:
    """The row of a pair and the rows of its labels."""

    key: Key
    row: Row
    labels: list[Row]


def dataset_index(loader: object, position: int) -> int:
    """Index in the data set of the position-th pair that this process reads from a loader.

    A distributed sampler deals indices to the processes and repeats some to make their numbers equal; any other sampler
    is taken to run through the data set in order.
    """
    sampler = loader.sampler if isinstance(loader, DataLoader) else None
    if not isinstance(sampler, DistributedSampler):
        return position
    return list(sampler)[position]


def next_key(loaders: object, loader: int, pair: Pair, scored: Sequence[Scored]) -> Key:
    """The key of the pair (a batch of one) that comes after those scored; pairs without ids go by their index."""
    source = loaders[loader] if isinstance(loaders, list | tuple) else loaders
    index = dataset_index(source, sum(one.key.loader == loader for one in scored))
    fixed, moving = (str(pair.get(name, [index])[0]) for name in ("fixed_id", "moving_id"))
    return Key(loader, index, fixed, moving)


def gather(scored: list[Scored]) -> list[Scored]:
    """The scored pairs of all processes, on every process, sorted; a pair that was read twice is kept once."""
    return merge(of_all(scored))


def merge(parts: list[list[Scored]]) -> list[Scored]:
    """The union of several lists of scored pairs, sorted by key, the first of equal keys kept."""
    first: dict[Key, Scored] = {}
    for pair in (pair for part in parts for pair in part):
        first.setdefault(pair.key, pair)
    return [first[key] for key in sorted(first)]
