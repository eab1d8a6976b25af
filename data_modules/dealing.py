"""The batches of one process, dealt to several: each is the batch that one process would have read."""

from collections.abc import Iterator, Sequence
from typing import cast

from torch import distributed
from torch.utils.data import Dataset, DistributedSampler


def processes() -> tuple[int, int]:
    """How many processes there are, and which of them this is."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 1, 0
    return distributed.get_world_size(), distributed.get_rank()


class DealtBatches(DistributedSampler):
    """Indices of a data set in order, batch by batch in turn to the processes.

    Being a `DistributedSampler`, it is not replaced by Lightning's, which deals index by index: batches would be others
    than those of one process.

    Args:
        dataset: map-style.
        batch_size: of the loader.
        even: every process reads as many batches, as collective steps demand it: where some would have one less, they
            read the first one again (`dio_lightning.processes.reads_again`). Otherwise none is read twice, and some
            processes may have none.
        replicas: by default the number of processes.
        rank: by default that of this process.
    """

    def __init__(
        self, dataset: Dataset, batch_size: int, even: bool, replicas: int | None = None, rank: int | None = None
    ) -> None:
        world, place = processes()
        super().__init__(
            dataset, world if replicas is None else replicas, place if rank is None else rank, shuffle=False
        )
        self.batch_size, self.even = batch_size, even
        self.num_samples = len(self._indices())

    def __iter__(self) -> Iterator[int]:
        """Indices of this process."""
        return iter(self._indices())

    def _indices(self) -> list[int]:
        size = len(cast(Sequence, self.dataset))
        batches = [range(first, min(first + self.batch_size, size)) for first in range(0, size, self.batch_size)]
        own = batches[self.rank :: self.num_replicas]
        if self.even and batches and len(own) < -(-len(batches) // self.num_replicas):
            own = [*own, batches[0]]
        return [index for batch in own for index in batch]
