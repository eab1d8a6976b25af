"""The trials of a sweep as a queue on an Optuna storage, from which any number of workers take them."""

import copy
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import optuna
from optuna.pruners import BasePruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from dio_lightning.sweeps.file import Sweep
from dio_lightning.sweeps.space import grid

RETRIES = 3
"""How often a trial that was killed is taken again."""
DEFINITION, ALIVE, WORKER, REASON = "sweep", "alive", "worker", "reason"
"""Attributes of a study and of its trials."""
FIRST, ATTEMPT = "first", "attempt"
"""Those of a trial that is taken again: the number that it had at first, and how often that was."""


class Queue:
    """A study of Optuna whose trials wait in a queue; a trial whose worker is gone waits there again.

    Args:
        sweep: what is searched.
        folder: of the sweep, where a lock lies that all workers take; they share its disk.
        storage: URL of the database, sqlite:///FILE for instance.
        name: of the study.
        seed: of the sampler; trial n draws by seed + n, whichever worker takes it.
        grace: seconds after its last sign of life that a worker of another machine counts as gone.

    Raises:
        ValueError: the storage cannot be opened, or its study of this name has another sweep.
    """

    def __init__(
        self, sweep: Sweep, folder: Path, storage: str, name: str, seed: int = 0, grace: float = 120.0
    ) -> None:
        self.sweep, self.folder, self.seed, self.grace = sweep, folder, seed, grace
        direction = "maximize" if sweep.goal == "maximize" else "minimize"
        # stated in words of the file: tuples become lists, as they come back
        definition = json.loads(json.dumps(asdict(sweep) | {"cap": None}))
        with self._locked():
            try:
                self.storage = _storage(storage)
                self.study = optuna.create_study(
                    storage=self.storage,
                    sampler=_sampler(sweep, seed),
                    pruner=_pruner(sweep),
                    study_name=name,
                    direction=direction,
                    load_if_exists=True,
                )
                if (before := self.study.user_attrs.get(DEFINITION)) is None:
                    self.study.set_user_attr(DEFINITION, before := definition)
            except (SQLAlchemyError, ImportError, RuntimeError, ValueError, OSError) as error:
                raise ValueError(f"storage {storage}: {_reason(error)}") from error
        if before != definition:
            changed = next(key for key in definition if before.get(key) != definition[key])
            raise ValueError(
                f"the study {name!r} of {storage} is of another sweep (its {changed} differs): choose another --out or "
                "--name, or replace it with --overwrite"
            )

    def twin(self) -> Self:
        """The same queue for another thread: a study has one sampler."""
        other = copy.copy(self)
        other.study = optuna.load_study(
            study_name=self.study.study_name, storage=self.storage, sampler=self.study.sampler, pruner=self.study.pruner
        )
        return other

    def fill(self, trials: int | None) -> int:
        """Queue trials until there are so many, those of the past included; of a grid, all by default.

        Returns:
            How many there are.

        Raises:
            ValueError: no number, and the sweep is no grid.
        """
        points = [dict[str, Any]()] * (trials or 0)
        if self.sweep.method == "grid":
            free = {key: value for key, value in self.sweep.parameters.items() if len(value.corners) > 1}
            given = [{key: free[key].given(point[key]) for key in free} for point in grid(self.sweep.parameters)]
            points = given[:trials]
        elif trials is None:
            raise ValueError("give --trials: only a grid has an end of its own")
        with self._locked():
            for point in points[len(originals(self.study)) :]:
                self.study.enqueue_trial(point)
            return len(originals(self.study))

    def take(self) -> Trial | None:
        """The next trial, its parameters drawn; None while none waits."""
        with self._locked():
            self._put_back_orphans()
            waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
            if not waiting:
                return None
            self.study.sampler = _sampler(self.sweep, self.seed + waiting[0].number)
            trial = self.study.ask()
            self.beat(trial)
            trial.set_user_attr(WORKER, [socket.gethostname(), os.getpid()])
            return trial

    def running(self) -> bool:
        """Whether some worker has a trial."""
        return bool(self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))

    def beat(self, trial: Trial) -> None:
        """A sign of life."""
        trial.set_user_attr(ALIVE, time.time())

    def point(self, trial: Trial) -> dict[str, Any]:
        """The parameters of a trial, by their keys."""
        return {key: parameter.suggest(trial, key) for key, parameter in self.sweep.parameters.items()}

    def end(self, trial: Trial, value: float | None, state: TrialState = TrialState.COMPLETE, reason: str = "") -> None:
        """Write down how a trial ended."""
        if reason:
            trial.set_user_attr(REASON, reason)
        self.study.tell(trial, value if state == TrialState.COMPLETE else None, state)

    def put_back(self, trial: Trial | FrozenTrial, reason: str) -> None:
        """Have a trial that was killed taken again, from its checkpoints, unless that was done `RETRIES` times."""
        if isinstance(trial, Trial):
            trial.set_user_attr(REASON, reason)
        with suppress(ValueError):  # another worker was first
            self.study.tell(trial.number, state=TrialState.FAIL)
            ended = self.study.get_trials(deepcopy=False)[trial.number]
            attempt = ended.user_attrs.get(ATTEMPT, 0) + 1
            if attempt > RETRIES:
                return
            again = optuna.create_trial(
                state=TrialState.WAITING,
                params=ended.params,
                distributions=ended.distributions,
                user_attrs={FIRST: number_of(ended), ATTEMPT: attempt},
                intermediate_values=ended.intermediate_values,
            )
            self.study.add_trial(again)

    def _put_back_orphans(self) -> None:
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if gone(trial, self.grace):
                self.put_back(trial, "")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One worker at a time, as far as the folder's disk has locks."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("a") as file:
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


