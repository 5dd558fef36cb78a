"""Learning rate as a pure function of the step: factor in [0, 1] on the configured rate. Formulas as in diffusers.optimization."""

from __future__ import annotations

import math
from collections.abc import Callable

from ..config import ScheduleConfig


def _linear(p: float, config: ScheduleConfig) -> float:
    return 1.0 - p


def _cosine(p: float, config: ScheduleConfig) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * p))


def _cosine_with_restarts(p: float, config: ScheduleConfig) -> float:
    return 0.0 if p >= 1.0 else 0.5 * (1.0 + math.cos(math.pi * ((config.cycles * p) % 1.0)))


def _polynomial(p: float, config: ScheduleConfig) -> float:
    return (1.0 - p) ** config.power


SCHEDULES: dict[str, Callable[[float, ScheduleConfig], float]] = {
    "constant": lambda p, config: 1.0,
    "linear": _linear,
    "cosine": _cosine,
    "cosine_with_restarts": _cosine_with_restarts,
    "polynomial": _polynomial,
}


def lr_factor(config: ScheduleConfig, step: int, steps: int) -> float:
    """Factor for update number `step` (from 0) of `steps`: rises linearly over the warm-up, then follows the schedule."""
    if step < config.warmup_steps:
        return step / max(1, config.warmup_steps)
    progress = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    return SCHEDULES[config.name](min(1.0, progress), config)
