"""What the processes of one run tell one another."""

from typing import TypeVar

from torch import distributed
from torch.utils.data import DataLoader, DistributedSampler

Value = TypeVar("Value")


def of_all(value: Value) -> list[Value]:
    """What every process has for a picklable value, by rank; all of them must ask, and all are answered."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [value]
    values: list[Value | None] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values  # pyright: ignore[reportReturnType]


def reads_again(loader: object, batch: int) -> bool:
    """Whether this process reads its batch of that number a second time, so that all processes have as many.

    Batches are dealt in turn; those after the last one are repetitions.
    """
    sampler = loader.sampler if isinstance(loader, DataLoader) else None
    if not isinstance(loader, DataLoader) or not isinstance(sampler, DistributedSampler):
        return False
    batches = -(-len(sampler.dataset) // (loader.batch_size or 1))  # pyright: ignore[reportArgumentType]
    return sampler.rank + sampler.num_replicas * batch >= batches
