"""The files below a folder of pictures, and what the names of files and folders say."""

from __future__ import annotations

import json
import os
import re
import stat
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from ..messages.message import Message
from ..pictures.reading import EXTENSIONS, FILMS
from .dataset import LATENT

MAX_REPEATS = 1000
OWN_LIST = ".lora_loom.json"  # what the dataset editor keeps in a folder: pictures left out
_KOHYA = re.compile(r"(\d+)_(.*)")


def walk(root: Path, recursive: bool, skipped: list[tuple[str, Message]]) -> Iterator[Path]:
    """Regular files below root. Links are followed only while they stay inside; each folder is entered once, so loops end.

    Folders that cannot be opened, links that lead out, and pictures that are no regular files are added to `skipped`.
    """
    real_root, seen, queue = root.resolve(), set(), [root]
    while queue:
        folder = queue.pop()
        real = folder.resolve()
        if real in seen:
            continue
        if not real.is_relative_to(real_root):
            skipped.append((folder.relative_to(root).as_posix(), Message.of("picture.link_outside")))
            continue
        seen.add(real)
        try:
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            skipped.append((folder.relative_to(root).as_posix(), Message.of("picture.unopened", reason=error.strerror)))
            continue
        for entry in entries:
            path = Path(entry.path)
            if entry.name.startswith("."):
                continue
            try:
                kind = entry.stat().st_mode  # of what a link leads to
            except OSError as error:
                skipped.append(
                    (path.relative_to(root).as_posix(), Message.of("picture.unopened", reason=error.strerror))
                )
                continue
            if stat.S_ISDIR(kind):
                if recursive:
                    queue.append(path)
            elif entry.is_symlink() and not path.resolve().is_relative_to(real_root):
                skipped.append((path.relative_to(root).as_posix(), Message.of("picture.link_outside")))
            elif stat.S_ISREG(kind):
                yield path
            elif is_picture(path):
                skipped.append((path.relative_to(root).as_posix(), Message.of("picture.no_file")))


def folded(path: Path) -> str:
    """The path in one case and one form of Unicode, as files are compared."""
    return unicodedata.normalize("NFC", str(path)).casefold()


def is_picture(path: Path) -> bool:
    """By its name: a picture, a film, or a latent that stands for one."""
    return path.suffix.lower() in EXTENSIONS | FILMS or path.name.endswith(LATENT)


def kohya(path: Path, root: Path) -> tuple[int, str]:
    """(repeats, concept) of a picture inside a folder named like 12_my concept, up to MAX_REPEATS; (1, "") elsewhere."""
    for parent in [path.parent, *path.parent.parents]:
        match = _KOHYA.fullmatch(parent.name)
        if match and int(match[1]) <= MAX_REPEATS:  # 2024_summer is a year
            return int(match[1]), match[2].strip()
        if parent == root:
            break
    return 1, ""


def excluded_in(folder: Path) -> list[str]:
    """Names of the pictures that were left out in the dataset editor."""
    try:
        names = json.loads((folder / OWN_LIST).read_text(encoding="utf-8"))["excluded"]
        return [name for name in names if isinstance(name, str)]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
