"""What a test run leaves behind: tables of scores, their summary, and a readable table for the terminal."""

import csv
import hashlib
import io
import json
import math
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

from rich.table import Table

from dio_lightning.callbacks.gathering import Row, Scored

Summary = dict[str, float | int | None]

SUFFIX = "_identity"
"""Ends the name of a score of u = 0."""
SCORES = ("dice", "hd95", "hd", "hd_missed", "mask_dice", "tre", "folds", "sdlogj", "std_logj")
SCORES += ("seconds", "peak_mb", "steps", "converged", "residual")
IDENTITY = tuple(f"{name}{SUFFIX}" for name in ("dice", "hd95", "hd", "mask_dice", "tre"))
IDS = ("fixed_id", "moving_id")
PAIR_COLUMNS = (*IDS, *SCORES, *IDENTITY)
LABEL_COLUMNS = ("fixed_id", "moving_id", "label", "name", "dice", "dice_identity", "hd95", "hd")
UNITS = {"hd95": "mm", "hd": "mm", "tre": "mm", "folds": "%", "seconds": "s", "peak_mb": "MiB"}
PACKAGES = ("dio-lightning", "torch", "lightning", "monai")


def scores_of(rows: Iterable[Mapping[str, object]]) -> list[str]:
    """Names of the scores that some row has, of the identity too: those listed here first, then others as they come."""
    found = dict.fromkeys(name for row in rows for name in row if name not in IDS)
    return [name for name in (*SCORES, *IDENTITY) if name in found] + [n for n in found if n not in PAIR_COLUMNS]


def summarise(values: Iterable[object]) -> Summary:
    """Mean, standard deviation (of the population, as numpy), median and n of the finite numbers among the values."""
    finite = [float(v) for v in values if isinstance(v, int | float) and math.isfinite(v)]
    if not finite:
        return {"mean": None, "std": None, "median": None, "n": 0}
    mean, std = statistics.fmean(finite), statistics.pstdev(finite)
    return {"mean": mean, "std": std, "median": statistics.median(finite), "n": len(finite)}


def summary(rows: Sequence[Row]) -> tuple[dict[str, Summary], dict[str, Summary]]:
    """Summaries by score name, of the method and of the identity (u = 0)."""
    found = {name: summarise(row.get(name) for row in rows) for name in scores_of(rows)}
    identity = {name.removesuffix(SUFFIX): values for name, values in found.items() if name.endswith(SUFFIX)}
    return {name: values for name, values in found.items() if not name.endswith(SUFFIX)}, identity


def summary_json(rows: Sequence[Row], config_text: str, method: str = "") -> str:
    """Score name -> mean, std, median, n; beside them "identity", "method", "config_hash" and "versions".

    What has no number is null.
    """
    scores, identity = summary(rows)
    about = {"method": method, "config_hash": digest(config_text), "versions": versions()}
    return json.dumps({**scores, "identity": identity, **about}, indent=2) + "\n"


def digest(config_text: str) -> str:
    """The hash by which summary.json names the config that its scores were taken with."""
    return hashlib.sha256(config_text.encode()).hexdigest()


def versions() -> dict[str, str]:
    """Installed versions of what decides a score, by import name."""

    def installed(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    return {p.replace("-", "_"): installed(p) for p in PACKAGES} | {"python": platform.python_version()}


def label_rows(scored: Sequence[Scored], names: Mapping[int, str]) -> list[Row]:
    """Rows of all labels of all pairs, with the ids of the pair and the label's name where it is known."""
    rows: list[Row] = []
    for pair in scored:
        ids: Row = {name: pair.row[name] for name in ("fixed_id", "moving_id")}
        for label in pair.labels:
            known: Row = {"name": names[int(label["label"])]} if int(label["label"]) in names else {}
            rows.append(ids | label | known)
    return rows


def to_csv(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Rows as CSV; a column that no row has is left out, a value that a row lacks is empty, NaN is "nan"."""
    used = [name for name in columns if any(name in row for row in rows)]
    text = io.StringIO()
    writer = csv.DictWriter(text, used, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def table(rows: Sequence[Row], method: str) -> Table:
    """Mean ± standard deviation of every score, the identity beside the method."""
    scores, identity = summary(rows)
    result = Table(title=f"Test scores, mean ± std over {len(rows)} pair{'s' if len(rows) != 1 else ''}")
    for heading in ("score", "identity", method):
        result.add_column(heading, justify="left" if heading == "score" else "right")
    for name, values in scores.items():
        unit = f" [{UNITS[name]}]" if name in UNITS else ""
        result.add_row(f"{name}{unit}".replace("[", r"\["), _cell(identity.get(name)), _cell(values, len(rows)))
    return result


def _cell(values: Summary | None, pairs: int = 0) -> str:
    if values is None:
        return ""
    if values["mean"] is None:
        return "none"
    partly = f" (n={values['n']})" if pairs and values["n"] != pairs else ""
    return f"{values['mean']:.4g} ± {values['std']:.2g}{partly}"
