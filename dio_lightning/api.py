"""What Python has instead of a command line: a trained module from its weights, an experiment from its options."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from lightning.pytorch import LightningDataModule, Trainer

from dio_lightning.checkpoints import trained_config
from dio_lightning.cli import RUNS
from dio_lightning.experiment import RegistrationCLI, prepare
from dio_lightning.models import weights_path
from dio_lightning.modules import RegistrationModule
from dio_lightning.modules.restoring import untrained
from dio_lightning.shipped_configs import shipped_configs


@dataclass(frozen=True)
class Experiment:
    """What a command works with."""

    module: RegistrationModule
    data: LightningDataModule
    """As yet without its files: `setup` reads them."""
    trainer: Trainer
    _cli: RegistrationCLI

    def run(self) -> None:
        """Run the command that was built, with all that it checks, writes and prints."""
        self._cli.start()


def load(weights: str | PathLike[str]) -> RegistrationModule:
    """The trained module of a file of weights, on the CPU and in evaluation mode.

    Args:
        weights: a checkpoint (.ckpt), weights with their config in them or beside them (.safetensors), or a model that
            comes with the package by its name, such as `brain-t1`. Plain data alone are read, so that a file can run no
            program. Of a method that has nothing to train, the name of a config of the package, `classical/mind`.

    Returns:
        The module; `module.register(pair)` is the displacement (b, d, *s) in voxels of the fixed grid.

    Raises:
        FileNotFoundError: no such file, or no config in it or beside it.
        ValueError: not such a file, one that is damaged, or one that does not fit its config; a config of a method
            that needs weights.
    """
    path = weights_path(weights)
    if not path.exists() and (config := shipped_configs().get(path.as_posix())):
        return untrained(RegistrationModule, config).eval()
    if not path.exists() and not path.suffix:
        raise FileNotFoundError(f"{path} is no file of weights, nor a config that `dio-lightning configs` lists")
    if not isinstance(trained_config(path).get("model"), dict):
        raise ValueError(f"{path} has a config that names no model")
    return RegistrationModule.load_from_checkpoint(path).eval()


def build(args: str | Sequence[str], folder: Path | None = None) -> Experiment:
    """Build what a command works with, and run nothing.

    The weights that `test`, `validate` or `predict` name with --ckpt_path are loaded; `fit` restores them when it runs.

    Args:
        args: a command and its options as `dio-lightning` takes them: "test --ckpt_path X --data.root Y", in one string
            or in words. Options alone are those of `test`.
        folder: of the run, where the options name none.

    Raises:
        FileNotFoundError, ValueError: with the sentence that the command line would print.
    """
    words = shlex.split(args) if isinstance(args, str) else [*args]
    if not words or words[0].startswith("-"):
        words = ["test", *words]
    if words[0] not in RUNS:
        raise ValueError(f"{words[0]!r} builds no experiment, expected one of {', '.join(RUNS)}")
    prepare()
    cli = RegistrationCLI(words, folder, runs=False)
    if words[0] != "fit":
        cli.restore()
    return Experiment(cli.model, cli.datamodule, cli.trainer, cli)
