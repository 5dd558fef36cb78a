"""The adapter contract, the set of adapters of one run, and how an adapter is hung onto a module and taken off again."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn

from ..rng import derive
from .tokens import TokenSet

Forward = Callable[..., torch.Tensor]
MODEL, TEXT_ENCODER, EMBEDDING = "model", "text_encoder", "embedding"  # the parts of a model that can be trained


CONVS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


def conv_settings(layer: Any) -> dict[str, Any]:
    """How a convolution layer walks over its input, as the functions of CONVS take it."""
    return dict(stride=layer.stride, padding=layer.padding, dilation=layer.dilation)


@dataclasses.dataclass(frozen=True)
class Shape:
    """Of one adapter: the layer's weight (out, in, *kernel), rank, alpha, dropout, how it starts. Scale is alpha / rank, rank-stabilized alpha / sqrt(rank)."""

    weight: tuple[int, ...]
    rank: int
    alpha: float
    dropout: float = 0.0
    init: str = "kaiming"
    rank_stabilized: bool = False
    dora_axis: str = "input"
    lokr_factor: int = 0
    lokr_split: tuple[int, int] | None = None  # (a, b) of lokr_w1, where an earlier LoKr says it
    lokr_full: bool | None = None  # whether lokr_w2 is one full matrix, where an earlier LoKr says it


Weight = Callable[[Any], AbstractContextManager[tuple[torch.Tensor, torch.Tensor | None]]]  # layer -> (weight, bias), valid inside the block


