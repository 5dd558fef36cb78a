"""What makes a host's modules differentiable in place: block checkpointing, guards against in-place updates, norms on copies of their weights."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.utils.checkpoint
from torch import nn

from ..adapters.attach import override
from .aliases import as_normal
from .layers import Forward, HostLayers

_UNET_BLOCKS = frozenset({"ResBlock", "BasicTransformerBlock"})  # of the original Stable Diffusion UNet, in every host


def blocks(model: nn.Module) -> list[nn.Module]:
    """The modules worth recomputing: a UNet's ResBlocks and transformer blocks, else the members of top-level module lists."""
    if type(model).__name__ == "UNetModel":
        return [m for m in model.modules() if type(m).__name__ in _UNET_BLOCKS]
    return [block for child in model.children() if isinstance(child, nn.ModuleList) for block in child]


def norms(model: nn.Module) -> list[nn.Module]:
    """Every norm without parts of its own."""
    return [m for m in model.modules() if "norm" in type(m).__name__.lower() and not list(m.children())]


def cloned_input(norm: nn.Module) -> Forward:
    """Forward of a norm on a copy of its input: the block may then update the input in place without spoiling the norm's backward."""
    original = norm.forward

    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        # nothing else is asked: in a compiled block this is part of the graph
        if torch.is_grad_enabled() and x.requires_grad:
            x = x.clone()
        return original(x, *args, **kwargs)

    return forward


def fetched_norm(norm: nn.Module, host: HostLayers) -> Forward:
    """Forward of a norm whose weights are streamed or patched on the fly: it runs on small copies of them, which autograd may keep."""
    original = norm.forward

    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled() or torch.is_inference_mode_enabled() or host.stands(norm, x):
            return original(x, *args, **kwargs)
        with torch.inference_mode(), host.fetched(norm, x.dtype, x.device) as (weight, bias):
            copies = {"weight": weight.clone(), "bias": None if bias is None else bias.clone()}
        tables = {key: norm._parameters[key] for key in copies if key in norm._parameters}
        with contextlib.ExitStack() as undo:
            for name, value in host.as_they_stand.items():
                undo.enter_context(override(norm, name, value))
            undo.callback(norm._parameters.update, tables)
            for key in tables:
                copy = copies[key]
                norm._parameters[key] = None if copy is None else nn.Parameter(as_normal(copy), requires_grad=False)
            return original(x, *args, **kwargs)

    return forward


def checkpointed(block: nn.Module, pure: bool) -> Forward:
    """Forward of a block that keeps only its inputs and recomputes the rest in backward. Impure blocks run on copies of their inputs."""
    original = block.forward

    def again(*args: Any, **kwargs: Any) -> Any:
        if not pure:
            args, kwargs = private(args), private(kwargs)
        return original(*args, **kwargs)

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
            return original(*args, **kwargs)
        return torch.utils.checkpoint.checkpoint(again, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return forward


def private(value: Any) -> Any:
    """Floating tensors cloned, containers copied: what the block writes to stays its own."""
    if torch.is_tensor(value):
        return value.clone() if value.is_floating_point() else value
    if type(value) in (list, tuple):
        return type(value)(map(private, value))
    if type(value) is dict:
        return {k: private(v) if torch.is_tensor(v) or isinstance(v, list | tuple) else v for k, v in value.items()}
    return value
