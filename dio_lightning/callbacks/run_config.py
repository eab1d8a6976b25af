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
from dio_lightning.checkpoint_files import CONFIG, checkpoints
from dio_lightning.files import remove_leftovers, write_atomic

TRAINED, WHERE, DIFFERENCE = "config.yaml", "environment.yaml", "changes.diff"
"""Files of a training's folder."""
RESUMED = "resumed"
"""Key of environment.yaml: the parts of a training that went on from a checkpoint, each with its step and epoch."""


class RunConfig(SaveConfigCallback):
    """Leaves the resolved config in the run's folder, in the log's folder and in every checkpoint.

    That of a training is config.yaml; those of validate, test and predict are config_<command>.yaml, so that a test in
    the folder of a training leaves what it was trained with. Beside each lies environment.yaml, or
    environment_<command>.yaml: command, host, versions and commit; changes.diff is what a training's code has beyond
    that commit. A training that goes on adds where it does so to environment.yaml, under `resumed`, with the step; what
    was another config or another code before lies in config_until_step_<n>.yaml and changes_until_step_<n>.diff.
    """

    _goes_on = False

    @cached_property
    def text(self) -> str:
        """The resolved config as YAML."""
        return self.parser.dump(self.config, skip_none=False)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the config of this command."""
        folder, command = Path(trainer.default_root_dir), TrainerFn(stage).value
        remove_leftovers(folder)
        name = TRAINED if command == "fit" else f"config_{command}.yaml"
        self._goes_on = command == "fit" and goes_on(folder)
        if not self._goes_on:
            write_atomic(folder / name, self.text)
            write_atomic(folder / name.replace("config", "environment"), yaml.safe_dump(environment(), sort_keys=False))
            if command == "fit" and (difference := changes()):
                write_atomic(folder / DIFFERENCE, difference + "\n")
        for logger in trainer.loggers:
            log_config(logger, yaml.safe_load(self.text), folder)
            if logger.log_dir is not None:
                write_atomic(Path(logger.log_dir) / "config.yaml", self.text)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the part of a training that begins here to what its folder says of those before."""
        if not self._goes_on:
            return
        folder, step = Path(trainer.default_root_dir), trainer.global_step
        before = yaml.safe_load((folder / WHERE).read_text(encoding="utf-8"))
        part = {"step": step, "epoch": trainer.current_epoch, **environment()}
        text = {**before, RESUMED: [*before.get(RESUMED, []), part]}
        write_atomic(folder / WHERE, yaml.safe_dump(text, sort_keys=False))
        difference = changes()
        _replace(folder / DIFFERENCE, difference + "\n" if difference else "", step)
        _replace(folder / TRAINED, self.text, step)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the config into the checkpoint, so that a checkpoint alone can be tested."""
        checkpoint[CONFIG] = self.text


def goes_on(folder: Path) -> bool:
    """Whether a training that begins in this folder is the rest of one: all others are refused, or have replaced it."""
    return (folder / WHERE).is_file() and bool(checkpoints(folder) or any(folder.glob("hpc_ckpt_*.ckpt")))


def _replace(file: Path, text: str, step: int) -> None:
    """Write a file; what it said before stays, by its step, unless that was the same but for --ckpt_path last."""
    before = file.read_text(encoding="utf-8") if file.is_file() else ""
    same = _from_nothing(before) == _from_nothing(text) if file.name == TRAINED else before == text
    if file.is_file() and not same:
        write_atomic(file.with_name(f"{file.stem}_until_step_{step}{file.suffix}"), before)
    if text:
        write_atomic(file, text)
    else:
        file.unlink(missing_ok=True)


def _from_nothing(config: str) -> Any:  # noqa: ANN401
    """A config of which it makes no difference whether it says `last` or nothing of a checkpoint."""
    content = yaml.safe_load(config) or {}
    return content | {"ckpt_path": None} if content.get("ckpt_path") == "last" else content
