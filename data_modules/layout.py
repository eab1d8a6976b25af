"""Which files belong to a case, and which cases make a pair."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dio_lightning.headers import stem


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
        return self.name or stem(self.image.name)

    @property
    def volumes(self) -> dict[str, Path]:
        """The files on a grid: image, label, mask."""
        named = {"image": self.image, "label": self.label, "mask": self.mask}
        return {kind: path for kind, path in named.items() if path is not None}

    @property
    def files(self) -> dict[str, Path]:
        """Every file, by kind."""
        return self.volumes | ({"keypoints": self.keypoints} if self.keypoints else {})


CasePair = tuple[Case, Case]
"""Fixed and moving case."""


@dataclass(frozen=True)
class Layout:
    """Training cases (used where no training pairs are listed), pairs of every split, names of the labels.

    `remarks` are sentences about how the splits came about, without their subject, which is the folder or table. With
    `one_set` the pairs of all splits are one set because the user said so. `one_sided` names what fixed or moving
    images alone have: label, mask.
    """

    cases: list[Case]
    train: list[CasePair]
    val: list[CasePair]
    test: list[CasePair]
    label_names: dict[int, str]
    remarks: tuple[str, ...] = ()
    one_set: bool = False
    one_sided: frozenset[str] = frozenset()

    def pairs(self, split: str) -> list[CasePair]:
        """The pairs that are listed for `train`, `val` or `test`."""
        return {"train": self.train, "val": self.val, "test": self.test}[split]

    def split_cases(self, split: str) -> list[Case]:
        """The cases of a split; for training those that are drawn from, where no pairs are listed."""
        listed = unique_cases(self.pairs(split))
        return listed or (list(self.cases) if split == "train" else [])

    def images(self, split: str) -> set[Path]:
        """The images of a split."""
        return {case.image for case in self.split_cases(split)}

    @property
    def every_case(self) -> list[Case]:
        """The cases of all splits, each once."""
        return list(dict.fromkeys(case for split in ("train", "val", "test") for case in self.split_cases(split)))


def unique_cases(pairs: Iterable[CasePair], more: Iterable[Case] = ()) -> list[Case]:
    """The cases of the pairs, each once, in order of appearance; then others."""
    return list(dict.fromkeys([*(case for pair in pairs for case in pair), *more]))


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
