"""Textual inversion (Gal et al. 2022, arXiv 2208.01618): new words whose input embeddings are trained, several vectors each if wanted.

A placeholder such as TOK stands in captions, class prompts and sample prompts; a backend puts the vectors in where it tokenizes the text.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import nn

from ..config import EmbeddingConfig
from ..messages.errors import LoomError
from ..rng import generator

DEFAULT_PLACEHOLDER = "TOK"
MAX_VECTORS = 32
_LINE = re.compile(r"(?P<word>[^\s*=:,]+)\s*(?:\*\s*(?P<vectors>\d{1,9}))?\s*(?:[=:]\s*(?P<init>.*))?")


@dataclasses.dataclass(frozen=True)
class Token:
    """One new word: how captions write it, how many vectors it has, and the words it starts from ("" starts at random)."""

    placeholder: str
    vectors: int
    init: str = ""


@dataclasses.dataclass(frozen=True)
class TokenTable:
    """A text encoder's input embeddings: rows of `width`, of standard deviation `std`; `rows(words)` are those of an ordinary text, (n, width)."""

    width: int
    std: float
    rows: Callable[[str], torch.Tensor]


def wanted_tokens(config: EmbeddingConfig, trigger: str = "") -> list[Token]:
    """The tokens of a job: one per line of `tokens`, such as TOK, TOK = a ring, TOK*4 = a ring; without any, the trigger or TOK."""
    lines = [line.strip() for line in config.tokens.splitlines() if line.strip()] or [trigger or DEFAULT_PLACEHOLDER]
    tokens = []
    for line in lines:
        match = _LINE.fullmatch(line)
        vectors = int(match["vectors"] or config.vectors) if match else 0
        if match is None or not 1 <= vectors <= MAX_VECTORS or not re.search(r"\w", match["word"]):
            raise LoomError(
                "embedding.token.unreadable", field="embedding.tokens", line=repr(line), vectors=MAX_VECTORS
            )
        tokens.append(Token(match["word"], vectors, (match["init"] or config.init).strip()))
    seen: set[str] = set()
    for token in tokens:
        if token.placeholder.lower() in seen:
            raise LoomError("embedding.token.repeated", field="embedding.tokens", token=repr(token.placeholder))
        seen.add(token.placeholder.lower())
    files = [plain_name(t.placeholder) for t in tokens]
    if len(tokens) > 1 and (
        same := [t.placeholder for n, t in enumerate(tokens) if not files[n] or files[n] in files[:n]]
    ):
        raise LoomError("embedding.token.no_file_name", field="embedding.tokens", token=repr(same[0]))
    return tokens


def plain_name(placeholder: str) -> str:
    """What a placeholder adds to a file name: its letters a-z and digits, the rest as -."""
    return re.sub(r"[^a-z0-9]+", "-", placeholder.lower()).strip("-")


class TokenVectors(nn.Module):
    """The vectors of one token, (n, width) float32 for each text encoder. Switched off, it is what it was before the first step."""

    active: bool = True

    def __init__(self, token: Token, tables: Mapping[str, TokenTable], seed: int, device: torch.device | str):
        super().__init__()
        self.token = token
        first = {
            encoder: _first_vectors(token, encoder, table, seed).to(device) for encoder, table in sorted(tables.items())
        }
        self.vectors = nn.ParameterDict({encoder: nn.Parameter(value.clone()) for encoder, value in first.items()})
        self._first, self._std = first, {encoder: table.std for encoder, table in tables.items()}

    @property
    def trained(self) -> bool:
        return any(p.requires_grad for p in self.vectors.values())

    def of(self, encoder: str) -> torch.Tensor | None:
        """(n, width) for this encoder, with gradients while it is trained; None for an encoder that has no vectors."""
        if encoder not in self._first:
            return None
        return self.vectors[encoder] if self.active else self._first[encoder]

    @torch.no_grad()
    def pull_back_norm(self) -> None:
        """Scales the vectors by (table std / their std)^0.1, which keeps them near the words the encoder knows (as diffusers and cog-sdxl do)."""
        for encoder, value in self.vectors.items():
            if value.requires_grad:
                value.mul_((self._std[encoder] / value.std().clamp_min(1e-8)) ** 0.1)


def _first_vectors(token: Token, encoder: str, table: TokenTable, seed: int) -> torch.Tensor:
    if token.init:
        rows = table.rows(token.init).detach().float().cpu()
        if not len(rows):
            raise LoomError(
                "embedding.token.unknown_words",
                field="embedding.tokens",
                words=repr(token.init),
                encoder=encoder,
                token=token.placeholder,
            )
        return rows[[n % len(rows) for n in range(token.vectors)]].clone()
    rng = generator(seed, "token", token.placeholder, encoder)
    return torch.randn(token.vectors, table.width, generator=rng) * table.std


class TokenSet:
    """The tokens of one run by placeholder. An empty set leaves every text as it is."""

    def __init__(self, members: Iterable[TokenVectors] = ()):
        self._members = {m.token.placeholder: m for m in members}
        words = "|".join(re.escape(p) for p in sorted(self._members, key=len, reverse=True))
        self._pattern = re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE) if words else None
        self._by_word = {p.lower(): m for p, m in self._members.items()}

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[TokenVectors]:
        return iter(self._members.values())

    @property
    def trained(self) -> bool:
        return any(m.trained for m in self)

    def split(self, text: str) -> list[str | TokenVectors]:
        """`text` in order as pieces of plain text and tokens; pieces between two tokens are never empty strings."""
        if self._pattern is None:
            return [text]
        pieces: list[str | TokenVectors] = []
        at = 0
        for match in self._pattern.finditer(text):
            pieces += [text[at : match.start()], self._by_word[match[0].lower()]]
            at = match.end()
        return [p for p in [*pieces, text[at:]] if not isinstance(p, str) or p.strip()] or [""]

    def names_in(self, text: str) -> bool:
        """Whether the text has one of the placeholders."""
        return bool(self._pattern and self._pattern.search(text))

    def replaced(self, text: str, word: Callable[[TokenVectors], str]) -> str:
        """`text` with every placeholder replaced by `word(token)`."""
        return self._pattern.sub(lambda m: word(self._by_word[m[0].lower()]), text) if self._pattern else text
