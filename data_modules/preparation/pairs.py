"""Pairs of cases as a data set."""

from collections.abc import Sequence
from typing import cast

from torch.utils.data import Dataset

from data_modules.base import FILES, Sample, collate
from data_modules.layout import CasePair
from data_modules.preparation.subjects import Subjects
from dio_lightning.fields import on_one_grid


class PairList(Dataset):
    """Pairs made of subjects, on demand; for training the moving image is brought to the fixed grid."""

    def __init__(self, subjects: Subjects, pairs: Sequence[CasePair], training: bool) -> None:
        self.subjects, self.pairs, self.training = subjects, pairs, training

    def __len__(self) -> int:
        return len(self.pairs)

    def ids(self) -> list[tuple[str, str]]:
        """fixed_id and moving_id of every pair."""
        return [(fixed.id, moving.id) for fixed, moving in self.pairs]

    def __getitem__(self, index: int) -> Sample:
        sample = self.subjects.pair(*self.pairs[index])
        if not self.training:
            return sample
        if "moving_affine" in sample:
            sample = {key: cast(Sequence, value)[0] for key, value in on_one_grid(collate([sample])).items()}
        # on another grid it is the volume of no file any more, and all pairs of a batch have the same
        return {key: value for key, value in sample.items() if key not in FILES}
