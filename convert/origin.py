"""Which base model a LoRA was trained on, as its trainer wrote it: in the header, in a PEFT config, in the card of a repository."""

from __future__ import annotations

import json
import ntpath
import re
from collections.abc import Mapping
from typing import Any

Origin = tuple[str, str]  # (name or hash of the base model, the field that says it)
_KOHYA = (
    "ss_sd_model_name",
    "ss_sd_model_hash",
    "ss_new_sd_model_hash",
    "ss_base_model",
    "ss_base_model_version",
)  # also musubi-tuner, ai-toolkit
_TABLES = (
    "ot_config",
    "config",
    "lora_adapter_metadata",
    "training_config",
)  # whole configurations: OneTrainer, others
_NAMES = ("base_model_name", "base_model_name_or_path", "name_or_path", "pretrained_model_name_or_path")
_EMPTY = ("", "none", "null", "~")
_MOST_DEPTH = 6


def trained_on(metadata: Mapping[str, str]) -> tuple[Origin, ...]:
    """What a file's header names. Of a path only its last part, which others can use."""
    out = [(_bare(metadata[field]), field) for field in _KOHYA if field in metadata]
    for field in _TABLES:
        try:
            table = json.loads(metadata.get(field, "{}"))
        except (ValueError, RecursionError):
            continue
        out += [(_bare(name), f"{field}: {key}") for key, name in _named(table, _MOST_DEPTH)]
    return tuple(dict.fromkeys((name, field) for name, field in out if name.lower() not in _EMPTY))


def in_config(config: Mapping[str, Any]) -> tuple[Origin, ...]:
    """What an adapter_config.json names."""
    name = config.get("base_model_name_or_path")
    return ((_bare(name), "adapter_config.json: base_model_name_or_path"),) if isinstance(name, str) and name else ()


def in_card(text: str) -> tuple[Origin, ...]:
    """`base_model` in the front matter of a repository's README.md: one name or a list."""
    head = re.match(r"---\s*\n(.*?)\n---\s*(?:\n|$)", text, re.DOTALL)
    field = re.search(r"^base_model:[ \t]*(.*(?:\n[ \t]*-[ \t].*)*)", head[1] if head else "", re.MULTILINE)
    if field is None:
        return ()
    words = (line.strip().removeprefix("-").strip().strip("\"'[]") for line in re.split(r"[\n,]", field[1]))
    return tuple((word, "README.md: base_model") for word in words if word.lower() not in _EMPTY)


def _named(value: Any, depth: int) -> list[tuple[str, str]]:
    """(field, text) of every field in a configuration that names a base model."""
    if not isinstance(value, dict) or not depth:
        return []
    mine = [(str(key).rpartition(".")[2], text) for key, text in value.items() if isinstance(text, str)]
    named = [(key, text) for key, text in mine if key in _NAMES]
    return named + [pair for inner in value.values() for pair in _named(inner, depth - 1)]


def _bare(name: str) -> str:
    """A name on the Hub as it is; of a path on some disk the last part."""
    is_path = ntpath.isabs(name) or re.match(r"(?:[A-Za-z]:|[./~\\])", name) or name.count("/") > 1 or "\\" in name
    return ntpath.basename(name.rstrip("/\\")) if is_path else name.strip()
