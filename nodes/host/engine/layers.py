"""What ComfyUI tells of its models and layers: how their weights are fetched, and whose blocks update tensors in place."""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Collection, Hashable, Iterator, Mapping
from typing import Any

import comfy.ops
import torch
from torch import nn

from ....lora_core.adapters.attach import override
from ....lora_core.borrowing.aliases import as_normal
from ....lora_core.borrowing.layers import Place

_OFFLOADABLE = "offloadable" in inspect.signature(comfy.ops.cast_bias_weight).parameters  # older hosts do not stream
# What its layers are told with to cast their weights; forks call it by their own name.
_CASTS = next(
    (name for name in vars(comfy.ops.CastWeightBiasOp) if name.endswith("_cast_weights")), "comfy_cast_weights"
)

_MODELS = "comfy.ldm."
_UNET = "modules.diffusionmodules.openaimodel.UNetModel"

# Diffusion models whose blocks never update a tensor autograd still needs (checked by tests/host/test_gradients.py), by
# where they are defined: another class of the same name is another model. All others get guards and are compared with a
# slow exact way before the first step.
PURE = frozenset(
    {
        _UNET,
        "modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper",
        "lumina.model.NextDiT",
        "qwen_image.model.QwenImageTransformer2DModel",
        "wan.model.WanModel",
    }
)


def _is_one_of(model: nn.Module, places: Collection[str]) -> bool:
    """Whether the model's class is one of the host's own, of these; neither a subclass nor a class that only says it is."""
    module, _, name = f"{type(model).__module__}.{type(model).__qualname__}".rpartition(".")
    return f"{module}.{name}".removeprefix(_MODELS) in places and getattr(sys.modules.get(module), name, None) is type(
        model
    )


def is_pure(model: nn.Module) -> bool:
    """Whether a diffusion model needs no guards against in-place updates: its class is known, and no pack has given one of its blocks another forward."""
    if not _is_one_of(model, PURE):
        return False
    blocks = [module for module in model.modules() if list(module.children())]
    return not any("forward" in vars(block) for block in blocks)


def is_unet(model: nn.Module) -> bool:
    """Whether this is the UNet of the Stable Diffusion family, whose configuration tells the width of the text it reads."""
    return _is_one_of(model, {_UNET})


