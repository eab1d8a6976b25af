"""The contract of every training: what is not finite reaches no weight, and no file."""

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from dio_lightning.modules.sharding import SplitWeights, total_norm

SKIPPED = "dio_lightning_skipped_steps"
"""Key of a checkpoint under which the number of skipped steps lies."""


class FiniteSteps(SplitWeights):
    """Skips the optimizer steps whose loss or gradient is not finite, and refuses to save weights that are not.

    A skipped step leaves weights and optimizer as they were; all processes skip it together. It is counted, logged as
    `train/skipped_steps`, and a warning says so at the 1st, 2nd, 4th, 8th ... of them. A gradient whose squares
    overflow counts as not finite: Adam's second moments would stay infinite, and their weights would never move again.
    With accumulation one bad batch spoils the step that it is part of. A gradient scaler (precision 16-mixed) looks for
    its scale by gradients that overflow; such steps are skipped and counted, but end no training.
    """

    patience = 10
    """Steps in a row that may be skipped before training ends."""

    def __init__(self) -> None:
        super().__init__()
        self.skipped_steps = 0
        self.skipped_in_a_row = 0
        self._spoiled = False

    @property
    def diverging(self) -> bool:
        """Whether two steps in a row were skipped: then the weights are to blame, rather than one batch."""
        return self.skipped_in_a_row > 1

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Differentiates a finite loss; of another one no process computes a gradient."""
        # where every solve has failed, the loss is that of fields that no weight has made
        finite = self._on_all(loss.detach().isfinite().all() & loss.requires_grad)
        self._spoiled = self._spoiled or not finite
        # the scaler must see the gradient, or it would find no step to judge
        if finite or self._scaler is not None:
            super().backward(loss, *args, **kwargs)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Takes the gradients away where the step must not be: without gradient an optimizer changes nothing.

        Raises:
            ValueError: after `patience` skipped steps in a row.
        """
        finite_loss, self._spoiled = not self._spoiled, False
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = total_norm(gradients) if gradients else torch.zeros((), device=self.device)
        if finite_loss and self._on_all(norm.isfinite()):
            self.skipped_in_a_row = 0
        else:
            optimizer.zero_grad(set_to_none=True)
            self._skipped(searching=finite_loss and self._scaler is not None and self._scaler.get_scale() > 1)
        self.log("train/skipped_steps", float(self.skipped_steps))

    def on_skipped_step(self) -> None:
        """Called after a step was skipped; a method that keeps something between steps forgets it here."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the number of skipped steps.

        Raises:
            ValueError: if weights, buffers or states of the optimizer are not finite; nothing is written then.
        """
        states = {"state_dict": checkpoint["state_dict"], "optimizer_states": checkpoint.get("optimizer_states", [])}
        bad = [name for name, value in _tensors(states) if not bool(value.isfinite().all())]
        if bad:
            raise ValueError(
                f"training has diverged: {len(bad)} of the weights and the optimizer's states are not finite at step "
                f"{checkpoint.get('global_step')} (first: {bad[0]}), so that they are not saved; try a lower learning "
                "rate"
            )
        checkpoint[SKIPPED] = self.skipped_steps

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Goes on counting."""
        self.skipped_steps = int(checkpoint.get(SKIPPED, 0))

    @property
    def _scaler(self) -> torch.amp.GradScaler | None:  # pyright: ignore[reportPrivateImportUsage]
        plugin = self.trainer.precision_plugin
        return plugin.scaler if isinstance(plugin, MixedPrecision) else None

    def _on_all(self, flag: Tensor) -> bool:
        """Whether a flag holds on every process."""
        if self.trainer.world_size > 1:
            flag = self.trainer.strategy.reduce(flag.to(self.device, torch.float32), reduce_op="min")
        return bool(flag)

    def _skipped(self, searching: bool) -> None:
        self.skipped_steps += 1
        self.skipped_in_a_row = 0 if searching else self.skipped_in_a_row + 1
        self.on_skipped_step()
        if self.skipped_in_a_row >= self.patience:
            raise ValueError(
                f"training has diverged: its loss or gradient was not finite in {self.skipped_in_a_row} steps in a row "
                f"up to step {self.global_step} (epoch {self.current_epoch}); the checkpoints from before are kept; "
                "try a lower learning rate or trainer.gradient_clip_val, or look for the images at fault with `check`"
            )
        if not searching and self.skipped_steps & (self.skipped_steps - 1) == 0:
            rank_zero_warn(
                f"step {self.global_step} was skipped, because its loss or gradient is not finite "
                f"({self.skipped_steps} skipped so far)"
            )


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:  # noqa: ANN401
    """Every tensor with its dotted name in nested dicts and lists."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield from _tensors(entry, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for index, entry in enumerate(value):
            yield from _tensors(entry, f"{name}.{index}")
