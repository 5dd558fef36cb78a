"""What the browser sees of a run: progress bar with ETA, one line of text, sample pictures in the node; and the routes that ask something of a run."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from PIL import Image

from ....lora_core.events import Control, Listener, Measure, StepReport
from ....lora_core.messages.figures import figure
from ....lora_core.messages.message import Message
from ....lora_core.runs.reports import probed
from ...jobs.panel import trained
from ..access.shown import as_shown
from .routes import PREFIX, Refused, body_of, guarded, server

MIN_INTERVAL_S = 0.25
PREVIEW_PX = 512
Cancelled = comfy.model_management.InterruptProcessingException  # ends the queue item without an error
_running: dict[str, Control] = {}  # node id -> the control of its run, while it runs


class LiveNode(Listener):
    """Reports to the node with this id; `bar_only` where a panel shows the rest. Raises the host's interrupt when the user cancels."""

    def __init__(self, node_id: str | None, steps: int, bar_only: bool = False):
        self._id, self._steps, self._first, self._bar_only = node_id, steps, 0, bar_only
        self._bar = comfy.utils.ProgressBar(steps, node_id=node_id) if node_id else comfy.utils.ProgressBar(steps)
        self._began = self._shown = 0.0
        self._loss = 0.0
        self._preview: Image.Image | None = None

    def on_progress(self, what: str, done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        self._text(Message.of(what, done=done, total=total).text(names=as_shown))

    def on_warning(self, message: Message) -> None:
        self._text(message.text(names=as_shown), force=True)

    def on_note(self, message: Message) -> None:
        self._text(message.text(names=as_shown), force=True)

    def on_validation(self, measure: Measure, best: Measure) -> None:
        self._text(str(probed(measure, best)), force=True)

    def on_start(self, first_step: int, steps: int, facts: dict[str, Any]) -> None:
        self._first, self._began = first_step, time.monotonic()
        self._text(str(trained(facts["layers"], facts["trained_values"], facts["pictures"])), force=True)

    def on_step(self, report: StepReport) -> None:
        self._loss = 0.95 * self._loss + 0.05 * report.loss if self._loss else report.loss
        now = time.monotonic()
        if now - self._shown >= MIN_INTERVAL_S or report.step == self._steps:
            speed = (report.step - self._first) / max(1e-6, now - self._began)
            left_s = (self._steps - report.step) / max(1e-6, speed)
            pace = f"{speed:.1f} steps/s" if speed >= 1 else f"{1 / speed:.1f} s/step"
            self._text(
                f"step {report.step}/{self._steps} · loss {figure(self._loss)} · {pace} · {_clock(left_s)} left",
                force=True,
            )
            preview = ("JPEG", self._preview, PREVIEW_PX) if self._preview else None
            self._bar.update_absolute(report.step, self._steps, preview)
            self._preview = None
        comfy.model_management.throw_exception_if_processing_interrupted()

    def on_sample(self, step: int, images: list[Image.Image], path: Path) -> None:
        if self._bar_only:
            return
        self._preview = images[0]
        self._bar.update_absolute(max(step, 1), self._steps, ("JPEG", images[0], PREVIEW_PX))

    def _text(self, text: str, force: bool = False) -> None:
        now = time.monotonic()
        if self._bar_only:
            self._shown = now if force else self._shown
        elif self._id and (force or now - self._shown >= MIN_INTERVAL_S):
            self._shown = now
            host = server()
            if host is not None and hasattr(host, "send_progress_text"):
                host.send_progress_text(text, self._id)


def free_memory() -> None:
    """Asks the host to take its models off the device once the queue item has ended."""
    host = server()
    if host is not None:
        host.prompt_queue.set_flag("unload_models", True)
        host.prompt_queue.set_flag("free_memory", True)


def layer_progress(node_id: str | None) -> Callable[[int, int, str], None]:
    """A callback (done, total, name) for work that goes layer by layer: moves the node's bar, and raises the host's interrupt on Cancel."""
    bar: list[Any] = []

    def show(done: int, total: int, name: str) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if not bar:
            bar.append(comfy.utils.ProgressBar(total, node_id=node_id) if node_id else comfy.utils.ProgressBar(total))
        bar[0].update_absolute(done, total)

    return show


def caption_progress(node_id: str | None) -> Callable[[int, int, str], None]:
    """As `layer_progress`, with the name of the picture on the node."""
    move = layer_progress(node_id)

    def show(done: int, total: int, name: str) -> None:
        move(done, total, name)
        host = server()
        if name and node_id and host is not None and hasattr(host, "send_progress_text"):
            host.send_progress_text(f"{done + 1} / {total} · {name}", node_id)

    return show


def room_on_device(place: Path | None) -> torch.device:
    """Where a model from a folder runs that is none of the host's, which frees as much memory as its weights take and half again."""
    device: torch.device = comfy.model_management.get_torch_device()
    if place is not None and place.is_dir():
        weights = sum(file.stat().st_size for file in place.glob("*.safetensors"))
        comfy.model_management.free_memory(1.5 * weights, device)
    return device


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


ASKED: dict[str, Callable[[Control], None]] = {
    "stop": Control.stop_and_keep, "save": Control.save_now, "sample": Control.sample_now, "pause": Control.pause,
}  # fmt: skip


def add_routes() -> None:
    """POST /lora_loom/stop, save, sample and pause with {"node": id}: asks that of the node's run, which looks between two steps."""
    from aiohttp import web

    host = server()
    if host is None:
        return

    def add(name: str, ask: Callable[[Control], None]) -> None:
        @host.routes.post(f"{PREFIX}/{name}")
        @guarded
        async def answer(request: web.Request) -> web.Response:
            node = (await body_of(request)).get("node")
            control = _find(str(node)) if isinstance(node, str | int) else None
            if control is None:
                raise Refused(404, "run.none_in_node")
            ask(control)
            return web.json_response({"asked": name, "node": str(node)})

    for name, ask in ASKED.items():
        add(name, ask)


def _find(node: str) -> Control | None:
    """The run of a node; a node inside a subgraph runs under an id such as 12:3, while its own id is 3."""
    running = dict(_running)
    inside = [control for key, control in running.items() if key.rpartition(":")[2] == node]
    return running.get(node) or (inside[0] if len(inside) == 1 else None)
