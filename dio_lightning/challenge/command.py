"""The command line of challenges: `dio-lightning evaluate` and `dio-lightning submit`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from dio_lightning.usage import CommandParser

EPILOG = "Options of `dio-lightning test` name the data and the trainer: --data, --data.*, --trainer.*, --config."


def evaluate(argv: Sequence[str]) -> None:
    """Score the displacement fields of a folder."""
    parser = _parser(
        "evaluate", "Scores of displacement fields that any tool made, as `dio-lightning test` takes them."
    )
    out = "where the scores go (default: runs/evaluate, or runs/evaluate_2, ... where it holds others)"
    parser.add_argument("--out", type=Path, metavar="RUNFOLDER", help=out)
    parser.add_argument("--l2r", action="store_true", help="Learn2Reg's official numbers too, in metrics_l2r.csv")
    masked = "folds and log determinants inside the fixed mask alone, as Learn2Reg evaluates LungCT and NLST"
    parser.add_argument("--masked", action="store_true", help=masked)
    given, options = _parsed(parser, argv)
    from dio_lightning.challenge.evaluate import evaluate

    evaluate(given.folder, options, given.out, given.l2r, given.masked)


def submit(argv: Sequence[str]) -> None:
    """Check the displacement fields of a folder and write a zip."""
    parser = _parser("submit", "Checks a field per test pair and writes them into a zip as Learn2Reg reads it.")
    parser.add_argument("--out", type=Path, required=True, metavar="SUBMISSION.zip", help="file to write")
    resolution = "of the fields; half for the tasks of 2020 and 2021 (default: %(default)s)"
    parser.add_argument("--resolution", choices=("full", "half"), default="full", help=resolution)
    parser.add_argument("--overwrite", action="store_true", help="replace a zip that is there")
    given, options = _parsed(parser, argv)
    from dio_lightning.challenge.submit import submit

    count = submit(given.folder, options, given.out, given.resolution, given.overwrite)
    print(f"wrote {given.out} with {count} displacement field{'s' if count != 1 else ''}")


def _parser(name: str, description: str) -> argparse.ArgumentParser:
    parser = CommandParser(f"dio-lightning {name}", description=description, epilog=EPILOG, allow_abbrev=False)
    what = "folder with disp_<fixed>_<moving>.nii.gz or .npz for every test pair"
    parser.add_argument("folder", type=Path, metavar="FOLDER", help=what)
    return parser


def _parsed(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Our options and those of test; the folder first, since what follows --data might be taken for it."""
    if not argv or (argv[0].startswith("-") and not {"-h", "--help"} & {*argv}):
        parser.error("expected FOLDER before all options")
    return parser.parse_known_args(argv)
