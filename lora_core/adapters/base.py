"""The adapter contract, and the adapter of any kind, whose formulas stand in `algebra`."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from ..algebra.joint import Base, Factors
from ..algebra.kind import Acting, Kind, Parts, Shape
from ..algebra.walk import walk_of
from ..messages.errors import LoomError
from ..messages.message import Message, table
from ..rng import generator

Forward = Callable[..., torch.Tensor]
Choice = Callable[[torch.Tensor], Base | None]  # how to run a layer for this input; None: there is no way for it
Joined = Callable[[torch.Tensor], torch.Tensor | None]  # input -> output; None where there is no way
Copy = tuple[torch.Tensor, torch.Tensor]  # a tensor in the type of the pass, and the parameter it is a copy of
MODEL, TEXT_ENCODER, EMBEDDING = "model", "text_encoder", "embedding"  # the parts of a model that can be trained

Weight = Callable[
    [Any], AbstractContextManager[tuple[torch.Tensor, torch.Tensor | None]]
]  # layer -> (weight, bias), valid inside the block


@contextlib.contextmanager
def weight_of(layer: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    """The weight and bias of an ordinary layer."""
    yield layer.weight.detach(), None if layer.bias is None else layer.bias.detach()


def problem_of(error: ValueError) -> Message | str:
    """What a formula says of numbers it cannot take: the code of a message, or a sentence of the libraries below."""
    return Message.of(str(error)) if str(error) in table("en") else str(error)


@torch.no_grad()
def renew(copies: Sequence[Copy]) -> None:
    """Makes the copies what their parameters are now, all in one operation."""
    if copies:
        torch._foreach_copy_([copy for copy, _ in copies], [parameter for _, parameter in copies])


class Adapter(nn.Module):
    """What acts on one layer while it is attached. `scale` multiplies its change; `proportional`: every program agrees what half a strength is."""

    title: Message | str = ""
    scale: float = 1.0
    proportional: bool = True
    part: str = MODEL
    active: bool = True
    dropout: float = 0.0
    _dropout_seed: int = 0

    def around(self, base: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        """The layer's output for input `x` with this adapter, in the type the layer has; `base` is the layer's own forward."""
        raise NotImplementedError(f"{type(self).__name__} must say how it acts on a layer")

    def joint(self, choice: Choice) -> Joined | None:
        """The layer with this adapter as one node of autograd's graph, where there is such a form; `choice`: how the layer itself is run."""
        return None

    def prepare(self) -> None:
        """Called once when the base weights are at hand, before the first step."""

    def begin_run(self) -> None:
        """Called when there is an optimizer, which may have moved the parameters, and says where their gradients go."""

    def begin_pass(self) -> None:
        """Called before each forward pass. What is derived from the weights is made here: a recomputed block has to do just what it did."""

    def weights_changed(self) -> None:
        """Called when the parameters have other values: what was derived from them is out of date. (Fused optimizers do not count a tensor's version up.)"""
        renew(self.outdated())

    def outdated(self) -> list[Copy]:
        """Forgets what was derived from the parameters; returns the copies of them that have to be made anew."""
        return []

    def rescaled(self) -> None:
        """Called when `scale` has another value: what was derived with it is out of date."""

    def limit_norm(self, largest: float) -> None:
        """Scales a change above `largest` down."""

    def keep_bounds(self) -> None:
        """Brings parts that lie outside of what the settings allow back to the border."""

    def facts(self) -> dict[str, torch.Tensor]:
        """What a file says of this adapter beside its parameters."""
        return {}

    def learn(self, facts: Mapping[str, torch.Tensor]) -> None:
        """Takes over what `facts` said when it was saved."""

    def drop(self, x: torch.Tensor) -> torch.Tensor:
        """Dropout whose mask follows from the pass's seed, so a recomputed block draws the same mask."""
        if not (self.dropout and self.training and torch.is_grad_enabled()):
            return x
        rng = torch.Generator(x.device).manual_seed(self._dropout_seed)
        keep = torch.rand(x.shape, generator=rng, device=x.device) >= self.dropout
        return x * keep / (1 - self.dropout)


