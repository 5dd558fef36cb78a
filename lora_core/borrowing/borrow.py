"""Lends the modules of a loaded model to the engine: overrides on instances, aliases over the same storage, all taken back.

A host that switches between the model as it is and the one that trains may put this on and take it off at any time.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import nn

from ..adapters import AdapterSet
from ..adapters.attach import branch, override_forward
from ..adapters.base import Choice
from .aliases import aliased, put_back
from .compiling import Compiler
from .frozen import (
    can_freeze,
    fetched_always,
    frozen,
    is_ordinary,
    keeps_its_input,
    resident_only,
    resident_or_fetched,
)
from .guards import blocks, checkpointed, cloned_input, fetched_norm, norms
from .layers import HostLayers, Place
from .recomputed import recomputed


@dataclasses.dataclass(frozen=True)
class Measures:
    """What is put onto the modules beside adapters."""

    checkpointing: bool = False  # blocks are made again in the backward pass
    guard: bool = True  # for models whose blocks update tensors in place
    freeze: bool = True  # weights are fetched for the backward pass, not kept
    place: Place | None = (
        None  # where the network computes: layers that lie ready there need no op of ours; None: taken for fetched
    )
    joint: bool = True  # a layer and its adapter are one node of autograd's graph, where the kind has such a form
    # What autograd saves is copied before it is written over; every pass then runs inside copied_before_writes().
    exact: bool = False
    compiled: bool = False  # blocks whose layers all lie ready run as graphs


class Borrowing:
    """One installation on `model`, whose `layers` carry `adapters` of the same names. `inject` and `eject` may be called any number of times, in turn."""

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, nn.Module],
        adapters: AdapterSet,
        host: HostLayers,
        measures: Measures,
    ):
        self._model, self._layers, self._adapters = model, layers, adapters
        self._host, self._measures = host, measures
        self._undo: contextlib.ExitStack | None = None
        self._resident: list[nn.Module] = []  # layers that were chosen to run on their own parameters
        self._compiled: list[nn.Module] = []
        self.compiler = Compiler()

    @property
    def measures(self) -> Measures:
        return self._measures

    def take(self, measures: Measures) -> None:
        """Other measures from now on, also where it is on already."""
        again = self.installed
        self.eject()
        self._measures = measures
        if again:
            self.inject()

    def host_uses_as_they_stand(self, module: nn.Module) -> bool:
        """Whether the host takes this module's own parameters for its forward, neither cast nor patched on the fly nor from elsewhere."""
        standing = self._host.as_they_stand
        return not self._host.fetches(module) or all(getattr(module, k, v) == v for k, v in standing.items())

    def with_measures(self, measures: Measures) -> Borrowing:
        """Another installation on the same modules, not injected."""
        return Borrowing(self._model, self._layers, self._adapters, self._host, measures)

    @property
    def installed(self) -> bool:
        return self._undo is not None

    def inject(self) -> None:
        """Puts everything on, after taking off what was there."""
        self.eject()
        undo = contextlib.ExitStack()
        try:
            with torch.inference_mode(False):
                self._install(undo)
        except BaseException:
            undo.close()
            raise
        self._undo = undo

    def eject(self) -> None:
        """Takes everything off again; does nothing where nothing is on."""
        if self._undo is not None:
            undo, self._undo = self._undo, None
            undo.close()

    def choose_again(self) -> None:
        """To be called before each pass: the host may have moved or patched weights since the layers were chosen, with or without taking us off."""
        place = self._measures.place
        if place is None or not self.installed:
            return
        resident = self._host.resident
        for layer in self._resident:
            if not resident(layer, place):
                self.inject()
                return

    @property
    def resident(self) -> Sequence[nn.Module]:
        """The layers that run on their own parameters at the moment."""
        return self._resident

    @property
    def compiled(self) -> Sequence[nn.Module]:
        """The blocks that run as graphs at the moment."""
        return self._compiled

    def _install(self, undo: contextlib.ExitStack) -> None:
        self._compiled = [block for block in blocks(self._model) if self._compiles(block)]
        inside = {id(module) for block in self._compiled for module in block.modules()}
        fetched = self._install_branches(undo, inside)
        self._install_guards(undo, inside)
        for module in self._model.modules():
            if id(module) not in fetched:
                undo.callback(put_back, aliased(module, self._host.alias))

    def _compiles(self, block: nn.Module) -> bool:
        """Whether nothing in this block has to be fetched: a graph is made of operators alone."""
        weighted = (module for module in block.modules() if list(module.parameters(recurse=False)))
        return self._measures.compiled and all(map(self._lies_ready, filter(self._host.fetches, weighted)))

    def _install_branches(self, undo: contextlib.ExitStack, compiled: Collection[int]) -> set[int]:
        """Adapters, over frozen layers where they are fetched. Returns the ids of the latter, whose weights autograd never sees.

        `compiled`: ids of modules in blocks that are compiled, where a layer and its adapter are operators of one graph anyhow.
        """
        adapters = {id(self._layers[name]): (adapter, fixed) for name, adapter, fixed in self._adapters.by_layer()}
        fetched, self._resident = set(), []
        for module in self._model.modules():
            adapter, fixed = adapters.get(id(module), (None, None))
            carries = adapter is not None or fixed is not None
            freezable = self._measures.freeze and can_freeze(module, self._host)
            resident = freezable and self._lies_ready(module)
            joint = adapter is not None and fixed is None and id(module) not in compiled
            choice = self._choice(module, freezable, resident) if joint else None
            if resident:
                self._resident.append(module)
            elif freezable:
                fetched.add(id(module))
            plain = resident and (carries or id(module) in compiled or not keeps_its_input(module))
            if freezable and not plain:
                undo.enter_context(override_forward(module, frozen(module, self._host, resident)))
            if fixed is not None:
                undo.enter_context(override_forward(module, branch(module.forward, fixed)))
            if adapter is not None:
                undo.enter_context(override_forward(module, branch(module.forward, adapter, choice)))
        return fetched

    def _lies_ready(self, layer: nn.Module) -> bool:
        place = self._measures.place
        return place is not None and self._host.resident(layer, place)

    def _choice(self, layer: nn.Module, freezable: bool, resident: bool) -> Choice | None:
        """How this layer is run as one node with its adapter; None: it is not."""
        if not self._measures.joint:
            return None
        if freezable:
            return resident_or_fetched(layer, self._host) if resident else fetched_always(layer, self._host)
        return resident_only(layer) if self._lies_ready(layer) and is_ordinary(layer) else None

    def _install_guards(self, undo: contextlib.ExitStack, compiled: Collection[int]) -> None:
        measures = self._measures
        for norm in norms(self._model):
            in_graph = id(norm) in compiled  # where all that has weights lies ready
            fetched = measures.freeze and self._host.fetches(norm) and hasattr(norm, "weight")
            if fetched and self._lies_ready(norm):
                self._resident.append(norm)
            elif fetched and not in_graph:
                undo.enter_context(override_forward(norm, fetched_norm(norm, self._host)))
            if measures.guard:
                undo.enter_context(override_forward(norm, cloned_input(norm)))
        for block in self._compiled:
            undo.enter_context(override_forward(block, self.compiler.forward(block, pure=not measures.guard)))
        for block in blocks(self._model) if measures.checkpointing else ():
            again = recomputed(block, self._parameters_in(block)) if measures.exact else None
            undo.enter_context(override_forward(block, again or checkpointed(block, pure=not measures.guard)))

    def _parameters_in(self, block: nn.Module) -> list[nn.Parameter]:
        inside = set(map(id, block.modules()))
        return [p for name, adapter in self._adapters if id(self._layers[name]) in inside for p in adapter.parameters()]
