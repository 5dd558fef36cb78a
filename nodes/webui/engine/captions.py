"""Captions through a WebUI's text encoders: encoded once and kept, or anew with gradients while text encoders or tokens are trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import nn

from ....lora_core.adapters import AdapterSet
from ....lora_core.adapters.tokens import TokenTable
from ....lora_core.backends.base import TEXT_VERSION
from ....lora_core.data.lengths import TextLength
from ....lora_core.data.store import Memory, Store, key_of

MAX_TEXTS = 4000  # only captions that vary fill the memory; then it starts anew
Encoded = dict[str, torch.Tensor]  # crossattn (1, length, width); pooled (1, width) where the model reads one


class Encoders(Protocol):
    """The text encoders of one host."""

    def encode(self, caption: str, adapters: AdapterSet) -> Encoded:
        """A caption read as plain text, with the tokens of `adapters` put in; with gradients where the caller has them on."""

    def fingerprint(self) -> str:
        """Identifies everything `encode` depends on but tokens and adapters."""


class TextEncoders(Encoders, Protocol):
    """Those that can be trained as well."""

    @property
    def clip_skip(self) -> int | None:
        """From which layer captions are read, from the end; None for models that always read the same layers."""

    def length(self, caption: str) -> TextLength:
        """How much of a caption is read."""

    def layers(self) -> Mapping[str, nn.Module]:
        """`<encoder>.<path>` -> layer."""

    def modules(self) -> Sequence[nn.Module]:
        """What carries the layers."""

    def file_name(self, path: str) -> str:
        """What files call a layer."""

    def token_tables(self) -> Mapping[str, TokenTable]:
        """Input embeddings of each CLIP text encoder."""


class Captions:
    """What the network gets for captions."""

    def __init__(self, encoders: Encoders):
        self._encoders = encoders
        self._kept: dict[str, Encoded] = {}
        self._store: Store = Memory()
        self._trained = AdapterSet({})
        self._fingerprint = ""

    @property
    def fingerprint(self) -> str:
        """Read once a run: the weights are only lent."""
        self._fingerprint = self._fingerprint or self._encoders.fingerprint()
        return self._fingerprint

    def keep(self, store: Store) -> None:
        self._store = store

    def lend(self, adapters: AdapterSet) -> None:
        """Takes in what a run trains; with an empty set, takes it back."""
        if adapters.changes_text or self._trained.changes_text:
            self.forget()
        self._trained = adapters

    def forget(self) -> None:
        self._kept.clear()

    def encode_ahead(self, captions: Sequence[str], progress: Callable[[int, int], None]) -> None:
        """`progress(done, total)` is told before each caption, and when all are done."""
        for done, caption in enumerate(captions):
            progress(done, len(captions))
            if caption not in self._kept:
                key = key_of("webui text", TEXT_VERSION, self.fingerprint, caption)
                stored = self._store.get(key)
                self._kept[caption] = self._store.put(key, self._plain(caption)) if stored is None else stored
        progress(len(captions), len(captions))

    def of(self, caption: str) -> Encoded:
        """With gradients where text is trained and gradients are on."""
        if self._trained.trains_text:
            return self._encoders.encode(caption, self._trained) if torch.is_grad_enabled() else self._plain(caption)
        if caption not in self._kept:
            if len(self._kept) >= MAX_TEXTS:
                self._kept.clear()
            self._kept[caption] = self._plain(caption)
        return self._kept[caption]

    @torch.no_grad()
    def _plain(self, caption: str) -> Encoded:
        return {name: value.detach() for name, value in self._encoders.encode(caption, self._trained).items()}


def lengthened(text: torch.Tensor, length: int) -> torch.Tensor:
    """(1, length, width): as both hosts do when the texts of a batch differ in length, the last vector repeated."""
    missing = length - text.shape[1]
    return text if missing <= 0 else torch.cat([text, text[:, -1:].expand(-1, missing, -1)], 1)
