"""A worker: it takes trials from the queue, runs them, and says how each ended."""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from optuna.trial import Trial, TrialState

from dio_lightning.sweeps.queue import Queue, number_of
from dio_lightning.sweeps.space import word
from dio_lightning.sweeps.trial import Outcome, run_trial
from dio_lightning.usage import nearest

BEAT = 10.0
"""Seconds between two signs of life."""
WRONG_INPUT = 2


@dataclass
class Worker:
    """Runs the trials of a queue, one at a time, until none is left; of other workers' trials it waits for the end.

    Args:
        queue: of the sweep.
        stop: ends it; the trial that runs saves and waits in the queue again.
        say: takes a line for every trial that ends.
        every: seconds between two looks at a trial.
    """

    queue: Queue
    stop: threading.Event
    say: Callable[[str], None]
    every: float = 1.0
    complaint: str = field(default="", init=False)
    """Why it gave up, if nothing of the sweep ever worked."""

    def run(self) -> None:
        """Work until no trial waits and none runs anywhere."""
        while not self.stop.is_set():
            trial = self.queue.take()
            if trial is not None:
                self._run(trial)
            elif self.queue.running():
                time.sleep(self.every)
            else:
                return

    def _run(self, trial: Trial) -> None:
        point = self.queue.point(trial)
        folder = folder_of(self.queue.folder, number_of(trial))
        attempts = self.queue.study.get_trials(deepcopy=False)
        beaten, pruned, reported = time.monotonic(), False, len(attempts[trial.number].intermediate_values)

        def watch(values: list[float]) -> bool:
            nonlocal beaten, pruned, reported
            if time.monotonic() - beaten > BEAT:
                self.queue.beat(trial)
                beaten = time.monotonic()
            if len(values) > reported:
                reported = report(trial, values, reported)
                pruned = trial.should_prune()
            return pruned

        try:
            outcome = run_trial(
                self.queue.sweep.command(point), folder, self.queue.sweep.metric, watch, self.stop, self.every
            )
        except BaseException:
            self.queue.put_back(trial, "its worker failed")
            raise
        report(trial, outcome.values, reported)
        self._end(trial, outcome, pruned)

    def _end(self, trial: Trial, outcome: Outcome, pruned: bool) -> None:
        number, metric = number_of(trial), self.queue.sweep.metric
        if outcome.killed or (self.stop.is_set() and outcome.stopped):
            self.queue.put_back(trial, f"killed (exit code {outcome.code})")
            self.say(f"trial {number}: stopped, waits again")
            return
        value = outcome.values[-1] if outcome.values else math.nan
        if pruned and outcome.code != 0:
            self.queue.end(trial, None, TrialState.PRUNED)
            self.say(f"trial {number}: given up at {metric} {value:.4g}, value {len(outcome.values)}")
        elif outcome.code == 0 and math.isfinite(value):
            self.queue.end(trial, value)
            changed = ", ".join(f"{key.rpartition('.')[2]} {word(trial.params[key])}" for key in trial.params)
            self.say(f"trial {number}: {metric} {value:.4g} ({changed})")
        else:
            reason = outcome.said if outcome.code else unlogged(outcome, metric)
            self.queue.end(trial, None, TrialState.FAIL, reason)
            self.say(f"trial {number}: failed: {reason}")
            worked = self.queue.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
            if not worked and (outcome.code in (0, WRONG_INPUT)):
                self.complaint = f"trial {number}: {reason}"
                self.stop.set()


def report(trial: Trial, values: list[float], before: int) -> int:
    """Hand on what was logged since the last time; how many there are now."""
    for step in range(before + 1, len(values) + 1):
        trial.report(values[step - 1], step)
    return max(before, len(values))


def unlogged(outcome: Outcome, metric: str) -> str:
    """Why a run that ended well has no value."""
    if outcome.values:
        return f"{metric} was {outcome.values[-1]}"
    return f"{metric} was never logged{nearest(metric, outcome.logged)}"


def folder_of(sweep: Path, number: int) -> Path:
    """Of a trial, in that of its sweep."""
    return sweep / f"trial_{number:03d}"
