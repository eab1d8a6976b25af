"""DEQReg's equilibrium by our solvers and by torchdeq's, in turns: evaluations, time, residual and Dice of each.

torchdeq is not a dependency; it lives in a folder of its own:

    .venv/bin/pip install --target build/torchdeq --no-deps torchdeq==0.1.0
    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/equilibria.py $DIO_DATA/brains_2mm --torchdeq build/torchdeq

The network is a published one, the pair the first of the validation, on the working grid of the weights. Every solver
has the same update, the same window of Anderson and tolerance ‖f(u) - u‖ ≤ 0.01 ‖f(u)‖, and the residual of what it
returns is computed anew. Seconds are processor time, so that others on the machine count little; the shortest of
some runs.
"""

import argparse
import importlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import process_time
from typing import Any, NamedTuple

import torch
from agreement import dice
from timing import Stopwatch
from torch import Tensor

from dio_lightning import build
from dio_lightning.implicit import Anderson, Broyden, Never, Picard, Residual, Solver, iterate
from dio_lightning.modules import DEQReg

WEIGHTS = "experiments/brains/weights/deqreg_0.safetensors"
TOLERANCE, STEPS, WINDOW = 0.01, 96, 6
Update = Callable[[Tensor], Tensor]
Solve = Callable[[Update, Tensor], Tensor]


class Counted:
    """An update that counts how often it is asked."""

    def __init__(self, update: Update) -> None:
        self.update, self.calls = update, 0

    def __call__(self, u: Tensor) -> Tensor:
        """The update at u."""
        self.calls += 1
        return self.update(u)


class Line(NamedTuple):
    """A row of the table."""

    name: str
    evaluations: int
    seconds: float
    residual: float
    dice: float


def ours(solver: Solver, steps: int | None) -> Solve:
    """`iterate` to the tolerance, or for a number of steps."""
    stop = Residual(TOLERANCE) if steps is None else Never()

    def solve(update: Update, start: Tensor) -> Tensor:
        return iterate(update, start, solver, max_steps=steps or STEPS, stop=stop).value

    return solve


def theirs(library: Any, name: str, steps: int | None) -> Solve:  # noqa: ANN401
    """Torchdeq's solver, likewise; it returns the best state that it came by, or with a number of steps the last."""
    run = getattr(library, name)

    def solve(update: Update, start: Tensor) -> Tensor:
        ends = {"max_iter": steps or STEPS, "tol": TOLERANCE, "stop_mode": "rel", "return_final": steps is not None}
        window = {"m": WINDOW} if name == "anderson_solver" else {}
        return run(update, start, **ends, **window)[0].view_as(start)

    return solve


def solvers(folder: Path | None) -> dict[str, Solve]:
    """By name; torchdeq's if it is there."""
    named: dict[str, Solve] = {}
    for steps, ends in ((None, "to 0.01"), (48, "48 steps")):
        named[f"Picard, {ends}"] = ours(Picard(), steps)
        named[f"Anderson, {ends}"] = ours(Anderson(WINDOW), steps)
        if folder is not None:
            library = _imported(folder)
            named[f"torchdeq's Picard, {ends}"] = theirs(library, "fixed_point_iter", steps)
            named[f"torchdeq's Anderson, {ends}"] = theirs(library, "anderson_solver", steps)
        named[f"Broyden, {ends}"] = ours(Broyden(), steps)
        if folder is not None:
            named[f"torchdeq's Broyden, {ends}"] = theirs(_imported(folder), "broyden_solver", steps)
    return named


def _imported(folder: Path) -> Any:  # noqa: ANN401
    if not (folder / "torchdeq").is_dir():
        raise SystemExit(f"{folder} holds no torchdeq; `pip install --target {folder} --no-deps torchdeq==0.1.0`")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    return importlib.import_module("torchdeq.solver")


def lines(root: str, folder: Path | None, repetitions: int) -> Iterator[Line]:
    """Every solver, in turns."""
    with tempfile.TemporaryDirectory() as runs:
        experiment = build(["validate", "--ckpt_path", WEIGHTS, "--data.root", root], Path(runs))
    experiment.data.setup("validate")
    module, pair = experiment.module.eval(), next(iter(experiment.data.val_dataloader()))
    assert isinstance(module, DEQReg)
    with torch.no_grad():
        problem, start = module.problem(pair)
        labels: dict[str, Any] = {**module.work(pair)}
        calls = {name: (solve, Counted(problem.update)) for name, solve in solvers(folder).items()}
        watch = Stopwatch(repetitions, process_time)
        seconds = watch.best({name: lambda f=f, c=c: f(c, start) for name, (f, c) in calls.items()})
        for name, (solve, counted) in calls.items():
            counted.calls = 0
            u = solve(counted, start)
            ahead = problem.update(u)
            residual = float((ahead - u).norm() / ahead.norm())
            score = dice(labels["fixed_label"], labels["moving_label"], u)[0]
            yield Line(name, counted.calls, seconds[name], residual, score)


def main() -> None:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="brains_2mm of the laboratory")
    parser.add_argument("--torchdeq", type=Path, help="the folder it is installed in")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each, default: %(default)s")
    options = parser.parse_args()
    print("| solver | evaluations | s | residual | Dice on the working grid |\n|---|---|---|---|---|")
    for line in lines(options.root, options.torchdeq, options.repeat):
        print(f"| {line.name} | {line.evaluations} | {line.seconds:.2f} | {line.residual:.5f} | {line.dice:.4f} |")


if __name__ == "__main__":
    main()
