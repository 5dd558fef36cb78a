"""Optimizer name to factory. A new optimizer is one row of OPTIMIZERS and one test; the arithmetic is the libraries' own."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ..compat import adamw, needed
from ..config import OptimizerConfig, TrainConfig
from ..messages.errors import LoomError
from .flat import Flat

Groups = list[dict[str, Any]]  # as groups.make_groups builds them
Make = Callable[[Groups, OptimizerConfig], torch.optim.Optimizer]


@dataclasses.dataclass(frozen=True)
class Row:
    """`lr` and `beta2`: what 0 in the config stands for. `package`: what pip installs when it is optional. `one_lr`: all groups share one rate.

    `flat`: its update is the same for parameters that lie side by side in one (see `flat`); `flattened`: its state that has one axis whatever the parameter.
    """

    make: Make
    lr: float = 1e-4
    beta2: float = 0.999
    package: str = ""
    module: str = ""
    one_lr: bool = False
    flat: bool = False
    flattened: tuple[str, ...] = ()


def _betas(config: OptimizerConfig) -> tuple[float, float]:
    return config.beta1, config.beta2


def _adamw(groups: Groups, config: OptimizerConfig) -> torch.optim.Optimizer:
    fused = all(p.device.type in {"cpu", "cuda"} and p.dtype == torch.float32 for g in groups for p in g["params"])
    return adamw(groups, fused, betas=_betas(config), eps=config.eps)


def _adamw8bit(groups: Groups, config: OptimizerConfig) -> torch.optim.Optimizer:
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(groups, betas=_betas(config), eps=config.eps)


def _adafactor(groups: Groups, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Shazeer & Stern 2018 (arXiv 1804.04235) with the given rate, not a relative one: lora_up starts at zero, and a step relative to that stands still."""
    return needed("transformers.optimization").Adafactor(
        groups, lr=config.lr, scale_parameter=False, relative_step=False, warmup_init=False
    )


