"""Deleting a run is moving its folder aside, and taking it back is moving it back. Nothing in it is touched."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import time
from pathlib import Path
from typing import Any

from ..disk import files
from ..messages.errors import LoomError
from .listing import find, is_running, size_and_time
from .owner import owning

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
    """Moves a run into the trash beside the runs and returns its id there. Raises LoomError for one that is running or in use."""
    folder = find(root, run)
    if is_running(folder):
        raise LoomError("run.running", field="run", run=repr(folder.name))
    number = str(time.time_ns())
    with owning(folder, "move") as hold:
        place = _place(root) / number
        files.make_folders(place)
        if os.name == "nt":  # a folder with an open file cannot be moved there
            hold.let_go()
        try:
            _moved(folder, place / folder.name)
        except OSError as error:
            place.rmdir()
            raise LoomError("run.not_moved", field="run", run=repr(folder.name), reason=error.strerror) from error
        hold.moved(place / folder.name)
    return number


def _moved(source: Path, target: Path) -> None:
    """Renames a folder, durably at both ends."""
    os.rename(source, target)
    files.fsync_folder(target.parent)
    files.fsync_folder(source.parent)


def thrown_away(root: Path) -> list[Thrown]:
    """What lies in the trash, the last deleted first."""
    runs = []
    with contextlib.suppress(OSError, LoomError), os.scandir(_place(root)) as entries:
        for entry in entries:
            if _ID.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                for run in Path(entry.path).iterdir():
                    if run.is_dir() and not run.is_symlink():
                        runs.append(Thrown(entry.name, run.name, int(entry.name) / 1e9, size_and_time(run)[0]))
    return sorted(runs, key=lambda thrown: thrown.id, reverse=True)


def take_back(root: Path, number: Any) -> str:
    """Moves a run back out of the trash and returns its name: the old one, with a number where that is taken by now."""
    thrown = next((t for t in thrown_away(root) if t.id == number), None)
    if thrown is None:
        raise LoomError("trash.unknown", field="run")
    place = _place(root) / thrown.id
    with owning(place / thrown.name, "move") as hold:
        target = _reserved(root, thrown.name)
        if os.name == "nt":
            hold.let_go()
            target.rmdir()
        try:
            _moved(place / thrown.name, target)  # in the place of the empty folder, at once
        except OSError as error:
            with contextlib.suppress(OSError):
                target.rmdir()
            raise LoomError("run.not_moved_back", field="run", run=repr(thrown.name), reason=error.strerror) from error
        hold.moved(target)
    with contextlib.suppress(OSError):
        place.rmdir()
    return target.name


def _reserved(root: Path, name: str) -> Path:
    """An empty folder of that name, with a number where it is taken: made here, so no run that begins meanwhile gets it."""
    number = 1
    while True:
        folder = root / (name if number == 1 else f"{name}_{number}")
        number += 1
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise LoomError("run.not_moved_back", field="run", run=repr(name), reason=error.strerror) from error


def _place(root: Path) -> Path:
    place = root / TRASH
    if place.is_symlink():
        raise LoomError("trash.link", field="run", folder=TRASH)
    return place
