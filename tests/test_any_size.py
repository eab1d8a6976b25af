"""Every method registers and trains on any size: nobody meets 'must be divisible by 16'."""

from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

from dio_lightning.fields import gaussian_smooth
from dio_lightning.layers import OptimizerLayer
from dio_lightning.modules.base import RegistrationModule

ROOT = Path(__file__).parents[1]
FOLDERS = ("lab", "brains", "dio", "classical")
METHODS = [
    file
    for folder in FOLDERS
    for file in sorted(ROOT.glob(f"experiments/{folder}/*.yaml"))
    if "elastix" not in file.stem and "model" in yaml.safe_load(file.read_text())
]
ODD = {2: [(21, 9), (7, 6)], 3: [(13, 17, 19)]}


def built(file: Path) -> RegistrationModule:
    parser = ArgumentParser()
    parser.add_subclass_arguments(RegistrationModule, "model")
    torch.manual_seed(0)
    return parser.instantiate_classes(parser.parse_object({"model": yaml.safe_load(file.read_text())["model"]})).model


def cases() -> list:
    found = []
    for file in METHODS:
        text = file.read_text()
        dims = (2,) if "spatial_dims: 2" in text else (2, 3) if file.parent.name == "classical" else (3,)
        found += [
            pytest.param(file, size, id=f"{file.parent.name}-{file.stem}-{size}") for d in dims for size in ODD[d]
        ]
    return found


def pair(size):
    """Smooth images with labels."""
    noise = gaussian_smooth(torch.randn(2, 1, *size), 2.0)
    images = (noise - noise.amin()) / (noise.amax() - noise.amin())
    labels = (3 * images).short()
    return {"fixed": images[:1], "moving": images[1:], "fixed_label": labels[:1], "moving_label": labels[1:]}


@pytest.mark.filterwarnings("ignore:.*self.log.*")
@pytest.mark.parametrize(("file", "size"), cases())
def test_a_method_takes_an_odd_size(file, size):
    model, batch = built(file), pair(size)
    if isinstance(layer := getattr(model, "layer", None), OptimizerLayer):
        layer.iterations = [2] * len(layer.iterations)
    with torch.no_grad():
        u = model.register(batch)
    assert u.shape == (1, len(size), *size) and bool(u.isfinite().all())
    if model.objective is None:
        return
    loss = model.training_step(batch, 0)
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert bool(loss.isfinite()) and gradients and all(bool(g.isfinite().all()) for g in gradients)
