"""The pace of a run is that of its steps alone, and its folder keeps it."""

from __future__ import annotations

from lora_loom.lora_core.events import StepReport
from lora_loom.lora_core.runs import state
from lora_loom.lora_core.runs.bounded import read_json
from lora_loom.lora_core.runs.pace import Pace


def timed(*durations):
    """A pace of these steps; None: something else happened before the next one."""
    pace, now = Pace(), 0.0
    for duration in (0.0, *durations):
        if duration is None:
            pace.interrupted()
            continue
        now += duration
        pace.step(now)
    return pace


def test_the_first_steps_and_those_with_a_sample_in_them_are_left_out():
    assert timed(9.0, 9.0, 1.0, 2.0, 3.0).seconds() == 2.0
    assert timed(9.0, 9.0, 1.0, 2.0, None, 90.0, 3.0).seconds() == 2.0
    assert timed(9.0, 9.0, 1.0, 2.0).seconds() is None


def test_a_run_folder_keeps_its_pace(tmp_path, monkeypatch):
    clock = iter(range(0, 100, 2))
    monkeypatch.setattr(state, "clock_s", lambda: float(next(clock)))
    with state.recorded(tmp_path) as record:
        record.on_start(0, 8, {"layers": 1, "trained_values": 1, "pictures": 1})
        for step in range(1, 9):
            record.on_step(StepReport(step, 0.1, 0.0, 1.0, 1e-4, ()))
        record.on_end("finished", 8)
    pace = read_json(tmp_path / "run.json")["pace"]
    assert pace["seconds_per_step"] == 2.0
    assert pace["peak_bytes"] >= 0
