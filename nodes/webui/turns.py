"""The host's queue: a run holds its lock, and lets pictures of the page and the API through between two steps."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from ...lora_core.events import Control, Listener, Measure, StepReport
from ...lora_core.messages.message import Message
from .engine.drawing import state_kept

GAP_S = 0.2  # the lock goes to whoever asks first once it is free: those who wait need this long to wake up
INTERRUPT_S = 3.0  # at most, between the interrupt that Reload UI sends first and its own word
RELOAD_S = 180.0  # at most, that a run and a new page wait for each other
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
            with GATE.held():
                yield
        finally:
            progress.finish_task(task)
            shared.state.end()
            shared.state.interrupted, shared.state.textinfo = False, None


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


class PageGate:
    """Holds a run between two steps, its model given back, while the host makes its page anew and takes its own patches of layers off and on again."""

    def __init__(self) -> None:
        self._open, self._stands = threading.Event(), threading.Event()
        self._open.set()
        self._stands.set()

    @property
    def shut(self) -> bool:
        return not self._open.is_set()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Around a run, for which `shut_now` waits."""
        self._stands.clear()
        try:
            yield
        finally:
            self._stands.set()

    def shut_now(self) -> None:
        """Called by the host before anything is taken off. Returns when no step is under way."""
        self._open.clear()
        self._stands.wait(RELOAD_S)

    def open_again(self) -> None:
        """Called by the host when its page is there."""
        self._open.set()

    def wait(self) -> None:
        """Called by a run that stands."""
        self._stands.set()
        self._open.wait(RELOAD_S)
        self._stands.clear()

    def shuts_soon(self) -> bool:
        """Whether an interrupt came with Reload UI, which sends one before its own word."""
        deadline = time.monotonic() + INTERRUPT_S
        while time.monotonic() < deadline and not self.shut:
            time.sleep(INTERRUPT_S / 20)
        return self.shut


GATE = PageGate()


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
            if not GATE.shuts_soon():
                self._control.stop_and_keep()
        if GATE.shut:
            with self._given_back(), state_kept():
                GATE.wait()
        elif pictures_wait():
            let_through(self._given_back)