@contextlib.contextmanager
def weight_of(layer: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    """The weight and bias of an ordinary layer."""
    yield layer.weight.detach(), None if layer.bias is None else layer.bias.detach()


class Adapter(nn.Module):
    """A delta for one Linear or Conv layer, added to the layer's output as a branch. Parameters are float32, named as files name them.

    `alpha` is what files hold: readers divide it by the rank. (Rank-stabilized, Kalajdzievski 2023, arXiv 2312.03732: alpha * sqrt(rank).)
    """

    part: str = MODEL
    active: bool = True
    _dropout_seed: int = 0

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape, self.rank, self.dropout = shape, shape.rank, shape.dropout
        self.alpha = shape.alpha * math.sqrt(shape.rank) if shape.rank_stabilized else shape.alpha
        self.scale = self.alpha / shape.rank

    def add_to(self, out: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """`out` plus this adapter's delta for input `x`, in out's dtype; both as the layer's forward sees and returns them."""
        raise NotImplementedError(f"{type(self).__name__} must say how it adds to a layer")

    def before(self, x: torch.Tensor) -> torch.Tensor:
        """What the layer gets instead of its input `x`."""
        return x

    def prepare(self) -> None:
        """Called once when the base weights are at hand, before the first step."""

    def begin_pass(self) -> None:
        """Called before each forward pass. What is derived from the weights is made here: a recomputed block has to do just what it did."""

    def weights_changed(self) -> None:
        """Called when the parameters have other values: what was derived from them is out of date. (Fused optimizers do not count a tensor's version up.)"""

    def delta_weight(self) -> torch.Tensor:
        """The change of the layer's weight, in its shape, float32. (For DoRA without the rescaling of rows.)"""
        raise NotImplementedError(f"{type(self).__name__} must give its delta")

    def squared_norm(self) -> torch.Tensor:
        """Of `delta_weight`."""
        return self.delta_weight().square().sum()

    @torch.no_grad()
    def limit_norm(self, largest: float) -> None:
        """Scales the factors down where the update's norm is above `largest`, each by the same factor (kohya's scale_weight_norms)."""
        own = [p for name, p in self.named_parameters() if name != "dora_scale"]
        norm = self.squared_norm().clamp_min(0).sqrt()
        for p in own:
            p.mul_((largest / norm.clamp_min(largest)) ** (1 / len(own)))
        self.weights_changed()

    def drop(self, x: torch.Tensor) -> torch.Tensor:
        """Dropout whose mask follows from the pass's seed, so a recomputed block draws the same mask."""
        if not (self.dropout and self.training and torch.is_grad_enabled()):
            return x
        rng = torch.Generator(x.device).manual_seed(self._dropout_seed)
        keep = torch.rand(x.shape, generator=rng, device=x.device) >= self.dropout
        return x * keep / (1 - self.dropout)


class DenseAdapter(Adapter):
    """An adapter whose update has no cheap product with the input. The dense update is made anew in the backward pass instead of being kept."""

    def __init__(self, shape: Shape, layer: Any):
        super().__init__(shape)
        self._conv = conv_settings(layer) if len(shape.weight) > 2 else None

    def add_to(self, out: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        x = self.drop(x)
        if not torch.is_grad_enabled():
            return out + self._change(x)
        return out + torch.utils.checkpoint.checkpoint(self._change, x, use_reentrant=False, preserve_rng_state=False)

    def _change(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.delta_weight().to(x.dtype)
        if self._conv is None:
            return F.linear(x, weight)
        return CONVS[weight.ndim](x, weight, **self._conv)


class AdapterSet:
    """All that a run trains: adapters by their layer's name in the file format, in sorted order on every backend, and tokens."""

    def __init__(self, members: Mapping[str, Adapter], tokens: TokenSet | None = None):
        self._members = dict(sorted(members.items()))
        self.tokens = tokens or TokenSet()

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[tuple[str, Adapter]]:
        return iter(self._members.items())

    def __getitem__(self, name: str) -> Adapter:
        return self._members[name]

    def only(self, names: Iterable[str]) -> AdapterSet:
        """The adapters of these layers, without tokens."""
        return AdapterSet({name: self._members[name] for name in names})

    def parameters(self) -> list[nn.Parameter]:
        return [p for _, p in self.named_parameters()]

    def entries(self) -> list[tuple[str, str, nn.Parameter]]:
        """(name, part, parameter) of everything trained: `<layer>.<parameter>`, then the tokens' as `token.<placeholder>.<encoder>`."""
        own = [(f"{name}.{key}", a.part, p) for name, a in self for key, p in a.named_parameters()]
        return own + [(f"token.{t.token.placeholder}.{encoder}", EMBEDDING, p) for t in self.tokens for encoder, p in t.vectors.items()]

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, _, p in self.entries()]

    @property
    def changes_text(self) -> bool:
        """Whether texts are encoded differently with these adapters than without."""
        return bool(len(self.tokens)) or any(a.part == TEXT_ENCODER for _, a in self)

    @property
    def trains_text(self) -> bool:
        """Whether the encoding of texts is being trained right now, so it cannot be kept from one step to the next."""
        return self.tokens.trained or any(a.part == TEXT_ENCODER and p.requires_grad for _, a in self for p in a.parameters())

    def count(self) -> int:
        """Number of trained values."""
        return sum(p.numel() for p in self.parameters())

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Detached float32 copies on the CPU, keyed `<name>.<parameter>`."""
        return {key: p.detach().to("cpu", torch.float32, copy=True) for key, p in self.named_parameters()}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Copies every tensor in; the keys must match exactly."""
        own = dict(self.named_parameters())
        missing, unknown = own.keys() - state.keys(), state.keys() - own.keys()
        if missing or unknown:
            raise KeyError(f"adapter state does not fit: {len(missing)} missing, {len(unknown)} unknown, e.g. {next(iter(missing | unknown))}")
        with torch.no_grad():
            for key, p in own.items():
                p.copy_(state[key])
        self.weights_changed()

    def weights_changed(self) -> None:
        """Tells every adapter that its parameters have other values."""
        for _, adapter in self:
            adapter.weights_changed()

    @contextlib.contextmanager
    def switched_off(self) -> Iterator[None]:
        """The base model as if nothing were attached; tokens as they started."""
        members = [*(a for _, a in self), *self.tokens]
        for member in members:
            member.active = False
        try:
            yield
        finally:
            for member in members:
                member.active = True

    def prepare(self) -> None:
        """Lets every adapter look at the base weights, once, before the first step."""
        for _, adapter in self:
            adapter.prepare()

    def begin_pass(self, seed: int, step: int, micro: int, stream: str = "") -> None:
        """Makes every adapter ready for a pass, and gives those with dropout their seed."""
        for name, adapter in self:
            adapter.begin_pass()
            if adapter.dropout:
                adapter._dropout_seed = derive(seed, step, micro, f"{stream}dropout", name)


@contextlib.contextmanager
def attach(layers: Mapping[str, nn.Module], adapters: AdapterSet, base_forward: Callable[[nn.Module], Forward] | None = None) -> Iterator[None]:
    """Adds each adapter's branch to the layer of the same name by overriding the instance's forward; takes it off again on exit.

    The module tree and its state dict stay as they are. `base_forward` may wrap what computes the frozen part.
    """
    with contextlib.ExitStack() as undo:
        for name, adapter in adapters:
            layer = layers[name]
            undo.enter_context(override_forward(layer, branch(base_forward(layer) if base_forward else layer.forward, adapter)))
        yield


def branch(base: Forward, adapter: Adapter) -> Forward:
    """Forward that adds `adapter`'s delta to `base`'s output."""

    def forward(x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        if not adapter.active:
            return base(x, *args, **kwargs)
        x = adapter.before(x)
        return adapter.add_to(base(x, *args, **kwargs), x)

    return forward


def override_forward(module: nn.Module, forward: Forward) -> AbstractContextManager[None]:
    """Replaces `module.forward` on the instance and puts back exactly what was there."""
    return override(module, "forward", forward)


@contextlib.contextmanager
def override(instance: Any, name: str, value: Any) -> Iterator[None]:
    """Shadows an attribute on the instance alone; on exit the instance has again just what it had of its own."""
    own = instance.__dict__
    had, before = name in own, own.get(name)
    own[name] = value
    try:
        yield
    finally:
        if had:
            own[name] = before
        else:
            own.pop(name, None)
