"""The deformable stage: any method of the library, on the moving image as the stages before have placed it."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace

import numpy as np
import torch

from dio_lightning.features import Intensity
from dio_lightning.implicit import Adam, Stagnation
from dio_lightning.layers import OptimizerLayer, Run
from dio_lightning.losses import LNCC, Term
from dio_lightning.modules import DIO, IterativeModule, RegistrationModule
from dio_lightning.pair import Pair
from dio_lightning.registration.grids import placed
from dio_lightning.registration.scan import Scan
from dio_lightning.transformations import Diffeomorphism, Transformation
from dio_lightning.transforms import Field, Transform
from dio_lightning.updates import Descent, ImageDescent

CUBIC = 1.5
"""Voxels are taken as they are if their longest side is at most this many times their shortest."""
MOST = 2**23
"""Voxels that thick slices are divided into at most, unless the image has more itself."""


def local_correlation(size: Sequence[int], spacing: Sequence[float] = ()) -> DIO:
    """Nothing trained: the images' local correlation, settings of experiments/classical/lncc.yaml.

    An image too short for the coarser levels has fewer. Thick slices are divided (`longest_side`).

    Args:
        size: voxels along each axis.
        spacing: their sides in mm; cubes by default.
    """
    longest = longest_side(size, spacing) if len(spacing) else None
    if longest is not None:
        size = [round(n * max(1.0, side / longest)) for n, side in zip(size, spacing, strict=True)]
    levels = [level for level in (4, 2, 1) if level == 1 or min(size) >= 8 * level]
    layer = OptimizerLayer(
        [100, 80, 50][-len(levels) :],
        ImageDescent(LNCC(5), sigma=1.0, regularity=0.1),
        Adam(0.3),
        Diffeomorphism(),
        stop=Stagnation(1e-4),
        field_sigma=0.5,
    )
    return DIO(Intensity(levels), layer, max_voxel=longest)


def longest_side(size: Sequence[int], spacing: Sequence[float]) -> float | None:
    """The longest side in mm that voxels to register on may have; None if the image's own are nearly cubes.

    On thick slices a window of five voxels is a slab, and a coarser level loses the slices first. Cubes have the
    shortest side, or where that makes too many voxels the shortest that does not.
    """
    divisible = np.array(size) > 1
    n, side = np.array(size)[divisible], np.asarray(spacing, dtype=float)[divisible]
    if len(n) == 0 or side.max() <= CUBIC * side.min():
        return None
    counts = {edge: np.prod(n * np.maximum(side / edge, 1.0)) for edge in np.geomspace(side.min(), side.max(), 33)}
    return next((float(edge) for edge, count in counts.items() if count <= max(MOST, np.prod(n))), None)


def changed(
    module: RegistrationModule, transformation: Transformation | None, terms: Sequence[Term], masked: bool = False
) -> RegistrationModule:
    """A method whose layer has another transformation and more terms to descend on, or leaves masked voxels out.

    The module itself stays as it is. A refinement leaves the same voxels out.

    Raises:
        ValueError: if the method has no such layer, or a term that cannot leave voxels out.
    """
    if transformation is None and not terms and not masked:
        return module
    module = deepcopy(module)
    layer = module.layer if isinstance(module, IterativeModule) else None
    update = None if layer is None else layer.update
    if layer is None or ((terms or masked) and not isinstance(update, Descent | ImageDescent)):
        what = "terms to descend on" if terms else "masks" if masked else "another transformation"
        raise ValueError(f"{module.title} takes no {what}: it has no layer that descends on an energy")
    if transformation is not None:
        layer.transformation = transformation
    if terms and isinstance(update, Descent | ImageDescent):
        layer.update = replace(update, terms=(*update.terms, *terms))
    for each in (layer, module.refine.layer if module.refine is not None else None) if masked else ():
        if each is not None and isinstance(each.update, Descent | ImageDescent):
            each.update = replace(each.update, masked=True)
            (each.update.descent if isinstance(each.update, ImageDescent) else each.update).check_masks()
    return module


def deform(
    module: RegistrationModule,
    fixed: Scan,
    moving: Scan,
    before: Transform,
    extras: Pair,
    run: Run,
    device: torch.device,
) -> Field:
    """What is left to deform after a transform from the fixed world to the moving one: a field of the fixed world.

    The moving image is resampled for the solver's eyes alone; results are interpolated from the image itself.
    """
    image = placed(moving.normalised, moving.grid, before, fixed.grid)
    affine = torch.from_numpy(fixed.grid.affine)[None]
    spacing = torch.from_numpy(fixed.grid.spacing).float()[None]
    pair = Pair(fixed=fixed.normalised, moving=image, affine=affine, spacing=spacing, **extras)  # pyright: ignore
    pair = Pair(**{key: value.to(device) for key, value in pair.items()})  # pyright: ignore
    with torch.no_grad():
        u = module.register(pair, run)
    return Field.of_voxels(u.cpu(), fixed.grid.affine)
