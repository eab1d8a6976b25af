"""OASIS as the neurite package distributes it: one folder per subject, in volumes or in coronal slices."""

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from data_modules.layout import Case, Layout
from data_modules.volumes import VolumePairs

PAPER = (300, 30, 84)
"""Training, validation and test subjects of DEQReg (Hu et al., MICCAI 2025), of 414."""


class NeuriteOASIS(VolumePairs):
    """Pairs of subjects of neurite-OASIS (Hoopes et al., MELBA 2022), in three dimensions or two.

    `<root>/OASIS_OAS1_0001_MR1` holds what `image` and `segmentation` name: aligned_norm with aligned_seg35 or
    aligned_seg4 (template space, 160x192x224), norm with seg35 or seg4 (scanner space, 256x256x256), or the coronal
    slice slice_norm with slice_seg24 or slice_seg4 (160x192); `orig` in place of `norm` is the raw image. Subjects are
    those of subjects.txt, or all folders; sorted, the first are for training, the next for validation, the last for
    testing. Training draws ordered pairs (`pairing`); validation and test pair each subject (fixed) with the next.

    Args:
        root: The folder.
        image: Name of the image in every subject's folder, without .nii.gz.
        segmentation: Name of the label map. None: no labels.
        splits: Number of training, validation and test subjects. Default: 300, 30 and 84, as in DEQReg's paper, if
            there are 414, else all subjects in the same proportions.
        **options: Those of `VolumePairs`.

    Raises:
        ValueError: if an argument is not as expected.
        FileNotFoundError, ValueError: in `setup`, with up to five sentences that name file, value and expectation.
    """

    def __init__(
        self,
        root: str,
        image: str = "aligned_norm",
        segmentation: str | None = "aligned_seg35",
        splits: tuple[int, int, int] | None = None,
        **options: Any,  # noqa: ANN401
    ) -> None:
        if segmentation is not None and _space(segmentation) != _space(image):
            raise ValueError(f"segmentation is {segmentation!r}, expected one of the space of image {image!r}")
        if splits is not None and (len(splits) != 3 or min(splits) < 2):
            raise ValueError(f"splits is {list(splits)}, expected three numbers of subjects of at least 2")
        super().__init__(root, **options)
        self.image, self.segmentation, self.splits = image, segmentation, splits

    def read_layout(self) -> Layout:
        """Training subjects, consecutive pairs of the others, and names from seg35_labels.txt."""
        subjects = _subjects(self.root)
        train, val, test = self.splits or _proportional(self.root, len(subjects))
        if train + val + test > len(subjects):
            raise ValueError(
                f"splits is {[train, val, test]}, expected at most the {len(subjects)} subjects of {self.root}"
            )
        cases = [self._case(subject) for subject in subjects]
        end = train + val
        held_out = [list(pairwise(part)) for part in (cases[train:end], cases[end : end + test])]
        return Layout(cases[:train], [], held_out[0], held_out[1], self._names())

    def _case(self, subject: str) -> Case:
        folder = self.root / subject
        label = folder / f"{self.segmentation}.nii.gz" if self.segmentation is not None else None
        return Case(folder / f"{self.image}.nii.gz", label, name=subject)

    def _names(self) -> dict[int, str]:
        kind = re.search(r"seg\d+$", self.segmentation or "")
        path = self.root / f"{kind.group()}_labels.txt" if kind else None
        return colour_table(path) if path is not None and path.is_file() else {}


def colour_table(path: Path) -> dict[int, str]:
    """Names by label from FreeSurfer's colour table: rows of label, name, red, green, blue and alpha.

    Raises:
        ValueError: if a row does not start with a label and a name.
    """
    names = {}
    for row, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        entries = line.replace(":", " ").split()
        if not entries or entries[0].startswith("#"):
            continue
        if len(entries) < 2 or not entries[0].isdigit():
            raise ValueError(f"{path}: row {row} is {line.strip()!r}, expected a label, a name and a colour")
        names[int(entries[0])] = entries[1]
    return names


def _space(name: str) -> str:
    """What precedes norm, orig or seg35 in a file's name: aligned, slice or nothing."""
    return name.rpartition("_")[0]


def _subjects(root: Path) -> list[str]:
    """Sorted folders' names.

    Raises:
        FileNotFoundError, ValueError: if there are none, or one is listed twice.
    """
    listed = root / "subjects.txt"
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is no folder, expected neurite-OASIS with OASIS_OAS1_0001_MR1 and so on")
    if not listed.is_file():
        subjects = sorted(path.name for path in root.glob("OASIS_OAS1_*") if path.is_dir())
    else:
        subjects = sorted(listed.read_text(encoding="utf-8-sig").split())
    for one, two in pairwise(subjects):
        if one == two:
            raise ValueError(f"{listed} lists {one} twice, expected every subject once")
    if not subjects:
        raise FileNotFoundError(f"{root} has no subject, expected folders such as OASIS_OAS1_0001_MR1")
    return subjects


def _proportional(root: Path, count: int) -> Sequence[int]:
    """Training, validation and test subjects of `count`, as in the paper, at least two each."""
    val, test = (max(2, round(count * part / sum(PAPER))) for part in PAPER[1:])
    if count - val - test < 2:
        raise ValueError(f"{root} has {count} subjects, expected at least 6 to train, validate and test on")
    return count - val - test, val, test
