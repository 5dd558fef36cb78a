"""Exponential moving average of everything trained: what is sampled, judged and saved is the average, while training goes on with the raw weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch

from ..adapters.set import AdapterSet

PREFIX = "ema."


class Ema:
    """shadow <- decay * shadow + (1 - decay) * weight after each step, with min(decay, (1 + step) / (10 + step)) for decay, as diffusers' EMAModel."""

    def __init__(self, adapters: AdapterSet, decay: float):
        self._adapters, self._decay = adapters, decay
        self._shadow: dict[str, torch.Tensor] = {}
        pairs: dict[int, tuple[torch.Tensor, torch.Tensor, torch.nn.Parameter]] = {}
        for name, p in adapters.named_parameters():
            slot = getattr(p, "slot", None)
            lying = (
                p.detach() if slot is None else slot.buffer.values
            )  # by itself, or in a buffer with others of its group, which are frozen together
            shadow, *_ = pairs.setdefault(id(lying), (lying.clone(), lying, p))
            self._shadow[name] = shadow if slot is None else slot.cut(shadow)
        self._pairs = list(pairs.values())

    def update(self, step: int) -> None:
        """After update number `step` (from 1)."""
        decay = min(self._decay, (1 + step) / (10 + step))
        pairs = [(shadow, values) for shadow, values, member in self._pairs if member.requires_grad]
        if pairs:
            torch._foreach_lerp_([shadow for shadow, _ in pairs], [values for _, values in pairs], 1 - decay)

    def settle(self, parameters: list[torch.nn.Parameter]) -> None:
        """Makes the average the weight itself, for parameters that are frozen from now on."""
        identities = {id(p) for p in parameters}
        with torch.no_grad():
            for name, p in self._adapters.named_parameters():
                if id(p) in identities:
                    p.copy_(self._shadow[name])

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the averages act; on exit exactly the raw weights."""
        raw = {name: p.detach().clone() for name, p in self._adapters.named_parameters()}
        self._copy(self._shadow)
        try:
            yield
        finally:
            self._copy(raw)

    def _copy(self, values: Mapping[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, p in self._adapters.named_parameters():
                p.copy_(values[name])

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {PREFIX + name: value.to("cpu", copy=True) for name, value in self._shadow.items()}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        for name, value in self._shadow.items():
            value.copy_(state[PREFIX + name])
