"""Optimizer name to factory. A new optimizer is one row here, one choice in OptimizerConfig and one test."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .config import OptimizerConfig

Params = list[torch.nn.Parameter]


def _adamw(params: Params, config: OptimizerConfig) -> torch.optim.Optimizer:
    fused = all(p.device.type in {"cpu", "cuda"} and p.dtype == torch.float32 for p in params)
    return torch.optim.AdamW(params, lr=config.lr, betas=(config.beta1, config.beta2), weight_decay=config.weight_decay, eps=config.eps, fused=fused)


OPTIMIZERS: dict[str, Callable[[Params, OptimizerConfig], torch.optim.Optimizer]] = {"adamw": _adamw}


def make_optimizer(params: Params, config: OptimizerConfig) -> torch.optim.Optimizer:
    return OPTIMIZERS[config.name](params, config)
