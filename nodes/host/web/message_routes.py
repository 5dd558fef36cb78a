"""How messages reach the page as data: the sentences of a language on a route, and the error of a node as an event."""

from __future__ import annotations

import functools
from typing import Any

from ....lora_core.messages.errors import Problem
from ...jobs import answers
from ..access.shown import on, table
from .routes import PREFIX, guarded, server

EVENT = "lora_loom.error"


def add_message_routes() -> None:
    """GET /lora_loom/messages/zh: sentences and names of settings. The browser keeps it as long as the server has the same."""
    from aiohttp import web

    host = server()
    if host is None:
        return

    @host.routes.get(f"{PREFIX}/messages/{{language}}")
    @guarded
    async def sentences(request: web.Request) -> web.Response:
        language = request.match_info["language"]
        text, digest = answers.sentences(language, table)
        headers = {"Cache-Control": "no-cache", "ETag": f'"{digest}"'}
        if any(tag.value == digest for tag in request.if_none_match or ()):
            return web.Response(status=304, headers=headers)
        return web.Response(text=text, content_type="application/json", headers=headers)


def telling(node: Any) -> Any:
    """The node, whose errors say what its widgets are called, and also reach the page that queued it as data: the host's own event carries only their text."""
    execute = node.execute.__func__

    @functools.wraps(execute)
    def executed(cls: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return execute(cls, *args, **kwargs)
        except Problem as error:
            names = on(node.GET_SCHEMA().node_id)  # the host locks the classes it runs
            error.args = (error.message.text(names=names),)
            _tell(error.message.as_json(names))
            raise

    node.execute = classmethod(executed)
    return node


def _tell(message: dict[str, Any]) -> None:
    host = server()
    if host is not None:
        host.send_sync(EVENT, message, host.client_id)
