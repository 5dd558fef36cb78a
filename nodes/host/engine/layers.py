"""What ComfyUI tells of its models and layers: how their weights are fetched, and whose blocks update tensors in place."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import comfy.ops
import torch
from torch import nn

from ....lora_core.borrowing.aliases import as_normal

_OFFLOADABLE = "offloadable" in inspect.signature(comfy.ops.cast_bias_weight).parameters  # older hosts do not stream

# Diffusion models whose blocks never update a tensor autograd still needs (checked by tests/host/test_gradients.py).
# All others get guards.
PURE = frozenset(
    {"UNetModel", "OpenAISignatureMMDITWrapper", "NextDiT", "QwenImageTransformer2DModel", "WanModel", "MMDiT"}
)


def is_pure(model: nn.Module) -> bool:
    """Whether a diffusion model needs no guards against in-place updates."""
    return type(model).__name__ in PURE


def is_unet(model: nn.Module) -> bool:
    """Whether this is the UNet of the Stable Diffusion family, whose configuration tells the width of the text it reads."""
    return type(model).__name__ == "UNetModel"


@contextlib.contextmanager
def fetched_weights(
    layer: nn.Module, dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    """The layer's weight and bias as its forward would use them: patched, dequantised, in `dtype` on `device`; valid inside the block.

    Not in the weight: the factor on the layer's input, where there is one (`input_factor`).
    """
    if _OFFLOADABLE:
        weight, bias, stream = comfy.ops.cast_bias_weight(
            layer, None, dtype=dtype, device=device, bias_dtype=dtype, offloadable=True
        )
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


def is_linear(layer: nn.Module) -> bool:
    """Also the host's quantised Linear, which is not an nn.Linear."""
    if isinstance(layer, nn.Linear):
        return True
    return type(layer).__name__ == "Linear" and hasattr(layer, "in_features") and hasattr(layer, "weight_function")


class ComfyLayers:
    """ComfyUI's layers, as borrowing asks for them (`HostLayers`)."""

    @property
    def as_they_stand(self) -> Mapping[str, Any]:
        return {"comfy_cast_weights": False, "weight_function": [], "bias_function": []}

    def fetched(
        self, layer: nn.Module, dtype: torch.dtype, device: torch.device
    ) -> contextlib.AbstractContextManager[tuple[torch.Tensor, torch.Tensor | None]]:
        return fetched_weights(layer, dtype, device)

    def fetches(self, layer: nn.Module) -> bool:
        return hasattr(layer, "weight_function")

    def stands(self, layer: Any, x: torch.Tensor) -> bool:
        if layer.weight is None:
            return True
        return layer.weight.device == x.device and not layer.weight_function and not layer.bias_function

    def input_factor(self, layer: nn.Module, like: torch.Tensor) -> torch.Tensor | None:
        return input_factor(layer, like)

    def is_linear(self, layer: nn.Module) -> bool:
        return is_linear(layer)

    def alias(self, value: Any) -> torch.Tensor:
        if type(value) is not torch.Tensor and hasattr(value, "_qdata"):  # a quantised tensor: alias what it wraps
            return type(value)(as_normal(value._qdata), value._layout_cls, value._params)
        return as_normal(value)


LAYERS = ComfyLayers()
