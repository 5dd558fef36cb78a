"""The routes of the panel: its state and the sample pictures of a run. Both change nothing; runs are named by id, pictures by step."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

from ....lora_core.pictures.reading import PictureError, thumbnail
from ..access.paths import runs_root
from .panel import PANELS
from .routes import PREFIX, Refused, guarded, in_thread, server

LONGEST_ID = 200
SMALL_PX = 128
SIZES_PX = (SMALL_PX, 1024)


def _text(request: Any, name: str) -> str:
    value = request.query.get(name, "")
    if len(value) > LONGEST_ID:
        raise Refused(400, "request.long", name=name)
    return value


def _number(request: Any, name: str, default: int | None = None) -> int:
    value = request.query.get(name)
    if value is None and default is not None:
        return default
    if value is None or not re.fullmatch(r"[0-9]{1,9}", value):
        raise Refused(400, "request.number", name=name)
    return int(value)


def snapshot(node: str, workflow: str, after: int, session: str) -> str:
    """The panel of a node as JSON; `after` counts only within the session the browser knows."""
    panel = PANELS.find(node, workflow)
    if panel is None:
        return json.dumps({"panel": None})
    return json.dumps({"panel": panel.snapshot(after if panel.session == session else 0)}, allow_nan=False)


def sample_file(run: str, step: int) -> Path:
    """The samples of a run after a step; step 0: without the adapter. Raises Refused for what is not there."""
    root = runs_root()
    folder = next((p for p in root.iterdir() if p.name == run and p.is_dir()), None) if root.is_dir() else None
    name = "before.png" if step == 0 else f"step-{step}.png"
    file = next((p for p in (folder / "samples").glob("*.png") if p.name == name), None) if folder else None
    if file is None or not file.resolve().is_relative_to(root.resolve()):
        raise Refused(404, "sample.missing")
    return file


def _jpeg(run: str, step: int, side_px: int) -> bytes:
    out = io.BytesIO()
    try:
        thumbnail(sample_file(run, step), side_px).save(out, "JPEG", quality=90)
    except PictureError as error:
        raise Refused(404, "sample.unreadable", error=error) from error
    return out.getvalue()


def add_panel_routes() -> None:
    """GET /lora_loom/panel?node=12:3 and /lora_loom/panel/sample?run=name&step=100."""
    from aiohttp import web

    host = server()
    if host is None:
        return

    @host.routes.get(f"{PREFIX}/panel")
    @guarded
    async def panel(request: web.Request) -> web.Response:
        node = _text(request, "node")
        if not node:
            raise Refused(400, "request.node")
        text = await in_thread(
            snapshot, node, _text(request, "workflow"), _number(request, "after", 0), _text(request, "session")
        )
        return web.Response(text=text, content_type="application/json", headers={"Cache-Control": "no-store"})

    @host.routes.get(f"{PREFIX}/panel/sample")
    @guarded
    async def sample(request: web.Request) -> web.Response:
        side_px = _number(request, "size", SIZES_PX[-1])
        if side_px not in SIZES_PX:
            raise Refused(400, "request.size", sizes=[*map(str, SIZES_PX)])
        data = await in_thread(_jpeg, _text(request, "run"), _number(request, "step"), side_px)
        headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "private, max-age=3600"}
        return web.Response(body=data, content_type="image/jpeg", headers=headers)
