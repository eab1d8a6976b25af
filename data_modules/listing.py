"""Which cases and pairs a data set on disk has, before any of them is read."""

from functools import cached_property
from itertools import pairwise, permutations
from pathlib import Path
from typing import Literal

from data_modules.base import PairDataModule, Split
from data_modules.checking.findings import Findings
from data_modules.checking.splits import check_layout
from data_modules.layout import CasePair, Layout
from data_modules.preparation.labels import Labels, chosen_labels


class ListedPairs(PairDataModule):
    """Cases, splits and pairs of a folder, and the names of its labels; a subclass says how they are listed."""

    root: Path
    pairing: Literal["random", "ordered", "all"]
    labels: Labels

    @property
    def layout(self) -> Layout:
        """Cases and pairs, read once.

        Raises:
            FileNotFoundError, ValueError: if they are not as expected.
        """
        layout, findings = self._listed
        findings.stop()
        return layout

    @cached_property
    def _listed(self) -> tuple[Layout, Findings]:
        layout, findings = self.read_layout(), Findings()
        check_layout(self.source, layout, findings)
        return layout, findings

    @property
    def source(self) -> Path:
        """The folder or file that says which cases there are."""
        return self.root

    def read_layout(self) -> Layout:
        """Which files belong to a case, and which cases make a pair.

        Raises:
            FileNotFoundError, ValueError: naming the folder, file or key that is not as expected.
        """
        raise NotImplementedError

    @cached_property
    def chosen(self) -> dict[int, int] | None:
        """Labels of the files that are kept, with the number that each gets; None keeps all.

        Raises:
            ValueError: if the data set has no such label.
        """
        return chosen_labels(self.labels, self.layout.label_names)

    def pairs(self, split: Split) -> list[CasePair]:
        """Fixed and moving case of every pair of a split.

        Raises:
            ValueError: if the folder has none.
        """
        layout = self.layout
        listed = layout.pairs(split)
        if split == "train" and not listed:
            listed = list(pairwise(layout.cases) if self.pairing == "ordered" else permutations(layout.cases, 2))
        if not listed:
            raise ValueError(f"{self.source} has no {split} pairs, expected them listed or at least two free images")
        return listed

    def pairs_per_epoch(self) -> int:
        """Listed pairs, training cases or candidate pairs: see `pairing`."""
        unpaired = not self.layout.train and self.pairing == "random"
        return len(self.layout.cases) if unpaired else len(self.pairs("train"))
