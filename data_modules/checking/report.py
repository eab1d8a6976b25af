"""The report on a data set's files: every case read once, then held against the others."""

import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from data_modules.checking.checks import lacking, unique_cases, watched
from data_modules.checking.comparing import Expected, copies, counts, grids, intensities, label_sets
from data_modules.checking.facts import Facts, Found, examine
from data_modules.layout import Case, Layout
from dio_lightning.errors import times
from dio_lightning.findings import Finding, Report, Severity, merged

if TYPE_CHECKING:
    from data_modules.volumes import VolumePairs


def check_module(module: "VolumePairs") -> Report:
    """The report on a data module's files.

    Raises:
        FileNotFoundError: if there is no folder to look at.
    """
    title = type(module).__name__
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            layout = module.layout
        except (ValueError, FileNotFoundError) as error:
            if not module.root.is_dir():
                raise
            return Report(title, findings=[_about(module, "error", line) for line in str(error).splitlines()])
    expected = Expected(
        module.root,
        module.common_grid,
        module.normalise,
        module.clip,
        module.labels,
        bool(module.preparation()),
    )
    report = check_layout(title, layout, expected, sys.stderr.isatty())
    notes = [_about(module, "note", str(warning.message)) for warning in told]
    return replace(report, findings=[*report.findings, *notes])


def _about(module: "VolumePairs", severity: Severity, sentence: str) -> Finding:
    return Finding(severity, (str(module.root),), sentence.removeprefix(f"{module.root} "))


def check_layout(title: str, layout: Layout, expected: Expected, progress: bool = True) -> Report:
    """Read every case once and report; never stops at a problem."""
    found = Found(expected.root)
    splits: dict[str, list[Case]] = {
        "train": unique_cases(layout.train) or list(layout.cases),
        "val": unique_cases(layout.val),
        "test": unique_cases(layout.test),
    }
    cases = list(dict.fromkeys(case for part in splits.values() for case in part))
    facts: dict[Case, Facts] = {}
    for case in watched(cases, "Reading cases", progress):
        if (known := examine(case, found, affines=not expected.conformed)) is not None:
            facts[case] = known
    everything = list(facts.values())
    _kinds(splits, found)
    grids(everything, layout, expected, found)
    label_sets(everything, {} if expected.conformed else layout.label_names, expected, found)
    intensities(everything, expected, found)
    counts([*layout.train, *layout.val, *layout.test], facts, found)
    copies(everything, splits, layout, found)
    columns = {split: _column(split, part, facts, layout) for split, part in splits.items() if part}
    scored = [split for split in ("val", "test") if splits[split] and (split == "val" or layout.test != layout.val)]
    return Report(title, columns, [known.as_json() for known in everything], merged(found.findings), tuple(scored))


def _kinds(splits: dict[str, list[Case]], found: Found) -> None:
    """Within a split all cases have a label, or none has; likewise masks and landmarks."""
    for split, part in splits.items():
        for case, kind, having in lacking(part):
            found.add(
                "error", case.image, f"has no {kind}, expected one as for {having.id} and others of the {split} split"
            )


def _column(split: str, part: Sequence[Case], facts: dict[Case, Facts], layout: Layout) -> dict[str, str]:
    """One split in words."""
    known = [facts[case] for case in part if case in facts]
    pairs = {"train": layout.train, "val": layout.val, "test": layout.test}[split]
    labels = [k.labels for k in known if k.labels is not None]
    ranges = [k.range for k in known if k.range is not None]
    rows = {
        "cases": str(len(part)),
        "pairs": str(len(pairs)) if pairs or split != "train" else "drawn at random",
        "shape [voxels]": _values(times(k.shape) for k in known),
        "spacing [mm]": _values(times([round(extent, 3) for extent in k.spacing]) for k in known),
        "orientation": _values(k.axes for k in known),
        "labels": _span([len(one) for one in labels], "{:g}"),
        "landmarks": _span([k.points for k in known if k.points is not None], "{:g}"),
        "mask coverage": _span([k.coverage for k in known if k.coverage is not None], "{:.1%}"),
        "signal outside mask": _span([k.outside for k in known if k.outside is not None], "{:.1%}"),
        "intensity": f"{min(r[0] for r in ranges):g} to {max(r[3] for r in ranges):g}" if ranges else "",
        "99.5 % intensity": _span([r[2] for r in ranges], "{:g}"),
    }
    return {name: text for name, text in rows.items() if text}


def _values(texts: Iterable[str]) -> str:
    """Distinct texts, the most frequent first."""
    found = Counter(texts).most_common()
    shown = [text if len(found) == 1 else f"{text} ({n})" for text, n in found[:3]]
    return ", ".join([*shown, *(["..."] if len(found) > 3 else [])])


def _span(values: Sequence[float], form: str) -> str:
    if not values:
        return ""
    least, largest = form.format(min(values)), form.format(max(values))
    return least if least == largest else f"{least} to {largest}"
