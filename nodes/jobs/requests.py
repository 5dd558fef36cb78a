"""What every route of ours checks before it does anything, on every host: who asks, from which page, and what the body holds."""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Mapping
from fnmatch import fnmatch
from typing import Any
from urllib.parse import urlsplit

from ...lora_core.messages.errors import LoomError, Problem
from ...lora_core.messages.message import Message

HOSTS_VARIABLE = "LORA_LOOM_HOSTS"
SMALL_BODY = 4096
SAME_SITE = ("same-origin", "none")


class Refused(Problem):
    """The request cannot be served: an HTTP status and a message."""

    def __init__(self, status: int, code: str | Message, /, field: str = "", **values: Any):
        super().__init__(code, field, **values)
        self.status = status


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


def require_own_page(headers: Mapping[str, str]) -> None:
    """Raises Refused for a request of a stranger's page."""
    host = headers.get("Host", "")
    if own_page(host, headers.get("Origin")) and headers.get("Sec-Fetch-Site", SAME_SITE[0]) in SAME_SITE:
        return
    raise Refused(403, "request.stranger", host=repr(host[:100]), variable=HOSTS_VARIABLE)


def refusal(error: Exception) -> tuple[int, Message]:
    """(HTTP status, what a person is told) of an error that ended a request."""
    if isinstance(error, Refused):
        return error.status, error.message
    if isinstance(error, LoomError):
        return 409, error.message
    return 500, Message.of("request.failed", kind=type(error).__name__)


def object_in(body: bytes) -> dict[str, Any]:
    """The JSON object a POST carries. Raises Refused."""
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_no_number)
        json.dumps(value, ensure_ascii=False).encode()  # half characters, which no file can be named by, are no text
    except (ValueError, RecursionError) as error:
        raise Refused(400, "request.no_json") from error
    if not isinstance(value, dict):
        raise Refused(400, "request.no_object")
    return value


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
