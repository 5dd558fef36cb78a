"""Per-sample distances between prediction and target: float32 in, shape (B,) out. A new loss is one function and one table row."""

from __future__ import annotations

from collections.abc import Callable

import torch

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def mse(pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each sample, shape (B,)."""
    return (pred.float() - target.float()).square().flatten(1).mean(1)


LOSSES: dict[str, Loss] = {"mse": mse}
