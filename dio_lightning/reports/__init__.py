"""Reports to look at: pages in one file that need neither a server nor a network."""

from dio_lightning.reports.curves import Curves
from dio_lightning.reports.page import Download, Facts, Page, Plot, Section, Text, write_page
from dio_lightning.reports.pairs import PairView, pair_view

__all__ = [
    "Curves",
    "Download",
    "Facts",
    "Page",
    "PairView",
    "Plot",
    "Section",
    "Text",
    "pair_view",
    "write_page",
]
