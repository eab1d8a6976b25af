"""The parameters of a sweep: what each may be, in W&B's words and in Optuna's."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from dio_lightning.usage import nearest

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

KINDS = (
    *("constant", "categorical", "int_uniform", "uniform", "q_uniform"),
    *("log_uniform_values", "q_log_uniform_values", "log_uniform", "q_log_uniform"),
    *("inv_log_uniform_values", "inv_log_uniform"),
)
"""Distributions of W&B that are understood; of an inverse log-uniform, 1/x is log-uniform, and so x is."""
OPTIONS = ("distribution", "value", "values", "min", "max", "q")


@dataclass(frozen=True)
class Parameter:
    """One key of the command line and what it may be: choices, or numbers between two ends.

    Args:
        choices: all of its values; empty for numbers.
        low: the least number.
        high: the greatest number.
        log: whether the logarithm is uniform.
        step: numbers are multiples of it; 0 for any number.
    """

    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float = 0.0

    @property
    def corners(self) -> tuple[Any, ...]:
        """Its choices, or its two ends."""
        if self.choices:
            return self.choices
        first, last = self._multiples if self.step else (0, 0)
        ends = (self._multiple(first), self._multiple(last)) if self.step else (self.low, self.high)
        return tuple(dict.fromkeys(ends))

    @property
    def grid(self) -> tuple[Any, ...] | None:
        """All of its values; None for any number between two."""
        if self.choices or not self.step:
            return self.choices or None
        first, last = self._multiples
        return tuple(self._multiple(k) for k in range(first, last + 1))

    def suggest(self, trial: "BaseTrial", key: str) -> Any:  # noqa: ANN401
        """Its value in a trial, which a sampler of Optuna draws unless the trial has one already."""
        if len(self.choices) == 1:
            return self.choices[0]
        if self.choices:
            words = [word(choice) for choice in self.choices]
            return self.choices[words.index(trial.suggest_categorical(key, words))]
        if not self.step:
            return trial.suggest_float(key, self.low, self.high, log=self.log)
        first, last = self._multiples
        return self._multiple(trial.suggest_int(key, first, last, log=self.log))

    def given(self, value: Any) -> Any:  # noqa: ANN401
        """What `suggest` has to draw for this value of the grid."""
        return word(value) if self.choices else round(value / self.step)

    @property
    def _multiples(self) -> tuple[int, int]:
        return math.ceil(self.low / self.step - 1e-9), math.floor(self.high / self.step + 1e-9)

    def _multiple(self, k: int) -> float:
        value = float(f"{k * self.step:.12g}")  # 0.3, not 0.30000000000000004
        return int(value) if float(self.step).is_integer() else value


def word(value: object) -> str:
    """A value as the command line has it behind KEY=."""
    return value if isinstance(value, str) else json.dumps(value)


def parameter(key: str, spec: object) -> Parameter:
    """What a sweep file says of one parameter.

    Raises:
        ValueError: in one sentence, if W&B's words for it are not understood.
    """
    if not isinstance(spec, Mapping):
        raise ValueError(f"parameter {key}: give value, values, or min and max")
    if "parameters" in spec:
        raise ValueError(f"parameter {key}: nested parameters are not understood: write {key}.NAME")
    if strange := [option for option in spec if option not in OPTIONS]:
        raise ValueError(f"parameter {key}: {strange[0]} is not understood{nearest(str(strange[0]), OPTIONS)}")
    if "value" in spec:
        return Parameter((spec["value"],))
    if "values" in spec:
        if not isinstance(spec["values"], list) or not spec["values"]:
            raise ValueError(f"parameter {key}: values is no list of choices")
        return Parameter(tuple(spec["values"]))
    return _numbers(key, spec)


def corners(parameters: Mapping[str, Parameter]) -> list[dict[str, Any]]:
    """Every point at which each parameter is at an end, or is one of its choices."""
    return _points(parameters, lambda parameter: parameter.corners)


def grid(parameters: Mapping[str, Parameter]) -> list[dict[str, Any]]:
    """Every point of a grid.

    Raises:
        ValueError: a parameter may be any number.
    """
    if endless := [key for key, parameter in parameters.items() if parameter.grid is None]:
        raise ValueError(f"parameter {endless[0]}: a grid needs values, or a distribution with q")
    return _points(parameters, lambda parameter: parameter.grid or ())


def _points(
    parameters: Mapping[str, Parameter], values: Callable[[Parameter], tuple[Any, ...]]
) -> list[dict[str, Any]]:
    return [dict(zip(parameters, point, strict=True)) for point in product(*map(values, parameters.values()))]


def _numbers(key: str, spec: Mapping[str, Any]) -> Parameter:
    ends: list[Any] = [spec.get("min"), spec.get("max")]
    if any(isinstance(end, bool) or not isinstance(end, int | float) for end in ends) or ends[0] > ends[1]:
        raise ValueError(f"parameter {key}: give value, values, or numbers min and max with min ≤ max")
    whole = all(isinstance(end, int) for end in ends)
    kind = spec.get("distribution", "int_uniform" if whole else "uniform")
    if kind not in KINDS[2:]:
        raise ValueError(f"parameter {key}: distribution {kind} is not understood: expected one of {', '.join(KINDS)}")
    if "log_uniform" in kind and not kind.endswith("_values"):
        # of these, min and max are exponents
        ends = [math.exp(end) for end in ends] if "inv" not in kind else [math.exp(-end) for end in reversed(ends)]
    log = "log" in kind
    if log and ends[0] <= 0:
        raise ValueError(f"parameter {key}: a logarithm needs min above 0")
    step = float(spec.get("q", 1)) if kind.startswith("q_") else float(kind == "int_uniform")
    if step < 0 or (kind.startswith("q_") and step == 0):
        raise ValueError(f"parameter {key}: q has to be above 0")
    made = Parameter((), float(ends[0]), float(ends[1]), log, step)
    first, last = made._multiples if step else (1, 1)
    if first > last or (log and first < 1):
        raise ValueError(f"parameter {key}: between min and max lies no multiple of q")
    return made
