"""The routes of the Runs tab. A run is named by its folder's name, which is looked up in a listing; paths never travel."""

from __future__ import annotations

import ipaddress
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import folder_paths

from ....lora_core.runs import listing, trash
from ...jobs import answers
from ..access.paths import runs_root
from .panel import PANELS
from .routes import PREFIX, Refused, body_of, guarded, in_thread, server

PICTURE_HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "private, max-age=60"}
_FORWARDED = ("Forwarded", "X-Forwarded-For", "X-Real-IP", "Via")
Export = Callable[
    [Path, str | int], list[str]
]  # (run folder, result, best, last or a step) -> labels of the files written

Queued = Callable[
    [list[Any], list[Any]], list[dict[str, Any]]
]  # (what runs, what waits) of the host -> rows for the page


def add_run_routes(export: Export, details: answers.Told, queued: Queued) -> None:
    """GET /lora_loom/runs, /runs/curve, /runs/settings, /runs/picture, /runs/measured, /runs/thumbnails, /runs/resume and /runs/queue change nothing.

    POST /runs/remark writes what a person says of a run, /runs/export a LoRA where ComfyUI lists it, /runs/delete and /runs/restore move a run into the
    trash and back, /runs/open shows its folder.
    """
    from aiohttp import web

    host = server()
    if host is None:
        return

    @host.routes.get(f"{PREFIX}/runs")
    @guarded
    async def list_runs(request: web.Request) -> web.Response:
        return web.json_response(
            {**await in_thread(_listed, details), "local": _same_machine(request) and _file_manager() is not None}
        )

    @host.routes.get(f"{PREFIX}/runs/curve")
    @guarded
    async def curve(request: web.Request) -> web.Response:
        return web.json_response(await in_thread(lambda: listing.curve(_run(request.query.get("id")))))

    @host.routes.get(f"{PREFIX}/runs/settings")
    @guarded
    async def settings(request: web.Request) -> web.Response:
        return web.json_response(await in_thread(answers.settings_of, runs_root(), request.query.get("id")))

    @host.routes.get(f"{PREFIX}/runs/measured")
    @guarded
    async def measured(request: web.Request) -> web.Response:
        return web.json_response(await in_thread(answers.measured_of, runs_root(), request.query.get("id")))

    @host.routes.get(f"{PREFIX}/runs/thumbnails")
    @guarded
    async def thumbnails(request: web.Request) -> web.Response:
        data = await in_thread(answers.thumbnails_of, runs_root(), request.query.get("id"))
        return web.Response(body=data, content_type="image/jpeg", headers=PICTURE_HEADERS)

    @host.routes.get(f"{PREFIX}/runs/queue")
    @guarded
    async def queue(request: web.Request) -> web.Response:
        running, waiting = _queue_of(host)
        return web.json_response({"queue": await in_thread(queued, running, waiting)})

    @host.routes.get(f"{PREFIX}/runs/picture")
    @guarded
    async def picture(request: web.Request) -> web.Response:
        query = request.query
        large = query.get("large") == "1"
        data = await in_thread(answers.run_picture, runs_root(), query.get("id"), query.get("step", ""), large)
        return web.Response(
            body=data,
            content_type=answers.picture_type(data),
            headers=PICTURE_HEADERS,
        )

    @host.routes.get(f"{PREFIX}/runs/resume")
    @guarded
    async def resume(request: web.Request) -> web.Response:
        return web.json_response(await in_thread(answers.resumed, runs_root(), request.query.get("id")))

    @host.routes.post(f"{PREFIX}/runs/remark")
    @guarded
    async def remark(request: web.Request) -> web.Response:
        body = await body_of(request, answers.REMARK_BODY)
        return web.json_response(await in_thread(answers.remarked, runs_root(), body))

    @host.routes.post(f"{PREFIX}/runs/export")
    @guarded
    async def export_run(request: web.Request) -> web.Response:
        body = await body_of(request)
        folder = await in_thread(_run, body.get("id"))
        files = await in_thread(export, folder, answers.save_named(body.get("save")))
        if body.get("save") == "result":
            await in_thread(PANELS.kept, folder.name)
        return web.json_response({"files": files})

    @host.routes.post(f"{PREFIX}/runs/delete")
    @guarded
    async def delete(request: web.Request) -> web.Response:
        run = (await body_of(request)).get("id")
        await in_thread(_run, run)
        return web.json_response({"trash": await in_thread(trash.throw_away, runs_root(), run)})

    @host.routes.post(f"{PREFIX}/runs/restore")
    @guarded
    async def restore(request: web.Request) -> web.Response:
        number = (await body_of(request)).get("trash")
        if not isinstance(number, str):
            raise Refused(400, "request.trash")
        return web.json_response({"id": await in_thread(trash.take_back, runs_root(), number)})

    @host.routes.post(f"{PREFIX}/runs/open")
    @guarded
    async def open_folder(request: web.Request) -> web.Response:
        folder = await in_thread(_run, (await body_of(request)).get("id"))
        place = folder.relative_to(folder_paths.get_output_directory()).as_posix()
        if not _same_machine(request):
            raise Refused(403, "folder.on_server", place=place)
        if not await in_thread(_show, folder):
            raise Refused(409, "folder.no_file_manager", place=place)
        return web.json_response({"opened": place})


def _queue_of(host: Any) -> tuple[list[Any], list[Any]]:
    """What runs and what waits; older hosts hand out a copy of all of it."""
    queue = host.prompt_queue
    running, waiting = getattr(queue, "get_current_queue_volatile", queue.get_current_queue)()
    return list(running), list(waiting)


def _listed(details: answers.Told) -> dict[str, Any]:
    root = runs_root()
    return answers.listed(root, details, f"output/{root.relative_to(folder_paths.get_output_directory()).as_posix()}")


def _run(run: Any) -> Path:
    return answers.run_named(runs_root(), run)


def _same_machine(request: Any) -> bool:
    """Whether the browser runs where the server runs: both ends are this machine's own address, and no proxy stands between."""
    if any(header in request.headers for header in _FORWARDED):
        return False
    name = urlsplit(f"//{request.headers.get('Host', '')}").hostname or ""
    return _is_loopback(request.remote or "") and (
        name == "localhost" or name.endswith(".localhost") or _is_loopback(name)
    )


def _is_loopback(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback


def _file_manager() -> str | None:
    """The program that shows folders; None where nobody sits before a screen."""
    if sys.platform == "win32":
        return shutil.which("explorer")
    if sys.platform == "darwin":
        return shutil.which("open")
    return shutil.which("xdg-open") if os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") else None


def _show(folder: Path) -> bool:
    """Opens the folder in the system's file manager. False where there is none."""
    program = _file_manager()
    if program is None:
        return False
    subprocess.Popen(
        [program, str(folder)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    return True
