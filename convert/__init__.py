"""File formats as pure functions on state dicts: keys, scale, metadata. Knows no engine and no host; only disk.py touches the disk."""

from .lora import FormatError, Lora, Module, cast, is_lora
from .metadata import lora_metadata
from .products import products
from .readers import read
from .writers import TARGETS, peft_directories, trained, write

__all__ = ["TARGETS", "FormatError", "Lora", "Module", "cast", "is_lora", "peft_directories", "lora_metadata", "products", "read", "trained", "write"]
