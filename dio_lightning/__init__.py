"""Deformable image registration by implicit layers, on PyTorch Lightning.

The names below are imported when they are first used, so that importing the package takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dio_lightning.api import Experiment, build, load
    from dio_lightning.fields import compose, exponential, inverse, jacobian_determinant, resize, warp
    from dio_lightning.implicit import (
        Anderson,
        Broyden,
        ImplicitAdjoint,
        PhantomAdjoint,
        Picard,
        Residual,
        Solution,
        UnrolledAdjoint,
        fixed_point,
    )
    from dio_lightning.layers import OptimizerLayer
    from dio_lightning.losses import Objective
    from dio_lightning.modules import (
        DIO,
        RIIR,
        DEQReg,
        Elastix,
        GraDIRN,
        Precomputed,
        Refinement,
        RegistrationModule,
        Unrolling,
        VoxelMorph,
    )
    from dio_lightning.pair import Pair
    from dio_lightning.registration import Registration, register
    from dio_lightning.transforms import Chain, ImageGrid, read_transform, warp_image, warp_points, write_transform

__version__ = "0.1.0"

__all__ = [
    "DIO",
    "RIIR",
    "Anderson",
    "Broyden",
    "Chain",
    "DEQReg",
    "Elastix",
    "Experiment",
    "GraDIRN",
    "ImageGrid",
    "ImplicitAdjoint",
    "Objective",
    "OptimizerLayer",
    "Pair",
    "PhantomAdjoint",
    "Picard",
    "Precomputed",
    "Refinement",
    "Registration",
    "RegistrationModule",
    "Residual",
    "Solution",
    "UnrolledAdjoint",
    "Unrolling",
    "VoxelMorph",
    "build",
    "compose",
    "exponential",
    "fixed_point",
    "inverse",
    "jacobian_determinant",
    "load",
    "read_transform",
    "register",
    "resize",
    "warp",
    "warp_image",
    "warp_points",
    "write_transform",
]


PARTS = ("pair", "implicit", "fields", "transforms", "losses", "layers", "modules", "api", "registration")
"""Where names are looked up: lower floors first, which the later ones import anyway."""


def __getattr__(name: str) -> Any:  # noqa: ANN401
    for part in PARTS if name in __all__ else ():
        module = import_module(f"{__name__}.{part}")
        if hasattr(module, name):
            return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
