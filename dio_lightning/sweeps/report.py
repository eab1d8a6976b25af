"""What a sweep leaves: a table of its trials, and pictures of its course."""

import csv
import io
import warnings
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.table import Table

from dio_lightning.files import write_all, write_atomic
from dio_lightning.sweeps.file import Sweep
from dio_lightning.sweeps.queue import REASON, latest
from dio_lightning.sweeps.work import folder_of

WORDS = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "given up", TrialState.FAIL: "failed"}
UNENDED = "unfinished"
MOST = 20
"""Rows of the table on a terminal; the file has all."""


def rows(sweep: Sweep, study: optuna.Study) -> list[dict[str, Any]]:
    """A row a trial: those that are complete from the best on, then those given up, then those that failed."""
    trials = latest(study)
    sign = -1 if sweep.goal == "maximize" else 1

    def place(item: tuple[int, FrozenTrial]) -> tuple[int, float, int]:
        number, trial = item
        order = [*WORDS].index(trial.state) if trial.state in WORDS else len(WORDS)
        value = value_of(trial)
        return order, 0.0 if value is None else sign * value, number

    keys = [key for key, parameter in sweep.parameters.items() if len(parameter.corners) > 1]
    return [
        {"trial": number, "state": WORDS.get(trial.state, UNENDED), sweep.metric: value_of(trial)}
        | {"values": len(trial.intermediate_values)}
        | {key: _value(sweep, key, trial) for key in keys}
        | {"reason": trial.user_attrs.get(REASON, "") if trial.state == TrialState.FAIL else ""}
        for number, trial in sorted(trials, key=place)
    ]


def value_of(trial: FrozenTrial) -> float | None:
    """The value of a complete trial; the last one of another, None before the first."""
    if trial.state == TrialState.COMPLETE:
        return trial.value
    return trial.intermediate_values[max(trial.intermediate_values)] if trial.intermediate_values else None


def write_report(sweep: Sweep, study: optuna.Study, folder: Path) -> list[Path]:
    """Write trials.csv and the pictures of a sweep: history.png, courses.png, parameters.png."""
    table = rows(sweep, study)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    write_atomic(folder / "trials.csv", text.getvalue())
    return [folder / "trials.csv", *_pictures(sweep, study, folder)]


def show(sweep: Sweep, study: optuna.Study, folder: Path, console: Console | None = None) -> None:
    """Print the table, and how the best trial is run again."""
    console = console or Console(highlight=False)
    everything = rows(sweep, study)
    table = Table(title=f"{sweep.metric}, {sweep.goal}", title_justify="left", box=None, pad_edge=False)
    columns = [key for key in everything[0] if key != "reason"]
    for key in columns:
        table.add_column(key if key == sweep.metric else key.rpartition(".")[2], overflow="fold")
    for row in everything[:MOST]:
        table.add_row(*(_cell(row[key]) for key in columns))
    console.print(table)
    if len(everything) > MOST:
        console.print(f"… and {len(everything) - MOST} more in {folder / 'trials.csv'}")
    for row in everything:
        if row["reason"]:
            console.print(f"trial {row['trial']} failed: {row['reason']}", markup=False, soft_wrap=True)
    if everything[0]["state"] == WORDS[TrialState.COMPLETE]:
        best = folder_of(folder, everything[0]["trial"])
        console.print(f"best: {best}; again: dio-lightning rerun {best}", markup=False, soft_wrap=True)


def _value(sweep: Sweep, key: str, trial: FrozenTrial) -> Any:  # noqa: ANN401
    """The value of a parameter in a trial; None if it was not drawn yet."""
    return sweep.parameters[key].suggest(trial, key) if key in trial.params else None


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _pictures(sweep: Sweep, study: optuna.Study, folder: Path) -> list[Path]:
    """Optuna's own, of trials that are complete or were given up."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as draw

    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        return []
    written: list[Path] = []
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name, plot in (
                ("history", lambda: draw.plot_optimization_history(study, target_name=sweep.metric)),
                ("courses", lambda: draw.plot_intermediate_values(study)),
                ("parameters", lambda: draw.plot_slice(study, target_name=sweep.metric)),
            ):
                plot()
                figure = pyplot.gcf()
                figure.set_size_inches(max(6.4, 3.2 * len(figure.axes)), 4.8)
                write_all({folder / f"{name}.png": figure})
                pyplot.close(figure)
                written.append(folder / f"{name}.png")
    finally:
        optuna.logging.set_verbosity(level)
    return written
