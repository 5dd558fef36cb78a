"""Parameter groups of a run: which learning rate and weight decay each part has, and after which step it is frozen."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..adapters.base import EMBEDDING, MODEL, TEXT_ENCODER
from ..adapters.set import AdapterSet
from ..algebra.kinds import UP_PARAMETERS
from ..config import TrainConfig
from ..matching.regex import Pattern
from ..messages.errors import LoomError
from ..messages.message import Message
from .flat import Flat


@dataclasses.dataclass(frozen=True)
class Part:
    """Settings of one part; `stop` is the number of steps after which it is frozen, None: never."""

    lr: float
    weight_decay: float
    stop: int | None


def parts(config: TrainConfig) -> dict[str, Part]:
    """The settings of each part, with 0 and -1 filled in."""
    o, t, e = config.optimizer, config.text_encoder, config.embedding
    return {
        MODEL: Part(o.lr, o.weight_decay, None),
        TEXT_ENCODER: Part(
            t.lr or o.lr, o.weight_decay if t.weight_decay < 0 else t.weight_decay, _stop(t.stop, config.steps)
        ),
        EMBEDDING: Part(e.lr or o.lr, e.weight_decay, _stop(e.stop, config.steps)),
    }


def _stop(share: float, steps: int) -> int | None:
    return None if share >= 1.0 else max(1, math.floor(share * steps))


def make_groups(config: TrainConfig, adapters: AdapterSet) -> list[dict[str, Any]]:
    """Groups for a torch optimizer: `params`, `lr`, `weight_decay`, and for the loop `name`, `base_lr` and `stop`. Their order is fixed."""
    settings, factors = parts(config), lines("adapter.layer_lr", config.adapter.layer_lr)
    groups: dict[str, dict[str, Any]] = {}
    for name, part, parameter in adapters.entries():
        factor = 1.0 if part == EMBEDDING else first_match(factors, name.rpartition(".")[0], 1.0)
        plus = (
            config.optimizer.lora_plus_ratio if part != EMBEDDING and name.rpartition(".")[2] in UP_PARAMETERS else 1.0
        )
        label = part + (f" x{factor:g}" if factor != 1.0 else "") + (" up" if plus != 1.0 else "")
        lr = settings[part].lr * factor * plus
        new = {
            "params": [],
            "name": label,
            "lr": lr,
            "base_lr": lr,
            "weight_decay": settings[part].weight_decay,
            "stop": settings[part].stop,
        }
        groups.setdefault(label, new)["params"].append(parameter)
    return [groups[label] for label in sorted(groups)]


def frozen_at(optimizer: torch.optim.Optimizer, step: int) -> list[dict[str, Any]]:
    """The groups whose time is over when update number `step` (from 0) begins."""
    return [g for g in optimizer.param_groups if g.get("stop") is not None and g["stop"] <= step]


def drop(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> None:
    """Takes a group out of the optimizer for good: no gradient, no state, no update. A learning rate of zero would not do.

    (Prodigy and others go on moving weights whose learning rate is zero; see Prodigy's `addcdiv_` with the global d * lr.)
    """
    for parameter in group["params"]:
        parameter.requires_grad_(False)
        parameter.grad = None
        optimizer.state.pop(parameter, None)
    if isinstance(optimizer, Flat):
        optimizer.drop(group)
    else:
        optimizer.param_groups[:] = [g for g in optimizer.param_groups if g is not group]


def lines(field: str, text: str) -> list[tuple[Pattern, float]]:
    """`pattern = number` per line. Raises LoomError for anything else."""
    out = []
    for line in filter(None, map(str.strip, text.splitlines())):
        pattern, _, number = line.rpartition("=")
        try:
            out.append((Pattern(pattern.strip(), _costly(field, line)), float(number)))
        except (re.error, ValueError) as error:
            raise LoomError("layer_rule.unreadable", field=field, line=repr(line)) from error
        if not pattern.strip() or not math.isfinite(out[-1][1]) or out[-1][1] < 0:
            raise LoomError("layer_rule.number", field=field, line=repr(line))
    return out


def _costly(field: str, line: str) -> Callable[[Message], LoomError]:
    return lambda why: LoomError("pattern.costly", field=field, pattern=repr(line), reason=why)


def first_match(rules: Sequence[tuple[Pattern, float]], name: str, default: float) -> float:
    """The number of the first rule whose pattern is found in `name`."""
    return next((value for pattern, value in rules if pattern.search(name)), default)


def unused(rules: Sequence[tuple[Pattern, float]], names: Sequence[str]) -> list[str]:
    """The patterns that match none of the names."""
    return [pattern.pattern for pattern, _ in rules if not any(map(pattern.search, names))]
