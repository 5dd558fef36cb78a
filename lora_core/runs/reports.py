"""Listeners for the terminal: a progress bar and a log file."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from ..disk import locks
from ..events import Listener
from ..events import StepReport


class FileLog(Listener):
    """Writes every message, save and ending with its time to a text file, which is held while the run goes on."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "a", encoding="utf-8", errors="backslashreplace")
        locks.hold(self._file)

    def __enter__(self) -> FileLog:
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is not None:
            self._write(f"ended by {error[0].__name__}: {error[1]}")  # type: ignore[attr-defined]
        self._file.close()

    def _write(self, text: str) -> None:
        self._file.write(f"{datetime.datetime.now().isoformat(sep=' ', timespec='milliseconds')} {text}\n")
        self._file.flush()

    def on_message(self, text: str) -> None:
        self._write(text)

    def on_start(self, first_step: int, steps: int, facts: dict[str, Any]) -> None:
        self._write(f"training steps {first_step + 1} to {steps}: {facts['layers']} layers, {facts['trained_values']} values, {facts['pictures']} pictures")

    def on_save(self, step: int, path: Path) -> None:
        self._write(f"saved step {step}")

    def on_sample(self, step: int, images: list[Image.Image], path: Path) -> None:
        self._write(f"sample at step {step}: {path.name}")

    def on_end(self, outcome: str, step: int) -> None:
        self._write(f"{outcome} after step {step}")


class ProgressBar(Listener):
    """A tqdm bar with the smoothed loss; messages appear above it."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._loss = 0.0

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def on_message(self, text: str) -> None:
        if not text.startswith("Encoding"):
            tqdm.write(text)

    def on_start(self, first_step: int, steps: int, facts: dict[str, Any]) -> None:
        self._bar = tqdm(total=steps, initial=first_step, unit="step", dynamic_ncols=True)

    def on_step(self, report: StepReport) -> None:
        assert self._bar is not None
        self._loss = 0.95 * self._loss + 0.05 * report.loss if self._loss else report.loss
        self._bar.set_postfix_str(f"loss {self._loss:.4f}", refresh=False)
        self._bar.update()
