"""The routes of dropped pictures: files go to a new folder below ComfyUI's input folder, in parts of bounded size."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import folder_paths

from ...jobs.uploads import Part, Uploads, planned
from ..access.paths import chosen_place
from .routes import PREFIX, Refused, body_of, guarded, in_thread, server

MAX_LIST = 16_000_000  # bytes of a list of files
MAX_PARTS, MAX_PART_BYTES = 500, 8 * 2**20  # in one request
MAX_HEADER = 65_536
_LENGTH = struct.Struct(">I")

UPLOADS = Uploads(lambda: Path(folder_paths.get_input_directory()))


async def _parts_of(request: Any) -> tuple[list[Part], memoryview]:
    """What a request carries: 4 bytes with the length of a JSON list [[index, offset, length], ...], that list, then the bytes. Raises Refused."""
    if request.content_type != "application/octet-stream":
        raise Refused(400, "upload.request")
    body = bytearray()
    async for chunk in request.content.iter_chunked(2**18):
        body += chunk
        if len(body) > MAX_PART_BYTES + MAX_HEADER + _LENGTH.size:
            raise Refused(413, "upload.request")
    if len(body) < _LENGTH.size:
        raise Refused(400, "upload.request")
    end = _LENGTH.size + _LENGTH.unpack_from(body)[0]
    try:
        values = json.loads(bytes(body[_LENGTH.size : end]))
    except (ValueError, RecursionError) as error:
        raise Refused(400, "upload.request") from error
    if not isinstance(values, list) or len(values) > MAX_PARTS or not all(_is_part(value) for value in values):
        raise Refused(400, "upload.request")
    return [Part(*value) for value in values], memoryview(body)[end:]


def _is_part(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(type(n) is int and n >= 0 for n in value)


def add_upload_routes() -> None:
    """POST /lora_loom/upload/begin, claim, part, finish and cancel; POST /lora_loom/upload/place says where a typed folder is."""
    from aiohttp import web

    host = server()
    if host is None:
        return

    @host.routes.post(f"{PREFIX}/upload/begin")
    @guarded
    async def begin(request: web.Request) -> web.Response:
        body = await body_of(request, MAX_LIST)
        plan, missing = planned(body.get("name"), body.get("files"))
        return web.json_response({**await in_thread(UPLOADS.begin, plan), "wanted": missing})

    @host.routes.post(f"{PREFIX}/upload/claim")
    @guarded
    async def claim(request: web.Request) -> web.Response:
        body = await body_of(request, MAX_LIST)
        return web.json_response({"have": await in_thread(UPLOADS.claim, body.get("id"), body.get("files"))})

    @host.routes.post(f"{PREFIX}/upload/part")
    @guarded
    async def part(request: web.Request) -> web.Response:
        parts, data = await _parts_of(request)
        await in_thread(UPLOADS.append, request.query.get("id"), parts, data)
        return web.json_response({"taken": len(data)})

    @host.routes.post(f"{PREFIX}/upload/finish")
    @guarded
    async def finish(request: web.Request) -> web.Response:
        return web.json_response(await in_thread(UPLOADS.finish, (await body_of(request)).get("id")))

    @host.routes.post(f"{PREFIX}/upload/cancel")
    @guarded
    async def cancel(request: web.Request) -> web.Response:
        await in_thread(UPLOADS.cancel, (await body_of(request)).get("id"))
        return web.json_response({})

    @host.routes.post(f"{PREFIX}/upload/place")
    @guarded
    async def place(request: web.Request) -> web.Response:
        text = (await body_of(request, MAX_HEADER)).get("folder")
        if not isinstance(text, str):
            raise Refused(400, "upload.request")
        return web.json_response({"folder": await in_thread(chosen_place, text)})
