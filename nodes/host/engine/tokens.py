"""Trained tokens in the host's CLIP: a copy of its tokenizer that puts vectors in where a text names them, by the host's own `embedding:` rule.

The host's tokenizers take tensors among the ids, so neither a vocabulary nor an embedding table is touched.
"""

from __future__ import annotations

import copy
import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from comfy.sd1_clip import SDTokenizer

from ....lora_core.adapters.tokens import TokenSet, TokenTable, TokenVectors

CLIP_ENCODERS = ("clip_l", "clip_g", "clip_h")
_PREFIX = "embedding:"
Vectors = Callable[[str], torch.Tensor | None]  # encoder -> (n, width)


@functools.cache
def _returns_name() -> bool:
    """Hosts since 2026 also return the name of the embedding they found."""
    return "return (embed, embedding_name, leftover)" in inspect.getsource(SDTokenizer._try_get_embedding)


def tokenizers(clip: Any) -> dict[str, SDTokenizer]:
    """The tokenizer of each text encoder of a host CLIP, by the host's name for the encoder."""
    return {
        t.embedding_key: t
        for t in vars(getattr(clip, "tokenizer", None) or object).values()
        if isinstance(t, SDTokenizer)
    }


def with_embeddings(clip: Any, named: Mapping[str, Vectors], words: Mapping[str, str] | None = None) -> Any:
    """A clone of `clip` that knows `embedding:<name>` for these names without a file.

    An encoder without vectors reads `words[name]` instead, or nothing.
    """
    clone = clip.clone()
    if not named:
        return clone
    clone.tokenizer = copy.copy(clip.tokenizer)
    for attribute, tokenizer in vars(clip.tokenizer).items():
        if isinstance(tokenizer, SDTokenizer):
            setattr(clone.tokenizer, attribute, _knowing(tokenizer, named, words or {}))
    return clone


def _knowing(tokenizer: SDTokenizer, named: Mapping[str, Vectors], words: Mapping[str, str]) -> SDTokenizer:
    mine = copy.copy(tokenizer)
    names = "|".join(re.escape(n) for n in sorted(named, key=len, reverse=True))
    pattern = re.compile(rf"(?:{names})(?![\w-])")
    have = {name: vectors for name, vectors in named.items() if vectors(tokenizer.embedding_key) is not None}
    mine.embedding_directory = (
        tokenizer.embedding_directory or []
    )  # the host looks for embeddings only where it has a folder

    def lookup(text: str):
        match = pattern.match(text)
        if match is None or match[0] not in have:
            return tokenizer._try_get_embedding(text)
        vector = have[match[0]](tokenizer.embedding_key), match[0], text[match.end() :].strip()
        return vector if _returns_name() else (vector[0], vector[2])

    def tokenize(text: str, *args, **kwargs):
        for name in named.keys() - have.keys():
            text = re.sub(rf"{_PREFIX}{re.escape(name)}(?![\w-])", words.get(name, ""), text)
        return type(tokenizer).tokenize_with_weights(mine, text, *args, **kwargs)

    mine._try_get_embedding = lookup
    mine.tokenize_with_weights = tokenize
    return mine


def for_training(clip: Any, tokens: TokenSet) -> Any:
    """A clone of `clip` that puts the vectors of `tokens` in, as they are at the moment, where `written` texts name them."""
    return with_embeddings(clip, {_name(t): t.of for t in tokens}, {_name(t): t.token.init for t in tokens})


def written(text: str, tokens: TokenSet) -> str:
    """`text` with each placeholder as the host's `embedding:` word, apart from what stands around it."""
    return tokens.replaced(text, lambda token: f" {_PREFIX}{_name(token)} ")


def _name(token: TokenVectors) -> str:
    return (
        "loom-" + token.token.placeholder.lower().encode().hex()
    )  # every word has a name of its own, in letters the host splits nowhere


def tables(clip: Any) -> dict[str, TokenTable]:
    """The input embeddings of each CLIP text encoder."""
    by_name = {}
    for name, tokenizer in tokenizers(clip).items():
        encoder = getattr(clip.cond_stage_model, name, None)
        if name in CLIP_ENCODERS and encoder is not None:
            by_name[name] = _table(encoder.transformer.get_input_embeddings().weight, tokenizer)
    return by_name


def copies_vectors(clip: Any) -> bool:
    """Whether this is an older host, which copies vectors into a table of its own: no gradient comes back from there."""
    encoders = (getattr(getattr(clip, "cond_stage_model", None), name, None) for name in CLIP_ENCODERS)
    return any(hasattr(encoder, "set_up_textual_embeddings") for encoder in encoders)


def _table(weight: torch.Tensor, tokenizer: SDTokenizer) -> TokenTable:
    def rows(words: str) -> torch.Tensor:
        end = -1 if tokenizer.tokenizer_adds_end_token else None
        ids = tokenizer.tokenizer(words)["input_ids"][tokenizer.tokens_start : end]
        with torch.inference_mode():
            return weight[ids].float().cpu()

    with torch.inference_mode():
        return TokenTable(weight.shape[1], float(weight.float().std()), rows)
