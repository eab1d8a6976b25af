"""The command line. Heavy imports wait until there is something to do, so that help and usage errors are quick."""

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from dio_lightning import __version__
from dio_lightning.allocation import ask_for_large_pages
from dio_lightning.errors import debugging, fail, user_message
from dio_lightning.usage import CommandParser, nearest

RUNS = ("fit", "validate", "test", "predict")
"""Commands that build an experiment."""
COMMANDS = (
    *RUNS,
    *("configs", "models", "export", "compare", "study", "features", "sweep", "rerun", "check"),
    *("register", "transform", "evaluate", "submit"),
)
ELSEWHERE = {
    "models": "models.command",
    "study": "studies.command",
    "features": "features_command",
    "sweep": "sweeps.command",
    "rerun": "rerun",
    "register": "registration.command",
    "transform": "transform_command",
    "evaluate": "challenge.command",
    "submit": "challenge.command",
}
"""Commands whose function has their name, by the file that it is in."""
INTERRUPTED = 130
"""The exit code after Ctrl-C, as shells have it."""

USAGE = f"""dio-lightning {__version__}: deformable image registration by implicit layers

  dio-lightning check    --data Learn2Reg --data.root FOLDER
  dio-lightning configs
  dio-lightning models   [NAME]
  dio-lightning fit      --config dio/demo
  dio-lightning test     --ckpt_path runs/demo/dio/checkpoints/best.ckpt
  dio-lightning predict  --ckpt_path WEIGHTS --data.root FOLDER
  dio-lightning validate --config CONFIG --ckpt_path last
  dio-lightning evaluate FIELDS --data Learn2Reg --data.root FOLDER --l2r
  dio-lightning submit   FIELDS --data Learn2Reg --data.root FOLDER --out SUBMISSION.zip
  dio-lightning export   --ckpt_path CHECKPOINT OUT.safetensors
  dio-lightning compare  NAME=FOLDER [NAME=FOLDER ...] --out TABLE.md
  dio-lightning study    NAME WEIGHTS [WEIGHTS ...] --out FOLDER
  dio-lightning features WEIGHTS --out FOLDER
  dio-lightning sweep    FILE --trials N
  dio-lightning rerun    FOLDER
  dio-lightning register FIXED MOVING --out FOLDER
  dio-lightning transform apply|invert|compose|convert --help

Options may come in any order. Later --config files win over earlier ones, the command line over all of them, and all of
them over the checkpoint.
The last line of a command names the folder that it wrote; --overwrite lets it replace another run's files.
A config is a file, or one that comes with the package by its name: `dio-lightning configs` lists them.
Weights are a file, or a model that comes with the package by its name: `dio-lightning models` lists them.
`dio-lightning fit --help` lists every option, `dio-lightning fit --config CONFIG --print_config` what they are set to.
With DIO_DEBUG=1 errors keep their traceback.
"""


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
    ask_for_large_pages()
    try:
        _dispatch(argv)
    except KeyboardInterrupt:
        sys.stderr.write("dio-lightning: interrupted\n")
        raise SystemExit(INTERRUPTED) from None
    except Exception as error:
        message = user_message(error)
        if message is None or debugging():
            raise
        fail(message)


def _dispatch(argv: list[str]) -> None:
    if argv[0] not in COMMANDS:
        hint = nearest(argv[0], COMMANDS)
        fail(f"unknown command {argv[0]!r}: expected one of {', '.join(COMMANDS)}{hint}")
    if argv[0] in ELSEWHERE:
        return getattr(import_module(f"dio_lightning.{ELSEWHERE[argv[0]]}"), argv[0])(argv[1:])
    if argv[0] == "configs":
        return _configs(argv[1:])
    if argv[0] == "export":
        return _export(argv[1:])
    if argv[0] == "compare":
        return _compare(argv[1:])
    if argv[0] == "check":
        from dio_lightning.checking import check

        if code := check(argv[1:]):
            raise SystemExit(code)
        return None
    from dio_lightning.experiment import run

    run(argv)


def _configs(argv: list[str]) -> None:
    CommandParser("dio-lightning configs", description="Configs that come with the package, by name.").parse_args(argv)
    from dio_lightning.shipped_configs import listing

    print(listing(), end="")


def _export(argv: list[str]) -> None:
    parser = CommandParser("dio-lightning export", description="Weights as safetensors, beside their resolved config.")
    weights = "a checkpoint that fit wrote, weights, or the name of a model"
    parser.add_argument("--ckpt_path", required=True, metavar="FILE|NAME", help=weights)
    parser.add_argument("out", type=Path, help="file to write, ending in .safetensors")
    parser.add_argument("--half", action="store_true", help="round the weights to float16, in half the space")
    card = "YAML of a model's card (docs/models.md): config and card then lie in the file itself"
    parser.add_argument("--card", type=Path, metavar="FILE", help=card)
    config = "resolved config in place of the training's, such as config_validate.yaml of a run with another solver"
    parser.add_argument("--config", type=Path, metavar="FILE", help=config)
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    options = parser.parse_args(argv)
    from dio_lightning.checkpoints import export_weights
    from dio_lightning.models import weights_path

    settings = {name: value for name, value in vars(options).items() if name != "ckpt_path"}
    files = export_weights(weights_path(options.ckpt_path), **settings)
    print(f"wrote {' and '.join(map(str, files))}")


def _compare(argv: list[str]) -> None:
    parser = CommandParser(
        "dio-lightning compare", description="Test runs in one table, with paired significance tests."
    )
    runs = "folder that test wrote, or NAME=FOLDER; one NAME several times: seeds of one method"
    parser.add_argument("runs", nargs="+", metavar="RUN", help=runs)
    out = "Markdown file to write; TABLE.html (to look at), .tex, .csv and _pvalues.csv lie beside it"
    parser.add_argument("--out", type=Path, required=True, metavar="TABLE.md", help=out)
    parser.add_argument("--reference", metavar="NAME", help="whom the others are tested against (default: the last)")
    parser.add_argument("--metrics", nargs="+", metavar="SCORE", help="columns by their name in metrics.csv")
    parser.add_argument("--alpha", type=float, default=0.05, help="level of significance (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    options = parser.parse_args(argv)
    from dio_lightning.reports.terminal import show
    from dio_lightning.studies.comparison import compare

    table = compare(
        options.runs, options.out, options.reference, options.metrics, options.alpha, overwrite=options.overwrite
    )
    show(table)
    print(f"wrote {options.out} and its .html, .tex, .csv and _pvalues.csv")


def _silence() -> None:
    """Warnings that ask nothing of the user."""
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", message="The dirpath has changed from.*")
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="(monai|torch|lightning)")
    warnings.filterwarnings("ignore", category=FutureWarning, module="(monai|torch|lightning)")
