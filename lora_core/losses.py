"""Per-sample distances between prediction and target: float32 in, shape (B,) out. A new loss is one function and one table row."""

from __future__ import annotations

from collections.abc import Callable

import torch

Loss = Callable[..., torch.Tensor]  # (pred, target, delta)


def mse(pred: torch.Tensor, target: torch.Tensor, delta: torch.Tensor | None) -> torch.Tensor:
    """Mean squared error of each sample, shape (B,)."""
    return (pred.float() - target.float()).square().flatten(1).mean(1)


def l1(pred: torch.Tensor, target: torch.Tensor, delta: torch.Tensor | None) -> torch.Tensor:
    """Mean absolute error of each sample, shape (B,)."""
    return (pred.float() - target.float()).abs().flatten(1).mean(1)


def huber(pred: torch.Tensor, target: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """Pseudo-Huber: 2 d (sqrt(e^2 + d^2) - d), like e^2 for small errors e and like 2 d |e| for large ones; d is `delta` (B,), above 0.

    As in kohya's sd-scripts and diffusers' SDXL LoRA script (`conditional_loss`).
    """
    return 2 * delta.float() * smooth_excess(pred, target, delta).flatten(1).mean(1)


def smooth_l1(pred: torch.Tensor, target: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """2 (sqrt(e^2 + d^2) - d): like e^2 / d for small errors and like 2 |e| for large ones, whatever d is."""
    return 2 * smooth_excess(pred, target, delta).flatten(1).mean(1)


def smooth_excess(pred: torch.Tensor, target: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """sqrt(e^2 + d^2) - d, without the cancellation of the plain formula: e^2 / (sqrt(e^2 + d^2) + d)."""
    square = (pred.float() - target.float()).square()
    delta = delta.to(square).view(-1, *[1] * (square.ndim - 1))
    return square / ((square + delta.square()).sqrt() + delta)


THRESHOLDED = ("huber", "smooth_l1")  # the losses that read `delta`
LOSSES: dict[str, Loss] = {"mse": mse, "l1": l1, "huber": huber, "smooth_l1": smooth_l1}
