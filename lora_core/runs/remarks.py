"""What a person says of a run: a title, a note, a star. It lies in a file of its own in the run folder and changes nothing else there."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ..disk.files import write_json
from ..messages.errors import LoomError
from .bounded import read_json

FILE = "remark.json"
MAX_TITLE, MAX_NOTE, MAX_BYTES = 120, 4000, 64 << 10  # characters; bytes of the file


@dataclasses.dataclass(frozen=True)
class Remark:
    """`title` stands in the list in the place of the folder's name, which stays what the run is known by."""

    title: str = ""
    note: str = ""
    star: bool = False


def read(folder: Path) -> Remark:
    """What is said of the run in a folder; nothing where the file is damaged."""
    value = read_json(folder / FILE, MAX_BYTES)
    title, note, star = (
        (value.get(name) for name in ("title", "note", "star")) if isinstance(value, dict) else [None] * 3
    )
    return Remark(_text(title, MAX_TITLE), _text(note, MAX_NOTE), star is True)


def write(folder: Path, changes: dict[str, Any]) -> Remark:
    """Takes over what `changes` holds of title, note and star; a title is one line. Raises LoomError for what is too long or none of these."""
    unknown = sorted(set(changes) - {field.name for field in dataclasses.fields(Remark)})
    if unknown or not changes:
        raise LoomError("remark.unknown", found=unknown)
    for name, limit in (("title", MAX_TITLE), ("note", MAX_NOTE)):
        text = changes.get(name, "")
        if not isinstance(text, str) or len(text) > limit:
            raise LoomError("remark.text", field=name, limit=limit)
    if not isinstance(changes.get("star", False), bool):
        raise LoomError("remark.star", field="star")
    if "title" in changes:
        changes = {**changes, "title": " ".join(changes["title"].split())}
    remark = dataclasses.replace(read(folder), **changes)
    write_json(folder / FILE, dataclasses.asdict(remark))
    return remark


def _text(value: Any, limit: int) -> str:
    return value.encode("utf-8", "replace").decode()[:limit] if isinstance(value, str) else ""
