"""Folders of pictures that came from elsewhere, named by their content: written once, whole or not at all, and mended where a power cut broke one."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path

from ..disk import files
from ..messages.errors import LoomError
from .reader import TEXTS
from .walk import OWN_LIST

# Name -> size of each file, written with them: a folder that has it was whole when it got its name.
MARK = ".loom-import.json"
HEAD_BYTES = 64
Parts = Iterable[tuple[str, bytes]]


def brought(target: Path, parts: Callable[[], Parts]) -> Path:
    """`target` with these files (name, content) in it. One that is there is used as it is, with what people changed in it.

    Only files that lost their content are written again, and those that are missing where the folder was never known to be whole.
    Raises LoomError when the disk refuses.
    """
    if target.is_dir():
        if lost := _lost(target):
            _mend(target, parts(), lost)
        elif not _sizes(target):
            _mend(target, parts(), set())
        return target
    try:
        with files.folder_in_one_piece(target) as folder:
            sizes = {}
            for name, data in parts():
                (folder / name).write_bytes(data)
                sizes[name] = len(data)
            files.write_json(folder / MARK, sizes)
    except LoomError:
        if not target.is_dir():  # else another process was faster, with the same content
            raise
    return target


def _sizes(folder: Path) -> dict[str, int]:
    """What the mark says; nothing where there is none that can be read."""
    try:
        value = json.loads((folder / MARK).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return {k: v for k, v in value.items() if isinstance(v, int)} if isinstance(value, dict) else {}


def _lost(folder: Path) -> set[str]:
    """Names of files that are there and hold nothing, or nothing but zeros, though they were written with content."""
    edited = _edited(folder)
    return {name for name, size in _sizes(folder).items() if size and name not in edited and _is_blank(folder / name)}


def _edited(folder: Path) -> set[str]:
    """Names of the files that a person changed in the dataset editor."""
    with contextlib.suppress(OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        history = json.loads((folder / OWN_LIST).read_bytes())["history"]
        return {change["file"] for entry in history for change in entry["captions"].values()}
    return set()


def _is_blank(path: Path) -> bool:
    """Whether a file is there without content."""
    try:
        with open(path, "rb") as file:
            return not file.read(HEAD_BYTES).strip(b"\0")
    except OSError:
        return False


def _is_cut(path: Path, data: bytes) -> bool:
    """Whether a file is missing, blank, or a picture that ends too early. A caption that is shorter may be a person's."""
    if not path.exists() or _is_blank(path):
        return True
    size = path.stat().st_size
    return path.suffix not in TEXTS and size < len(data) and path.read_bytes() == data[:size]


def _mend(folder: Path, parts: Parts, lost: set[str]) -> None:
    """Writes the lost files anew; without any, every file that is missing or blank and was not edited, and the mark that was missing."""
    sizes, edited = _sizes(folder), _edited(folder)
    values = {}
    for name, data in parts:
        path = folder / name
        values[name] = len(data)
        broken = name in lost if sizes else name not in edited and _is_cut(path, data)
        if broken and data:
            files.write_bytes(path, data)
    if not sizes:
        files.write_json(folder / MARK, values)
