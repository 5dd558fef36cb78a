"""run.json: what a run folder says of its run, for programs. Written whole when the run begins, at every save and when it ends."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import logging
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..disk.files import write_json
from ..events import Listener, Listeners, Measure, StepReport
from ..messages.errors import message_of
from .bounded import as_step, as_text, read_json
from .guarded import DISK, Extras, Guarded, Tell
from .pace import MemoryWatch, Pace, clock_s
from .reports import FileLog

log = logging.getLogger(__name__)
FILE, LOG = "run.json", "run.log"
FORMAT = 1
MAX_BYTES = 64 << 10
CANCELS = (KeyboardInterrupt, SystemExit, GeneratorExit)  # errors that end a run on its user's wish
OUTCOMES = ("running", "paused", "stopped", "stopped early", "finished", "cancelled", "failed")
PACKAGES = ("torch", "diffusers", "transformers", "safetensors")


@dataclasses.dataclass(frozen=True)
class Ending:
    """One of OUTCOMES; the step it came after, where that is known; the message of an error, as a page takes it."""

    outcome: str
    step: int | None = None
    error: dict[str, Any] | None = None


class StateFile(Listener):
    """Keeps run.json while the block runs. `host`: the program that runs us and its version. `cancels`: exceptions by which it takes a run back."""

    def __init__(self, folder: Path, host: str = "", cancels: tuple[type[BaseException], ...] = ()):
        then = read_json(folder / FILE, MAX_BYTES)
        self._file = folder / FILE
        self._pace, self._watch = Pace(), MemoryWatch()
        self._cancels: tuple[type[BaseException], ...] = (*CANCELS, *cancels)
        self._values: dict[str, Any] = {
            "format": FORMAT,
            "outcome": "running",
            "step": (as_step(then.get("step")) or 0) if isinstance(then, dict) else 0,
            "steps": 0,
            "error": None,
            "started": time.time(),
            "changed": 0.0,
            "ended": None,
            "process": os.getpid(),
            "versions": versions(host),
        }

    def __enter__(self) -> StateFile:
        return self

    def begin(self) -> None:
        """Says that the run goes on."""
        self._pace.begin(clock_s())
        self._write()

    def __exit__(self, *error: Any) -> None:
        self._watch.end()
        if error[1] is None:
            return
        if isinstance(error[1], self._cancels):
            self._values["outcome"] = "cancelled"
        else:
            self._values |= {"outcome": "failed", "error": message_of(error[1]).as_json()}
        try:
            self._write(ended=True)
        except DISK:  # the error that ended the run is the one to show
            log.exception("How the run ended could not be written to %s", self._file)

    def on_start(self, first_step: int, steps: int, facts: dict[str, Any]) -> None:
        self._values |= {"step": first_step, "steps": steps}
        if "base_model" in facts:
            self._values["base_model"] = facts["base_model"]
        self._write()
        self._watch.begin()
        self._pace.start(clock_s())

    def on_progress(self, what: str, done: int, total: int) -> None:
        self._pace.work(what, done, total, clock_s())

    def on_step(self, report: StepReport) -> None:
        self._pace.step(clock_s())

    def on_sample(self, step: int, images: Any, path: Path) -> None:
        self._interrupted()

    def on_validation(self, measure: Measure, best: Measure) -> None:
        self._interrupted()

    def _interrupted(self) -> None:
        self._pace.done(clock_s())
        self._pace.interrupted()

    def on_save(self, step: int, path: Path) -> None:
        self._interrupted()
        self._values["step"] = step
        self._write()

    def on_end(self, outcome: str, step: int) -> None:
        self._pace.done(clock_s())
        self._values |= {"outcome": outcome, "step": step}
        self._write(ended=True)

    def _write(self, ended: bool = False) -> None:
        now = round(time.time(), 3)
        self._values |= {"changed": now, "ended": now if ended else None}
        if pace := self._pace.as_json():
            self._values["pace"] = {**pace, "peak_bytes": self._watch.peak_bytes()}
        write_json(self._file, self._values)


@contextlib.contextmanager
def recorded(
    folder: Path, host: str = "", cancels: tuple[type[BaseException], ...] = (), tell: Tell | None = None
) -> Iterator[Listeners]:
    """What keeps run.log and run.json of a folder while the block runs. The log is held, so that others see whether the run goes on.

    `tell`: who hears of a file that cannot be written; the block runs on without it.
    """
    extras, members = Extras(tell or (lambda message: log.warning("%s", message))), list[Listener]()
    with contextlib.ExitStack() as stack:
        with extras.writing(LOG):
            members.append(Guarded(stack.enter_context(FileLog(folder / LOG)), LOG, extras))
        state = stack.enter_context(StateFile(folder, host, cancels))
        with extras.writing(FILE):
            state.begin()
        members.append(Guarded(state, FILE, extras))
        yield Listeners(members)


def versions(host: str = "") -> dict[str, str]:
    """What a report of an error should name: Python, the packages we stand on, and the host."""
    out = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            out[package] = importlib.metadata.version(package)
    return {**out, "host": host} if host else out


def ending(folder: Path) -> Ending | None:
    """What run.json says; None where there is none that can be trusted."""
    value = read_json(folder / FILE, MAX_BYTES)
    if not isinstance(value, dict) or value.get("format") != FORMAT or value.get("outcome") not in OUTCOMES:
        return None
    error = value.get("error")
    return Ending(value["outcome"], as_step(value.get("step")), _shown(error) if isinstance(error, dict) else None)


def _shown(error: dict[str, Any]) -> dict[str, Any]:
    """An error of a file as a page may take it: code, field and values where they are such, and a short sentence."""
    values = error.get("values")
    whole = isinstance(error.get("code"), str) and isinstance(error.get("field"), str) and isinstance(values, dict)
    readable = {"code": as_text(error["code"]), "field": as_text(error["field"]), "values": values} if whole else {}
    return {**readable, "text": as_text(error.get("text"))}
