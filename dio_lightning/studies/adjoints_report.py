"""Table and figure of the adjoints study."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

from matplotlib.figure import Figure

from dio_lightning.callbacks.report import to_csv
from dio_lightning.studies.plots import Line, Panel, draw

FILES = ("adjoints.csv", "adjoints.md", "adjoints.png", "adjoints.svg")
COLUMNS = ("cosine", "norm_ratio", "cosine_jfb", "seconds", "saved_mb", "tensors_mb", "gmres_steps", "gmres_residual")
SOLVE = ("reference", "reference_change", "residual", "solve_steps", "spectral_radius")
WHOLE = "whole solve unrolled"
AT_REST = 1e-4
"""Relative residual above which a solution is none, and the exact gradient there is of no solution either."""


@dataclass(frozen=True)
class Method:
    """A kind of adjoint, its steps (0: none) and damping."""

    kind: str
    steps: int = 0
    damping: float = 0.0

    def __str__(self) -> str:
        steps = f", T = {self.steps}" if self.steps else ""
        damping = f", damping {self.damping:g}" if self.damping else ""
        jfb = " (JFB)" if self == Method("phantom", 1) else ""
        return f"{self.kind}{steps}{damping}{jfb}"


@dataclass(frozen=True)
class Solve:
    """A batch of pairs at rest: worst relative residual, most steps, largest spectral radius of df/dz."""

    reference: str
    change: float
    """Relative change of an unrolled reference over its second half of steps: near 1, it grows and is no reference."""
    residual: float
    steps: int
    radius: float


@dataclass(frozen=True)
class Row:
    """The gradient of one batch by one adjoint; memory in MiB, NaN where it was not counted."""

    model: str
    pair: str
    method: Method
    cosine: float
    norm_ratio: float
    cosine_jfb: float
    """To one undamped phantom step, which needs no reference."""
    seconds: float
    saved_mb: float
    tensors_mb: float
    gmres_steps: int
    gmres_residual: float
    solve: Solve


def csv(rows: Sequence[Row]) -> str:
    """One row a batch and adjoint."""
    table = []
    for row in rows:
        names = {"model": row.model, "pair": row.pair, "adjoint": row.method.kind, "steps": row.method.steps}
        solve = (row.solve.reference, row.solve.change, row.solve.residual, row.solve.steps, row.solve.radius)
        values = {name: getattr(row, name) for name in COLUMNS}
        table.append(names | {"damping": row.method.damping} | values | dict(zip(SOLVE, solve, strict=True)))
    return to_csv(table, ("model", "pair", "adjoint", "steps", "damping", *COLUMNS, *SOLVE))


def markdown(rows: Sequence[Row]) -> str:
    """A table a model: mean and deviation over batches."""
    lines = [
        "# Gradients by adjoint",
        "",
        "Cosine and ratio of norms to the reference, over all weights, mean (standard deviation) over batches.",
        "Seconds: forward from the solution and backward. MiB: most tensors saved for backward, and most alive.",
    ]
    for model in dict.fromkeys(row.model for row in rows):
        own = [row for row in rows if row.model == model]
        lines += ["", f"## {model}", "", _solves(list({row.pair: row.solve for row in own}.values())), ""]
        lines += [
            "| adjoint | cosine | norm ratio | cosine to JFB | seconds | saved MiB | alive MiB | GMRES |",
            "|---|--:|--:|--:|--:|--:|--:|---|",
        ]
        for method in dict.fromkeys(row.method for row in own):
            lines.append(_line(method, [row for row in own if row.method == method]))
    return "\n".join(lines) + "\n"


def figure(rows: Sequence[Row]) -> Figure:
    """Cosine and norm ratio over phantom steps; the unrolling of the whole solve as a level."""
    panels = []
    views = (("cosine", "cosine to the reference", "linear"), ("norm_ratio", "norm over that of the reference", "log"))
    for name, title, scale in views:
        lines = []
        for model in dict.fromkeys(row.model for row in rows):
            own = [row for row in rows if row.model == model]
            kinds = dict.fromkeys((row.method.kind, row.method.damping) for row in own)
            for kind, damping in kinds:
                if kind not in ("phantom", WHOLE):
                    continue
                steps = sorted({r.method.steps for r in own if (r.method.kind, r.method.damping) == (kind, damping)})
                means = [_mean(getattr(r, name) for r in own if r.method == Method(kind, n, damping)) for n in steps]
                told = f", damping {damping:g}" if kind == "phantom" else ""
                lines.append(Line(f"{model}: {kind}{told}", steps, means))
        panels.append(Panel("phantom steps T", title, lines, scale))
    return draw(panels)


def _solves(solves: Sequence[Solve]) -> str:
    """How the pairs were solved, and what the gradients are compared with."""
    references = [solve.reference for solve in solves]
    counts = ", ".join(f"{name} for {references.count(name)} of {len(solves)}" for name in dict.fromkeys(references))
    changes = [solve.change for solve in solves if solve.reference != "implicit"]
    if changes:
        counts += (
            f"; over its second half of steps it changes by up to {max(changes):.1%}: far from 0 it is no reference"
        )
    radii, residuals = [solve.radius for solve in solves], [solve.residual for solve in solves]
    return (
        f"Relative residual {fmean(residuals):.1e} (worst {max(residuals):.1e}"
        f"{'; not at rest' if max(residuals) > AT_REST else ''}) after at most "
        f"{max(solve.steps for solve in solves)} steps, spectral radius {fmean(radii):.3f} "
        f"({min(radii):.3f} to {max(radii):.3f}). Reference: {counts}."
    )


def _line(method: Method, rows: Sequence[Row]) -> str:
    cells = [_moments([getattr(row, name) for row in rows]) for name in ("cosine", "norm_ratio", "cosine_jfb")]
    cells += [f"{fmean(row.seconds for row in rows):.2f}", f"{rows[0].saved_mb:.1f}", f"{rows[0].tensors_mb:.1f}"]
    gmres = [row for row in rows if row.gmres_steps]
    worst = max((row.gmres_residual for row in gmres), default=math.nan)
    cells.append(
        f"{fmean(row.gmres_steps for row in gmres):.0f} products, residual at most {worst:.2e}" if gmres else ""
    )
    return f"| {method} | {' | '.join(cells)} |"


def _moments(values: Sequence[float]) -> str:
    finite = [value for value in values if math.isfinite(value)]
    text = f"{fmean(finite):.4f} ({pstdev(finite):.4f})" if finite else ""
    return text if len(finite) == len(values) else f"{text} not finite for {len(values) - len(finite)}".strip()


def _mean(values: Iterable[float]) -> float:
    """Of what is finite; NaN of nothing."""
    finite = [value for value in values if math.isfinite(value)]
    return fmean(finite) if finite else math.nan
