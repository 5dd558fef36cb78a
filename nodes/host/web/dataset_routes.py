"""The routes of the dataset editor. A dataset is opened by running its node, which gives the browser an id; paths never travel."""

from __future__ import annotations

from pathlib import Path

import folder_paths

from ....lora_core.config import DataConfig
from ...jobs.editing import MAX_BODY, Editors, edits_in
from .routes import PREFIX, body_of, guarded, in_thread, server


def may_edit(folder: Path) -> bool:
    """Only folders of the user's own: below the host's input folder."""
    return folder.resolve().is_relative_to(Path(folder_paths.get_input_directory()).resolve())


EDITORS = Editors(may_edit)


def open_session(sets: tuple[DataConfig, ...]) -> str:
    """The id under which the browser may look at and edit these folders."""
    return EDITORS.open(sets)


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
        data = await in_thread(EDITORS.picture, request.query.get("session"), request.query.get("id", ""))
        return web.Response(
            body=data,
            content_type="image/jpeg",
            headers={"X-Content-Type-Options": "nosniff", "Cache-Control": "private, max-age=60"},
        )

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
