"""Random states in a checkpoint: what a training draws next is what it would have drawn, had it not been stopped."""

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from dio_lightning.processes import of_all

STATES = "dio_lightning_random_states"
"""Key of a checkpoint under which the random states of its processes lie, by rank."""


class RandomStates(Callback):
    """Saves the states of torch, CUDA, NumPy and Python of every process, and trains on from them."""

    def __init__(self) -> None:
        self._loaded: list[dict[str, Any]] = []

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the states, as plain data."""
        numpy: dict[str, Any] = np.random.get_state(legacy=False)  # type: ignore[assignment]
        mt = numpy["state"]
        own = {
            "torch": torch.get_rng_state(),
            "python": random.getstate(),
            "numpy": [mt["key"].tolist(), int(mt["pos"]), int(numpy["has_gauss"]), float(numpy["gauss"])],
        }
        if pl_module.device.type == "cuda":
            own["cuda"] = torch.cuda.get_rng_state(pl_module.device)
        checkpoint[STATES] = of_all(own)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the states until training begins."""
        self._loaded = checkpoint.get(STATES, [])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take up the states of this process; a warning says so where the number of processes is another one."""
        states, self._loaded = self._loaded, []
        if states and len(states) != trainer.world_size:
            rank_zero_warn(
                f"the checkpoint has the random states of {len(states)} processes and the run has "
                f"{trainer.world_size}: what is drawn at random is not what it would have been"
            )
        elif states:
            _restore(states[trainer.global_rank], pl_module.device)


def _restore(states: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(states["torch"].cpu())
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    key, position, has_gauss, cached = states["numpy"]
    np.random.set_state(("MT19937", np.array(key, np.uint32), position, has_gauss, cached))
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"].cpu(), device)
