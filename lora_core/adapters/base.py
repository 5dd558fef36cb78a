"""The adapter contract, the set of adapters of one run, and how an adapter is hung onto a module and taken off again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from ..rng import derive

Forward = Callable[..., torch.Tensor]


class Adapter(nn.Module):
    """A delta for one Linear or Conv layer, added to the layer's output as a branch. Parameters are float32."""

    dropout: float = 0.0
    active: bool = True
    _dropout_seed: int = 0

    def add_to(self, out: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """`out` plus this adapter's delta for input `x`, in out's dtype; both as the layer's forward sees and returns them."""
        raise NotImplementedError(f"{type(self).__name__} must say how it adds to a layer")

    def drop(self, x: torch.Tensor) -> torch.Tensor:
        """Dropout whose mask follows from the pass's seed, so a recomputed block draws the same mask."""
        if not (self.dropout and self.training and torch.is_grad_enabled()):
            return x
        rng = torch.Generator(x.device).manual_seed(self._dropout_seed)
        keep = torch.rand(x.shape, generator=rng, device=x.device) >= self.dropout
        return x * keep / (1 - self.dropout)


class AdapterSet:
    """All adapters of a run by their name in the file format, in sorted order on every backend."""

    def __init__(self, members: Mapping[str, Adapter]):
        self._members = dict(sorted(members.items()))

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[tuple[str, Adapter]]:
        return iter(self._members.items())

    def __getitem__(self, name: str) -> Adapter:
        return self._members[name]

    def parameters(self) -> list[nn.Parameter]:
        return [p for _, a in self for p in a.parameters()]

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        return [(f"{name}.{key}", p) for name, a in self for key, p in a.named_parameters()]

    def count(self) -> int:
        """Number of trained values."""
        return sum(p.numel() for p in self.parameters())

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Detached float32 copies on the CPU, keyed `<name>.<parameter>`."""
        return {key: p.detach().to("cpu", torch.float32, copy=True) for key, p in self.named_parameters()}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Copies every tensor in; the keys must match exactly."""
        own = dict(self.named_parameters())
        missing, unknown = own.keys() - state.keys(), state.keys() - own.keys()
        if missing or unknown:
            raise KeyError(f"adapter state does not fit: {len(missing)} missing, {len(unknown)} unknown, e.g. {next(iter(missing | unknown))}")
        with torch.no_grad():
            for key, p in own.items():
                p.copy_(state[key])

    @contextlib.contextmanager
    def switched_off(self) -> Iterator[None]:
        """The base model as if nothing were attached."""
        for _, adapter in self:
            adapter.active = False
        try:
            yield
        finally:
            for _, adapter in self:
                adapter.active = True

    def begin_pass(self, seed: int, step: int, micro: int) -> None:
        """Gives every adapter with dropout the seed of this pass."""
        for name, adapter in self:
            if adapter.dropout:
                adapter._dropout_seed = derive(seed, step, micro, "dropout", name)


@contextlib.contextmanager
def attach(layers: Mapping[str, nn.Module], adapters: AdapterSet, base_forward: Callable[[nn.Module], Forward] | None = None) -> Iterator[None]:
    """Adds each adapter's branch to the layer of the same name by overriding the instance's forward; takes it off again on exit.

    The module tree and its state dict stay as they are. `base_forward` may wrap what computes the frozen part.
    """
    with contextlib.ExitStack() as undo:
        for name, adapter in adapters:
            layer = layers[name]
            undo.enter_context(override_forward(layer, branch(base_forward(layer) if base_forward else layer.forward, adapter)))
        yield


def branch(base: Forward, adapter: Adapter) -> Forward:
    """Forward that adds `adapter`'s delta to `base`'s output."""

    def forward(x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        out = base(x, *args, **kwargs)
        return adapter.add_to(out, x) if adapter.active else out

    return forward


def override_forward(module: nn.Module, forward: Forward) -> AbstractContextManager[None]:
    """Replaces `module.forward` on the instance and puts back exactly what was there."""
    return override(module, "forward", forward)


@contextlib.contextmanager
def override(instance: Any, name: str, value: Any) -> Iterator[None]:
    """Shadows an attribute on the instance alone; on exit the instance has again just what it had of its own."""
    own = instance.__dict__
    had, before = name in own, own.get(name)
    own[name] = value
    try:
        yield
    finally:
        if had:
            own[name] = before
        else:
            own.pop(name, None)
