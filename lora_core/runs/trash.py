"""Deleting a run is moving its folder aside, and taking it back is moving it back. Nothing in it is touched."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import time
from pathlib import Path
from typing import Any

from ..messages.errors import LoomError
from .listing import find, is_running, size_and_time

TRASH = ".trash"
_ID = re.compile(r"\d{10,20}")


@dataclasses.dataclass(frozen=True)
class Thrown:
    """A run in the trash: `id` tells it from others of its name; `time` is when it was deleted."""

    id: str
    name: str
    time: float
    size_bytes: int


def throw_away(root: Path, run: Any) -> str:
    """Moves a run into the trash beside the runs and returns its id there. Raises LoomError for one that is running."""
    folder = find(root, run)
    if is_running(folder):
        raise LoomError("run.running", field="run", run=repr(folder.name))
    number = str(time.time_ns())
    place = _place(root) / number
    place.mkdir(parents=True)
    try:
        os.rename(folder, place / folder.name)
    except OSError as error:
        place.rmdir()
        raise LoomError("run.not_moved", field="run", run=repr(folder.name), reason=error.strerror) from error
    return number


def thrown_away(root: Path) -> list[Thrown]:
    """What lies in the trash, the last deleted first."""
    found = []
    with contextlib.suppress(OSError, LoomError), os.scandir(_place(root)) as entries:
        for entry in entries:
            if _ID.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                for run in Path(entry.path).iterdir():
                    if run.is_dir() and not run.is_symlink():
                        found.append(Thrown(entry.name, run.name, int(entry.name) / 1e9, size_and_time(run)[0]))
    return sorted(found, key=lambda thrown: thrown.id, reverse=True)


def take_back(root: Path, number: Any) -> str:
    """Moves a run back out of the trash and returns its name: the old one, with a number where that is taken by now."""
    thrown = next((t for t in thrown_away(root) if t.id == number), None)
    if thrown is None:
        raise LoomError("trash.unknown", field="run")
    place, n = _place(root) / thrown.id, 1
    while os.path.lexists(root / (name := thrown.name if n == 1 else f"{thrown.name}_{n}")):
        n += 1
    try:
        os.rename(place / thrown.name, root / name)
    except OSError as error:
        raise LoomError("run.not_moved_back", field="run", run=repr(thrown.name), reason=error.strerror) from error
    with contextlib.suppress(OSError):
        place.rmdir()
    return name


def _place(root: Path) -> Path:
    place = root / TRASH
    if place.is_symlink():
        raise LoomError("trash.link", field="run", folder=TRASH)
    return place
