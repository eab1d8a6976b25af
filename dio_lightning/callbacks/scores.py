"""Scores in validation and test, shared by every module."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from rich.console import Console

from dio_lightning.callbacks.cost import clock, peak_memory
from dio_lightning.callbacks.gathering import Scored, gather, next_key
from dio_lightning.callbacks.monitors import check_modes, check_names
from dio_lightning.callbacks.report import About, terminal_table, write_run
from dio_lightning.callbacks.warming import warm_up
from dio_lightning.metrics.landmarks import Order
from dio_lightning.metrics.overlap import LabelMode
from dio_lightning.pair import Pair
from dio_lightning.scores.pairs import one_pair, score_pair, solver_report
from dio_lightning.scores.registered import ScoreOptions
from dio_lightning.scores.rows import Row, scores_of
from dio_lightning.scores.summary import summarise
from dio_lightning.scores.vocabulary import of_kind


class RegistrationScores(Callback):
    """Scores every pair from the step's outputs["displacement"] (b, d, *s, voxels) and the batch.

    Validation logs the means val/<score> and val/<score>_identity. Test logs test/<score> and writes metrics.csv (a row
    per pair), metrics_per_label.csv and summary.json to the trainer's default_root_dir; each is replaced atomically, so
    another test in the same folder replaces the first (the command line refuses one of another configuration). A
    `fast_dev_run` writes nothing. Over several processes the rows are gathered, and a pair that a distributed sampler
    repeated counts once: the scores are those of one process.

    `seconds` is the wall time of the step per pair, from this callback's batch start to its batch end (list it first);
    what is done once, such as compiling kernels, is done before the clock starts (`callbacks/warming.py`).
    `peak_mb` is in MiB: on CUDA the most memory allocated during the step, else the peak resident memory of the process
    so far. `hd95` and `hd` are means over the structures found, `hd_missed` counts those that the warp lost.
    Solver reports (steps, converged, residual) go to the files alone: modules log them. `results` are the pairs of a
    test when it has ended, of all processes.
    """

    config_text: str | None = None
    """The resolved config, hashed into summary.json; where it is None, the module's hyperparameters."""
    variant: str = ""
    """What was changed in the method at test time; stands behind its title."""

    def __init__(
        self,
        dice: LabelMode = "nearest",
        surface: bool = True,
        landmarks_order: Order = 3,
        print_table: bool = True,
        unit_spacing: bool = False,
        surface_in_validation: bool = False,
        masked: bool = False,
        min_voxels: int = 1,
    ) -> None:
        """Choose the scores.

        Args:
            dice: how labels are warped: "nearest" (Learn2Reg) or "linear" (masks, thresholded at 0.5).
            surface: Hausdorff distances (HD95, HD) in the test.
            landmarks_order: interpolation of u at landmarks: 3 (cubic, Learn2Reg) or 1 (linear).
            print_table: print the scores beside those of the identity after the test.
            unit_spacing: Hausdorff distances in voxels, as Learn2Reg reports them, instead of mm.
            surface_in_validation: Hausdorff distances in validation too.
            masked: folds, sdlogj and std_logj inside fixed_mask alone, as Learn2Reg evaluates lungs.
            min_voxels: a label counts for a pair if both label maps, before the warp, have this many voxels of it.

        Raises:
            ValueError: dice or landmarks_order is another value, or min_voxels is below 1.
        """
        if dice not in ("nearest", "linear"):
            raise ValueError(f"RegistrationScores: dice must be 'nearest' or 'linear', not {dice!r}")
        if landmarks_order not in (1, 3):
            raise ValueError(f"RegistrationScores: landmarks_order must be 1 or 3, not {landmarks_order!r}")
        if min_voxels < 1:
            raise ValueError(f"RegistrationScores: min_voxels must be at least 1, not {min_voxels!r}")
        self.test_options = ScoreOptions(dice, surface, landmarks_order, unit_spacing, masked, min_voxels)
        # linear interpolation at landmarks in validation: fitting splines would take longer than the epoch
        self.val_options = ScoreOptions(dice, surface and surface_in_validation, 1, unit_spacing, masked, min_voxels)
        self.print_table = print_table
        self._scored: list[Scored] = []
        self.results: list[Scored] = []
        self._start, self._warm = 0.0, False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a training whose checkpoints or early stop would look for the worst score."""
        check_modes(trainer)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the pairs of the epoch before."""
        self._scored = []

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the pairs of the run before."""
        self._scored, self.results, self._warm = [], [], False

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Pair, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Start the clock; before the first pair the method is run once on a part of it, which is not timed."""
        if not self._warm:
            warm_up(pl_module, batch, trainer.precision_plugin.test_step_context())
            self._warm = True
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)
        self._start = clock(pl_module.device)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: STEP_OUTPUT,
        batch: Pair,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Score the pairs of the batch."""
        self._score(trainer.val_dataloaders, outputs, batch, dataloader_idx, self.val_options, {})

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: STEP_OUTPUT,
        batch: Pair,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Score the pairs of the batch, and what they cost."""
        seconds = (clock(pl_module.device) - self._start) / len(batch["fixed"])
        cost: Row = {"seconds": seconds, "peak_mb": peak_memory(pl_module.device)}
        self._score(trainer.test_dataloaders, outputs, batch, dataloader_idx, self.test_options, cost)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the means over the pairs of all processes."""
        _log(pl_module, "val", [pair.row for pair in gather(self._scored)])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a training, after its sanity check at the latest, that watches what is no score."""
        if trainer.state.fn == "fit":
            check_names(trainer)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the means, write the files and print the table."""
        self.results = scored = gather(self._scored)
        rows = [pair.row for pair in scored]
        _log(pl_module, "test", rows)
        if not trainer.is_global_zero or not rows:
            return
        about = self.about(pl_module)
        if not getattr(trainer, "fast_dev_run", False):
            names = getattr(getattr(trainer, "datamodule", None), "label_names", None) or {}
            write_run(Path(trainer.default_root_dir), scored, names, about)
        if self.print_table:
            Console().print(terminal_table(rows, about).rich())

    def about(self, pl_module: LightningModule) -> About:
        """What files say of a test beside its scores."""
        return About(self._config(pl_module), self._method(pl_module), self.test_options.units)

    def _score(
        self, loaders: object, outputs: object, batch: Pair, loader: int, options: ScoreOptions, cost: Row
    ) -> None:
        if not isinstance(outputs, Mapping) or "displacement" not in outputs:
            raise ValueError('RegistrationScores needs steps that return {"displacement": u (b, d, *s), ...}')
        displacement = outputs["displacement"].detach().float()
        for sample in range(len(batch["fixed"])):
            pair = one_pair(batch, sample)
            key = next_key(loaders, loader, pair, self._scored)
            row, labels = score_pair(displacement[sample : sample + 1], pair, options)
            row = {"fixed_id": key.fixed_id, "moving_id": key.moving_id} | row | cost | solver_report(outputs, sample)
            self._scored.append(Scored(key, row, labels))

    def _method(self, pl_module: LightningModule) -> str:
        """What was run: the module's title, and what was changed at test time."""
        title = str(getattr(pl_module, "title", type(pl_module).__name__))
        return f"{title} ({self.variant})" if self.variant else title

    def _config(self, pl_module: LightningModule) -> str:
        if self.config_text is not None:
            return self.config_text
        return json.dumps(dict(pl_module.hparams), default=str, sort_keys=True)


def _log(pl_module: LightningModule, stage: str, rows: list[Row]) -> None:
    """Log the mean of every score; equal on all processes, because the rows were gathered."""
    names = [name for name in scores_of(rows) if name not in of_kind("solver")]
    means = {name: summarise(row.get(name) for row in rows)["mean"] for name in names}
    logged = {f"{stage}/{name}": mean for name, mean in means.items() if mean is not None}
    pl_module.log_dict(logged, sync_dist=True, batch_size=max(len(rows), 1), prog_bar=False)
