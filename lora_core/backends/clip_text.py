"""The CLIP text encoders of a diffusers folder: one (SD1.x, SD2.x) or two (SDXL), with trained tokens put in where texts are tokenized."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..adapters.attach import override_forward
from ..adapters.tokens import TokenSet, TokenTable, TokenVectors
from ..data.lengths import TextLength
from ..messages.errors import LoomError
from ..transfer import sent
from .whole import read_configured, read_whole

LENGTH = 77
LARGE = 8  # tokens of a stretch that may be split over two windows
Id = int | tuple[TokenVectors, int]  # a number of the vocabulary, or a trained token and which of its vectors
_ENCODER_OF_WIDTH = {1024: "clip_h", 1280: "clip_g"}


@dataclasses.dataclass(frozen=True)
class Text:
    """`hidden` (B, L, width), L = 77 n for CLIP and n windows; `pooled` (B, width) and `mask` (B, L) where the network reads them, else None."""

    hidden: torch.Tensor
    pooled: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    lengths: Any = (
        None  # tuple of the numbers of each under the mask, where they were read before it went to the device
    )

    @staticmethod
    def joined(parts: Sequence[Text]) -> Text:
        """Several texts as one batch. Shorter ones are filled up under the mask; without one they are repeated to the common length,

        which changes nothing for what attends to them.
        """
        if any(p.mask is not None and p.mask.shape != parts[0].hidden.shape[:2] for p in parts):
            longest = max(p.hidden.shape[1] for p in parts)
            parts = [p.filled_to(longest) for p in parts]
        pooled = [p.pooled for p in parts if p.pooled is not None]
        mask = [p.mask for p in parts if p.mask is not None]
        length = math.lcm(*(p.hidden.shape[1] for p in parts))
        hidden = torch.cat([p.hidden.repeat(1, length // p.hidden.shape[1], 1) for p in parts])
        return Text(hidden, torch.cat(pooled) if pooled else None, torch.cat(mask) if mask else None)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What is there, by name: the arguments that make the same text again."""
        named = {"hidden": self.hidden, "pooled": self.pooled, "mask": self.mask}
        return {name: t for name, t in named.items() if t is not None}

    def filled_to(self, length: int) -> Text:
        assert self.mask is not None
        more = length - self.hidden.shape[1]
        return Text(F.pad(self.hidden, (0, 0, 0, more)), self.pooled, F.pad(self.mask, (0, more)))

    def of(self, dtype: torch.dtype) -> Text:
        pooled = None if self.pooled is None else self.pooled.to(dtype)
        return Text(self.hidden.to(dtype), pooled, self.mask, self.lengths)

    def on(self, device: torch.device) -> Text:
        lengths = None
        if self.mask is not None and self.mask.device.type == "cpu" and device.type != "cpu":
            lengths = tuple(self.mask.sum(1).tolist())
        pooled, mask = (None if t is None else sent(t, device) for t in (self.pooled, self.mask))
        return Text(sent(self.hidden, device), pooled, mask, lengths)


@dataclasses.dataclass(frozen=True)
class Encoder:
    """One text encoder, its tokenizer, and how its layers are called in files."""

    model: Any
    tokenizer: Any
    prefix: str


