"""Pairs of cases as a data set."""

from collections.abc import Sequence
from typing import cast

from torch.utils.data import Dataset

from data_modules.base import Sample, collate
from data_modules.layout import CasePair
from data_modules.preparation.subjects import Subjects
from dio_lightning.fields import on_one_grid


class PairList(Dataset):
    """Pairs made of subjects, on demand; with `common` the moving image is brought to the fixed grid."""

    def __init__(self, subjects: Subjects, pairs: Sequence[CasePair], common: bool) -> None:
        self.subjects, self.pairs, self.common = subjects, pairs, common

    def __len__(self) -> int:
        return len(self.pairs)

    def ids(self) -> list[tuple[str, str]]:
        """fixed_id and moving_id of every pair."""
        return [(fixed.id, moving.id) for fixed, moving in self.pairs]

    def __getitem__(self, index: int) -> Sample:
        sample = self.subjects.pair(*self.pairs[index])
        if not self.common or "moving_affine" not in sample:
            return sample
        common = {key: cast(Sequence, value)[0] for key, value in on_one_grid(collate([sample])).items()}
        # on the fixed grid it is the volume of no file any more
        common.pop("moving_file", None)
        return common
