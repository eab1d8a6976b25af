"""Draws the pictures of the concept pages into docs/figures: `python docs/figures.py`. What they show is computed.

A test draws them again and compares, so a picture cannot say anything else than the code does.
"""

from collections.abc import Callable
from math import log10
from pathlib import Path

import numpy as np
import torch
from drawing import Axes, Drawing
from torch import Tensor

from dio_lightning.fields.levels import Grid, blocks, spanning
from dio_lightning.implicit import (
    Anderson,
    Broyden,
    Evaluation,
    ImplicitAdjoint,
    PhantomAdjoint,
    Picard,
    Residual,
    Solver,
    fixed_point,
    iterate,
)
from dio_lightning.transforms import Affine, Chain

FOLDER = Path(__file__).parent / "figures"
SLOPE, SHIFT, START = 0.8, 0.4, -1.6


def scalar(b: Tensor) -> Callable[[Tensor], Tensor]:
    """f(z) = b + 0.8 tanh(z), a contraction of the line."""
    return lambda z: b + SLOPE * torch.tanh(z)


def gradients() -> dict[str, float]:
    """dz*/db by each adjoint, at the fixed point of `scalar`."""
    values = {}
    for name, adjoint in {
        **{f"phantom {k}": PhantomAdjoint(steps=k) for k in (1, 2, 3, 4, 5)},
        "implicit": ImplicitAdjoint(rtol=1e-12),
    }.items():
        b = torch.tensor([[SHIFT]], dtype=torch.float64, requires_grad=True)
        z = fixed_point(
            scalar(b), torch.full_like(b, START), Picard(), adjoint, max_steps=200, stop=Residual(1e-12)
        ).value
        values[name] = float(torch.autograd.grad(z.sum(), b)[0])
    return values


def fixed_points() -> str:
    """The fixed point of an update, and that of its gradient, side by side."""
    states: list[float] = []
    b = torch.tensor([[SHIFT]], dtype=torch.float64)
    solution = iterate(
        scalar(b),
        torch.full_like(b, START),
        Picard(),
        max_steps=60,
        stop=Residual(1e-9),
        observe=lambda i, z, e: states.append(float(z)),
    )
    star, values = float(solution.value), gradients()
    drawing = Drawing(880, 450, "Picard steps to the fixed point z*, and the partial sums of its gradient")
    left = Axes(drawing, (50, 60), (330, 330), (-1.8, 1.6), (-1.8, 1.6))
    drawing.text(215, 34, "forward: z ← f(z)", "m t")
    left.curve(lambda z: z, "g")
    left.curve(lambda z: SHIFT + SLOPE * float(torch.tanh(torch.tensor(z, dtype=torch.float64))), "a")
    left.stairs(states[:8], "b")
    drawing.text(*left.at(-1.4, -0.62), "f(z) = 0.4 + 0.8 tanh z")
    drawing.text(*left.at(0.35, star + 0.22), f"z* = {star:.3f}")
    drawing.text(215, 425, "no graph is recorded on this way", "m")
    right = Axes(drawing, (500, 60), (330, 330), (0, 1.7), (0, 1.7))
    slope = 1 - 1 / values["implicit"]
    drawing.text(665, 34, "backward: w ← ∂L/∂z + Jᵀ w, at z*", "m t")
    right.curve(lambda w: w, "g")
    right.curve(lambda w: 1 + slope * w, "a")
    right.stairs([0.0, *(values[f"phantom {k}"] for k in (1, 2, 3, 4, 5))], "b")
    drawing.text(*right.at(0.08, 0.88), f"1: phantom, one step (JFB) = {values['phantom 1']:.3f}")
    drawing.text(*right.at(0.32, 0.62), f"2 steps = {values['phantom 2']:.3f}, 3 steps = {values['phantom 3']:.3f}")
    drawing.text(*right.at(0.32, 0.44), f"implicit: w* = 1 / (1 − J) = {values['implicit']:.3f}")
    drawing.text(665, 425, f"J = df/dz at z* = {slope:.3f}; w* is dz*/db", "m")
    return drawing.svg()