class ClipText:
    """Encodes texts as diffusers' pipelines do: for one encoder its last layer or an earlier one, for SDXL the last but one of both and the pooled second."""

    def __init__(self, models: Sequence[Any], tokenizers: Sequence[Any], device: torch.device):
        self.device, self.two = device, len(models) == 2
        self.skip = 1  # from which layer a single encoder's texts are read, from the end, as WebUIs count
        self.encoders: dict[str, Encoder] = {}
        for n, (model, tokenizer) in enumerate(zip(models, tokenizers, strict=True)):
            if self.two:
                self.encoders[("clip_l", "clip_g")[n]] = Encoder(model, tokenizer, f"lora_te{n + 1}_")
            else:
                name = _ENCODER_OF_WIDTH.get(model.config.hidden_size, "clip_l")
                self.encoders[name] = Encoder(model, tokenizer, "lora_te_")

    @staticmethod
    def parts_of(folder: Path) -> tuple[list[Any], list[Any]]:
        """(models in float32, tokenizers) of a folder in diffusers layout."""
        from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

        kinds: dict[str, Any] = {"": CLIPTextModel}
        if (folder / "text_encoder_2").is_dir():
            kinds["_2"] = CLIPTextModelWithProjection
        models = [read_whole(kind, folder / f"text_encoder{part}", torch.float32) for part, kind in kinds.items()]
        return models, [read_configured(CLIPTokenizer, folder / f"tokenizer{part}") for part in kinds]

    def skip_layers(self, skip: int) -> None:
        """From now on texts are read from the `skip`th layer from the end, where there is one encoder. Raises LoomError where it has fewer layers."""
        count = next(iter(self.encoders.values())).model.config.num_hidden_layers
        if skip > count:
            raise LoomError("text_encoder.clip_skip", field="text_encoder.clip_skip", layers=count, skip=skip)
        self.skip = skip

    def layers(self) -> Mapping[str, nn.Module]:
        """Linear layers by `<encoder>.<path>`."""
        modules = {f"{name}.{p}": m for name, e in self.encoders.items() for p, m in e.model.named_modules()}
        return {path: m for path, m in modules.items() if isinstance(m, nn.Linear)}

    def file_name(self, path: str) -> str:
        encoder, inner = path.split(".", 1)
        if not inner.startswith("text_"):  # newer transformers leave it out, files never do
            inner = f"text_model.{inner}"
        return self.encoders[encoder].prefix + inner.replace(".", "_")

    def tables(self) -> Mapping[str, TokenTable]:
        """The input embeddings of each encoder."""
        return {name: _table(e) for name, e in self.encoders.items()}

    def encode(self, texts: Sequence[str], tokens: TokenSet) -> Text:
        """With gradients to adapters and tokens where the caller has them on."""
        hidden, pooled = [], None
        for name, encoder in self.encoders.items():
            windows = [_windows(encoder.tokenizer, text, tokens) for text in texts]
            rows = [row for rows in windows for row in rows]
            ids = torch.tensor([[0 if isinstance(i, tuple) else i for i in row] for row in rows], device=self.device)
            with _vectors_in_place(encoder.model.get_input_embeddings(), rows, name):
                out = encoder.model(ids, output_hidden_states=self.two or self.skip > 1)
            flat = out.hidden_states[-2] if self.two else self._read(encoder.model, out)
            counts = [len(rows) for rows in windows]
            hidden.append(Text.joined([Text(part.flatten(0, 1)[None]) for part in flat.split(counts)]).hidden)
            firsts = [sum(counts[:n]) for n in range(len(counts))]
            pooled = out.text_embeds[firsts] if self.two and name == "clip_g" else None
        return Text(torch.cat(hidden, -1), pooled)

    def _read(self, model: Any, out: Any) -> torch.Tensor:
        """(B, 77, width) of one encoder: its last layer, or an earlier one with the norm behind the last, as WebUIs, ComfyUI and diffusers have it."""
        if self.skip == 1:
            return out.last_hidden_state
        inner = getattr(model, "text_model", model)
        return inner.final_layer_norm(out.hidden_states[-self.skip])

    def length(self, caption: str) -> TextLength:
        """Of the first encoder: both have the same window and words."""
        encoder = next(iter(self.encoders.values()))
        whole = length_of(caption, encoder.tokenizer)
        return dataclasses.replace(whole, pieces=len(_windows(encoder.tokenizer, caption, TokenSet())), cut=0)


def vocabulary(tokenizer: Any) -> str:
    """Identifies what a tokenizer makes of texts."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()[:16]


def length_of(caption: str, tokenizer: Any, window: int = 0) -> TextLength:
    """For an encoder that reads one window (of as many tokens as the tokenizer says, without start and end) and leaves the rest."""
    tokens = len(tokenizer(caption, add_special_tokens=False).input_ids)
    window = window or tokenizer.model_max_length - 2
    return TextLength(tokens, 1, max(0, tokens - window), window)


def _windows(tokenizer: Any, text: str, tokens: TokenSet) -> list[list[Id]]:
    """Rows of 77 token ids; a vector of a token stands as (token, its number). A long caption is split where a row is full, as in ComfyUI,

    which keeps only stretches of fewer than LARGE tokens between two trained tokens, and those tokens themselves, together.
    """
    rows: list[list[Id]] = [[]]
    for group in _groups(tokenizer, text, tokens):
        room = LENGTH - 2 - len(rows[-1])
        if len(group) > room and len(group) < LARGE:
            rows.append([])
            room = LENGTH - 2
        while len(group) > room:
            rows[-1] += group[:room]
            group, room = group[room:], LENGTH - 2
            rows.append([])
        rows[-1] += group
    ends = [[tokenizer.bos_token_id, *row, tokenizer.eos_token_id] for row in rows]
    return [row + [tokenizer.pad_token_id] * (LENGTH - len(row)) for row in ends]


def _groups(tokenizer: Any, text: str, tokens: TokenSet) -> Iterator[list[Id]]:
    """The tokens of each stretch of text, and the vectors of each trained token."""
    for piece in tokens.split(text):
        if isinstance(piece, str):  # parentheses may be written as for programs that weigh what is in them
            yield tokenizer(piece.replace("\\(", "(").replace("\\)", ")"), add_special_tokens=False).input_ids
        else:
            yield [(piece, n) for n in range(piece.token.vectors)]


@contextlib.contextmanager
def _vectors_in_place(table: nn.Module, rows: Sequence[Sequence[Id]], encoder: str) -> Iterator[None]:
    """Puts the vectors into what the embedding table gives for these rows. The ids keep their order, so the end of the text is found as ever."""
    places = [(b, n, item) for b, row in enumerate(rows) for n, item in enumerate(row) if isinstance(item, tuple)]
    vectors = [(b, n, token.of(encoder), number) for b, n, (token, number) in places]
    plain = table.forward

    def forward(ids: torch.Tensor) -> torch.Tensor:
        out = plain(ids)
        if not vectors:
            return out
        at = tuple(torch.tensor([place[axis] for place in vectors], device=out.device) for axis in (0, 1))
        new = torch.stack([v[number] for _, _, v, number in vectors if v is not None])
        return out.index_put(at, new.to(out))

    with override_forward(table, forward):
        yield


def _table(encoder: Encoder) -> TokenTable:
    weight = encoder.model.get_input_embeddings().weight

    def rows(words: str) -> torch.Tensor:
        return weight[encoder.tokenizer(words, add_special_tokens=False).input_ids]

    return TokenTable(weight.shape[1], float(weight.std()), rows)
