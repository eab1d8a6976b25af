"""Whether a method's networks take the images of the data, asked before the first batch is worked on."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from dio_lightning.networks.dimension import check_dimension
from dio_lightning.pair import Pair


class Dimensions(Callback):
    """Refuses batches of images that have more or fewer dimensions than the method's networks, in every command."""

    weights: Path | None = None
    """Where the method's weights come from, as sentences call them."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Pair, batch_idx: int) -> None:
        """Look at the first batch of an epoch."""
        self._check(pl_module, batch, batch_idx)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Pair, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Look at the first batch."""
        self._check(pl_module, batch, batch_idx)

    on_test_batch_start = on_predict_batch_start = on_validation_batch_start

    def _check(self, module: LightningModule, batch: Any, index: int) -> None:  # noqa: ANN401
        if index == 0 and isinstance(batch, dict) and "fixed" in batch:
            names = batch.get("fixed_id") or ["the fixed image"]
            check_dimension(module, {str(names[0]): batch["fixed"].ndim - 2}, self.weights)
