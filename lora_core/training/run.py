"""What a run is made of: adapters on a lent model, batches, probes, optimizer."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..adapters import AdapterSet
from ..backends.base import Backend
from ..config import TrainConfig
from ..data.batches import Batches
from ..messages.errors import NonFiniteError
from ..objectives import Objective
from ..optim.ema import PREFIX as EMA_PREFIX
from ..optim.ema import Ema
from ..optim.groups import drop
from ..optim.optimizers import averaged, settle
from ..processes import ALONE, World
from ..runs import checkpoints
from .validation import Probes

Start = dict[str, dict[str, torch.Tensor]]  # layer name -> what its adapter starts from: lora_down, lora_up, alpha, ...
MAX_SKIPPED = 20  # fp16 overflows in a row before the run gives up


@dataclasses.dataclass
class Run:
    """Everything a step needs. Built once by `train`."""

    config: TrainConfig
    backend: Backend
    adapters: AdapterSet
    batches: Batches
    objective: Objective
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: Ema | None = None
    prior: Batches | None = None
    probes: Probes | None = None
    skipped_in_a_row: int = 0
    mid_update: bool = False
    frozen: list[str] = dataclasses.field(default_factory=list)  # names of the groups whose time is over
    world: World = ALONE

    def parameters(self) -> list[nn.Parameter]:
        """What this step trains."""
        return [p for g in self.optimizer.param_groups for p in g["params"]]

    def sources(self) -> list[tuple[Batches, float, str]]:
        """(batches, weight of their loss, name of their random streams): the training pictures, and those of the class."""
        prior = [(self.prior, self.config.prior.weight, "class ")] if self.prior else []
        return [(self.batches, 1.0, ""), *prior]

    def freeze(self, groups: list[dict[str, Any]]) -> None:
        """Ends the training of these groups: their averages become their weights, which nothing changes any more."""
        for group in groups:
            if self.ema:
                self.ema.settle(group["params"])
            settle(self.optimizer, group)
            drop(self.optimizer, group)
            self.frozen.append(group["name"])
        if groups:
            self.adapters.weights_changed()
            self.backend.forget_texts()

    def after_update(self, step: int) -> None:
        """What follows update number `step` (from 0) directly: limits on the weights, and the moving average."""
        self.adapters.weights_changed()
        for _, adapter in self.adapters:
            adapter.keep_bounds()
        if self.config.adapter.max_norm:
            for _, adapter in self.adapters:
                adapter.limit_norm(self.config.adapter.max_norm)
        if self.config.embedding.keep_norm:
            for token in self.adapters.tokens:
                token.pull_back_norm()
        if self.ema:
            self.ema.update(step + 1)

    def restore(self, checkpoint: checkpoints.Checkpoint) -> None:
        """Puts everything to where it was when the checkpoint was saved."""
        own = {k: v for k, v in checkpoint.adapter.items() if not k.startswith(EMA_PREFIX)}
        self.adapters.load_state_dict(own)
        if self.ema:
            self.ema.load_state_dict(checkpoint.adapter)
        self.frozen = list(checkpoint.facts.get("frozen", []))
        for group in [g for g in self.optimizer.param_groups if g["name"] in self.frozen]:
            drop(self.optimizer, group)
        stops = {g["name"]: g["stop"] for g in self.optimizer.param_groups}
        self.optimizer.load_state_dict(checkpoint.optimizer)
        for group in self.optimizer.param_groups:
            group["stop"] = stops[group["name"]]  # a continued run may have another number of steps
        self.scaler.load_state_dict(checkpoint.facts["scaler"])
        self.skipped_in_a_row = checkpoint.facts["skipped_in_a_row"]

    @contextlib.contextmanager
    def finished_weights(self) -> Iterator[None]:
        """Inside, the weights are those to sample with and to save; on exit exactly those to go on with."""
        try:
            with averaged(self.optimizer), self.ema.in_place() if self.ema else contextlib.nullcontext():
                self.adapters.weights_changed()
                yield
        finally:
            self.adapters.weights_changed()

    @contextlib.contextmanager
    def updating(self) -> Iterator[None]:
        """Marks the moment in which the adapters lie between two steps; stays marked when the update fails."""
        self.mid_update = True
        yield
        self.mid_update = False

    def check_finite(self, grad_norm: torch.Tensor, losses: torch.Tensor, step: int, pictures: list[str]) -> tuple[float, float, float]:
        """(grad_norm, loss, class loss) as floats. Raises NonFiniteError naming step and pictures; an fp16 gradient overflow is allowed a few times."""
        norm_value, *both = torch.cat([grad_norm.to(losses).view(1), losses]).tolist()
        loss_value = sum(both)
        finite = math.isfinite(norm_value) and math.isfinite(loss_value)
        overflow = self.scaler.is_enabled() and math.isfinite(loss_value) and not finite
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if overflow else 0
        if finite or (overflow and self.skipped_in_a_row <= MAX_SKIPPED):
            return norm_value, both[0], both[1]
        weight = self.backend.find_non_finite()
        if weight:
            raise NonFiniteError(f"The base model is damaged: weight {weight} is not finite; load another file of it. Step {step + 1} was not made.")
        raise NonFiniteError(
            f"Step {step + 1}: loss {loss_value}, gradient norm {norm_value} with {', '.join(dict.fromkeys(pictures))}; the run stopped before "
            "the weights moved. Lower optimizer.lr, or use a base model in bf16 or fp32."
        )


@dataclasses.dataclass(frozen=True)
class Material:
    """What is at hand before the model is lent: layers and adapters, encoded pictures, the objective."""

    config: TrainConfig
    layers: dict[str, nn.Module]
    adapters: AdapterSet
    objective: Objective
    batches: Batches
    prior: Batches | None
    probes: Probes | None

    def all_batches(self) -> list[Batches]:
        return [self.batches, *([self.prior] if self.prior else [])]

    def largest(self) -> tuple[int, ...]:
        """Shape of the largest latent without batch, of training and class pictures."""
        return max((b.shapes()[0] for b in self.all_batches()), key=math.prod)


