"""File formats as pure functions on state dicts: keys, scale, metadata. Knows no engine, no host, and touches no disk."""

from .lora import FormatError, cast, is_lora, to_file
from .metadata import lora_metadata

__all__ = ["FormatError", "cast", "is_lora", "lora_metadata", "to_file"]
