"""What a solver needs to bring DEQReg to rest: evaluations of its network, and the Dice there."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dio_lightning.fields import resize
from dio_lightning.implicit import Anderson, Broyden, Picard, Solver
from dio_lightning.layers import Record, Run
from dio_lightning.modules import DEQReg
from dio_lightning.pair import Pair
from dio_lightning.studies.files import free, write
from dio_lightning.studies.loading import Loaded, PairId, load_all
from dio_lightning.studies.scoring import check_counts, score, seen_steps
from dio_lightning.studies.solvers_report import FILES, TOLERANCES, figure, markdown, tolerances_csv, traces_csv
from dio_lightning.studies.solvers_report import Run as SolverRun


def solvers(
    weights: Sequence[str],
    out: Path,
    options: Sequence[str] = (),
    max_steps: int = 96,
    at: Sequence[int] | None = None,
    dampings: Sequence[float] = (0.0,),
    limit: int | None = None,
    overwrite: bool = False,
) -> str:
    """Solve every test pair by every solver; writes solvers.csv, solvers_trace.csv, .md, .png, .svg.

    The relative residual ||f(z) - z|| / ||f(z)|| is taken at every evaluation of f, the first at the identity.

    Args:
        weights: of DEQReg, as `load` takes them; several are seeds.
        out: the folder to write to.
        options: overrides of every model, as `dio-lightning test` takes them.
        max_steps: of each solver, and so its evaluations.
        at: evaluations at whose z Dice is taken; by default all in 2-D, ever fewer in 3-D.
        dampings: every solver is run with each of them.
        limit: pairs at most.
        overwrite: replace files that are there.

    Returns:
        The Markdown.

    Raises:
        FileNotFoundError, ValueError: for weights or data that are not as expected, before any work.
        FileExistsError: an output is there.
    """
    check_counts(max_steps, at, limit)
    chosen = variants(dampings)
    free(out, FILES, overwrite)
    loaded = load_all(weights, options)
    for one in loaded:
        if not isinstance(one.module, DEQReg):
            raise ValueError(f"{one.weights} is {one.module.title}: solvers are studied on DEQReg alone")
    runs: list[SolverRun] = []
    while loaded:
        start, one = time.perf_counter(), loaded.pop(0)
        runs += [measure(one, name, solver, max_steps, at, limit) for name, solver in chosen.items()]
        pairs, spent = len(runs[-1].residuals), time.perf_counter() - start
        print(f"{one.name} ({one.weights}): {len(chosen)} solvers, {pairs} pairs in {spent:.0f} s", flush=True)
    text, picture = markdown(runs, max_steps), figure(runs)
    write(out, dict(zip(FILES, [tolerances_csv(runs), traces_csv(runs), text, picture, picture], strict=True)))
    return text


def variants(dampings: Sequence[float]) -> dict[str, Solver]:
    """The solvers by name.

    Raises:
        ValueError: for a damping outside [0, 1).
    """
    found: dict[str, Solver] = {}
    for damping in dict.fromkeys(dampings):
        told = f", damping {damping:g}" if damping else ""
        found[f"Picard{told}"] = Picard(damping)
        found |= {f"Anderson {window}{told}": Anderson(window, damping) for window in (3, 5)}
        found |= {f"Broyden {window}{told}": Broyden(window, damping) for window in (5, 8)}
    return found


def measure(
    loaded: Loaded, name: str, solver: Solver, max_steps: int, at: Sequence[int] | None, limit: int | None
) -> SolverRun:
    """One solver on all pairs of one set of weights."""
    module, run = loaded.module, SolverRun(name, str(loaded.weights), {}, {})
    assert isinstance(module, DEQReg)
    module.layer.solver = solver
    for ids, pair in loaded.batches(limit):
        trace = _Trace(loaded, pair, ids, seen_steps(at, pair["fixed"].ndim - 2, max_steps), run)
        with torch.no_grad():
            module.register(pair, Run(steps=max_steps, observe=trace))
    return run


@dataclass
class _Trace:
    """Takes down the residual at every state that is evaluated, and Dice at those that matter."""

    loaded: Loaded
    pair: Pair
    ids: Sequence[PairId]
    at: Sequence[int]
    run: SolverRun

    def __call__(self, record: Record) -> None:
        """Take down one state; evaluations are counted from 1, the first at the identity."""
        if record.evaluation is None:
            return
        evaluations, (residual, size, _) = record.step + 1, record.evaluation
        relative = (residual / (size + 1e-9)).nan_to_num(nan=torch.inf, posinf=torch.inf).tolist()
        dice: list[float] | None = None
        for sample, (pair, value) in enumerate(zip(self.ids, relative, strict=True)):
            before = self.run.residuals.setdefault(pair, [])
            before.append(value)
            lowest = min(before[:-1], default=torch.inf)
            if evaluations in self.at or any(value <= tolerance < lowest for tolerance in TOLERANCES):
                dice = self._dice(record.displacement) if dice is None else dice
                self.run.dice.setdefault(pair, {})[evaluations] = dice[sample]

    def _dice(self, u: Tensor) -> list[float]:
        """Dice of every sample at a state on the working grid."""
        return score(resize(u, self.pair["fixed"].shape[2:]), self.pair, self.loaded.scores)["dice"].tolist()
