"""What Forge tells of its layers: its own classes, whose weights may be quantised, streamed from main memory, or patched on the fly."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from backend import memory_management, operations
from torch import nn

from ....lora_core.borrowing.aliases import as_normal
from ....lora_core.borrowing.layers import Place

_ALTERED = ("scale_weight", "forge_online_loras")  # what Forge changes a weight by in the layer's forward


class ForgeLayers:
    """`HostLayers` of Forge's models."""

    @property
    def as_they_stand(self) -> Mapping[str, Any]:
        return {"parameters_manual_cast": False}

    @contextlib.contextmanager
    def fetched(
        self, layer: Any, dtype: torch.dtype, device: torch.device
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        with torch.inference_mode():
            place = {"device": device, "dtype": dtype}
            weight, bias = operations.get_weight_and_bias(
                layer, place, place, weight_fn=_dequantised(layer.weight), bias_fn=_dequantised(layer.bias)
            )
        yield weight, bias

    def fetches(self, layer: nn.Module) -> bool:
        return hasattr(layer, "parameters_manual_cast") or _quantised(getattr(layer, "weight", None))

    def stands(self, layer: Any, x: torch.Tensor) -> bool:
        if layer.weight is None:
            return True
        return not getattr(layer, "parameters_manual_cast", False) and layer.weight.device == x.device

    def resident(self, layer: Any, place: Place) -> bool:
        if any(getattr(layer, name, None) is not None for name in _ALTERED):
            return False
        parameters = [layer._parameters.get(name) for name in ("weight", "bias")]
        if parameters[0] is None or not type(layer).__module__.startswith("backend."):
            return False
        kinds = (nn.Parameter, torch.Tensor)
        return all(
            type(p) in kinds and not _quantised(p) and p.dtype == place.dtype and p.device == place.device
            for p in parameters
            if p is not None
        )

    def input_factor(self, layer: nn.Module, like: torch.Tensor) -> torch.Tensor | None:
        return None

    def is_linear(self, layer: nn.Module) -> bool:
        if isinstance(layer, nn.Linear):
            return True
        return type(layer).__name__ == "Linear" and getattr(layer, "weight", None) is not None

    def alias(self, value: torch.Tensor) -> torch.Tensor:
        return as_normal(value)


def _quantised(weight: Any) -> bool:
    return getattr(weight, "gguf_cls", None) is not None or hasattr(weight, "bnb_quantized")


def _dequantised(weight: Any) -> Any:
    """What makes numbers of a packed weight, as the layer's own forward does it; None for one that is not packed."""
    if getattr(weight, "gguf_cls", None) is not None:
        from backend.operations_gguf import dequantize_tensor

        return dequantize_tensor
    if hasattr(weight, "bnb_quantized"):
        from backend.operations_bnb import functional_dequantize_4bit

        return functional_dequantize_4bit
    return None


def are_loaded(patchers: Sequence[Any]) -> bool:
    """Whether the host has these models where they run."""
    return all(memory_management.LoadedModel(p) in memory_management.current_loaded_models for p in patchers)


def load_all(patchers: Sequence[Any], needed_bytes: float) -> None:
    """Asks the host to put these models where they run, and to leave that much memory beside them."""
    memory_management.load_models_gpu(list(patchers), memory_required=needed_bytes)
