"""A fixed sequence of operations, recorded once and replayed: on a GPU the host then launches all of them at once.

No GPU has run it yet: tests replay on the CPU by a stand-in.

A replay computes what the recorded operations compute from what lies in the same memory by then. Whatever Python
decided, counted or measured while recording is part of the record, so a sequence that is recorded must be the same at
every call; what changes from step to step must be a tensor that is written in place.
"""

import gc
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Call = Callable[[], object]
log = logging.getLogger(__name__)


class Recorder(ABC):
    """Records what a call does on a device."""

    @abstractmethod
    def record(self, call: Call) -> Call | None:
        """What repeats the operations of `call` on the same memory; nothing is computed yet, and tensors are unchanged.

        None, with the reason in the debug log, where they cannot be recorded. A record of a thread is not to be
        replayed after its next one was made: they share memory.
        """


def recorder_of(z: Tensor) -> Recorder | None:
    """What records on the device of z now; None, with the reason in the debug log, where nothing does."""
    reason = None
    if z.device.type != "cuda":
        reason = f"tensors of {z.device.type} are computed as they are asked for"
    elif torch.is_grad_enabled():
        reason = "autograd records the steps"
    elif torch.are_deterministic_algorithms_enabled():
        reason = "deterministic algorithms are asked for"
    elif torch.cuda.is_current_stream_capturing():
        reason = "another graph is being recorded"
    if reason is None:
        return CudaRecorder(z.device)
    log.debug("steps are not recorded: %s", reason)
    return None


class CudaRecorder(Recorder):
    """CUDA graphs, all of a thread and a device in one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def record(self, call: Call) -> Call | None:
        """A graph; everything must have been called before, so that kernels are loaded and choices made."""
        try:
            stream, pool = _kept(self.device)
            graph = _capture(call, stream, pool)
        except RuntimeError as error:
            log.debug("steps are not recorded: %s", error)
            _released(self.device)
            return None
        return graph.replay


def _capture(call: Call, stream: torch.cuda.Stream, pool: Any = None) -> torch.cuda.CUDAGraph:  # noqa: ANN401
    """`torch.cuda.graph` without its emptying of caches, and while nothing is collected, which may touch the device.

    Other threads, such as those of a loader, may go on; rounded weights that autocast keeps are no part of a graph.
    """
    graph, collects, caches = torch.cuda.CUDAGraph(), gc.isenabled(), torch.is_autocast_cache_enabled()
    stream.wait_stream(torch.cuda.current_stream(stream.device))
    gc.disable()
    torch.set_autocast_cache_enabled(False)
    try:
        with torch.cuda.stream(stream):
            graph.capture_begin(*(() if pool is None else (pool,)), capture_error_mode="thread_local")
            try:
                call()
            finally:
                graph.capture_end()
    finally:
        torch.set_autocast_cache_enabled(caches)
        if collects:
            gc.enable()
    torch.cuda.current_stream(stream.device).wait_stream(stream)
    return graph


def _released(device: torch.device) -> None:
    """Random numbers of the device are its own again: a capture that broke off goes on to claim its generator.

    pytorch/pytorch#171263: the next number would raise an error.
    """
    generator = torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
    generator.graphsafe_set_state(generator.clone_state())


class _Kept(threading.local):
    """Of a thread, by device: the stream on which it records, and a graph that keeps the pool when others have gone."""

    def __init__(self) -> None:
        self.by_device: dict[torch.device, tuple[torch.cuda.Stream, torch.cuda.CUDAGraph]] = {}


_KEPT = _Kept()


def _kept(device: torch.device) -> tuple[torch.cuda.Stream, Any]:
    if device not in _KEPT.by_device:
        stream, tiny = torch.cuda.Stream(device), torch.zeros(1, device=device)
        _KEPT.by_device[device] = stream, _capture(lambda: tiny + 1, stream)
    stream, graph = _KEPT.by_device[device]
    return stream, graph.pool()


def repeats(part: object) -> bool:
    """Whether the class of a part says itself, in `repeats`, that it does the same operations at every call.

    What a class inherits says nothing about what it does otherwise.
    """
    return "repeats" in vars(type(part)) and bool(getattr(part, "repeats", False))


def leaves(tree: object) -> list[Any]:
    """What nested tuples and lists hold, in order."""
    return [leaf for part in tree for leaf in leaves(part)] if isinstance(tree, tuple | list) else [tree]


def owned(tree: Any) -> Any:  # noqa: ANN401
    """The same tuples, and lists as tuples, with a copy of every tensor in memory of its own."""
    if isinstance(tree, tuple | list):
        return tuple(owned(part) for part in tree)
    return tree.clone(memory_format=torch.preserve_format) if isinstance(tree, Tensor) else tree


def fits(new: object, old: object) -> bool:
    """Whether tensors of nested tuples can be written where those of others lie, and nothing else has a value."""
    pairs = leaves(new), leaves(old)
    return len(pairs[0]) == len(pairs[1]) and all(_alike(a, b) for a, b in zip(*pairs, strict=True))


def _alike(a: object, b: object) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device
    return a is None and b is None


def write(new: object, old: object) -> None:
    """The tensors of nested tuples, which fit, written where those of others lie."""
    pairs = [(a, b) for a, b in zip(leaves(new), leaves(old), strict=True) if isinstance(a, Tensor) and a is not b]
    places = {storage(b) for b in leaves(old) if isinstance(b, Tensor)}
    # one that lies in memory which is about to be written is read before
    ready = [(a.clone() if storage(a) in places else a, b) for a, b in pairs]
    for a, b in ready:
        b.copy_(a)


def storage(x: Tensor) -> int:
    """Where the memory of a tensor begins."""
    return x.untyped_storage().data_ptr()
