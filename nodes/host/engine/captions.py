"""Captions through the host's CLIP: encoded once and kept, or anew with gradients while text encoders or tokens are trained."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import comfy.patcher_extension
import torch
from torch import nn

from ....lora_core.adapters import AdapterSet
from ....lora_core.adapters.tokens import TokenTable
from ....lora_core.backends.base import TEXT_VERSION, weights_checksum
from ....lora_core.borrowing.borrow import Borrowing, Measures
from ....lora_core.borrowing.frozen import place_of
from ....lora_core.data.batches import Batch
from ....lora_core.data.lengths import TextLength
from ....lora_core.data.shown import NOTHING, Shown
from ....lora_core.data.store import Memory, Store, key_of
from ....lora_core.messages.blame import blamed
from ....lora_core.messages.errors import LoomError
from .fingerprints import patched_fingerprint
from .kept import Kept
from .layers import LAYERS, is_linear
from .naming import text_file_names
from .shown import Sight, tokenized
from .texts import length_of, literal, packed, unpacked, wired
from .tokens import copies_vectors, for_training, tables, written
from .verify import TEXT, prove_layers

KEY = "lora_loom"  # of our injections in the host's models
MAX_CONDS_BYTES = 2**29  # of conditioning kept on the training device
MAX_TEXTS_BYTES = 2 * 2**30

Encoded = list[Any]  # as the host has it: [[hidden (1, L, width), {"pooled_output": …, …}], …]
Conds = dict[str, Any]  # the host's arguments for its model, by name


def injection(borrowing: Borrowing) -> comfy.patcher_extension.PatcherInjection:
    """The borrowing as the host puts it on and takes it off, whenever it loads, moves or unloads the model."""
    return comfy.patcher_extension.PatcherInjection(
        inject=lambda patcher: borrowing.inject(), eject=lambda patcher: borrowing.eject()
    )


class HostTexts:
    """A CLIP for a model of this family. `width`: of the text the model reads, where its configuration tells.

    `sight`: how it sees the control pictures of a caption; None where it does not.
    """

    def __init__(self, clip: Any, family: str, width: int | None, sight: Sight | None = None):
        self._clip, self._family, self._width, self._sight = clip, family, width, sight
        self._trained = AdapterSet({})
        self.reading: Callable[[], AbstractContextManager[None]] = (
            contextlib.nullcontext
        )  # around each encoding, where a host needs it
        self.copies_vectors = copies_vectors(clip)
        self._live_clip = clip  # while text is trained, a clone that carries the adapters and knows the tokens
        self._borrowing: Borrowing | None = None
        self._wired: dict[str, Encoded] = {}
        self._encoded: Kept[tuple[str, str], Encoded] = Kept(MAX_TEXTS_BYTES)  # by caption and what is shown
        # What a model gets for texts, by the model and what it depends on beside it; forgotten with them.
        self.conds: Kept[tuple[Hashable, ...], Conds] = Kept(MAX_CONDS_BYTES)
        self._store: Store = Memory()
        self._identity: tuple[int | str, ...] = ()  # of the text encoders, in the store

    # ---- what can be trained -----------------------------------------------------------------------------------------

    @functools.cached_property
    def names(self) -> Mapping[str, str]:
        """Path below the host's text model -> name in files, for every layer of encoders that can be trained."""
        return text_file_names(self._clip, self._family)

    def layers(self) -> Mapping[str, nn.Module]:
        modules = dict(self._clip.cond_stage_model.named_modules())
        return {path: modules[path] for path in self.names if is_linear(modules[path])}

    def token_tables(self) -> Mapping[str, TokenTable]:
        return {} if self.copies_vectors else tables(self._clip)

    @property
    def device(self) -> torch.device:
        """Where the text encoders run while they are trained."""
        return self._clip.patcher.load_device

    @property
    def clip_skip(self) -> int:
        """From which layer texts are read, from the end; a CLIP of another pack may not say."""
        return abs(getattr(self._clip, "layer_idx", None) or 1)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Read once a run: the weights are only lent, and a T5 takes seconds."""
        clip = self._clip
        options = (type(clip.tokenizer).__name__, clip.layer_idx, str(getattr(clip, "tokenizer_options", "")))
        return f"{patched_fingerprint(clip.patcher, clip.cond_stage_model, '', weights_checksum)} {options}"

    # ---- encoded once ------------------------------------------------------------------------------------------------

    def keep(self, store: Store) -> None:
        """From now on captions encoded ahead are looked up in `store` and kept there."""
        hooked = getattr(self._clip.patcher, "forced_hooks", None) is not None
        hooked = hooked or getattr(self._clip, "apply_hooks_to_conds", None) is not None
        self._store = store
        # What hooks do is not part of a fingerprint.
        self._identity = () if hooked else (TEXT_VERSION, self.fingerprint)

    def know(self, caption: str, file: Path) -> None:
        """Takes what stands for `caption` from a file of other nodes' conditioning. Raises LoomError."""
        self._wired[caption] = wired(file)

    def wired_for(self, captions: Sequence[str] = ()) -> list[Encoded | None]:
        """What other nodes encoded for each of `captions` (None where they did not), or all of it."""
        return [self._wired.get(caption) for caption in captions] if captions else list(self._wired.values())

    @property
    def any_wired(self) -> bool:
        return bool(self._wired)

    def literal(self, caption: str) -> str:
        """As the tokenizers of this CLIP read it as it stands. Raises LoomError."""
        with blamed("clip.failed", "clip"):
            return literal(caption, self._clip)

    def length(self, caption: str) -> TextLength:
        caption = self.literal(caption)
        with blamed("clip.failed", "clip"):
            return length_of(caption, self._clip)

    def encode_ahead(self, captions: Sequence[str], progress: Callable[[int, int], None]) -> None:
        """`progress(done, total)` is told before each caption, and when all are done."""
        for done, caption in enumerate(captions):
            progress(done, len(captions))
            self.text(self.literal(caption), keep=True)
        progress(len(captions), len(captions))

    def encode_shown_ahead(self, texts: Sequence[tuple[str, Shown]], progress: Callable[[int, int], None]) -> None:
        """The same for captions with the control pictures beside them."""
        for done, (caption, shown) in enumerate(texts):
            progress(done, len(texts))
            self.text(self.literal(caption), keep=True, shown=shown)
        progress(len(texts), len(texts))

    def learn(self, batch: Batch) -> bool:
        """Encodes those of its captions that are not known and will be asked for; whether there were any."""
        if self._trained.trains_text:
            return False
        pairs = zip(map(self.literal, batch.captions), batch.shown or [NOTHING] * len(batch.captions), strict=True)
        unknown = [
            (c, s) for c, s in pairs if c not in self._wired and (c, self._seen(s).identity) not in self._encoded
        ]
        for caption, shown in unknown:
            self.text(caption, shown=shown)
        return bool(unknown)

    def any_caption(self) -> str:
        """One that is encoded already, else the empty one."""
        return next((caption for caption, identity in self._encoded if not identity), "")

    def _seen(self, shown: Shown) -> Shown:
        """What of it the text encoder sees."""
        return shown if self._sight is not None and shown.pixels else NOTHING

    def forget(self) -> None:
        """Drops what was encoded and what the model got for it."""
        self._encoded.clear()
        self.conds.clear()

    def text(self, caption: str, keep: bool = False, shown: Shown = NOTHING) -> Encoded:
        """The caption encoded by the host itself, without gradients; known until text encoders or tokens are trained, with `keep` in the store.

        `shown`: control pictures, where the text encoder sees them. Raises LoomError for text of another width than the model reads.
        """
        if caption in self._wired:
            return self._wired[caption]
        shown = self._seen(shown)
        key = (caption, shown.identity)
        if self._trained.trains_text:
            return self._encode(caption, shown)
        if key in self._encoded:
            return self._encoded[key]
        if self._encoded.overfull:  # only captions that vary get here; start anew rather than grow without end
            self.forget()
        stored = self._stored(caption, shown) if keep and self._identity and not self._trained.changes_text else None
        encoded = stored or self._encode(caption, shown)
        width, expected = encoded[0][0].shape[-1], self._width
        if expected is not None and width != expected:
            raise LoomError("clip.width", field="clip", width=width, wanted=expected)
        size = 0 if stored else encoded[0][0].nbytes  # what is in the store is mapped from there
        return self._encoded.put(key, encoded, size)

    def _stored(self, caption: str, shown: Shown) -> Encoded | None:
        """The caption from the store, encoded and put there when it is new; None for what cannot be kept. (The file of an embedding may change.)"""
        if "embedding:" in caption:
            return None
        beside = [] if self._sight is None or not shown.identity else [self._sight.name, shown.identity]
        key = key_of("host text", *self._identity, caption, *beside)
        stored = self._store.get(key)
        if stored is not None:
            return unpacked(stored)
        tensors = packed(self._encode(caption, shown))
        return None if tensors is None else unpacked(self._store.put(key, tensors))

    def _encode(self, caption: str, shown: Shown = NOTHING) -> Encoded:
        with blamed("clip.failed", "clip"), torch.inference_mode(), self.reading():
            return self._live_clip.encode_from_tokens_scheduled(self._tokenized(caption, shown))

    def _tokenized(self, caption: str, shown: Shown = NOTHING) -> Any:
        if shown.identity and self._sight is not None:
            return tokenized(self._live_clip, written(caption, self._trained.tokens), shown.pixels, self._sight)
        return self._live_clip.tokenize(written(caption, self._trained.tokens))

    # ---- while text is trained ---------------------------------------------------------------------------------------

    @property
    def trained(self) -> bool:
        """Whether what texts are encoded to changes from step to step."""
        return self._trained.trains_text

    @property
    def live(self) -> bool:
        """Whether texts are encoded with gradients in this pass."""
        return self._trained.trains_text and torch.is_grad_enabled()

    @property
    def patchers(self) -> list[Any]:
        """The host's models that have to be loaded for texts in each step."""
        return [self._live_clip.patcher] if self._trained.trains_text else []

    @property
    def ready(self) -> bool:
        """Whether the adapters of the text encoders are on, where a step needs them."""
        return not self._trained.trains_text or self._borrowing is None or self._borrowing.installed

    def lend(self, adapters: AdapterSet, layers: Mapping[str, nn.Module]) -> None:
        """Takes in what a run trains; `layers` are those of its layers that are the text encoders'."""
        self._trained = adapters
        if not adapters.changes_text:
            self.text(self.any_caption())  # before the model is loaded: the text encoder might take its place
            return
        self.forget()
        self._live_clip = for_training(self._clip, adapters.tokens)
        encoders = self._clip.cond_stage_model
        self._borrowing = Borrowing(encoders, layers, adapters.only(layers), LAYERS, Measures())
        self._live_clip.patcher.set_injections(KEY, [injection(self._borrowing)])

    def set_aside(self) -> None:
        """Takes the adapters off until the host loads the text encoders again. Inside inference mode."""
        if self._borrowing is not None:
            self._live_clip.patcher.eject_model()
            self._borrowing.eject()

    def prove(self) -> None:
        """The self-test of the layers of text encoders that are trained; they are loaded. Raises LoomError."""
        if self._borrowing is None or not self._trained.trains_text:
            return
        self._borrowing.eject()
        prove_layers(self._clip.cond_stage_model, place_of(self.device, torch.float32), TEXT)
        self._borrowing.inject()

    def take_back(self) -> None:
        """Takes everything off again that `lend` put on."""
        if self._borrowing is not None:
            with torch.inference_mode():
                self._live_clip.patcher.eject_model()
                self._borrowing.eject()
                self._clip.cond_stage_model.reset_clip_options()
        if self._trained.changes_text:
            self._encoded.clear()
        self.conds.clear()
        self._borrowing, self._live_clip, self._trained = None, self._clip, AdapterSet({})

    def encode_live(self, caption: str) -> Encoded:
        """As the host encodes it (`CLIP.encode_from_tokens`), outside of inference mode, with gradients to adapters and tokens."""
        clip, encoder = self._live_clip, self._live_clip.cond_stage_model
        encoder.reset_clip_options()
        if clip.layer_idx is not None:
            encoder.set_clip_options({"layer": clip.layer_idx})
        encoder.set_clip_options({"execution_device": self.device})
        with blamed("clip.failed", "clip"), self.reading():
            hidden, pooled, *more = encoder.encode_token_weights(self._tokenized(caption))
        return [[hidden, {"pooled_output": pooled, **(more[0] if more else {})}]]
