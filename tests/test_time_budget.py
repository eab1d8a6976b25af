"""A training of so many seconds: its rate follows the clock, it ends with it, and a resumed one has what was left."""

from pathlib import Path

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from torch.testing import assert_close
from trainings import METHODS, batch, build, loader

from dio_lightning.callbacks import Last, TimeBudget
from dio_lightning.callbacks.budget import factor


class Clock(Callback):
    """A clock on which every update takes a second, and the rate of every update."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, start: float = 1000.0) -> None:
        self.now, self.rates = start, []
        monkeypatch.setattr("dio_lightning.callbacks.budget.time.monotonic", lambda: self.now)

    def on_train_batch_end(self, trainer, *arguments, **named) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.now += 1.0


def fit(folder: Path, clock: Clock, budget: TimeBudget, model=None, ckpt: Path | None = None) -> list[float]:
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=-1,
        callbacks=[clock, budget, Last(folder)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(model or build("VoxelMorph"), loader([batch(seed) for seed in range(4)]), ckpt_path=ckpt)
    return clock.rates


def test_the_rate_follows_the_clock_and_the_training_ends_with_it(tmp_path, monkeypatch):
    rates = fit(tmp_path, Clock(monkeypatch), TimeBudget(10.0, rise=0.2))
    # trainings.build: 0.01 at first; update k begins after k seconds
    assert_close(torch.tensor(rates), 0.01 * torch.tensor([factor(k / 10, 0.2) for k in range(10)]))
    assert len(rates) == 10 and rates.index(max(rates)) == 2


@pytest.mark.parametrize(
    ("share", "rise", "value"),
    [
        (0.0, 0.1, 0.0),
        (0.05, 0.1, 0.5),
        (0.1, 0.1, 1.0),
        (0.55, 0.1, 0.5),
        (1.0, 0.1, 0.0),
        (1.5, 0.1, 0.0),
        (0.0, 0.0, 1.0),
    ],
)
def test_it_rises_in_a_line_and_falls_as_a_cosine(share, rise, value):
    assert factor(share, rise) == pytest.approx(value, abs=1e-12)


def test_a_resumed_training_has_the_time_that_was_left(tmp_path, monkeypatch):
    whole = fit(tmp_path / "whole", Clock(monkeypatch), TimeBudget(8.0))
    checkpoint = tmp_path / "part" / "last.ckpt"
    first = fit(tmp_path / "part", Clock(monkeypatch), TimeBudget(4.0))
    # of eight seconds four were spent, whatever the clock of the other machine says
    rest = fit(tmp_path / "part", Clock(monkeypatch, 77.0), TimeBudget(8.0), ckpt=checkpoint)
    assert len(first) == len(rest) == 4
    assert_close(torch.tensor(rest), torch.tensor(whole[4:]))
    assert len(fit(tmp_path / "part", Clock(monkeypatch, 5.0), TimeBudget(8.0), ckpt=checkpoint)) <= 1


def test_a_scheduler_beside_it_is_refused(tmp_path, monkeypatch):
    model = METHODS["VoxelMorph"](scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1))
    with pytest.raises(MisconfigurationException, match="expected no model"):
        fit(tmp_path, Clock(monkeypatch), TimeBudget(10.0), model)


@pytest.mark.parametrize("settings", [{"seconds": 0.0}, {"seconds": 1.0, "rise": 1.0}, {"seconds": 1.0, "rise": -0.1}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match="expected"):
        TimeBudget(**settings)
