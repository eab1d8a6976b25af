"""What loggers get besides numbers: config by its keys, the scores of every pair, panels; one W&B run a folder."""

import csv
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from matplotlib.image import imread

from dio_lightning.callbacks.panels import Panels
from dio_lightning.files import write_atomic

ID = "wandb_id.txt"
"""File of a run's folder that names its W&B run."""


class LoggedResults(Callback):
    """Gives the scores of every pair and the panels of a test to W&B, MLflow and TensorBoard."""

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hand over what the test has written; one process does."""
        if not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
            return
        callbacks: Iterable[Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        panels = [path for callback in callbacks if isinstance(callback, Panels) for path in callback.written]
        table = Path(trainer.default_root_dir) / "metrics.csv"
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                _to_wandb(logger, table, panels)
            elif isinstance(logger, MLFlowLogger):
                for path in (table, *panels):
                    logger.experiment.log_artifact(logger.run_id, str(path))
            elif isinstance(logger, TensorBoardLogger):
                for path in panels:
                    logger.experiment.add_image(f"panels/{path.stem}", imread(path)[..., :3], dataformats="HWC")


def log_config(logger: Logger, config: dict[str, Any], folder: Path) -> None:
    """The config by its keys, and in the folder which W&B run is its own; CSV and TensorBoard have it in a file."""
    if not isinstance(logger, CSVLogger | TensorBoardLogger):
        logger.log_hyperparams(config)
    if isinstance(logger, WandbLogger):
        write_atomic(folder / ID, f"{logger.version}\n")


def stay_in(folder: Path, loggers: object, anew: bool) -> None:
    """Have W&B write into a run's folder, unless it was given another one, and go on with the run of the folder.

    Args:
        folder: of the run.
        loggers: one or several; others than W&B's are left as they are.
        anew: whether the folder's files will be replaced: then the W&B run is a new one.
    """
    for logger in loggers if isinstance(loggers, list | tuple) else [loggers]:
        if not isinstance(logger, WandbLogger):
            continue
        settings = logger._wandb_init
        if logger.save_dir in (None, "."):
            settings["dir"] = logger._save_dir = str(folder)
        # an agent says which run is the trial's
        if settings.get("id") is None and "WANDB_SWEEP_ID" not in os.environ:
            file = folder / ID
            before = file.read_text(encoding="utf-8").strip() if file.is_file() and not anew else ""
            settings["id"] = logger._id = before or secrets.token_hex(4)


def finish(loggers: Iterable[Logger]) -> None:
    """End the W&B runs that were begun: another command of this process has one of its own."""
    for logger in loggers:
        if isinstance(logger, WandbLogger) and logger._experiment is not None:
            logger._experiment.finish()


def _to_wandb(logger: WandbLogger, table: Path, panels: list[Path]) -> None:
    if table.is_file():
        with table.open(encoding="utf-8", newline="") as file:
            columns, *rows = csv.reader(file)
        logger.log_table("test/pairs", columns, [[_number(cell) for cell in row] for row in rows])
    if panels:
        logger.log_image("test/panels", [str(path) for path in panels], caption=[path.stem for path in panels])


def _number(cell: str) -> float | str | None:
    try:
        return float(cell) if cell else None
    except ValueError:
        return cell
