"""The course of a run in a bounded number of rows: one row a step at first, then of 2, 4, 8 ... steps, with their lowest and highest loss kept exactly."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

LIMIT = 2000
SMOOTHING = 0.95
FIRST, LAST, LOW, HIGH, SMOOTH, RATE, NORM, SECOND = range(8)
Row = list[float | None]
# First and last step, lowest and highest loss, smoothed loss, learning rate, largest gradient norm;
# of two networks trained in turn also the second one's smoothed loss.


def number(value: Any) -> float | None:
    """With six digits, as JSON can hold it; None for what is not finite."""
    return float(f"{value:.6g}") if isinstance(value, int | float) and math.isfinite(value) else None


def _known(one: Row, two: Row, key: int) -> list[float]:
    """What is known at one place of two rows."""
    return [value for value in (one[key], two[key]) if value is not None]


def joined(one: Row, two: Row) -> Row:
    """Two neighbouring rows as one."""
    lows, highs, norms = _known(one, two, LOW), _known(one, two, HIGH), _known(one, two, NORM)
    return [
        one[FIRST],
        two[LAST],
        min(lows, default=None),
        max(highs, default=None),
        two[SMOOTH],
        two[RATE],
        max(norms, default=None),
        *two[SECOND:],
    ]


def halved(rows: list[Row]) -> list[Row]:
    return [joined(rows[n], rows[n + 1]) if n + 1 < len(rows) else rows[n] for n in range(0, len(rows), 2)]


class Series:
    """Rows of a run. `add` is cheap and called once a step. Where two networks are trained in turn, each has a smoothed loss of its own."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self._width = 1
        self._smooth: dict[str, float] = {}  # by expert, the first one first

    def add(self, step: int, loss: float, rate: float, norm: float | None, expert: str = "") -> Row:
        """Takes one step in and returns its own row. `expert`: which of two networks it trained."""
        if math.isfinite(loss):
            before = self._smooth.get(expert, loss)
            self._smooth[expert] = SMOOTHING * before + (1 - SMOOTHING) * loss
        rounded, smooth = number(loss), [number(value) for value in self._smooth.values()]
        row: Row = [step, step, rounded, rounded, smooth[0] if smooth else None, number(rate), number(norm)]
        if expert:
            row.append(smooth[1] if len(smooth) > 1 else None)
        last = self.rows[-1] if self.rows else None
        if last is not None and last[LAST] - last[FIRST] + 1 < self._width:  # type: ignore[operator]
            self.rows[-1] = joined(last, row)
            return row
        if len(self.rows) >= LIMIT:
            self.rows, self._width = halved(self.rows), 2 * self._width
        self.rows.append(row)
        return row

    def last_step(self) -> int:
        return int(self.rows[-1][LAST] or 0) if self.rows else 0

    @staticmethod
    def of_log(path: Path, steps: int | None = None) -> Series:
        """The rows of a run's log.jsonl, of its first `steps` steps where given. A damaged line is passed over."""
        out = Series()
        if not path.is_file():
            return out
        with open(path, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    row = json.loads(line)
                    step, loss, rate, norm = row["step"], float(row["loss"]), float(row["lr"]), row.get("grad_norm")
                    expert = str(row.get("expert") or "")
                except (ValueError, KeyError, TypeError):
                    continue
                if steps is not None and step > steps:
                    break
                out.add(step, loss, rate, norm, expert)
        return out
