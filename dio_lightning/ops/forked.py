"""Where compiled loops may run: everywhere but in the processes that a loader has forked.

GNU's OpenMP, on which Numba's loops run in parallel, ends a process that was forked after it had been used.
"""

from torch import Tensor
from torch.utils.data import get_worker_info


def compiles(x: Tensor) -> bool:
    """Whether compiled loops compute it: on the CPU, and not in a loader's process."""
    return x.device.type == "cpu" and get_worker_info() is None
