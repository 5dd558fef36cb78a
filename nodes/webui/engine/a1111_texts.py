"""A1111's text encoders: captions as plain text, their layers by the names of files, trained tokens by its rule for embeddings."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from modules import devices, sd_hijack, shared
from modules.textual_inversion.textual_inversion import Embedding
from torch import nn

from ....lora_core.adapters import AdapterSet
from ....lora_core.adapters.attach import override_forward
from ....lora_core.adapters.tokens import TokenSet, TokenTable, TokenVectors
from ....lora_core.backends.base import weights_checksum
from ....lora_core.borrowing.aliases import replaced
from ....lora_core.data.buckets import Fit
from ....lora_core.data.lengths import TextLength
from .captions import Encoded
from .openclip import projections, through
from .tokens import lookup_of, token_table, with_others, written

SIZES = ("original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple")  # inputs of SDXL's size embedders
SKIP = "CLIP_stop_at_last_layers"
OPTIONS = (SKIP, "comma_padding_backtrack", "sdxl_clip_l_skip", "use_old_emphasis_implementation")
WINDOW = 75
_KOHYA = {
    "sd1": {"clip_l": "lora_te_"},
    "sd2": {"clip_h": "lora_te_"},
    "sdxl": {"clip_l": "lora_te1_", "clip_g": "lora_te2_"},
}
_OPENCLIP = {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}


def size_values(fit: Fit) -> dict[str, tuple[int, int]]:
    """What SDXL's size embedders read of a picture, by their inputs."""
    (width, height), (left, top), (to_width, to_height) = fit.original, fit.crop, fit.bucket
    return dict(zip(SIZES, ((height, width), (top, left), (to_height, to_width)), strict=True))


