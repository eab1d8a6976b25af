"""Rules on lists: which cases have what, and who is in which split."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from data_modules.checking.findings import Findings
from data_modules.layout import Layout

KINDS = {"label": "label", "mask": "mask", "keypoints": "landmarks"}
GLANCE = 2**16
"""Bytes of a file that are compared first."""
SPLITS = {"train": "training", "val": "validation", "test": "test"}


def check_layout(source: Path, layout: Layout, findings: Findings) -> None:
    """One image for one id, and nobody in two splits; `source` is the folder or file that lists them."""
    if not layout.every_case:
        findings.error(source, "has no images, expected at least two")
    names: dict[str, Path] = {}
    for case in dict.fromkeys([*layout.cases, *layout.every_case]):
        if (other := names.setdefault(case.id, case.image)) != case.image:
            findings.error(case.image, f"and {other} are both {case.id}, expected one image for one id")
    for remark in layout.remarks:
        findings.note(source, remark)
    if not layout.one_set:
        _check_apart(source, layout, findings)


def _check_apart(source: Path, layout: Layout, findings: Findings) -> None:
    """Nobody is in two splits."""
    one_set = [
        name for name in ("val", "test") if _shared(layout, "train", name) and _on_purpose(layout, "train", name)
    ]
    if one_set:
        *first, last = [SPLITS["train"], *map(SPLITS.__getitem__, one_set)]
        names = f"{', '.join(first)} and {last}"
        findings.warning(source, f"has the same pairs for {names}: scores are those of training pairs")
    alike = layout.val == layout.test
    for held in ("val",) if alike else ("val", "test"):
        if held not in one_set and (shared := _shared(layout, "train", held)):
            pairs = f"in a training pair and in a {SPLITS[held]} pair"
            findings.error(source, f"leaks: {shared[0]} is {pairs}, expected it in one")
    if not one_set and (shared := _shared(layout, "val", "test")):
        what = "the same pairs" if alike else f"{len(shared)} images, such as {shared[0]},"
        findings.warning(source, f"has {what} for validation and test: what is chosen on the one favours the other")


def check_kinds(layout: Layout, split: str, findings: Findings) -> None:
    """Within a split either every case or none has a label; likewise a mask, landmarks.

    What the data set gives for one side of its pairs alone, such as the label map of an atlas, is not asked for.
    """
    cases = layout.split_cases(split)
    for kind, name in KINDS.items():
        having = next((case for case in cases if getattr(case, kind) is not None), None)
        if having is None or kind in layout.one_sided:
            continue
        for case in cases:
            if getattr(case, kind) is None:
                findings.error(case.image, f"has no {name}, expected one as for {having.id} of the same split")


def check_copies(digests: Iterable[tuple[Path, str]], layout: Layout, findings: Findings) -> None:
    """One image under two names: an error where one is trained on and the other is held out.

    Args:
        digests: images, each with a digest of its values.
        layout: says who is in which split.
        findings: takes the findings.
    """
    trained = layout.images("train")
    held = (set() if layout.one_set else layout.images("val") | layout.images("test")) - trained
    first: dict[str, Path] = {}
    for image, digest in digests:
        twin = first.setdefault(digest, image)
        if twin != image:
            leak = (image in trained and twin in held) or (twin in trained and image in held)
            across = ": one is for training, the other for validation or test" if leak else ""
            findings.add("error" if leak else "warning", image, f"holds the same values as {twin}{across}")


def file_digests(images: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    """Digests of the bytes of images, only of those that may be copies of another: a look at sizes tells most apart."""
    for candidates in _alike(images, lambda path: path.stat().st_size):
        for likely in _alike(candidates, _glance):
            for path in likely:
                with open(path, "rb") as file:
                    yield path, hashlib.file_digest(file, "blake2b").hexdigest()


def _alike(paths: Iterable[Path], key: Callable[[Path], object]) -> list[list[Path]]:
    """Groups of at least two files that have a key in common."""
    groups: dict[object, list[Path]] = {}
    for path in paths:
        if path.is_file() and path.stat().st_size:
            groups.setdefault(key(path), []).append(path)
    return [group for group in groups.values() if len(group) > 1]


def _glance(path: Path) -> bytes:
    """The beginning, the middle and the end of a file."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        return b"".join(file.read(GLANCE) for at in (0, size // 2, max(0, size - GLANCE)) if file.seek(at) == at)


def _shared(layout: Layout, one: str, two: str) -> list[Path]:
    """Images of both splits; one that is fixed in every pair is an atlas, and no subject."""
    every = [*layout.train, *layout.val, *layout.test]
    atlases = set.intersection(*({fixed.image} for fixed, _ in every)) if every else set()
    return sorted((layout.images(one) & layout.images(two)) - atlases)


def _on_purpose(layout: Layout, one: str, two: str) -> bool:
    """Whether two splits are one set of pairs, as in a table without splits, or in a folder too small to divide."""
    first, second = layout.pairs(one), layout.pairs(two)
    if one == "train" and not first:
        return layout.images(one) == layout.images(two)
    return set(first) == set(second)
