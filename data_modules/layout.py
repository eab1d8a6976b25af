"""Which files belong to a case, which cases make a pair, and what must hold of the lists of both."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """The files of one image; None where there is none."""

    image: Path
    label: Path | None = None
    mask: Path | None = None
    keypoints: Path | None = None
    name: str | None = None
    """The id, where file names do not tell cases apart."""
    shape: tuple[int, ...] | None = None
    """The image's shape as its data set describes it, to find axes that were swapped."""

    @property
    def id(self) -> str:
        """The name, or the file name of the image without its extension."""
        return self.name or self.image.name.removesuffix(".gz").removesuffix(".nii")

    @property
    def volumes(self) -> dict[str, Path]:
        """The files on a grid: image, label, mask."""
        named = {"image": self.image, "label": self.label, "mask": self.mask}
        return {kind: path for kind, path in named.items() if path is not None}


CasePair = tuple[Case, Case]
"""Fixed and moving case."""


@dataclass(frozen=True)
class Layout:
    """Training cases (used where no training pairs are listed), pairs of every split, names of the labels."""

    cases: list[Case]
    train: list[CasePair]
    val: list[CasePair]
    test: list[CasePair]
    label_names: dict[int, str]

    def checked(self, source: Path) -> "Layout":
        """The layout itself, if no two images share an id and no image is both trained on and held out.

        Training pairs that are the validation pairs, all of them, are on purpose and give a warning.

        Raises:
            ValueError: naming the images and the source, the folder or file that lists them.
        """
        found: dict[str, Path] = {}
        for case in [*self.cases, *(case for pair in [*self.train, *self.val, *self.test] for case in pair)]:
            if found.setdefault(case.id, case.image) != case.image:
                raise ValueError(f"{case.image} and {found[case.id]} are both {case.id}, expected one image for one id")
        trained = {case.image for pair in self.train for case in pair}
        for split, pairs in [("validation", self.val), ("test", self.test)]:
            shared = sorted({case.image for pair in pairs for case in pair} & trained)
            if shared and set(self.train) != set(pairs):
                raise ValueError(
                    f"{source} leaks: {shared[0]} is in a training pair and in a {split} pair, expected it in one"
                )
            if shared and split == "validation":
                warnings.warn(f"{source} has the same pairs for training and {split}", stacklevel=3)
        return self


def without(cases: Iterable[Case], pairs: Iterable[CasePair]) -> list[Case]:
    """The cases that are in none of the pairs."""
    used = {case.image for pair in pairs for case in pair}
    return [case for case in cases if case.image not in used]


def pairs_by_name(cases: Sequence[Case]) -> list[CasePair]:
    """name_0000 (fixed) with name_0001 (moving), if every case has its partner."""
    by_id = {case.id: case for case in cases}
    fixed = [case for case in cases if case.id.endswith("_0000")]
    pairs = [(case, by_id[case.id[:-1] + "1"]) for case in fixed if case.id[:-1] + "1" in by_id]
    return pairs if pairs and 2 * len(pairs) == len(cases) else []
