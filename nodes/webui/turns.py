"""The host's queue: a run holds its lock, and lets pictures of the page and the API through between two steps."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from ...lora_core.events import Control, Listener, Measure, StepReport
from ...lora_core.messages.message import Message
from .engine.drawing import state_kept

log = logging.getLogger(__name__)
GAP_S = 0.2  # the lock goes to whoever asks first once it is free: those who wait need this long to wake up
RELOAD_S = 1.0  # between the interrupt that Reload UI sends first, and its own word
GivenBack = Callable[[], AbstractContextManager[None]]


@contextlib.contextmanager
def turn(task: str) -> Iterator[None]:
    """The host's lock, with its progress bar on the task called `task`. Waits for pictures that are being drawn."""
    from modules import progress, shared
    from modules.call_queue import queue_lock

    progress.add_task_to_queue(task)
    with queue_lock:
        shared.state.begin(job=task)
        progress.start_task(task)
        try:
            yield
        finally:
            progress.finish_task(task)
            shared.state.end()
            shared.state.interrupted = False


def pictures_wait() -> bool:
    """Whether somebody asks for the lock."""
    from modules.call_queue import queue_lock

    return bool(getattr(queue_lock, "_pending_threads", ()))


def let_through(given_back: GivenBack) -> None:
    """Gives model and lock to whoever waits, and takes both again. Raises LoomError when the model is another one then."""
    from modules.call_queue import queue_lock

    with given_back(), state_kept():
        queue_lock.release()
        try:
            time.sleep(GAP_S)
        finally:
            queue_lock.acquire()


_reloaded_at = float("-inf")


def note_reload() -> None:
    """Called by the host when its page is made anew."""
    global _reloaded_at
    _reloaded_at = time.monotonic()


def page_reloads() -> bool:
    """Whether an interrupt came with Reload UI, which sends one before it says so itself."""
    deadline = time.monotonic() + RELOAD_S
    while time.monotonic() < deadline:
        if time.monotonic() - _reloaded_at < 2 * RELOAD_S:
            return True
        time.sleep(RELOAD_S / 10)
    return False


class Courtesy(Listener):
    """Lets pictures through at every event of a run, shows its steps in the host's progress bar, and hears the host's Interrupt."""

    def __init__(self, given_back: GivenBack, control: Control):
        self._given_back, self._control = given_back, control

    def on_progress(self, what: str, done: int, total: int) -> None:
        self._bar(done, total, str(Message.of(what, done=done, total=total)))
        self._look()

    def on_start(self, first_step: int, steps: int, facts: dict[str, Any]) -> None:
        self._steps = steps
        self._bar(first_step, steps, "")

    def on_step(self, report: StepReport) -> None:
        self._bar(report.step, self._steps, f"{report.step}/{self._steps} · loss {report.loss:.4f}")
        self._look()

    def on_validation(self, measure: Measure, best: Measure) -> None:
        self._look()

    def on_sample(self, step: int, images: list[Any], path: Any) -> None:
        from modules import shared

        if images:
            shared.state.assign_current_image(images[0])
        self._look()

    def _bar(self, done: int, total: int, text: str) -> None:
        from modules import shared

        state = shared.state
        state.job_count, state.job_no, state.sampling_steps, state.textinfo = total, done, 0, text

    def _look(self) -> None:
        from modules import shared

        if shared.state.interrupted:
            shared.state.interrupted = False
            if not page_reloads():
                self._control.stop_and_keep()
        elif pictures_wait():
            let_through(self._given_back)
