"""Frozen layers: forward by the host's own code, backward by the weight where it lies, or by fetching it again instead of saving it.

Host weights are inference tensors, may be quantised, patched on the fly, or streamed through one reused buffer; nothing autograd could
save of such is valid later. So nothing is saved: the gradient for the input is exact, costs the usual arithmetic, and keeps no copy.
A resident layer, whose own parameters lie ready, needs none of that: autograd refers to aliases of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..adapters.base import Choice
from ..algebra.joint import Base, unviewed
from ..compat import autocasting
from .aliases import as_normal
from .layers import Forward, HostLayers, Place

_convolution_backward = torch.ops.aten.convolution_backward.default
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def input_gradient(grad: torch.Tensor, weight: torch.Tensor, layer: Any, shape: torch.Size) -> torch.Tensor:
    """Gradient for the input, of shape `shape`, of a linear or convolution `layer` with this `weight`; `grad` is that of its output."""
    if weight.ndim == 2:
        return grad @ weight
    no_output_padding = [0] * (weight.ndim - 2)
    shape_only = grad.new_empty(1).expand(shape)
    walk = (layer.stride, layer.padding, layer.dilation, False, no_output_padding, layer.groups)
    only_input = [True, False, False]
    return _convolution_backward(grad, shape_only, weight, None, *walk, only_input)[0]


class Fetched:
    """A layer whose weight the host fetches for each use (`Base`)."""

    def __init__(self, layer: nn.Module, host: HostLayers):
        self._layer, self._host, self._forward = layer, host, layer.forward

    def output(self, x: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            out = self._forward(x)
        return as_normal(out)

    def gradient(self, grad: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        host, layer = self._host, self._layer
        with torch.inference_mode(), host.fetched(layer, grad.dtype, grad.device) as (weight, _):
            grad_x = input_gradient(grad, weight, layer, shape)
            factor = host.input_factor(layer, grad_x)
            if factor is not None:
                grad_x = grad_x * factor
        return as_normal(grad_x)


class Resident:
    """A layer whose own weight lies where and in the type it is used in, as a tensor that autograd accepts (`Base`)."""

    def __init__(self, layer: nn.Module):
        self._layer, self._parameters = layer, layer._parameters
        self.output = layer.forward

    def takes(self, x: torch.Tensor) -> bool:
        """Whether the weight lies where and in the type `x` has now."""
        weight = self._parameters["weight"]
        return weight is not None and weight.dtype == x.dtype and weight.device == x.device

    def gradient(self, grad: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        weight = self._parameters["weight"]
        assert weight is not None
        return input_gradient(grad, weight, self._layer, shape)


def fetched_always(layer: nn.Module, host: HostLayers) -> Choice:
    """For a layer whose weight is fetched."""
    fetched = Fetched(layer, host)
    return lambda x: None if autocasting(x.device.type) else fetched


def resident_or_fetched(layer: nn.Module, host: HostLayers) -> Choice:
    """For a layer of a host that has its weight ready, unless an input of another type asks for a cast of it."""
    resident, fetched = resident_only(layer), Fetched(layer, host)

    def choice(x: torch.Tensor) -> Base | None:
        return resident(x) or (None if autocasting(x.device.type) else fetched)

    return choice


def resident_only(layer: nn.Module) -> Choice:
    """For an ordinary layer."""
    resident, parameters = Resident(layer), layer._parameters

    def choice(x: torch.Tensor) -> Base | None:
        weight, device = parameters["weight"], x.device
        ready = weight is not None and weight.dtype == x.dtype and weight.device == device
        return resident if ready and not autocasting(device.type) else None

    return choice


class _Frozen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, base: Base) -> torch.Tensor:
        ctx.base, ctx.shape, ctx.dtype = base, x.shape, x.dtype
        return unviewed(base.output(x))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.base.gradient(grad, ctx.shape).to(ctx.dtype), None


def can_freeze(layer: nn.Module, host: HostLayers) -> bool:
    """Whether `frozen` is exact for this layer: a plain host Linear or Conv that nobody else has hooked."""
    if "forward" in layer.__dict__ or not host.fetches(layer):
        return False
    return _walks_plainly(layer) if isinstance(layer, _CONVS) else host.is_linear(layer)


def _walks_plainly(layer: Any) -> bool:
    return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def is_ordinary(layer: Any) -> bool:
    """Whether this is torch's own Linear or Conv with a weight of ordinary numbers, whose forward nobody has replaced."""
    if "forward" in layer.__dict__ or type(layer) not in (nn.Linear, *_CONVS):
        return False
    plain = type(layer.weight) is nn.Parameter and type(layer.weight.data) is torch.Tensor
    return plain and (type(layer) is nn.Linear or _walks_plainly(layer))


def keeps_its_input(layer: nn.Module) -> bool:
    """Whether autograd would keep the input of this frozen layer though nobody needs it: of convolutions it does."""
    return isinstance(layer, _CONVS)


def frozen(layer: nn.Module, host: HostLayers, resident: bool = False) -> Forward:
    """A forward for `layer` that is its own, with the exact gradient for the input. Outside of training it is the original call."""
    original, fetched = layer.forward, Fetched(layer, host)
    ready = Resident(layer) if resident else None

    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args or kwargs or not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
            return original(x, *args, **kwargs)
        return _Frozen.apply(x, ready if ready is not None and ready.takes(x) else fetched)

    return forward


def place_of(device: torch.device | str, dtype: torch.dtype) -> Place:
    """Where and in which type a network computes, the device by its number."""
    return Place(torch.empty(0, device=device).device, dtype)
