"""Klein's four sets of manually labelled brains, as mindboggle distributes them: tests of domain shift."""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from itertools import permutations
from pathlib import Path
from typing import Any, Literal, cast

from monai.transforms.transform import Transform

from data_modules.base import Split
from data_modules.checking.findings import MISSING, Findings, watched
from data_modules.checking.headers import Asked, usable_header
from data_modules.checking.volumes import LARGEST_LABEL, label_map
from data_modules.layout import Case, CasePair, Layout, unique_cases
from data_modules.preparation.conform import Conform
from data_modules.preparation.labels import chosen_labels
from data_modules.volumes import VolumePairs
from dio_lightning.headers import Unreadable, stem

Brains = Literal["IBSR18", "CUMC12", "MGH10", "LPBA40"]
VOLUME = r"\.(?:img|nii|nii\.gz)"
FILES = {
    "IBSR18": ("IBSR_*/IBSR_*_ana_strip.*", rf"IBSR_(\d+)_ana_strip{VOLUME}"),
    "CUMC12": ("Brains/m*", rf"m(\d+){VOLUME}"),
    "MGH10": ("Brains/g*", rf"g(\d+){VOLUME}"),
    "LPBA40": ("registered_pairs/l*_to_l*", rf"l(\d+)_to_l(\d+){VOLUME}"),
}
"""Where a set keeps its images, and how the numbers of its subjects are part of their names."""


class Klein(VolumePairs):
    """All ordered pairs of one of the sets of Klein et al. (NeuroImage 46, 2009), for `test` and `predict`.

    `root` is the folder of one set: IBSR18 with IBSR_01/IBSR_01_ana_strip.nii.gz and IBSR_01_seg_ana.nii.gz; CUMC12
    and MGH10 with Brains/m1.img and Atlases/m1.img (g1); LPBA40 with registered_pairs/l1_to_l2.img and
    registered_label_pairs/l1_to_l2.img, where l1 is moving and l2_to_l2 is fixed. Subjects are those found there.

    Labels that all subjects have become 1, ..., K in their order, others background. Negative intensities become 0, so
    that `normalise: max` divides a stripped brain by its maximum. Analyze headers do not say where an image lies:
    world coordinates are millimetres along the array axes from the centre of the image as it is registered.

    LPBA40 has 1600 images, 60 GB in memory: give it `cache: disk` or `cache: none`.

    Args:
        root: The folder.
        dataset: Which set it holds.
        spacing: `isotropic` resamples to 1 mm, images linearly, labels to the nearest; `native` keeps voxels.
        crop: Pad every axis with zeros to `crop_size` and cut its centre. If not, images of a pair may differ in size.
        crop_size: Voxels of the three axes.
        **options: Those of `VolumePairs`. `labels` counts the contiguous labels. There are no training pairs, and no
            `plane`: the files do not say how they are oriented.

    Raises:
        ValueError: if an argument is not as expected.
        FileNotFoundError, ValueError: in `setup`, with up to five sentences that name file, value and expectation.
    """

    def __init__(
        self,
        root: str,
        dataset: Brains,
        spacing: Literal["isotropic", "native"] = "isotropic",
        crop: bool = True,
        crop_size: tuple[int, int, int] = (160, 224, 192),
        **options: Any,  # noqa: ANN401
    ) -> None:
        if min(crop_size) < 1 or len(crop_size) != 3:
            raise ValueError(f"crop_size is {list(crop_size)}, expected three sizes of at least 1")
        if options.get("plane") is not None:
            raise ValueError(f"plane is {options['plane']!r}, expected none: {dataset} does not say how it is oriented")
        super().__init__(root, crop=None, common_grid=False, **options)
        self.brains: Brains = dataset
        self.isotropic = spacing == "isotropic"
        self.size = tuple(crop_size) if crop else None

    def read_layout(self) -> Layout:
        """All ordered pairs as test pairs; reads all labels to see which are common."""
        pairs = _registered_pairs(self.root) if self.brains == "LPBA40" else _subject_pairs(self.root, self.brains)
        _check_exist(pairs)
        subjects = list(dict.fromkeys(fixed for fixed, _ in pairs))
        common = common_labels(subjects, self.trainer is None or self.trainer.is_global_zero)
        names = {label: f"label_{label}" for label in common}
        return Layout([], [], [], pairs, {0: "background", **names})

    def preparation(self) -> Sequence[Transform]:
        """Spacing, size."""
        return [Conform(self.isotropic, self.size)]

    @cached_property
    def chosen(self) -> dict[int, int]:
        """Common labels of the files, under contiguous numbers, by which `labels` chooses them."""
        names = self.layout.label_names
        contiguous = {label: k for k, label in enumerate(sorted(names.keys() - {0}), start=1)}
        kept = chosen_labels(self.labels, {k: names[label] for label, k in contiguous.items()})
        return {label: k if kept is None else kept[k] for label, k in contiguous.items() if kept is None or k in kept}

    @cached_property
    def asked(self) -> Asked:
        """A label map has its image's size; where files say that they lie is not read."""
        return replace(super().asked, affines=False)

    def pairs(self, split: Split) -> list[CasePair]:
        """All ordered pairs for `test`.

        Raises:
            ValueError: for training and validation.
        """
        if split != "test":
            raise ValueError(f"{self.root} ({self.brains}) is a test set without {split} pairs, expected test, predict")
        return super().pairs(split)


