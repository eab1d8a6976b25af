"""The checkpoints of a run: the best, the last, and the one before it."""

import os
import time
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.loops.progress import _ProcessedTracker
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from dio_lightning.callbacks.monitors import mode_of
from dio_lightning.callbacks.signals import Requeued
from dio_lightning.checkpoint_files import damage, read_checkpoint
from dio_lightning.files import remove_leftovers

LAST, PREVIOUS = Path("last.ckpt"), Path("previous.ckpt")
"""The newest checkpoint of a run, and the one before it."""


class Best(ModelCheckpoint):
    """best.ckpt by validation Dice, or another score; data that do not have it have no best.ckpt.

    Args:
        dirpath: the folder.
        monitor: what is watched, val/<score>.
        mode: "max" or "min"; by default the direction in which the score is better.

    Raises:
        ValueError: monitor is no score and no mode is given.
    """

    def __init__(self, dirpath: str | Path, monitor: str = "val/dice", mode: str | None = None) -> None:
        mode = mode or mode_of(monitor)
        if mode is None:
            raise ValueError(f"Best: {monitor} is no score that is better in one direction: give mode min or max")
        super().__init__(dirpath, "best", monitor, mode=mode, enable_version_counter=False)
        self._resumed: Path | None = None

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note which folder the run goes on from."""
        self._resumed = Path(trainer.ckpt_path).resolve().parent if trainer.ckpt_path else None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the score of the best.ckpt that lies here, if it is this run's; another run's says nothing of it.

        It is this run's if the checkpoint that is resumed lies beside it, wherever the folder has been moved to, or was
        written for this folder. The score is the one that best.ckpt itself holds: it may be newer than what is resumed.
        """
        here = Path(str(self.dirpath)).resolve()
        if here not in (self._resumed, Path(str(state_dict.get("dirpath"))).resolve()):
            return
        path = Path(str(self.dirpath)) / "best.ckpt"
        if not path.is_file():
            return
        try:
            score = read_checkpoint(path)["callbacks"][self.state_key]["current_score"]
        except (ValueError, KeyError, OSError) as error:
            rank_zero_warn(f"{path} is not kept, as its score cannot be read ({error})")
            return
        self.best_k_models = {str(path): score}
        self.best_model_path = self.kth_best_model_path = str(path)
        self.best_model_score = self.current_score = self.kth_value = score

    def _save_topk_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        # Lightning raises here when validation ran and did not log the score
        if self.monitor in monitor_candidates and not _diverging(trainer):
            super()._save_topk_checkpoint(trainer, monitor_candidates)


class Last(ModelCheckpoint):
    """last.ckpt after every epoch, every few minutes within one, and when SIGTERM ends the run.

    The one before it stays beside it as previous.ckpt. ModelCheckpoint's own `save_last` follows the best and may be
    epochs behind.

    Args:
        dirpath: the folder.
        minutes: the longest that an epoch trains without a checkpoint.

    Raises:
        ValueError: if minutes is not positive.
    """

    def __init__(self, dirpath: str | Path, minutes: float = 15.0) -> None:
        super().__init__(dirpath, LAST.stem, save_on_train_epoch_end=True, enable_version_counter=False)
        if minutes <= 0:
            raise ValueError(f"minutes is {minutes}, expected a positive number")
        self.minutes = minutes
        self._saved_at = 0.0
        self._worth_keeping = True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove what killed runs left half-written."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and trainer.is_global_zero:
            remove_leftovers(Path(str(self.dirpath)))

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """A run that goes on from previous.ckpt does so because last.ckpt is broken."""
        self._worth_keeping = Path(str(trainer.ckpt_path)).name != PREVIOUS.name

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore: the name is always the same, and paths may be those of where the folder once was."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The clock starts."""
        super().on_train_start(trainer, pl_module)
        self._saved_at = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, *arguments: Any, **named: Any) -> None:  # noqa: ANN401
        """Save if it is time; the first process looks at the clock for all of them."""
        if trainer.fit_loop._should_accumulate():  # what is accumulated is in no checkpoint
            return
        late = time.monotonic() - self._saved_at >= 60 * self.minutes
        if trainer.strategy.broadcast(late) and not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save what SIGTERM would lose; it comes between two batches, where all is in order."""
        super().on_exception(trainer, pl_module, exception)
        ends = isinstance(exception, SIGTERMException) and not isinstance(exception, Requeued)
        if not ends or not trainer.global_step or self._should_skip_saving_checkpoint(trainer):
            return
        if trainer.validating:
            _leave_validation(trainer, pl_module)
        self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    def _save_topk_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        if _diverging(trainer):
            return
        if trainer.is_global_zero and self._worth_keeping:
            _keep(Path(str(self.dirpath)))
        super()._save_topk_checkpoint(trainer, monitor_candidates)
        self._worth_keeping, self._saved_at = True, time.monotonic()


def newest(folder: Path) -> Path | None:
    """The last checkpoint of a folder whose bytes are whole: last.ckpt, or the one before it, with a warning.

    Raises:
        ValueError: if there are such files and none is whole.
    """
    problems = []
    for path in (folder / LAST, folder / PREVIOUS):
        if not path.is_file():
            continue
        if (reason := damage(path)) is None:
            if problems:
                rank_zero_warn(f"{problems[0]}; {path}, the checkpoint before it, is used")
            return path
        problems.append(f"{path} is not a readable checkpoint: {reason}")
    if problems:
        raise ValueError("; ".join(problems))
    return None


def _keep(folder: Path) -> None:
    """Give last.ckpt the name of the previous one too; the new one will then take its own."""
    last, spare = folder / LAST, folder / f".{os.getpid()}.{PREVIOUS}"
    if not last.is_file():
        return
    try:
        spare.unlink(missing_ok=True)
        os.link(last, spare)
        os.replace(spare, folder / PREVIOUS)
        spare.unlink(missing_ok=True)  # where both were one file already, nothing was replaced
    except OSError:  # a disk without hard links
        os.replace(last, folder / PREVIOUS)


def _leave_validation(trainer: Trainer, module: LightningModule) -> None:
    """Give the module its own weights back, in the place of averaged ones, and have a resumed run validate anew."""
    for average in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(average, WeightAveraging):
            average.on_validation_epoch_end(trainer, module)
    # what Lightning takes for a validation that was stopped: one batch begun and not processed; none to be passed over
    batches = trainer.fit_loop.epoch_loop.val_loop.batch_progress
    total, current = cast(_ProcessedTracker, batches.total), batches.current
    total.processed = total.completed = total.started - 1
    current.reset()


def _diverging(trainer: Trainer) -> bool:
    """Whether the weights have stopped giving finite losses: a checkpoint of them would be of no use."""
    diverging = bool(getattr(trainer.lightning_module, "diverging", False))
    if diverging:
        rank_zero_warn(f"no checkpoint is written at step {trainer.global_step}: the last steps were not finite")
    return diverging
