"""Gradients of the weights by every adjoint at one and the same solution, against the exact implicit gradient."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, NamedTuple

from dio_lightning.scores.records import Record, Records
from dio_lightning.scores.summary import finite_mean
from dio_lightning.studies.rendering import Line, Panel, Value, draw, table, to_csv
from dio_lightning.studies.study import PairStudy, option

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dio_lightning.implicit import Adjoint, ImplicitAdjoint
    from dio_lightning.loaded import Loaded

DAMPINGS = (0.0, 0.5)
WHOLE = "whole solve unrolled"
AT_REST = 1e-4
"""Relative residual above which a solution is none, and the exact gradient there is of no solution either."""


class Method(NamedTuple):
    """A kind of adjoint, its steps (0: none) and damping: the condition of this study's records."""

    kind: str
    steps: int = 0
    damping: float = 0.0

    def __str__(self) -> str:
        steps = f", T = {self.steps}" if self.steps else ""
        damping = f", damping {self.damping:g}" if self.damping else ""
        jfb = " (JFB)" if self == Method("phantom", 1) else ""
        return f"{self.kind}{steps}{damping}{jfb}"


@dataclass(frozen=True, kw_only=True)
class Adjoints(PairStudy):
    """The training loss of test pairs, differentiated by every adjoint.

    Every adjoint starts from the same solution, except for the unrolling of the whole solve. The reference is the exact
    implicit gradient, dL/dz (I - df/dz)^-1 df/dtheta, where GMRES found it, else many unrolled steps from the solution.
    Networks compute in float32: the rounding of bfloat16 would hide what is compared. A record's pair is a batch.

    Raises:
        ValueError: for a number below 1, or a tolerance that is not positive.
    """

    name = "adjoints"
    compares = False
    phantom: Sequence[int] = option((1, 2, 3, 5, 10, 20), "phantom steps", metavar="T", many="+")
    solve_steps: int = option(500, "Anderson's steps to the fixed point of DEQReg at most", metavar="N")
    rest: int = option(0, "Anderson's steps at most that bring DIO's solve to rest from where it ends", metavar="N")
    gmres_steps: int = option(100, "products of GMRES at most", metavar="N")
    gmres_rtol: float = option(1e-4, "its tolerance", float, "R")
    conjugate: bool = option(False, "conjugate gradients in its place, where f descends on an energy", bool)
    unrolled: int = option(200, "steps from the solution that are unrolled where GMRES fails", metavar="N")
    whole: bool = option(True, "unroll the whole solve too, which needs the memory", bool)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.phantom or min(*self.phantom, self.solve_steps, self.gmres_steps, self.unrolled) < 1:
            raise ValueError(f"{self} has a number of steps below 1, or no phantom step")
        if self.gmres_rtol <= 0 or self.rest < 0:
            raise ValueError(f"gmres_rtol is {self.gmres_rtol} and rest {self.rest}, expected above 0 and at least 0")

    def check(self, loaded: Sequence["Loaded"]) -> None:
        """Adjoints are studied on DEQReg and DIO alone, as they are trained."""
        from dio_lightning.modules import DIO, DEQReg

        for one in loaded:
            if not isinstance(one.module, DEQReg | DIO):
                raise ValueError(f"{one.weights} is {one.module.title}: adjoints are studied on DEQReg and DIO alone")
            one.module.check_trainable()

    def measure(self, loaded: "Loaded") -> Iterator[Record]:
        """Each adjoint against the reference on every batch; memory is counted on the first one."""
        from dio_lightning.callbacks.cost import clock
        from dio_lightning.implicit import PhantomAdjoint
        from dio_lightning.modules import DIO, DEQReg
        from dio_lightning.networks.blocks import compute_in_float32
        from dio_lightning.studies import equilibrium

        assert isinstance(loaded.module, DEQReg | DIO)
        compute_in_float32(loaded.module)
        first = True
        for ids, pair in loaded.batches(self.limit):
            batch = ("; ".join(fixed for fixed, _ in ids), "; ".join(moving for _, moving in ids))
            problem = equilibrium.equilibrium(loaded.module, pair, self.solve_steps, self.rest)
            reference, about = equilibrium.reference_of(problem, self.exact(), self.unrolled)
            jfb, _ = problem.fresh().gradient(PhantomAdjoint())
            for method, adjoint in self.plan(loaded.module.steps).items():
                fresh, start = problem.fresh(), clock(loaded.module.device)
                gradient, report = fresh.gradient(adjoint)
                seconds, (cosine, ratio) = clock(loaded.module.device) - start, equilibrium.compare(gradient, reference)
                values = {"cosine": cosine, "norm_ratio": ratio, "cosine_jfb": equilibrium.compare(gradient, jfb)[0]}
                saved, alive = equilibrium.memory_of(problem, adjoint) if first else (math.nan, math.nan)
                values |= {"seconds": seconds, "saved_mb": saved, "tensors_mb": alive, "gmres_steps": report.steps}
                values["gmres_residual"] = math.nan if report.residual is None else float(report.residual.max())
                for quantity, value in (values | about).items():
                    yield Record(loaded.name, str(loaded.weights), method, batch, quantity, value)
            first = False

    def exact(self) -> "ImplicitAdjoint":
        """The adjoint that is exact where GMRES converges."""
        from dio_lightning.implicit import ImplicitAdjoint

        return ImplicitAdjoint(self.gmres_rtol, self.gmres_steps, self.gmres_steps, self.conjugate)

    def plan(self, steps: int) -> "dict[Method, Adjoint | None]":
        """The adjoints to compare; None is the unrolling of the whole solve, which takes `steps`."""
        from dio_lightning.implicit import PhantomAdjoint

        adjoints: dict[Method, Adjoint | None] = {
            Method("phantom", count, damping): PhantomAdjoint(count, damping)
            for damping in DAMPINGS
            for count in self.phantom
        }
        # unrolling from the solution is phantom steps without damping
        adjoints[Method("unrolled from the solution", steps)] = PhantomAdjoint(steps)
        adjoints[Method(f"implicit, {'CG' if self.conjugate else 'GMRES'}")] = self.exact()
        return adjoints | ({Method(WHOLE, steps): None} if self.whole else {})

    def tables(self, records: Records) -> list[str]:
        """One row a batch and adjoint."""
        rows: list[dict[str, Value]] = []
        for model, _, method, batch, values in records.rows():
            row: dict[str, Value] = {"model": model, "pair": ", ".join(batch), "adjoint": method.kind}
            row |= {"steps": method.steps, "damping": method.damping}
            rows.append(row | values | {"reference": _reference(values["reference"])})
        return [to_csv(rows)]

    def markdown(self, records: Records) -> str:
        """A table a model: mean and deviation over batches."""
        heads = ["adjoint", "cosine", "norm ratio", "cosine to JFB", "seconds", "saved MiB", "alive MiB", "GMRES"]
        parts = [
            "# Gradients by adjoint",
            "Cosine and ratio of norms to the reference, over all weights, mean (standard deviation) over batches.\n"
            "Seconds: forward from the solution and backward. MiB: most tensors saved for backward, and most alive.",
        ]
        for model in records.methods:
            rows = [_row(records, model, method) for method in _methods(records, model)]
            parts += [f"## {model}", _solves(records, model), table(heads, rows)]
        return "\n\n".join(parts) + "\n"

    def figure(self, records: Records) -> "Figure":
        """Cosine and norm ratio over phantom steps; the unrolling of the whole solve as a level."""
        views = (("cosine", "cosine to the reference", "linear"), ("norm_ratio", "norm over the reference's", "log"))
        panels = []
        for quantity, title, scale in views:
            lines = []
            for model in records.methods:
                shown = [m for m in _methods(records, model) if m.kind in ("phantom", WHOLE)]
                for kind, damping in dict.fromkeys((m.kind, m.damping) for m in shown):
                    steps = sorted(m.steps for m in shown if (m.kind, m.damping) == (kind, damping))
                    means = [finite_mean(_values(records, model, Method(kind, k, damping), quantity)) for k in steps]
                    suffix = f", damping {damping:g}" if kind == "phantom" else ""
                    lines.append(Line(f"{model}: {kind}{suffix}", steps, means))
            panels.append(Panel("phantom steps T", title, lines, scale))
        return draw(*panels)


