"""The routes of the tab and of programs: /lora-loom/v1/... with the host's own password where it asks for one, for its own page alone."""

from __future__ import annotations

import inspect
import logging
import secrets
from collections.abc import Callable
from typing import Any

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBasic, HTTPBasicCredentials

from ...lora_core.events import Control
from ...lora_core.runs import listing, trash
from ..jobs import answers
from ..jobs.exports import told_of
from ..jobs.requests import SMALL_BODY, Refused, object_in, refusal, require_own_page
from .engine.host import runs_root, version
from .jobs import NODE, PANELS, RUNS, Order, exported
from .library import converted, inspected
from .pictures import stored

log = logging.getLogger(__name__)
PREFIX = "/lora-loom/v1"
MAX_UPLOAD_BYTES = 4 * 2**30
BODY_BYTES = 2**20  # of settings
ASKED: dict[str, Callable[[Control], None]] = {
    "stop": Control.stop_and_keep, "save": Control.save_now, "sample": Control.sample_now, "pause": Control.pause,
}  # fmt: skip
JPEG_HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "private, max-age=3600"}


def add_routes(app: FastAPI) -> None:
    """Registers everything below PREFIX; a second time, as after Reload UI, it is a new app."""
    asked = _password()
    reads: dict[str, tuple[Callable[..., Any], str]] = {
        "panel": (_panel, "State of the run that goes on or went on last, with the chart's rows after a step."),
        "state": (_state, "What goes on: the panel, and the runs that wait."),
        "panel/sample": (_sample, "Sample pictures of a run after a step, as JPEG."),
        "panel/samples": (_samples, "The steps a run was sampled at, and the prompts and seeds of its pictures."),
        "messages/{language}": (_messages, "The sentences of a language by code."),
        "runs": (_runs, "All runs of this folder, and what lies in the trash."),
        "runs/curve": (_curve, "The course of a run's loss."),
        "runs/picture": (_picture, "Sample pictures of a run, for the list."),
        "runs/resume": (_resume, "The name to go on with."),
    }
    writes: dict[str, tuple[Callable[..., Any], str]] = {
        "start": (_start, "Starts a run, or queues it behind others: settings by config path, a preset."),
        "go_on": (_go_on, "Goes on with a run from its newest checkpoint."),
        "upload": (_upload, "Pictures, captions or ZIP files for a new folder of pictures; answers with its path."),
        "inspect": (_inspect, "What a LoRA or embedding file is: by its name in the host's list, or by its path."),
        "convert": (_convert, "Writes a LoRA in another spelling into the host's folder."),
        "runs/export": (_export, "Writes a run's result where the host lists LoRAs and embeddings."),
        "runs/delete": (_delete, "Moves a run into the trash."),
        "runs/restore": (_restore, "Takes a run back from the trash."),
        **{name: (_asking(name), f"Asks the run that goes on to {name}.") for name in ASKED},
    }
    for method, table in (("GET", reads), ("POST", writes)):
        for path, (answer, summary) in table.items():
            name = f"lora_loom_{path.split('{')[0].strip('/').replace('/', '_')}"
            app.add_api_route(
                f"{PREFIX}/{path}",
                _guarded(answer),
                methods=[method],
                summary=summary,
                name=name,
                tags=["LoRA Loom"],
                dependencies=asked,
            )


BASIC = HTTPBasic(auto_error=False)
GIVEN = Depends(BASIC)


def _password() -> list[Any]:
    """What the host itself asks for: a name and password with --api-auth, a login with --gradio-auth (either will do where both are on), or nothing."""
    from modules import shared

    options = shared.cmd_opts
    accepted = dict(pair.split(":", 1) for pair in (options.api_auth or "").split(",") if ":" in pair)
    login = bool(options.gradio_auth or options.gradio_auth_path)
    if not accepted and not login:
        return []

    def known(request: Request, credentials: HTTPBasicCredentials | None = GIVEN) -> None:
        password = accepted.get(credentials.username) if credentials is not None else None
        given = credentials.password if credentials is not None else ""
        if password is not None and secrets.compare_digest(given.encode(), password.encode()):
            return
        if login and _logged_in(request):
            return
        raise HTTPException(401, "Not authenticated", {"WWW-Authenticate": "Basic"} if accepted else None)

    return [Depends(known)]


def _logged_in(request: Request) -> bool:
    """By the cookie that the host's page sets."""
    tokens = getattr(request.app, "tokens", None) or {}
    return any(value in tokens for name, value in request.cookies.items() if name.startswith("access-token"))


def _guarded(answer: Callable[..., Any]) -> Callable[[Request], Any]:
    """A route that answers strangers with 403 and every expected failure with its status and its message as JSON."""

    async def guarded(request: Request) -> Response:
        try:
            require_own_page(request.headers)
            if inspect.iscoroutinefunction(answer):
                out = await answer(request)
            else:
                out = await run_in_threadpool(answer, request)
        except Exception as error:  # the page shows a sentence, the log the rest
            status, message = refusal(error)
            if status == 500:
                log.exception("A request to %s failed", request.url.path)
            return JSONResponse({"error": message.as_json()}, status)
        return out if isinstance(out, Response) else JSONResponse(out, headers={"Cache-Control": "no-store"})

    return guarded


def _text(request: Request, name: str) -> str:
    value = request.query_params.get(name, "")
    if len(value) > 200:
        raise Refused(400, "request.long", name=name)
    return value


