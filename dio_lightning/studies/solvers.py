"""What a solver needs to bring DEQReg to rest: evaluations of its network, and the Dice there."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dio_lightning.fields import resize
from dio_lightning.implicit import Anderson, Broyden, Evaluation, Picard, Solver, StopRule
from dio_lightning.modules import DEQReg
from dio_lightning.pair import Pair
from dio_lightning.studies.files import free, write
from dio_lightning.studies.loading import Loaded, PairId, load_all
from dio_lightning.studies.scoring import check_counts, score, seen_steps
from dio_lightning.studies.solvers_report import FILES, TOLERANCES, Run, figure, markdown, tolerances_csv, traces_csv


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
    runs: list[Run] = []
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
) -> Run:
    """One solver on all pairs of one set of weights."""
    module, run = loaded.module, Run(name, str(loaded.weights), {}, {})
    assert isinstance(module, DEQReg)
    module.solver, module.steps = solver, max_steps
    for ids, pair in loaded.batches(limit):
        trace = _Trace(loaded, pair, ids, seen_steps(at, pair["fixed"].ndim - 2, max_steps), run)
        module.stop, module.observe = trace, trace.observe
        with torch.no_grad():
            module.register(pair)
        module.observe = None
    return run


@dataclass
class _Trace(StopRule):
    """Never stops, but takes down what it is asked about: residuals, and Dice at the states that matter."""

    loaded: Loaded
    pair: Pair
    ids: Sequence[PairId]
    at: Sequence[int]
    run: Run
    evaluations: int = 0
    state: Tensor | None = None
    known: dict[int, Tensor] = field(default_factory=dict)

    def observe(self, u: Tensor) -> None:
        """The displacement (b, d, *s) on the working grid at which f is evaluated next."""
        self.state = u

    def __call__(self, seen: Evaluation, state: tuple[Any, ...]) -> tuple[Tensor, tuple[Any, ...]]:
        """Take down one evaluation; no sample stops."""
        self.evaluations += 1
        relative = (seen.residual / (seen.norm + 1e-9)).nan_to_num(nan=torch.inf, posinf=torch.inf).tolist()
        dice: list[float] | None = None
        for sample, (pair, value) in enumerate(zip(self.ids, relative, strict=True)):
            before = self.run.residuals.setdefault(pair, [])
            before.append(value)
            lowest = min(before[:-1], default=torch.inf)
            if self.evaluations in self.at or any(value <= tolerance < lowest for tolerance in TOLERANCES):
                dice = self._dice() if dice is None else dice
                self.run.dice.setdefault(pair, {})[self.evaluations] = dice[sample]
        return torch.zeros_like(seen.residual, dtype=torch.bool), state

    def _dice(self) -> list[float]:
        """Dice of every sample at the state that is evaluated, the identity before the first step."""
        fixed = self.pair["fixed"]
        if self.state is None:
            u = fixed.new_zeros(len(fixed), fixed.ndim - 2, *fixed.shape[2:])
        else:
            u = resize(self.state, fixed.shape[2:])
        return score(u, self.pair, self.loaded.scores)["dice"].tolist()
