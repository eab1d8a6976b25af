"""The page of a comparison: its table, a box a method for every score, Dice by label, the numbers as files."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from dio_lightning.files import write_all
from dio_lightning.reports.page import Block, Download, Facts, Page, Plot, Section
from dio_lightning.reports.plots import boxes_svg, panels_svg
from dio_lightning.scores.comparing import Comparisons
from dio_lightning.scores.runs import Method
from dio_lightning.scores.summary import per_unit, versions
from dio_lightning.scores.table import Table

LABELS = "metrics_per_label.csv"


def write_comparison(contents: Mapping[Path, str], page: Path, study: Comparisons, table: Table) -> None:
    """Write the texts of a comparison and its page, all or none; CSV files can be saved from the page too."""
    files = {path.name: text for path, text in contents.items() if path.suffix == ".csv"}
    write_all({**contents, page: comparison_page(study, table, files).html()})


def comparison_page(study: Comparisons, table: Table, files: Mapping[str, str]) -> Page:
    """What `compare` leaves to look at.

    Args:
        study: the comparison.
        table: of all methods and scores, with its caption.
        files: CSV files that can be saved from the page, by name.
    """
    plots: list[Block] = []
    scores = {
        score.heading: {method.name: list(per_unit(method.values(score.name)).values()) for method in study.methods}
        for score in study.scores
        if score.tested
    }
    if scores:
        over = "pairs of subjects" if study.pairs != study.units else "pairs"
        plots.append(
            Plot(panels_svg(scores), f"Boxes over {len(study.units)} {over}: median, quartiles, and the rest.")
        )
    runs = {f"{m.name}, {run.folder.name}": run.method or "–" for m in study.methods for run in m.runs}
    return Page(
        f"{len(study.methods)} methods compared" if len(study.methods) > 1 else study.methods[0].name,
        [
            Section("Scores", [table, *plots]),
            Section("Labels", _labels(study.methods), "Dice of every label, the mean over seeds of each pair."),
            Section("Files", [Download(name, text) for name, text in files.items()]),
            Section("Runs", [Facts(runs, "What was run"), Facts(versions(), "Written with")]),
        ],
        f"{len(study.pairs)} pairs; {study.reference} is the reference.",
    )


def _labels(methods: Sequence[Method]) -> list[Block]:
    """Boxes of Dice by label; nothing unless every run has them."""
    if not all((run.folder / LABELS).is_file() for method in methods for run in method.runs):
        return []
    groups: dict[str, dict[str, list[float]]] = {}
    for method in methods:
        values: dict[tuple[str, tuple[str, str]], list[float]] = {}
        for run in method.runs:
            for label, pair, dice in _read(run.folder / LABELS):
                values.setdefault((label, pair), []).append(dice)
        for (label, _), seeds in values.items():
            group = groups.setdefault(label, {one.name: [] for one in methods})
            group[method.name].append(sum(seeds) / len(seeds))
    return [Plot(boxes_svg(groups, "Dice"), "Boxes over the pairs that have the label.")] if groups else []


def _read(path: Path) -> list[tuple[str, tuple[str, str], float]]:
    """Label (its name, if it has one), pair and Dice of every row that has a number."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("dice")]
    numbers = [
        (row.get("name") or row["label"], (row["fixed_id"], row["moving_id"]), float(row["dice"])) for row in rows
    ]
    return [number for number in numbers if math.isfinite(number[2])]
