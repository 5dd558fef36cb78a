"""What a panel sends: few events, small ones, none while the server is behind; and what it costs a step."""

from __future__ import annotations

import json
import sys
import time
from types import FrameType

import pytest
from lora_loom.lora_core.events import StepReport
from lora_loom.lora_core.messages.message import Message
from lora_loom.nodes.host.web import panel as in_comfyui
from lora_loom.nodes.jobs import panel as panels

CALLS_OF_A_STEP = 60  # of Python and of C, a step: about a twentieth of a millisecond


class FakeServer:
    """Takes events like the host's server. `behind`: how many it has not sent yet."""

    def __init__(self):
        self.sent, self.behind = [], 0
        self.messages = self

    def qsize(self) -> int:
        return self.behind

    def send_sync(self, event, data, sid=None):
        self.sent.append((time.monotonic(), event, data))


@pytest.fixture
def host(monkeypatch):
    fake = FakeServer()
    monkeypatch.setattr(in_comfyui, "server", lambda: fake)
    return fake


def report(step: int) -> StepReport:
    return StepReport(step, 0.1 + 1 / step, 0.0, 1.0, 1e-4, ["a.png"])


def test_a_fast_run_sends_at_most_five_small_events_a_second_and_leaves_no_step_out(host):
    panel = panels.Panel(in_comfyui.COMFYUI, "3", status="training", steps=10**9)
    began, step = time.monotonic(), 0
    while time.monotonic() - began < 3:
        step += 1
        panel.took_step(report(step))
    panel.tell(force=True)
    seconds = time.monotonic() - began
    assert len(host.sent) <= 5 * seconds
    assert max(len(json.dumps(data)) for _, _, data in host.sent) <= 16_000
    rows = [row for _, _, data in host.sent for row in data["rows"]]
    assert rows[0][0] == 1
    assert all(b[0] == a[1] + 1 for a, b in zip(rows, rows[1:], strict=False))
    assert rows[-1][1] == step
    print(f"{step / seconds:.0f} steps a second reported, {len(host.sent) / seconds:.1f} events a second")


def test_no_event_waits_behind_a_tab_that_does_not_read(host):
    host.behind = 1000
    panel = panels.Panel(in_comfyui.COMFYUI, "3", status="training", steps=5000)
    for step in range(1, 5001):
        panel.took_step(report(step))
    assert host.sent == []
    assert len(panel.waiting) <= 2 * panels.ROWS_IN_EVENT
    assert len(panel.snapshot()["rows"]) > 1000  # who asks is told everything
    assert panel.snapshot()["step"] == 5000


def test_an_event_carries_numbers_and_names_and_no_picture(host):
    panel = panels.Panel(
        in_comfyui.COMFYUI, "3", status="training", steps=10, samples=[[0, 1], [5, 2]], messages=["x" * 500] * 100
    )
    panel.took_step(report(1))
    ((_, event, data),) = host.sent
    assert event == "lora_loom.panel"
    assert set(data) == {
        "node", "kind", "workflow", "session", "changes", "run", "status", "doing", "step", "steps", "speed", "left_s", "memory", "rows",
    }  # fmt: skip
    assert len(json.dumps(data)) < 1000


def test_messages_and_marks_stay_bounded(host):
    panel = panels.Panel(in_comfyui.COMFYUI, "3")
    for n in range(1000):
        panel.say(Message.of("checkpoint.passed_over", name=f"{n} " + "y" * 5000))
    assert len(panel.messages) == panels.MAX_MESSAGES
    assert max(len(json.dumps(message)) for message in panel.messages) <= panels.MESSAGE_CHARS + 20


def test_a_step_costs_its_panel_a_bounded_number_of_calls(host, figure):
    panel = panels.Panel(in_comfyui.COMFYUI, "3", status="training", steps=10**9)
    for step in range(1, 2001):
        panel.took_step(report(step))
    calls = 0

    def count(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        for step in range(2001, 4001):
            panel.took_step(report(step))
    finally:
        sys.setprofile(None)
    assert calls / 2000 < CALLS_OF_A_STEP
    before = time.thread_time()
    for step in range(4001, 24_001):
        panel.took_step(report(step))
    figure("a step's report to the panel, thread time", (time.thread_time() - before) / 20_000)
