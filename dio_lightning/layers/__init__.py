"""The solving layer: where update, solver and adjoint meet, level by level."""

from dio_lightning.layers.optimizer import OptimizerLayer
from dio_lightning.layers.problem import Observer, Problem, Record, Run

__all__ = ["Observer", "OptimizerLayer", "Problem", "Record", "Run"]
