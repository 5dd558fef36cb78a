"""The routes of the panel: its state and the sample pictures of a run. Both change nothing; runs are named by id, pictures by step."""

from __future__ import annotations

import json
import re
from typing import Any

from ...jobs import answers
from ..access.paths import runs_root
from .panel import PANELS
from .routes import PREFIX, Refused, guarded, in_thread, server

LONGEST_ID = 200


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
    """The panel of a node as JSON."""
    return json.dumps(answers.panel_state(PANELS, node, workflow, after, session), allow_nan=False)


def add_panel_routes() -> None:
    """GET /lora_loom/panel?node=12:3, /lora_loom/panel/sample?run=name&step=100 (&picture=0: one of them alone), /lora_loom/panel/samples?run=name."""
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
        run, step = _text(request, "run"), _number(request, "step")
        if "picture" in request.query:
            data = await in_thread(answers.sample_cell_jpeg, runs_root(), run, step, _number(request, "picture"))
        else:
            side_px = _number(request, "size", answers.SAMPLE_SIZES_PX[-1])
            data = await in_thread(answers.sample_jpeg, runs_root(), run, step, side_px)
        headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "private, max-age=3600"}
        return web.Response(body=data, content_type=answers.picture_type(data), headers=headers)

    @host.routes.get(f"{PREFIX}/panel/samples")
    @guarded
    async def samples(request: web.Request) -> web.Response:
        return web.json_response(await in_thread(answers.samples_of, runs_root(), _text(request, "run")))