def residuals(solver: Solver, steps: int = 60) -> list[float]:
    """Relative residual before every step on a contraction of 32 unknowns whose largest eigenvalue is 0.95."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(32, 32, generator=generator, dtype=torch.float64))[0]
    matrix = basis @ torch.diag(torch.linspace(-0.5, 0.95, 32, dtype=torch.float64)) @ basis.T
    shift = torch.randn(1, 32, generator=generator, dtype=torch.float64)
    values: list[float] = []

    def observe(step: int, z: Tensor, evaluation: Evaluation | None) -> None:
        if evaluation is not None:
            values.append(float(evaluation.residual / evaluation.norm))

    iterate(
        lambda z: z @ matrix + shift,
        torch.zeros_like(shift),
        solver,
        max_steps=steps,
        stop=Residual(1e-8),
        observe=observe,
    )
    return values


def solvers() -> str:
    """Residual against steps: three solvers on one update."""
    drawing = Drawing(880, 400, "Relative residual against steps: Picard falls slowly, Anderson and Broyden fast")
    axes = Axes(drawing, (90, 40), (560, 300), (0, 60), (-8, 0))
    for power in range(-8, 1, 2):
        drawing.line([axes.at(0, power), axes.at(60, power)], "g")
        drawing.text(82, axes.at(0, power)[1] + 5, f"1e{power}", "e")
    for step in range(0, 61, 20):
        drawing.text(axes.at(step, 0)[0], 360, str(step), "m")
    drawing.text(370, 385, "evaluations of f", "m")
    drawing.text(90, 26, "‖f(z) − z‖ / ‖f(z)‖")
    for i, (name, solver, kind) in enumerate(
        (("Picard", Picard(), "a"), ("Anderson", Anderson(window=5), "b"), ("Broyden", Broyden(), "c"))
    ):
        values = residuals(solver)
        drawing.line([axes.at(step, max(-8.0, log10(value))) for step, value in enumerate(values)], kind)
        drawing.line([(680, 90 + 34 * i), (712, 90 + 34 * i)], kind)
        drawing.text(720, 95 + 34 * i, name)
    return drawing.svg()


def levels() -> str:
    """Where the voxels of three levels lie, and where those of a resized image would."""
    drawing = Drawing(
        880,
        330,
        "Voxels of levels of factor 1, 2 and 4 are blocks of the image's; a resized image has its ends in common",
    )

    def row(y: float, words: str, grid: Grid, kind: str, block: bool) -> None:
        drawing.text(30, y + 5, words)
        for i in range(grid.size[0]):
            centre, half = grid.start[0] + grid.step[0] * i, grid.step[0] / 2
            left, right = (330 + 60 * x for x in (centre - half, centre + half))
            if block:
                drawing.line([(left, y - 18), (right, y - 18), (right, y + 18), (left, y + 18), (left, y - 18)], "k")
            drawing.dot(330 + 60 * centre, y, f"f{kind}", 5)
            drawing.text(330 + 60 * centre, y + 34, f"{centre:.3g}", "m")

    row(50, "image, 8 voxels", blocks((8,), 1), "a", True)
    row(120, "level of factor 2: f i + (f − 1) / 2", blocks((8,), 2), "b", True)
    row(190, "level of factor 4", blocks((8,), 4), "b", True)
    row(260, "resized to 4: common ends", spanning((8,), (4,)), "c", False)
    return drawing.svg()


def coordinates() -> str:
    """A voxel of docs/register.md, the point that it leads to, and both in the worlds of nibabel and of ITK."""
    affine = np.diag([-2.0, 2, 2, 1])
    affine[:3, 3] = 90, -126, -72
    move = np.eye(4)
    move[:3, 3] = 1, 0.5, -1
    voxels = np.array([[10.0, 20, 30, 1]]), np.array([[10.0, 20, 30, 1]]) @ move.T
    here = (voxels[0] @ affine.T)[:, :3]
    ras = here, Chain([Affine.of_voxels(move, affine, affine)]).points(here)
    lps = tuple(points * [-1, -1, 1] for points in ras)
    drawing = Drawing(880, 330, "Voxel (10, 20, 30) of the fixed image leads to (11, 20.5, 29) of the moving image")
    grid = Axes(drawing, (60, 50), (240, 240), (9, 12), (19, 22))
    for k in (10, 11, 12):
        drawing.line([grid.at(k, 19), grid.at(k, 22)], "g")
        drawing.line([grid.at(9, k + 10), grid.at(12, k + 10)], "g")
        drawing.text(grid.at(k, 19)[0], 310, str(k), "m")
        drawing.text(52, grid.at(9, k + 10)[1] + 5, str(k + 10), "e")
    drawing.text(60, 30, "array axes 0 (across) and 1 (up), in voxels")
    start, end = (grid.at(*points[0, :2]) for points in voxels)
    drawing.line([start, end], "b", arrow=True)
    drawing.dot(*start, "fa")
    drawing.text(start[0] - 8, start[1] + 20, "x", "e")
    drawing.text(end[0] + 8, end[1] - 8, "x + u(x)")
    for row, (words, (before, after)) in enumerate(
        (("voxels of the fixed grid", voxels), ("RAS millimetres", ras), ("LPS millimetres", lps))
    ):
        y = 80 + 80 * row
        drawing.text(400, y, words, "t")
        step = after - before
        shown = [
            "(" + ", ".join(f"{value:g}".replace("-", "−") for value in p[0, :3]) + ")" for p in (before, step, after)
        ]
        drawing.text(400, y + 26, f"{shown[0]} + {shown[1]} = {shown[2]}")
    return drawing.svg()


FIGURES = {
    "fixed_points.svg": fixed_points,
    "solvers.svg": solvers,
    "levels.svg": levels,
    "coordinates.svg": coordinates,
}

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, draw in FIGURES.items():
        (FOLDER / name).write_text(draw(), encoding="utf-8")
