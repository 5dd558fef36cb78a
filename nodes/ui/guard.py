"""Who may see the page that stands alone: this machine, or whoever knows the password. Around everything the server answers, whatever framework does."""

from __future__ import annotations

import asyncio
import base64
import binascii
import html
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

from ...lora_core.messages.message import Message, table
from ..jobs.requests import HOSTS_VARIABLE, own_page

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

COOKIE, LOGIN, TOKEN = "lora_loom_session", "/login", "token"
WRONG_WAIT_S = 1.0  # after a wrong password
MAX_FORM = 4096
POLICY = 1008  # the code of a websocket that is not allowed
PAGE = """<!doctype html><html lang="{language}"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>LoRA Loom</title><style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; display: grid; place-items: center; min-height: 100vh; margin: 0; }}
form {{ display: grid; gap: 12px; width: min(340px, 86vw); }}
input, button {{ font: inherit; padding: 8px 10px; border-radius: 6px; border: 1px solid #8886; }}
p {{ margin: 0; color: #d33; }}
</style><form method="post" action="{login}"><h1>LoRA Loom</h1>
<label for="password">{label}</label><input id="password" name="password" type="password" autofocus autocomplete="current-password">
<button>{enter}</button>{said}</form></html>"""


class Guard:
    """`app` behind `password`; "": for this machine alone."""

    def __init__(self, app: App, password: str, language: str):
        self._app, self._password, self._language = app, password, language
        self._session = secrets.token_urlsafe(24)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        host = headers.get("host", "")
        if not own_page(host, None):
            stranger = Message.of("request.stranger", host=repr(host[:100]), variable=HOSTS_VARIABLE)
            await self._refuse(scope, send, 403, html.escape(stranger.text(self._language)))
        elif not self._password or self._known(headers):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._asked(scope, headers, receive, send)
        else:
            await send({"type": "websocket.close", "code": POLICY})

    def _known(self, headers: MutableMapping[str, str]) -> bool:
        """By the cookie of an earlier login, or by the password itself, as programs give it."""
        cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        if cookie is not None and secrets.compare_digest(cookie.value.encode(), self._session.encode()):
            return True
        kind, _, password = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return self._is_password(password)
        if kind.lower() != "basic":
            return False
        try:
            return self._is_password(base64.b64decode(password).decode().partition(":")[2])
        except (binascii.Error, UnicodeDecodeError):
            return False

    def _is_password(self, text: str) -> bool:
        return secrets.compare_digest(text.encode(), self._password.encode())

    async def _asked(self, scope: Scope, headers: MutableMapping[str, str], receive: Receive, send: Send) -> None:
        """A stranger's request: the password by form or link opens a session, everything else gets the form."""
        link = parse_qs(scope.get("query_string", b"").decode("latin-1")).get(TOKEN, [""])[0]
        posted = scope["path"] == LOGIN and scope["method"] == "POST"
        password = link or (await _password_in(receive) if posted else "")
        if password and self._is_password(password):
            await self._let_in(headers, send)
            return
        if password:
            await asyncio.sleep(WRONG_WAIT_S)
        await self._refuse(scope, send, 401, self._form("ui.wrong_password" if password else ""))

    async def _let_in(self, headers: MutableMapping[str, str], send: Send) -> None:
        secure = headers.get("x-forwarded-proto", "").startswith("https")
        kind = "SameSite=None; Secure; Partitioned" if secure else "SameSite=Lax"  # a Space shows the page in a frame
        cookie = f"{COOKIE}={self._session}; Path=/; HttpOnly; {kind}".encode()
        answer = [(b"location", b"/"), (b"set-cookie", cookie), (b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 303, "headers": answer})
        await send({"type": "http.response.body", "body": b""})

    def _form(self, said: str) -> str:
        texts = table(self._language)
        notice = f"<p>{html.escape(texts[said])}</p>" if said else ""
        label, enter = html.escape(texts["ui.password"]), html.escape(texts["ui.enter"])
        return PAGE.format(language=self._language, login=LOGIN, label=label, enter=enter, said=notice)

    async def _refuse(self, scope: Scope, send: Send, status: int, text: str) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": POLICY})
            return
        body = text.encode()
        kind = [(b"content-type", b"text/html; charset=utf-8"), (b"cache-control", b"no-store")]
        length = (b"content-length", str(len(body)).encode())
        await send({"type": "http.response.start", "status": status, "headers": [*kind, length]})
        await send({"type": "http.response.body", "body": body})


async def _password_in(receive: Receive) -> str:
    """The field of the login form; empty where there is none."""
    body = b""
    while len(body) <= MAX_FORM:
        part = await receive()
        body += part.get("body", b"")
        if not part.get("more_body"):
            break
    return parse_qs(body[:MAX_FORM].decode("utf-8", "replace")).get("password", [""])[0]


def is_of_this_machine(address: str) -> bool:
    """Whether nobody else reaches a server at this address."""
    return address in ("localhost", "::1") or (urlsplit(f"//{address}").hostname or "").startswith("127.")
