"""Forge's text encoders: captions as plain text, their layers by the names of files, trained tokens by its rule for embeddings."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from backend import memory_management
from backend.text_processing.textual_inversion import Embedding
from modules import shared
from torch import nn

from ....lora_core.adapters import AdapterSet
from ....lora_core.adapters.tokens import TokenSet, TokenTable, TokenVectors
from ....lora_core.backends.base import TRAINING_GUIDANCE, weights_checksum
from ....lora_core.borrowing.aliases import replaced
from ....lora_core.data.lengths import TextLength
from .captions import Encoded
from .tokens import lookup_of, token_table, with_others, written

ENGINES = {  # the host's attribute -> the encoder's name everywhere
    "text_processing_engine": "",
    "text_processing_engine_l": "clip_l",
    "text_processing_engine_g": "clip_g",
    "text_processing_engine_t5": "t5xxl",
}
_KOHYA = {
    "sd1": {"clip_l": "lora_te_"},
    "sd2": {"clip_h": "lora_te_"},
    "sdxl": {"clip_l": "lora_te1_", "clip_g": "lora_te2_"},
    "flux1": {"clip_l": "lora_te1_"},
}
WINDOW = 75


class ForgeTexts:
    """Of `model`, the host's engine for a family. `is_linear`: which modules of the encoders count as layers."""

    def __init__(self, model: Any, family: str, is_linear: Callable[[nn.Module], bool]):
        self._model, self._family, self._is_linear = model, family.removesuffix("-v"), is_linear
        encoders = {name: getattr(model, attribute, None) for attribute, name in ENGINES.items()}
        self.engines = {name or engine.embedding_key: engine for name, engine in encoders.items() if engine is not None}
        self._skip = int(shared.opts.CLIP_stop_at_last_layers)  # the engines hear of it with the next picture only

    @property
    def _clips(self) -> dict[str, Any]:
        """The encoders that read in windows and know embeddings."""
        return {name: engine for name, engine in self.engines.items() if hasattr(engine, "embeddings")}

    def load(self) -> None:
        memory_management.load_model_gpu(self._model.forge_objects.clip.patcher)

    # ---- captions ----------------------------------------------------------------------------------------------------

    @property
    def clip_skip(self) -> int | None:
        """For SDXL and Flux, of whose texts other layers are read at once, there is none to name."""
        return self._skip if self._family in ("sd1", "sd2") else None

    def encode(self, caption: str, adapters: AdapterSet) -> Encoded:
        live = torch.is_grad_enabled() and adapters.trains_text
        if not live:
            self.load()
        with self.plain(adapters.tokens), contextlib.nullcontext() if live else torch.inference_mode():
            encoded = self._encode(written(caption, adapters.tokens))
        return encoded if live else {name: value.clone() for name, value in encoded.items()}

    def _encode(self, text: str) -> Encoded:
        """What the host's `get_learned_conditioning` makes of the text alone, which only runs without gradients."""
        made = {name: engine([text]) for name, engine in self.engines.items()}
        if self._family == "sdxl":
            (cross_g, pooled), cross_l = made["clip_g"], made["clip_l"]
            return {"crossattn": torch.cat([cross_l, cross_g], 2), "pooled": pooled}
        if self._family == "flux1":
            encoded = {"crossattn": made["t5xxl"], "pooled": made["clip_l"][1]}
            if self._model.use_distilled_cfg_scale:
                encoded["guidance"] = torch.full((1,), TRAINING_GUIDANCE)
            return encoded
        return {"crossattn": next(iter(made.values()))}

    @contextlib.contextmanager
    def plain(self, tokens: TokenSet) -> Iterator[None]:
        """Captions are text: parentheses mean nothing, and no embedding but those of `tokens` takes the place of a word."""
        data = shared.opts.data
        before = {"emphasis": data["emphasis"]} if "emphasis" in data else {}
        with contextlib.ExitStack() as undo:
            for name, engine in self._clips.items():
                undo.enter_context(replaced(engine.embeddings, "ids_lookup", self._lookup(name, tokens)))
                undo.enter_context(replaced(engine, "clip_skip", self._skip))
            data["emphasis"] = "None"
            try:
                yield
            finally:
                data.pop("emphasis")
                data.update(before)

    @contextlib.contextmanager
    def known(self, tokens: TokenSet) -> Iterator[None]:
        """Inside, prompts may name `tokens` beside the embeddings the host knows."""
        with contextlib.ExitStack() as undo:
            for name, engine in self._clips.items():
                table = with_others(self._lookup(name, tokens), engine.embeddings.ids_lookup)
                undo.enter_context(replaced(engine.embeddings, "ids_lookup", table))
            yield

    def _lookup(self, encoder: str, tokens: TokenSet) -> dict[int, list[tuple[list[int], Any]]]:
        def embedding(token: TokenVectors, name: str) -> Embedding:
            made = Embedding(token.of(encoder), name)
            made.vectors, made.shape = token.token.vectors, 0
            return made

        return lookup_of(tokens, _ids(self.engines[encoder]), embedding)

    def length(self, caption: str) -> TextLength:
        with self.plain(TokenSet()):
            chunks, tokens = next(iter(self._clips.values())).process_texts([caption])
        return TextLength(tokens, len(chunks[0]), 0, WINDOW)

    def fingerprint(self) -> str:
        with torch.inference_mode():
            weights = [weights_checksum(module) for module in self.modules()]
        return " ".join(["Forge", *weights, *(str(self._skip) for _ in self._clips)])

    # ---- what can be trained -----------------------------------------------------------------------------------------

    def modules(self) -> list[nn.Module]:
        return [getattr(self._model.forge_objects.clip.cond_stage_model, name) for name in self.engines]

    def layers(self) -> dict[str, nn.Module]:
        layers: dict[str, nn.Module] = {}
        for name in _KOHYA.get(self._family, {}):
            encoder = getattr(self._model.forge_objects.clip.cond_stage_model, name)
            modules = encoder.transformer.text_model.encoder.named_modules()
            place = f"{name}.transformer.text_model.encoder."
            layers |= {place + path: m for path, m in modules if self._is_linear(m)}
        return layers

    def file_name(self, path: str) -> str:
        encoder, _, rest = path.partition(".transformer.")
        return _KOHYA[self._family][encoder] + rest.replace(".", "_")

    def token_tables(self) -> dict[str, TokenTable]:
        clips = self._clips if self._family != "flux1" else {}  # a word would be read by T5 without its vectors
        return {name: token_table(_embeddings(engine), _ids(engine)) for name, engine in clips.items()}


def _ids(engine: Any) -> Callable[[str], list[int]]:
    return lambda words: engine.tokenize([words])[0]


def _embeddings(engine: Any) -> torch.Tensor:
    """(vocabulary, width)."""
    return engine.text_encoder.transformer.text_model.embeddings.token_embedding.wrapped.weight
