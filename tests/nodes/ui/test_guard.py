"""Who sees the page that stands alone: this machine, or whoever knows the password. The guard is asked as a server asks it, without one."""

import argparse
import asyncio
import base64

import pytest
from lora_loom.__main__ import main
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.nodes.terminal import ui
from lora_loom.nodes.ui import guard
from lora_loom.nodes.ui.guard import Guard, is_of_this_machine

SECRET = "correct horse"


async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"the page"})


def asked(door, path="/", body=b"", query=b"", kind="http", **headers):
    """(status, headers, body) of one request; of a websocket (code, {}, b"")."""
    told = []
    given = {"host": "127.0.0.1:7860", **{key.replace("_", "-"): value for key, value in headers.items()}}
    scope = {"type": kind, "path": path, "query_string": query, "method": "POST" if body else "GET"}
    scope["headers"] = [(key.encode(), value.encode()) for key, value in given.items()]

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        told.append(message)

    asyncio.run(door(scope, receive, send))
    if kind == "websocket":
        return told[0].get("code"), {}, b""
    found = {key.decode(): value.decode() for key, value in told[0]["headers"]}
    return told[0]["status"], found, b"".join(part.get("body", b"") for part in told[1:])


@pytest.fixture
def door(monkeypatch):
    monkeypatch.setattr(guard, "WRONG_WAIT_S", 0)
    return Guard(app, SECRET, "en")


def test_without_a_password_this_machine_is_answered_and_a_strangers_name_for_it_is_not():
    door = Guard(app, "", "en")
    assert asked(door)[2] == b"the page"
    assert asked(door, host="evil.example")[0] == 403
    assert asked(door, kind="websocket", host="evil.example")[0] == guard.POLICY


def test_a_visitor_without_the_password_sees_the_form_and_nothing_else(door):
    for path in ("/", "/lora-loom/v1/state", "/gradio_api/file=x", "/docs"):
        status, _, body = asked(door, path)
        assert (status, b"the page" in body, b'type="password"' in body) == (401, False, True), path
    assert asked(door, kind="websocket")[0] == guard.POLICY


def test_the_password_opens_a_session_whose_cookie_is_enough_from_then_on(door):
    status, headers, _ = asked(door, "/login", b"password=correct+horse")
    assert (status, headers["location"]) == (303, "/")
    assert "HttpOnly" in headers["set-cookie"]
    assert SECRET not in headers["set-cookie"]
    cookie = headers["set-cookie"].partition(";")[0]
    assert asked(door, cookie=cookie)[2] == b"the page"
    assert asked(Guard(app, SECRET, "en"), cookie=cookie)[0] == 401, "a cookie of another server"


def test_a_wrong_password_is_said_to_be_wrong(door):
    status, headers, body = asked(door, "/login", b"password=battery")
    assert (status, b"not the password" in body, "set-cookie" in headers) == (401, True, False)


def test_the_link_with_the_token_opens_a_session(door):
    assert asked(door, query=b"token=correct%20horse")[0] == 303
    assert asked(door, query=b"token=wrong")[0] == 401


@pytest.mark.parametrize("given", [f"Bearer {SECRET}", "Basic " + base64.b64encode(f"me:{SECRET}".encode()).decode()])
def test_programs_give_the_password_with_each_request(door, given):
    assert asked(door, "/lora-loom/v1/state", authorization=given)[2] == b"the page"


@pytest.mark.parametrize(
    "given", ["Bearer wrong", "Basic ????", "Basic " + base64.b64encode(b"\xff:\xff").decode(), "x"]
)
def test_what_is_no_password_is_refused(door, given):
    assert asked(door, authorization=given)[0] == 401


def test_in_the_frame_of_a_space_the_cookie_is_sent_too(door):
    headers = asked(door, "/login", b"password=correct+horse", x_forwarded_proto="https")[1]
    assert {"SameSite=None", "Secure", "Partitioned"} <= set(headers["set-cookie"].split("; "))


def args(**values):
    return argparse.Namespace(**{"listen": "127.0.0.1", "password": "", "token": False, **values})


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.168.1.5", "my-machine"])
def test_no_page_is_opened_to_others_without_a_password(address, monkeypatch):
    monkeypatch.delenv(ui.PASSWORD, raising=False)
    with pytest.raises(LoomError) as error:
        ui.password_of(args(listen=address))
    assert (error.value.message.code, error.value.message.field) == ("ui.no_password", "--listen")
    assert len(ui.password_of(args(listen=address, token=True))) >= 20
    monkeypatch.setenv(ui.PASSWORD, "long enough")
    assert ui.password_of(args(listen=address)) == "long enough"


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.8.8", "localhost", "::1"])
def test_this_machine_alone_needs_none(address, monkeypatch):
    monkeypatch.delenv(ui.PASSWORD, raising=False)
    assert is_of_this_machine(address)
    assert ui.password_of(args(listen=address)) == ""


def test_a_short_password_is_refused_wherever_it_is_asked_for():
    with pytest.raises(LoomError) as error:
        ui.password_of(args(password="1234"))
    assert error.value.message.code == "ui.short_password"


def test_the_terminal_says_so_in_one_sentence(monkeypatch, capsys):
    monkeypatch.delenv(ui.PASSWORD, raising=False)
    assert main(["ui", "--listen"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lora-loom: --listen: other machines can reach this page at 0.0.0.0, ")
