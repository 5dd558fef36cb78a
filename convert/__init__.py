"""File formats as pure functions on state dicts: keys, scale, metadata. Knows no engine and no host; only `files` touches the disk.

Names are imported when they are asked for, so that looking at one small module does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .lora import FormatError, Lora, Module, cast, is_lora
    from .metadata import lora_metadata
    from .readers import read
    from .results import products
    from .writers import TARGETS, peft_directories, trained, write

_HOME = {
    "lora": ("FormatError", "Lora", "Module", "cast", "is_lora"),
    "metadata": ("lora_metadata",),
    "results": ("products",),
    "readers": ("read",),
    "writers": ("TARGETS", "peft_directories", "trained", "write"),
}

__all__ = [
    "TARGETS",
    "FormatError",
    "Lora",
    "Module",
    "cast",
    "is_lora",
    "peft_directories",
    "lora_metadata",
    "products",
    "read",
    "trained",
    "write",
]


def __getattr__(name: str) -> Any:
    home = next((module for module, names in _HOME.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value
