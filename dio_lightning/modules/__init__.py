"""LightningModules, one a method."""

from dio_lightning.modules.base import RegistrationModule
from dio_lightning.modules.deqreg import DEQReg
from dio_lightning.modules.dio import DIO
from dio_lightning.modules.elastix import Elastix
from dio_lightning.modules.gradirn import GraDIRN
from dio_lightning.modules.iterative import IterativeModule
from dio_lightning.modules.precomputed import Precomputed
from dio_lightning.modules.refinement import Refinement
from dio_lightning.modules.riir import RIIR
from dio_lightning.modules.unrolling import Unrolling
from dio_lightning.modules.voxelmorph import VoxelMorph

__all__ = [
    "DIO",
    "RIIR",
    "DEQReg",
    "Elastix",
    "GraDIRN",
    "IterativeModule",
    "Precomputed",
    "Refinement",
    "RegistrationModule",
    "Unrolling",
    "VoxelMorph",
]
