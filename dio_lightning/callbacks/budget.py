"""A training that takes as long as it may: its learning rate falls while time passes."""

import math
import time
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer


class TimeBudget(Callback):
    """Trains for a time, in which the learning rate rises in a straight line and falls to zero as a cosine.

    For a machine that is lent by the minute, whose updates a second nobody has counted. Nothing else may change the
    rate: leave out `model.scheduler`. A training that is resumed has the time that was left of it; where it had none,
    it ends after one update. Such a training depends on the machine's speed: its seed does not repeat it.

    Args:
        seconds: of training, validations included.
        rise: share of them in which the rate rises from zero.

    Raises:
        ValueError: if seconds are not positive, or the share is not from 0 to below 1.
    """

    def __init__(self, seconds: float, rise: float = 0.05) -> None:
        if seconds <= 0 or not 0 <= rise < 1:
            raise ValueError(f"seconds is {seconds} and rise {rise}, expected a positive number and a share below 1")
        self.seconds, self.rise = seconds, rise
        self.spent = self._began = 0.0

    def share(self) -> float:
        """How much of the time has passed, from 0 on."""
        return (self.spent + time.monotonic() - self._began) / self.seconds

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The clock starts.

        Raises:
            MisconfigurationException: if there is a scheduler.
        """
        if trainer.lr_scheduler_configs:
            raise MisconfigurationException("TimeBudget sets the learning rate, expected no model.scheduler beside it")
        self._began = time.monotonic()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        """The rate of this moment."""
        share = self.share()
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor(share, self.rise)

    def on_train_batch_end(self, trainer: Trainer, *arguments: Any, **named: Any) -> None:  # noqa: ANN401
        """End when the time is over; the first process looks at the clock for all of them."""
        if trainer.strategy.broadcast(self.share() >= 1):
            trainer.should_stop = True

    def state_dict(self) -> dict[str, float]:
        """The seconds spent so far."""
        return {"spent": self.seconds * self.share() if self._began else self.spent}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Go on counting."""
        self.spent = state_dict["spent"]


def factor(share: float, rise: float) -> float:
    """What the first rate is multiplied with when a share of the time has passed; 0 after it."""
    if share < rise:
        return share / rise
    return (1 + math.cos(math.pi * min(1.0, (share - rise) / (1 - rise)))) / 2
