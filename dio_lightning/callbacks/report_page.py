"""What report.html of a test says: scores beside the identity, boxes, pairs by rank, the run."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from dio_lightning.callbacks.environment import environment
from dio_lightning.callbacks.gathering import Scored
from dio_lightning.callbacks.report import About, label_rows, terminal_table
from dio_lightning.reports.page import Download, Facts, Page, Plot, Section, Text
from dio_lightning.reports.pairs import PairView
from dio_lightning.reports.plots import boxes_svg, panels_svg
from dio_lightning.scores.rows import IDS, Row, label_columns, scores_of, to_csv
from dio_lightning.scores.score import SUFFIX
from dio_lightning.scores.summary import summary
from dio_lightning.scores.table import Cell, Table
from dio_lightning.scores.vocabulary import look_up

RANKED = ("dice", "tre", "mask_dice")
"""Scores by which pairs are ranked: the first that all of them have."""
PLOTTED = ("dice", "hd95", "tre", "mask_dice", "folds", "sdlogj")
"""Scores that have a plot over pairs where they are there."""
CHIPS = ("dice", "hd95", "tre", "folds", "seconds")
"""Scores that stand at the top."""
MOST = 500
"""Rows of the table of pairs."""


def ranked(scored: Sequence[Scored], count: int) -> list[tuple[str, Scored]]:
    """Pairs from the worst to the best, evenly spread over the ranks, and what they are called."""
    name = _ranking(scored)
    if name is None:
        return [("", one) for one in scored[:count]]
    order = sorted(scored, key=lambda one: float(one.row[name]), reverse=look_up(name).better == "smaller")
    if count == 1 or len(order) == 1:
        return [("median", order[(len(order) - 1) // 2])]
    shown = min(count, len(order))
    places = [round(i * (len(order) - 1) / (shown - 1)) for i in range(shown)]
    middle = (len(order) - 1) / 2
    called = {place: "median" for place in places if abs(place - middle) < 1} | {0: "worst", len(order) - 1: "best"}
    return [(called.get(place, f"{place + 1} of {len(order)}"), order[place]) for place in places]


def numbers(row: Row) -> dict[str, tuple[str, str]]:
    """Scores of one pair as text, before and after."""
    made = {}
    for name in scores_of([row]):
        score = look_up(name)
        if not name.endswith(SUFFIX) and score.kind != "cost" and score.shown:
            before, after = (float(row.get(key, math.nan)) for key in (f"{name}{SUFFIX}", name))
            made[score.heading] = score.text(before), score.text(after)
    return made


def page_of_test(
    scored: Sequence[Scored], names: Mapping[int, str], about: About, views: Sequence[PairView], data: str
) -> Page:
    """The report of a test.

    Args:
        scored: all pairs.
        names: of labels, as far as they have any.
        about: what was run.
        views: the pairs that are shown.
        data: what the data are called.
    """
    rows, labels = [one.row for one in scored], label_rows(scored, names)
    tables = [Download("metrics.csv", to_csv(rows, (*IDS, *scores_of(rows))))]
    if labels:
        tables.append(Download("metrics_per_label.csv", to_csv(labels, label_columns())))
    count = f"{len(rows)} pair{'s' if len(rows) != 1 else ''}{f' of {data}' if data else ''}"
    name = _ranking(scored)
    order = f"From worst to best by {look_up(name).heading}. " if name else ""
    plots = [*_score_plots(rows, about), *_label_plots(labels, about)]
    return Page(
        f"{about.method}: test",
        [
            Section(
                "Scores",
                [replace(terminal_table(rows, about), caption=f"Mean ± standard deviation over {count}."), *plots],
            ),
            Section("Pairs", views, f"{order}These were registered once more for this page."),
            Section("Every pair", [_every(rows, about), *tables]),
            Section("Run", [Facts(_facts(about)), Text("Config", about.config_text)]),
        ],
        f"{count}, beside the same pairs without registration (identity).",
        chips=_chips(rows, about),
    )


def _facts(about: About) -> dict[str, str]:
    run = environment()
    return {
        "method": about.method,
        "command": run["command"].replace("__main__.py", "dio-lightning", 1),
        "time": run["time"],
        "commit": str(run["commit"] or "none: installed as a package"),
        "threads": str(run["threads"]),
        "operators": run["operators"],
        "GPUs": ", ".join(run["gpus"]) or "none",
        "system": run["system"],
        "versions": ", ".join(f"{name} {version}" for name, version in run["packages"].items()),
    }


def _ranking(scored: Sequence[Scored]) -> str | None:
    """The score by which pairs are ranked."""
    finite = lambda name: all(math.isfinite(float(one.row.get(name, math.nan))) for one in scored)  # noqa: E731
    return next((name for name in RANKED if finite(name)), None)


def _chips(rows: Sequence[Row], about: About) -> dict[str, str]:
    """The means that are looked for first, before and after."""
    scores, identity = summary(rows)
    chips = {"pairs": str(len(rows))}
    for name in CHIPS:
        if name in scores and (after := scores[name]["mean"]) is not None:
            score = look_up(name).measured_in(about.units.get(name))
            before = identity.get(name, {}).get("mean")
            start = "" if before is None else f"{score.text(before)} → "
            chips[score.heading] = start + score.text(after)
    return chips


def _values(rows: Sequence[Row], name: str) -> list[float]:
    return [float(row.get(name, math.nan)) for row in rows]


def _score_plots(rows: Sequence[Row], about: About) -> list[Plot]:
    """Boxes over pairs of every score that has a plot, the identity beside the method."""
    have = {name for row in rows for name in row}
    plots = {}
    for name in (name for name in PLOTTED if name in have):
        heading = look_up(name).measured_in(about.units.get(name)).heading
        before = {"identity": _values(rows, f"{name}{SUFFIX}")} if f"{name}{SUFFIX}" in have else {"identity": []}
        plots[heading] = before | {about.method: _values(rows, name)}
    caption = "Scores of the pairs: median, quartiles, and the farthest values within 1.5 times their distance."
    return [Plot(panels_svg(plots), caption)] if plots else []


def _label_plots(labels: Sequence[Row], about: About) -> list[Plot]:
    """Boxes over pairs of the Dice of every label."""
    groups: dict[str, dict[str, list[float]]] = {}
    for row in labels:
        if "dice" not in row:
            continue
        group = groups.setdefault(str(row.get("name", row["label"])), {"identity": [], about.method: []})
        group["identity"].append(float(row.get(f"dice{SUFFIX}", math.nan)))
        group[about.method].append(float(row["dice"]))
    return [Plot(boxes_svg(groups, "Dice"), "Dice of every label over the pairs that have it.")] if groups else []


def _every(rows: Sequence[Row], about: About) -> Table:
    """A row a pair, with the scores that a page has room for."""
    have = {name for row in rows for name in row}
    shown = [name for name in (*PLOTTED, "seconds") if name in have]
    scores = [look_up(name).measured_in(about.units.get(name)) for name in shown]
    cells = [
        [Cell(f"{row[IDS[1]]} onto {row[IDS[0]]}"), *(Cell(s.text(float(row.get(s.name, math.nan)))) for s in scores)]
        for row in rows[:MOST]
    ]
    left = f"The first {MOST} of {len(rows)} pairs; all of them are in metrics.csv." if len(rows) > MOST else ""
    return Table(["pair", *(score.heading for score in scores)], cells, left, right=True)
