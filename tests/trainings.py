"""The shipped methods that are trained, in their smallest form, and pairs to train them with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from dio_lightning.features import UNet
from dio_lightning.layers import OptimizerLayer
from dio_lightning.losses import SSD, Diffusion, Objective
from dio_lightning.modules import DIO, RIIR, DEQReg, GraDIRN, RegistrationModule, Unrolling, VoxelMorph
from dio_lightning.networks import VxmUNet
from dio_lightning.pair import Pair
from dio_lightning.updates import LearnedStep

SIZE = (12, 14)


def objective() -> Objective:
    """A loss of images and field."""
    return Objective(image=SSD(), regularity=Diffusion(), regularity_weight=0.1)


def unet(inputs: int) -> VxmUNet:
    """Two scales."""
    return VxmUNet(inputs, 2, None, (4, 4), (4, 4), (4,))


METHODS: dict[str, Callable[..., RegistrationModule]] = {
    "DIO": lambda **settings: DIO(
        UNet(1, 4, (2, 1), 2, (4, 8), residual=True), OptimizerLayer([2, 2]), objective(), **settings
    ),
    "DEQReg": lambda **settings: DEQReg(LearnedStep(unet(4)), objective(), max_steps=3, **settings),
    "Unrolling": lambda **settings: Unrolling(
        objective(), spatial_dims=2, repeats=(1, 1, 1), width=4, depth=2, **settings
    ),
    "GraDIRN": lambda **settings: GraDIRN(objective(), spatial_dims=2, repeats=(1, 1, 1), width=4, depth=2, **settings),
    "RIIR": lambda **settings: RIIR(unet(6), None, objective(), repeats=2, **settings),
    "VoxelMorph": lambda **settings: VoxelMorph(unet(2), objective(), **settings),
}


def build(name: str, optimizer: type[torch.optim.Optimizer] = torch.optim.Adam, lr: float = 1e-2) -> RegistrationModule:
    """A method whose weights depend on its name alone."""
    torch.manual_seed(0)
    return METHODS[name](optimizer=lambda weights: optimizer(weights, lr=lr))  # pyright: ignore[reportCallIssue]


def batch(seed: int, scale: float = 1.0) -> Pair:
    """A pair of random images (1, 1, *SIZE) in [0, scale]."""
    generator = torch.Generator().manual_seed(seed)
    fixed, moving = (scale * torch.rand(1, 1, *SIZE, generator=generator) for _ in range(2))
    return Pair(fixed=fixed, moving=moving)


def loader(batches: list[Pair]) -> DataLoader:
    """Batches in this order."""
    return DataLoader(batches, batch_size=None)  # pyright: ignore[reportArgumentType]


def trainer(folder: Path, *callbacks: Callback, **settings: Any) -> Trainer:
    """A quiet trainer of one epoch without validation."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    quiet |= {"enable_checkpointing": False, "max_epochs": 1, "limit_val_batches": 0, "inference_mode": False}
    return Trainer(accelerator="cpu", default_root_dir=folder, callbacks=[*callbacks], **(quiet | settings))
