"""Lends the modules of a loaded MODEL to the engine: overrides on instances, aliases over the same storage, all taken back.

Installed through the host's PatcherInjection on a clone, so the user's own MODEL samples as ever while the clone trains: the host ejects
and injects us whenever it switches between the two, and after every load or move of weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import torch
from torch import nn

from ....lora_core.adapters import AdapterSet
from ....lora_core.adapters.base import branch, override_forward
from .frozen import as_normal, can_freeze, frozen
from .guards import blocks, checkpointed, cloned_input, fetched_norm, is_pure, norms


class Borrowing:
    """One installation on `model` (the host's diffusion model). `inject` and `eject` may be called any number of times, in turn."""

    def __init__(
        self, model: nn.Module, layers: Mapping[str, nn.Module], adapters: AdapterSet, checkpointing: bool, guard: bool | None = None, freeze: bool = True
    ):
        self._model, self._layers, self._adapters, self._checkpointing = model, layers, adapters, checkpointing
        self._guard, self._freeze = (not is_pure(model)) if guard is None else guard, freeze
        self._undo: contextlib.ExitStack | None = None

    def inject(self) -> None:
        self.eject()
        undo = contextlib.ExitStack()
        try:
            with torch.inference_mode(False):
                self._install(undo)
        except BaseException:
            undo.close()
            raise
        self._undo = undo

    @property
    def installed(self) -> bool:
        return self._undo is not None

    def eject(self) -> None:
        if self._undo is not None:
            undo, self._undo = self._undo, None
            undo.close()

    def _install(self, undo: contextlib.ExitStack) -> None:
        adapters = {id(self._layers[name]): adapter for name, adapter in self._adapters}
        streamed = set()
        for module in self._model.modules():
            if self._freeze and can_freeze(module):
                streamed.add(id(module))
                undo.enter_context(override_forward(module, frozen(module)))
            if id(module) in adapters:
                undo.enter_context(override_forward(module, branch(module.forward, adapters[id(module)])))
        for norm in norms(self._model):
            if self._freeze and hasattr(norm, "weight_function") and hasattr(norm, "weight"):
                undo.enter_context(override_forward(norm, fetched_norm(norm)))
            if self._guard:
                undo.enter_context(override_forward(norm, cloned_input(norm)))
        if self._checkpointing:
            for block in blocks(self._model):
                undo.enter_context(override_forward(block, checkpointed(block, not self._guard)))
        for module in self._model.modules():
            if id(module) not in streamed:
                undo.callback(_restore, _alias(module))


def _alias(module: nn.Module) -> list:
    """Replaces the module's own inference parameters and buffers by normal aliases of the same storage. Returns what to put back."""
    changed = []
    for table in (module._parameters, module._buffers):
        for key, value in table.items():
            if value is None or not value.is_inference():
                continue
            alias = as_normal(value)
            table[key] = nn.Parameter(alias, requires_grad=False) if table is module._parameters else alias
            table[key].__dict__.update(value.__dict__)  # what the host notes on its parameters
            changed.append((table, key, value, table[key]))
    return changed


def _restore(changed: list) -> None:
    """Puts the original objects back, except where the host has moved the weight in the meantime."""
    for table, key, original, alias in changed:
        if table.get(key) is alias and alias.data_ptr() == original.data_ptr():
            table[key] = original
