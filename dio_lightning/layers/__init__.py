"""Layers that solve."""

from dio_lightning.layers.optimizer import OptimizerLayer

__all__ = ["OptimizerLayer"]