def _prodigy(groups: Groups, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Mishchenko & Defazio 2023 (arXiv 2306.06101)."""
    from prodigyopt import Prodigy

    return Prodigy(
        groups,
        lr=config.lr,
        betas=_betas(config),
        beta3=config.prodigy_beta3 or None,
        eps=config.eps,
        d_coef=config.prodigy_d_coef,
        decouple=config.prodigy_decouple,
        use_bias_correction=config.prodigy_use_bias_correction,
        safeguard_warmup=config.prodigy_safeguard_warmup,
    )


def _lion(groups: Groups, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Chen et al. 2023 (arXiv 2302.06675)."""
    from pytorch_optimizer import Lion

    return Lion(groups, betas=_betas(config), weight_decouple=True)


def _came(groups: Groups, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Luo et al. 2023 (arXiv 2307.02047)."""
    from pytorch_optimizer import CAME

    return CAME(groups, betas=(config.beta1, config.beta2, 0.9999), weight_decouple=True)


def _schedule_free(groups: Groups, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Defazio et al. 2024 (arXiv 2405.15682). What is saved and sampled is its average, not the point where gradients are taken."""
    from schedulefree import AdamWScheduleFree

    optimizer = AdamWScheduleFree(groups, lr=config.lr, betas=_betas(config), eps=config.eps, foreach=False)
    optimizer.train()
    return optimizer


def _muon(groups: Groups, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Jordan et al. 2024 for the matrices of adapters (convolutions flattened), AdamW for vectors and tokens."""
    from pytorch_optimizer import Muon

    split = []
    for group in groups:
        for use in (True, False):
            members = [p for p in group["params"] if (p.ndim >= 2 and group["name"] != "embedding") == use]
            if members:
                split.append(
                    {**group, "params": members, "use_muon": use}
                    | ({} if use else {"betas": _betas(config), "eps": config.eps})
                )
    return Muon(split)


OPTIMIZERS: dict[str, Row] = {
    "adamw": Row(_adamw, flat=True),
    "adamw8bit": Row(_adamw8bit, package="bitsandbytes"),
    "adafactor": Row(_adafactor),
    "prodigy": Row(_prodigy, lr=1.0, beta2=0.99, package="prodigyopt", one_lr=True, flat=True, flattened=("s", "p0")),
    "lion": Row(_lion, lr=3e-5, beta2=0.99, package="pytorch-optimizer", module="pytorch_optimizer", flat=True),
    "came": Row(_came, package="pytorch-optimizer", module="pytorch_optimizer"),
    "schedule_free": Row(_schedule_free, lr=5e-4, package="schedulefree", flat=True),
    "muon": Row(_muon, lr=1e-3, package="pytorch-optimizer", module="pytorch_optimizer"),
}


def filled(config: TrainConfig) -> TrainConfig:
    """`config` with the optimizer's own learning rate and beta2 where they are 0."""
    o, row = config.optimizer, OPTIMIZERS[config.optimizer.name]
    return dataclasses.replace(config, optimizer=dataclasses.replace(o, lr=o.lr or row.lr, beta2=o.beta2 or row.beta2))


def check_installed(name: str) -> None:
    """Raises LoomError when the package an optimizer comes from is missing."""
    row = OPTIMIZERS[name]
    if row.package:
        try:
            importlib.import_module(row.module or row.package)
        except ImportError as error:
            raise LoomError(
                "optimizer.package_missing", field="optimizer.name", name=name, package=row.package
            ) from error


def make_optimizer(groups: Groups, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer for these groups. Raises LoomError when its package is missing or it cannot have the groups' learning rates."""
    row = OPTIMIZERS[config.name]
    check_installed(config.name)
    if row.one_lr and len({g["lr"] for g in groups}) > 1:
        rates = ", ".join(f"{g['name']} {g['lr']:g}" for g in groups)
        raise LoomError("optimizer.several_rates", field="optimizer", name=config.name, rates=rates)
    if row.flat and Flat.takes(groups):
        return Flat(groups, lambda flat: row.make(flat, config), row.flattened)
    return row.make(groups, config)


def pieces(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    """Everything that has a gradient, in as few tensors as it lies in."""
    if isinstance(optimizer, Flat):
        return optimizer.pieces()
    return [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


@contextlib.contextmanager
def gathering(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Around a backward pass of a step."""
    with optimizer.gathering() if isinstance(optimizer, Flat) else contextlib.nullcontext():
        yield


def gather(optimizer: torch.optim.Optimizer, everywhere: bool = False) -> None:
    """After the last pass of a step, before anybody looks at gradients. `everywhere`: a parameter without a gradient gets one of zero."""
    if isinstance(optimizer, Flat):
        optimizer.gather(everywhere)
    elif everywhere:
        for p in (p for group in optimizer.param_groups for p in group["params"]):
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad


def effective_lr(optimizer: torch.optim.Optimizer) -> float:
    """The learning rate of the model's group, or of the last where there is none: Prodigy's d * lr, else lr."""
    groups = optimizer.param_groups
    group = next((g for g in groups if g.get("name") == "model"), groups[-1])
    return float(group["lr"] * group.get("d", 1.0))


@contextlib.contextmanager
def averaged(optimizer: Any) -> Iterator[None]:
    """Inside, the weights are those to be used (schedule-free: the average); on exit exactly those the training goes on with."""
    if not hasattr(optimizer, "eval"):
        yield
        return
    params = [p for g in optimizer.param_groups for p in g["params"]]
    before = [p.detach().clone() for p in params]
    optimizer.eval()
    try:
        yield
    finally:
        optimizer.train()
        with torch.no_grad():  # going there and back rounds; the run must not depend on how often it was looked at
            for p, value in zip(params, before, strict=True):
                p.copy_(value)


@torch.no_grad()
def settle(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> None:
    """Makes the weights to be used the weights themselves, for a group that is frozen from now on."""
    with averaged(optimizer):
        values = [p.detach().clone() for p in group["params"]]
    for p, value in zip(group["params"], values, strict=True):
        p.copy_(value)
