"""What tells two of the host's models apart, whether they are loaded or not."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ....lora_core.backends.base import weights_fingerprint


def patched_fingerprint(
    patcher: Any, module: nn.Module, prefix: str, of: Callable[..., str] = weights_fingerprint
) -> str:
    """Of the weights without the host's patches, plus the patches, so it does not depend on whether the model is loaded."""
    backup = {k.removeprefix(prefix): v.weight for k, v in patcher.backup.items()}
    patches = {k: [(p[0], _patch_values(p[1]), p[2]) for p in v] for k, v in sorted(patcher.patches.items())}
    return hashlib.sha256(f"{of(module, backup)}{patches}".encode()).hexdigest()[:32]


def _patch_values(patch: Any) -> list[Any]:
    """A few numbers of every tensor in a host patch and everything else in it, to tell two patches of equal strength apart."""
    weights = getattr(patch, "weights", patch)
    parts = weights if isinstance(weights, list | tuple) else [weights]
    return [
        _few(part) if torch.is_tensor(part) else str(part)
        for part in parts
        if not torch.is_tensor(part) or part.numel()
    ]


def _few(tensor: torch.Tensor) -> list[float]:
    """Some of its values and their sum."""
    values = tensor.detach().float()
    return [*values.flatten()[:: max(1, values.numel() // 4)][:4].tolist(), float(values.sum())]
