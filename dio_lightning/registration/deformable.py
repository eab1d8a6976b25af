"""The deformable stage: any method of the library, on the moving image as the stages before have placed it."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from dio_lightning.features import Intensity
from dio_lightning.implicit import Adam, Stagnation
from dio_lightning.layers import OptimizerLayer, Run
from dio_lightning.losses import LNCC, Term
from dio_lightning.modules import DIO, IterativeModule, RegistrationModule
from dio_lightning.pair import Pair
from dio_lightning.registration.grids import seen_at
from dio_lightning.registration.scan import Scan
from dio_lightning.transformations import Diffeomorphism, Transformation
from dio_lightning.transforms import Field
from dio_lightning.updates import Descent, ImageDescent


def local_correlation(size: Sequence[int]) -> DIO:
    """Nothing trained: the images' local correlation, settings of experiments/classical/lncc.yaml.

    An image too short for the coarser levels has fewer.
    """
    levels = [level for level in (4, 2, 1) if level == 1 or min(size) >= 8 * level]
    layer = OptimizerLayer(
        [100, 80, 50][-len(levels) :],
        ImageDescent(LNCC(5), sigma=1.0, regularity=0.1),
        Adam(0.3),
        Diffeomorphism(),
        stop=Stagnation(1e-4),
        field_sigma=0.5,
    )
    return DIO(Intensity(levels), layer)


def changed(module: RegistrationModule, transformation: Transformation | None, terms: Sequence[Term]) -> None:
    """Give a method's layer another transformation, and more terms to descend on.

    Raises:
        ValueError: if the method has no such layer.
    """
    if transformation is None and not terms:
        return
    layer = module.layer if isinstance(module, IterativeModule) else None
    update = None if layer is None else layer.update
    if layer is None or (terms and not isinstance(update, Descent | ImageDescent)):
        what = "terms to descend on" if terms else "another transformation"
        raise ValueError(f"{module.title} takes no {what}: it has no layer that descends on an energy")
    if transformation is not None:
        layer.transformation = transformation
    if terms and isinstance(update, Descent | ImageDescent):
        layer.update = replace(update, terms=(*update.terms, *terms))


def deform(
    module: RegistrationModule,
    fixed: Scan,
    moving: Scan,
    matrix: NDArray[np.float64],
    extras: Pair,
    run: Run,
    device: torch.device,
) -> Field:
    """What is left to deform after a matrix (4, 4) from the fixed world to the moving one: a field of the fixed world.

    The moving image is resampled for the solver's eyes alone; results are interpolated from the image itself.
    """
    image = seen_at(moving.normalised, moving.grid, matrix[None], fixed.grid)
    affine = torch.from_numpy(fixed.grid.affine)[None]
    spacing = torch.from_numpy(fixed.grid.spacing).float()[None]
    pair = Pair(fixed=fixed.normalised, moving=image, affine=affine, spacing=spacing, **extras)  # pyright: ignore
    pair = Pair(**{key: value.to(device) for key, value in pair.items()})  # pyright: ignore
    with torch.no_grad():
        u = module.register(pair, run)
    return Field.of_voxels(u.cpu(), fixed.grid.affine)
