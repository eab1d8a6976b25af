"""The published weights, on people that no one trained on."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data_modules import Learn2Reg
from dio_lightning.features import UNet
from dio_lightning.layers import OptimizerLayer
from dio_lightning.metrics import dice_per_label, folds, warp_label
from dio_lightning.modules import DIO
from dio_lightning.transformations import Diffeomorphism, FreeForm

WEIGHTS = Path(__file__).parents[1] / "experiments/dio/weights/brains.safetensors"


@pytest.mark.real
def test_the_weights_register_unseen_brains_with_either_transformation(data_root):
    data = Learn2Reg(root=str(data_root / "brains_2mm"), cache=False)
    data.setup("test")
    pair = next(iter(data.test_dataloader()))
    identity = dice_per_label(pair["fixed_label"], pair["moving_label"]).nanmean()
    found = {}
    for transformation in (FreeForm(), Diffeomorphism()):
        layer = OptimizerLayer([60, 40, 20], transformation=transformation)
        module = DIO(UNet(residual=True, precision="bfloat16"), layer)
        module.load_state_dict(load_file(WEIGHTS))
        with torch.no_grad():
            u = module.register(pair)
        warped = warp_label(pair["moving_label"], u)
        found[type(transformation)] = dice_per_label(pair["fixed_label"], warped, pair["moving_label"]).nanmean()
    assert folds(u) < 0.01
    assert found[Diffeomorphism] > identity + 0.1
    assert abs(found[Diffeomorphism] - found[FreeForm]) < 0.02
