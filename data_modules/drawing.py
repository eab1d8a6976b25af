"""Training pairs in an order, and with random changes, that depend on seed, epoch and place alone."""

import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Generator
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from data_modules.dealing import processes


def generator(*key: object) -> Generator:
    """A random stream that depends on the key alone: not on the process, the order of calls or the machine."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


@contextmanager
def drawn_from(*key: object) -> Iterator[None]:
    """The random states of torch (on the CPU), NumPy and Python, made from a key; as they were afterwards."""
    with isolate_rng(include_cuda=False):
        seed = generator(*key).initial_seed()
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        yield


class Draw(int):
    """An index, with the key (seed, epoch, place in the epoch) of what is random about the pair that it stands for."""

    key: tuple[int, int, int]

    def __new__(cls, index: int, key: tuple[int, int, int] = (0, 0, 0)) -> "Draw":
        """The index that is drawn at that place."""
        draw = super().__new__(cls, index)
        draw.key = key
        return draw


class Reproducible(Dataset):
    """A data set whose random changes depend on the `Draw` by which a pair is asked for, in whatever process.

    Any other index leaves the random states as they are.
    """

    def __init__(self, pairs: Dataset) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(cast(Sequence, self.pairs))

    def __getitem__(self, index: int) -> Any:  # noqa: ANN401
        if not isinstance(index, Draw):
            return self.pairs[index]
        with drawn_from("draw", *index.key):
            return self.pairs[int(index)]


class PairSampler(DistributedSampler):
    """Training indices of one epoch, a function of (seed, epoch): a resumed run draws what the first would have drawn.

    Every index comes once before any comes twice. Being a `DistributedSampler`, it is not wrapped again by Lightning,
    which calls `set_epoch`; the processes draw disjoint parts of the same order.
    """

    def __init__(
        self, dataset: Dataset, draws: int, seed: int = 0, replicas: int | None = None, rank: int | None = None
    ) -> None:
        """`draws` pairs per epoch and process; replicas and rank default to those of the process group."""
        world, place = processes()
        super().__init__(dataset, world if replicas is None else replicas, place if rank is None else rank, seed=seed)
        self.num_samples = draws
        self.total_size = draws * self.num_replicas
        self.first = 0

    def __iter__(self) -> Iterator[int]:
        """Indices of this process for the current epoch, from the `first` on."""
        size, stream = len(cast(Sequence, self.dataset)), generator("epoch", self.seed, self.epoch)
        rounds = -(-self.total_size // size)
        order = torch.cat([torch.randperm(size, generator=stream) for _ in range(rounds)]).tolist()
        places = range(self.rank, self.total_size, self.num_replicas)[self.first :]
        return iter([Draw(order[place], (self.seed, self.epoch, place)) for place in places])


class ResumableLoader(DataLoader):
    """Batches of a `PairSampler`, from the middle of an epoch where a checkpoint was saved there.

    Lightning keeps its state in every checkpoint.
    """

    _read = 0
    _resumed: dict[str, int] | None = None

    def __iter__(self) -> Iterator[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The batches that are left of the epoch."""
        # A generator: workers read indices ahead, and Lightning sets the epoch after it has asked for the iterator.
        sampler = self.sampler
        resumed, self._resumed, self._read = self._resumed, None, 0
        if isinstance(sampler, PairSampler):
            if resumed is not None and resumed["epoch"] == sampler.epoch:
                self._read = resumed["batches"]
            sampler.first = self._read * (self.batch_size or 1)
        for batch in super().__iter__():
            self._read += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The epoch, and how many of its batches were read."""
        return {"epoch": getattr(self.sampler, "epoch", 0), "batches": self._read}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Pass over the batches that were read, if it is still their epoch."""
        self._resumed = state