class KindAdapter(Adapter):
    """One adapter of a kind. Its parts are float32 parameters under the names that checkpoints have.

    `alpha` is what files hold: readers divide it by the rank. (Rank-stabilized, Kalajdzievski 2023, arXiv 2312.03732: alpha * sqrt(rank).)
    `start`: parts to begin with, by the names of the kind's formulas, in place of those that change nothing.
    """

    def __init__(
        self,
        kind: Kind,
        name: str,
        layer: Any,
        shape: Shape,
        seed: int,
        device: torch.device | str,
        weight: Weight = weight_of,
        start: Parts | None = None,
    ):
        super().__init__()
        self.kind, self.shape, self.dropout, self.walk = kind, shape, shape.dropout, walk_of(layer)
        self.title, self.proportional = kind.title, kind.proportional
        self._require(name)
        try:
            parts = (
                kind.start(shape, self.walk, generator(seed, "init", name))
                if start is None
                else kind.fitted(start, shape.weight)
            )
        except ValueError as error:
            raise LoomError(
                "adapter.layer_unfit", field="adapter.algorithm", kind=kind.name, layer=name, problem=problem_of(error)
            ) from error
        self._parameter = {part.name: part.parameter for part in kind.parts if part.name in parts}
        for part in kind.parts:
            if part.name in parts:
                value = (
                    parts[part.name].detach().to("cpu" if part.constant else device, torch.float32, copy=True)
                )  # a constant is read by Python
                if part.constant:
                    self.register_buffer(part.parameter, value)
                else:
                    self.register_parameter(part.parameter, nn.Parameter(value))
        self.rank = kind.rank(parts)
        alpha = shape.alpha * math.sqrt(self.rank) if shape.rank_stabilized and self.rank else shape.alpha
        self.scale = kind.scale(parts, alpha)
        self.alpha = kind.alpha(parts, self.scale)
        self._layer, self._weight = [layer], weight  # in a list, so the layer's own weights are not counted as ours
        self._kept: Parts = {}
        self._derived: Parts | None = None
        self._factors: Factors | None = None  # in the type of the last pass

    def _require(self, name: str) -> None:
        limit = self.kind.largest_rank(self.shape.weight)
        if limit is not None and self.shape.rank > limit:
            raise LoomError(
                "adapter.rank.too_large",
                field="adapter.rank",
                rank=self.shape.rank,
                layer=name,
                shape="x".join(map(str, self.shape.weight)),
                limit=limit,
            )

    def parts(self) -> dict[str, torch.Tensor]:
        """The parts as they are, by the names of the kind's formulas."""
        return {name: getattr(self, parameter) for name, parameter in self._parameter.items()}

    def around(self, base: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return self.kind.around(
            base,
            x,
            Acting(self.parts(), self.scale, self.shape.weight, self.walk, self._kept, self.derived(), self.drop),
        )

    def joint(self, choice: Choice) -> Joined | None:
        join = self.kind.joint(self.parts(), self.walk)
        if join is None:
            return None

        def forward(x: torch.Tensor) -> torch.Tensor | None:
            base = choice(x)
            if base is None or (self.dropout and self.training):
                return None
            factors = self._factors
            if factors is None or factors.down_here.dtype != x.dtype:
                factors = self._cast(x.dtype)
            return join(x, base, factors, self.scale)

        return forward

    def _cast(self, dtype: torch.dtype) -> Factors:
        """The factors, with copies in `dtype` where they have another; the copies last until the weights change."""
        parts = self.parts()
        copies = [parts[name].detach().to(dtype) for name in ("down", "up")]
        down, up = (parts[name] if parts[name].dtype == dtype else copy for name, copy in zip(("down", "up"), copies))
        sinks: Any = getattr(parts["down"], "sink", None), getattr(parts["up"], "sink", None)
        self._factors = Factors(parts["down"], parts["up"], down, up, None if None in sinks else sinks)
        return self._factors

    def outdated(self) -> list[Copy]:
        factors = self._factors
        if self._derived is not None:  # to set an attribute of a module is slow, and this is asked after every step
            self._derived = None
        if factors is None or factors.down_here is factors.down:
            return []
        return [(factors.down_here, factors.down), (factors.up_here, factors.up)]

    def rescaled(self) -> None:
        if self._derived is not None:
            self._derived = None

    def begin_run(self) -> None:
        self._factors = None

    @torch.no_grad()
    def prepare(self) -> None:
        if self.kind.keeps_base:
            with self._weight(self._layer[0]) as (weight, bias):
                kept = self.kind.kept(self.parts(), weight, bias)
            self._kept = {
                name: value.clone() for name, value in kept.items()
            }  # outside: a host lends its weights in inference mode
            self._set(self.kind.filled(self.parts(), self._kept))

    def derived(self) -> Parts:
        """What follows from the parts and the base weight; kept until the parts change."""
        if not self.kind.derives or not self._kept:
            return {}
        if self._derived is None:
            with torch.no_grad(), self._weight(self._layer[0]) as (weight, _):
                derived = self.kind.derived(self.parts(), self.scale, self._kept, weight)
            with torch.inference_mode(False):  # the next pass, of the same parts, may have gradients
                self._derived = {name: value.clone() for name, value in derived.items()}
        return self._derived

    def begin_pass(self) -> None:
        if self.kind.derives:
            self.derived()

    def delta_weight(self) -> torch.Tensor:
        """The change of the layer's weight, in its shape, float32; of a kind that needs the base weight, from that weight. (For DoRA without the rescaling.)"""
        if self.kind.needs_base and not self.kind.form:
            with self._weight(self._layer[0]) as (weight, _):
                return self.kind.delta(self.parts(), self.scale, self.shape.weight, weight)
        return self.kind.delta(self.parts(), self.scale, self.shape.weight)

    def squared_norm(self) -> torch.Tensor:
        """Of the change, as the kind measures it."""
        return self.kind.squared_norm(self.parts(), self.scale)

    @torch.no_grad()
    def limit_norm(self, largest: float) -> None:
        self._set(self.kind.limited(self.parts(), self.scale, largest))

    def keep_bounds(self) -> None:
        if type(self.kind).bounded is Kind.bounded:
            return
        with torch.no_grad():
            self._set(self.kind.bounded(self.parts(), self.shape))

    def _set(self, values: Parts) -> None:
        for name, value in values.items():
            getattr(self, self._parameter[name]).copy_(value)
        if values:
            self.weights_changed()

    def facts(self) -> dict[str, torch.Tensor]:
        """alpha, in float64 so that it comes back bit for bit, and parts that are not learnt."""
        alpha = {} if self.alpha is None else {"alpha": torch.tensor(self.alpha, dtype=torch.float64)}
        return alpha | {name: value.detach().to("cpu", copy=True) for name, value in self.named_buffers()}

    def learn(self, facts: Mapping[str, torch.Tensor]) -> None:
        if "alpha" in facts:
            self.scale = self.kind.scale(self.parts(), float(facts["alpha"]))
            self.alpha = self.kind.alpha(self.parts(), self.scale)
        for name, value in self.named_buffers():
            if name in facts:
                value.copy_(facts[name])
