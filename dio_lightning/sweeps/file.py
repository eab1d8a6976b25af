"""A sweep file of W&B: the command it starts, its parameters, what it looks for, when it gives a trial up."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dio_lightning.arguments import CONFIG, content_of, find, load, short, split
from dio_lightning.scores import look_up
from dio_lightning.sweeps.space import Parameter, parameter, word
from dio_lightning.usage import nearest

METHODS = ("bayes", "random", "grid")
GOALS = {"maximize": "larger", "minimize": "smaller"}
PROGRAM = ("${env}", "${interpreter}", "${program}", "python", "-m", "dio_lightning", "dio-lightning")
RUNS = ("fit", "validate")
"""Commands that log what a search can look for."""
KEYS = ("program", "method", "metric", "parameters", "command", "early_terminate", "name", "description", "run_cap")
"""What a file may say; W&B's project and entity and the like are for W&B."""
FOR_WANDB = ("project", "entity", "settings", "controller", "imageuri", "job")


@dataclass(frozen=True)
class Halving:
    """A trial goes on, at the values number first, first · eta, first · eta², …, if it is among the best 1 in eta."""

    first: int = 1
    eta: int = 3


@dataclass(frozen=True)
class Sweep:
    """What a sweep file says.

    Args:
        words: the command, without its parameters: ("fit", "--config", …).
        method: bayes, random or grid.
        metric: what is looked for, as it is logged: val/dice.
        goal: maximize or minimize.
        parameters: by their keys of the command line, in the order of the file.
        halving: when a trial is given up; None for never.
        cap: of trials; None for none.
    """

    words: tuple[str, ...]
    method: str
    metric: str
    goal: str
    parameters: dict[str, Parameter] = field(default_factory=dict)
    halving: Halving | None = None
    cap: int | None = None

    def command(self, values: Mapping[str, Any]) -> list[str]:
        """The command line of a trial."""
        return [*self.words, *(f"--{key}={word(value)}" for key, value in values.items())]


def read_sweep(path: Path) -> Sweep:
    """Read a sweep file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: in one sentence, what it says that cannot be done without W&B, or that means nothing.
    """
    if not path.is_file():
        raise FileNotFoundError(f"sweep file {path} does not exist")
    try:
        return _sweep(load(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _sweep(content: object) -> Sweep:
    if not isinstance(content, Mapping):
        raise ValueError("a sweep file has method, metric, parameters and command")
    if strange := [key for key in content if key not in (*KEYS, *FOR_WANDB)]:
        raise ValueError(f"{strange[0]} is not understood{nearest(str(strange[0]), KEYS)}")
    method, metric = content.get("method", "bayes"), content.get("metric") or {}
    if method not in METHODS:
        raise ValueError(f"method {method} is not understood: expected one of {', '.join(METHODS)}")
    name, goal = metric.get("name"), metric.get("goal", "minimize")
    if not name or goal not in GOALS:
        raise ValueError("metric needs a name, such as val/dice, and a goal, maximize or minimize")
    better = look_up(str(name).removeprefix("val/")).better
    if better in GOALS.values() and better != GOALS[goal]:
        raise ValueError(f"goal {goal} of {name}, of which {better} is better")
    specs = content.get("parameters")
    if not isinstance(specs, Mapping) or not specs:
        raise ValueError("parameters are missing: keys of the command line, each with value, values, or min and max")
    parameters = {str(key): parameter(str(key), spec) for key, spec in specs.items()}
    cap = content.get("run_cap")
    return Sweep(
        _words(content.get("command")),
        method,
        str(name),
        goal,
        parameters,
        _halving(content.get("early_terminate")),
        cap,
    )


def _words(command: object) -> tuple[str, ...]:
    """The command behind the program, with variables of the environment, without W&B's logger and ${args}."""
    if not isinstance(command, list):
        raise ValueError("command is missing: ${env}, ${interpreter}, -m, dio_lightning, fit, …, ${args}")
    words = [re.sub(r"\$\{envvar:([A-Z0-9_]*)\}", _variable, str(part)) for part in command]
    while words and words[0] in PROGRAM:
        words = words[1:]
    if not words or words[0] not in RUNS:
        raise ValueError(f"command has none of {', '.join(RUNS)} behind its program")
    others = [part for part in words if part.startswith("${") and part not in ("${args}", "${args_no_equals}")]
    if others:
        raise ValueError(f"command: {others[0]} is not understood: give ${{args}}")
    return tuple(_without_wandb([part for part in words if not part.startswith("${")]))


def _variable(match: re.Match[str]) -> str:
    if match[1] not in os.environ:
        raise ValueError(f"command: the variable {match[1]} of the environment is not set")
    return os.environ[match[1]]


def _without_wandb(words: Sequence[str]) -> list[str]:
    """The command without configs that say nothing but that W&B logs, and without that logger's options."""
    first, options = split(words)
    dropped = [option for option in options if option.name in CONFIG and _only_wandb(content_of(option))]
    if not dropped:
        return list(words)
    kept = [option for option in options if option not in dropped and option.place[:2] != ("trainer", "logger")]
    return [*first, *(text for option in kept for text in option.words)]


def _only_wandb(content: dict[str, Any] | None) -> bool:
    name = find(content, ("trainer", "logger", "class_path"))
    alone = content is not None and list(content) == ["trainer"] and list(content["trainer"]) == ["logger"]
    return alone and isinstance(name, str) and short(name) == "WandbLogger"


def _halving(spec: object) -> Halving | None:
    """W&B's `hyperband`: brackets from min_iter upwards, or s of them down from max_iter."""
    if spec is None:
        return None
    if not isinstance(spec, Mapping) or spec.get("type") != "hyperband":
        raise ValueError("early_terminate: expected type: hyperband")
    eta = int(spec.get("eta", 3))
    if "min_iter" in spec:
        first = int(spec["min_iter"])
    elif {"max_iter", "s"} <= set(spec):
        first = int(spec["max_iter"]) // eta ** int(spec["s"])
    else:
        raise ValueError("early_terminate: give min_iter, or max_iter and s")
    if eta < 2 or first < 1:
        raise ValueError("early_terminate: eta is at least 2, and the first bracket at 1 or later")
    return Halving(first, eta)
