"""Reads files that nobody vouches for: of a bounded size, links not followed, what is damaged as nothing."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from pathlib import Path
from typing import Any

MAX_JSON_BYTES, TAIL_BYTES = 1 << 20, 16 << 10
MAX_TEXT = 300


def is_regular(path: Path) -> bool:
    """Whether there is a file of its own, not a link to one."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


def read(path: Path, limit: int) -> bytes:
    """The file's bytes; none for a link, a file above `limit` or one that cannot be read."""
    with contextlib.suppress(OSError):
        if is_regular(path) and os.path.getsize(path) <= limit:
            return path.read_bytes()
    return b""


def tail(path: Path, size: int = TAIL_BYTES) -> bytes:
    """The last `size` bytes of a file."""
    with contextlib.suppress(OSError):
        if is_regular(path):
            with open(path, "rb") as file:
                file.seek(max(0, os.path.getsize(path) - size))
                return file.read(size)
    return b""


def read_json(path: Path, limit: int = MAX_JSON_BYTES) -> Any:
    """What a JSON file of at most `limit` bytes holds; None for a link and for what is damaged."""
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(read(path, limit))
    return None


def as_text(value: Any) -> str:
    """A short text that every browser can show; "" for what is none."""
    return value.encode("utf-8", "replace").decode()[:MAX_TEXT] if isinstance(value, str) else ""


def as_step(value: Any) -> int | None:
    """A number of steps; None for everything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**12 else None


def as_number(value: Any) -> float | None:
    """A finite float; None for everything else."""
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300:
        return float(value)
    return None
