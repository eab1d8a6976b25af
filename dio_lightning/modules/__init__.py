"""LightningModules, one a method."""

from dio_lightning.modules.base import RegistrationModule
from dio_lightning.modules.dio import DIO

__all__ = ["DIO", "RegistrationModule"]
