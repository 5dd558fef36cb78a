"""What the panel in a node shows of its run: a bounded record in memory, a heartbeat to the browser, and a file in the run folder that outlives the server."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import json
import logging
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_management
import psutil
import torch
from PIL import Image

from ....lora_core.disk.files import write_json
from ....lora_core.events import Listener, Measure, StepReport
from ....lora_core.messages.errors import LoomError, message_of
from ....lora_core.messages.message import Message
from ...jobs.series import Row, Series, halved, number
from ..access.paths import runs_root
from .live import Cancelled
from .routes import server

log = logging.getLogger(__name__)
EVENT = "lora_loom.panel"
FILE = "panel.json"
INTERVAL_S = 0.25  # between two events
WRITE_EVERY_S = 2.0
ROWS_IN_EVENT = 100
WAITING_EVENTS = 32  # of the server, above which ours are left out; the browser then asks for what it missed
MAX_PANELS, MAX_MESSAGES, MAX_MARKS, MESSAGE_CHARS = 20, 200, 2000, 1500
ACTIVE = ("preparing", "training")
KEPT = ("node", "workflow", "kind", "inputs", "run", "status", "error", "step", "steps", "probes", "saves", "samples", "messages", "result")


@dataclasses.dataclass
class Panel:
    """The state of one node's last run. Written by the run's thread, read by routes: lists are only replaced or appended to."""

    node: str
    workflow: str = ""
    kind: str = ""
    inputs: dict[str, Any] = dataclasses.field(default_factory=dict)  # values of the node's widgets as it was queued
    session: str = dataclasses.field(default_factory=lambda: secrets.token_hex(6))
    run: str = ""
    status: str = "preparing"
    outcome: str = ""  # of the engine's loop, once it has ended
    error: dict[str, Any] = dataclasses.field(default_factory=dict)  # the message of what ended it
    doing: dict[str, Any] = dataclasses.field(default_factory=dict)  # the message of what goes on before the first step
    step: int = 0
    steps: int = 0
    speed: float = 0.0
    probes: list[list[float]] = dataclasses.field(default_factory=list)  # step, held-out loss, loss on trained pictures
    saves: list[int] = dataclasses.field(default_factory=list)
    samples: list[list[int]] = dataclasses.field(default_factory=list)  # step, 0 without the adapter; time of the picture
    messages: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    result: dict[str, Any] = dataclasses.field(default_factory=dict)
    changes: int = 0  # counts what an event does not carry, so the browser knows when to ask
    series: Series = dataclasses.field(default_factory=Series)
    waiting: list[Row] = dataclasses.field(default_factory=list)  # steps no event has told of
    sent_at: float = 0.0
    written_at: float = 0.0
    pace: collections.deque[tuple[float, int]] = dataclasses.field(default_factory=lambda: collections.deque(maxlen=240))

    @property
    def folder(self) -> Path | None:
        return runs_root() / self.run if self.run else None

    def changed(self, **values: Any) -> None:
        """Takes values over, and tells the browser and the disk soon."""
        for key, value in values.items():
            setattr(self, key, value)
        self.changes += 1
        self.tell(force="status" in values)
        self.write(force="status" in values)

    def say(self, message: Message) -> None:
        """One more for the list of messages."""
        said = message.as_json()
        if len(json.dumps(said)) > MESSAGE_CHARS:
            said = {"text": said["text"][:MESSAGE_CHARS]}
        if said not in self.messages[-3:]:
            self.changed(messages=[*self.messages, said][-MAX_MESSAGES:])

    def took_step(self, report: StepReport) -> None:
        self.step = report.step
        self.waiting.append(self.series.add(report.step, report.loss, report.lr, report.grad_norm))
        if len(self.waiting) >= 2 * ROWS_IN_EVENT:
            self.waiting = halved(self.waiting)
        self.tell(force=report.step == self.steps)

    def tell(self, force: bool = False) -> None:
        """Sends an event, unless the last one is too new or the server has not yet sent what it has."""
        now = time.monotonic()
        if not force and now - self.sent_at < INTERVAL_S:
            return
        if self.status == "training":
            self.pace.append((now, self.step))
            while now - self.pace[0][0] > 60 and len(self.pace) > 2:
                self.pace.popleft()
            began, first = self.pace[0]
            self.speed = (self.step - first) / (now - began) if now > began else 0.0
        self.sent_at = now
        rows = halved(self.waiting) if len(self.waiting) > ROWS_IN_EVENT else self.waiting
        self.waiting = []
        host = server()
        if host is not None and host.messages.qsize() < WAITING_EVENTS:
            host.send_sync(EVENT, {**self.heart(), "rows": rows})

    def heart(self) -> dict[str, Any]:
        """The small part of the state that every event carries."""
        left = (self.steps - self.step) / self.speed if self.speed and self.status == "training" else None
        return {
            "node": self.node, "kind": self.kind, "workflow": self.workflow, "session": self.session, "changes": self.changes, "run": self.run,
            "status": self.status, "doing": self.doing, "step": self.step, "steps": self.steps, "speed": number(self.speed), "left_s": number(left),
            "memory": memory_used(),
        }  # fmt: skip

    def snapshot(self, after: int = 0) -> dict[str, Any]:
        """Everything, with the rows that end after step `after`."""
        rows = [row for row in self.series.rows if (row[1] or 0) > after]
        return {
            **self.heart(), "error": self.error, "inputs": self.inputs, "probes": self.probes, "saves": self.saves,
            "samples": self.samples, "messages": self.messages, "result": self.result, "can_continue": self.can_continue(), "rows": rows,
        }  # fmt: skip

    def can_continue(self) -> bool:
        folder = self.folder
        return folder is not None and self.status not in (*ACTIVE, "finished") and any((folder / "checkpoints").glob("step-*"))

    def write(self, force: bool = False) -> None:
        """Puts what a restart needs beside the run's log, which holds the steps."""
        folder, now = self.folder, time.monotonic()
        if folder is None or not folder.is_dir() or (not force and now - self.written_at < WRITE_EVERY_S):
            return
        self.written_at = now
        try:
            write_json(folder / FILE, {key: getattr(self, key) for key in KEPT})
        except (LoomError, ValueError):
            log.exception("The state of the panel could not be written")


