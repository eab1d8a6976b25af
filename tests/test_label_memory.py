"""Label maps stay integers: a Dice loss holds nothing that grows with the number of labels."""

from dataclasses import dataclass
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from data_modules import Learn2Reg
from data_modules.base import collate
from dio_lightning.fields import gaussian_smooth
from dio_lightning.losses import Dice

SIZES = {2: (60, 60), 3: (36, 36, 30)}


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.nbytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for value in found if isinstance(found, tuple | list) else [found]:
            if isinstance(value, Tensor):
                self.nbytes = max(self.nbytes, value.numel() * value.element_size())
        return found


@dataclass
class Bytes:
    saved: int
    largest: int
    field: int


def dice_bytes(fixed: Tensor, moving: Tensor) -> Bytes:
    """Of one evaluation with its gradient: all that is saved, the largest tensor, and the displacement."""
    size = fixed.shape[2:]
    u = gaussian_smooth(torch.randn(1, len(size), *size) * 20, 3.0).requires_grad_()
    saved = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal saved
        saved += tensor.nbytes
        return tensor

    with Largest() as watch, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = Dice()(fixed, moving, u)
        loss.backward()
    assert u.grad is not None and u.grad.abs().sum() > 0
    return Bytes(saved, watch.nbytes, u.nbytes)


def blocks(d: int, labels: int) -> Tensor:
    """Separate blocks of 4 voxels, more than 35 of them, in turn of every label: edges do not depend on the number."""
    label = torch.zeros(1, 1, *SIZES[d], dtype=torch.int16)
    for i, place in enumerate(product(*(range(1, n - 4, 6) for n in SIZES[d]))):
        label[(0, 0, *(slice(start, start + 4) for start in place))] = i % labels + 1
    assert label.max() == labels
    return label


@pytest.mark.parametrize("d", SIZES)
def test_35_labels_take_the_memory_of_5(d):
    few, many = (dice_bytes(blocks(d, k), blocks(d, k).roll(1, 2)) for k in (5, 35))
    assert many.saved == pytest.approx(few.saved, rel=0.1) and many.largest == pytest.approx(few.largest, rel=0.1)
    assert many.saved > 0


@pytest.mark.real
def test_35_labels_of_a_brain_take_less_than_one_hot_maps_in_bytes(data_root):
    data = Learn2Reg(root=str(data_root / "brains_2mm"), cache=False)
    batch = collate([data.dataset("val")[0]])
    fixed, moving = batch["fixed_label"], batch["moving_label"]
    assert fixed.dtype == moving.dtype == torch.int16 and len(fixed.unique()) > 30
    took = dice_bytes(fixed, moving)
    assert took.saved < 3 * took.field
    assert took.largest < 35 * fixed.numel()
