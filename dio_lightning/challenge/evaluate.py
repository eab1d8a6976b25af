"""Fields that any tool made, scored as `dio-lightning test` scores a method."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lightning.pytorch import Callback

from dio_lightning.api import build
from dio_lightning.callbacks.scores import RegistrationScores
from dio_lightning.challenge.scores import Learn2RegScores

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
    experiment = build(arguments(folder, options, out), OUT if out is None else None)
    callbacks: list[Callback] = experiment.trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    place, scores = next((i, c) for i, c in enumerate(callbacks) if isinstance(c, RegistrationScores))
    # that the fields come out of a folder is no change of a method
    scores.variant = ""
    scores.test_options = replace(scores.test_options, masked=masked or scores.test_options.masked)
    if l2r:
        # behind the scores, whose file it reads
        callbacks.insert(place + 1, Learn2RegScores(masked))
    experiment.run()


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
