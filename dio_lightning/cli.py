"""The command line. Heavy imports wait until there is something to do, so that help and usage errors are quick."""

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from dio_lightning import __version__
from dio_lightning.errors import debugging, fail, user_message

USAGE = f"""dio-lightning {__version__}: deformable image registration by implicit layers

  dio-lightning fit      --config experiments/dio/demo.yaml
  dio-lightning test     --ckpt_path runs/demo/dio/checkpoints/best.ckpt
  dio-lightning predict  --ckpt_path WEIGHTS --data.root FOLDER
  dio-lightning validate --config CONFIG --ckpt_path last
  dio-lightning export   --ckpt_path CHECKPOINT OUT.safetensors

Later --config files win over earlier ones, the command line over all of them, and all of them over the checkpoint.
`dio-lightning fit --help` lists every option, `dio-lightning fit --config CONFIG --print_config` what they are set to.
With DIO_DEBUG=1 errors keep their traceback.
"""


class _ExportParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        fail(f"export: {message}")


def main(args: Sequence[str] | None = None) -> None:
    """Run a command; exits with code 2 and one sentence when the user's input is wrong.

    Args:
        args: the command line without the program's name; by default that of this process.
    """
    argv = list(sys.argv[1:] if args is None else args)
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE, end="")
        return
    if argv[0] == "--version":
        print(__version__)
        return
    _silence()
    try:
        _dispatch(argv)
    except Exception as error:
        message = user_message(error)
        if message is None or debugging():
            raise
        fail(message)


def _dispatch(argv: list[str]) -> None:
    commands = ("fit", "validate", "test", "predict", "export")
    if argv[0] not in commands:
        fail(f"unknown command {argv[0]!r}: expected one of {', '.join(commands)}")
    if argv[0] == "export":
        return _export(argv[1:])
    from dio_lightning.experiment import run

    run(argv)


def _export(argv: list[str]) -> None:
    parser = _ExportParser("dio-lightning export", description="Weights as safetensors, beside their resolved config.")
    parser.add_argument("--ckpt_path", type=Path, required=True, help="a checkpoint that fit wrote")
    parser.add_argument("out", type=Path, help="file to write, ending in .safetensors")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    options = parser.parse_args(argv)
    from dio_lightning.checkpoints import export_weights

    export_weights(options.ckpt_path, options.out, options.overwrite)
    print(f"wrote {options.out} and {options.out.with_suffix('.yaml')}")


def _silence() -> None:
    """Warnings that ask nothing of the user."""
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="(monai|torch|lightning)")
    warnings.filterwarnings("ignore", category=FutureWarning, module="(monai|torch|lightning)")
