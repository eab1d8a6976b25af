"""Data modules: image pairs for registration."""

from data_modules.base import PairDataModule
from data_modules.klein import Klein
from data_modules.learn2reg import Learn2Reg
from data_modules.neurite import NeuriteOASIS
from data_modules.nlst import NLST
from data_modules.oasis import OASIS
from data_modules.pairs_csv import PairsCSV
from data_modules.synthetic import SyntheticPairs

__all__ = ["NLST", "OASIS", "Klein", "Learn2Reg", "NeuriteOASIS", "PairDataModule", "PairsCSV", "SyntheticPairs"]
