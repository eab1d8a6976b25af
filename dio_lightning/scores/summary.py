"""Many rows as few numbers: over pairs, over the slices of a pair of subjects, over seeds; and summary.json."""

import hashlib
import json
import math
import platform
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

from dio_lightning.scores.rows import PairId, Row, Values, scores_of
from dio_lightning.scores.score import SUFFIX

Summary = dict[str, float | int | None]

PACKAGES = ("dio-lightning", "torch", "lightning", "monai")


def summarise(values: Iterable[object]) -> Summary:
    """Mean, standard deviation (of the population, as numpy), median and n of the finite numbers among the values."""
    finite = [float(v) for v in values if isinstance(v, int | float) and math.isfinite(v)]
    if not finite:
        return {"mean": None, "std": None, "median": None, "n": 0}
    mean, std = statistics.fmean(finite), statistics.pstdev(finite)
    return {"mean": mean, "std": std, "median": statistics.median(finite), "n": len(finite)}


def summary(rows: Sequence[Row]) -> tuple[dict[str, Summary], dict[str, Summary]]:
    """Summaries by score name, of the method and of the identity (u = 0)."""
    summaries = {name: summarise(row.get(name) for row in rows) for name in scores_of(rows)}
    identity = {name.removesuffix(SUFFIX): values for name, values in summaries.items() if name.endswith(SUFFIX)}
    return {name: values for name, values in summaries.items() if not name.endswith(SUFFIX)}, identity


def unit(pair: PairId) -> PairId:
    """The subject pair that a slice pair belongs to; a pair of whole images is its own.

    The ids of slices end in the index, the same one in both (`_s040`).
    """
    fixed, moving = (re.fullmatch(r"(.+)_s(\d{3,})", name) for name in pair)
    if fixed and moving and fixed[2] == moving[2]:
        return fixed[1], moving[1]
    return pair


def per_unit(values: Mapping[PairId, float]) -> Values:
    """Means over the slices of each subject pair; slices without a number are left out, units of such alone are NaN."""
    groups: dict[PairId, list[float]] = {}
    for pair, value in values.items():
        groups.setdefault(unit(pair), []).extend([value] if math.isfinite(value) else [])
    return {name: finite_mean(group) for name, group in groups.items()}


def over_seeds(seeds: Sequence[Mapping[PairId, float]]) -> Values:
    """Means over seeds of every pair of the first seed; NaN where a seed has no number."""
    return {pair: statistics.fmean(seed.get(pair, math.nan) for seed in seeds) for pair in seeds[0]}


def moments(values: Mapping[PairId, float]) -> tuple[float, float, int]:
    """Mean, standard deviation and number over pairs; slices of one pair of subjects are averaged first."""
    over = summarise(per_unit(values).values())
    mean, std = (math.nan if value is None else float(value) for value in (over["mean"], over["std"]))
    return mean, std, int(over["n"] or 0)


def finite_mean(values: Iterable[float]) -> float:
    """The mean of the finite numbers, NaN where there is none."""
    finite = [value for value in values if math.isfinite(value)]
    return statistics.fmean(finite) if finite else math.nan


def summary_json(rows: Sequence[Row], config_text: str, method: str = "", units: Mapping[str, str] = {}) -> str:
    """Score name -> mean, std, median, n; beside them "identity", "method", "units", "config_hash" and "versions".

    What has no number is null; `units` are those that are others than the vocabulary's.
    """
    scores, identity = summary(rows)
    about = {"method": method, "units": dict(units), "config_hash": digest(config_text), "versions": versions()}
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
