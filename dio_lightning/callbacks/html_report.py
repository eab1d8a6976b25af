"""report.html of a test: written at its end, with the worst, the middle and the best pair registered once more."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from dio_lightning.callbacks.gathering import Scored
from dio_lightning.callbacks.report_page import numbers, page_of_test, ranked
from dio_lightning.callbacks.scores import RegistrationScores
from dio_lightning.layers import Run
from dio_lightning.pair import Pair
from dio_lightning.pictures import Upright
from dio_lightning.reports import Curves, PairView, pair_view, write_page


class Report(Callback):
    """Writes report.html beside the scores of a test: tables, boxes, pairs, config and command in one file.

    The pairs that are shown are registered once more after the test, so that neither its times nor its memory change;
    their solves are watched, for the curves of residual and energy.
    """

    def __init__(self, pairs: int = 3, interactive: bool = True) -> None:
        """Choose what is shown.

        Args:
            pairs: how many pairs, from the worst to the best; 0: none.
            interactive: whether they can be looked through in the page, for about 1 to 3 MB a pair.

        Raises:
            ValueError: pairs is negative.
        """
        if pairs < 0:
            raise ValueError(f"Report: expected pairs >= 0, not {pairs}")
        self.pairs, self.interactive = pairs, interactive

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the page, by one process, where scores were taken."""
        callbacks: Iterable[Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        scores = next((one for one in callbacks if isinstance(one, RegistrationScores)), None)
        if (
            scores is None
            or not scores.results
            or not trainer.is_global_zero
            or getattr(trainer, "fast_dev_run", False)
        ):
            return
        scored, about = scores.results, scores.about(pl_module)
        names = getattr(getattr(trainer, "datamodule", None), "label_names", None) or {}
        views = self._views(trainer, pl_module, scored)
        data = type(module).__name__ if (module := getattr(trainer, "datamodule", None)) is not None else ""
        page = page_of_test(scored, names, about, views, data)
        write_page(Path(trainer.default_root_dir) / "report.html", page)

    def _views(self, trainer: Trainer, module: LightningModule, scored: Sequence[Scored]) -> list[PairView]:
        """The pairs that are shown, registered once more."""
        register = getattr(module, "register", None)
        if register is None or not self.pairs:
            return []
        loaders = trainer.test_dataloaders
        views = []
        for rank, one in ranked(scored, self.pairs):
            loader = loaders[one.key.loader] if isinstance(loaders, list | tuple) else loaders
            if not isinstance(loader, DataLoader):
                continue
            batch: Pair = trainer.strategy.batch_to_device(loader.collate_fn([loader.dataset[one.key.index]]))
            curves = Curves()
            with trainer.precision_plugin.test_step_context(), torch.no_grad():
                u = register(batch, Run(observe=curves))
            title = f"{one.key.moving_id} onto {one.key.fixed_id}"
            pair = Upright.of(batch, u)
            views.append(pair_view(pair, title, rank, numbers(one.row), curves, self.interactive))
        return views
