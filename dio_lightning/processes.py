"""What the processes of one run tell one another."""

from typing import TypeVar

from torch import distributed

Value = TypeVar("Value")


def of_all(value: Value) -> list[Value]:
    """What every process has for a picklable value, by rank; all of them must ask, and all are answered."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [value]
    values: list[Value | None] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values  # pyright: ignore[reportReturnType]
