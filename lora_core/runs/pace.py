"""How long the parts of a run take and how much memory it holds, measured while it goes and kept in run.json."""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections import defaultdict, deque
from typing import Any

import torch

KEPT = 200  # latest durations that the median is taken of
FIRST_LEFT_OUT = 2  # steps in which libraries choose their ways
LEAST = 3  # durations before there is a pace
LOOK_S = 0.05  # between two looks at the memory of this process
WORKS = {  # beside the steps: code of the message that tells of it -> what it is called here
    "progress.samples": "samples",
    "progress.saving": "saves",
    "progress.validating": "validations",
    "progress.writing": "writing",
    "progress.pictures": "pictures",
}
EACH = ("samples", "pictures")  # whose seconds are those of one picture


class Pace:
    """Durations of steps alone: those in which a sample, a save or a measurement fell are left out. These are kept apart, by their names in WORKS."""

    def __init__(self) -> None:
        self._durations: deque[float] = deque(maxlen=KEPT)
        self._last: float | None = None
        self._steps = 0
        self._kind, self._since, self._count = "", 0.0, 1
        self._works: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=KEPT))
        self._begun: float | None = None
        self._prepared = self._encoded = 0.0
        self._firsts: list[float] = []  # durations of the steps that are left out

    def begin(self, now_s: float) -> None:
        """The run begins to prepare."""
        self._begun = now_s

    def start(self, now_s: float) -> None:
        """All is prepared, the first step comes."""
        self.done(now_s)
        if self._begun is not None:
            self._prepared = max(0.0, now_s - self._begun - self._encoded)
        self._last = now_s

    def step(self, now_s: float) -> None:
        """A step ended at this time of a clock that never goes back."""
        self.done(now_s)
        self._steps += 1
        if self._last is not None:
            (self._durations if self._steps > FIRST_LEFT_OUT + 1 else self._firsts).append(now_s - self._last)
        self._last = now_s

    def interrupted(self) -> None:
        """Something else than a step happened since the last one."""
        self._last = None

    def work(self, code: str, done: int, total: int, now_s: float) -> None:
        """The message of this code tells that work beside the steps goes on; `total`: how many pictures it is for."""
        kind = WORKS.get(code, "")
        if kind != self._kind:
            self.done(now_s)
            self._kind, self._since = kind, now_s
        self._count = max(1, done if kind == "pictures" else total)

    def done(self, now_s: float) -> None:
        """That work is done."""
        if not self._kind:
            return
        spent = now_s - self._since
        if self._kind == "pictures":
            self._encoded += spent
        self._works[self._kind].append(spent / max(1, self._count) if self._kind in EACH else spent)
        self._kind = ""

    def seconds(self) -> float | None:
        """The median of a step; None before there are enough."""
        return statistics.median(self._durations) if len(self._durations) >= LEAST else None

    def as_json(self) -> dict[str, Any]:
        seconds = self.seconds()
        if seconds is None:
            return {}
        works = {kind: statistics.fmean(spent) for kind, spent in self._works.items() if spent}
        works["preparing"] = self._prepared + sum(max(0.0, first - seconds) for first in self._firsts)
        return {
            "seconds_per_step": round(seconds, 5),
            "seconds": {kind: round(spent, 4) for kind, spent in works.items()},
        }


class MemoryWatch:
    """The most memory that a run holds.

    A GPU's allocator keeps its own maximum. Elsewhere this process is looked at while the run goes on, as most of it is held within a step.
    """

    def __init__(self) -> None:
        self._seen_bytes = 0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        if self._thread is None and not torch.cuda.is_available():
            self._thread = threading.Thread(target=self._look, name="LoRA Loom memory", daemon=True)
            self._thread.start()

    def end(self) -> None:
        self._ended.set()

    def peak_bytes(self) -> int:
        """So far: of what torch has taken of the GPU, else of what this process held; 0 where the system does not tell."""
        if torch.cuda.is_available():
            return int(torch.cuda.max_memory_allocated())
        return max(self._seen_bytes, resident_bytes())

    def _look(self) -> None:
        while not self._ended.wait(LOOK_S):
            self._seen_bytes = max(self._seen_bytes, resident_bytes())


def resident_bytes() -> int:
    """Bytes of memory this process holds; 0 where there is no /proc."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


def clock_s() -> float:
    """Of a clock that never goes back."""
    return time.monotonic()
