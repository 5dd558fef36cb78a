"""Trained tokens in the prompts of A1111 and Forge: put in by the hosts' own rule for embeddings, which looks up words by their token ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ....lora_core.adapters.tokens import TokenSet, TokenTable, TokenVectors

Ids = Callable[[str], Sequence[int]]  # words -> token ids
Lookup = dict[int, list[tuple[list[int], Any]]]  # first id of a word -> (its ids, the host's embedding)


def word(token: TokenVectors) -> str:
    """What stands for a token in a prompt: letters that no other word has."""
    return "loom" + token.token.placeholder.lower().encode().hex().translate(str.maketrans("0123456789", "ghijklmnop"))


def written(text: str, tokens: TokenSet) -> str:
    """`text` with each placeholder as its word, apart from what stands around it."""
    return tokens.replaced(text, lambda token: f" {word(token)} ")


def lookup_of(tokens: TokenSet, ids_of: Ids, embedding: Callable[[TokenVectors, str], Any]) -> Lookup:
    """The hosts' table of embeddings with these tokens alone; `embedding` makes the host's object of a token and its word."""
    table: Lookup = {}
    for token in tokens:
        ids = list(ids_of(word(token)))
        table.setdefault(ids[0], []).append((ids, embedding(token, word(token))))
    return {first: sorted(rows, key=lambda row: -len(row[0])) for first, rows in table.items()}


def with_others(table: Lookup, others: Mapping[int, Sequence[tuple[list[int], Any]]]) -> Lookup:
    """Ours before those the host knows from files."""
    firsts = dict.fromkeys([*table, *others])
    return {first: [*table.get(first, []), *others.get(first, [])] for first in firsts}


def token_table(weight: torch.Tensor, ids_of: Ids) -> TokenTable:
    """A text encoder's input embeddings (vocabulary, width)."""

    def rows(words: str) -> torch.Tensor:
        with torch.inference_mode():
            return weight[list(ids_of(words))].float().cpu()

    with torch.inference_mode():
        return TokenTable(weight.shape[1], float(weight.float().std()), rows)
