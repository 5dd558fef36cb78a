"""Inference tensors as normal ones over the same storage, and attributes replaced for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn


def as_normal(x: torch.Tensor) -> torch.Tensor:
    """The same storage as a tensor autograd accepts: an inference tensor stays one under view and detach, but not under `set_`."""
    if not x.is_inference():
        return x
    if not torch.is_inference_mode_enabled():
        return _over(x)
    with torch.inference_mode(False):
        return _over(x)


def _over(x: torch.Tensor) -> torch.Tensor:
    empty = torch.empty(0, dtype=x.dtype, device=x.device)
    return empty.set_(x.untyped_storage(), x.storage_offset(), x.shape, x.stride())


class _Change(NamedTuple):
    """An entry of a module's parameters or buffers, before and after."""

    table: dict[str, Any]
    key: str
    original: torch.Tensor
    alias: torch.Tensor


def aliased(module: nn.Module, alias: Callable[[torch.Tensor], torch.Tensor]) -> list[_Change]:
    """Replaces the module's own inference parameters and buffers by what `alias` makes of them. Returns what to put back."""
    changes = []
    tables: list[tuple[dict[str, Any], bool]] = [(module._parameters, True), (module._buffers, False)]
    for table, trainable in tables:
        for key, value in table.items():
            if value is None or not value.is_inference():
                continue
            normal = alias(value)
            if trainable:
                normal = nn.Parameter(normal, requires_grad=False)
            normal.__dict__.update(value.__dict__)  # what the host notes on its parameters
            table[key] = normal
            changes.append(_Change(table, key, value, normal))
    return changes


def put_back(changes: list[_Change]) -> None:
    """Puts the original objects back, except where the host has moved the weight in the meantime."""
    for table, key, original, alias in changes:
        if table.get(key) is alias and alias.data_ptr() == original.data_ptr():
            table[key] = original


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Inside, the attribute has another value."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
