"""Names that become files: what is allowed on every system, checked before anything is written."""

from __future__ import annotations

import re

from .messages.errors import LoomError

_ALLOWED = re.compile(r"[^\W_][\w .()+-]*", re.UNICODE)
_RESERVED = {"con", "prn", "aux", "nul", *(f"com{n}" for n in range(1, 10)), *(f"lpt{n}" for n in range(1, 10))}
_MAX_BYTES = 120


def check_name(label: str, name: str) -> str:
    """`name` when it can be a file name on Windows, macOS and Linux; else LoomError. No path, no reserved word, at most 120 bytes."""
    if "/" in name or "\\" in name or ":" in name:
        raise LoomError("name.path", field=label, name=repr(name))
    if not _ALLOWED.fullmatch(name) or name.endswith((".", " ")):
        raise LoomError("name.characters", field=label, name=repr(name))
    if name.split(".")[0].strip().lower() in _RESERVED:
        raise LoomError("name.reserved", field=label, name=repr(name))
    if len(name.encode()) > _MAX_BYTES:
        raise LoomError("name.long", field=label, length=len(name.encode()), limit=_MAX_BYTES)
    return name
