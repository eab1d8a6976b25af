"""What every step logs, and how much it counts."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dio_lightning.implicit import Solution
from dio_lightning.modules.finite import FiniteSteps
from dio_lightning.pair import Pair
from dio_lightning.processes import reads_again


class ReportedSteps(FiniteSteps):
    """Logs terms of the loss and how solves went; means over several processes are those of one."""

    def _report(self, terms: dict[str, Tensor], solutions: Sequence[Solution], stage: str, size: int) -> None:
        report = {name: value.detach() for name, value in terms.items()}
        if solutions:
            last = solutions[-1]
            report |= {
                "residual": last.residual.mean(),
                "steps": torch.stack([s.steps.float().mean() for s in solutions]).sum(),
                "converged": last.converged.float().mean(),
                "failed": last.failed.float().mean(),
            }
        if size == 0:  # nothing times infinity is not nothing
            report = {name: torch.zeros_like(value) for name, value in report.items()}
        self.log_dict({f"{stage}/{k}": v for k, v in report.items()}, batch_size=size, sync_dist=stage != "train")
        if terms:
            loss, across = report["loss"], stage != "train"
            self.log(f"{stage}_loss", loss, prog_bar=True, logger=False, batch_size=size, sync_dist=across)

    def _weight(self, pair: Pair, stage: str, index: int) -> int:
        """How much an evaluated batch counts in means: by its pairs, and nothing if another process has read it.

        Lightning divides the sum over all processes by their number and drops the rest, so that it must be a multiple.
        """
        if self._trainer is None:
            return len(pair["fixed"])
        loaders = self.trainer.val_dataloaders if stage == "val" else self.trainer.test_dataloaders
        loader = loaders[0] if isinstance(loaders, list | tuple) and len(loaders) == 1 else loaders
        return 0 if reads_again(loader, index) else self.trainer.world_size * len(pair["fixed"])