def common_labels(cases: Sequence[Case], progress: bool = True) -> list[int]:
    """Labels above 0 that every case has, sorted.

    Raises:
        ValueError: if there is none, or a label cannot be read or is no integer from 0 to 32767.
    """
    findings, common = Findings(), set(range(1, LARGEST_LABEL + 1))
    for case in watched(cases, "Looking for common labels", progress):
        path = cast(Path, case.label)
        labels = _labels(path, findings)
        if labels is not None and common and not common & labels:
            findings.error(path, "shares no label with the subjects before it, expected at least one")
        common &= labels if labels is not None else common
    findings.stop()
    return sorted(common)


def _labels(path: Path, findings: Findings) -> frozenset[int] | None:
    header = usable_header(path, "the label of a case", findings)
    try:
        return label_map(path, header.values(), None, findings)[1] if header is not None else None
    except Unreadable as error:
        findings.error(path, error.sentence)
        return None


def _subject_pairs(root: Path, brains: Brains) -> list[CasePair]:
    """Ordered pairs of subjects whose image and label lie in files of their own."""
    cases = []
    for image in _numbered(root, brains).values():
        label = image.name.replace("ana_strip", "seg_ana")
        folder = image.parent if brains == "IBSR18" else root / "Atlases"
        cases.append(Case(image, folder / label, name=stem(image.name).removesuffix("_ana_strip")))
    return list(permutations(cases, 2))


def _registered_pairs(root: Path) -> list[CasePair]:
    """Ordered pairs of LPBA40, where every moving image has been registered affinely to every fixed one."""
    images = _numbered(root, "LPBA40")
    suffix = next(iter(images.values())).name.partition(".")[2]
    numbers = sorted({number for numbers in images for number in numbers})

    def case(moving: int, fixed: int) -> Case:
        name = f"l{moving}_to_l{fixed}"
        folders = (root / "registered_pairs", root / "registered_label_pairs")
        image, label = (folder / f"{name}.{suffix}" for folder in folders)
        return Case(image, label, name=name)

    fixed_cases = {j: case(j, j) for j in numbers}
    return [(fixed_cases[j], case(i, j)) for j in numbers for i in numbers if i != j]


def _numbered(root: Path, brains: Brains) -> dict[tuple[int, ...], Path]:
    """The images of a set by the numbers in their names, sorted by them."""
    where, pattern = FILES[brains]
    matches = [(re.fullmatch(pattern, path.name), path) for path in root.glob(where)]
    numbered = sorted((tuple(int(n) for n in match.groups()), path) for match, path in matches if match)
    if len({numbers[-1] for numbers, _ in numbered}) < 2:
        raise FileNotFoundError(f"{root} has {len(numbered)} images {where}, expected those of {brains}, at least two")
    return dict(numbered)


def _check_exist(pairs: Sequence[CasePair]) -> None:
    """Every image has its label, every .img its .hdr.

    Raises:
        FileNotFoundError: with up to five sentences.
    """
    findings = Findings()
    for case in unique_cases(pairs):
        for kind, path in case.volumes.items():
            if not path.is_file():
                findings.error(path, f"{MISSING}, expected the {kind} of {case.id}")
            elif path.suffix == ".img" and not path.with_suffix(".hdr").is_file():
                findings.error(path.with_suffix(".hdr"), f"{MISSING}, expected the header of {path.name}")
    findings.stop()