class PanelListener(Listener):
    """Fills a panel from a run's events."""

    def __init__(self, panel: Panel):
        self._panel = panel

    def on_progress(self, what: str, done: int, total: int) -> None:
        self._panel.doing = Message.of(what, done=done, total=total).as_json()
        self._panel.tell()

    def on_warning(self, message: Message) -> None:
        self._panel.say(message)

    def on_note(self, message: Message) -> None:
        self._panel.say(message)

    def on_start(self, first_step: int, steps: int, facts: dict[str, Any]) -> None:
        panel = self._panel
        panel.series = Series.of_log(panel.folder / "log.jsonl", first_step) if panel.folder and first_step else Series()
        panel.waiting = []
        panel.pace.clear()
        then = _on_disk(panel.folder) if panel.folder and first_step else {}
        panel.saves = [s for s in then.get("saves", []) if isinstance(s, int) and s <= first_step]
        panel.samples = [s for s in then.get("samples", []) if isinstance(s, list) and s and isinstance(s[0], int) and s[0] <= first_step]
        panel.probes = [[m[0], number(m[1]), number(m[2])] for m in facts.get("validation", [])]
        panel.say(_trained(facts["layers"], facts["trained_values"], facts["pictures"]))
        panel.changed(status="training", doing={}, step=first_step, steps=steps)

    def on_step(self, report: StepReport) -> None:
        self._panel.took_step(report)

    def on_validation(self, measure: Measure, best: Measure) -> None:
        row = [measure.step, number(measure.held_out), number(measure.trained)]
        self._panel.changed(probes=[*self._panel.probes, row][-MAX_MARKS:])

    def on_sample(self, step: int, images: list[Image.Image], path: Path) -> None:
        shown = 0 if path.stem == "before" else step
        others = [s for s in self._panel.samples if s[0] != shown]
        self._panel.changed(samples=sorted([*others, [shown, int(time.time())]])[-MAX_MARKS:])

    def on_save(self, step: int, path: Path) -> None:
        self._panel.changed(saves=[*(s for s in self._panel.saves if s != step), step][-MAX_MARKS:])

    def on_end(self, outcome: str, step: int) -> None:
        self._panel.outcome, self._panel.doing = outcome, {}


def _trained(layers: int, values: int, pictures: int) -> Message:
    size = f"{values * 4 / 1e6:.1f} MB" if values * 4 > 1e5 else f"{values * 4 / 1e3:.0f} kB"
    if not layers:  # an embedding alone
        return Message.of("run.trains_values", values=f"{values:,}", size=size, pictures=pictures)
    return Message.of("run.trains", layers=layers, values=f"{values:,}", size=size, pictures=pictures)


_panels: collections.OrderedDict[tuple[str, str], Panel] = collections.OrderedDict()


