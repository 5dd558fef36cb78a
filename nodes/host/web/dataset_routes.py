"""The routes of the dataset editor. A dataset is opened by running its node, which gives the browser an id; paths never travel."""

from __future__ import annotations

from pathlib import Path

import folder_paths

from ....lora_core.config import DataConfig
from ...jobs.editing import LARGE_PX, MAX_BODY, THUMB_PX, Editors, edits_in
from ..access.paths import captioner_places, vision_text_encoders
from .routes import PREFIX, Refused, body_of, guarded, in_thread, server


def may_edit(folder: Path) -> bool:
    """Only folders of the user's own: below the host's input folder."""
    return folder.resolve().is_relative_to(Path(folder_paths.get_input_directory()).resolve())


EDITORS = Editors(may_edit)


def open_session(sets: tuple[DataConfig, ...]) -> str:
    """The id under which the browser may look at and edit these folders."""
    return EDITORS.open(sets)


def captioner_choices() -> list[dict[str, str]]:
    """What an editor's page offers to caption with: `id`, and `kind`: folder for what lies in models/captioners, clip for a model of the host's own."""
    places = [{"id": name, "kind": "folder"} for name in captioner_places()]
    return places + [{"id": name, "kind": "clip"} for name in vision_text_encoders()]


def add_dataset_routes() -> None:
    """GET /lora_loom/dataset and /dataset/thumb change nothing; POST /dataset/edit and /dataset/undo write caption files and our own list."""
    from aiohttp import web

    host = server()
    if host is None:
        return

    @host.routes.get(f"{PREFIX}/dataset")
    @guarded
    async def dataset(request: web.Request) -> web.Response:
        return web.json_response(await in_thread(EDITORS.contents, request.query.get("session")))

    @host.routes.get(f"{PREFIX}/dataset/thumb")
    @guarded
    async def thumb(request: web.Request) -> web.Response:
        side = LARGE_PX if request.query.get("large") == "1" else THUMB_PX
        data = await in_thread(EDITORS.picture, request.query.get("session"), request.query.get("id", ""), side)
        return web.Response(
            body=data,
            content_type="image/jpeg",
            headers={"X-Content-Type-Options": "nosniff", "Cache-Control": "private, max-age=60"},
        )

    @host.routes.get(f"{PREFIX}/dataset/notes")
    @guarded
    async def notes(request: web.Request) -> web.Response:
        session, again = request.query.get("session"), request.query.get("again") == "1"
        return web.json_response(await in_thread(EDITORS.looked_at, session, again))

    @host.routes.post(f"{PREFIX}/dataset/trained")
    @guarded
    async def trained(request: web.Request) -> web.Response:
        body = await body_of(request, MAX_BODY)
        texts = body.get("captions")
        if not isinstance(texts, dict):
            raise Refused(400, "request.caption")
        return web.json_response({"trained": await in_thread(EDITORS.trained, body.get("session"), texts)})

    @host.routes.get(f"{PREFIX}/dataset/captioning")
    @guarded
    async def captioning(request: web.Request) -> web.Response:
        now = EDITORS.named(request.query.get("session")).captioning
        return web.json_response({"captioning": now and now.as_json()})

    @host.routes.get(f"{PREFIX}/dataset/captioners")
    @guarded
    async def captioners(request: web.Request) -> web.Response:
        return web.json_response({"captioners": await in_thread(captioner_choices)})

    @host.routes.post(f"{PREFIX}/dataset/stop_captioning")
    @guarded
    async def stop(request: web.Request) -> web.Response:
        now = EDITORS.named((await body_of(request)).get("session")).captioning
        if now is not None:
            now.stop.set()
        return web.json_response({"asked": now is not None})

    @host.routes.post(f"{PREFIX}/dataset/edit")
    @guarded
    async def change(request: web.Request) -> web.Response:
        body = await body_of(request, MAX_BODY)
        return web.json_response({"changed": await in_thread(EDITORS.edit, body.get("session"), edits_in(body))})

    @host.routes.post(f"{PREFIX}/dataset/undo")
    @guarded
    async def back(request: web.Request) -> web.Response:
        session = (await body_of(request)).get("session")
        return web.json_response({"changed": await in_thread(EDITORS.take_back, session)})
