"""Cases against each other: grids, labels, intensities, landmarks, copies."""

import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_modules.checking.checks import swapped
from data_modules.checking.facts import Facts, Found
from data_modules.layout import Case, CasePair, Layout
from dio_lightning.errors import times
from dio_lightning.findings import Severity

HOUNSFIELD = -500.0, 400.0
"""An image with values below the one and above the other counts in Hounsfield units."""
FAR = 5.0
"""Intensity ranges and mask coverages that differ by this factor from the median are told."""


@dataclass(frozen=True)
class Expected:
    """What a data module asks of its files; the meaning of each is in `VolumePairs`.

    Attributes:
        conformed: volumes are brought to one grid and one set of labels after they were read, so that files may differ.
    """

    root: Path | None
    common_grid: bool = True
    normalise: str = "none"
    clip: Sequence[float] | None = None
    labels: Sequence[int] | None = None
    conformed: bool = False


def grids(facts: Sequence[Facts], layout: Layout, expected: Expected, found: Found) -> None:
    """Orientation and spacing as in most cases, shape as promised, pairs on one grid."""
    severity: Severity = "note" if expected.conformed else "warning"
    _odd(facts, lambda known: known.axes, lambda axes: f"orientation {axes}", severity, found)
    _odd(facts, lambda known: tuple(np.round(known.spacing, 2)), lambda s: f"spacing {times(s)} mm", severity, found)
    for known in facts:
        if np.array_equal(known.affine, np.eye(4)):
            found.add("note", known.case.image, "has the identity as affine: orientation and origin may be made up")
        promised = known.case.shape
        if promised is not None and (hint := swapped(known.shape, promised)):
            sentence = f"has shape {times(known.shape)}, its data set promises {times(promised)}{hint}"
            found.add("error", known.case.image, sentence)
    by_case = {known.case: known for known in facts}
    pairs = [*layout.train, *layout.val, *layout.test]
    if not layout.train and layout.cases:
        common = _most([by_case[case].shape for case in layout.cases if case in by_case])
        first = next((c for c in layout.cases if c in by_case and by_case[c].shape == common), layout.cases[0])
        pairs = [*((first, case) for case in layout.cases if case != first), *pairs]
    for fixed, moving in pairs:
        if fixed in by_case and moving in by_case:
            _same_grid(by_case[moving], by_case[fixed], expected.common_grid, found)


def _same_grid(moving: Facts, fixed: Facts, common: bool, found: Found) -> None:
    reference = f"as {fixed.case.id}, with which it is paired"
    if len(moving.shape) != len(fixed.shape) or (common and moving.shape != fixed.shape):
        hint = swapped(moving.shape, fixed.shape)
        sentence = f"has shape {times(moving.shape)}, expected {times(fixed.shape)} {reference}{hint}"
        found.add("error", moving.case.image, sentence)
    elif common and np.abs(moving.affine - fixed.affine).max() > 0.01 * min(fixed.spacing):
        lie = [
            f"{k.axes}, {times(k.spacing)} mm, origin {np.round(k.affine[:3, 3], 1).tolist()}" for k in (moving, fixed)
        ]
        found.add("error", moving.case.image, f"lies on another grid ({lie[0]}), expected ({lie[1]}) {reference}")


def _odd(facts: Sequence[Facts], value: Callable, say: Callable[..., str], severity: Severity, found: Found) -> None:
    """Tell of cases whose value is not the most frequent one."""
    common = _most([value(known) for known in facts])
    for known in facts:
        if value(known) != common:
            found.add(severity, known.case.image, f"has {say(value(known))}, most others have {say(common)}")


def label_sets(facts: Sequence[Facts], names: dict[int, str], expected: Expected, found: Found) -> None:
    """Labels that most cases have and this one lacks, that few others have, and that the data set does not name."""
    kept = [(known, _kept(known.labels, expected.labels)) for known in facts if known.labels]
    count = Counter(label for _, labels in kept for label in labels)
    usual = {label for label, seen in count.items() if 2 * seen > len(kept)}
    severity: Severity = "note" if expected.conformed else "warning"
    for known, labels in kept:
        path = known.case.label or known.case.image
        if len(kept) > 1 and (missing := usual - labels):
            found.add(severity, path, f"lacks {_named(missing, names)}, which most others have")
        if len(kept) > 1 and (rare := labels - usual):
            found.add(severity, path, f"has {_named(rare, names)}, which most others lack")
        if names and (unknown := labels - names.keys()):
            found.add("warning", path, f"has {_named(unknown, {})}, to which the data set gives no name")


