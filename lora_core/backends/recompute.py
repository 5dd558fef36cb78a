"""Which results of a recomputed block are kept: none, or those that cost most to make again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from ..compat import keeping
from ..config import Recompute

SMALL_SHARE = 256
_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "linear", "mkldnn_linear", "_scaled_mm", "convolution", "_convolution")
_ATTENTION = ("flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention")
_DEAR_NAMES = (*_PRODUCTS, *(f"_scaled_dot_product_{kind}" for kind in _ATTENTION))
_DEAR = {getattr(torch.ops.aten, name).default for name in _DEAR_NAMES if hasattr(torch.ops.aten, name)}


def recomputed(function: Callable[..., Any], how: Recompute, *args: Any, **kwargs: Any) -> Any:
    """`function(*args, **kwargs)`, of which the backward pass makes again what `how` says, which is not nothing."""
    keep = keeping(_DEAR) if how == Recompute.CHEAP else {}
    return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False, **keep, **kwargs)


def worthwhile(module: torch.nn.Module, x: torch.Tensor) -> bool:
    """Whether recomputing a block for input `x` saves memory worth its time: a few pixels behind large weights cost much and keep little.

    A block keeps some ten tensors of its input's size, so what is not recomputed stays below a twentieth of its weights.
    """
    return x.numel() * SMALL_SHARE >= sum(p.numel() for p in module.parameters())
