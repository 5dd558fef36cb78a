"""Listeners for the terminal: a progress bar and a log file."""

from __future__ import annotations

import contextlib
import datetime
import traceback
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from ..disk import locks
from ..events import Listener, Measure, StepReport
from ..messages.errors import MAX_REASON, Problem, reason_of
from ..messages.figures import figure
from ..messages.message import Message
from ..messages.secrets import in_one_line, without_secrets


def probed(measure: Measure, best: Measure) -> Message:
    """What a measure on held-out pictures found."""
    return Message.of(
        "validation.measured",
        step=measure.step,
        held_out=figure(measure.held_out),
        trained=figure(measure.trained),
        best=best.step,
    )


class FileLog(Listener):
    """Tells people of a run in a text file, each line with its time. The file is held while the run goes on."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "a", encoding="utf-8", errors="backslashreplace")
        locks.hold(self._file)

    def __enter__(self) -> FileLog:
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(
            OSError
        ):  # a disk that was full before; the error that ended the run is the one to show
            if isinstance(error[1], BaseException):
                self._write(f"ended by {type(error[1]).__name__}: {reason_of(error[1], MAX_REASON)}")
                if isinstance(error[1], Problem) and error[1].__cause__ is not None:
                    for line in "".join(traceback.format_exception(error[1].__cause__)).splitlines():
                        self._write(without_secrets(line))
        with contextlib.suppress(OSError):
            self._file.close()

    def _write(self, text: str) -> None:
        self._file.write(f"{datetime.datetime.now().isoformat(sep=' ', timespec='milliseconds')} {in_one_line(text)}\n")
        self._file.flush()

    def on_progress(self, what: str, done: int, total: int) -> None:
        if done in (0, total):  # when it began, and when it was done
            self._write(str(Message.of(what, done=done, total=total)))

    def on_warning(self, message: Message) -> None:
        self._write(str(message))

    def on_note(self, message: Message) -> None:
        self._write(str(message))

    def on_validation(self, measure: Measure, best: Measure) -> None:
        self._write(str(probed(measure, best)))

    def on_start(self, first_step: int, steps: int, facts: dict[str, Any]) -> None:
        self._write(
            f"training steps {first_step + 1} to {steps}: {facts['layers']} layers, {facts['trained_values']} values, {facts['pictures']} pictures"
        )

    def on_save(self, step: int, path: Path) -> None:
        self._write(f"saved step {step}")

    def on_sample(self, step: int, images: list[Image.Image], path: Path) -> None:
        self._write(f"sample at step {step}: {path.name}")

    def on_end(self, outcome: str, step: int) -> None:
        self._write(f"{outcome} after step {step}")


class ProgressBar(Listener):
    """A line that tells of what comes before the first step, then a tqdm bar with the smoothed loss; messages appear above it."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._before: tqdm | None = None
        self._loss = 0.0

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *error: object) -> None:
        for bar in (self._before, self._bar):
            if bar is not None:
                bar.close()

    def on_progress(self, what: str, done: int, total: int) -> None:
        if self._before is None:
            self._before = tqdm(bar_format="{desc}", leave=False, dynamic_ncols=True)
        self._before.set_description_str(str(Message.of(what, done=done, total=total)))

    def on_warning(self, message: Message) -> None:
        tqdm.write(str(message))

    def on_note(self, message: Message) -> None:
        tqdm.write(str(message))

    def on_validation(self, measure: Measure, best: Measure) -> None:
        tqdm.write(str(probed(measure, best)))

    def on_start(self, first_step: int, steps: int, facts: dict[str, Any]) -> None:
        if self._before is not None:
            self._before.close()
            self._before = None
        self._bar = tqdm(total=steps, initial=first_step, unit="step", dynamic_ncols=True)

    def on_step(self, report: StepReport) -> None:
        assert self._bar is not None
        self._loss = 0.95 * self._loss + 0.05 * report.loss if self._loss else report.loss
        self._bar.set_postfix_str(f"loss {figure(self._loss)}", refresh=False)
        self._bar.update()
