"""SIGTERM, by which clusters end a job: every command stops between two batches."""

import signal
import threading
from types import FrameType

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, tensor


class StopAtSignal(Callback):
    """Ends predict after the batch, and lets the processes of a training agree on when to stop.

    Lightning stops fit, validate and test by itself, but not predict; and where there are several processes, its
    handler waits for the others, wherever the signal finds them. Here the handler sets a flag. In training, all
    processes stop after the same batch if one of them has it, and `Last` saves; elsewhere each stops after its own.
    """

    def __init__(self) -> None:
        self._received = False
        self._trainer: Trainer | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the place of Lightning's handler."""
        self._watch(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As before training, whose first validation comes earlier still."""
        self._watch(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As before training."""
        self._watch(trainer)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As before training."""
        self._watch(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Agree on whether this batch is the last."""
        if trainer.world_size > 1:
            flag = trainer.strategy.reduce(tensor(float(self._received), device=pl_module.device), reduce_op="max")
            if isinstance(flag, Tensor) and bool(flag):
                trainer._signal_connector.received_sigterm = True

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop after the batch, whose fields are written by now."""
        if trainer.received_sigterm:
            raise SIGTERMException

    def _watch(self, trainer: Trainer) -> None:
        if trainer.world_size > 1 and threading.current_thread() is threading.main_thread():
            self._trainer = trainer
            signal.signal(signal.SIGTERM, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        """The handler: nothing in it may wait."""
        assert self._trainer is not None
        launcher = self._trainer.strategy.launcher
        if launcher is not None and not self._received:
            launcher.kill(number)
        self._received = True
        if self._trainer.state.fn != TrainerFn.FITTING:
            self._trainer._signal_connector.received_sigterm = True
