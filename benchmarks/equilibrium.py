"""Memory of one training step of DEQReg, beside that of VoxelMorph with the same network."""

from timing import Row, Size

from dio_lightning.footprint import cost, images
from dio_lightning.implicit import PhantomAdjoint
from dio_lightning.losses import LNCC, Diffusion, Objective
from dio_lightning.modules import DEQReg, RegistrationModule, VoxelMorph
from dio_lightning.networks import VxmUNet
from dio_lightning.updates import LearnedStep

STEPS = "DEQReg, tensors alive in a training step"
RATIO = "DEQReg to VoxelMorph, tensors alive"


def rows(size: Size, steps: Size) -> list[Row]:
    """Peak of the tensors alive for each number of steps, over that of the fewest; then DEQReg over VoxelMorph."""
    found = [_peak(_deqreg(size, n, PhantomAdjoint()), size) for n in steps]
    single = _peak(VoxelMorph(VxmUNet(2, len(size)), _objective()), size)
    three = _peak(_deqreg(size, steps[0], PhantomAdjoint(3, checkpointed=True)), size)
    return [
        *(Row(f"{STEPS}: {n} steps", None, mb / found[0], mb) for n, mb in zip(steps, found, strict=True)),
        Row(f"{RATIO}: T = 1", None, found[-1] / single, found[-1]),
        Row(f"{RATIO}: T = 3, checkpointed", None, three / single, three),
    ]


def _peak(module: RegistrationModule, size: Size) -> float:
    """MiB."""
    return cost(module, images(1, size, module.device)).tensors_mb


def _deqreg(size: Size, steps: int, adjoint: PhantomAdjoint) -> DEQReg:
    step = LearnedStep(VxmUNet(len(size) + 2, len(size)))
    return DEQReg(step, _objective(), adjoint=adjoint, max_steps=steps, states=3)


def _objective() -> Objective:
    return Objective(LNCC(5), regularity=Diffusion(), regularity_weight=0.25)
