"""What a training run hands out: its LoRA in the universal form, and one file for each token it learned."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from .embedding import Embedding, write_embedding
from .lora import State
from .metadata import embedding_metadata, lora_metadata
from .writers import trained

_TOKEN = re.compile(r"token\.(.+)\.([^.]+)")  # token.<placeholder>.<encoder>


def products(state: Mapping[str, torch.Tensor], name: str, base: str, facts: Mapping[str, Any]) -> dict[str, tuple[State, dict[str, str]]]:
    """File stem -> (tensors, header), the main one first, from a run's own state (`<layer>.lora_down`, `token.<placeholder>.clip_l`, ...).

    A LoRA is called `name`, its embeddings `<name>_emb` (several: `<name>_<token>_emb`); an embedding alone is called `name` itself.
    The stem of an embedding's file is the word that calls it.
    """
    layers = {k: v for k, v in state.items() if not _TOKEN.fullmatch(k)}
    found = embeddings(state, facts.get("step", 0))
    stems = {token: token_stem(name, token, len(found), bool(layers)) for token in found}
    out: dict[str, tuple[State, dict[str, str]]] = {}
    if layers:
        tensors = trained(layers, base)
        out[name] = tensors, lora_metadata(tensors, name, base, {**facts, "triggers": list(stems.values())})
    for token, embedding in found.items():
        tensors = write_embedding(embedding)
        out[stems[token]] = tensors, embedding_metadata(embedding, tensors, stems[token])
    return out


def embeddings(state: Mapping[str, torch.Tensor], step: int = 0) -> dict[str, Embedding]:
    """Placeholder -> its vectors, from a run's own state."""
    vectors: dict[str, State] = {}
    for key, value in state.items():
        if match := _TOKEN.fullmatch(key):
            vectors.setdefault(match[1], {})[match[2]] = value
    return {token: Embedding(found, step=step) for token, found in vectors.items()}


def token_stem(name: str, placeholder: str, count: int, beside_lora: bool) -> str:
    """The file stem, and so the trigger, of a token."""
    word = "_" + re.sub(r"[^a-z0-9]+", "-", placeholder.lower()).strip("-") if count > 1 else ""
    return f"{name}{word}" + ("_emb" if beside_lora else "")
