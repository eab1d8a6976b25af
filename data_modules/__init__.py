"""Data modules: image pairs for registration."""

from data_modules.base import PairDataModule
from data_modules.learn2reg import Learn2Reg
from data_modules.synthetic import SyntheticPairs

__all__ = ["Learn2Reg", "PairDataModule", "SyntheticPairs"]
