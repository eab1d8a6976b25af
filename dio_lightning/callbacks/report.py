"""What a test run leaves behind: tables of scores and their summary in files, and a table on the terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dio_lightning.callbacks.gathering import Scored
from dio_lightning.files import write_atomic
from dio_lightning.scores.rows import IDS, Row, label_columns, scores_of, to_csv
from dio_lightning.scores.summary import Summary, summary, summary_json
from dio_lightning.scores.table import Cell, Table
from dio_lightning.scores.vocabulary import look_up


@dataclass(frozen=True)
class About:
    """What a run's files say beside its scores: the config that is hashed, what was run, units that are unusual."""

    config_text: str
    method: str
    units: Mapping[str, str]


def write_run(folder: Path, scored: Sequence[Scored], names: Mapping[int, str], about: About) -> None:
    """Write metrics.csv (a row a pair), metrics_per_label.csv and summary.json; each replaces another one whole.

    Args:
        folder: where they go.
        scored: the pairs.
        names: of the labels, as far as they have any.
        about: the run.
    """
    rows = [pair.row for pair in scored]
    write_atomic(folder / "metrics.csv", to_csv(rows, (*IDS, *scores_of(rows))))
    write_atomic(folder / "metrics_per_label.csv", to_csv(label_rows(scored, names), label_columns()))
    write_atomic(folder / "summary.json", summary_json(rows, about.config_text, about.method, about.units))


def label_rows(scored: Sequence[Scored], names: Mapping[int, str]) -> list[Row]:
    """Rows of all labels of all pairs, with the ids of the pair and the label's name if it has one."""
    rows: list[Row] = []
    for pair in scored:
        ids: Row = {name: pair.row[name] for name in IDS}
        for label in pair.labels:
            named: Row = {"name": names[int(label["label"])]} if int(label["label"]) in names else {}
            rows.append(ids | label | named)
    return rows


def terminal_table(rows: Sequence[Row], about: About) -> Table:
    """Mean ± standard deviation of every score, the identity beside the method."""
    scores, identity = summary(rows)
    cells = [
        [titled(name, about.units.get(name)), *map(Cell, (spread(identity.get(name)), spread(values, len(rows))))]
        for name, values in scores.items()
    ]
    title = f"Test scores, mean ± std over {len(rows)} pair{'s' if len(rows) != 1 else ''}"
    return Table(["score", "identity", about.method], cells, title)


def titled(name: str, unit: str | None = None) -> Cell:
    """The name of a score as files have it, with its unit."""
    unit = look_up(name).unit if unit is None else unit
    return Cell(f"{name} [{unit}]" if unit else name)


def spread(values: Summary | None, pairs: int = 0) -> str:
    """Mean ± standard deviation; over how many pairs, where not all of them have a number."""
    if values is None:
        return ""
    if values["mean"] is None:
        return "none"
    partly = f" (n={values['n']})" if pairs and values["n"] != pairs else ""
    return f"{values['mean']:.4g} ± {values['std']:.2g}{partly}"
