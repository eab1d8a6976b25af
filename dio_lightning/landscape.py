"""What DIO's solver descends on, along translations off the truth."""

from collections.abc import Sequence
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from dio_lightning.fields import regrid, spanning
from dio_lightning.layers.optimizer import pyramid
from dio_lightning.modules import DIO, RegistrationModule
from dio_lightning.pair import Pair
from dio_lightning.transformations import FreeForm
from dio_lightning.updates.descent import BoundDescent


def energies(module: RegistrationModule, pair: Pair, offsets: Sequence[float]) -> dict[int, Float[Tensor, "n b"]]:
    """The energy of every open level, by its factor: a mean over voxels, where u is off the truth along the first axis.

    Args:
        module: whose features and terms are meant; solver and transformation have no part in an energy.
        pair: a batch; without a true `displacement` offsets are those from the identity.
        offsets: n of them, in voxels of the working grid.

    Raises:
        ValueError: if the module is none that descends on an energy.
    """
    if not isinstance(module, DIO):
        raise ValueError(f"{module.title} descends on no energy, expected a DIO or image-space registration")
    work, of_level = module.work(pair), dict[int, Tensor]()
    size = work["fixed"].shape[2:]
    truth = work.get("displacement", without(work))
    with torch.no_grad():
        for level in pyramid(*module.pyramids(work, pair), size, work):
            update, values = module.layer.update.on(level, FreeForm()), []
            start = regrid(truth, spanning(size, size), level.place)
            for offset in offsets:
                u = start.clone()
                u[:, 0] += offset / level.place.step[0]
                update(u)
                assert isinstance(update, BoundDescent) and update.energy is not None
                values.append(update.energy / prod(level.size))
            of_level[module.features.levels[level.index]] = torch.stack(values)
    return of_level


def without(pair: Pair) -> Float[Tensor, "b d *s"]:
    """The displacement of no registration."""
    image = pair["fixed"]
    return image.new_zeros(len(image), image.ndim - 2, *image.shape[2:])
