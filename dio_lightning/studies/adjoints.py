"""Gradients of the weights by every adjoint at one and the same solution, against the exact implicit gradient."""

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dio_lightning.implicit import Adjoint, ImplicitAdjoint, PhantomAdjoint, Solution, spectral_radius
from dio_lightning.modules import DIO, DEQReg
from dio_lightning.studies.adjoints_report import FILES, WHOLE, Method, Row, Solve, csv, figure, markdown
from dio_lightning.studies.equilibrium import Equilibrium, of_deqreg, of_dio
from dio_lightning.studies.files import free, write
from dio_lightning.studies.live import MIB, LiveTensors, SavedTensors
from dio_lightning.studies.loading import Loaded, load_all

DAMPINGS = (0.0, 0.5)


@dataclass(frozen=True)
class Settings:
    """How far solves and adjoints go.

    Args:
        phantom: numbers of phantom steps, with each of `DAMPINGS`.
        solve_steps: Anderson's steps to the fixed point of a DEQReg, at most; DIO is solved as it is configured.
        gmres_steps: products of GMRES, at most; as many fields are kept.
        gmres_rtol: relative residual at which GMRES has converged.
        unrolled: steps from the solution that stand for the exact gradient where GMRES does not converge.
        whole: whether the whole solve is unrolled too, in the memory of all its steps.

    Raises:
        ValueError: for a number below 1, or a tolerance that is not positive.
    """

    phantom: Sequence[int] = (1, 2, 3, 5, 10, 20)
    solve_steps: int = 500
    gmres_steps: int = 100
    gmres_rtol: float = 1e-4
    unrolled: int = 200
    whole: bool = True

    def __post_init__(self) -> None:
        if not self.phantom or min(*self.phantom, self.solve_steps, self.gmres_steps, self.unrolled) < 1:
            raise ValueError(f"{self} has a number of steps below 1, or no phantom step")
        if self.gmres_rtol <= 0:
            raise ValueError(f"gmres_rtol is {self.gmres_rtol}, expected a positive number")


