"""`dio-lightning check`: what is wrong with a data set, before anything is trained on it."""

from dio_lightning.checking.command import check

__all__ = ["check"]
