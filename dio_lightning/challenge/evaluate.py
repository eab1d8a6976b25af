"""Fields that any tool made, scored as `dio-lightning test` scores a method."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningArgumentParser

from dio_lightning.callbacks.scores import RegistrationScores
from dio_lightning.challenge.scores import Learn2RegScores
from dio_lightning.experiment import RegistrationCLI, prepare

OUT = Path("runs/evaluate")
OURS = {"--model": "FOLDER", "--ckpt_path": "FOLDER", "--trainer.default_root_dir": "--out"}
"""Options of test that the command sets itself, and what is given instead."""


def evaluate(
    folder: Path, options: Sequence[str], out: Path | None = None, l2r: bool = False, masked: bool = False
) -> None:
    """Score the displacement fields of a folder; writes to `out` what `dio-lightning test` writes to its folder.

    Args:
        folder: one file per test pair of the data, see `modules.Precomputed`.
        options: of `dio-lightning test`: the data, and what of the trainer is to be other than by default.
        out: folder of the scores; by default runs/evaluate, or runs/evaluate_2, ... where that holds others.
        l2r: Learn2Reg's official numbers too.
        masked: folds and the spread of the log determinant inside fixed_mask alone, as Learn2Reg evaluates lungs.

    Raises:
        FileNotFoundError, ValueError: as `modules.Precomputed`, or for an option that is none.
    """
    prepare()
    _Evaluation(arguments(folder, options, out), OUT if out is None else None, l2r, masked)


def arguments(folder: Path, options: Sequence[str], out: Path | None) -> list[str]:
    """The command line of a test of the folder's fields on the data of the options.

    Raises:
        ValueError: if the options name a model or where scores go.
    """
    for option in options:
        for ours, instead in OURS.items():
            if option == ours or option.startswith((f"{ours}=", f"{ours}.")):
                raise ValueError(f"the option {option.split('=')[0]} has no meaning here: give {instead} instead")
    model = ["--model", "dio_lightning.modules.Precomputed", "--model.folder", str(folder)]
    # behind the user's configs, whose models and folders are those of a training
    quiet = ["--trainer.logger", "false", "--trainer.default_root_dir", str(out or OUT)]
    return ["test", *options, *model, *quiet]


class _Evaluation(RegistrationCLI):
    """A test with Learn2Reg's numbers, if they are asked for."""

    def __init__(self, args: list[str], folder: Path | None, l2r: bool, masked: bool) -> None:
        self.l2r, self.masked = l2r, masked
        super().__init__(args, folder)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:  # noqa: ANN401
        """Parse the command line; that the fields come out of a folder is no change of a method."""
        super().parse_arguments(parser, args)
        self.variant = ""

    def _with_defaults(self, given: list[Callback], root: Path, config: dict[str, Any]) -> list[Callback]:
        everything = super()._with_defaults(given, root, config)
        for callback in everything:
            if isinstance(callback, RegistrationScores) and self.masked:
                callback.test_options = replace(callback.test_options, masked=True)
        # behind the scores, whose file it reads
        return [*everything, *([Learn2RegScores(self.masked)] if self.l2r else [])]