def adjoints(
    weights: Sequence[str],
    out: Path,
    options: Sequence[str] = (),
    settings: Settings = Settings(),
    limit: int | None = None,
    overwrite: bool = False,
) -> str:
    """Differentiate the training loss of test pairs by every adjoint; writes adjoints.csv, .md, .png and .svg.

    Every adjoint starts from the same solution, except for the unrolling of the whole solve. The reference is the exact
    implicit gradient, dL/dz (I - df/dz)^-1 df/dtheta, where GMRES found it, else many unrolled steps from the solution.
    Networks compute in float32: the rounding of bfloat16 would hide what is compared.

    Args:
        weights: of DEQReg or DIO, trained, as `load` takes them.
        out: the folder to write to.
        options: overrides of every model, as `dio-lightning test` takes them.
        settings: how far solves and adjoints go.
        limit: pairs at most.
        overwrite: replace files that are there.

    Returns:
        The Markdown.

    Raises:
        FileNotFoundError, ValueError: for weights, data or settings that are not as expected, before any work.
        FileExistsError: an output is there.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}, expected at least 1 pair")
    free(out, FILES, overwrite)
    loaded = load_all(weights, options)
    for one in loaded:
        if not isinstance(one.module, DEQReg | DIO):
            raise ValueError(f"{one.weights} is {one.module.title}: adjoints are studied on DEQReg and DIO alone")
        one.module.check_trainable()
    rows: list[Row] = []
    for one in loaded:
        start = time.perf_counter()
        rows += measure(one, settings, limit)
        print(f"{one.name} ({one.weights}): {time.perf_counter() - start:.0f} s", flush=True)
    text, picture = markdown(rows), figure(rows)
    write(out, dict(zip(FILES, [csv(rows), text, picture, picture], strict=True)))
    return text


def measure(loaded: Loaded, settings: Settings, limit: int | None) -> list[Row]:
    """All gradients of one method on all its pairs; memory is counted on the first batch."""
    module, rows = loaded.module, list[Row]()
    for part in module.modules():
        if isinstance(getattr(part, "precision", None), str):
            setattr(part, "precision", "float32")
    for ids, pair in loaded.batches(limit):
        assert isinstance(module, DEQReg | DIO)
        problem = of_deqreg(module, pair, settings.solve_steps) if isinstance(module, DEQReg) else of_dio(module, pair)
        name = "; ".join(f"{fixed}, {moving}" for fixed, moving in ids)
        reference, solve = reference_of(problem, settings)
        jfb, _, _ = _gradient(problem, PhantomAdjoint())
        for method, adjoint in plan(settings, problem.steps).items():
            gradient, found, seconds = _gradient(problem, adjoint)
            saved, tensors = (math.nan, math.nan) if rows and rows[0].pair != name else memory_of(problem, adjoint)
            cosine, ratio = compare(gradient, reference)
            report = found.backward
            residual = math.nan if report.residual is None else float(report.residual.max())
            costs = (seconds, saved, tensors, report.steps, residual)
            rows.append(Row(loaded.name, name, method, cosine, ratio, compare(gradient, jfb)[0], *costs, solve))
    return rows


def plan(settings: Settings, steps: int) -> dict[Method, Adjoint | None]:
    """The adjoints to compare; None is the unrolling of the whole solve, which takes `steps`."""
    found: dict[Method, Adjoint | None] = {
        Method("phantom", count, damping): PhantomAdjoint(count, damping)
        for damping in DAMPINGS
        for count in settings.phantom
    }
    # unrolling from the solution is phantom steps without damping
    found[Method("unrolled from the solution", steps)] = PhantomAdjoint(steps)
    found[Method("implicit, GMRES")] = _implicit(settings)
    return found | ({Method(WHOLE, steps): None} if settings.whole else {})


def reference_of(problem: Equilibrium, settings: Settings) -> tuple[Tensor, Solve]:
    """The gradient that others are compared with, and how it and the solution were found."""
    gradient, found, _ = _gradient(problem, _implicit(settings))
    reached, changed = found.backward.converged is not None and bool(found.backward.converged.all()), math.nan
    if not reached:
        # one step at a time: hundreds of graphs would not fit
        half, gradient = (
            _gradient(problem, PhantomAdjoint(steps, checkpointed=True))[0]
            for steps in ((settings.unrolled + 1) // 2, settings.unrolled)
        )
        changed = float((half - gradient).norm() / gradient.norm())
    solution = problem.solution
    radius = spectral_radius(problem.update, solution.value, generator=torch.Generator().manual_seed(0))
    named = "implicit" if reached else f"{settings.unrolled} steps unrolled"
    return gradient, Solve(
        named, changed, float(solution.residual.max()), int(solution.steps.max()), float(radius.max())
    )


def memory_of(problem: Equilibrium, adjoint: Adjoint | None) -> tuple[float, float]:
    """MiB: most tensors saved, and most alive, at once, beyond weights, features and the solution."""
    problem = problem.fresh()
    known = [*problem.leaves, problem.start, problem.solution.value]
    with SavedTensors(known) as saved, LiveTensors(known) as tensors, _quiet():
        problem.gradient(adjoint)
    return saved.peak / MIB, tensors.peak / MIB


def compare(gradient: Tensor, reference: Tensor) -> tuple[float, float]:
    """Cosine and ratio of norms; NaN where one is zero or not finite."""
    a, b = gradient.double(), reference.double()
    return float((a / a.norm()) @ (b / b.norm())), float(a.norm() / b.norm())


def _implicit(settings: Settings) -> ImplicitAdjoint:
    return ImplicitAdjoint(settings.gmres_rtol, settings.gmres_steps, restart=settings.gmres_steps)


def _gradient(problem: Equilibrium, adjoint: Adjoint | None) -> tuple[Tensor, Solution, float]:
    """The gradient, the solution that it passed, and seconds."""
    problem = problem.fresh()
    start = time.perf_counter()
    with _quiet():
        gradient, found = problem.gradient(adjoint)
    if gradient.device.type == "cuda":
        torch.cuda.synchronize(gradient.device)
    return gradient, found, time.perf_counter() - start


@contextmanager
def _quiet() -> Iterator[None]:
    """Where GMRES does not converge, the table says so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "ImplicitAdjoint reached")
        yield
