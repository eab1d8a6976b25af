"""The command line of the studies: `dio-lightning study NAME ...`."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from dio_lightning.errors import fail
from dio_lightning.usage import CommandParser, nearest

STUDIES = {
    "convergence": "scores of every method after each step, beyond those that it was trained with",
    "solvers": "what each solver needs to reach the fixed point of DEQReg",
    "memory": "memory of one training step of every method, as its steps grow",
    "adjoints": "gradients of DEQReg's and DIO's weights by every adjoint, against the exact ones",
    "shift": "scores of every method on data that it was not trained on",
}
EPILOG = "What stands behind -- overrides the model's and data's settings, as `dio-lightning test` takes them."


def study(argv: Sequence[str]) -> None:
    """Run the study that the first argument names; its table is printed too."""
    if not argv or argv[0] in ("-h", "--help"):
        print("dio-lightning study NAME ..., NAME one of\n")
        print("\n".join(f"  {name:12} {what}" for name, what in STUDIES.items()))
        return
    if argv[0] not in STUDIES:
        hint = nearest(argv[0], STUDIES)
        fail(f"study: there is no study {argv[0]!r}, expected one of {', '.join(STUDIES)}{hint}")
    place = list(argv).index("--") if "--" in argv else len(argv)
    own, options = argv[1:place], list(argv[place + 1 :])
    runs = {"convergence": _convergence, "solvers": _solvers, "memory": _memory, "adjoints": _adjoints}
    runs["shift"] = _shift
    text = runs[argv[0]](own, options)
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--out")
    print(text, end="" if text.endswith("\n") else "\n")
    print(f"wrote {finder.parse_known_args(own)[0].out}")


def _parser(name: str, pairs: bool = True) -> argparse.ArgumentParser:
    parser = CommandParser(
        f"dio-lightning study {name}", description=STUDIES[name], epilog=EPILOG, allow_abbrev=False, usage=None
    )
    weights = "checkpoint, weights or config, or NAME=FILE; of one name: seeds of one method"
    parser.add_argument("weights", nargs="+", metavar="WEIGHTS", help=weights)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help=f"where {name}.md and others go")
    if pairs:
        parser.add_argument("--limit", type=int, metavar="N", help="pairs at most")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    return parser


def _convergence(argv: Sequence[str], options: Sequence[str]) -> str:
    parser = _parser("convergence")
    parser.add_argument("--steps", type=int, default=96, help="how many are taken (default: %(default)s)")
    seen = "steps after which scores are taken (default: all in 2-D, ever fewer in 3-D)"
    parser.add_argument("--at", type=int, nargs="+", metavar="STEP", help=seen)
    given = parser.parse_args(argv)
    from dio_lightning.studies.convergence import convergence

    return convergence(given.weights, given.out, options, given.steps, given.at, given.limit, given.overwrite)


def _solvers(argv: Sequence[str], options: Sequence[str]) -> str:
    parser = _parser("solvers")
    parser.add_argument("--max-steps", type=int, default=96, help="of each solver (default: %(default)s)")
    seen = "evaluations at which Dice is taken (default: all in 2-D, ever fewer in 3-D)"
    parser.add_argument("--at", type=int, nargs="+", metavar="EVALUATION", help=seen)
    damping = "every solver with each of these dampings (default: 0)"
    parser.add_argument("--damping", type=float, nargs="+", default=[0.0], metavar="D", help=damping)
    given = parser.parse_args(argv)
    from dio_lightning.studies.solvers import solvers

    return solvers(
        given.weights, given.out, options, given.max_steps, given.at, given.damping, given.limit, given.overwrite
    )


def _memory(argv: Sequence[str], options: Sequence[str]) -> str:
    parser = _parser("memory", pairs=False)
    steps = "steps at the finest level (default: 3 6 12 24 48 96)"
    parser.add_argument("--steps", type=int, nargs="+", default=[3, 6, 12, 24, 48, 96], metavar="K", help=steps)
    size = "grid of the random images (default: 80 96, or 40 48 56 for networks in 3-D)"
    parser.add_argument("--size", type=int, nargs="+", metavar="N", help=size)
    parser.add_argument("--batch", type=int, metavar="N", help="pairs (default: 4 in 2-D, 1 in 3-D)")
    limit = "what is expected to take more MiB is not run (default: half of the machine's memory)"
    parser.add_argument("--limit-mb", type=float, metavar="MIB", help=limit)
    given = parser.parse_args(argv)
    from dio_lightning.studies.memory import memory

    return memory(
        given.weights, given.out, options, given.steps, given.size, given.batch, given.limit_mb, given.overwrite
    )


def _adjoints(argv: Sequence[str], options: Sequence[str]) -> str:
    parser = _parser("adjoints")
    parser.add_argument(
        "--phantom", type=int, nargs="+", default=[1, 2, 3, 5, 10, 20], metavar="T", help="phantom steps"
    )
    solve = "steps to the fixed point of DEQReg at most (default: %(default)s)"
    parser.add_argument("--solve-steps", type=int, default=500, metavar="N", help=solve)
    gmres = "products of GMRES at most (default: %(default)s)"
    parser.add_argument("--gmres-steps", type=int, default=100, metavar="N", help=gmres)
    parser.add_argument(
        "--gmres-rtol", type=float, default=1e-4, metavar="R", help="its tolerance (default: %(default)s)"
    )
    unrolled = "steps from the solution that are unrolled where GMRES fails (default: %(default)s)"
    parser.add_argument("--unrolled", type=int, default=200, metavar="N", help=unrolled)
    parser.add_argument("--no-whole", action="store_true", help="do not unroll the whole solve: it needs the memory")
    given = parser.parse_args(argv)
    from dio_lightning.studies.adjoints import Settings, adjoints

    settings = Settings(
        given.phantom, given.solve_steps, given.gmres_steps, given.gmres_rtol, given.unrolled, not given.no_whole
    )
    return adjoints(given.weights, given.out, options, settings, given.limit, given.overwrite)


def _shift(argv: Sequence[str], options: Sequence[str]) -> str:
    parser = _parser("shift")
    domains = "YAML file that names the data sets, the first of them (or `reference`) the one trained on"
    parser.add_argument("--domains", type=Path, required=True, metavar="FILE", help=domains)
    root = "folder of the data sets' folders (default: $DIO_DATA if it is set, else this one)"
    parser.add_argument("--root", type=Path, default=Path(os.environ.get("DIO_DATA") or "."), metavar="DIR", help=root)
    steps = "of the instance optimisation after each trained method, a row of its own; 0: none (default: %(default)s)"
    parser.add_argument("--refine-steps", type=int, default=50, metavar="N", help=steps)
    coarser = "factor by which its grid is coarser than the pair's (default: %(default)s)"
    parser.add_argument("--refine-resolution", type=float, default=1.0, metavar="R", help=coarser)
    parser.add_argument("--surface", action="store_true", help="Hausdorff distances too, which take seconds a pair")
    parser.add_argument("--resume", action="store_true", help="keep rows of unchanged weights that are in FOLDER")
    given = parser.parse_args(argv)
    from dio_lightning.studies.shift import shift
    from dio_lightning.studies.shift_refine import Refinement

    return shift(
        given.weights,
        given.domains,
        given.out,
        given.root,
        options,
        Refinement(given.refine_steps, resolution=given.refine_resolution),
        given.limit,
        given.surface,
        given.resume,
        given.overwrite,
    )
