"""What Forge classic tells of its layers: an early ComfyUI's, which may be kept in other numbers or in main memory and cast for each use."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from ldm_patched.ldm.modules import attention
from torch import nn

from ....lora_core.borrowing.aliases import as_normal, replaced
from ....lora_core.borrowing.layers import Place

CASTS = "ldm_patched_cast_weights"  # what a layer is told by that its forward casts its weights


class ClassicLayers:
    """`HostLayers` of Forge classic's models."""

    @property
    def as_they_stand(self) -> Mapping[str, Any]:
        return {CASTS: False}

    @contextlib.contextmanager
    def fetched(
        self, layer: Any, dtype: torch.dtype, device: torch.device
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        yield layer.weight.to(device, dtype), None if layer.bias is None else layer.bias.to(device, dtype)

    def fetches(self, layer: nn.Module) -> bool:
        return hasattr(layer, CASTS)

    def stands(self, layer: Any, x: torch.Tensor) -> bool:
        weight = layer.weight
        return weight is None or weight.device == x.device and (not getattr(layer, CASTS) or weight.dtype == x.dtype)

    def resident(self, layer: Any, place: Place) -> bool:
        parameters = [p for p in (layer._parameters.get("weight"), layer._parameters.get("bias")) if p is not None]
        plain = type(layer).__module__.startswith(("ldm_patched.", "torch."))
        return plain and bool(parameters) and all((p.device, p.dtype) == place for p in parameters)

    def input_factor(self, layer: nn.Module, like: torch.Tensor) -> torch.Tensor | None:
        return None

    def is_linear(self, layer: nn.Module) -> bool:
        return isinstance(layer, nn.Linear)

    def alias(self, value: torch.Tensor) -> torch.Tensor:
        return as_normal(value)


@contextlib.contextmanager
def differentiable_attention() -> Iterator[None]:
    """Inside, what wants gradients attends by PyTorch: SageAttention, which the host takes for SDXL wherever it is installed, has none."""
    without: Any = getattr(attention, "attention_sage", None)

    def chosen(*arguments: Any, **more: Any) -> Any:
        return (attention.attention_pytorch if torch.is_grad_enabled() else without)(*arguments, **more)

    with contextlib.ExitStack() as undo:
        for name in ("optimized_attention", "optimized_attention_masked"):
            if without is not None and getattr(attention, name) is without:
                undo.enter_context(replaced(attention, name, chosen))
        yield
