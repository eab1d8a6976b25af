"""What `register --csv` leaves of a whole table: results.csv, a row a pair, and report.html to look at them."""

import argparse
import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dio_lightning.files import write_atomic
from dio_lightning.registration.command import FAILED
from dio_lightning.registration.results_page import page_of_results
from dio_lightning.registration.table import Task

COLUMNS = ("pair", "fixed", "moving", "verdict", "sentence", "information", "overlap", "folds", "inverse_mm")
SCORES = ("dice", "tre")
"""Columns of tables with label maps, or landmarks, of both images."""
TABLE, PAGE = "results.csv", "report.html"
OURS = "Written by dio-lightning"
"""What every page of this library says at its end."""
Row = dict[str, object]


class Results:
    """results.csv, written anew as each pair ends, and report.html, written once all have.

    Args:
        folder: where both go.
        tasks: the pairs, in the order of the rows.
        overwrite: replace files that are not of ours.

    Raises:
        FileExistsError: if such a file is there.
    """

    def __init__(self, folder: Path, tasks: Sequence[Task], overwrite: bool) -> None:
        self.path, self.page, self.rows = folder / TABLE, folder / PAGE, list[Row]()
        self._tasks = {task.name: task for task in tasks}
        self._order = {task.name: index for index, task in enumerate(tasks)}
        scores = [name for name, given in zip(SCORES, ("labels", "points"), strict=True) if _any(tasks, given)]
        self._columns = [*COLUMNS, *scores, "seconds"]
        if self.path.is_file() and not overwrite and not _text(self.path).startswith("pair,fixed,moving,"):
            raise FileExistsError(f"{self.path} exists and is no table of register: give --overwrite")
        if self.page.is_file() and not overwrite and OURS not in _text(self.page):
            raise FileExistsError(f"{self.page} exists and is no page of register: give --overwrite")

    def begin(self, anything: bool) -> None:
        """Pairs follow, if there is anything to do: a page of fewer pairs goes, until that of all of them is there."""
        if anything:
            self.page.unlink(missing_ok=True)

    def add(self, row: Row) -> None:
        """One pair more."""
        self.rows = sorted([*self.rows, row], key=lambda one: self._order[str(one["pair"])])
        write_atomic(self.path, self._csv())

    def write_page(self, command: str) -> None:
        """Write report.html, whole or not at all."""
        pages = {str(row["pair"]): self._tasks[str(row["pair"])].outputs.paths["page"] for row in self.rows}
        write_atomic(self.page, page_of_results(self.rows, pages, self.path, self._csv(), command).html())

    def _csv(self) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()

    def say(self, options: argparse.Namespace) -> None:
        """The last words of the command; exits with code 3 if a pair has failed."""
        verdicts = [row["verdict"] for row in self.rows]
        counts = ", ".join(f"{verdicts.count(one)} {one}" for one in ("good", "doubtful", "failed"))
        if options.json:
            print(json.dumps({"pairs": self.rows}, indent=2))
        else:
            print(f"{len(verdicts)} pairs: {counts}")
            print(
                f"wrote {self.path}" if options.quiet else f"wrote {options.out}, see {self.page} and {self.path.name}"
            )
        if "doubtful" in verdicts:
            sys.stderr.write(f"dio-lightning: warning: {verdicts.count('doubtful')} results are doubtful\n")
        if "failed" in verdicts:
            raise SystemExit(FAILED)


def _any(tasks: Sequence[Task], given: str) -> bool:
    return any(getattr(task.truth, given) is not None for task in tasks)


def row_of(task: Task, report: Mapping[str, Any] | str) -> Row:
    """The row of a pair; of one without a report, why."""
    row: Row = {"pair": task.name, "fixed": str(task.options.fixed), "moving": str(task.options.moving)}
    if isinstance(report, str):
        return {**row, "verdict": "failed", "sentence": report}
    export = report.get("export", {})
    if not export.get("passed", True):
        row |= {"verdict": "failed", "sentence": export["sentence"]}
    scores = report.get("scores", {})
    return {**row, **report["quality"], **scores, "seconds": report["seconds"], **row}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")
