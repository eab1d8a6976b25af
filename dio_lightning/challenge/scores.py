"""Learn2Reg's official numbers in a test, beside the corrected ones."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from rich.console import Console

from dio_lightning.callbacks.gathering import Scored, gather, next_key
from dio_lightning.callbacks.report import spread, titled
from dio_lightning.files import write_atomic
from dio_lightning.metrics.learn2reg import SCORES, aggregate, learn2reg, robust
from dio_lightning.pair import Pair
from dio_lightning.scores import look_up
from dio_lightning.scores.pairs import one_pair
from dio_lightning.scores.rows import IDS, Row, to_csv
from dio_lightning.scores.summary import summarise
from dio_lightning.scores.table import Cell, Table

CORRECTED = {"dice": "dice", "hd95": "hd95", "tre": "tre", "sdlogj": "std_logj", "num_foldings": "folds"}
"""Our score that says what an official one was meant to say."""
UNITS = {"hd95": "voxels", "num_foldings": "n"}
"""Units of the official numbers, where they are not ours."""
COLUMNS = (*IDS, *(c for name in SCORES for c in (CORRECTED[name], f"{name}_l2r")))


class Learn2RegScores(Callback):
    """Scores every test pair as Learn2Reg's evaluation does (`metrics.learn2reg`), beside `RegistrationScores`.

    Writes metrics_l2r.csv, a row per pair with our scores and the official ones (*_l2r), and summary_l2r.json, the
    official mean, std and 30 by score; prints both side by side.
    List it after `RegistrationScores`, whose metrics.csv it reads. A `fast_dev_run` writes nothing.
    """

    def __init__(self, masked: bool = False) -> None:
        """With `masked`, sdlogj is taken inside fixed_mask, as Learn2Reg does for lungs."""
        self.masked = masked
        self._scored: list[Scored] = []

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the pairs of the run before."""
        self._scored = []

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: STEP_OUTPUT,
        batch: Pair,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Score the pairs of the batch."""
        if not isinstance(outputs, dict):
            raise ValueError('Learn2RegScores needs steps that return {"displacement": u (b, d, *s), ...}')
        u = outputs["displacement"].detach()
        for sample in range(len(batch["fixed"])):
            pair = one_pair(batch, sample)
            key = next_key(trainer.test_dataloaders, dataloader_idx, pair, self._scored)
            official = learn2reg(u[sample : sample + 1], pair, self.masked)
            row: Row = {"fixed_id": key.fixed_id, "moving_id": key.moving_id}
            row |= {f"{k}_l2r": v for k, v in official.items()}
            self._scored.append(Scored(key, row, []))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file and print the table."""
        rows = [pair.row for pair in gather(self._scored)]
        if not trainer.is_global_zero or not rows:
            return
        if not getattr(trainer, "fast_dev_run", False):
            folder = Path(trainer.default_root_dir)
            rows = beside(rows, folder / "metrics.csv")
            write_atomic(folder / "metrics_l2r.csv", to_csv(rows, COLUMNS))
            write_atomic(folder / "summary_l2r.json", json.dumps(aggregates(rows), indent=2) + "\n")
        Console().print(table(rows).rich())


def beside(rows: Sequence[Row], metrics: Path) -> list[Row]:
    """The rows with our scores of the same pairs, as far as metrics.csv has them."""
    ours: dict[tuple[str, str], Row] = {}
    if metrics.is_file():
        with open(metrics, encoding="utf-8", newline="") as file:
            for line in csv.DictReader(file):
                own: Row = {name: float(line[name]) for name in CORRECTED.values() if line.get(name)}
                ours[line["fixed_id"], line["moving_id"]] = own
    return [row | ours.get((str(row["fixed_id"]), str(row["moving_id"])), {}) for row in rows]


def aggregates(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Official mean, std and 30 of every official score that the rows have."""
    columns = {name: [float(row[f"{name}_l2r"]) for row in rows if f"{name}_l2r" in row] for name in SCORES}
    return {name: aggregate(values) for name, values in columns.items() if values}


def table(rows: Sequence[Row]) -> Table:
    """Mean, standard deviation and the value at 30 % of the pairs, corrected and as Learn2Reg reports them."""
    lines: list[list[Cell]] = []
    for name, theirs in aggregates(rows).items():
        mine = CORRECTED[name]
        values = [float(row[mine]) for row in rows if mine in row]
        summary = summarise(values)
        ours = ["", ""]
        if summary["mean"] is not None:
            ours = [spread(summary), f"{robust(values, look_up(mine).better == 'larger'):.4g}"]
        official = [f"{theirs['mean']:.4g} ± {theirs['std']:.2g}", f"{theirs['30']:.4g}"]
        lines.append([titled(mine), *map(Cell, ours), titled(name, UNITS.get(name)), *map(Cell, official)])
    title = f"Corrected scores and Learn2Reg's own, mean ± std over {len(rows)} pairs, and at 30 % of them"
    return Table(["corrected", "mean ± std", "30 %", "Learn2Reg's", "mean ± std", "30 %"], lines, title, True)
