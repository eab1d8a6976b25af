"""Pairs without files: each is drawn from its split, its index and a seed."""

from abc import abstractmethod

from torch import Tensor
from torch.utils.data import Dataset

from data_modules.base import PairDataModule, Sample, Split

KEPT = 2**28
"""Bytes of the pairs that a split keeps, in each process."""


class DrawnPairs(PairDataModule):
    """A number of pairs for every split, none of which is in two splits; a subclass draws one (`draw`).

    Raises:
        ValueError: if a split has no pair.
    """

    def __init__(
        self, counts: dict[Split, int], batch_size: int, num_workers: int, steps_per_epoch: int | None, seed: int
    ) -> None:
        super().__init__(batch_size, num_workers, steps_per_epoch, seed)
        for split, count in counts.items():
            if count < 1:
                raise ValueError(f"{split}_pairs is {count}, expected at least 1")
        self.counts = counts
        self._datasets: dict[Split, _Drawn] = {}

    @abstractmethod
    def draw(self, split: Split, index: int) -> Sample:
        """Pair `index` of a split, the same whenever it is asked for; ids apart."""

    def dataset(self, split: Split) -> Dataset:
        """Pairs of a split, each drawn when it is asked for, and kept while there is room."""
        return self._datasets.setdefault(split, _Drawn(self, split))


class _Drawn(Dataset):
    """The pairs of a split; those that are drawn first are kept, as many as `KEPT` holds."""

    def __init__(self, module: DrawnPairs, split: Split) -> None:
        self.module = module
        self.split: Split = split
        self._kept: dict[int, Sample] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return self.module.counts[self.split]

    def ids(self) -> list[tuple[str, str]]:
        """fixed_id and moving_id of every pair; none is drawn."""
        return [(f"{self.split}_{index:04d}_0000", f"{self.split}_{index:04d}_0001") for index in range(len(self))]

    def __getitem__(self, index: int) -> Sample:
        if index in self._kept:
            return self._kept[index]
        fixed_id, moving_id = self.ids()[index]
        sample = {**self.module.draw(self.split, int(index)), "fixed_id": fixed_id, "moving_id": moving_id}
        size = sum(value.nbytes for value in sample.values() if isinstance(value, Tensor))
        if self._bytes + size <= KEPT:
            self._kept[int(index)], self._bytes = sample, self._bytes + size
        return sample
