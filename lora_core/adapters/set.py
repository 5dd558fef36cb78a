"""All adapters of one run, with its tokens: their parameters, their state, and at which strength they act."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import nn

from ..rng import derive
from .base import EMBEDDING, TEXT_ENCODER, Adapter, renew
from .tokens import TokenSet, TokenVectors


class AdapterSet:
    """All that a run trains: adapters by their layer's name in the file format, in sorted order on every backend, and tokens.

    `fixed`: adapters that act below them and learn nothing. They belong to no state and no file.
    """

    def __init__(
        self,
        members: Mapping[str, Adapter],
        tokens: TokenSet | None = None,
        fixed: Mapping[str, Adapter] | None = None,
    ):
        self._members = dict(sorted(members.items()))
        self.tokens = tokens or TokenSet()
        self.fixed = dict(sorted((fixed or {}).items()))

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[tuple[str, Adapter]]:
        return iter(self._members.items())

    def __getitem__(self, name: str) -> Adapter:
        return self._members[name]

    def only(self, names: Iterable[str]) -> AdapterSet:
        """The adapters of these layers, fixed ones too, without tokens."""
        chosen = list(names)
        return AdapterSet(
            {name: self._members[name] for name in chosen if name in self._members},
            fixed={name: self.fixed[name] for name in chosen if name in self.fixed},
        )

    def with_fixed(self, fixed: Mapping[str, Adapter]) -> AdapterSet:
        """The same above these, which learn nothing."""
        for adapter in fixed.values():
            adapter.requires_grad_(False)
        return AdapterSet(self._members, self.tokens, fixed)

    def by_layer(self) -> Iterator[tuple[str, Adapter | None, Adapter | None]]:
        """(layer's name, what is trained on it, what acts on it below that)."""
        for name in sorted({*self._members, *self.fixed}):
            yield name, self._members.get(name), self.fixed.get(name)

    def _acting(self) -> Iterator[Adapter]:
        yield from self._members.values()
        yield from self.fixed.values()

    def parameters(self) -> list[nn.Parameter]:
        return [p for _, p in self.named_parameters()]

    def entries(self) -> list[tuple[str, str, nn.Parameter]]:
        """(name, part, parameter) of everything trained: `<layer>.<parameter>`, then the tokens' as `token.<placeholder>.<encoder>`."""
        parameters = [(f"{name}.{key}", a.part, p) for name, a in self for key, p in a.named_parameters()]
        return parameters + [
            (f"token.{t.token.placeholder}.{encoder}", EMBEDDING, p)
            for t in self.tokens
            for encoder, p in t.vectors.items()
        ]

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, _, p in self.entries()]

    @property
    def changes_text(self) -> bool:
        """Whether texts are encoded differently with these adapters than without."""
        return bool(len(self.tokens)) or any(a.part == TEXT_ENCODER for _, a in self)

    @property
    def trains_text(self) -> bool:
        """Whether the encoding of texts is being trained right now, so it cannot be kept from one step to the next."""
        encoders = [a for a in self._members.values() if a.part == TEXT_ENCODER]
        return self.tokens.trained or any(p.requires_grad for a in encoders for p in a.parameters())

    def count(self) -> int:
        """Number of trained values."""
        return sum(p.numel() for p in self.parameters())

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Detached float32 copies on the CPU, keyed `<name>.<parameter>`, and what files say beside them (`facts`): `<name>.alpha`."""
        return {
            key: p.detach().to("cpu", torch.float32, copy=True) for key, p in self.named_parameters()
        } | self.facts()

    def facts(self) -> dict[str, torch.Tensor]:
        """`<name>.alpha` and other parts of files that are not trained."""
        return {f"{name}.{key}": value for name, adapter in self for key, value in adapter.facts().items()}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Copies every tensor in; the keys of what is trained must match exactly. Facts that `state` has go before those of the settings."""
        parameters, facts = dict(self.named_parameters()), self.facts().keys()
        missing, unknown = parameters.keys() - state.keys(), state.keys() - parameters.keys() - facts
        if missing or unknown:
            raise KeyError(
                f"adapter state does not fit: {len(missing)} missing, {len(unknown)} unknown, e.g. {next(iter(missing | unknown))}"
            )
        with torch.no_grad():
            for key, p in parameters.items():
                p.copy_(state[key])
        for name, adapter in self:
            adapter.learn({key: state[f"{name}.{key}"] for key in adapter.facts() if f"{name}.{key}" in state})
        self.weights_changed()

    def weights_changed(self) -> None:
        """Tells every adapter that its parameters have other values. Copies of them in another type are made anew all at once."""
        renew([copy for adapter in self._acting() for copy in adapter.outdated()])

    @contextlib.contextmanager
    def switched_off(self) -> Iterator[None]:
        """The base model as if nothing were attached; tokens as they started."""
        with _inactive([*self._acting(), *self.tokens]):
            yield

    def without_fixed(self) -> AbstractContextManager[None]:
        """The model with what is trained alone, as the result will act on it."""
        return _inactive([*self.fixed.values()])

    def without_trained(self) -> AbstractContextManager[None]:
        """The model as it was before training, what is fixed below included: tokens as they started."""
        return _inactive([*self._members.values(), *self.tokens])

    def left_out(self, names: Collection[str]) -> AbstractContextManager[None]:
        """The model without what is trained on these layers."""
        return _inactive([self._members[name] for name in names])

    @contextlib.contextmanager
    def at_strength(self, strength: float) -> Iterator[None]:
        """Every change times `strength`, of either sign; at 0 the base model as it is. A backward pass has to end inside, which may run blocks anew."""
        scales = {name: adapter.scale for name, adapter in self}
        try:
            self._scale({name: scale * strength for name, scale in scales.items()}, strength != 0)
            yield
        finally:
            self._scale(scales, True)

    def _scale(self, scales: Mapping[str, float], active: bool) -> None:
        for name, adapter in self:
            adapter.scale, adapter.active = scales[name], active
            adapter.rescaled()

    def prepare(self) -> None:
        """Lets every adapter look at the base weights, once, before the first step."""
        for adapter in self._acting():
            adapter.prepare()

    def begin_pass(self, seed: int, step: int, micro: int, stream: str = "") -> None:
        """Makes every adapter ready for a pass, and gives those with dropout their seed."""
        for name, adapter in self:
            adapter.begin_pass()
            if adapter.dropout:
                adapter._dropout_seed = derive(seed, step, micro, f"{stream}dropout", name)
        for adapter in self.fixed.values():
            adapter.begin_pass()


@contextlib.contextmanager
def _inactive(members: Sequence[Adapter | TokenVectors]) -> Iterator[None]:
    for member in members:
        member.active = False
    try:
        yield
    finally:
        for member in members:
            member.active = True
