"""What the browser sees of a run: progress bar with ETA, one line of text, sample pictures in the node; and the stop-and-keep route."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
from PIL import Image

from ...lora_core.events import Control, Listener
from ...lora_core.step import StepReport
from .routes import PREFIX, Refused, body_of, guarded, server

MIN_INTERVAL_S = 0.25
PREVIEW_PX = 512
_running: dict[str, Control] = {}  # node id -> the control of its run, while it runs


class LiveNode(Listener):
    """Reports to the node with this id. Raises the host's interrupt when the user cancels, also between host operations."""

    def __init__(self, node_id: str | None, steps: int):
        self._id, self._steps, self._first = node_id, steps, 0
        self._bar = comfy.utils.ProgressBar(steps, node_id=node_id) if node_id else comfy.utils.ProgressBar(steps)
        self._began = self._shown = 0.0
        self._loss = 0.0
        self._preview: Image.Image | None = None

    def on_message(self, text: str) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        self._text(text, force=not text.startswith("Encoding"))

    def on_start(self, first_step: int, steps: int, facts: dict[str, Any]) -> None:
        self._first, self._began = first_step, time.monotonic()
        size = f"a file of about {facts['trained_values'] * 4 / 1e6:.1f} MB"
        self._text(f"Training {facts['layers']} layers, {facts['trained_values']:,} values ({size}), on {facts['pictures']} pictures", force=True)

    def on_step(self, report: StepReport) -> None:
        self._loss = 0.95 * self._loss + 0.05 * report.loss if self._loss else report.loss
        now = time.monotonic()
        if now - self._shown >= MIN_INTERVAL_S or report.step == self._steps:
            speed = (report.step - self._first) / max(1e-6, now - self._began)
            left = (self._steps - report.step) / max(1e-6, speed)
            pace = f"{speed:.1f} steps/s" if speed >= 1 else f"{1 / speed:.1f} s/step"
            self._text(f"step {report.step}/{self._steps} · loss {self._loss:.4f} · {pace} · {_clock(left)} left", force=True)
            preview = ("JPEG", self._preview, PREVIEW_PX) if self._preview else None
            self._bar.update_absolute(report.step, self._steps, preview)
            self._preview = None
        comfy.model_management.throw_exception_if_processing_interrupted()

    def on_sample(self, step: int, images: list[Image.Image], path: Path) -> None:
        self._preview = images[0]
        self._bar.update_absolute(max(step, 1), self._steps, ("JPEG", images[0], PREVIEW_PX))

    def _text(self, text: str, force: bool = False) -> None:
        now = time.monotonic()
        if self._id and (force or now - self._shown >= MIN_INTERVAL_S):
            self._shown = now
            host = server()
            if host is not None and hasattr(host, "send_progress_text"):
                host.send_progress_text(text, self._id)


def layer_progress(node_id: str | None) -> Callable[[int, int, str], None]:
    """A callback (done, total, name) for work that goes layer by layer: moves the node's bar, and raises the host's interrupt on Cancel."""
    bar: list[Any] = []

    def show(done: int, total: int, name: str) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if not bar:
            bar.append(comfy.utils.ProgressBar(total, node_id=node_id) if node_id else comfy.utils.ProgressBar(total))
        bar[0].update_absolute(done, total)

    return show


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextlib.contextmanager
def registered(node_id: str | None, control: Control) -> Iterator[None]:
    """Makes a run's control reachable from the stop route while the block runs."""
    _running[str(node_id)] = control
    try:
        yield
    finally:
        _running.pop(str(node_id), None)


def add_routes() -> None:
    """POST /lora_loom/stop {"node": id}: ends that node's run after the current step and keeps the result."""
    from aiohttp import web

    host = server()
    if host is None:
        return

    @host.routes.post(f"{PREFIX}/stop")
    @guarded
    async def stop(request: web.Request) -> web.Response:
        node = (await body_of(request)).get("node")
        control = _find(str(node)) if isinstance(node, str | int) else None
        if control is None:
            raise Refused(404, "no run is going on in that node")
        control.stop_and_keep()
        return web.json_response({"stopping": str(node)})


def _find(node: str) -> Control | None:
    """The run of a node; a node inside a subgraph runs under an id such as 12:3, while its own id is 3."""
    inside = [control for key, control in _running.items() if key.rpartition(":")[2] == node]
    return _running.get(node) or (inside[0] if len(inside) == 1 else None)
