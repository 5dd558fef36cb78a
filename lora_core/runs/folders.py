"""Run directories: a new one never overwrites an old one; the latest of a name can be found again."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from ..config import TrainConfig, parse
from ..messages.errors import LoomError
from ..names import check_name

RESERVED = ("cache", "imported", "class_pictures")


def new_run(root: Path, name: str, taken: Callable[[str], bool] = lambda name: False) -> Path:
    """A fresh folder root/name, or root/name_2, name_3 ... above the highest that exists and is not `taken`. Created here, so two processes never share one."""
    check_name("name", name)
    if name.lower() in RESERVED:
        raise LoomError("name.shared", field="name", name=repr(name))
    root.mkdir(parents=True, exist_ok=True)
    number = max((n for n, _ in _numbered(root, name)), default=0) + 1
    while True:
        folder = root / (name if number == 1 else f"{name}_{number}")
        number += 1
        if taken(folder.name):
            continue
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            continue


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


def remove_if_untrained(folder: Path) -> None:
    """Removes a run folder that holds no checkpoint: nothing was trained in it."""
    if not any((folder / "checkpoints").glob("step-*")):
        shutil.rmtree(folder, ignore_errors=True)


def last_run(root: Path, name: str) -> Path | None:
    """The run of that name with the highest number that holds checkpoints, or None."""
    check_name("name", name)
    return max(((n, p) for n, p in _numbered(root, name) if (p / "checkpoints").is_dir()), default=(0, None))[1]
