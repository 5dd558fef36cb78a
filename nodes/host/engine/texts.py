"""Encoded texts of the host as plain tensors and back, and how long a caption is for its text encoders."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ....lora_core.data.lengths import TextLength
from ....lora_core.data.store import Tensors
from ....lora_core.messages.errors import LoomError
from .tokens import CLIP_ENCODERS, tokenizers

_PAREN = re.compile(r"(?<!\\)([()])")
_PLAIN = "plain"  # the entry that holds everything that is no tensor, as JSON


def literal(caption: str, clip: Any) -> str:
    """A caption as text to be read as it stands: most of the host's tokenizers would take parentheses as weights."""
    return _PAREN.sub(r"\\\1", caption) if _unescapes(clip) else caption


def _unescapes(clip: Any) -> bool:
    """Whether an escaped parenthesis is one to the tokenizers of `clip`; a few (LongCat, Lens) read every text as it stands, backslashes too."""
    kind = type(getattr(clip, "tokenizer", clip))
    if kind not in _UNESCAPING:
        plain, escaped = clip.tokenize("a (b)"), clip.tokenize(r"a \(b\)")
        _UNESCAPING[kind] = not _unweighted(plain) or plain == escaped
    return _UNESCAPING[kind]


def _unweighted(tokens: Any) -> bool:
    """Whether every token of what a CLIP's `tokenize` gives weighs 1."""
    if isinstance(tokens, dict):
        return all(map(_unweighted, tokens.values()))
    if isinstance(tokens, list):
        return all(map(_unweighted, tokens))
    return not isinstance(tokens, tuple) or len(tokens) < 2 or tokens[1] == 1.0


_UNESCAPING: dict[type, bool] = {}


def length_of(caption: str, clip: Any) -> TextLength:
    """For the CLIP encoder of `clip`, which reads 75 tokens at once and longer texts in pieces; other encoders read everything."""
    named = {name: t for name, t in tokenizers(clip).items() if name in CLIP_ENCODERS}
    if not named:
        return TextLength(0)
    tokenizer = next(iter(named.values()))
    windows = tokenizer.tokenize_with_weights(caption)
    tokens = len(tokenizer.tokenizer(caption.replace("\\(", "(").replace("\\)", ")"))["input_ids"])
    ends = tokenizer.tokens_start + (1 if tokenizer.tokenizer_adds_end_token else 0)
    return TextLength(tokens - ends, len(windows), 0, tokenizer.max_length - 2)


def split(value: Any) -> tuple[Tensors, Any] | None:
    """(tensors by number, the rest with {"tensor": number} in their places) of nested lists and dicts; None where something else is inside."""
    tensors: Tensors = {}

    def plain(part: Any) -> Any:
        if torch.is_tensor(part):
            name = str(len(tensors))
            tensors[name] = part.detach().cpu()
            return {"tensor": name}
        if isinstance(part, list | tuple):
            return [plain(p) for p in part]
        if isinstance(part, dict) and all(isinstance(k, str) for k in part):
            return {"dict": {k: plain(v) for k, v in part.items()}}
        if part is None or isinstance(part, bool | int | float | str):
            return part
        raise TypeError(type(part).__name__)

    try:
        rest = plain(value)
    except TypeError:
        return None
    return tensors, rest


def whole(tensors: Tensors, rest: Any) -> Any:
    """The inverse of `split`; tuples come back as lists."""
    if isinstance(rest, list):
        return [whole(tensors, part) for part in rest]
    if isinstance(rest, dict):
        return tensors[rest["tensor"]] if "tensor" in rest else {k: whole(tensors, v) for k, v in rest["dict"].items()}
    return rest


def packed(encoded: list) -> Tensors | None:
    """What the host encoded, as tensors alone; None when it holds what cannot be kept."""
    parts = split(encoded)
    if parts is None:
        return None
    tensors, rest = parts
    return {**tensors, _PLAIN: torch.frombuffer(bytearray(json.dumps(rest).encode()), dtype=torch.uint8)}


def unpacked(tensors: Tensors) -> list:
    return whole(tensors, json.loads(tensors[_PLAIN].numpy().tobytes()))


def wired(file: Path) -> list:
    """The conditioning in a file that `lora_core.data.sources.from_latents` wrote. Raises LoomError."""
    try:
        with safe_open(file, "pt") as opened:
            keys = [key for key in opened.keys() if key.startswith("text.")]  # noqa: SIM118
            tensors = {key.removeprefix("text."): opened.get_tensor(key) for key in keys}
            return whole(tensors, json.loads((opened.metadata() or {})["text"]))
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise LoomError("texts.unreadable", file=file.name, reason=error) from error