@contextlib.contextmanager
def fetched_weights(
    layer: nn.Module, dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    """The layer's weight and bias as its forward would use them: patched, dequantised, in `dtype` on `device`; valid inside the block.

    Not in the weight: the factor on the layer's input, where there is one (`input_factor`).
    """
    fetch = getattr(
        layer, "cast_bias_weight", None
    )  # of layers of packs (GGUF) that keep and dequantise their weights themselves
    if callable(fetch):
        with_bias = fetch(None, dtype=dtype, device=device, bias_dtype=dtype)
        weight, bias = (_unwrapped(value) for value in with_bias[:2])
        yield weight, bias
        return
    if _OFFLOADABLE:
        weight, bias, stream = comfy.ops.cast_bias_weight(
            layer, None, dtype=dtype, device=device, bias_dtype=dtype, offloadable=True
        )
    else:
        weight, bias = comfy.ops.cast_bias_weight(layer, None, dtype=dtype, device=device, bias_dtype=dtype)
    try:
        yield _unwrapped(weight.dequantize() if hasattr(weight, "_qdata") else weight), _unwrapped(bias)
    finally:
        if _OFFLOADABLE:
            comfy.ops.uncast_bias_weight(layer, weight, bias, stream)


def _unwrapped(value: Any) -> Any:
    """A tensor of a pack's own class as a plain one over the same storage."""
    if value is None or type(value) in (torch.Tensor, nn.Parameter) or hasattr(value, "_qdata"):
        return value
    with torch._C.DisableTorchFunctionSubclass():
        return value.as_subclass(torch.Tensor)


def input_factor(layer: nn.Module, like: torch.Tensor) -> torch.Tensor | None:
    """(in,) what the host multiplies the layer's input by before the weight (smoothing of a quantised layer), in type and place of `like`; None: nothing."""
    factor = getattr(layer, "pre_quant_scale", None)
    return None if factor is None else factor.to(like.device, like.dtype)


def is_linear(layer: nn.Module) -> bool:
    """Also the host's quantised Linear, which is not an nn.Linear."""
    if isinstance(layer, nn.Linear):
        return True
    return type(layer).__name__ == "Linear" and hasattr(layer, "in_features") and hasattr(layer, "weight_function")


def foreign_layers(model: nn.Module) -> list[nn.Module]:
    """Linear layers of packs (bitsandbytes, Nunchaku) whose packed weights neither the host nor the layer hands out: no gradient can be led through them."""
    leaves = [m for m in model.modules() if not list(m.children())]
    return [m for m in leaves if _looks_linear(m) and not _hands_out_weight(m)]


def _looks_linear(layer: nn.Module) -> bool:
    named = "Linear" in type(layer).__name__ or hasattr(layer, "qweight")
    return named or (hasattr(layer, "in_features") and hasattr(layer, "out_features"))


def _hands_out_weight(layer: nn.Module) -> bool:
    if is_linear(layer) and hasattr(layer, "weight_function"):
        return True
    weight = getattr(layer, "weight", None)
    return isinstance(layer, nn.Linear) and torch.is_tensor(weight) and weight.is_floating_point()


_OWN: set[type] = set()  # classes of layers that are the host's own


def _is_own(kind: type) -> bool:
    """Whether a class of layers is the host's own, made of torch's alone: what a pack puts between may do anything with the weight."""
    modules = {comfy.ops.__name__, "builtins"}
    if not all(base.__module__ in modules or base.__module__.startswith("torch.") for base in kind.__mro__):
        return False
    _OWN.add(kind)
    return True


class ComfyLayers:
    """ComfyUI's layers, as borrowing asks for them (`HostLayers`)."""

    @property
    def as_they_stand(self) -> Mapping[str, Any]:
        return {_CASTS: False, "weight_function": [], "bias_function": []}

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

    def resident(self, layer: Any, place: Place) -> bool:
        if layer.weight_function or layer.bias_function or layer.__class__ not in _OWN and not _is_own(layer.__class__):
            return False
        attributes, parameters = layer.__dict__, layer._parameters
        weight, bias = parameters.get("weight"), parameters.get("bias")
        if weight is None or weight.__class__ is not nn.Parameter or (weight.device, weight.dtype) != place:
            return False
        if bias is not None and (bias.__class__ is not nn.Parameter or (bias.device, bias.dtype) != place):
            return False
        if parameters.get("pre_quant_scale") is not None or attributes.get("pre_quant_scale") is not None:
            return False
        streamed = attributes.get("_v") is not None or attributes.get("weight_lowvram_function") is not None
        patched = attributes.get("bias_lowvram_function") is not None
        return not (streamed or patched or attributes.get("layout_type") is not None)

    def input_factor(self, layer: nn.Module, like: torch.Tensor) -> torch.Tensor | None:
        return input_factor(layer, like)

    def is_linear(self, layer: nn.Module) -> bool:
        return is_linear(layer)

    def alias(self, value: Any) -> torch.Tensor:
        if type(value) is not torch.Tensor and hasattr(value, "_qdata"):  # a quantised tensor: alias what it wraps
            return type(value)(as_normal(value._qdata), value._layout_cls, value._params)
        if not value.is_floating_point():  # quantised by a pack (GGUF): autograd never sees it
            return value
        return as_normal(_unwrapped(value))

    def kind(self, layer: Any) -> Hashable:
        weight, like = layer.weight, torch.empty(0)
        stored = (
            type(weight),
            weight.dtype,
            getattr(weight, "_layout_cls", None),
            getattr(weight, "tensor_type", None),
        )
        patched = [bool(getattr(layer, name, None)) for name in ("weight_function", "bias_function")]
        # lowvram functions: a LoRA that the host applies while it streams the weight
        patched += [hasattr(layer, f"{name}_lowvram_function") for name in ("weight", "bias")]
        walk = tuple(getattr(layer, name, None) for name in ("kernel_size", "groups", "dilation", "stride"))
        factor = input_factor(layer, like) is not None
        return (type(layer), stored, str(weight.device), walk, factor, getattr(layer, "bias", None) is None, *patched)

    @contextlib.contextmanager
    def dequantised(self, layer: Any) -> Iterator[None]:
        # With a patch to apply, even one that changes nothing, the host dequantises the weight and leaves the input as
        # it is.
        functions = [*layer.weight_function, lambda weight: weight]
        with override(layer, "weight_function", functions):
            yield


LAYERS = ComfyLayers()
