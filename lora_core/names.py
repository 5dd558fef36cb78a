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
        raise LoomError(f"{label}: {name!r} contains a path; give a plain name without / \\ or :, the folder is chosen for you.")
    if not _ALLOWED.fullmatch(name) or name.endswith((".", " ")):
        raise LoomError(f"{label}: {name!r} cannot be a file name; use letters, digits, spaces and . _ - ( ) +, starting with a letter or digit.")
    if name.split(".")[0].strip().lower() in _RESERVED:
        raise LoomError(f"{label}: {name!r} is reserved on Windows; choose another name.")
    if len(name.encode()) > _MAX_BYTES:
        raise LoomError(f"{label}: the name has {len(name.encode())} bytes; at most {_MAX_BYTES} are allowed.")
    return name
