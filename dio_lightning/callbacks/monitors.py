"""What other callbacks watch: scores that there are, in the direction in which they are better."""

from lightning.pytorch import Trainer

from dio_lightning.scores import SCORES, expect, look_up
from dio_lightning.scores.score import SUFFIX

MODES = {"larger": "max", "smaller": "min"}
STAGE = "val/"


def mode_of(monitor: str) -> str | None:
    """What a checkpoint or an early stop has to look for in val/<score>, "max" or "min"; None if nobody can say."""
    return MODES.get(look_up(monitor.removeprefix(STAGE)).better)


def check_modes(trainer: Trainer) -> None:
    """Refuse a checkpoint or an early stop that would keep the worst.

    Raises:
        ValueError: the mode of a callback contradicts the score that it monitors.
    """
    for callback, monitor in _monitors(trainer):
        mode, right = getattr(callback, "mode", None), mode_of(monitor)
        if right is not None and mode in MODES.values() and mode != right:
            better, name = look_up(monitor.removeprefix(STAGE)).better, type(callback).__name__
            raise ValueError(f"{name}: {monitor} with mode {mode}, of which {better} is better: give mode {right}")


def check_names(trainer: Trainer) -> None:
    """Refuse to watch what a validation has not logged, unless it is a score that these data do not have.

    Raises:
        ValueError: with the nearest name.
    """
    logged = [name.removeprefix(STAGE) for name in trainer.callback_metrics if name.startswith(STAGE)]
    for callback, monitor in _monitors(trainer):
        name = monitor.removeprefix(STAGE)
        if name.removesuffix(SUFFIX) not in [score.name for score in SCORES]:
            expect([name], logged, f"{type(callback).__name__}, monitor {monitor}")


def _monitors(trainer: Trainer) -> list[tuple[object, str]]:
    """Callbacks of a training and the value of a validation that each watches."""
    callbacks = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    watched = [(callback, getattr(callback, "monitor", None)) for callback in callbacks]
    return [(callback, name) for callback, name in watched if isinstance(name, str) and name.startswith(STAGE)]
