"""The pace of a run is that of its steps alone, and its folder keeps it."""

from __future__ import annotations

import threading

from lora_loom.lora_core.events import StepReport
from lora_loom.lora_core.runs import pace as pace_module
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


def test_what_is_not_a_step_is_measured_apart():
    pace = Pace()
    pace.begin(0.0)
    pace.work("progress.pictures", 1, 4, 10.0)
    pace.work("progress.pictures", 4, 4, 12.0)
    pace.work("progress.captions", 0, 4, 18.0)
    pace.start(20.0)
    now = 20.0
    for duration in (5.0, 1.0, 1.0, 1.0, 1.0, 1.0):  # the first warms up
        now += duration
        pace.step(now)
    pace.work("progress.saving", 6, 9, now)
    pace.done(now + 3.0)
    pace.interrupted()
    pace.work("progress.samples", 1, 2, now + 3.0)
    pace.work("progress.samples", 2, 2, now + 8.0)
    pace.done(now + 13.0)
    works = pace.as_json()["seconds"]
    assert works == {"pictures": 2.0, "saves": 3.0, "samples": 5.0, "preparing": 20.0 - 8.0 + 4.0}
    assert pace.as_json()["seconds_per_step"] == 1.0


def test_memory_is_the_most_that_was_held_within_a_step(monkeypatch, tmp_path):
    """As on a machine without a GPU: what a step frees before it ends counts."""
    looked = threading.Event()
    held = iter([5, 9, 5])

    def resident():
        value = next(held, None)
        if value is None:
            looked.set()
        return 5 if value is None else value

    monkeypatch.setattr(pace_module, "resident_bytes", resident)
    monkeypatch.setattr(pace_module.torch.cuda, "is_available", lambda: False)
    with state.recorded(tmp_path) as record:
        record.on_start(0, 8, {"layers": 1, "trained_values": 1, "pictures": 1})
        assert looked.wait(60)
        for step in range(1, 9):
            record.on_step(StepReport(step, 0.1, 0.0, 1.0, 1e-4, ()))
        record.on_end("finished", 8)
    assert read_json(tmp_path / "run.json")["pace"]["peak_bytes"] == 9


def test_a_gpu_that_keeps_its_maximum_is_asked_when_it_is_written_and_not_in_every_step(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(pace_module.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(pace_module.torch.cuda, "max_memory_allocated", lambda: asked.append(1) or 7)
    with state.recorded(tmp_path) as record:
        record.on_start(0, 200, {"layers": 1, "trained_values": 1, "pictures": 1})
        for step in range(1, 201):
            record.on_step(StepReport(step, 0.1, 0.0, 1.0, 1e-4, ()))
        record.on_end("finished", 200)
    assert read_json(tmp_path / "run.json")["pace"]["peak_bytes"] == 7
    assert len(asked) == 1
