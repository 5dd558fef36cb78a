"""Run directories: a new one never overwrites an old one; the latest of a name can be found again."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from ..config import TrainConfig, parse
from ..disk import files
from ..messages.errors import LoomError
from ..names import check_name
from . import checkpoints, owner

RESERVED = ("cache", "imported", "class_pictures")


def new_run(root: Path, name: str, taken: Callable[[str], bool] = lambda name: False) -> Path:
    """A fresh folder root/name, or root/name_2, name_3 ... above the highest that exists and is not `taken`. Created here, so two processes never share one."""
    check_name("name", name)
    if name.lower() in RESERVED:
        raise LoomError("name.shared", field="name", name=repr(name))
    files.make_folders(root)
    number = max((n for n, _ in _numbered(root, name)), default=0) + 1
    while True:
        folder = root / (name if number == 1 else f"{name}_{number}")
        number += 1
        if taken(folder.name):
            continue
        try:
            folder.mkdir()
            files.fsync_folder(root)
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise files.unwritten(folder, error) from error


def _numbered(root: Path, name: str) -> list[tuple[int, Path]]:
    """(number, folder) of the runs of that name."""
    pattern = re.compile(re.escape(name) + r"(?:_(\d+))?")
    return (
        [(int(m[1] or 1), p) for p in root.glob("*") if p.is_dir() and (m := pattern.fullmatch(p.name))]
        if root.is_dir()
        else []
    )


def config_of(folder: Path) -> TrainConfig:
    """The job of a run folder. Raises LoomError for what is none."""
    try:
        return parse(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise LoomError("run.no_folder", folder=folder) from error


def empty_if_untrained(folder: Path) -> None:
    """Empties a run folder that holds no checkpoint, but for its owner's lock: nothing was trained in it. Its owner calls this."""
    if any((folder / "checkpoints").glob("step-*")):
        return
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != owner.FILE:
            with contextlib.suppress(OSError):
                path.unlink()


def holds_work(folder: Path) -> bool:
    """Whether a run folder has a checkpoint that is whole."""
    try:
        return any(checkpoints.read(step, verify_only=True) for step in checkpoints.all_steps(folder / "checkpoints"))
    except LoomError:  # one of another version: whoever goes on with it is told so
        return True


def last_run(root: Path, name: str) -> Path | None:
    """The run of that name with the highest number that holds work; where none does, the last with a place for checkpoints, or None."""
    check_name("name", name)
    begun = [p for _, p in sorted(_numbered(root, name), reverse=True) if (p / "checkpoints").is_dir()]
    return next((folder for folder in begun if holds_work(folder)), begun[0] if begun else None)
