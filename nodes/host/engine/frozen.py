"""Frozen layers: forward by the host's own code, backward by fetching the weight again instead of saving it.

Host weights are inference tensors, may be quantised, patched on the fly, or streamed through one reused buffer; nothing autograd could
save of them is valid later. So nothing is saved: the gradient for the input is exact, costs the usual arithmetic, and keeps no copy.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator

import comfy.ops
import torch
from torch import nn

_OFFLOADABLE = "offloadable" in inspect.signature(comfy.ops.cast_bias_weight).parameters  # older hosts do not stream


def as_normal(x: torch.Tensor) -> torch.Tensor:
    """The same storage as a tensor autograd accepts: an inference tensor stays one under view and detach, but not under `set_`."""
    if not x.is_inference():
        return x
    if type(x) is not torch.Tensor and hasattr(x, "_qdata"):  # a quantised tensor of the host: alias what it wraps
        return type(x)(as_normal(x._qdata), x._layout_cls, x._params)
    with torch.inference_mode(False):
        return torch.empty(0, dtype=x.dtype, device=x.device).set_(x.untyped_storage(), x.storage_offset(), x.shape, x.stride())


@contextlib.contextmanager
def fetched_weights(layer: nn.Module, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    """The layer's weight and bias as its forward would use them: patched, dequantised, in `dtype` on `device`; valid inside the block.

    Not in the weight: the factor on the layer's input, where there is one (`input_factor`).
    """
    if _OFFLOADABLE:
        weight, bias, stream = comfy.ops.cast_bias_weight(layer, None, dtype=dtype, device=device, bias_dtype=dtype, offloadable=True)
    else:
        weight, bias = comfy.ops.cast_bias_weight(layer, None, dtype=dtype, device=device, bias_dtype=dtype)
    try:
        yield (weight.dequantize() if hasattr(weight, "dequantize") and hasattr(weight, "_qdata") else weight), bias
    finally:
        if _OFFLOADABLE:
            comfy.ops.uncast_bias_weight(layer, weight, bias, stream)


def input_factor(layer: nn.Module, like: torch.Tensor) -> torch.Tensor | None:
    """(in,) what the host multiplies the layer's input by before the weight (smoothing of a quantised layer), in type and place of `like`; None: nothing."""
    factor = getattr(layer, "pre_quant_scale", None)
    return None if factor is None else factor.to(like.device, like.dtype)


class _Frozen(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor, layer: nn.Module, original: Callable) -> torch.Tensor:
        ctx.layer, ctx.shape, ctx.dtype = layer, x.shape, x.dtype
        with torch.inference_mode():
            out = original(x)
        return as_normal(out)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        layer = ctx.layer
        with torch.inference_mode(), fetched_weights(layer, grad.dtype, grad.device) as (weight, _):
            if weight.ndim == 2:
                grad_x = grad @ weight
                factor = input_factor(layer, grad_x)
                if factor is not None:
                    grad_x = grad_x * factor
            else:
                n = weight.ndim - 2
                shape_only = grad.new_empty(1).expand(ctx.shape)
                grad_x = torch.ops.aten.convolution_backward(
                    grad, shape_only, weight, None, layer.stride, layer.padding, layer.dilation, False, [0] * n, layer.groups, [True, False, False]
                )[0]
        return as_normal(grad_x).to(ctx.dtype), None, None


def can_freeze(layer: nn.Module) -> bool:
    """Whether `frozen` is exact for this layer: a plain host Linear or Conv that nobody else has hooked."""
    if "forward" in layer.__dict__ or not hasattr(layer, "weight_function"):
        return False
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return is_linear(layer)


def is_linear(layer: nn.Module) -> bool:
    """Also the host's quantised Linear, which is not an nn.Linear."""
    return isinstance(layer, nn.Linear) or (type(layer).__name__ == "Linear" and hasattr(layer, "in_features") and hasattr(layer, "weight_function"))


def frozen(layer: nn.Module) -> Callable[..., torch.Tensor]:
    """A forward for `layer` that is its own, with the exact gradient for the input. Outside of training it is the original call."""
    original = layer.forward

    def forward(x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        if args or kwargs or not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
            return original(x, *args, **kwargs)
        return _Frozen.apply(x, layer, original)

    return forward
