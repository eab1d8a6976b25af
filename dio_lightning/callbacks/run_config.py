"""The resolved config of a command, beside what the command writes."""

from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn

from dio_lightning.callbacks.environment import changes, environment
from dio_lightning.callbacks.loggers import log_config
from dio_lightning.checkpoint_files import CONFIG
from dio_lightning.files import remove_leftovers, write_atomic


class RunConfig(SaveConfigCallback):
    """Leaves the resolved config in the run's folder, in the log's folder and in every checkpoint.

    That of a training is config.yaml; those of validate, test and predict are config_<command>.yaml, so that a test in
    the folder of a training leaves what it was trained with. Beside each lies environment.yaml, or
    environment_<command>.yaml: command, host, versions and commit; changes.diff is what a training's code has beyond
    that commit.
    """

    @cached_property
    def text(self) -> str:
        """The resolved config as YAML."""
        return self.parser.dump(self.config, skip_none=False)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the config of this command."""
        folder, command = Path(trainer.default_root_dir), TrainerFn(stage).value
        remove_leftovers(folder)
        name = "config.yaml" if command == "fit" else f"config_{command}.yaml"
        write_atomic(folder / name, self.text)
        write_atomic(folder / name.replace("config", "environment"), yaml.safe_dump(environment(), sort_keys=False))
        if command == "fit" and (difference := changes()):
            write_atomic(folder / "changes.diff", difference + "\n")
        for logger in trainer.loggers:
            log_config(logger, yaml.safe_load(self.text), folder)
            if logger.log_dir is not None:
                write_atomic(Path(logger.log_dir) / "config.yaml", self.text)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the config into the checkpoint, so that a checkpoint alone can be tested."""
        checkpoint[CONFIG] = self.text
