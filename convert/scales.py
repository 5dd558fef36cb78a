"""Quantised weights in a checkpoint: numbers that mean something only together with scales or code books stored beside them."""

from __future__ import annotations

from collections.abc import Iterable

from ..lora_core.matching.scales import SCALE
from ..lora_core.messages.message import Message


def scaled_layers(keys: Iterable[str]) -> dict[str, list[str]]:
    """Layer -> the keys of its scales; a mark for a whole model stands under the model's prefix."""
    out: dict[str, list[str]] = {}
    for key in keys:
        match = SCALE.fullmatch(key)
        if match:
            out.setdefault(match["layer"] or "", []).append(key)
    return out


def warning(keys: Iterable[str]) -> Message:
    """What to tell about a checkpoint with such keys."""
    return Message.of("checkpoint.scaled", key=next(iter(keys)))
