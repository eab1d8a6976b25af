"""Trained methods on data that they were not trained on, with no fine-tuning (Jena et al., DIO, 2024, Table 2)."""

import os
from dataclasses import MISSING, dataclass
from pathlib import Path

from dio_lightning.files import expect_free
from dio_lightning.studies.study import PairStudy, option


@dataclass(frozen=True, kw_only=True)
class Shift(PairStudy):
    """Scores of every method on every domain.

    Raises:
        ValueError: for steps below 0, or a factor below 1.
    """

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
    refine_resolution: int = option(1, "whole factor by which its grid is coarser than the pair's", metavar="R")
    surface: bool = option(False, "Hausdorff distances too, which take seconds a pair", bool)
    resume: bool = option(False, "keep rows of unchanged weights that are in FOLDER", bool)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.refine_steps < 0 or self.refine_resolution < 1:
            steps, factor = self.refine_steps, self.refine_resolution
            raise ValueError(f"refine_steps is {steps} and refine_resolution {factor}, expected at least 0 and 1")

    def run(self) -> str:
        """Domain by domain, since their images are what takes the memory; see `Study.run`."""
        from dio_lightning.domains import read_plan
        from dio_lightning.loaded import load_all
        from dio_lightning.reports.study import write_study
        from dio_lightning.scores.store import Store
        from dio_lightning.studies.shift_report import Outcome, figure, markdown
        from dio_lightning.studies.shift_solving import candidates, check, measure, refinement

        expect_free(self.files, self.overwrite or self.resume)
        store = Store.open(self.out, self.name, self.resume)
        plan = read_plan(self.domains, self.root or Path(os.environ.get("DIO_DATA") or "."), self.surface)
        present, missing = plan.present()
        refine = refinement(self.refine_steps, self.refine_resolution)
        built = [domain.build() for domain in present]
        loaded = load_all(self.weights, self.options, ready=False)
        check(loaded)
        rows = candidates(loaded, self.options, refine)
        measure([*zip(present, built, strict=True)], plan, loaded[0], rows, store, self.limit)
        outcome = Outcome(store.rows, plan, missing, self.refine_steps, self.refine_resolution)
        text = markdown(outcome)
        write_study(self.name, self.files, [*store.contents().values()], text, figure(outcome))
        return text
