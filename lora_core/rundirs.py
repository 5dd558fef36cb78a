"""Run directories: a new one never overwrites an old one; the latest of a name can be found again."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from .names import check_name


def new_run(root: Path, name: str, taken: Callable[[str], bool] = lambda name: False) -> Path:
    """A fresh folder root/name, or root/name_2, name_3 ... when that exists or is `taken`. Created here, so two processes never share one."""
    check_name("name", name)
    root.mkdir(parents=True, exist_ok=True)
    number = 1
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


def last_run(root: Path, name: str) -> Path | None:
    """The run of that name with the highest number that holds checkpoints, or None."""
    check_name("name", name)
    pattern = re.compile(re.escape(name) + r"(?:_(\d+))?")
    found = [(int(m[1] or 1), p) for p in root.glob("*") if (m := pattern.fullmatch(p.name)) and (p / "checkpoints").is_dir()] if root.is_dir() else []
    return max(found)[1] if found else None
