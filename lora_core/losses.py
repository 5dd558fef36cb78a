"""Distances between prediction and target, element by element in float32; `mean` makes them one number a sample. A new loss is one function and one row."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from .config import TrainConfig
from .objectives import Objective
from .transfer import sent

Loss = Callable[..., torch.Tensor]  # (pred, target, delta)


def mse(pred: torch.Tensor, target: torch.Tensor, delta: torch.Tensor | None) -> torch.Tensor:
    """Squared error."""
    return (pred.float() - target.float()).square()


def l1(pred: torch.Tensor, target: torch.Tensor, delta: torch.Tensor | None) -> torch.Tensor:
    """Absolute error."""
    return (pred.float() - target.float()).abs()


def huber(pred: torch.Tensor, target: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """Pseudo-Huber: 2 d (sqrt(e^2 + d^2) - d), like e^2 for small errors e and like 2 d |e| for large ones; d is `delta` (B,), above 0.

    As in kohya's sd-scripts and diffusers' SDXL LoRA script (`conditional_loss`).
    """
    return 2 * _spread(delta, pred) * smooth_excess(pred, target, delta)


def smooth_l1(pred: torch.Tensor, target: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """2 (sqrt(e^2 + d^2) - d): like e^2 / d for small errors and like 2 |e| for large ones, whatever d is."""
    return 2 * smooth_excess(pred, target, delta)


def smooth_excess(pred: torch.Tensor, target: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """sqrt(e^2 + d^2) - d, without the cancellation of the plain formula: e^2 / (sqrt(e^2 + d^2) + d)."""
    square = (pred.float() - target.float()).square()
    delta = _spread(delta, square)
    return square / ((square + delta.square()).sqrt() + delta)


def _spread(delta: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return delta.to(x.device, torch.float32).view(-1, *[1] * (x.ndim - 1))


def mean(error: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """(B,) means of (B, C, [T,] H, W); with `mask` (B, 1, [T,] H, W) weighted by it, so a small mask counts as much as a large one.

    Where it leaves nothing, the mean is 0.
    """
    if mask is None:
        return error.flatten(1).mean(1)
    weight = mask.to(error).expand_as(error)
    total = weight.flatten(1).sum(1)
    return (error * weight).flatten(1).sum(1) / total.where(total > 0, torch.ones_like(total))


THRESHOLDED = ("huber", "smooth_l1")  # the losses that read `delta`
LOSSES: dict[str, Loss] = {"mse": mse, "l1": l1, "huber": huber, "smooth_l1": smooth_l1}


@dataclasses.dataclass(frozen=True)
class Distance:
    """How far a prediction is from its target: a row of LOSSES, and the threshold of those that read one."""

    loss: str = "mse"
    huber_delta: float = 0.1
    huber_schedule: str = "snr"

    @staticmethod
    def of(config: TrainConfig) -> Distance:
        return Distance(config.loss, config.huber_delta, config.huber_schedule)

    def threshold(self, objective: Objective, sigma: torch.Tensor, device: torch.device) -> torch.Tensor | None:
        """(B,) float32 on the device, for predictions made at noise levels sigma (B,); None for a loss that reads none."""
        if self.loss not in THRESHOLDED:
            return None
        return sent(objective.huber_delta(sigma, self.huber_delta, self.huber_schedule).float(), device)

    def __call__(self, pred: torch.Tensor, target: torch.Tensor, threshold: torch.Tensor | None) -> torch.Tensor:
        """Element by element, float32."""
        return LOSSES[self.loss](pred, target, threshold)


MSE = Distance()
