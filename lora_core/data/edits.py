"""Edits to a folder that a person makes: captions, pictures left out, and the way back. Writes caption files and one list of its own, nothing else."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import files
from ..config import DataConfig
from ..errors import LoomError
from .captions import decoded, lines_of
from .folder import OWN_LIST, Picture, excluded_in, scan

MAX_CAPTION = 20_000  # characters
MAX_CHANGES = 20_000
MAX_HISTORY = 50
_TEXTS = (".txt", ".caption")


class Conflict(LoomError):
    """A file is no longer what the person saw when they changed it."""


@dataclasses.dataclass(frozen=True)
class Editable:
    """One picture of a folder as the editor shows it. `caption`: the text as it stands in its file, one line of it a line."""

    id: str
    name: str
    path: Path
    caption: str
    excluded: bool
    width_px: int
    height_px: int


def listed(folder: Path, config: DataConfig) -> list[Editable]:
    """Every picture of a folder, those left out too, with its caption before any trigger or edit of the set."""
    plain = dataclasses.replace(config, folder=str(folder), trigger="", prefix="", suffix="", replace="", limit=0, regularization=False)
    out = set(excluded_in(folder))
    found = scan(plain, keep_excluded=True)
    return [
        Editable(identity(folder, p.name), p.name, p.path, text_of(p, config), p.name in out, p.width_px, p.height_px)
        for p in sorted((*found.pictures, *found.class_pictures), key=lambda p: p.name) if not p.is_latent
    ]  # fmt: skip


def identity(folder: Path, name: str) -> str:
    """What the browser calls a picture by; a path never leaves this machine, and none comes in."""
    return hashlib.sha256(f"{folder}\0{name}".encode()).hexdigest()[:20]


def text_of(picture: Picture, config: DataConfig) -> str:
    file = caption_file(picture.path)
    if file.is_file() and not file.is_symlink():
        return "\n".join(lines_of(decoded(file.read_bytes(), config.caption_encoding)[0]))
    return "\n".join(c.text for c in picture.captions)


def caption_file(picture: Path) -> Path:
    """Where the caption of a picture is read from and written to: the file that is there, else <name>.txt; <name>.png.txt where names clash."""
    own = [Path(f"{picture}{suffix}") for suffix in _TEXTS]
    shared = [picture.with_suffix(suffix) for suffix in _TEXTS]
    there = next((file for file in own if file.is_file()), None)
    if there:
        return there
    twins = [p for p in picture.parent.glob(f"{_escaped(picture.stem)}.*") if p != picture and p.suffix.lower() not in (*_TEXTS, ".json")]
    if twins:
        return own[0]
    return next((file for file in shared if file.is_file()), shared[0])


def apply_edits(folder: Path, config: DataConfig, captions: Mapping[str, tuple[str, str]], excluded: Mapping[str, bool], edit: int = 0) -> int:
    """Writes new captions, by picture id (text the person saw, new text), and leaves pictures out or takes them in. Returns how many changed.

    `edit`: what tells this edit from others, the same in every folder it touches; later ones have larger numbers.

    All or none: raises Conflict when a caption is another one by now, LoomError for what is not there or too long, before anything is written.
    """
    known = {item.id: item for item in listed(folder, config)}
    unknown = [key for key in (*captions, *excluded) if key not in known]
    if unknown:
        raise Conflict(f"{folder.name}: {len(unknown)} of the pictures are no longer there; load the dataset again.")
    changes: dict[str, tuple[str, str]] = {}
    for key, (before, after) in captions.items():
        after = "\n".join(lines_of(after))
        if len(after) > MAX_CAPTION:
            raise LoomError(f"{known[key].name}: its caption has {len(after)} characters; at most {MAX_CAPTION} are allowed.")
        if known[key].caption != before:
            raise Conflict(f"{known[key].name}: its caption was changed elsewhere meanwhile; load the dataset again.")
        if after != before:
            changes[known[key].name] = before, after
    by_name = {item.name: item for item in known.values()}
    out = {item.name for item in known.values() if excluded.get(item.id, item.excluded)}
    before_out = {item.name for item in known.values() if item.excluded}
    if not changes and out == before_out:
        return 0
    entry: dict[str, Any] = {"edit": edit, "excluded": sorted(before_out), "captions": {}}
    for name, (before, after) in changes.items():
        file = caption_file(by_name[name].path)
        old = base64.b64encode(file.read_bytes()).decode() if file.is_file() else None  # undo gives back the very bytes
        entry["captions"][name] = {"before": before, "after": after, "bytes": old}
    _write_own(folder, sorted(out), [*_history(folder), entry][-MAX_HISTORY:])
    for name, (_, after) in changes.items():
        files.write_bytes(caption_file(by_name[name].path), after.encode())
    return len(changes) + len(out ^ before_out)


def last_edit(folder: Path) -> int | None:
    """The number of the edit that `undo` would take back; None when there is none."""
    history = _history(folder)
    return int(history[-1].get("edit", 0)) if history else None


def undo(folder: Path, config: DataConfig) -> int:
    """Takes the last edit back. Returns how many pictures it touched; 0 when there is nothing to take back. Raises Conflict."""
    history = _history(folder)
    if not history:
        return 0
    entry = history[-1]
    by_name = {item.name: item for item in listed(folder, config)}
    touched = {name: change for name, change in entry["captions"].items() if name in by_name}
    for name, change in touched.items():
        if by_name[name].caption not in (change["after"], change["before"]):  # the latter where a crash came between
            raise Conflict(f"{name}: its caption was changed since; undo would lose that. Edit it by hand.")
    for name, change in touched.items():
        file = caption_file(by_name[name].path)
        if change["bytes"] is None:
            file.unlink(missing_ok=True)
        else:
            files.write_bytes(file, base64.b64decode(change["bytes"]))
    now = set(excluded_in(folder))
    _write_own(folder, entry["excluded"], history[:-1])
    return len(touched) + len(now ^ set(entry["excluded"]))


def _history(folder: Path) -> list[dict[str, Any]]:
    try:
        history = json.loads((folder / OWN_LIST).read_text(encoding="utf-8"))["history"]
        return [entry for entry in history if isinstance(entry["captions"], dict) and isinstance(entry["excluded"], list)]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def _write_own(folder: Path, excluded: Sequence[str], history: Sequence[Mapping[str, Any]]) -> None:
    files.write_json(folder / OWN_LIST, {"about": "LoRA Loom's dataset editor: pictures left out of training, and edits that can be undone",
                                         "excluded": list(excluded), "history": list(history)})  # fmt: skip


def _escaped(stem: str) -> str:
    return "".join(f"[{c}]" if c in "[]*?" else c for c in stem)
