"""The routes of the dataset editor. A dataset is opened by running its node, which gives the browser an id; paths never travel."""

from __future__ import annotations

import collections
import dataclasses
import io
import secrets
import threading
import time
from pathlib import Path
from typing import Any

import folder_paths

from ....lora_core.config import DataConfig
from ....lora_core.data.edits import MAX_CAPTION, MAX_CHANGES, Editable, apply_edits, last_edit, listed, undo
from ....lora_core.pictures.reading import PictureError, thumbnail
from .routes import PREFIX, Refused, body_of, guarded, in_thread, server

MAX_OPEN = 50
MAX_BODY = 16_000_000
THUMB_PX = 256


@dataclasses.dataclass
class Session:
    """An opened dataset. `paths`: where each picture lies that the browser was told of; `lock`: one edit at a time."""

    sets: tuple[DataConfig, ...]
    paths: dict[str, Path] = dataclasses.field(default_factory=dict)
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)


_open: collections.OrderedDict[str, Session] = collections.OrderedDict()


def open_session(sets: tuple[DataConfig, ...]) -> str:
    """The id under which the browser may look at and edit these folders, until the server ends or 50 others were opened."""
    session_key = next((key for key, session in _open.items() if session.sets == sets), None)
    key = session_key or secrets.token_urlsafe(16)
    _open.setdefault(key, Session(sets))
    _open.move_to_end(key)
    while len(_open) > MAX_OPEN:
        _open.popitem(last=False)
    return key


def editable(data: DataConfig) -> bool:
    """Only folders of the user's own: below the host's input folder."""
    return Path(data.folder).resolve().is_relative_to(Path(folder_paths.get_input_directory()).resolve())


def contents(session: Session) -> dict[str, Any]:
    """What the browser shows: each set, and each of its pictures."""
    sets, pictures = [], []
    for n, data in enumerate(session.sets):
        folder = Path(data.folder)
        items = listed(folder, data)
        session.paths |= {item.id: item.picture.path for item in items}
        sets.append({"label": folder.name, "editable": editable(data), "trigger": data.trigger})
        pictures += [_shown(item, n) for item in items]
    return {"sets": sets, "pictures": pictures}


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


def edit(session: Session, captions: dict[str, tuple[str, str]], excluded: dict[str, bool]) -> int:
    """Each set gets what concerns it. Raises Refused for a set that is not the user's own, Conflict when something changed meanwhile."""
    with session.lock:
        left = {*captions, *excluded}
        jobs = []
        for data in session.sets:
            mine = {item.id for item in listed(Path(data.folder), data)} & left
            left -= mine
            if mine and not editable(data):
                raise Refused(403, "editor.outside", folder=Path(data.folder).name)
            if mine:
                jobs.append((data, mine))
        if left:
            raise Refused(404, "editor.not_in_dataset", count=len(left))
        done, number = 0, time.time_ns()
        for data, mine in jobs:
            chosen = {key: captions[key] for key in mine if key in captions}
            done += apply_edits(
                Path(data.folder), data, chosen, {key: excluded[key] for key in mine if key in excluded}, number
            )
        return done


def take_back(session: Session) -> int:
    """Undoes the last edit, in every folder it touched."""
    with session.lock:
        numbers = {data.folder: (last_edit(Path(data.folder)), data) for data in session.sets if editable(data)}
        newest = max((n for n, _ in numbers.values() if n is not None), default=None)
        return sum(
            undo(Path(folder), data) for folder, (n, data) in numbers.items() if newest is not None and n == newest
        )


def _session(key: Any) -> Session:
    if not isinstance(key, str) or key not in _open:
        raise Refused(404, "editor.not_open")
    return _open[key]


def _edits(body: dict[str, Any]) -> tuple[dict[str, tuple[str, str]], dict[str, bool]]:
    captions, excluded = body.get("captions", {}), body.get("excluded", {})
    if not isinstance(captions, dict) or not isinstance(excluded, dict) or len(captions) + len(excluded) > MAX_CHANGES:
        raise Refused(400, "request.edits", limit=MAX_CHANGES)
    for pair in captions.values():
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or not all(isinstance(t, str) and len(t) <= 2 * MAX_CAPTION for t in pair)
        ):
            raise Refused(400, "request.caption")
    if not all(isinstance(value, bool) for value in excluded.values()):
        raise Refused(400, "request.excluded")
    return {key: (pair[0], pair[1]) for key, pair in captions.items()}, excluded


def add_dataset_routes() -> None:
    """GET /lora_loom/dataset and /dataset/thumb change nothing; POST /dataset/edit and /dataset/undo write caption files and our own list."""
    from aiohttp import web

    host = server()
    if host is None:
        return

    @host.routes.get(f"{PREFIX}/dataset")
    @guarded
    async def dataset(request: web.Request) -> web.Response:
        return web.json_response(await in_thread(contents, _session(request.query.get("session"))))

    @host.routes.get(f"{PREFIX}/dataset/thumb")
    @guarded
    async def thumb(request: web.Request) -> web.Response:
        path = _session(request.query.get("session")).paths.get(request.query.get("id", ""))
        if path is None:
            raise Refused(404, "editor.no_picture")
        try:
            data = await in_thread(_jpeg, path)
        except PictureError as error:
            raise Refused(404, "picture.of", name=path.name, error=error) from error
        return web.Response(
            body=data,
            content_type="image/jpeg",
            headers={"X-Content-Type-Options": "nosniff", "Cache-Control": "private, max-age=60"},
        )

    @host.routes.post(f"{PREFIX}/dataset/edit")
    @guarded
    async def change(request: web.Request) -> web.Response:
        body = await body_of(request, MAX_BODY)
        session, edits = _session(body.get("session")), _edits(body)
        return web.json_response({"changed": await in_thread(edit, session, *edits)})

    @host.routes.post(f"{PREFIX}/dataset/undo")
    @guarded
    async def back(request: web.Request) -> web.Response:
        session = _session((await body_of(request)).get("session"))
        return web.json_response({"changed": await in_thread(take_back, session)})


def _jpeg(path: Path) -> bytes:
    data = io.BytesIO()
    thumbnail(path, THUMB_PX).save(data, "JPEG", quality=85)
    return data.getvalue()