def _number(request: Request, name: str, default: int = 0) -> int:
    value = request.query_params.get(name)
    if value is None:
        return default
    if not (value.isascii() and value.isdigit() and len(value) < 10):
        raise Refused(400, "request.number", name=name)
    return int(value)


async def _body(request: Request, limit: int = SMALL_BODY) -> dict[str, Any]:
    if request.headers.get("content-type", "").split(";")[0].strip() != "application/json":
        raise Refused(400, "request.json_type")
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > limit:
            raise Refused(413, "request.body_large", limit=limit)
    return object_in(bytes(raw))


# ---- what changes nothing --------------------------------------------------------------------------------------------


def _panel(request: Request) -> dict[str, Any]:
    node = _text(request, "node") or NODE
    return answers.panel_state(PANELS, node, "", _number(request, "after"), _text(request, "session"))


def _state(request: Request) -> dict[str, Any]:
    return {**_panel(request), "waiting": RUNS.waiting, "busy": RUNS.busy, "host": version()}


def _sample(request: Request) -> Response:
    run, step = _text(request, "run"), _number(request, "step")
    if "picture" in request.query_params:
        data = answers.sample_cell_jpeg(runs_root(), run, step, _number(request, "picture"))
    else:
        data = answers.sample_jpeg(runs_root(), run, step, _number(request, "size", answers.SAMPLE_SIZES_PX[-1]))
    return Response(data, media_type="image/jpeg", headers=JPEG_HEADERS)


def _samples(request: Request) -> dict[str, Any]:
    return answers.samples_of(runs_root(), _text(request, "run"))


def _messages(request: Request) -> Response:
    text, digest = answers.sentences(request.path_params["language"])
    headers = {"Cache-Control": "no-cache", "ETag": f'"{digest}"'}
    if digest in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(text, media_type="application/json", headers=headers)


def _runs(request: Request) -> dict[str, Any]:
    return {**answers.listed(runs_root(), _told, str(runs_root())), "local": False}


def _told(run: listing.RunInfo) -> dict[str, str]:
    return told_of(run, embedding="")


def _curve(request: Request) -> Any:
    return listing.curve(answers.run_named(runs_root(), _text(request, "id")))


def _picture(request: Request) -> Response:
    large = _text(request, "large") == "1"
    data = answers.run_picture(runs_root(), _text(request, "id"), _text(request, "step"), large)
    return Response(data, media_type="image/jpeg", headers=JPEG_HEADERS)


def _resume(request: Request) -> dict[str, Any]:
    return answers.resumed(runs_root(), _text(request, "id"))


# ---- what changes something ------------------------------------------------------------------------------------------


def _asking(name: str) -> Callable[[Request], Any]:
    async def ask(request: Request) -> dict[str, Any]:
        await _body(request)
        control = RUNS.control
        if control is None:
            raise Refused(404, "run.none_in_node")
        ASKED[name](control)
        return {"asked": name, "node": NODE}

    return ask


async def _start(request: Request) -> dict[str, Any]:
    body = await _body(request, BODY_BYTES)
    values, preset = body.get("settings", {}), body.get("preset", "concept")
    if not isinstance(values, dict) or not isinstance(preset, str):
        raise Refused(400, "request.no_object")
    before = await run_in_threadpool(RUNS.add, Order(values, preset))
    return {"node": NODE, "before": before}


async def _go_on(request: Request) -> dict[str, Any]:
    run = (await _body(request)).get("run")
    await run_in_threadpool(answers.resumed, runs_root(), run)
    return {"node": NODE, "before": await run_in_threadpool(RUNS.add, Order(resume=str(run)))}


async def _upload(request: Request) -> dict[str, Any]:
    """multipart/form-data with any number of files; multipart is the host's own package, as its uploads need it."""
    if int(request.headers.get("content-length") or 0) > MAX_UPLOAD_BYTES:
        raise Refused(413, "request.body_large", limit=MAX_UPLOAD_BYTES)
    form = await request.form()
    files = [(file.filename or "", await file.read()) for _, file in form.multi_items() if hasattr(file, "read")]
    folder = await run_in_threadpool(stored, files)
    return {"folder": str(folder), "files": len(files)}


async def _inspect(request: Request) -> dict[str, Any]:
    body = await _body(request)
    return {"report": await run_in_threadpool(inspected, str(body.get("file", "")))}


async def _convert(request: Request) -> dict[str, Any]:
    body = await _body(request)
    file, target = str(body.get("file", "")), str(body.get("to", "universal"))
    return {"report": await run_in_threadpool(converted, file, target)}


async def _export(request: Request) -> dict[str, Any]:
    body = await _body(request)
    folder = await run_in_threadpool(answers.run_named, runs_root(), body.get("id"))
    return {"files": await run_in_threadpool(exported, folder, answers.save_named(body.get("save")))}


async def _delete(request: Request) -> dict[str, Any]:
    run = (await _body(request)).get("id")
    await run_in_threadpool(answers.run_named, runs_root(), run)
    return {"trash": await run_in_threadpool(trash.throw_away, runs_root(), run)}


async def _restore(request: Request) -> dict[str, Any]:
    number = (await _body(request)).get("trash")
    if not isinstance(number, str):
        raise Refused(400, "request.trash")
    return {"id": await run_in_threadpool(trash.take_back, runs_root(), number)}
