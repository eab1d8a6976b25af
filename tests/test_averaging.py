"""Lightning's moving average of the weights in our trainings: what is validated, saved and resumed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch.testing import assert_close
from trainings import batch, build, loader, objective, trainer

from dio_lightning.callbacks import Last
from dio_lightning.checkpoint_files import read_checkpoint
from dio_lightning.features import UNet
from dio_lightning.layers import OptimizerLayer
from dio_lightning.modules import DIO

DECAY = 0.6


class Trace(Callback):
    """The weights after every step, and those that validation met."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []
        self.validated: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer, pl_module, *arguments: Any, **named: Any) -> None:
        self.steps.append({k: v.clone() for k, v in pl_module.state_dict().items()})

    def on_validation_batch_start(self, trainer, pl_module, *arguments: Any, **named: Any) -> None:
        self.validated.append({k: v.clone() for k, v in pl_module.state_dict().items()})


def fit(folder: Path, epochs: int, name: str = "DIO", ckpt: Path | None = None) -> Trace:
    trace = Trace()
    run = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[EMAWeightAveraging(decay=DECAY), trace, Last(folder)],
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    run.fit(build(name), loader([batch(0), batch(1)]), loader([batch(2)]), ckpt_path=ckpt)
    return trace


def averaged(steps: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The moving average of the weights, from those after the first step."""
    average = steps[0]
    for step in steps[1:]:
        average = {k: v + (1 - DECAY) * (step[k] - v) if v.is_floating_point() else step[k] for k, v in average.items()}
    return average


@pytest.mark.parametrize("name", ["DIO", "DEQReg"])
def test_validation_and_checkpoint_have_the_average(tmp_path: Path, name: str) -> None:
    trace = fit(tmp_path, 2, name)
    expected = averaged(trace.steps)
    assert any(not torch.allclose(expected[k], v) for k, v in trace.steps[-1].items())
    for weights in (trace.validated[-1], read_checkpoint(tmp_path / "last.ckpt")["state_dict"]):
        assert_close({k: weights[k] for k in expected}, expected)


def test_a_resumed_training_goes_on_from_the_last_weights_and_the_same_average(tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole", 3)
    fit(tmp_path / "part", 2)
    rest = fit(tmp_path / "part", 3, ckpt=tmp_path / "part" / "last.ckpt")
    assert_close(rest.steps, whole.steps[4:])
    assert_close(rest.validated[-1], whole.validated[-1])


def opening(folder: Path, use_buffers: bool) -> int:
    """Open levels of the last checkpoint of a training whose second level opens at its second step."""
    torch.manual_seed(0)
    model = DIO(UNet(1, 4, (2, 1), 2, (4, 8)), OptimizerLayer([1, 1]), objective(), opens=(0, 1))
    callbacks = [EMAWeightAveraging(decay=0.9, use_buffers=use_buffers), Last(folder)]
    trainer(folder, *callbacks, enable_checkpointing=True).fit(model, loader([batch(0), batch(1)]))
    return int(read_checkpoint(folder / "last.ckpt")["state_dict"]["open_levels"])


def test_an_average_has_all_levels_that_training_opened(tmp_path: Path) -> None:
    assert opening(tmp_path, use_buffers=False) == 2
    with pytest.raises(ValueError, match="use_buffers true, expected false"):
        opening(tmp_path, use_buffers=True)
