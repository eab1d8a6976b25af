"""Deformable image registration by implicit layers, on PyTorch Lightning."""

__version__ = "0.1.0"
