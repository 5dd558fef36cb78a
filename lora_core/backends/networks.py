"""A diffusers network as a whole: its blocks, how they are recomputed or compiled while it is lent, and its weights however they are kept."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from ..compat import compiled_graphs, needed
from ..config import Recompute
from .recompute import recomputed, worthwhile

DIFFUSERS = "0.33"  # since when a network takes a function for recomputing, and a pipeline a type for each part


@runtime_checkable
class Split(Protocol):
    """A tensor of which each process holds a part: PyTorch's DTensor, which lies elsewhere in older versions and in builds for one process nowhere."""

    def full_tensor(self) -> torch.Tensor: ...

    def to_local(self) -> torch.Tensor: ...


@contextlib.contextmanager
def recomputing(network: Any, recompute: Recompute) -> Iterator[None]:
    """Inside, a diffusers network keeps only what `recompute` leaves it of its blocks."""
    if not recompute:
        yield
        return

    needed("diffusers", DIFFUSERS)

    def forward(module: nn.Module, x: torch.Tensor, *args: Any) -> Any:
        if worthwhile(module, x):
            return recomputed(module.__call__, recompute, x, *args)
        return module(x, *args)

    before = getattr(network, "is_gradient_checkpointing", False)
    try:
        network.enable_gradient_checkpointing(forward)
        network.train()  # diffusers checkpoints only in training mode
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.eval()  # the base model is not regularised, and a recomputed block must be the same
        yield
    finally:
        if not before:
            network.disable_gradient_checkpointing()
            for module in network.modules():  # which leaves the function it was given
                vars(module).pop("_gradient_checkpointing_func", None)


def blocks(network: nn.Module) -> list[nn.Module]:
    """The repeated parts of a diffusers network, as its own class names them."""
    names = set(getattr(network, "_no_split_modules", None) or ())
    named = [m for m in network.modules() if type(m).__name__ in names]
    inside = {id(inner) for m in named for inner in m.modules() if inner is not m}
    return [m for m in named if id(m) not in inside]


@contextlib.contextmanager
def compiled(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, each of the blocks runs compiled: one graph for each shape, shared by blocks that are alike."""
    if not blocks:
        yield
        return
    with compiled_graphs():
        try:
            for block in blocks:
                block.compile(dynamic=False)
            yield
        finally:
            for block in blocks:
                block._compiled_call_impl = None


def whole_weight(layer: Any) -> torch.Tensor:
    """The layer's weight, put together from all processes where it is split over them, and as numbers where bitsandbytes has packed it."""
    weight = layer.weight
    if getattr(weight, "quant_state", None) is not None:  # nf4, fp4
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight.data, weight.quant_state)
    scales = getattr(weight, "SCB", None)
    if scales is None and hasattr(layer, "state"):
        scales = getattr(layer.state, "SCB", None)
    if scales is None:
        return unsplit(weight)
    return weight.data.float() * scales[:, None] / 127  # int8, a scale for each row


def unsplit(weight: torch.Tensor) -> torch.Tensor:
    """The tensor put together from all processes, where it is split over them."""
    weight = weight.detach()
    return weight.full_tensor() if isinstance(weight, Split) else weight


def local_part(weight: torch.Tensor) -> torch.Tensor:
    """What this process holds of it."""
    return weight.to_local() if isinstance(weight, Split) else weight
