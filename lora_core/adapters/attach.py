"""How an adapter is hung onto a module and taken off again: attributes are shadowed on the instance, which then has again what it had."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from .base import Adapter, Choice, Forward
from .set import AdapterSet


@contextlib.contextmanager
def attach(
    layers: Mapping[str, nn.Module],
    adapters: AdapterSet,
    choose: Callable[[nn.Module], Choice | None] = lambda layer: None,
) -> Iterator[None]:
    """Adds each adapter's branch to the layer of the same name by overriding the instance's forward; takes it off again on exit.

    The module tree and its state dict stay as they are. `choose`: how a layer may be run as one node with its adapter.
    """
    with contextlib.ExitStack() as undo:
        for name, adapter, fixed in adapters.by_layer():
            layer = layers[name]
            if fixed is not None:
                undo.enter_context(override_forward(layer, branch(layer.forward, fixed)))
            if adapter is not None:
                choice = choose(layer) if fixed is None else None
                undo.enter_context(override_forward(layer, branch(layer.forward, adapter, choice)))
        yield


def branch(base: Forward, adapter: Adapter, choice: Choice | None = None) -> Forward:
    """Forward of `base` with `adapter` around it; in training as one node of autograd's graph, where the adapter and `choice` have a way."""
    joint = adapter.joint(choice) if choice is not None else None

    def forward(x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        if not adapter.active:
            return base(x, *args, **kwargs)
        if (
            joint is not None and not args and not kwargs
        ):  # first: whether there is a way, as no operator is asked where blocks are compiled
            recording = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
            out = joint(x) if recording else None
            if out is not None:
                return out
        return adapter.around(lambda x: base(x, *args, **kwargs), x)

    return forward


def override_forward(module: nn.Module, forward: Forward) -> AbstractContextManager[None]:
    """Replaces `module.forward` on the instance and puts back exactly what was there."""
    return override(module, "forward", forward)


@contextlib.contextmanager
def override(instance: Any, name: str, value: Any) -> Iterator[None]:
    """Shadows an attribute on the instance alone; on exit the instance has again just what it had of its own."""
    attributes = instance.__dict__
    had, before = name in attributes, attributes.get(name)
    attributes[name] = value
    try:
        yield
    finally:
        if had:
            attributes[name] = before
        else:
            attributes.pop(name, None)