class A1111Texts:
    """Of `model` (shared.sd_model), whose text encoders have the names clip_l, clip_g, clip_h here, as everywhere."""

    host = "A1111"

    def __init__(self, model: Any, family: str):
        self._model, self._family = model, family.removesuffix("-v")
        self.encoders: Mapping[str, Any] = self._encoders()
        self._options = {
            name: shared.opts.data[name] for name in OPTIONS if name in shared.opts.data
        }  # for a whole run
        self._made: dict[int, dict[str, nn.Linear]] = {}  # projections by the id of their attention

    def _encoders(self) -> Mapping[str, Any]:
        """By name: the host's wrapper with `tokenize`, whose `wrapped` holds the network."""
        if self._family != "sdxl":
            return {"clip_h" if self._family == "sd2" else "clip_l": self._model.cond_stage_model}
        texts = [e for e in self._model.conditioner.embedders if hasattr(e, "process_texts")]
        return dict(zip(("clip_l", "clip_g"), texts, strict=True))

    # ---- captions ----------------------------------------------------------------------------------------------------

    @property
    def clip_skip(self) -> int | None:
        """OpenCLIP's encoders, of Stable Diffusion 2 and XL, are read without regard to the option; so is the first one of XL, which has one of its own."""
        return int(self._options.get(SKIP, 1)) if self._family == "sd1" else None

    def encode(self, caption: str, adapters: AdapterSet) -> Encoded:
        with devices.autocast(), self.plain(adapters.tokens), self._live(), self.attention_in_parts(adapters):
            text = written(caption, adapters.tokens)
            if self._family != "sdxl":
                return {"crossattn": self._model.cond_stage_model([text])}
            zeros = {name: torch.zeros(1, 2, device=devices.device, dtype=devices.dtype) for name in SIZES}
            cond = self._model.conditioner({"txt": [text], **zeros})
            return {"crossattn": cond["crossattn"], "pooled": cond["vector"][:, : -self._sizes_width()]}

    def _sizes_width(self) -> int:
        return sum(2 * e.outdim for e in self._size_embedders())

    def _size_embedders(self) -> list[Any]:
        return [e for e in self._model.conditioner.embedders if getattr(e, "input_key", "") in SIZES]

    def sizes(self, values: Mapping[str, tuple[int, int]]) -> torch.Tensor:
        """(1, width) of (height, width) or (top, left) by the input each belongs to."""
        place = {"device": devices.device, "dtype": devices.dtype}
        with torch.no_grad(), devices.autocast():
            parts = [e(torch.tensor([values[e.input_key]], **place)) for e in self._size_embedders()]
        return torch.cat(parts, 1)

    @contextlib.contextmanager
    def plain(self, tokens: TokenSet) -> Iterator[None]:
        """Captions are text: parentheses mean nothing, and no embedding but those of `tokens` takes the place of a word."""
        data, database = shared.opts.data, sd_hijack.model_hijack.embedding_db
        options = {**self._options, "emphasis": "None", "use_old_emphasis_implementation": False}
        before = {name: data[name] for name in options if name in data}
        with replaced(database, "ids_lookup", self._lookup(tokens)):
            data.update(options)
            try:
                yield
            finally:
                for name in options:
                    data.pop(name)
                data.update(before)

    @contextlib.contextmanager
    def known(self, tokens: TokenSet) -> Iterator[None]:
        """Inside, prompts may name `tokens` beside the embeddings the host knows."""
        database = sd_hijack.model_hijack.embedding_db
        with replaced(database, "ids_lookup", with_others(self._lookup(tokens), database.ids_lookup)):
            yield

    def _lookup(self, tokens: TokenSet) -> dict[int, list[tuple[list[int], Any]]]:
        first = next(iter(self.encoders.values()))

        def embedding(token: TokenVectors, name: str) -> Embedding:
            vectors = {encoder: token.of(encoder) for encoder in self.encoders}
            made = Embedding(vectors if len(vectors) > 1 else next(iter(vectors.values())), name)
            made.vectors, made.shape = token.token.vectors, 0
            return made

        return lookup_of(tokens, lambda words: first.tokenize([words])[0], embedding)

    @contextlib.contextmanager
    def _live(self) -> Iterator[None]:
        """SDXL's conditioner runs encoders without gradients unless they say that they are trained."""
        with contextlib.ExitStack() as undo:
            for encoder in self.encoders.values() if torch.is_grad_enabled() else ():
                undo.enter_context(replaced(encoder, "is_trainable", True))
            yield

    def length(self, caption: str) -> TextLength:
        with self.plain(TokenSet()):
            chunks, tokens = next(iter(self.encoders.values())).process_texts([caption])
        return TextLength(tokens, len(chunks[0]), 0, WINDOW)

    def fingerprint(self) -> str:
        options = [str(self._options.get(name, getattr(shared.opts, name, None))) for name in OPTIONS]
        weights = [weights_checksum(encoder.wrapped) for encoder in self.encoders.values()]
        return " ".join([self.host, *weights, *options])

    # ---- what can be trained -----------------------------------------------------------------------------------------

    def modules(self) -> list[nn.Module]:
        return [encoder.wrapped for encoder in self.encoders.values()]

    def layers(self) -> dict[str, nn.Module]:
        """By `<encoder>.transformer.text_model.encoder.layers.<n>.<part>`, whichever classes the encoder is made of."""
        layers: dict[str, nn.Module] = {}
        for name, encoder in self.encoders.items():
            place = f"{name}.transformer."
            if hasattr(encoder.wrapped, "transformer"):
                modules = encoder.wrapped.transformer.named_modules()
                layers |= {place + path: m for path, m in modules if isinstance(m, nn.Linear)}
            else:
                layers |= {place + path: m for path, m in self._openclip_layers(name).items()}
        return layers

    def _blocks(self, encoder: str) -> list[Any]:
        return list(self.encoders[encoder].wrapped.model.transformer.resblocks)

    def _openclip_layers(self, encoder: str) -> dict[str, nn.Module]:
        layers: dict[str, nn.Module] = {}
        for n, block in enumerate(self._blocks(encoder)):
            place = f"text_model.encoder.layers.{n}."
            layers |= {f"{place}self_attn.{part}": m for part, m in self._projections(block.attn).items()}
            layers |= {place + ours: block.get_submodule(theirs) for theirs, ours in _OPENCLIP.items()}
        return layers

    def _projections(self, attention: nn.MultiheadAttention) -> dict[str, nn.Linear]:
        """The same objects each time: adapters are hung onto them."""
        made = self._made.get(id(attention))
        if made is None:
            made = self._made[id(attention)] = projections(attention)
        return made

    @contextlib.contextmanager
    def attention_in_parts(self, adapters: AdapterSet) -> Iterator[None]:
        """OpenCLIP's attention through its projections, as long as adapters may hang on them."""
        with contextlib.ExitStack() as undo:
            for name, encoder in self.encoders.items() if adapters.changes_text and len(adapters) else ():
                for block in () if hasattr(encoder.wrapped, "transformer") else self._blocks(name):
                    undo.enter_context(override_forward(block.attn, through(block.attn, self._projections(block.attn))))
            yield

    def file_name(self, path: str) -> str:
        encoder, _, rest = path.partition(".transformer.")
        return _KOHYA[self._family][encoder] + rest.replace(".", "_")

    def token_tables(self) -> dict[str, TokenTable]:
        return {name: token_table(_embeddings(e), _ids(e)) for name, e in self.encoders.items()}


def _ids(encoder: Any) -> Any:
    return lambda words: encoder.tokenize([words])[0]


def _embeddings(encoder: Any) -> torch.Tensor:
    """(vocabulary, width), below what the host has put around it."""
    network = encoder.wrapped
    if hasattr(network, "transformer"):
        table = network.transformer.text_model.embeddings.token_embedding
    else:
        table = network.model.token_embedding
    return table.weight if isinstance(table, nn.Embedding) else table.wrapped.weight
