"""What a run is made of: adapters on a lent model, sources of pictures, probes, optimizer; and what surrounds the formula of a step."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import nn

from .. import compat
from ..adapters import AdapterSet
from ..backends.base import Backend
from ..backends.base_model import BaseModel
from ..config import TrainConfig
from ..data.batches import Batch, Batches, Feed
from ..messages.errors import NonFiniteError
from ..objectives import Objective
from ..optim.ema import PREFIX as EMA_PREFIX
from ..optim.ema import Ema
from ..optim.groups import drop
from ..optim.optimizers import averaged, gather, gathering, pieces, settle
from ..processes import ALONE, Processes
from ..runs import checkpoints
from .concepts import ConceptProbes
from .validation import Probes

Start = dict[str, dict[str, torch.Tensor]]  # layer name -> what its adapter starts from: lora_down, lora_up, alpha, ...
MAX_SKIPPED = 20  # fp16 overflows in a row before the run gives up


class Lesson(Protocol):
    """What is learned of a batch other than to draw its pictures by their captions."""

    def captions(self, drawn: Sequence[str]) -> list[str]:
        """What the model is asked with, where the batches come with the captions `drawn`."""

    def losses(self, run: Run, objective: Objective, batch: Batch, rng: torch.Generator) -> Iterator[torch.Tensor]:
        """Weighted float32 losses (B,), which add up; `objective`: the one of this step.

        Each has to be gone back through before the next is asked for: adapters act as it needs them.
        """


@dataclasses.dataclass(frozen=True)
class Source:
    """What every step learns from: batches, the weight of their loss, what the names of their random streams begin with, and what is learned of them.

    Without a `lesson` that is to draw the pictures by their captions.
    """

    batches: Feed
    weight: float = 1.0
    stream: str = ""
    lesson: Lesson | None = None


@dataclasses.dataclass(frozen=True)
class Material:
    """What is at hand before the model is lent: layers and adapters, the objective, encoded pictures. `sources`: of training, then those of the class."""

    config: TrainConfig
    backend: Backend
    base: BaseModel
    layers: dict[str, nn.Module]
    adapters: AdapterSet
    objective: Objective
    sources: Sequence[Source]
    probes: Probes | None = None
    processes: Processes = ALONE
    concepts: ConceptProbes | None = None
    fixed: dict[str, Any] | None = None  # of the LoRA that acts in training alone: its file, sha256, strength

    def with_config(self, config: TrainConfig) -> Material:
        """The same under another batch size."""
        sources = [dataclasses.replace(s, batches=s.batches.with_sizes(config)) for s in self.sources]
        return dataclasses.replace(self, config=config, sources=sources)

    def largest(self) -> tuple[int, ...]:
        """Shape of the largest latent of all sources, without batch."""
        return max((source.batches.shapes()[0] for source in self.sources), key=math.prod)

    def lent(self, shape: tuple[int, ...]) -> AbstractContextManager[None]:
        """The model with the adapters on, ready for batches of latents of this shape (without batch)."""
        return self.backend.training(
            self.layers, self.adapters, self.config.recomputed, (self.config.batch_size, *shape)
        )


@dataclasses.dataclass
class Run:
    """Everything a step needs, and how far the run is between two steps."""

    material: Material
    optimizer: torch.optim.Optimizer
    scaler: compat.GradScaler
    ema: Ema | None = None
    skipped_in_a_row: int = 0
    mid_update: bool = False
    frozen: list[str] = dataclasses.field(default_factory=list)  # names of the groups whose time is over
    untouched: set[str] = dataclasses.field(default_factory=set)  # layers and tokens that never had a gradient
    # Names of untouched ones that may have a gradient in this step, and the largest value of each.
    _looked_for: tuple[list[str], list[torch.Tensor]] = dataclasses.field(default=([], []), init=False)

    def __post_init__(self) -> None:
        self.untouched |= {name for name, _ in self.adapters} | {t.token.placeholder for t in self.adapters.tokens}
        for _, adapter in self.adapters:
            adapter.begin_run()

    @property
    def config(self) -> TrainConfig:
        return self.material.config

    @property
    def backend(self) -> Backend:
        return self.material.backend

    @property
    def adapters(self) -> AdapterSet:
        return self.material.adapters

    @property
    def objective(self) -> Objective:
        return self.material.objective

    @property
    def sources(self) -> Sequence[Source]:
        return self.material.sources

    @property
    def batches(self) -> Feed:
        """Those of the training pictures."""
        return self.sources[0].batches

    @property
    def class_batches(self) -> Feed | None:
        """Those of the class pictures, or what stands in for them; None without prior preservation."""
        return self.sources[1].batches if len(self.sources) > 1 else None

    @property
    def processes(self) -> Processes:
        return self.material.processes

    def probes(self) -> Probes:
        """Fixed measurements: those of validation, without it of training pictures alone."""
        if self.material.probes is not None:
            return self.material.probes
        assert isinstance(self.batches, Batches)  # a run without pictures is asked for none
        return Probes(self.config, self.batches.cache, None)

    def parameters(self) -> list[nn.Parameter]:
        """What this step trains."""
        return [p for g in self.optimizer.param_groups for p in g["params"]]

    def begin_pass(self, source: Source, step: int, micro: int) -> None:
        """Makes the adapters ready for a pass; dropout differs between sources and processes."""
        self.adapters.begin_pass(self.config.seed, step, micro, f"{source.stream}{self.processes.rank or ''}")

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradients of a loss. Captions without the token have nothing to teach an embedding: their loss leads nowhere."""
        if loss.requires_grad or len(self.adapters):
            with gathering(self.optimizer):
                self.scaler.scale(loss).backward()

    def gather(self, losses: torch.Tensor) -> bool:
        """Makes `losses` and all gradients the means over the processes, unscaled. False when no process has a gradient to give an embedding."""
        self.processes.average([losses])
        if not len(self.adapters) and not self.processes.any(any(p.grad is not None for p in self.parameters())):
            return False
        several = self.processes.size > 1  # which all have to give the same gradients
        gather(self.optimizer, everywhere=several)
        if several:
            self.processes.average([p.grad for p in pieces(self.optimizer) if p.grad is not None])
        self._look_for_gradients()
        self.scaler.unscale_(self.optimizer)
        return True

    def _look_for_gradients(self) -> None:
        """Has the gradients of the untouched layers and tokens measured; `check_finite` reads what it finds with the rest, in the step's one wait."""
        members = dict(self.adapters) | {token.token.placeholder: token for token in self.adapters.tokens}
        parameters = [(name, p) for name in sorted(self.untouched) for p in members[name].parameters()]
        gradients = [p.grad for _, p in parameters if p.grad is not None]
        names = [name for name, p in parameters if p.grad is not None]
        norms = torch._foreach_norm(gradients, math.inf) if gradients else []
        self._looked_for = names, [norm.view(1) for norm in norms]

    def untouched_layers(self) -> list[str]:
        """Names of the layers among the untouched: they are as they began, and change nothing."""
        return [name for name, _ in self.adapters if name in self.untouched]

    def update(self, step: int) -> None:
        """Moves the weights, and drops the gradients."""
        with self._updating():
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self._after_update(step)
        self.optimizer.zero_grad(set_to_none=True)

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

    def _after_update(self, step: int) -> None:
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
        weights = {k: v for k, v in checkpoint.adapter.items() if not k.startswith(EMA_PREFIX)}
        self.adapters.load_state_dict(weights)
        if self.ema:
            self.ema.load_state_dict(checkpoint.adapter)
        self.frozen = list(checkpoint.facts.get("frozen", []))
        self.untouched &= set(checkpoint.facts.get("untouched", []))  # 0.1.0 did not keep them
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
    def _updating(self) -> Iterator[None]:
        """Marks the moment in which the adapters lie between two steps; stays marked when the update fails."""
        self.mid_update = True
        yield
        self.mid_update = False

    def check_finite(
        self, losses: torch.Tensor, grad_norm: torch.Tensor, step: int, pictures: list[str]
    ) -> tuple[float, float, float]:
        """(loss, class loss, gradient norm) as floats. Raises NonFiniteError naming step and pictures; an fp16 gradient overflow is allowed a few times."""
        names, largest = self._looked_for
        figures = torch.cat([losses, *(value.to(losses).view(1) for value in (grad_norm, *largest))])
        loss, class_loss, norm_value, *peaks = figures.tolist()
        self.untouched -= {name for name, value in zip(names, peaks, strict=True) if value != 0}
        loss_value = loss + class_loss
        finite = math.isfinite(norm_value) and math.isfinite(loss_value)
        overflow = self.scaler.is_enabled() and math.isfinite(loss_value) and not finite
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if overflow else 0
        if finite or (overflow and self.skipped_in_a_row <= MAX_SKIPPED):
            return loss, class_loss, norm_value
        weight = self.backend.find_non_finite()
        if weight:
            raise NonFiniteError("base.damaged", weight=weight, step=step + 1)
        raise NonFiniteError(
            "step.not_finite", step=step + 1, loss=loss_value, norm=norm_value, pictures=dict.fromkeys(pictures)
        )
