"""Data modules: image pairs for registration."""

from data_modules.base import PairDataModule
from data_modules.sources.klein import Klein
from data_modules.sources.learn2reg import Learn2Reg
from data_modules.sources.neurite import NeuriteOASIS
from data_modules.sources.nlst import NLST
from data_modules.sources.oasis import OASIS
from data_modules.sources.pairs_csv import PairsCSV
from data_modules.sources.squares import Squares
from data_modules.sources.subjects_csv import SubjectsCSV
from data_modules.sources.synthetic import SyntheticPairs

__all__ = [
    "NLST",
    "OASIS",
    "Klein",
    "Learn2Reg",
    "NeuriteOASIS",
    "PairDataModule",
    "PairsCSV",
    "Squares",
    "SubjectsCSV",
    "SyntheticPairs",
]
