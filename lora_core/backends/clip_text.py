"""The CLIP text encoders of a diffusers folder: one (SD1.x, SD2.x) or two (SDXL), with trained tokens put in where texts are tokenized."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..adapters.base import override_forward
from ..tokens import TokenSet, TokenTable, TokenVectors

LENGTH = 77
_ENCODER_OF_WIDTH = {1024: "clip_h", 1280: "clip_g"}


@dataclasses.dataclass(frozen=True)
class Text:
    """`hidden` (B, 77, width); `pooled` (B, width) and `mask` (B, 77) where the network reads them, else None."""

    hidden: torch.Tensor
    pooled: torch.Tensor | None = None
    mask: torch.Tensor | None = None

    @staticmethod
    def joined(parts: Sequence[Text]) -> Text:
        """Several texts as one batch."""
        pooled, mask = ([v for v in values if v is not None] for values in ([p.pooled for p in parts], [p.mask for p in parts]))
        return Text(torch.cat([p.hidden for p in parts]), torch.cat(pooled) if pooled else None, torch.cat(mask) if mask else None)


@dataclasses.dataclass(frozen=True)
class Encoder:
    """One text encoder, its tokenizer, and how its layers are called in files."""

    model: Any
    tokenizer: Any
    prefix: str


class ClipText:
    """Encodes texts as diffusers' pipelines do: the last layer for one encoder, the last but one of both and the pooled second for SDXL."""

    def __init__(self, folder: Path, device: torch.device):
        from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

        local: dict[str, Any] = {"local_files_only": True}
        self.device, self.two = device, (folder / "text_encoder_2").is_dir()
        self.encoders: dict[str, Encoder] = {}
        for n, part in enumerate(("", "_2") if self.two else ("",)):
            kind = CLIPTextModelWithProjection if n else CLIPTextModel
            model = kind.from_pretrained(folder / f"text_encoder{part}", torch_dtype=torch.float32, **local).to(device).eval().requires_grad_(False)
            name = _ENCODER_OF_WIDTH.get(model.config.hidden_size, "clip_l") if n or not self.two else "clip_l"
            tokenizer = CLIPTokenizer.from_pretrained(folder / f"tokenizer{part}", **local)
            self.encoders["clip_g" if n else name] = Encoder(model, tokenizer, f"lora_te{n + 1}_" if self.two else "lora_te_")

    def layers(self) -> Mapping[str, nn.Module]:
        """Linear layers by `<encoder>.<path>`."""
        return {f"{name}.{p}": m for name, e in self.encoders.items() for p, m in e.model.named_modules() if isinstance(m, nn.Linear)}

    def file_name(self, path: str) -> str:
        encoder, inner = path.split(".", 1)
        inner = inner if inner.startswith("text_") else f"text_model.{inner}"  # newer transformers leave it out, files never do
        return self.encoders[encoder].prefix + inner.replace(".", "_")

    def tables(self) -> Mapping[str, TokenTable]:
        """The input embeddings of each encoder."""
        return {name: _table(e) for name, e in self.encoders.items()}

    def encode(self, texts: Sequence[str], tokens: TokenSet) -> Text:
        """With gradients to adapters and tokens where the caller has them on."""
        hidden, pooled = [], None
        for name, encoder in self.encoders.items():
            rows = [_ids(encoder.tokenizer, text, tokens) for text in texts]
            ids = torch.tensor([[0 if isinstance(i, tuple) else i for i in row] for row in rows], device=self.device)
            with _vectors_in_place(encoder.model.get_input_embeddings(), rows, name):
                out = encoder.model(ids, output_hidden_states=self.two)
            hidden.append(out.hidden_states[-2] if self.two else out.last_hidden_state)
            pooled = out.text_embeds if self.two and name == "clip_g" else None
        return Text(torch.cat(hidden, -1), pooled)


def _ids(tokenizer: Any, text: str, tokens: TokenSet) -> list[int | tuple[TokenVectors, int]]:
    """77 token ids; a vector of a token stands as (token, its number)."""
    inner: list[int | tuple[TokenVectors, int]] = []
    for piece in tokens.split(text):
        if isinstance(piece, str):
            inner += tokenizer(piece, add_special_tokens=False, truncation=True, max_length=LENGTH).input_ids
        else:
            inner += [(piece, n) for n in range(piece.token.vectors)]
    row = [tokenizer.bos_token_id, *inner[: LENGTH - 2], tokenizer.eos_token_id]
    return row + [tokenizer.pad_token_id] * (LENGTH - len(row))


@contextlib.contextmanager
def _vectors_in_place(table: nn.Module, rows: Sequence[Sequence[int | tuple[TokenVectors, int]]], encoder: str) -> Iterator[None]:
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
