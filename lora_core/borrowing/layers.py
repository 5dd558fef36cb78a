"""What a host has to tell of the layers of its models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

Forward = Callable[..., Any]
Fetched = AbstractContextManager[tuple[torch.Tensor, torch.Tensor | None]]


class Place(NamedTuple):
    """Where and in which type a network computes."""

    device: torch.device
    dtype: torch.dtype


class HostLayers(Protocol):
    """Of one host. It may keep a layer's weights elsewhere, quantised, or patched on the fly, and fetch them in the layer's forward."""

    @property
    def as_they_stand(self) -> Mapping[str, Any]:
        """Attributes of a fetching layer which, so set, make its forward use its own parameters as they stand."""

    def fetched(self, layer: nn.Module, dtype: torch.dtype, device: torch.device) -> Fetched:
        """The layer's (weight, bias) as its forward would use them, in `dtype` on `device`; valid inside the block."""

    def input_factor(self, layer: nn.Module, like: torch.Tensor) -> torch.Tensor | None:
        """(in,) what the forward multiplies a layer's input by before the weight that is fetched, in type and place of `like`; None: nothing."""

    def fetches(self, layer: nn.Module) -> bool:
        """Whether the host may fetch this layer's weights in its forward."""

    def stands(self, layer: nn.Module, x: torch.Tensor) -> bool:
        """Whether a fetching layer's forward would use its own parameters as they stand for the input `x`."""

    def resident(self, layer: nn.Module, place: Place) -> bool:
        """Whether a Linear, Conv or norm runs on its own parameters as they lie at `place` now: plain numbers, neither patched, cast, nor moved for a use."""

    def is_linear(self, layer: nn.Module) -> bool:
        """Whether this is a linear layer, also one of the host's own class."""

    def alias(self, value: torch.Tensor) -> torch.Tensor:
        """A parameter or buffer as a tensor autograd accepts, over the same storage."""
