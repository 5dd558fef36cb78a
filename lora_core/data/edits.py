"""Edits to a folder that a person makes: captions, pictures left out, and the way back. Writes caption files and one list of its own, nothing else."""

from __future__ import annotations

import base64
import collections
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config import DataConfig
from ..disk import files
from ..messages.errors import LoomError
from ..messages.message import Message
from .captions import Caption, captions_in, decoded, editor, lines_of
from .dataset import Picture
from .folder import scan
from .reader import TEXTS
from .walk import OWN_LIST, excluded_in

MAX_CAPTION = 20_000  # characters
MAX_CHANGES = 20_000
MAX_HISTORY = 50
MAX_HISTORY_BYTES = 4_000_000
_EDITABLE = ("auto", *TEXTS)


class Conflict(LoomError):
    """A file is no longer what the person saw when they changed it."""


@dataclasses.dataclass(frozen=True)
class Editable:
    """One picture of a folder as the editor shows it. `caption`: the text as it stands in its file, one line of it a line.

    `file`: the caption file, there or to be made. `locked`: why the caption cannot be edited, None where it can.
    """

    id: str
    name: str
    caption: str
    excluded: bool
    picture: Picture
    file: Path
    locked: Message | None


def listed(folder: Path, config: DataConfig) -> list[Editable]:
    """Every picture of a folder, those left out too, with its caption before any trigger or edit of the set."""
    plain = dataclasses.replace(
        config, folder=str(folder), trigger="", prefix="", suffix="", replace="", limit=0, regularization=False
    )
    out, dataset = set(excluded_in(folder)), scan(plain, keep_excluded=True)
    pictures = sorted(
        (p for p in (*dataset.pictures, *dataset.class_pictures) if not p.is_latent), key=lambda p: p.name
    )
    stems = collections.Counter(p.path.with_suffix("") for p in pictures)
    return [_editable(folder, p, p.name in out, stems[p.path.with_suffix("")] > 1) for p in pictures]


def _editable(folder: Path, picture: Picture, excluded: bool, shares_its_name: bool) -> Editable:
    file = _file_of(picture, shares_its_name)
    key, locked = identity(folder, picture.name), _why_locked(picture, file)
    return Editable(key, picture.name, text_of(picture), excluded, picture, file, locked)


def identity(folder: Path, name: str) -> str:
    """What the browser calls a picture by; a path never leaves this machine, and none comes in."""
    return hashlib.sha256(f"{folder}\0{name}".encode("utf-8", "surrogateescape")).hexdigest()[:20]


def text_of(picture: Picture) -> str:
    """The caption file as it stands where one is read, else the captions from elsewhere, weights in front of them."""
    if picture.caption_file is not None:
        return "\n".join(lines_of(decoded(picture.caption_file.read_bytes(), picture.data.caption_encoding)[0]))
    return "\n".join(c.text if c.weight == 1 else f"{c.weight:g}::{c.text}" for c in picture.captions)


def trained_as(item: Editable, config: DataConfig, text: str) -> list[str]:
    """The captions that are trained when `text` stands in the editor: as the set's trigger, prefix, suffix and rules make them. Raises LoomError.

    Without a text the trigger alone, or nothing. What is drawn anew at each step (order of tags, dropout) is not drawn.
    """
    if text == item.caption and item.picture.captions and item.picture.caption_file is None:
        captions: Sequence[Caption] = item.picture.captions  # from elsewhere: a table, a file's name, a folder's
    else:
        captions = captions_in(text, config.caption_lines)
    edit = editor(config)
    return [edit(caption).text for caption in captions or (Caption(""),)]


def _file_of(picture: Picture, shares_its_name: bool) -> Path:
    """The file that is read, and a new one where there is none; one by the whole name where several pictures share a stem."""
    suffix = picture.data.captions if picture.data.captions in TEXTS else TEXTS[0]
    caption_file = Path(f"{picture.path}{suffix}")
    if picture.caption_file is None:
        return caption_file if shares_its_name else picture.path.with_suffix(suffix)
    return (
        caption_file
        if shares_its_name and picture.caption_file.name != f"{picture.path.name}{picture.caption_file.suffix}"
        else picture.caption_file
    )


def _why_locked(picture: Picture, file: Path) -> Message | None:
    """`file`: what would be written; a link that says nothing yet is one all the same."""
    if picture.data.captions not in _EDITABLE:
        return Message.of("editor.captions_from", source=picture.data.captions)
    if file.is_symlink() or (picture.caption_file is not None and picture.caption_file.is_symlink()):
        return Message.of("editor.caption_link")
    if len(picture.captions) > 1 and picture.caption_file is None and picture.data.caption_lines != "alternatives":
        return Message.of("editor.several_captions")
    return None