def intensities(facts: Sequence[Facts], expected: Expected, found: Found) -> None:
    """Ranges unlike others of the same kind, and values that do not fit the normalisation."""
    for group in _by_channel(facts).values():
        widths = [known.range[2] - known.range[1] for known in group if known.range]
        usual = statistics.median(widths) if len(widths) > 2 else 0.0
        for known in group:
            if known.range is None:
                continue
            width = known.range[2] - known.range[1]
            if usual > 0 and not usual / FAR <= width <= usual * FAR:
                text = f"spans {known.range[1]:g} to {known.range[2]:g} (0.5 to 99.5 %)"
                found.add("warning", known.case.image, f"{text}, far from the {usual:g} of the median case")
            _window(known.case.image, known.range, expected, found)
        covered = [known.coverage for known in group if known.coverage]
        middle = statistics.median(covered) if len(covered) > 2 else 0.0
        for known in group:
            if known.coverage and known.case.mask and middle and not middle / FAR <= known.coverage <= middle * FAR:
                text = f"covers {known.coverage:.1%} of the voxels, the median mask {middle:.1%}"
                found.add("warning", known.case.mask, text)


def _window(path: Path, limits: tuple[float, float, float, float], expected: Expected, found: Found) -> None:
    least, low, high, largest = limits
    if expected.clip is not None:
        if high <= expected.clip[0] or low >= expected.clip[1]:
            window = f"clip {list(expected.clip)}"
            sentence = f"spans {low:g} to {high:g} (0.5 to 99.5 %), all outside of {window}: nothing would be left"
            found.add("error", path, sentence)
    elif least < HOUNSFIELD[0] and largest > HOUNSFIELD[1]:
        advice = "set `--data.normalise window --data.clip '[-1000, 500]'` or the window of your organ"
        found.add("warning", path, f"has values like Hounsfield units and no clip: {advice}")
    elif expected.normalise == "max" and largest - least > 2 * FAR * (high - low) > 0:
        sentence = f"has its largest value {largest:g} far above its 99.5 % value {high:g}"
        found.add("warning", path, f"{sentence}: `--data.normalise percentile` keeps contrast")
    elif expected.normalise == "none" and high > 10:
        found.add("warning", path, f"has values up to {high:g} and is not normalised: networks expect about 0 to 1")


def counts(pairs: Iterable[CasePair], facts: dict[Case, Facts], found: Found) -> None:
    """The two cases of a pair have equally many landmarks."""
    for fixed, moving in pairs:
        one, two = (facts[case].points if case in facts else None for case in (fixed, moving))
        if one and two and one != two and moving.keypoints:
            sentence = f"has {two} landmarks, expected {one} as {fixed.id}, with which it is paired"
            found.add("error", moving.keypoints, sentence)


def copies(facts: Sequence[Facts], splits: dict[str, list[Case]], layout: Layout, found: Found) -> None:
    """One image under two names, one name for two images, cases that are trained and tested on."""
    held = {case.image: split for split in ("test", "val") for case in splits[split]}
    # one set of pairs for everything is on purpose: a table without splits, or a folder too small to hold out
    same = {split for split in ("val", "test") if layout.train and layout.train == getattr(layout, split)}
    for case in splits["train"]:
        if (split := held.get(case.image)) is not None:
            sentence = f"is in the training pairs and in the {split} pairs: its scores would be too good"
            found.add("warning" if split in same else "error", case.image, sentence)
    train = {case.image for case in splits["train"]}
    held = {image: split for image, split in held.items() if split not in same}
    seen: dict[str, Facts] = {}
    names: dict[str, Path] = {}
    for known in facts:
        image, twin = known.case.image, seen.setdefault(known.digest, known).case.image
        if twin != image:
            leak = (image in train and twin in held) or (twin in train and image in held)
            across = ": one is for training, the other for validation or test" if leak else ""
            found.add("error" if leak else "warning", image, f"holds the same values as {found.name(twin)}{across}")
        other = names.setdefault(known.case.id, image)
        if other != image:
            found.add("error", image, f"has the id {known.case.id} of {found.name(other)}, expected an id of its own")


def _most(values: Sequence) -> object:
    return Counter(values).most_common(1)[0][0] if values else None


def _kept(labels: frozenset[int] | None, wanted: Sequence[int] | None) -> frozenset[int]:
    return frozenset(labels or ()) if wanted is None else frozenset(labels or ()) & frozenset(wanted)


def _named(labels: Iterable[int], names: dict[int, str]) -> str:
    """Labels with their names, at most five."""
    ordered = sorted(labels)
    texts = [f"{label} ({names[label]})" if label in names else str(label) for label in ordered]
    more = f" and {len(texts) - 5} more" if len(texts) > 5 else ""
    return f"label{'s' if len(texts) > 1 else ''} {', '.join(texts[:5])}{more}"


def _by_channel(facts: Sequence[Facts]) -> dict[str, list[Facts]]:
    """Cases by the channel at the end of their ids (_0000, _0001), which may be another modality."""
    groups: dict[str, list[Facts]] = {}
    for known in facts:
        ending = re.search(r"_\d{4}$", known.case.id)
        groups.setdefault(ending[0] if ending else "", []).append(known)
    return groups
