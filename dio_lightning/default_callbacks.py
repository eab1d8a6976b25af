"""The callbacks that every command has, unless its config names others."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, ProgressBar

from dio_lightning.callbacks.checkpoints import Best, Last
from dio_lightning.callbacks.dimensions import Dimensions
from dio_lightning.callbacks.html_report import Report
from dio_lightning.callbacks.loggers import LoggedResults
from dio_lightning.callbacks.optimizers import ConfiguredOptimizers
from dio_lightning.callbacks.panels import Panels
from dio_lightning.callbacks.progress import ProgressLines, TrainingBar, on_terminal
from dio_lightning.callbacks.random_states import RandomStates
from dio_lightning.callbacks.scores import RegistrationScores
from dio_lightning.callbacks.signals import StopAtSignal
from dio_lightning.callbacks.writer import FieldWriter


def with_defaults(command: str, given: Sequence[Callback], root: Path, config: dict[str, Any]) -> list[Callback]:
    """Our callbacks, each unless the config names one of its kind; scores before others, because they hold the clock.

    Args:
        command: fit, validate, test or predict.
        given: the config's callbacks.
        root: folder of the run.
        config: of the trainer; where nobody looks, its bar is switched off.
    """
    others: list[Callback] = []
    if config["enable_checkpointing"] is not False and not any(isinstance(c, ModelCheckpoint) for c in given):
        others += [Best(root / "checkpoints"), Last(root / "checkpoints")]
    if command == "fit":
        others += [RandomStates(), ConfiguredOptimizers(), *([LearningRateMonitor()] if config["logger"] else [])]
    if command in ("fit", "test"):
        others.append(Panels())
    if command == "test":
        others += [Report(), LoggedResults()]
    if command == "predict":
        others.append(FieldWriter())
    if config["enable_progress_bar"] is not False and not any(isinstance(c, ProgressBar) for c in given):
        config["enable_progress_bar"] = on_terminal()
        others += [TrainingBar()] if config["enable_progress_bar"] else []
    # last: what ends a command comes after everything that a batch leaves
    others += [ProgressLines(), StopAtSignal()]
    kinds = {type(callback) for callback in given}
    kept = [callback for callback in others if type(callback) not in kinds]
    everything = [Dimensions(), *([] if RegistrationScores in kinds else [RegistrationScores()]), *given, *kept]
    for callback in everything:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
            callback.dirpath = str((root / "checkpoints").resolve())
    return everything
