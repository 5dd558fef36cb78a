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
from ...lora_core.data.edits import MAX_CAPTION, MAX_CHANGES, Editable, apply_edits, last_edit, listed, undo
from ...lora_core.pictures.reading import PictureError, thumbnail
from .requests import Refused

MAX_OPEN = 50
MAX_BODY = 16_000_000
THUMB_PX = 256
Edits = tuple[dict[str, tuple[str, str]], dict[str, bool]]  # captions as they were seen and shall be, pictures left out


@dataclasses.dataclass
class Session:
    """An opened dataset. `paths`: where each picture lies that the browser was told of; `lock`: one edit at a time."""

    sets: tuple[DataConfig, ...]
    paths: dict[str, Path] = dataclasses.field(default_factory=dict)
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)


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
            sets.append({"label": folder.name, "editable": self._editable(data), "trigger": data.trigger})
            pictures += [_shown(item, n) for item in items]
        return {"sets": sets, "pictures": pictures}

    def edit(self, key: Any, edits: Edits) -> int:
        """Each set gets what concerns it. Raises Refused for a set that is not the user's own, Conflict when something changed meanwhile."""
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
            done, number = 0, time.time_ns()
            for data, mine in jobs:
                texts = {item: captions[item] for item in mine if item in captions}
                flips = {item: excluded[item] for item in mine if item in excluded}
                done += apply_edits(Path(data.folder), data, texts, flips, number)
            return done

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

    def picture(self, key: Any, item: str) -> bytes:
        """A small JPEG of one picture. Raises Refused."""
        path = self.named(key).paths.get(item)
        if path is None:
            raise Refused(404, "editor.no_picture")
        data = io.BytesIO()
        try:
            thumbnail(path, THUMB_PX).save(data, "JPEG", quality=85)
        except PictureError as error:
            raise Refused(404, "picture.of", name=path.name, error=error) from error
        return data.getvalue()

    def _editable(self, data: DataConfig) -> bool:
        return self._may_edit(Path(data.folder))


def _shown(item: Editable, n: int) -> dict[str, Any]:
    return {
        "id": item.id,
        "set": n,
        "name": item.name,
        "caption": item.caption,
        "excluded": item.excluded,
        "locked": item.locked and item.locked.as_json(),
        "width": item.picture.width_px,
        "height": item.picture.height_px,
    }


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
