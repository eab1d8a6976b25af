"""One picture a pair: what was registered, how well, and how the space was bent; in training, for loggers."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure

from dio_lightning.callbacks.logged_pictures import show, takes_pictures
from dio_lightning.callbacks.writer import pair_ids
from dio_lightning.fields.names import full_name, pair_name
from dio_lightning.files import replacing
from dio_lightning.pair import Pair
from dio_lightning.pictures import Upright, draw


class Panels(Callback):
    """Writes panels/<fixed>_<moving>.png for the first pairs of a test, under the trainer's default_root_dir.

    During a training the first pair of a validation goes to the loggers that take pictures (TensorBoard, W&B, MLflow).

    Volumes are cut across the given axis of the standing body (0 sagittal, 1 coronal, 2 axial) through the middle of
    the fixed labels or mask, and stand upright whatever the order of their axes: the affine says where up is.
    """

    def __init__(self, pairs: int = 3, axis: int = 1, every: int = 10) -> None:
        """Choose the pictures.

        Args:
            pairs: how many pairs are drawn.
            axis: the axis that a slice is perpendicular to.
            every: validations of a training from one picture to the next, the first of them being drawn; 0: none.

        `written` lists the pictures of the test.

        Raises:
            ValueError: pairs or every is negative, or axis not one of 0, 1, 2.
        """
        if every < 0:
            raise ValueError(f"Panels: expected every >= 0, not {every}")
        if pairs < 0 or axis not in (0, 1, 2):
            raise ValueError(f"Panels: expected pairs >= 0 and axis 0, 1 or 2, not pairs={pairs} and axis={axis}")
        self.pairs, self.axis, self.every = pairs, axis, every
        self._validations = 0
        self.written: list[Path] = []
        self._names: dict[str, tuple[str, str]] = {}

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from zero."""
        self.written = []
        self._names = {}

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: Pair,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the pairs of the batch while there are pictures left; one process draws."""
        if not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
            return
        for sample in range(min(len(batch["fixed"]), self.pairs - len(self.written))):
            fixed, moving = pair_ids(batch, sample, f"{dataloader_idx}x{len(self.written)}")
            figure = self._drawn(batch, outputs, sample, f"{moving} onto {fixed}")
            name = pair_name(fixed, moving)
            if self._names.setdefault(name, (fixed, moving)) != (fixed, moving):
                name = full_name(fixed, moving)
            path = Path(trainer.default_root_dir) / "panels" / f"{name}.png"
            with replacing(path) as temporary:
                figure.savefig(temporary, dpi=110)
            self.written.append(path)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: Pair,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Show the first pair of every `every`-th validation of a training to the loggers; one process does."""
        training = trainer.state.fn == "fit" and not trainer.sanity_checking
        if not (training and self.every and trainer.is_global_zero and batch_idx == dataloader_idx == 0):
            return
        self._validations += 1
        loggers = [logger for logger in trainer.loggers if takes_pictures(logger)]
        if not loggers or (self._validations - 1) % self.every or getattr(trainer, "fast_dev_run", False):
            return
        fixed, moving = pair_ids(batch, 0, "0x0")
        when = f"epoch {trainer.current_epoch}, {moving} onto {fixed}"
        figure = self._drawn(batch, outputs, 0, when)
        for logger in loggers:
            show(logger, "val/panels", figure, trainer.global_step)

    def _drawn(self, batch: Pair, outputs: Any, sample: int, title: str) -> Figure:  # noqa: ANN401
        """The sheet of one pair, with its mean Dice in the title where it has labels."""
        pair = Upright.of(batch, outputs["displacement"], sample)
        dice = "" if pair.dice is None else ": mean Dice {:.3f} → {:.3f}".format(*pair.dice)
        return draw(pair.plane(self.axis), title + dice)
