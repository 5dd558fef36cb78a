"""What borrowing asks of plain PyTorch layers, as A1111 has them: weights that may be stored in fp8, or that the host moves between steps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ....lora_core.borrowing.aliases import as_normal
from ....lora_core.borrowing.layers import Place


class PlainLayers:
    """`HostLayers` of modules whose weights are parameters of the module itself.

    `moves`: the host takes modules off the device while others run. `dtype`: what the network computes in.
    """

    def __init__(self, dtype: torch.dtype, moves: bool):
        self._dtype, self._moves = dtype, moves

    @property
    def as_they_stand(self) -> Mapping[str, Any]:
        return {}

    @contextlib.contextmanager
    def fetched(
        self, layer: Any, dtype: torch.dtype, device: torch.device
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        bias = getattr(layer, "bias", None)
        yield layer.weight.to(device, dtype), None if bias is None else bias.to(device, dtype)

    def fetches(self, layer: nn.Module) -> bool:
        weight = getattr(layer, "weight", None)
        return weight is not None and (self._moves or weight.dtype != self._dtype)

    def stands(self, layer: nn.Module, x: torch.Tensor) -> bool:
        weight = getattr(layer, "weight", None)
        return weight is None or not (self._moves or weight.device != x.device)

    def resident(self, layer: Any, place: Place) -> bool:
        parameters = [p for p in layer._parameters.values() if p is not None]
        return not self._moves and all(p.dtype == place.dtype and p.device == place.device for p in parameters)

    def input_factor(self, layer: nn.Module, like: torch.Tensor) -> torch.Tensor | None:
        return None

    def is_linear(self, layer: nn.Module) -> bool:
        return isinstance(layer, nn.Linear)

    def alias(self, value: torch.Tensor) -> torch.Tensor:
        return as_normal(value)
