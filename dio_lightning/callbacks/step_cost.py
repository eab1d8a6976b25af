"""What the steps of a training cost: time, waiting for data, memory."""

import time

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from dio_lightning.callbacks.cost import clock, peak_memory


class StepCost(Callback):
    """Logs, for every epoch, the means of its steps in seconds and the most memory.

    `cost/step_seconds` is a step without its data, `cost/data_wait_seconds` how long it waited for them: where that is
    more than a tenth of the other, more loader processes help (`--data.num_workers`). `cost/peak_mb` is in MiB: on CUDA
    what was allocated during the epoch, else the resident memory of the process so far. Of several processes the
    greatest is logged. On CUDA it waits for the device after every step, and the next one is not prepared meanwhile.
    """

    def __init__(self) -> None:
        self._mark = self._steps = self._waited = 0.0
        self._count = 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
        self._steps = self._waited = 0.0
        self._count = 0
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)
        self._mark = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        """The data are here."""
        now = time.perf_counter()
        self._waited += now - self._mark
        self._mark = now

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """The step is done."""
        now = clock(pl_module.device)
        self._steps += now - self._mark
        self._mark, self._count = now, self._count + 1

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A validation between two steps is neither."""
        self._mark = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the means of the process that has the greatest."""
        count = max(self._count, 1)
        values = {"step_seconds": self._steps / count, "data_wait_seconds": self._waited / count}
        values["peak_mb"] = peak_memory(pl_module.device)
        for name, value in values.items():
            pl_module.log(f"cost/{name}", value, sync_dist=True, reduce_fx="max")
