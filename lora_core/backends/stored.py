"""Frozen layers whose weights are not where or what the arithmetic needs: kept in fp8, or in main memory, and fetched for each use.

Nothing of a fetched weight is kept for the backward pass; it is fetched again there. The gradient for the input is exact.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..borrowing.frozen import input_gradient

FP8 = torch.float8_e4m3fn
AHEAD = 1  # blocks copied while another one computes; a frozen weight never travels back
Layer = nn.Linear | nn.Conv2d
Fetch = Callable[[Layer, torch.dtype], torch.Tensor]


class _Fetched(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: Layer, fetch: Fetch) -> torch.Tensor:
        ctx.layer, ctx.fetch, ctx.shape, ctx.dtype = layer, fetch, x.shape, x.dtype
        weight, bias = fetch(layer, x.dtype), None if layer.bias is None else layer.bias.to(x.dtype)
        if isinstance(layer, nn.Linear):
            return F.linear(x, weight, bias)
        return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        weight = ctx.fetch(ctx.layer, grad.dtype)
        return input_gradient(grad, weight, ctx.layer, ctx.shape).to(ctx.dtype), None, None


def fetched(layers: Sequence[Layer], fetch: Fetch) -> None:
    """Makes these layers compute with what `fetch(layer, dtype)` gives instead of their own weight, for good."""
    for layer in layers:
        layer.forward = functools.partial(_fetched_forward, layer=layer, fetch=fetch)  # type: ignore[method-assign]


def _fetched_forward(x: torch.Tensor, layer: Layer, fetch: Fetch) -> torch.Tensor:
    return _Fetched.apply(x, layer, fetch)


def heavy(block: nn.Module) -> list[Layer]:
    """The plain linear and convolution layers of a block, which hold nearly all of its weights."""
    out: list[Layer] = []
    for module in block.modules():
        if type(module) is nn.Linear or (type(module) is nn.Conv2d and module.padding_mode == "zeros"):
            out.append(module)
    return out


def as_fp8(blocks: Sequence[nn.Module]) -> None:
    """Keeps the linear weights of these blocks in fp8 (e4m3), rounded where they were wider: half of bf16's memory."""
    layers = [m for block in blocks for m in heavy(block) if m.weight.ndim == 2]
    for layer in layers:
        layer.weight.data = layer.weight.data.to(FP8)
    fetched(layers, lambda layer, dtype: layer.weight.detach().to(dtype))


_Copies = tuple[dict[Layer, torch.Tensor], torch.cuda.Event | None]  # weights on the device, and when they are there


class Streamed:
    """Blocks whose weights stay in main memory. While one computes, the next one in the direction of travel is copied to the device."""

    def __init__(self, blocks: Sequence[nn.Module], device: torch.device):
        self._layers = [heavy(block) for block in blocks]
        self._number = {layer: n for n, layers in enumerate(self._layers) for layer in layers}
        self._device, self._at, self._here = device, -1, dict[int, _Copies]()
        self._order: list[int] = []  # as the first pass meets them, which need not be the order they are listed in
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        for layer in self._number:
            weight = layer.weight.data.cpu()
            layer.weight.data = weight.pin_memory() if self._stream else weight
        fetched(list(self._number), self.fetch)

    def __contains__(self, layer: object) -> bool:
        return layer in self._number

    def fetch(self, layer: Layer, dtype: torch.dtype) -> torch.Tensor:
        number = self._number[layer]
        if number != self._at:
            self._arrive(number)
        return self._here[number][0][layer].to(dtype)

    def _arrive(self, number: int) -> None:
        if number not in self._order:
            self._order.append(number)
        place, last = self._order.index(number), len(self._order) - 1
        before = self._order.index(self._at) if self._at in self._order else -1
        back = place == last or place == before - 1  # a step turns around at the last block
        self._at = number
        places = [place + (-n if back else n) for n in range(AHEAD + 1)]
        numbers = [self._order[p] for p in places if 0 <= p <= last]
        self._here = {n: held for n, held in self._here.items() if n in numbers}
        for n in numbers:
            if n not in self._here:
                self._here[n] = self._copied(n)
        copies, ready = self._here[number]
        if ready is not None:
            torch.cuda.current_stream(self._device).wait_event(ready)
            for copy in copies.values():
                copy.record_stream(torch.cuda.current_stream(self._device))

    def _copied(self, number: int) -> _Copies:
        """(the block's weights on the device, the event after which they are there)."""
        if self._stream is None:
            return {layer: layer.weight.detach().to(self._device, copy=True) for layer in self._layers[number]}, None
        with torch.cuda.stream(self._stream):
            copies = {
                layer: layer.weight.detach().to(self._device, non_blocking=True) for layer in self._layers[number]
            }
            return copies, self._stream.record_event()
