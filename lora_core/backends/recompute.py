"""Which results of a recomputed block are kept: none, or those that cost most to make again."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from ..config import Recompute

SMALL_SHARE = 256
_aten = torch.ops.aten
_DEAR = {
    op.default if hasattr(op, "default") else op
    for op in (
        _aten.mm,
        _aten.addmm,
        _aten.bmm,
        _aten.baddbmm,
        _aten.convolution,
        _aten._scaled_mm,
        _aten._scaled_dot_product_flash_attention,
        _aten._scaled_dot_product_flash_attention_for_cpu,
        _aten._scaled_dot_product_efficient_attention,
        _aten._scaled_dot_product_cudnn_attention,
        _aten.mkldnn_linear,
        _aten._convolution,
        _aten.linear,
    )
    if op is not None
}


def recomputed(function: Callable[..., Any], how: Recompute, *args: Any, **kwargs: Any) -> Any:
    """`function(*args, **kwargs)`, of which the backward pass makes again what `how` says, which is not nothing."""
    keep: dict[str, Any] = {}
    if how == Recompute.CHEAP:
        keep["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _policy)
    return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False, **keep, **kwargs)


def worthwhile(module: torch.nn.Module, x: torch.Tensor) -> bool:
    """Whether recomputing a block for input `x` saves memory worth its time: a few pixels behind large weights cost much and keep little.

    A block keeps some ten tensors of its input's size, so what is not recomputed stays below a twentieth of its weights.
    """
    return x.numel() * SMALL_SHARE >= sum(p.numel() for p in module.parameters())


def _policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in _DEAR else CheckpointPolicy.PREFER_RECOMPUTE
