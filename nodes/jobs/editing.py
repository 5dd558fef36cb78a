"""Datasets open in an editor's page, on every host: what is shown of each, edits that are checked and written, the way back. Paths never travel."""

from __future__ import annotations

import collections
import dataclasses
import io
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...lora_core.config import DataConfig
from ...lora_core.data.edits import MAX_CAPTION, MAX_CHANGES, Editable, apply_edits, last_edit, listed, trained_as, undo
from ...lora_core.messages.errors import LoomError
from ...lora_core.pictures.reading import PictureError
from ...lora_core.pictures.thumbnails import thumbnail
from .caption_state import Captioning
from .looking import Looking
from .requests import Refused

MAX_OPEN = 50
MAX_BODY = 16_000_000
THUMB_PX, LARGE_PX = 256, 2048
MOST_SHOWN = 3  # captions of a picture
MAX_PREVIEWED = 200  # pictures whose captions are being edited, at a time
Edits = tuple[dict[str, tuple[str, str]], dict[str, bool]]  # captions as they were seen and shall be, pictures left out


@dataclasses.dataclass
class Session:
    """An opened dataset. `paths`: where each picture lies that the browser was told of; `lock`: one edit at a time; `captioning`, `looking`: the newest."""

    sets: tuple[DataConfig, ...]
    paths: dict[str, Path] = dataclasses.field(default_factory=dict)
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    captioning: Captioning | None = None
    looking: Looking | None = None


class Editors:
    """The datasets a host has opened for its pages. `may_edit`: whether captions may be written in a folder."""

    def __init__(self, may_edit: Callable[[Path], bool]):
        self._may_edit = may_edit
        self._open: collections.OrderedDict[str, Session] = collections.OrderedDict()

    def open(self, sets: tuple[DataConfig, ...]) -> str:
        """The id under which the browser may look at and edit these folders, until the server ends or 50 others were opened."""
        known = next((key for key, session in self._open.items() if session.sets == sets), None)
        key = known or secrets.token_urlsafe(16)
        self._open.setdefault(key, Session(sets))
        self._open.move_to_end(key)
        while len(self._open) > MAX_OPEN:
            self._open.popitem(last=False)
        return key

    def named(self, key: Any) -> Session:
        """Raises Refused for what is not open."""
        if not isinstance(key, str) or key not in self._open:
            raise Refused(404, "editor.not_open")
        return self._open[key]

    def contents(self, key: Any) -> dict[str, Any]:
        """What the browser shows: each set, and each of its pictures."""
        session = self.named(key)
        sets, pictures = [], []
        for n, data in enumerate(session.sets):
            folder = Path(data.folder)
            items = listed(folder, data)
            session.paths |= {item.id: item.picture.path for item in items}
            session.paths |= {f"{item.id}-{n}": path for item in items for n, path in enumerate(item.picture.controls)}
            paired = data.shows_controls
            sets.append(
                {"label": folder.name, "editable": self._editable(data), "trigger": data.trigger, "paired": paired}
            )
            pictures += [_shown(item, n, data) for item in items]
        return {"sets": sets, "pictures": pictures}

    def trained(self, key: Any, texts: Mapping[str, Any]) -> dict[str, list[str]]:
        """What is trained of captions that are not saved yet, by picture. Raises Refused for what is no caption."""
        if len(texts) > MAX_PREVIEWED or not all(
            isinstance(text, str) and len(text) <= MAX_CAPTION for text in texts.values()
        ):
            raise Refused(400, "request.caption")
        session, out = self.named(key), dict[str, list[str]]()
        for data in session.sets:
            for item in listed(Path(data.folder), data) if texts.keys() - out.keys() else ():
                if item.id in texts:
                    out[item.id] = _trained(item, data, texts[item.id])
        return out

    def edit(self, key: Any, edits: Edits, number: int = 0) -> int:
        """Each set gets what concerns it. Raises Refused for a set that is not the user's own, Conflict when something changed meanwhile.

        `number`: that of an edit which this one goes on with, if it is still the last one; 0: one of its own.
        """
        session, (captions, excluded) = self.named(key), edits
        with session.lock:
            left = {*captions, *excluded}
            jobs = []
            for data in session.sets:
                mine = {item.id for item in listed(Path(data.folder), data)} & left
                left -= mine
                if mine and not self._editable(data):
                    raise Refused(403, "editor.outside", folder=Path(data.folder).name)
                if mine:
                    jobs.append((data, mine))
            if left:
                raise Refused(404, "editor.not_in_dataset", count=len(left))
            done, number = 0, number or time.time_ns()
            for data, mine in jobs:
                texts = {item: captions[item] for item in mine if item in captions}
                flips = {item: excluded[item] for item in mine if item in excluded}
                done += apply_edits(Path(data.folder), data, texts, flips, number)
            return done

    def listed(self, key: Any) -> list[tuple[DataConfig, Editable]]:
        """Every picture of every set as it is now. Raises Refused for a set that is not the user's own."""
        out = []
        for data in self.named(key).sets:
            if not self._editable(data):
                raise Refused(403, "editor.outside", folder=Path(data.folder).name)
            out += [(data, item) for item in listed(Path(data.folder), data)]
        return out

    def newest(self, key: Any) -> int | None:
        """The number of the edit that `take_back` would take back; None where there is none."""
        numbers = [last_edit(Path(data.folder)) for data in self.named(key).sets]
        return max((number for number in numbers if number is not None), default=None)

    def take_back(self, key: Any) -> int:
        """Undoes the last edit, in every folder it touched."""
        session = self.named(key)
        with session.lock:
            sets = [data for data in session.sets if self._editable(data)]
            numbers = {data.folder: (last_edit(Path(data.folder)), data) for data in sets}
            newest = max((n for n, _ in numbers.values() if n is not None), default=None)
            return sum(
                undo(Path(folder), data) for folder, (n, data) in numbers.items() if newest is not None and n == newest
            )

    def looked_at(self, key: Any, again: bool) -> dict[str, Any]:
        """How far the look at its pictures is, which begins with the first question and with `again`; what was noticed by picture once it is done."""
        session = self.named(key)
        with session.lock:
            if session.looking is None or (again and session.looking.as_json()["ready"]):
                session.looking = Looking(session.sets)
            return session.looking.as_json()

    def picture(self, key: Any, item: str, side_px: int = THUMB_PX) -> bytes:
        """A JPEG of one picture, at most `side_px` a side. Raises Refused."""
        path = self.named(key).paths.get(item)
        if path is None:
            raise Refused(404, "editor.no_picture")
        data = io.BytesIO()
        try:
            thumbnail(path, side_px).save(data, "JPEG", quality=85)
        except PictureError as error:
            raise Refused(404, "picture.of", name=path.name, error=error) from error
        return data.getvalue()

    def _editable(self, data: DataConfig) -> bool:
        return self._may_edit(Path(data.folder))


