"""POST /lora_loom/plan: what a train node of the graph in the body will do. It reads files and changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .routes import PREFIX, Refused, body_of, guarded, in_thread, server

GRAPH_BYTES = 4 << 20


def add_plan_routes(planned: Callable[[Mapping[str, Any], str], dict[str, Any]]) -> None:
    """`planned`: (graph in the host's API form, id of a node) -> the plan, {} where it shows only when the graph runs."""
    from aiohttp import web

    host = server()
    if host is None:
        return

    @host.routes.post(f"{PREFIX}/plan")
    @guarded
    async def plan(request: web.Request) -> web.Response:
        body = await body_of(request, GRAPH_BYTES)
        graph, node = body.get("prompt"), body.get("node")
        if not isinstance(graph, dict) or not isinstance(node, str):
            raise Refused(400, "request.graph")
        return web.json_response({"plan": await in_thread(planned, graph, node)})
