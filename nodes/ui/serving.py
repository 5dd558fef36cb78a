"""The page on its own: routes and gradio in one app, behind its guard, until it is told to end; what goes on then is kept."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

from ...lora_core.compat import needed
from ...lora_core.messages.errors import LoomError
from ..page.desk import Desk
from ..page.works import WORKS
from .alone import AloneHost
from .guard import Guard

SCRIPT = "() => import('/lora-loom/v1/files/js/tab.js').then((tab) => tab.standAlone({language}))"
GRACE_S = 3  # for open pages, which never hang up by themselves
SINCE = "4.40"  # the oldest gradio whose pages can be mounted with what is used here


def app_of(host: AloneHost, password: str) -> tuple[Guard, Desk]:
    """Everything the server answers, and the desk behind it. Raises LoomError where gradio is missing."""
    gradio = needed("gradio", SINCE)
    from fastapi import FastAPI

    from ..page.routes import Routes
    from ..page.tab import Tab

    desk = Desk(host, WORKS)
    app = FastAPI(title="LoRA Loom", version=host.version())
    Routes(desk).add_to(app)
    page = Tab(desk).blocks(SCRIPT.format(language=json.dumps(host.language())))
    hidden = [str(host.data_root()), str(Path.cwd())]  # gradio would serve what lies in the current folder
    served = gradio.mount_gradio_app(app, page, path="/", blocked_paths=hidden)
    return Guard(served, password, host.language()), desk


def bound(address: str, port: int) -> socket.socket:
    """A socket at this address; port 0 takes a free one. Raises LoomError where it is taken."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    place = socket.socket(family, socket.SOCK_STREAM)
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        place.bind((address, port))
    except OSError as error:
        place.close()
        raise LoomError("ui.port", field="--port", port=port, address=address, reason=error.strerror) from error
    return place


def serve(host: AloneHost, place: socket.socket, password: str, link: str) -> None:
    """Answers until the program is told to end; a job that goes on ends after its step, and its work is kept. `link`: what to open.

    The caller takes SIGINT and SIGTERM, which are raised anew once the server has ended.
    """
    uvicorn = needed("uvicorn")
    app, desk = app_of(host, password)
    config = uvicorn.Config(app, log_level="warning", lifespan="on", timeout_graceful_shutdown=GRACE_S)
    server = uvicorn.Server(config)
    sys.stdout.write(f"LoRA Loom: {link}\n")
    sys.stdout.flush()
    try:
        server.run(sockets=[place])
    finally:
        desk.finish()
