"""log.jsonl: a row of numbers for each step. The run can do without it, and mends it from its checkpoint when it goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from ..disk import files
from .bounded import as_number, as_step
from .guarded import Extras

FILE = "log.jsonl"


class StepLog:
    """Appends rows to the log of a run folder; to nowhere without one."""

    def __init__(self, folder: Path | None, extras: Extras):
        self._extras = extras
        self._file: IO[str] | None = None
        if folder is not None:
            with extras.writing(FILE):
                self._file = open(folder / FILE, "a", encoding="utf-8")

    def __enter__(self) -> StepLog:
        return self

    def __exit__(self, *error: object) -> None:
        with self._extras.writing(FILE):
            if self._file is not None:
                self._file.close()

    def write(self, row: Mapping[str, Any]) -> None:
        with self._extras.writing(FILE):
            if self._file is not None:
                self._file.write(json.dumps(row) + "\n")

    def settle(self) -> None:
        """Brings the rows to the disk, so that a checkpoint that follows has them."""
        with self._extras.writing(FILE):
            if self._file is not None:
                self._file.flush()
                os.fsync(self._file.fileno())


def mend(folder: Path, losses: Sequence[float], extras: Extras) -> list[float | None]:
    """Makes the log hold each of the steps with these losses once, and no later one; what it lost gets its loss back.

    Returns the learning rate of each step, None where the log does not tell.
    """
    lines = {}
    with extras.writing(FILE):
        lines = _whole_lines(folder / FILE, len(losses))
        text = "".join(
            lines[step][0] if step in lines else json.dumps({"step": step, "loss": loss}) + "\n"
            for step, loss in enumerate(losses, 1)
        )
        files.write_bytes(folder / FILE, text.encode("utf-8", "replace"))
    return [lines[step][1] if step in lines else None for step in range(1, len(losses) + 1)]


def _whole_lines(path: Path, last: int) -> dict[int, tuple[str, float | None]]:
    """Step -> (its line, its learning rate), for the lines up to step `last` that can be read; the last one of a step counts."""
    whole: dict[int, tuple[str, float | None]] = {}
    data = path.read_bytes() if path.is_file() else b""
    for line in data.decode("utf-8", "replace").split("\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        step = as_step(row.get("step")) if isinstance(row, dict) else None
        if step is not None and 1 <= step <= last and as_number(row.get("loss")) is not None:
            whole[step] = (line.strip() + "\n", as_number(row.get("lr")))
    return whole
