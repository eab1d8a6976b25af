"""The data module of image pairs: seeded loaders and the batch contract."""

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from data_modules.dealing import DealtBatches, processes
from data_modules.drawing import PairSampler, Reproducible, ResumableLoader
from dio_lightning.pair import Pair

Split = Literal["train", "val", "test"]
FILES = ("fixed_file", "moving_file")
"""Keys of a sample that name the files of its images."""
Sample = dict[str, Any]
"""One pair as in `Pair`, without the batch axis; ids are strings."""


def collate(samples: Sequence[Sample]) -> Pair:
    """Samples to one batch.

    A sample whose images lie on one grid has no `moving_affine`; beside one that has, its own is its `affine`.

    Raises:
        ValueError: if they differ in shape (another grid, another number of landmarks), or one has what another lacks.
    """
    if any("moving_affine" in sample for sample in samples):
        samples = [x | {"moving_affine": x.get("moving_affine", x["affine"])} if "affine" in x else x for x in samples]
    first, batch = samples[0], {}
    _check_alike(samples)
    for key in first:
        values = [sample[key] for sample in samples]
        if not isinstance(first[key], Tensor):
            batch[key] = values
            continue
        for sample, value in zip(samples, values, strict=True):
            if value.shape != first[key].shape:
                raise ValueError(
                    f"pairs {first['fixed_id']} and {sample['fixed_id']} cannot share a batch: {key} has shape "
                    f"{tuple(first[key].shape)} and {tuple(value.shape)}, expected one shape; set batch_size to 1"
                )
        batch[key] = torch.stack(values)
    return cast(Pair, batch)


def _check_alike(samples: Sequence[Sample]) -> None:
    """Raises ValueError if one has what another lacks: dropped, it would be missing in a loss or a score unseen."""
    for sample in samples[1:]:
        for one, other in ((samples[0], sample), (sample, samples[0])):
            if lacking := [key for key in one if key not in other]:
                has, lacks = (f"{pair.get('fixed_id')} with {pair.get('moving_id')}" for pair in (one, other))
                raise ValueError(
                    f"two pairs cannot share a batch: {has} has {lacking[0]} and {lacks} has none, expected it in both "
                    "or neither; set batch_size to 1"
                )


class PairDataModule(LightningDataModule):
    """Loaders of image pairs; subclasses say what the pairs of a split are (`dataset`).

    Training draws `steps_per_epoch` batches per process and epoch (default: `pairs_per_epoch` shared by the
    processes); validation, test and prediction read their list once, in order. Prediction reads the test pairs.
    What is random about a training pair depends on the seed, the epoch and the place in it alone, so that a run that
    is resumed, in the middle of an epoch too, or reads with another number of workers, trains with the same pairs.
    """

    def __init__(
        self, batch_size: int = 1, num_workers: int = 0, steps_per_epoch: int | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        # of more processes than pairs, some predict nothing
        self.allow_zero_length_dataloader_with_multiple_devices = True
        for name, value, least in [
            ("batch_size", batch_size, 1),
            ("num_workers", num_workers, 0),
            ("steps_per_epoch", steps_per_epoch, 1),
        ]:
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}, expected an integer of at least {least}")
        self.batch_size, self.num_workers = batch_size, num_workers
        self.steps_per_epoch, self.seed = steps_per_epoch, seed

    def dataset(self, split: Split) -> Dataset:
        """Map-style data set of `Sample`, one per pair."""
        raise NotImplementedError

    def pair_ids(self, split: Split) -> list[tuple[str, str]]:
        """fixed_id and moving_id of every pair of a split, the same in every process.

        A data set that has `ids()` knows them without reading images; of any other one, every sample is read.
        """
        dataset: Any = self.dataset(split)
        if hasattr(dataset, "ids"):
            return dataset.ids()
        samples = (dataset[index] for index in range(len(dataset)))
        return [(sample["fixed_id"], sample["moving_id"]) for sample in samples]

    def pairs_per_epoch(self) -> int:
        """Training pairs of one epoch when `steps_per_epoch` is not given."""
        return len(cast(Sequence, self.dataset("train")))

    @property
    def num_labels(self) -> int:
        """The largest label, background not counted; 0 without labels."""
        raise NotImplementedError

    @property
    def spatial_dims(self) -> int:
        """2 or 3."""
        raise NotImplementedError

    def train_dataloader(self) -> DataLoader:
        """Seeded random training pairs."""
        dataset = self.dataset("train")
        sampler = PairSampler(dataset, 1, self.seed)
        shared = -(-self.pairs_per_epoch() // sampler.num_replicas)
        draws = self.steps_per_epoch * self.batch_size if self.steps_per_epoch else shared
        return self._loader(Reproducible(dataset), PairSampler(dataset, draws, self.seed))

    def val_dataloader(self) -> DataLoader:
        """The validation pairs in order."""
        return self._in_order(self.dataset("val"))

    def test_dataloader(self) -> DataLoader:
        """The test pairs in order."""
        return self._in_order(self.dataset("test"))

    def predict_dataloader(self) -> DataLoader:
        """The test pairs in order."""
        return self._in_order(self.dataset("test"), even=False)

    def _in_order(self, dataset: Dataset, even: bool = True) -> DataLoader:
        """The batches of one process, dealt to all; none twice unless they must have as many."""
        several = processes()[0] > 1
        return self._loader(dataset, DealtBatches(dataset, self.batch_size, even) if several else None)

    def _loader(self, dataset: Dataset, sampler: DistributedSampler | None = None) -> DataLoader:
        kind = ResumableLoader if isinstance(sampler, PairSampler) else DataLoader
        return kind(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
            # seeds workers, from a state of its own: reading must not move the state that a training draws from
            generator=torch.Generator(),
        )