def _methods(records: Records, model: str) -> list[Method]:
    return list(dict.fromkeys(method for name, _, method, _, _ in records.rows() if name == model))


def _values(records: Records, model: str, method: Method, quantity: str) -> list[float]:
    return list(records.solves(model, quantity, method).values())


def _reference(steps: float) -> str:
    return f"{steps:g} steps unrolled" if steps else "implicit"


def _solves(records: Records, model: str) -> str:
    """How the pairs were solved, and what the gradients are compared with."""
    method = _methods(records, model)[0]
    names = ("reference", "reference_change", "residual", "solve_steps", "spectral_radius")
    references, changes, residuals, steps, radii = (_values(records, model, method, name) for name in names)
    kinds = dict.fromkeys(references)
    counts = ", ".join(f"{_reference(n)} for {references.count(n)} of {len(references)}" for n in kinds)
    if any(references):
        change = max(change for change, count in zip(changes, references, strict=True) if count)
        counts += f"; over its second half of steps it changes by up to {change:.1%}: far from 0 it is no reference"
    return (
        f"Relative residual {fmean(residuals):.1e} (worst {max(residuals):.1e}"
        f"{'; not at rest' if max(residuals) > AT_REST else ''}) after at most {max(steps):g} steps, spectral radius "
        f"{fmean(radii):.3f} ({min(radii):.3f} to {max(radii):.3f}). Reference: {counts}."
    )


def _row(records: Records, model: str, method: Method) -> list[str]:
    cells = [_moments(_values(records, model, method, name)) for name in ("cosine", "norm_ratio", "cosine_jfb")]
    names = ("seconds", "saved_mb", "tensors_mb", "gmres_steps", "gmres_residual")
    seconds, saved, alive, products, residuals = (_values(records, model, method, name) for name in names)
    cells += [f"{fmean(seconds):.2f}", f"{saved[0]:.1f}", f"{alive[0]:.1f}"]
    worst = f"{fmean(products):.0f} products, residual at most {max(residuals):.2e}" if any(products) else ""
    return [str(method), *cells, worst]


def _moments(values: Sequence[float]) -> str:
    finite = [value for value in values if math.isfinite(value)]
    text = f"{fmean(finite):.4f} ({pstdev(finite):.4f})" if finite else ""
    return text if len(finite) == len(values) else f"{text} not finite for {len(values) - len(finite)}".strip()
