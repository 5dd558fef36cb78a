"""What every route of ours checks before it does anything: who asks, from which page, and what the body holds."""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import json
import logging
import os
from collections.abc import Awaitable, Callable
from fnmatch import fnmatch
from typing import Any
from urllib.parse import urlsplit

from ....lora_core.messages.errors import LoomError, Problem
from ....lora_core.messages.message import Message

log = logging.getLogger(__name__)
PREFIX = "/lora_loom"
HOSTS_VARIABLE = "LORA_LOOM_HOSTS"
SMALL_BODY = 4096


class Refused(Problem):
    """The request cannot be served: an HTTP status and a message."""

    def __init__(self, status: int, code: str | Message, /, field: str = "", **values: Any):
        super().__init__(code, field, **values)
        self.status = status


def server() -> Any:
    from server import PromptServer

    return getattr(PromptServer, "instance", None)


def own_page(host: str, origin: str | None) -> bool:
    """Whether a request comes from the host's own page: under a name of this machine or one the user has named, and from no other site."""
    name = urlsplit(f"//{host}").hostname or ""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        allowed = [a.strip().lower() for a in os.environ.get(HOSTS_VARIABLE, "").split(",") if a.strip()]
        if (
            name != "localhost"
            and not name.endswith(".localhost")
            and not any(fnmatch(name.lower(), pattern) for pattern in allowed)
        ):
            return False
    return origin is None or urlsplit(origin).netloc == host


def guarded(handler: Callable[[Any], Awaitable[Any]]) -> Callable[[Any], Awaitable[Any]]:
    """A route that answers strangers with 403 and every expected failure with its status and its message as JSON."""
    from aiohttp import web

    @functools.wraps(handler)
    async def answer(request: Any) -> Any:
        host = request.headers.get("Host", "")
        if not own_page(host, request.headers.get("Origin")) or request.headers.get(
            "Sec-Fetch-Site", "same-origin"
        ) not in ("same-origin", "none"):
            stranger = Message.of("request.stranger", host=repr(host[:100]), variable=HOSTS_VARIABLE)
            return web.json_response({"error": stranger.as_json()}, status=403)
        try:
            return await handler(request)
        except Refused as error:
            return web.json_response({"error": error.message.as_json()}, status=error.status)
        except LoomError as error:
            return web.json_response({"error": error.message.as_json()}, status=409)
        except Exception as error:  # the page shows a sentence, the log the rest
            log.exception("A request to %s failed", request.path)
            failure = Message.of("request.failed", kind=type(error).__name__)
            return web.json_response({"error": failure.as_json()}, status=500)

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
    try:
        value = json.loads(raw.decode("utf-8"), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise Refused(400, "request.no_json") from error
    if not isinstance(value, dict):
        raise Refused(400, "request.no_object")
    return value


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


async def in_thread(work: Callable[..., Any], *args: Any) -> Any:
    """Disk work away from the event loop, which serves every tab."""
    return await asyncio.get_running_loop().run_in_executor(None, functools.partial(work, *args))
