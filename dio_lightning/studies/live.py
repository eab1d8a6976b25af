"""How many bytes of tensors are alive: counted, not measured, so the same on every machine and in every run."""

import weakref
from collections.abc import Iterable
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MIB = 2**20


class _Tally:
    """Bytes of the storages that are held now, and the most that were at once; each counts once."""

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        self.now = self.peak = 0
        self.known = {tensor.untyped_storage()._cdata for tensor in known}

    def add(self, size: int) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)


class SavedTensors(_Tally):
    """While it is entered: what autograd keeps for backward passes, freed graphs subtracted.

    `peak` and `now` are bytes; `known` tensors (weights, images) are not counted. What a checkpoint recomputes is kept
    by the checkpoint and not seen here; `LiveTensors` sees it.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__(known)
        self._holders: dict[int, int] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda held: held.tensor)

    def __enter__(self) -> Self:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)

    def _pack(self, tensor: Tensor) -> "_Held":
        return _Held(self, tensor.detach())

    def hold(self, tensor: Tensor) -> None:
        """One more graph node keeps the tensor."""
        key = tensor.untyped_storage()._cdata
        if key not in self.known:
            self._holders[key] = self._holders.get(key, 0) + 1
            if self._holders[key] == 1:
                self.add(tensor.untyped_storage().nbytes())

    def drop(self, tensor: Tensor) -> None:
        """One graph node less."""
        key = tensor.untyped_storage()._cdata
        if key not in self.known:
            self._holders[key] -= 1
            if self._holders[key] == 0:
                del self._holders[key]
                self.add(-tensor.untyped_storage().nbytes())


class _Held:
    """A saved tensor; it tells its tally when the graph lets it go."""

    def __init__(self, tally: SavedTensors, tensor: Tensor) -> None:
        self.tally, self.tensor = tally, tensor
        tally.hold(tensor)

    def __del__(self) -> None:
        self.tally.drop(self.tensor)


class LiveTensors(_Tally, TorchDispatchMode):
    """While it is entered: every tensor that an operator returns, in forward and backward, until it is freed.

    `peak` and `now` are bytes, as CUDA's allocator would count them but without an operator's own workspace.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        TorchDispatchMode.__init__(self)
        _Tally.__init__(self, known)
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """The operator's own result, counted."""
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return found

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known or key in self._seen:
            return
        self._seen.add(key)
        weakref.finalize(storage, self._forget, key, size)  # storages keep their Python object as long as they live
        self.add(size)

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.add(-size)
