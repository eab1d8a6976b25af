"""How a command line is read: our parser, and the config of the checkpoint that is tested, before all others."""

from argparse import ArgumentParser
from pathlib import Path
from typing import NoReturn

import yaml
from lightning.pytorch.cli import LightningArgumentParser

from dio_lightning.checkpoints import trained_config
from dio_lightning.errors import debugging
from dio_lightning.usage import explained, options_of


class Parser(LightningArgumentParser):
    """A parser that says what is wrong in one sentence."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise ValueError with the sentence; the command line prints it and exits with code 2."""
        if not self.exit_on_error or debugging():
            super().error(message, ex)
        raise ValueError(explained(message, options_of(self))) from ex


def with_checkpoint_config(args: list[str]) -> list[str]:
    """Arguments of validate, test or predict, with the config of their checkpoint put before all others."""
    finder = ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--ckpt_path")
    wanted = finder.parse_known_args(args)[0].ckpt_path
    named = wanted in ("last", "best", "hpc", "null", "None") or (wanted or "").startswith("registry")
    if not args or args[0] not in ("validate", "test", "predict") or not wanted or named:
        return args
    config = trained_config(Path(wanted))
    return [args[0], "--config", yaml.safe_dump(config, sort_keys=False), *args[1:]]
