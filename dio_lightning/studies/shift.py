"""Trained methods on data that they were not trained on, with no fine-tuning (Jena et al., DIO, 2024, Table 2)."""

import os
from dataclasses import MISSING, dataclass
from pathlib import Path

from dio_lightning.files import expect_free, write_all
from dio_lightning.studies.study import PairStudy, option


@dataclass(frozen=True, kw_only=True)
class Shift(PairStudy):
    """Every method on every domain; a domain whose folder is not there is left out, and named."""

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
    refine_steps: int = option(50, "of the instance optimisation after each trained method; 0: none", metavar="N")
    refine_resolution: float = option(1.0, "factor by which its grid is coarser than the pair's", float, "R")
    surface: bool = option(False, "Hausdorff distances too, which take seconds a pair", bool)
    resume: bool = option(False, "keep rows of unchanged weights that are in FOLDER", bool)

    def run(self) -> str:
        """As every study does, but that its rows are kept on disk while it goes on."""
        from dio_lightning.domains import read_plan
        from dio_lightning.loaded import load_all
        from dio_lightning.scores.store import Store
        from dio_lightning.studies import shift_report, shift_solving
        from dio_lightning.studies.shift_refine import Refinement

        refinement = Refinement(self.refine_steps, resolution=self.refine_resolution)
        store = Store.open(self.out, self.name, self.resume)
        expect_free(self.files, self.overwrite or self.resume)
        plan = read_plan(self.domains, self.root or Path(os.environ.get("DIO_DATA") or "."), self.surface)
        domains = plan.present()
        built = [domain.build() for domain in domains]
        loaded = load_all(self.weights, self.options, ready=False)
        shift_solving.check(loaded)
        for one in loaded:
            one.module.to(loaded[0].module.device)
        rows = shift_solving.candidates(loaded, self.options, refinement)
        shift_solving.measure(domains, built, plan, loaded[0], rows, store, self.limit)
        study = shift_report.Study(store.rows, plan, [d for d in plan.domains if d not in domains], refinement)
        text, picture = shift_report.markdown(study), shift_report.figure(study)
        write_all(dict(zip(self.files, [*store.contents().values(), text, picture, picture], strict=True)))
        return text
