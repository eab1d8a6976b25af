"""What a step costs: wall time and memory."""

import sys
import time
from pathlib import Path

import torch


def peak_memory(device: torch.device) -> float:
    """MiB: on CUDA the most memory allocated since the last reset, else the peak resident memory of the process.

    On Linux it is read from /proc, because getrusage starts with the peak of the parent process. NaN on Windows without
    CUDA, where the operating system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    if sys.platform == "win32":
        return float("nan")
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def clock(device: torch.device) -> float:
    """Wall clock in seconds, after all work queued on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