def begin(hidden: Any) -> Panel:
    """A new panel for the node that starts now; it takes the place of what the node showed before."""
    node = str(hidden.unique_id)
    mine = hidden.prompt.get(node, {}) if isinstance(hidden.prompt, dict) else {}
    inputs = {key: value for key, value in mine.get("inputs", {}).items() if isinstance(value, str | int | float | bool)}
    panel = Panel(node, str((workflow_of(hidden) or {}).get("id") or ""), mine.get("class_type", ""), inputs)
    _panels.pop((panel.workflow, node), None)
    _panels[panel.workflow, node] = panel
    while len(_panels) > MAX_PANELS:
        _panels.popitem(last=False)
    panel.tell(force=True)
    return panel


def workflow_of(hidden: Any) -> dict[str, Any] | None:
    """The graph a node was queued from, as the page sends it along; None where it was queued without one."""
    info = hidden.extra_pnginfo if isinstance(hidden.extra_pnginfo, dict) else {}
    return workflow if isinstance(workflow := info.get("workflow"), dict) else None


def panel_of(node: str | None) -> Panel | None:
    """The panel of the node that runs now."""
    return next((p for p in reversed(_panels.values()) if p.node == str(node) and p.status in ACTIVE), None)


def find_panel(node: str, workflow: str) -> Panel | None:
    """What a node of a workflow showed last: from memory, else from the newest of its run folders. An unnamed workflow fits every one."""
    known = [p for p in _panels.values() if p.node == node and (not workflow or not p.workflow or p.workflow == workflow)]
    if known:
        return known[-1]
    for folder in _runs_newest_first():
        then = _on_disk(folder)
        if then.get("node") == node and (not workflow or then.get("workflow") == workflow):
            panel = _revived(folder, then)
            return _panels.setdefault((panel.workflow, node), panel)
    return None


def _runs_newest_first() -> list[Path]:
    """Run folders that hold a panel's state."""
    found = []
    for file in runs_root().glob(f"*/{FILE}"):
        with contextlib.suppress(OSError):  # removed meanwhile
            found.append((file.stat().st_mtime_ns, file.parent))
    return [folder for _, folder in sorted(found, reverse=True)]


def _on_disk(folder: Path) -> dict[str, Any]:
    """The written state of a run's panel; empty where there is none that can be read."""
    try:
        value = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    value = _of_0_1_0(value)
    blank = Panel("")
    fits = isinstance(value, dict) and all(isinstance(value.get(key, getattr(blank, key)), type(getattr(blank, key))) for key in KEPT)
    return value if fits else {}


def _of_0_1_0(value: Any) -> Any:
    """A state that 0.1.0 wrote, with its sentences as messages."""
    if not isinstance(value, dict) or not isinstance(value.get("messages"), list):
        return value
    messages = [{"text": said} if isinstance(said, str) else said for said in value["messages"]]
    error = value.get("error", {"text": value["sentence"]} if value.get("sentence") else {})
    return {**value, "messages": messages, "error": error}


def _revived(folder: Path, then: dict[str, Any]) -> Panel:
    panel = Panel(**{key: then[key] for key in KEPT if key in then})
    panel.run, panel.series = folder.name, Series.of_log(folder / "log.jsonl")
    panel.step = max(panel.step, panel.series.last_step())
    if panel.status in ACTIVE:
        panel.status, panel.error = "interrupted", Message.of("run.server_ended").as_json()
    return panel


def memory_used() -> dict[str, Any] | None:
    """What this process holds of the device it trains on, in bytes; None where nobody can say."""
    device = comfy.model_management.get_torch_device()
    try:
        if device.type == "cuda":
            return {"of": "GPU", "used": torch.cuda.memory_reserved(device), "total": torch.cuda.get_device_properties(device).total_memory}
        return {"of": "RAM", "used": psutil.Process().memory_info().rss, "total": psutil.virtual_memory().total}
    except (RuntimeError, OSError, psutil.Error):  # a figure must not end a run
        return None


def shown(execute: Callable[..., Any]) -> Callable[..., Any]:
    """Shows in the node's panel what its `execute` does, and how it ends."""

    @functools.wraps(execute)
    def watched(cls: Any, *args: Any, **kwargs: Any) -> Any:
        panel = begin(cls.hidden)
        try:
            out = execute(cls, *args, **kwargs)
        except Cancelled:
            panel.changed(status="paused" if panel.outcome == "paused" else "cancelled", doing={})
            raise
        except BaseException as error:
            panel.changed(status="failed", doing={}, error=message_of(error).as_json())
            raise
        panel.changed(status="stopped" if panel.outcome == "stopped" else "finished", doing={})
        return out

    return watched
