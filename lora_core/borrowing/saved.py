"""What autograd saved for the backward pass, copied before anything writes over it: exact whatever a block does in place."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# After torch.autograd.graph.allow_mutation_on_saved_tensors, which cannot stay on for a whole run: it remembers every
# tensor ever saved, refuses writes to inference tensors, and compares views by where they begin.


class _Kept:
    """One saved tensor: itself, or a copy made before its memory was written to."""

    def __init__(self, tensor: torch.Tensor, storage: _Storage):
        self.tensor, self._storage = tensor, storage  # holding the storage's record keeps it in the table of storages
        storage.kept.add(self)


class _Storage:
    """The saved tensors that still share one piece of memory."""

    def __init__(self) -> None:
        self.kept: weakref.WeakSet[_Kept] = weakref.WeakSet()

    def copy(self) -> None:
        for kept in list(self.kept):
            kept.tensor = kept.tensor.clone()
        self.kept.clear()


class _CopyBeforeWrite(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self._storages: weakref.WeakValueDictionary[int, _Storage] = weakref.WeakValueDictionary()

    def pack(self, tensor: torch.Tensor) -> _Kept:
        place = _place(tensor)
        storage = self._storages.get(place) if place else None
        if storage is None:
            storage = _Storage()
            if place:
                self._storages[place] = storage
        return _Kept(tensor, storage)

    @staticmethod
    def unpack(kept: _Kept) -> torch.Tensor:
        return kept.tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for n, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._before_write(args[n] if n < len(args) else kwargs.get(argument.name))
        with torch._C.DisableTorchFunctionSubclass():  # a result is of its own class outside, as without us
            return func(*args, **kwargs)

    def _before_write(self, value: Any) -> None:
        for tensor in value if isinstance(value, list | tuple) else [value]:
            storage = self._storages.get(_place(tensor)) if torch.is_tensor(tensor) else None
            if storage is not None:
                storage.copy()


def _place(tensor: torch.Tensor) -> int:
    """Where a tensor's memory begins; 0 where it has none of its own (a quantised one that wraps others)."""
    try:
        return tensor.untyped_storage().data_ptr()
    except RuntimeError:
        return 0


@contextlib.contextmanager
def copied_before_writes() -> Iterator[None]:
    """Inside, tensors saved for a backward pass may be written to: forward and backward both have to run inside. May be nested."""
    mode = _CopyBeforeWrite()
    with torch.autograd.graph.saved_tensors_hooks(mode.pack, mode.unpack), mode:
        yield