def originals(study: optuna.Study) -> list[FrozenTrial]:
    """The trials of a study that do not take a killed one again."""
    return [trial for trial in study.get_trials(deepcopy=False) if FIRST not in trial.user_attrs]


def latest(study: optuna.Study) -> list[tuple[int, FrozenTrial]]:
    """Every trial by its first number, as its last attempt left it."""
    attempts: dict[int, FrozenTrial] = {}
    for trial in study.get_trials(deepcopy=False):
        attempts[number_of(trial)] = trial
    return sorted(attempts.items())


def number_of(trial: Trial | FrozenTrial) -> int:
    """The number that a trial had when it was first taken."""
    return trial.user_attrs.get(FIRST, trial.number)


def gone(trial: FrozenTrial, grace: float) -> bool:
    """Whether the worker of a running trial has died: its process is no more, or it gave no sign of life for long."""
    host, process = trial.user_attrs.get(WORKER, (None, None))
    if host == socket.gethostname() and process is not None:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
    began = trial.datetime_start.timestamp() if trial.datetime_start is not None else 0.0
    return time.time() - trial.user_attrs.get(ALIVE, began) > grace


def remove_study(storage: str, name: str) -> None:
    """Forget a study, if there is one.

    Raises:
        ValueError: the storage cannot be opened.
    """
    try:
        with suppress(KeyError):
            optuna.delete_study(study_name=name, storage=_storage(storage))
    except (SQLAlchemyError, ImportError, RuntimeError, ValueError, OSError) as error:
        raise ValueError(f"storage {storage}: {_reason(error)}") from error


def _storage(url: str) -> RDBStorage:
    # workers that write at once wait for one another
    arguments = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
    return RDBStorage(url, engine_kwargs=arguments)


def _sampler(sweep: Sweep, seed: int) -> BaseSampler:
    return TPESampler(seed=seed) if sweep.method == "bayes" else RandomSampler(seed=seed)


def _pruner(sweep: Sweep) -> BasePruner:
    halving = sweep.halving
    return NopPruner() if halving is None else SuccessiveHalvingPruner(halving.first, halving.eta)


def _reason(error: BaseException) -> str:
    """The innermost cause, in a line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error) or type(error).__name__).splitlines()[0]
