"""What a run tells the outside, and how the outside stops it. The engine calls; doors decide what to show."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

    from .step import StepReport
    from .validation import Measure


class Listener:
    """Receives events in the training thread. Every method may be overridden; raising from one cancels the run, which keeps its work."""

    def on_message(self, text: str) -> None: ...

    def on_start(self, first_step: int, steps: int, facts: dict[str, Any]) -> None: ...

    def on_step(self, report: StepReport) -> None: ...

    def on_validation(self, measure: Measure) -> None: ...

    def on_sample(self, step: int, images: list[Image.Image], path: Path) -> None: ...

    def on_save(self, step: int, path: Path) -> None: ...

    def on_end(self, outcome: str, step: int) -> None: ...


@dataclasses.dataclass
class Listeners(Listener):
    """Passes each event on to several listeners, in order."""

    members: list[Listener]

    def on_message(self, text: str) -> None:
        for member in self.members:
            member.on_message(text)

    def on_start(self, first_step: int, steps: int, facts: dict[str, Any]) -> None:
        for member in self.members:
            member.on_start(first_step, steps, facts)

    def on_step(self, report: StepReport) -> None:
        for member in self.members:
            member.on_step(report)

    def on_validation(self, measure: Measure) -> None:
        for member in self.members:
            member.on_validation(measure)

    def on_sample(self, step: int, images: list[Image.Image], path: Path) -> None:
        for member in self.members:
            member.on_sample(step, images, path)

    def on_save(self, step: int, path: Path) -> None:
        for member in self.members:
            member.on_save(step, path)

    def on_end(self, outcome: str, step: int) -> None:
        for member in self.members:
            member.on_end(outcome, step)


class Control:
    """Lets another thread ask for a stop that keeps the result: the run ends after the current step as if it were the last."""

    def __init__(self) -> None:
        self._stop = threading.Event()

    def stop_and_keep(self) -> None:
        self._stop.set()

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()
