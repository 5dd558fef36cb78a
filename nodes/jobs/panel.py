"""What a panel shows of a run, on every host: a bounded record in memory, a heartbeat to the browser, and a file in the run folder that outlives the server."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import logging
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from ...lora_core.config import parse
from ...lora_core.disk.files import write_json
from ...lora_core.events import Listener, Measure, StepReport
from ...lora_core.messages.errors import LoomError, Problem
from ...lora_core.messages.figures import figure
from ...lora_core.messages.message import Message
from ...lora_core.runs.estimates import Estimate, estimate
from .series import Row, Series, halved, number
from .time_left import Countdown, Plan

log = logging.getLogger(__name__)
FILE = "panel.json"
INTERVAL_S = 0.25  # between two events
WRITE_EVERY_S = 2.0
ROWS_IN_EVENT = 100
MAX_PANELS, MAX_MESSAGES, MAX_MARKS, MESSAGE_CHARS = 20, 200, 2000, 1500
ACTIVE = ("preparing", "training")
RESULT_STAYS = "run.result_stays"  # code of the message that a failed run's file lies in its folder alone
KEPT: dict[str, type] = {  # what a restart needs
    "node": str, "workflow": str, "kind": str, "inputs": dict, "run": str, "status": str, "error": dict, "step": int,
    "steps": int, "probes": list, "saves": list, "samples": list, "messages": list, "result": dict,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class PanelHost:
    """What panels ask of the host they are shown in.

    `root`: where run folders lie. `send`: an event to the pages, left out while the host is behind; the pages then ask for what they missed.
    `memory`: what is taken of the device (of, used, total; bytes), None where nobody can say.
    """

    root: Callable[[], Path]
    send: Callable[[dict[str, Any]], None]
    memory: Callable[[], dict[str, Any] | None]


@dataclasses.dataclass
class Panel:
    """The state of one node's last run. Written by the run's thread, read by routes: lists are only replaced or appended to."""

    host: PanelHost
    node: str
    workflow: str = ""
    kind: str = ""
    inputs: dict[str, Any] = dataclasses.field(default_factory=dict)  # values of the node's widgets as it was queued
    session: str = dataclasses.field(default_factory=lambda: secrets.token_hex(6))
    run: str = ""
    status: str = "preparing"
    outcome: str = ""  # of the engine's loop, once it has ended
    error: dict[str, Any] = dataclasses.field(default_factory=dict)  # the message of what ended it
    doing: dict[str, Any] = dataclasses.field(
        default_factory=dict
    )  # the message of what goes on before the first step, and between steps
    step: int = 0
    steps: int = 0
    probes: list[list[float | None]] = dataclasses.field(
        default_factory=list
    )  # step, held-out loss, loss on trained pictures
    saves: list[int] = dataclasses.field(default_factory=list)
    samples: list[list[int]] = dataclasses.field(
        default_factory=list
    )  # step, 0 without the adapter; time of the picture
    messages: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    result: dict[str, Any] = dataclasses.field(default_factory=dict)
    changes: int = 0  # counts what an event does not carry, so the browser knows when to ask
    series: Series = dataclasses.field(default_factory=Series)
    waiting: list[Row] = dataclasses.field(default_factory=list)  # steps no event has told of
    sent_at: float = 0.0
    written_at: float = 0.0
    countdown: Countdown = dataclasses.field(default_factory=lambda: Countdown(Plan(0)))

    @property
    def folder(self) -> Path | None:
        return self.host.root() / self.run if self.run else None

    def changed(self, **values: Any) -> None:
        """Takes values over, and tells the browser and the disk soon."""
        for key, value in values.items():
            setattr(self, key, value)
        self.changes += 1
        self.tell(force="status" in values)
        self.write(force="status" in values)

    def say(self, message: Message) -> None:
        """One more for the list of messages."""
        data = message.as_json()
        if len(json.dumps(data)) > MESSAGE_CHARS:
            data = {"text": data["text"][:MESSAGE_CHARS]}
        if data not in self.messages[-3:]:
            self.changed(messages=[*self.messages, data][-MAX_MESSAGES:])

    def took_step(self, report: StepReport) -> None:
        self.step, self.doing = report.step, {}
        self.countdown.took_step()
        self.waiting.append(self.series.add(report.step, report.loss, report.lr, report.grad_norm, report.expert))
        if len(self.waiting) >= 2 * ROWS_IN_EVENT:
            self.waiting = halved(self.waiting)
        self.tell(force=report.step == self.steps)

    def tell(self, force: bool = False) -> None:
        """Sends an event, unless the last one is too new or the server has not yet sent what it has."""
        now = time.monotonic()
        if not force and now - self.sent_at < INTERVAL_S:
            return
        self.sent_at = now
        rows = halved(self.waiting) if len(self.waiting) > ROWS_IN_EVENT else self.waiting
        self.waiting = []
        self.host.send({**self.heart(), "rows": rows})

    def heart(self) -> dict[str, Any]:
        """The small part of the state that every event carries."""
        step_s = self.countdown.step_s
        left = self.countdown.left_s(self.step) if self.status == "training" else None
        return {
            "node": self.node,
            "kind": self.kind,
            "workflow": self.workflow,
            "session": self.session,
            "changes": self.changes,
            "run": self.run,
            "status": self.status,
            "doing": self.doing,
            "step": self.step,
            "steps": self.steps,
            "speed": number(1 / step_s) if step_s else None,
            "left_s": number(left),
            "memory": self.host.memory(),
        }

    def snapshot(self, after: int = 0) -> dict[str, Any]:
        """Everything, with the rows that end after step `after`."""
        rows = [row for row in self.series.rows if (row[1] or 0) > after]
        return {
            **self.heart(),
            "error": self.error,
            "inputs": self.inputs,
            "probes": self.probes,
            "saves": self.saves,
            "samples": self.samples,
            "messages": self.messages,
            "result": self.result,
            "can_continue": self.can_continue(),
            "rows": rows,
        }

    def can_continue(self) -> bool:
        folder = self.folder
        return (
            folder is not None
            and self.status not in (*ACTIVE, "finished")
            and any((folder / "checkpoints").glob("step-*"))
        )

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
        panel, message = self._panel, Message.of(what, done=done, total=total).as_json()
        other = panel.doing.get("code") != what
        panel.doing = message
        panel.countdown.begins(what)
        panel.tell(force=other or panel.status == "training")

    def on_warning(self, message: Message) -> None:
        self._panel.say(message)

    def on_note(self, message: Message) -> None:
        self._panel.say(message)

    def on_start(self, first_step: int, steps: int, facts: dict[str, Any]) -> None:
        panel = self._panel
        panel.series = (
            Series.of_log(panel.folder / "log.jsonl", first_step) if panel.folder and first_step else Series()
        )
        panel.waiting = []
        panel.countdown = Countdown(Plan.of(steps, facts.get("config", {})), known=_known(panel, facts))
        then = _on_disk(panel.folder) if panel.folder and first_step else {}
        panel.saves = [s for s in then.get("saves", []) if isinstance(s, int) and s <= first_step]
        panel.samples = [
            s
            for s in then.get("samples", [])
            if isinstance(s, list) and s and isinstance(s[0], int) and s[0] <= first_step
        ]
        panel.probes = [[m[0], number(m[1]), number(m[2])] for m in facts.get("validation", [])]
        panel.say(trained(facts["layers"], facts["trained_values"], facts["pictures"]))
        panel.changed(status="training", doing={}, step=first_step, steps=steps)

    def on_step(self, report: StepReport) -> None:
        self._panel.took_step(report)

    def on_validation(self, measure: Measure, best: Measure) -> None:
        self._panel.countdown.ends()
        row = [measure.step, number(measure.held_out), number(measure.trained)]
        self._panel.changed(probes=[*self._panel.probes, row][-MAX_MARKS:])

    def on_sample(self, step: int, images: list[Image.Image], path: Path) -> None:
        self._panel.countdown.ends()
        position = 0 if path.stem == "before" else step
        others = [s for s in self._panel.samples if s[0] != position]
        self._panel.changed(samples=sorted([*others, [position, int(time.time())]])[-MAX_MARKS:])

    def on_save(self, step: int, path: Path) -> None:
        self._panel.countdown.ends()
        self._panel.changed(saves=[*(s for s in self._panel.saves if s != step), step][-MAX_MARKS:])

    def on_end(self, outcome: str, step: int) -> None:
        self._panel.outcome, self._panel.doing = outcome, {}


def _known(panel: Panel, facts: dict[str, Any]) -> Estimate | None:
    """What an earlier run took whose steps cost the same; a run that goes on knows its own."""
    base = facts.get("base_model", {})
    try:
        return estimate(panel.host.root(), parse(facts["config"]), base.get("family", ""), base.get("file", ""))
    except (KeyError, Problem):
        return None


def trained(layers: int, values: int, pictures: int) -> Message:
    """What a run trains, and how large its file will be."""
    size = f"{figure(values * 4 / 1e6)} MB" if values * 4 > 1e5 else f"{figure(values * 4 / 1e3)} kB"
    if not layers:  # an embedding alone
        return Message.of("run.trains_values", values=f"{values:,}", size=size, pictures=pictures)
    return Message.of("run.trains", layers=layers, values=f"{values:,}", size=size, pictures=pictures)


class Panels:
    """The panels of a host, the newest last."""

    def __init__(self, host: PanelHost):
        self._host = host
        self._panels: collections.OrderedDict[tuple[str, str], Panel] = collections.OrderedDict()

    def begin(self, node: str, workflow: str = "", kind: str = "", inputs: dict[str, Any] | None = None) -> Panel:
        """A new panel for the node that starts now; it takes the place of what the node showed before."""
        panel = Panel(self._host, node, workflow, kind, inputs or {})
        panel.doing = Message.of("progress.model").as_json()  # until the run says what it does
        self._panels.pop((workflow, node), None)
        self._panels[workflow, node] = panel
        while len(self._panels) > MAX_PANELS:
            self._panels.popitem(last=False)
        panel.tell(force=True)
        return panel

    def running(self, node: str) -> Panel | None:
        """The panel of the node that runs now."""
        return next((p for p in reversed(self._panels.values()) if p.node == node and p.status in ACTIVE), None)

    def find(self, node: str, workflow: str) -> Panel | None:
        """What a node of a workflow showed last: from memory, else from the newest of its run folders.

        A run that was queued without a workflow is in none.
        """
        panels = [p for p in self._panels.values() if p.node == node and p.workflow == workflow]
        if panels:
            return panels[-1]
        for folder in self._runs_newest_first():
            then = _on_disk(folder)
            if then.get("node") == node and then.get("workflow", "") == workflow:
                panel = self._revived(folder, then)
                return self._panels.setdefault((panel.workflow, node), panel)
        return None

    def kept(self, run: str) -> None:
        """What a failed run left was put where it is listed: its panel does not offer that any more."""
        panels = [panel for panel in self._panels.values() if panel.run == run]
        folder = self._host.root() / run
        if not panels and (then := _on_disk(folder)):
            panels = [self._revived(folder, then)]
        for panel in panels:
            if any(message.get("code") == RESULT_STAYS for message in panel.messages):
                panel.changed(messages=[m for m in panel.messages if m.get("code") != RESULT_STAYS])
                panel.write(force=True)

    def _runs_newest_first(self) -> list[Path]:
        """Run folders that hold a panel's state."""
        times = []
        for file in self._host.root().glob(f"*/{FILE}"):
            with contextlib.suppress(OSError):  # removed meanwhile
                times.append((file.stat().st_mtime_ns, file.parent))
        return [folder for _, folder in sorted(times, reverse=True)]

    def _revived(self, folder: Path, then: dict[str, Any]) -> Panel:
        panel = Panel(self._host, **{key: then[key] for key in KEPT if key in then})
        panel.run, panel.series = folder.name, Series.of_log(folder / "log.jsonl")
        panel.step = max(panel.step, panel.series.last_step())
        if panel.status in ACTIVE:
            panel.status, panel.error = "interrupted", Message.of("run.server_ended").as_json()
        return panel


def _on_disk(folder: Path) -> dict[str, Any]:
    """The written state of a run's panel; empty where there is none that can be read."""
    try:
        value = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    value = _of_0_1_0(value)
    fits = isinstance(value, dict) and all(isinstance(value[key], kind) for key, kind in KEPT.items() if key in value)
    return value if fits else {}


def _of_0_1_0(value: Any) -> Any:
    """A state that 0.1.0 wrote, with its sentences as messages."""
    if not isinstance(value, dict) or not isinstance(value.get("messages"), list):
        return value
    messages = [{"text": message} if isinstance(message, str) else message for message in value["messages"]]
    error = value.get("error", {"text": value["sentence"]} if value.get("sentence") else {})
    return {**value, "messages": messages, "error": error}
