"""What a run tells the outside, and how the outside stops it. The engine calls; doors decide what to show."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

    from .messages.message import Message


@dataclasses.dataclass(frozen=True)
class StepReport:
    """What update number `step` (from 1) did: mean loss on the training pictures and on class pictures (0 without), gradient norm before clipping.

    `expert`: which of several networks it trained; empty for a model with one.
    """

    step: int
    loss: float
    class_loss: float
    grad_norm: float
    lr: float
    pictures: Sequence[str]
    expert: str = ""


@dataclasses.dataclass(frozen=True)
class Measure:
    """Mean losses after `step` updates, on held-out and on trained pictures, and the standard error of their difference, paired by level and noise."""

    step: int
    held_out: float
    trained: float
    error: float = 0.0


class Listener:
    """Receives events in the training thread. Every method may be overridden; raising from one cancels the run, which keeps its work."""

    def on_progress(self, what: str, done: int, total: int) -> None:
        """`what` is the code of the message that tells of it, such as progress.captions; its values are done and total."""

    def on_warning(self, message: Message) -> None:
        """Something was left out, taken otherwise than asked for, or should be looked at. The run goes on."""

    def on_note(self, message: Message) -> None:
        """Something worth knowing."""

    def on_start(self, first_step: int, steps: int, facts: dict[str, Any]) -> None: ...

    def on_step(self, report: StepReport) -> None: ...

    def on_validation(self, measure: Measure, best: Measure) -> None:
        """`best` is the one with the lowest loss on held-out pictures so far."""

    def on_sample(self, step: int, images: list[Image.Image], path: Path) -> None: ...

    def on_save(self, step: int, path: Path) -> None: ...

    def on_result(self, step: int, files: list[Path]) -> None:
        """The files a person uses were written while the run goes on."""

    def on_end(self, outcome: str, step: int) -> None: ...


@dataclasses.dataclass
class Listeners(Listener):
    """Passes each event on to several listeners, in order."""

    members: list[Listener]

    def on_progress(self, what: str, done: int, total: int) -> None:
        for member in self.members:
            member.on_progress(what, done, total)

    def on_warning(self, message: Message) -> None:
        for member in self.members:
            member.on_warning(message)

    def on_note(self, message: Message) -> None:
        for member in self.members:
            member.on_note(message)

    def on_start(self, first_step: int, steps: int, facts: dict[str, Any]) -> None:
        for member in self.members:
            member.on_start(first_step, steps, facts)

    def on_step(self, report: StepReport) -> None:
        for member in self.members:
            member.on_step(report)

    def on_validation(self, measure: Measure, best: Measure) -> None:
        for member in self.members:
            member.on_validation(measure, best)

    def on_sample(self, step: int, images: list[Image.Image], path: Path) -> None:
        for member in self.members:
            member.on_sample(step, images, path)

    def on_save(self, step: int, path: Path) -> None:
        for member in self.members:
            member.on_save(step, path)

    def on_result(self, step: int, files: list[Path]) -> None:
        for member in self.members:
            member.on_result(step, files)

    def on_end(self, outcome: str, step: int) -> None:
        for member in self.members:
            member.on_end(outcome, step)


class Control:
    """What another thread asks of a run, looked at between steps. Plain flags, so a step never waits for a lock."""

    def __init__(self) -> None:
        self._stop = self._pause = self._save = self._sample = False

    def stop_and_keep(self) -> None:
        """The run ends after the current step as if it were the last."""
        self._stop = True

    def pause(self) -> None:
        """The run ends after the current step, ready to be continued: saved, and without last samples."""
        self._pause = True

    def save_now(self) -> None:
        self._save = True

    def sample_now(self) -> None:
        self._sample = True

    @property
    def stopping(self) -> bool:
        return self._stop or self._pause

    @property
    def pausing(self) -> bool:
        return self._pause and not self._stop

    def take_save(self) -> bool:
        """Whether a save was asked for since the last look."""
        is_due, self._save = self._save, False
        return is_due

    def take_sample(self) -> bool:
        """Whether sample pictures were asked for since the last look."""
        is_due, self._sample = self._sample, False
        return is_due
