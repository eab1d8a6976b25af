"""NLST of Learn2Reg: one lung at inhale and at exhale."""

import re
from typing import Any, Literal

from data_modules.layout import CasePair, Layout, pairs_by_name
from data_modules.preparation.transforms import Normalise
from data_modules.sources.folder import TRAIN, VAL, Folder, check_split
from data_modules.sources.learn2reg import Learn2Reg

PAPER = (170, 10, 30)
OFFICIAL = re.compile(r"_01(0[1-9]|10)_0000$")
"""Validation pairs of the challenge: 0101 to 0110."""


class NLST(Learn2Reg):
    """Inhale (fixed, `_0000`) and exhale (moving, `_0001`) CT of Learn2Reg's NLST folder, with masks and landmarks.

    224x192x224 voxels of 1.5 mm. `challenge` takes training and validation pairs from the JSON and tests on the
    validation pairs. `paper` is DEQReg's 170 / 10 / 30 of the 210 pairs that were released in 2023; its paper does not
    say which: validation is on the JSON's `registration_val`, test on the last 30 of the other 200, training on the
    first 170. Training leaves out every validation and test pair that the JSON lists for training too, unless nothing
    else is listed. Without a JSON the pairs come from the file names, and 0101 to 0110 are for validation.

    Half resolution is `--model.resolution 2`: networks and solvers then see images of 112x96x112 voxels and landmarks
    that are counted in them, while every score is taken on the full grid, TRE in mm there.

    Args:
        root: The folder with imagesTr, masksTr, keypointsTr and, if it is there, NLST_dataset.json.
        json: Name of the dataset JSON, if there are several.
        test_split: Key of the test and prediction pairs in the JSON, of `challenge` alone.
        split: `challenge` or `paper`.
        split_sizes: Pairs for train, validation and test of `paper` in a folder of another size.
        normalise: See `VolumePairs`.
        clip: Hounsfield units that become 0 and 1; DIO used (-1200, 400), others -1000 to between 400 and 500.
        mask_images: See `VolumePairs`: images are 0 outside of the lungs.
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
        split: Literal["challenge", "paper"] = "challenge",
        split_sizes: tuple[int, int, int] | None = None,
        normalise: Normalise = "window",
        clip: tuple[float, float] | None = (-1000.0, 500.0),
        mask_images: bool = True,
        **options: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(root, json, test_split, normalise=normalise, clip=clip, mask_images=mask_images, **options)
        check_split(split, test_split, split_sizes, least=1)
        self.split, self.split_sizes = split, split_sizes

    def read_layout(self) -> Layout:
        """Pairs of the split."""
        folder = Folder.read(self.root, self.json)
        val, others = self._pairs(folder)
        if self.split == "challenge":
            test = val if self.test_split == VAL else folder.required(self.test_split)
            train = others if test == val else _apart(others, test)
        else:
            first, held, last = self.split_sizes or PAPER
            if len(val) != held or len(others) < first + last:
                raise ValueError(
                    f"{folder.source} has {len(others)} pairs beside {len(val)} for validation, expected "
                    f"{first + last} beside {held} for split='paper' ({first} / {held} / {last}): set split_sizes for "
                    "a folder of another size"
                )
            train, test = others[:first], others[-last:]
        return Layout([], train, val, test, folder.label_names)

    def _pairs(self, folder: Folder) -> tuple[list[CasePair], list[CasePair]]:
        """Validation pairs, and all others in the order of their ids."""
        val = folder.pairs(VAL)
        pairs = folder.pairs(TRAIN) or pairs_by_name(folder.cases)
        if not pairs and not val:
            raise ValueError(
                f"{folder.source} has no pairs, expected {TRAIN!r} in its JSON or images name_0000 and name_0001"
            )
        pairs = sorted(pairs, key=lambda pair: pair[0].id)
        count = self.split_sizes[1] if self.split_sizes else max(1, len(pairs) // 10)
        val = val or [pair for pair in pairs if OFFICIAL.search(pair[0].id)] or pairs[-count:]
        others = _apart(pairs, val)
        # a folder may list one set of pairs for both on purpose, of which `checked` warns
        return val, pairs if not others and set(pairs) == set(val) else others


def _apart(pairs: list[CasePair], held: list[CasePair]) -> list[CasePair]:
    """The pairs none of whose images is in a pair that is held out."""
    images = {case.image for pair in held for case in pair}
    return [pair for pair in pairs if images.isdisjoint(case.image for case in pair)]
