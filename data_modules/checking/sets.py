"""Cases against each other: what most have and one has not. Suspicious, but no reason to refuse; `check` alone asks."""

import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_modules.checking.facts import Facts
from data_modules.checking.findings import Findings
from data_modules.checking.headers import Asked
from dio_lightning.errors import times
from dio_lightning.findings import Severity

HOUNSFIELD = -500.0, 400.0
"""An image with values below the one and above the other counts in Hounsfield units."""
FAR = 5.0
"""Intensity ranges and mask coverages that differ by this factor from the median are told."""


def geometry(facts: Sequence[Facts], severity: Severity, findings: Findings) -> None:
    """Orientation and spacing as in most cases."""
    _odd(facts, lambda one: one.header.axes, lambda axes: f"orientation {axes}", severity, findings)
    _odd(facts, lambda one: tuple(np.round(one.spacing, 2)), lambda s: f"spacing {times(s)} mm", severity, findings)


def _odd(
    facts: Sequence[Facts], value: Callable, say: Callable[..., str], severity: Severity, findings: Findings
) -> None:
    """Tell of cases whose value is not the most frequent one."""
    common = most([value(one) for one in facts])
    for one in facts:
        if value(one) != common:
            findings.add(severity, one.case.image, f"has {say(value(one))}, most others have {say(common)}")


def label_sets(
    facts: Sequence[Facts],
    names: Mapping[int, str],
    wanted: Iterable[int] | None,
    severity: Severity,
    findings: Findings,
) -> None:
    """Labels that most cases have and this one lacks, that few others have, and that the data set does not name."""
    kept = [(one, _kept(one.labels, wanted)) for one in facts if one.labels]
    count = Counter(label for _, labels in kept for label in labels)
    usual = {label for label, cases in count.items() if 2 * cases > len(kept)}
    for one, labels in kept:
        path = one.case.label or one.case.image
        if len(kept) > 1 and (missing := usual - labels):
            findings.add(severity, path, f"lacks {_named(missing, names)}, which most others have")
        if len(kept) > 1 and (rare := labels - usual):
            findings.add(severity, path, f"has {_named(rare, names)}, which most others lack")
        if names and (unknown := labels - names.keys()):
            findings.warning(path, f"has {_named(unknown, {})}, to which the data set gives no name")


def check_chosen(
    source: Path, chosen: Mapping[int, int] | None, maps: Sequence[Iterable[int]], findings: Findings
) -> None:
    """Labels that were chosen are in some label map; `maps` are the chosen numbers that each map has."""
    if chosen is None or not maps:
        return
    present = {number for one in maps for number in one}
    missing = sorted(label for label, number in chosen.items() if number not in present)
    if missing:
        sentence = f"has no label map with {_named(missing, {})} of `labels` ({len(maps)} were read)"
        findings.add("error" if len(missing) == len(chosen) else "warning", source, sentence)


def ranges(facts: Sequence[Facts], asked: Asked, findings: Findings) -> None:
    """Intensities and masks unlike others of the same kind, and values that do not fit the normalisation."""
    for group in _by_channel(facts).values():
        widths = [one.range[2] - one.range[1] for one in group]
        usual = statistics.median(widths) if len(widths) > 2 else 0.0
        for one, width in zip(group, widths, strict=True):
            if usual > 0 and not usual / FAR <= width <= usual * FAR:
                text = f"spans {one.range[1]:g} to {one.range[2]:g} (0.5 to 99.5 %)"
                findings.warning(one.case.image, f"{text}, far from the {usual:g} of the median case")
            _normalisation(one.case.image, one.range, asked, findings)
        covered = [one.coverage for one in group if one.coverage]
        middle = statistics.median(covered) if len(covered) > 2 else 0.0
        for one in group:
            if one.coverage and one.case.mask and middle and not middle / FAR <= one.coverage <= middle * FAR:
                text = f"covers {one.coverage:.1%} of the voxels, the median mask {middle:.1%}"
                findings.warning(one.case.mask, text)


def _normalisation(path: Path, limits: tuple[float, float, float, float], asked: Asked, findings: Findings) -> None:
    least, low, high, largest = limits
    sparse = not high > low
    if sparse and asked.normalise == "percentile":
        sentence = f"is {low:g} at 0.5 % of its voxels as at 99.5 %"
        findings.note(path, f"{sentence}: `percentile` takes its least value {least:g} and its largest {largest:g}")
    if asked.clip is not None:
        return
    if least < HOUNSFIELD[0] and largest > HOUNSFIELD[1]:
        advice = "set `--data.normalise window --data.clip '[-1000, 500]'` or the window of your organ"
        findings.warning(path, f"has values like Hounsfield units and no clip: {advice}")
    elif asked.normalise == "max" and largest - least > 2 * FAR * (high - low) > 0:
        sentence = f"has its largest value {largest:g} far above its 99.5 % value {high:g}"
        findings.warning(path, f"{sentence}: `--data.normalise percentile` keeps contrast")
    elif asked.normalise == "none" and (top := largest if sparse else high) > 10:
        findings.warning(path, f"has values up to {top:g} and is not normalised: networks expect about 0 to 1")


def most(values: Sequence) -> Any:  # noqa: ANN401
    """The most frequent value, the first of several."""
    return Counter(values).most_common(1)[0][0] if values else None


def _kept(labels: frozenset[int] | None, wanted: Iterable[int] | None) -> frozenset[int]:
    return frozenset(labels or ()) if wanted is None else frozenset(labels or ()) & frozenset(wanted)


def _named(labels: Iterable[int], names: Mapping[int, str]) -> str:
    """Labels with their names, at most five."""
    ordered = sorted(labels)
    texts = [f"{label} ({names[label]})" if label in names else str(label) for label in ordered]
    more = f" and {len(texts) - 5} more" if len(texts) > 5 else ""
    return f"label{'s' if len(texts) > 1 else ''} {', '.join(texts[:5])}{more}"


def _by_channel(facts: Sequence[Facts]) -> dict[str, list[Facts]]:
    """Cases by the channel at the end of their ids (_0000, _0001), which may be another modality."""
    groups: dict[str, list[Facts]] = {}
    for one in facts:
        ending = re.search(r"_\d{4}$", one.case.id)
        groups.setdefault(ending[0] if ending else "", []).append(one)
    return groups
