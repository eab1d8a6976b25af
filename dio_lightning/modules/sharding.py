"""Weights in parts: each process of a mesh keeps its share of every layer's (FSDP2)."""

from collections.abc import Sequence

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm


class SplitWeights(LightningModule):
    """A module whose weights may lie in parts on several processes: Lightning's ModelParallelStrategy."""

    splits = True
    """Whether its gradients are right then: each step is differentiated once, by `backward`."""

    def configure_model(self) -> None:
        """Split the weights where the strategy asks for it.

        Raises:
            ValueError: for a strategy, a setting, a method or a weight with which it cannot be.
        """
        if self._trainer is not None:
            expect_strategy(self.trainer.strategy)
        if self.device_mesh is None:
            return
        if not self.splits:
            raise ValueError(
                f"{type(self).__name__} differentiates its states one by one, of which split weights keep no right "
                "gradient: use the strategy ddp"
            )
        shard(self, self.device_mesh["data_parallel"])


def expect_strategy(strategy: Strategy) -> None:
    """Refuse to split weights where their gradients, or the files that they are saved in, would not be right.

    Raises:
        ValueError: FSDP of the first kind, or checkpoints in parts.
    """
    if isinstance(strategy, FSDPStrategy):
        raise ValueError("strategy fsdp: weights are split by experiments/trainer/fsdp.yaml alone")
    if isinstance(strategy, ModelParallelStrategy) and strategy._save_distributed_checkpoint:
        raise ValueError("ModelParallelStrategy: checkpoints are whole here: set save_distributed_checkpoint to false")


def shard(module: nn.Module, mesh: DeviceMesh) -> None:
    """Split the weights of every part over the processes of a mesh; a part fetches them whenever it computes.

    Args:
        module: whose weights belong to parts that are called; parts that are split stay as they are.
        mesh: of one dimension, the data-parallel one.

    Raises:
        ValueError: a weight belongs to the module itself, which is not called in a training.
    """
    if own := next((name for name, _ in module.named_parameters(recurse=False)), None):
        raise ValueError(
            f"the weights of {type(module).__name__} cannot be split over processes: {own} belongs to no layer; use "
            "the strategy ddp"
        )
    # from the inside out: a part has what its own parts leave
    for part in reversed([*module.modules()]):
        weights = [*part.parameters(recurse=False)]
        if weights and not isinstance(part, FSDPModule):
            with torch.no_grad():
                for weight in weights:
                    # channels last in memory, as convolutions like them, they cannot be split
                    weight.data = weight.data.contiguous()
            # a single number cannot be split either
            numbers = {weight for weight in weights if weight.ndim == 0}
            for number in numbers:
                number.register_post_accumulate_grad_hook(_averaged)
            if len(numbers) < len(weights):
                fully_shard(part, mesh=mesh, ignored_params=numbers)


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The norm of all gradients together, of which some may lie on several processes in parts."""
    kinds = [[g for g in gradients if isinstance(g, DTensor) == split] for split in (False, True)]
    norms = [get_total_norm(kind) for kind in kinds if kind]
    return torch.stack([n.full_tensor() if isinstance(n, DTensor) else n for n in norms]).norm()


def _averaged(weight: Tensor) -> None:
    """Average the gradient of a weight that every process has."""
    assert weight.grad is not None
    distributed.all_reduce(weight.grad)
    weight.grad /= distributed.get_world_size()
