"""The report on a data set's files: every case read once, by the rules of `setup`, then held against the others."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from data_modules.checking.facts import Facts, facts_of
from data_modules.checking.findings import Findings, watched
from data_modules.checking.headers import Asked, CaseHeaders, case_headers, check_headers, check_pairs
from data_modules.checking.sets import check_chosen, geometry, label_sets, most, ranges
from data_modules.checking.splits import check_copies, check_kinds, file_digests
from data_modules.checking.volumes import case_volumes, check_beside
from data_modules.layout import Case, CasePair, Layout
from dio_lightning.errors import times
from dio_lightning.findings import Finding, Report, merged

SPLITS = ("train", "val", "test")


def look_at(
    title: str, root: Path, layout: Layout, asked: Asked, conformed: bool, findings: Findings, progress: bool = True
) -> Report:
    """Read every case once and report; never stops at a problem.

    Args:
        title: of the report.
        root: folder of the data set.
        layout: its cases and pairs.
        asked: what must hold of them.
        conformed: volumes are brought to one grid and one set of labels after they were read, so files may differ.
        findings: those made so far.
        progress: show a bar.
    """
    headers: dict[Case, CaseHeaders] = {}
    facts: dict[Case, Facts] = {}
    chosen: list[set[int]] = []
    for case in watched(layout.every_case, "Reading cases", progress):
        if (read := case_headers(case, asked, findings)) is None:
            check_beside(case, asked, findings)
            continue
        headers[case] = read
        if (volumes := case_volumes(read, asked, findings)) is not None:
            facts[case] = facts_of(volumes)
            stored = volumes.stored_labels
            if stored is not None and asked.labels is not None:
                chosen.append({asked.labels[label] for label in stored & asked.labels.keys()})
    for split in SPLITS:
        check_kinds(layout, split, findings)
    check_pairs(tied(layout, SPLITS, headers), headers, asked, findings)
    check_chosen(root, asked.labels, chosen, findings)
    everything = list(facts.values())
    severity = "note" if conformed else "warning"
    geometry(everything, severity, findings)
    names, wanted = ({}, None) if conformed else (layout.label_names, asked.labels)
    label_sets(everything, names, wanted, severity, findings)
    ranges(everything, asked, findings)
    check_copies([(one.case.image, one.digest) for one in everything], layout, findings)
    parts = {split: layout.split_cases(split) for split in SPLITS}
    columns = {split: _column(split, part, facts, layout) for split, part in parts.items() if part}
    scored = [split for split in ("val", "test") if parts[split] and (split == "val" or layout.test != layout.val)]
    cases = [one.as_json() for one in everything]
    return Report(title, columns, cases, merged(findings.relative_to(root)), tuple(scored))


def check_stage(
    layout: Layout, splits: Sequence[str], asked: Asked, findings: Findings, progress: bool = True
) -> list[CasePair]:
    """What can be told of some splits without reading volumes; the pairs that tie their cases together."""
    for split in splits:
        check_kinds(layout, split, findings)
    cases = list(dict.fromkeys(case for split in splits for case in layout.split_cases(split)))
    headers = check_headers(cases, asked, findings, progress)
    pairs = tied(layout, splits, headers)
    check_pairs(pairs, headers, asked, findings)
    check_copies(file_digests(case.image for case in layout.every_case), layout, findings)
    return pairs


def unreadable(title: str, root: Path, message: str) -> Report:
    """The report on a data set whose lists cannot be read: an error for every line of the message."""
    lines = [line.removeprefix(f"{root} ") for line in message.splitlines()]
    return Report(title, findings=[Finding("error", (str(root),), line) for line in lines])


def tied(layout: Layout, splits: Iterable[str], headers: dict[Case, CaseHeaders]) -> list[CasePair]:
    """The pairs of some splits; of the quadratically many candidates for training, enough to tie all grids together."""
    pairs: list[CasePair] = []
    for split in splits:
        if split == "train" and not layout.train and layout.cases:
            readable = [case for case in layout.cases if case in headers]
            common = most([headers[case].image.shape for case in readable])
            first = next((case for case in readable if headers[case].image.shape == common), layout.cases[0])
            pairs += [(first, case) for case in layout.cases if case != first]
        else:
            pairs += layout.pairs(split)
    return pairs


def _column(split: str, part: Sequence[Case], facts: dict[Case, Facts], layout: Layout) -> dict[str, str]:
    """One split in words."""
    present = [facts[case] for case in part if case in facts]
    pairs = layout.pairs(split)
    labels = [k.labels for k in present if k.labels is not None]
    rows = {
        "cases": str(len(part)),
        "pairs": str(len(pairs)) if pairs or split != "train" else "drawn at random",
        "shape [voxels]": _values(times(k.shape) for k in present),
        "spacing [mm]": _values(times([round(extent, 3) for extent in k.spacing]) for k in present),
        "orientation": _values(k.header.axes for k in present),
        "labels": _span([len(one) for one in labels], "{:g}"),
        "landmarks": _span([k.points for k in present if k.points is not None], "{:g}"),
        "mask coverage": _span([k.coverage for k in present if k.coverage is not None], "{:.1%}"),
        "signal outside mask": _span([k.outside for k in present if k.outside is not None], "{:.1%}"),
        "intensity": f"{min(k.range[0] for k in present):g} to {max(k.range[3] for k in present):g}" if present else "",
        "99.5 % intensity": _span([k.range[2] for k in present], "{:g}"),
    }
    return {name: text for name, text in rows.items() if text}


def _values(texts: Iterable[str]) -> str:
    """Distinct texts, the most frequent first."""
    counts = Counter(texts).most_common()
    shown = [text if len(counts) == 1 else f"{text} ({n})" for text, n in counts[:3]]
    return ", ".join([*shown, *(["..."] if len(counts) > 3 else [])])


def _span(values: Sequence[float], form: str) -> str:
    if not values:
        return ""
    least, largest = form.format(min(values)), form.format(max(values))
    return least if least == largest else f"{least} to {largest}"
