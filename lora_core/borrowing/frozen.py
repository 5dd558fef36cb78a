"""Frozen layers: forward by the host's own code, backward by fetching the weight again instead of saving it.

Host weights are inference tensors, may be quantised, patched on the fly, or streamed through one reused buffer; nothing autograd could
save of them is valid later. So nothing is saved: the gradient for the input is exact, costs the usual arithmetic, and keeps no copy.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .aliases import as_normal
from .layers import Forward, HostLayers


def input_gradient(grad: torch.Tensor, weight: torch.Tensor, layer: Any, shape: torch.Size) -> torch.Tensor:
    """Gradient for the input, of shape `shape`, of a linear or convolution `layer` with this `weight`; `grad` is that of its output."""
    if weight.ndim == 2:
        return grad @ weight
    no_output_padding = [0] * (weight.ndim - 2)
    shape_only = grad.new_empty(1).expand(shape)
    walk = (layer.stride, layer.padding, layer.dilation, False, no_output_padding, layer.groups)
    only_input = [True, False, False]
    return torch.ops.aten.convolution_backward(grad, shape_only, weight, None, *walk, only_input)[0]


class _Frozen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: nn.Module, original: Forward, host: HostLayers) -> torch.Tensor:
        ctx.layer, ctx.host, ctx.shape, ctx.dtype = layer, host, x.shape, x.dtype
        with torch.inference_mode():
            out = original(x)
        return as_normal(out)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        with torch.inference_mode(), ctx.host.fetched(ctx.layer, grad.dtype, grad.device) as (weight, _):
            grad_x = input_gradient(grad, weight, ctx.layer, ctx.shape)
            factor = ctx.host.input_factor(ctx.layer, grad_x)
            if factor is not None:
                grad_x = grad_x * factor
        return as_normal(grad_x).to(ctx.dtype), None, None, None


def can_freeze(layer: nn.Module, host: HostLayers) -> bool:
    """Whether `frozen` is exact for this layer: a plain host Linear or Conv that nobody else has hooked."""
    if "forward" in layer.__dict__ or not host.fetches(layer):
        return False
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return host.is_linear(layer)


def frozen(layer: nn.Module, host: HostLayers) -> Forward:
    """A forward for `layer` that is its own, with the exact gradient for the input. Outside of training it is the original call."""
    original = layer.forward

    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args or kwargs or not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
            return original(x, *args, **kwargs)
        return _Frozen.apply(x, layer, original, host)

    return forward
