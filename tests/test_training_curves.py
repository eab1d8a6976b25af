"""A training takes the same course whatever computes the operators."""

import pytest
import torch
from torch import Tensor
from trainings import build

from dio_lightning.fields import gaussian_smooth
from dio_lightning.implicit import Adam
from dio_lightning.modules import DIO
from dio_lightning.pair import Pair

STEPS = 50


def _pairs() -> list[Pair]:
    """Five pairs of smooth images in [0, 1]."""
    generator, pairs = torch.Generator().manual_seed(0), []
    for _ in range(5):
        x = gaussian_smooth(torch.randn(2, 1, 20, 24, generator=generator), 2.0)
        x = (x - x.amin()) / (x.amax() - x.amin())
        pairs.append(Pair(fixed=x[:1], moving=x[1:]))
    return pairs


def _curve(name: str) -> Tensor:
    """Losses of plain gradient descent on the weights; with Adam a gradient of rounding would be a full step."""
    module, pairs, losses = build(name), _pairs(), []
    if isinstance(module, DIO):
        module.layer.solver = Adam(eps=0.1)  # for the same reason
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-2)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = module.training_step(pairs[step % len(pairs)], step)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


@pytest.mark.filterwarnings("ignore:.*self.log.*")
@pytest.mark.parametrize("name", ["DIO", "DEQReg"])
def test_fifty_steps_by_compiled_loops_are_those_of_plain_pytorch(name, monkeypatch) -> None:
    """The first loss to rounding, later ones to 1e-4: a point beside a whole voxel may have either side's slope.

    Noise of 1e-6 in the images moves DIO's curve by 3e-5; training moves it by more than ten times the bound.
    """
    monkeypatch.setenv("DIO_OPS", "numba")
    compiled = _curve(name)
    monkeypatch.setenv("DIO_OPS", "reference")
    plain = _curve(name)
    moved = (compiled / plain - 1).abs()
    assert float(moved[0]) < 2e-6
    assert float(moved.max()) < 1e-4
    assert float(plain[-5:].mean() / plain[:5].mean()) < 1 - 1e-3