def apply_edits(
    folder: Path,
    config: DataConfig,
    captions: Mapping[str, tuple[str, str]],
    excluded: Mapping[str, bool],
    edit: int = 0,
) -> int:
    """Writes new captions, by picture id (text the person saw, new text), and leaves pictures out or takes them in. Returns how many changed.

    `edit`: what tells this edit from others, the same in every folder it touches; later ones have larger numbers. What is written under the number
    of the last edit of captions becomes a part of it, taken back with it; 0 is always an edit of its own.

    All or none: raises Conflict when a caption is another one by now, LoomError for what is not there, too long or cannot be written, before
    anything is written.
    """
    items = {item.id: item for item in listed(folder, config)}
    unknown = [key for key in (*captions, *excluded) if key not in items]
    if unknown:
        raise Conflict("editor.pictures_gone", folder=folder.name, count=len(unknown))
    new: dict[str, bytes] = {}
    changes: dict[str, dict[str, Any]] = {}
    for key, (before, after) in captions.items():
        item, after = items[key], "\n".join(lines_of(after))
        if item.caption != before:
            raise Conflict("editor.caption_changed", name=item.name)
        if after == before:
            continue
        new[item.name] = _encoded(item, after, config.caption_encoding)
        old = (
            base64.b64encode(item.file.read_bytes()).decode() if item.file.is_file() else None
        )  # undo gives back the very bytes
        changes[item.name] = {
            "file": item.file.relative_to(folder).as_posix(),
            "before": before,
            "after": after,
            "bytes": old,
        }
    out = {item.name for item in items.values() if excluded.get(item.id, item.excluded)}
    before_out = {item.name for item in items.values() if item.excluded}
    if not changes and out == before_out:
        return 0
    entry = {
        "edit": edit,
        "left_out": sorted(out - before_out),
        "taken_in": sorted(before_out - out),
        "captions": changes,
    }
    now_out = (set(excluded_in(folder)) | out) - (
        before_out - out
    )  # of pictures that are not seen at the moment nothing is forgotten
    _write_own(folder, sorted(now_out), _continued(_history(folder), entry))
    for item in items.values():
        if item.name in new:
            files.write_bytes(item.file, new[item.name])
    return len(changes) + len(out ^ before_out)


def _continued(history: Sequence[Mapping[str, Any]], entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The history with one more entry, or with it in the last one where both are captions of the same edit."""
    last = history[-1] if history else {}
    plain = not any(one.get(key) for one in (last, entry) for key in ("left_out", "taken_in"))
    if not entry["edit"] or last.get("edit") != entry["edit"] or not plain:
        return [*history, entry]
    captions = dict(last["captions"])
    for name, change in entry["captions"].items():
        earlier = captions.get(name, change)
        captions[name] = {**change, "before": earlier["before"], "bytes": earlier["bytes"]}
    return [*history[:-1], {**last, "captions": captions}]


def _encoded(item: Editable, text: str, encoding: str) -> bytes:
    """The caption as its file will hold it. Raises LoomError."""
    if item.locked:
        raise LoomError("editor.locked", name=item.name, reason=item.locked)
    if len(text) > MAX_CAPTION:
        raise LoomError("editor.caption_long", name=item.name, length=len(text), limit=MAX_CAPTION)
    try:
        return text.encode("utf-8" if encoding == "auto" else encoding)
    except UnicodeEncodeError as error:
        letters = text[error.start : error.end]
        raise LoomError("editor.caption_encoding", name=item.name, text=repr(letters), encoding=encoding) from error


def last_edit(folder: Path) -> int | None:
    """The number of the edit that `undo` would take back; None when there is none."""
    history = _history(folder)
    return int(history[-1].get("edit", 0)) if history else None


def undo(folder: Path, config: DataConfig) -> int:
    """Takes the last edit back. Returns how many pictures it touched; 0 when there is nothing to take back. Raises Conflict."""
    history = _history(folder)
    if not history:
        return 0
    entry, by_name, inside = history[-1], {item.name: item for item in listed(folder, config)}, folder.resolve()
    touched: dict[Path, dict[str, Any]] = {}
    for name, change in entry["captions"].items():
        file = folder / change["file"]
        if name not in by_name or not file.resolve().is_relative_to(inside) or file.suffix not in TEXTS:
            continue
        if by_name[name].caption not in (change["after"], change["before"]):  # the latter where a crash came between
            raise Conflict("editor.undo_conflict", name=name)
        touched[file] = change
    for file, change in touched.items():
        if change["bytes"] is None:
            file.unlink(missing_ok=True)
        else:
            files.write_bytes(file, base64.b64decode(change["bytes"]))
    _write_own(
        folder, sorted((set(excluded_in(folder)) - set(entry["left_out"])) | set(entry["taken_in"])), history[:-1]
    )
    return len(touched) + len(entry["left_out"]) + len(entry["taken_in"])


def _history(folder: Path) -> list[dict[str, Any]]:
    """The edits that can be undone, oldest first; entries that are none, in a list somebody changed, are passed over."""
    try:
        history = json.loads((folder / OWN_LIST).read_text(encoding="utf-8"))["history"]
        return [entry for entry in history if _is_entry(entry)]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def _is_entry(entry: Any) -> bool:
    if (
        not isinstance(entry, dict)
        or not isinstance(entry.get("captions"), dict)
        or not isinstance(entry.get("edit"), int)
    ):
        return False
    if not all(
        isinstance(entry.get(key), list) and all(isinstance(n, str) for n in entry[key])
        for key in ("left_out", "taken_in")
    ):
        return False
    texts = ("file", "before", "after")
    return all(
        isinstance(c, dict)
        and all(isinstance(c.get(key), str) for key in texts)
        and isinstance(c.get("bytes", 0), str | None)
        and _is_base64(c["bytes"])
        for c in entry["captions"].values()
    )


def _is_base64(text: str | None) -> bool:
    try:
        base64.b64decode(text or "", validate=True)
    except ValueError:
        return False
    return True


def _write_own(folder: Path, excluded: Sequence[str], history: Sequence[Mapping[str, Any]]) -> None:
    """The newest edits are kept, as many as MAX_HISTORY and MAX_HISTORY_BYTES allow, the last one always."""
    newest: list[Mapping[str, Any]] = []
    size = 0
    for entry in reversed(history[-MAX_HISTORY:]):
        size += len(json.dumps(entry))
        if newest and size > MAX_HISTORY_BYTES:
            break
        newest.insert(0, entry)
    about = "LoRA Loom's dataset editor: pictures left out of training, and edits that can be undone"
    files.write_json(folder / OWN_LIST, {"about": about, "excluded": list(excluded), "history": newest})
