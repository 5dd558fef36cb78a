"""How long the steps of a run take and how much memory it holds, measured while it goes and kept in run.json."""

from __future__ import annotations

import os
import statistics
import time
from collections import deque
from typing import Any

import torch

KEPT = 200  # latest durations that the median is taken of
FIRST_LEFT_OUT = 2  # steps in which libraries choose their ways
LEAST = 3  # durations before there is a pace


class Pace:
    """Durations of steps alone: those in which a sample, a save or a measurement fell are left out."""

    def __init__(self) -> None:
        self._durations: deque[float] = deque(maxlen=KEPT)
        self._last: float | None = None
        self._steps = self.peak_bytes = 0

    def step(self, now_s: float) -> None:
        """A step ended at this time of a clock that never goes back."""
        self._steps += 1
        if self._last is not None and self._steps > FIRST_LEFT_OUT + 1:
            self._durations.append(now_s - self._last)
        self._last = now_s
        self.peak_bytes = max(self.peak_bytes, memory_held())

    def interrupted(self) -> None:
        """Something else than a step happened since the last one."""
        self._last = None

    def seconds(self) -> float | None:
        """The median of a step; None before there are enough."""
        return statistics.median(self._durations) if len(self._durations) >= LEAST else None

    def as_json(self) -> dict[str, Any]:
        seconds = self.seconds()
        return {} if seconds is None else {"seconds_per_step": round(seconds, 5), "peak_bytes": self.peak_bytes}


def memory_held() -> int:
    """The most bytes torch has taken of the GPU, else what this process holds; 0 where the system does not tell."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resident_bytes()


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
