"""One layer of each kind measured: the gradient we hand through it against what its own dequantised forward does to its input.

Such a layer is an affine map (a norm nearly one, within a small step), so the exact gradient for one entry of the input is how the output changes with
that entry. It is read off the host's forward alone: what our fetched weight, our factor on the input or our backward pass leave out cannot hide in it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import nn

from .aliases import aliased, as_normal, put_back
from .frozen import can_freeze, frozen
from .guards import fetched_norm, norms
from .layers import Forward, HostLayers, Place

ENTRIES = 32  # of the input, spread over it
LINEAR_STEP, NORM_STEP = 1.0, 0.02  # a norm bends: its second differences then stay below 1e-4
TOLERANCE = {torch.float32: 2e-3, torch.float64: 2e-3}  # relative, of one layer
HALF_TOLERANCE = 0.03


class ProvableLayers(HostLayers, Protocol):
    """A host whose layers can be told apart and run in any precision."""

    def kind(self, layer: nn.Module) -> Hashable:
        """The same for layers whose weights are stored and fetched in the same way."""

    def dequantised(self, layer: nn.Module) -> AbstractContextManager[None]:
        """Inside, the layer's forward uses its weights dequantised, in the type of its input, and does not quantise the input."""


def one_of_each_kind(network: nn.Module, host: ProvableLayers, place: Place) -> dict[str, nn.Module]:
    """Path -> layer: the smallest of each kind that is trained through, apart by whether its weight is fetched or lies ready at `place`.

    To be asked while nothing is put on.
    """
    smallest: dict[Hashable, tuple[str, Any]] = {}
    fetching = set(map(id, (norm for norm in norms(network) if host.fetches(norm))))
    layer: Any
    for path, layer in network.named_modules():
        weight = getattr(layer, "weight", None)
        if weight is None or weight.device.type == "meta" or not (can_freeze(layer, host) or id(layer) in fetching):
            continue
        kind = host.kind(layer), can_freeze(layer, host) and host.resident(layer, place)
        if kind not in smallest or layer.weight.numel() < smallest[kind][1].weight.numel():
            smallest[kind] = path, layer
    return dict(smallest.values())


def tolerable(error: float, dtype: torch.dtype) -> bool:
    """Whether rounding in `dtype` explains the error of one layer; not a number is never tolerable."""
    return error <= TOLERANCE.get(dtype, HALF_TOLERANCE)


def error_of(layer: Any, host: ProvableLayers, place: Place) -> float:
    """Relative error of the gradient for the input of one layer that nothing is put on, as it is trained through at `place`."""
    norm = not can_freeze(layer, host)
    shape = _norm_input(layer) if norm else _input(layer)
    rng = torch.Generator().manual_seed(0)
    at = torch.randn(shape, generator=rng).to(place.device)
    resident = not norm and host.resident(layer, place)
    with host.dequantised(layer), _lent(layer, host) if resident else contextlib.nullcontext():
        forward = fetched_norm(layer, host) if norm else frozen(layer, host, resident)
        ours, probe = _trained(forward, at.to(place.dtype))
        entries = torch.linspace(0, at.numel() - 1, min(ENTRIES, at.numel())).round().long().to(place.device)
        exact = _changes(layer.forward, at, entries, NORM_STEP if norm else LINEAR_STEP, probe)
    difference = (ours.flatten()[entries].float() - exact).norm()
    return float(difference / exact.norm()) if exact.any() or difference else 0.0  # weights of zero let nothing through


@contextlib.contextmanager
def _lent(layer: nn.Module, host: HostLayers) -> Iterator[None]:
    """Inside, the layer's own parameters are such as autograd accepts."""
    with torch.inference_mode(False):
        changes = aliased(layer, host.alias)
    try:
        yield
    finally:
        put_back(changes)


def _trained(forward: Forward, at: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(gradient for the input, the probe it is of) as training has them, (1, ...)."""
    with torch.inference_mode(False), torch.enable_grad():
        x = as_normal(at).clone().requires_grad_()
        out = forward(x)
        probe = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
        (grad,) = torch.autograd.grad((out * probe).sum(), x)
    return grad, probe.float()


def _changes(
    forward: Forward, at: torch.Tensor, entries: torch.Tensor, step: float, probe: torch.Tensor
) -> torch.Tensor:
    """(n,) float32: how the sum over output x probe changes with each of these entries of the input."""
    with torch.inference_mode():
        steps = torch.zeros(len(entries), at.numel(), device=at.device)
        steps[torch.arange(len(entries), device=at.device), entries] = step
        above, below = (forward((at.flatten() + sign * steps).view(-1, *at.shape[1:])).float() for sign in (1, -1))
        return as_normal(((above - below) * probe).flatten(1).sum(1) / (2 * step))


def _input(layer: Any) -> tuple[int, ...]:
    """The shape of a small input of a linear layer or a convolution."""
    if not hasattr(layer, "kernel_size"):
        return (1, layer.in_features)
    walk = zip(layer.kernel_size, layer.dilation, layer.stride, strict=True)
    return (1, layer.in_channels, *((kernel - 1) * dilation + 1 + stride for kernel, dilation, stride in walk))


def _norm_input(norm: Any) -> tuple[int, ...]:
    if hasattr(norm, "normalized_shape"):
        return (1, *norm.normalized_shape)
    return (1, norm.num_channels if hasattr(norm, "num_channels") else norm.num_features, 4, 4)
