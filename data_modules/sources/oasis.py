"""OASIS of Learn2Reg: brains of different people."""

from itertools import pairwise
from typing import Any, Literal

from data_modules.layout import CasePair, Layout, without
from data_modules.preparation.transforms import Normalise
from data_modules.sources.folder import VAL, Folder, check_split
from data_modules.sources.learn2reg import Learn2Reg

PAPER = (300, 30, 84)
CHALLENGE = 20
"""Subjects of the challenge's validation pairs: the last ones."""


class OASIS(Learn2Reg):
    """Inter-subject pairs of Learn2Reg's OASIS folder: 414 brains, 160x224x192 voxels of 1 mm, 35 labels.

    Train, validation and test of `paper` are subjects 1-300, 301-330 and 331-414 in the order of their ids, in random
    ordered pairs for training and in pairs of consecutive subjects for validation and test. DEQReg's paper gives the
    three numbers, but neither order nor seed nor pairs: the rest is ours. `challenge` validates and tests on the JSON's
    `registration_val` (0395 fixed with 0396 moving, ..., 0413 with 0414: 19 pairs) and trains on all other subjects
    (394), as DIO does; without that key the pairs are those of the last 20 subjects.

    Labels are `all` 35, a list, or by `min_voxels` those of a certain size: 100 voxels gave VoxelMorph's authors 30.

    Args:
        root: The folder with imagesTr, labelsTr, masksTr and, if it is there, OASIS_dataset.json.
        json: Name of the dataset JSON, if there are several.
        test_split: Key of the test and prediction pairs in the JSON, of `challenge` alone; `registration_test` has no
            labels.
        split: `paper` (300 / 30 / 84 subjects) or `challenge` (394 subjects / 19 pairs).
        split_sizes: Subjects for train, validation and test of `paper` in a folder of another size; those that are
            left over are not used.
        normalise: See `VolumePairs`. The images are in [0, 1] on one scale for all subjects, which is therefore kept.
        **options: Those of `VolumePairs`.

    Raises:
        ValueError: if an argument is not as expected.
        FileNotFoundError, ValueError: in `setup`, with up to five sentences that name file, value and expectation.
    """

    def __init__(
        self,
        root: str,
        json: str | None = None,
        test_split: str = VAL,
        split: Literal["paper", "challenge"] = "challenge",
        split_sizes: tuple[int, int, int] | None = None,
        normalise: Normalise = "none",
        **options: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(root, json, test_split, normalise=normalise, **options)
        check_split(split, test_split, split_sizes, least=2)
        self.split, self.split_sizes = split, split_sizes

    def read_layout(self) -> Layout:
        """Cases and pairs of the split."""
        folder = Folder.read(self.root, self.json)
        val = folder.pairs(VAL)
        by_image = {case.image: case for case in [*folder.cases, *(case for pair in val for case in pair)]}
        cases = sorted(by_image.values(), key=lambda case: case.id)
        if self.split == "challenge":
            val = val or list(pairwise(cases[-CHALLENGE:]))
            test = val if self.test_split == VAL else folder.required(self.test_split)
            layout = Layout(without(cases, [*val, *test]), [], val, test, folder.label_names)
            if len(layout.cases) < 2:
                raise ValueError(
                    f"{folder.source} has {len(layout.cases)} subjects beside those of its validation pairs, expected "
                    "at least 2 to train with"
                )
            return layout
        train, held, last = self.split_sizes or PAPER
        if len(cases) < train + held + last:
            raise ValueError(
                f"{folder.source} has {len(cases)} subjects, expected {train + held + last} for split='paper' "
                f"({train} / {held} / {last}): set split_sizes for a folder of another size"
            )
        val = list(pairwise(cases[train : train + held]))
        test: list[CasePair] = list(pairwise(cases[train + held : train + held + last]))
        return Layout(cases[:train], [], val, test, folder.label_names)
