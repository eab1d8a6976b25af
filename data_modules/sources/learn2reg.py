"""Folders in Learn2Reg's layout: OASIS, NLST and every task that follows them."""

from typing import Any

from data_modules.layout import Layout
from data_modules.sources.folder import read_layout
from data_modules.volumes import VolumePairs


class Learn2Reg(VolumePairs):
    """Pairs of a Learn2Reg folder (Hering et al., IEEE TMI 42, 2023), in two or three dimensions.

    `<root>/*_dataset.json` says which images are paired. What it leaves out comes from file names: the training cases
    are imagesTr, sorted; name_0000 and name_0001 are a pair (unless the JSON says `unpaired`). Without validation or
    test pairs, which a folder without a JSON never has, the last tenth of the pairs (at least one) or of the cases (at
    least two, in consecutive pairs) is for the test, the tenth before them for validation, and one line says so; a
    folder too small for that has one set for several splits, with a warning. With `registration_val` and without
    `registration_test` the test pairs are the validation pairs. Labels, masks and landmarks lie beside imagesTr in
    labelsTr, masksTr and keypointsTr. Cases of validation and test pairs are never drawn for unpaired training.
    An image or a pair that is listed twice, and an image both in a training pair and in a validation or test pair, are
    refused; only if the training pairs are all of the validation pairs is that taken for a choice, with a warning.

    Args:
        root: The folder.
        json: Name of the dataset JSON, if there are several.
        test_split: Key of the test and prediction pairs in the JSON; `a/b` for b inside a.
        **options: Those of `VolumePairs`.

    Raises:
        ValueError: if an argument is not as expected.
        FileNotFoundError, ValueError: in `setup`, with up to five sentences that name file, value and expectation.
    """

    def __init__(
        self,
        root: str,
        json: str | None = None,
        test_split: str = "registration_test",
        **options: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(root, **options)
        self.json, self.test_split = json, test_split

    def read_layout(self) -> Layout:
        """Cases and pairs of the folder."""
        return read_layout(self.root, self.json, self.test_split)
