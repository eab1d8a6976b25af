"""What a person reads while a command runs: one bar on a terminal, plain lines in a log, a line an epoch in both."""

import sys
import time
from typing import Any

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import CustomTimeColumn
from rich.progress import BarColumn

SHOWN = {
    "loss": "train/loss",
    "dice": "val/dice",
    "residual": "train/residual",
    "steps": "train/steps",
    "skipped": "train/skipped_steps",
}
"""What is shown, and the logged value that it is; one that a method or its data do not have is left out."""
WIDTH = 80
"""Columns of a line."""
WIDE, SHORT = 120, 10
"""Columns of a terminal from which on the bar has Lightning's width and clock, and those of the bar below that."""
COUNTS = {
    "sanity_check": "num_sanity_val_batches",
    "validate": "num_val_batches",
    "test": "num_test_batches",
    "predict": "num_predict_batches",
}
"""Where the trainer has the number of batches of a stage."""


class TrainingBar(RichProgressBar):
    """Lightning's bar with loss, Dice, residual, solver steps, skipped steps and the time left."""

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        """Lightning's columns; on a narrow terminal a short bar without the clock, so that the scores have room."""
        columns = super().configure_columns(trainer)
        if self._console is None or self._console.width >= WIDE:
            return columns
        for column in columns:
            if isinstance(column, BarColumn):
                column.bar_width = SHORT
        return [column for column in columns if not isinstance(column, CustomTimeColumn)]

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """What stands behind the bar."""
        lines = next((c for c in trainer.callbacks if isinstance(c, ProgressLines)), None)  # pyright: ignore[reportAttributeAccessIssue]
        left = {} if lines is None or lines.left is None else {"left": duration(lines.left)}
        return {**shown(trainer), **left}


class ProgressLines(Callback):
    """A line on stderr after every epoch; in a log, which has no bar, also one now and then in between.

    Lines have at most 80 columns and no colours. The time left is that of the epochs so far, their validation included.

    Args:
        every: seconds between two lines within an epoch, or within a test or a prediction; 0 for none.

    Raises:
        ValueError: every is negative.
    """

    def __init__(self, every: float = 60.0) -> None:
        if every < 0:
            raise ValueError(f"ProgressLines: every must be 0 or more seconds, not {every}")
        self.every = every
        self.left: float | None = None
        """Seconds that the training still takes; None before the first epoch has ended."""
        self._began = self._epoch_began = self._said = 0.0
        self._done = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._began = self._said = time.monotonic()
        self._done, self.left = 0, None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the epoch's clock."""
        self._epoch_began = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """A line now and then."""
        self._sometimes(trainer, f"{_epoch(trainer)} step {batch_idx + 1}/{_count(trainer.num_training_batches)}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The epoch's line: it has been validated."""
        now = time.monotonic()
        self._done += 1
        epochs = trainer.max_epochs
        ahead = epochs - trainer.current_epoch - 1 if epochs is not None and epochs > 0 else None
        self.left = None if ahead is None else (now - self._began) / self._done * ahead
        took = f"{now - self._epoch_began:.1f} s"
        left = f", left {duration(self.left)}" if self.left else ""
        self._say(trainer, f"{_epoch(trainer)} {_words(trainer)} {took}{left}")
        self._said = now

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lines of a test are counted from its start."""
        self._said = time.monotonic()

    on_test_start = on_predict_start = on_validation_start

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """A line now and then."""
        stage = trainer.state.stage
        if stage is not None and stage.value in COUNTS:
            counts: Any = getattr(trainer, COUNTS[stage.value])
            count = _count(sum(counts) if isinstance(counts, list) else counts)
            self._sometimes(trainer, f"{stage.value} batch {batch_idx + 1}/{count}")

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    def _sometimes(self, trainer: Trainer, text: str) -> None:
        bar = trainer.progress_bar_callback is not None
        if self.every and not bar and time.monotonic() - self._said >= self.every:
            self._said = time.monotonic()
            self._say(trainer, f"{text} {_words(trainer) if trainer.training else ''}".rstrip())

    def _say(self, trainer: Trainer, line: str) -> None:
        if not trainer.is_global_zero:
            return
        line = line if len(line) <= WIDTH else line[: WIDTH - 1] + "…"
        bar = trainer.progress_bar_callback
        if isinstance(bar, RichProgressBar) and bar.progress is not None:
            bar.progress.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)


def on_terminal() -> bool:
    """Whether somebody looks: neither a file nor a job of a cluster."""
    return sys.stdout.isatty() and sys.stderr.isatty() and not SLURMEnvironment.detect()


def shown(trainer: Trainer) -> dict[str, str]:
    """The values of `SHOWN` that were logged, in words."""
    logged = trainer.callback_metrics
    return {name: f"{float(logged[key]):.4g}" for name, key in SHOWN.items() if key in logged}


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: 1:02:03."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def _words(trainer: Trainer) -> str:
    """As in the bar; that no step was skipped need not be said."""
    return " ".join(f"{name} {value}" for name, value in shown(trainer).items() if (name, value) != ("skipped", "0"))


def _epoch(trainer: Trainer) -> str:
    epochs = trainer.max_epochs
    return f"epoch {trainer.current_epoch + 1}" + (f"/{epochs}" if epochs is not None and epochs > 0 else "")


def _count(number: float) -> str:
    return f"{int(number)}" if number != float("inf") else "?"
