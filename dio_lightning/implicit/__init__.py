"""Fixed points z = f(z): solvers, the loop, and gradients of the solution. Imports torch and `ops` alone."""

from dio_lightning.implicit.adjoints import Adjoint, ImplicitAdjoint, PhantomAdjoint, UnrolledAdjoint
from dio_lightning.implicit.broyden import Broyden
from dio_lightning.implicit.conjugate import conjugate_gradients
from dio_lightning.implicit.descent import Adam, GradientDescent
from dio_lightning.implicit.fixed_point import fixed_point
from dio_lightning.implicit.gmres import gmres
from dio_lightning.implicit.iterate import Advance, Observe, iterate
from dio_lightning.implicit.piecewise import piecewise_sum
from dio_lightning.implicit.solution import AdjointReport, Solution, Update
from dio_lightning.implicit.solvers import Anderson, Picard, Solver
from dio_lightning.implicit.stability import jacobian_energy, spectral_radius
from dio_lightning.implicit.stopping import Evaluation, Never, Residual, Stagnation, StopRule

__all__ = [
    "Adam",
    "Adjoint",
    "AdjointReport",
    "Advance",
    "Anderson",
    "Broyden",
    "Evaluation",
    "GradientDescent",
    "ImplicitAdjoint",
    "Never",
    "Observe",
    "PhantomAdjoint",
    "Picard",
    "Residual",
    "Solution",
    "Solver",
    "Stagnation",
    "StopRule",
    "UnrolledAdjoint",
    "Update",
    "conjugate_gradients",
    "fixed_point",
    "gmres",
    "iterate",
    "jacobian_energy",
    "piecewise_sum",
    "spectral_radius",
]
