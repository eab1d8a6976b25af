"""Signals by which clusters end a job: every command stops between two batches, a training with a checkpoint."""

import signal
import threading
from types import FrameType

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, tensor


class Requeued(SIGTERMException):
    """The training has been saved and its SLURM job is queued again."""


class StopAtSignal(Callback):
    """Ends a command at SIGTERM after the batch; the processes of a training agree on which batch that is.

    Lightning's handlers act wherever the signal finds them: they wait for other processes, and save in the middle of a
    step. Here a handler sets a flag, and nothing more. A training stops at the end of a batch whose gradients have been
    used, on all processes if one has the flag, and `Last` saves; SLURM's signal before the end of a job (SIGUSR1) then
    has Lightning save hpc_ckpt_N.ckpt and queue the job again. Where nothing is trained, each process stops by itself.
    """

    def __init__(self) -> None:
        self._terminated = self._requeue = False
        self._trainer: Trainer | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the place of Lightning's handlers."""
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
        """Agree on whether this batch is the last.

        Raises:
            Requeued: if SLURM's queue has the job again.
        """
        # what is accumulated is in no checkpoint
        if trainer.fit_loop._should_accumulate():
            return
        terminated, requeue = self._agreed(trainer, pl_module)
        if requeue:
            self._requeue = False
            trainer._signal_connector._slurm_sigusr_handler_fn(signal.SIGUSR1, None)  # pyright: ignore[reportArgumentType]
            raise Requeued
        if terminated:
            trainer._signal_connector.received_sigterm = True

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop after the batch; the processes of a training, which may have unlike numbers of them, after the last."""
        if self._terminated and trainer.world_size == 1:
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

    def _agreed(self, trainer: Trainer, pl_module: LightningModule) -> tuple[bool, bool]:
        """Whether some process has either flag."""
        flags: object = tensor([float(self._terminated), float(self._requeue)], device=pl_module.device)
        if trainer.world_size > 1:
            flags = trainer.strategy.reduce(flags, reduce_op="max")  # pyright: ignore[reportArgumentType]
        assert isinstance(flags, Tensor)
        terminated, requeue = flags.tolist()
        return bool(terminated), bool(requeue)

    def _watch(self, trainer: Trainer) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        self._trainer = trainer
        signal.signal(signal.SIGTERM, self._end)
        environment = trainer._accelerator_connector.cluster_environment
        if trainer.state.fn == TrainerFn.FITTING and isinstance(environment, SLURMEnvironment):
            if environment.auto_requeue and environment.requeue_signal is not None:
                signal.signal(environment.requeue_signal, self._queue_again)

    def _end(self, number: int, frame: FrameType | None) -> None:
        """The handler of SIGTERM: nothing in it may wait."""
        assert self._trainer is not None
        launcher = self._trainer.strategy.launcher
        if launcher is not None and not self._terminated:
            launcher.kill(number)
        self._terminated = True
        if self._trainer.state.fn != TrainerFn.FITTING:
            self._trainer._signal_connector.received_sigterm = True

    def _queue_again(self, number: int, frame: FrameType | None) -> None:
        """The handler of SLURM's signal: nothing in it may wait."""
        self._requeue = True
