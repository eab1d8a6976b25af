"""The domain-shift study as a command: its options."""

import os
from dataclasses import MISSING, dataclass
from pathlib import Path

from dio_lightning.studies.study import PairStudy, option


@dataclass(frozen=True, kw_only=True)
class Shift(PairStudy):
    """Trained methods on domains that they were not trained on; see `shift.shift`."""

    name = "shift"
    more = ("structures",)
    domains: Path = option(
        MISSING,
        "YAML file that names the data sets, the first of them (or `reference`) the one trained on",
        Path,
        "FILE",
    )
    root: Path | None = option(
        None, "folder of the data sets' folders (default: $DIO_DATA if it is set, else this one)", Path, "DIR"
    )
    refine_steps: int = option(
        50, "of the instance optimisation after each trained method, a row of its own; 0: none", metavar="N"
    )
    refine_resolution: float = option(1.0, "factor by which its grid is coarser than the pair's", float, "R")
    surface: bool = option(False, "Hausdorff distances too, which take seconds a pair", bool)
    resume: bool = option(False, "keep rows of unchanged weights that are in FOLDER", bool)

    def run(self) -> str:
        """As `shift.shift`."""
        from dio_lightning.studies.shift import shift
        from dio_lightning.studies.shift_refine import Refinement

        root = self.root or Path(os.environ.get("DIO_DATA") or ".")
        refinement = Refinement(self.refine_steps, resolution=self.refine_resolution)
        limits = (self.limit, self.surface, self.resume, self.overwrite)
        return shift(self.weights, self.domains, self.out, root, self.options, refinement, *limits)
