"""What every route of ours checks before it does anything: who asks, from which page, and what the body holds."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from ...jobs.requests import HOSTS_VARIABLE, SMALL_BODY, Refused, object_in, own_page, refusal, require_own_page

__all__ = ["HOSTS_VARIABLE", "PREFIX", "Refused", "body_of", "guarded", "in_thread", "own_page", "server"]
log = logging.getLogger(__name__)
PREFIX = "/lora_loom"


def server() -> Any:
    from server import PromptServer

    return getattr(PromptServer, "instance", None)


def guarded(handler: Callable[[Any], Awaitable[Any]]) -> Callable[[Any], Awaitable[Any]]:
    """A route that answers strangers with 403 and every expected failure with its status and its message as JSON."""
    from aiohttp import web

    @functools.wraps(handler)
    async def answer(request: Any) -> Any:
        try:
            require_own_page(request.headers)
            return await handler(request)
        except Exception as error:  # the page shows a sentence, the log the rest
            status, message = refusal(error)
            if status == 500:
                log.exception("A request to %s failed", request.path)
            return web.json_response({"error": message.as_json()}, status=status)

    return answer


async def body_of(request: Any, limit: int = SMALL_BODY) -> dict[str, Any]:
    """The JSON object a POST carries. Raises Refused."""
    if request.content_type != "application/json":
        raise Refused(400, "request.json_type")
    raw = bytearray()
    async for chunk in request.content.iter_chunked(65536):
        raw += chunk
        if len(raw) > limit:
            raise Refused(413, "request.body_large", limit=limit)
    return object_in(bytes(raw))


async def in_thread(work: Callable[..., Any], *args: Any) -> Any:
    """Disk work away from the event loop, which serves every tab."""
    return await asyncio.get_running_loop().run_in_executor(None, functools.partial(work, *args))