def _shown(item: Editable, n: int, data: DataConfig) -> dict[str, Any]:
    return {
        "id": item.id,
        "set": n,
        "name": item.name,
        "caption": item.caption,
        "trained": _trained(item, data, item.caption),
        "excluded": item.excluded,
        "locked": item.locked and item.locked.as_json(),
        "width": item.picture.width_px,
        "height": item.picture.height_px,
        "controls": [path.name for path in item.picture.controls],
    }


def _trained(item: Editable, data: DataConfig, text: str) -> list[str]:
    """A few of the captions that are trained; none where a rule of the set cannot be read, which training says."""
    try:
        return trained_as(item, data, text)[:MOST_SHOWN]
    except LoomError:
        return []


def edits_in(body: Mapping[str, Any]) -> Edits:
    """What a page wants changed. Raises Refused for what is none."""
    captions, excluded = body.get("captions", {}), body.get("excluded", {})
    if not isinstance(captions, dict) or not isinstance(excluded, dict) or len(captions) + len(excluded) > MAX_CHANGES:
        raise Refused(400, "request.edits", limit=MAX_CHANGES)
    if not all(_is_edit(pair) for pair in captions.values()):
        raise Refused(400, "request.caption")
    if not all(isinstance(value, bool) for value in excluded.values()):
        raise Refused(400, "request.excluded")
    return {key: (pair[0], pair[1]) for key, pair in captions.items()}, excluded


def _is_edit(pair: Any) -> bool:
    """Two captions: as it was seen, as it shall be."""
    return (
        isinstance(pair, list)
        and len(pair) == 2
        and all(isinstance(text, str) and len(text) <= 2 * MAX_CAPTION for text in pair)
    )
