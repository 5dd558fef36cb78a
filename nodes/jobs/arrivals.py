"""Which files belong to a training folder, and the names they get there: on every system, each name once."""

from __future__ import annotations

import re
import unicodedata
from pathlib import PurePosixPath

from ...lora_core.data.dataset import LATENT
from ...lora_core.data.reader import TEXTS
from ...lora_core.data.walk import OWN_LIST
from ...lora_core.messages.errors import LoomError
from ...lora_core.names import check_name
from ...lora_core.pictures.reading import EXTENSIONS, FILMS

STANDARD_NAME = "pictures"
TAKEN = frozenset({*EXTENSIONS, *FILMS, *TEXTS, ".json", ".jsonl", ".csv", ".parquet"})  # pictures, captions, metadata
ARCHIVE = ".zip"
_LEFT_BY_SYSTEMS = frozenset({"__macosx", "thumbs.db", "desktop.ini"})
_NOT_EVERYWHERE = re.compile(r'[<>:"|?*\\\x00-\x1f\x7f]')  # in names on Windows
_OUTSIDE = re.compile(r"[A-Za-z]:.*", re.DOTALL)
_STEM_BYTES, _FOLDER_BYTES = 180, 100  # of 255 that systems take
MAX_DEPTH = 20


def inside(name: str) -> PurePosixPath | None:
    """`name` as a path below the folder it is meant for; None where it would lead out of it or names no file."""
    parts = name.split("/")
    leads_out = name.startswith("/") or "\\" in name or "\0" in name or _OUTSIDE.fullmatch(parts[0])
    if leads_out or len(parts) > MAX_DEPTH or any(part in ("", ".", "..") for part in parts):
        return None
    return PurePosixPath(*(_everywhere(part) for part in parts))


def _everywhere(part: str) -> str:
    """One name of a path as every system takes it; names that differ only in their ending still do so."""
    clean = _NOT_EVERYWHERE.sub("_", unicodedata.normalize("NFC", part)).rstrip(". ") or "_"
    stem, dot, suffix = clean.rpartition(".")
    stem, suffix = (stem, dot + suffix) if stem and len(suffix) <= 10 else (clean, "")
    stem = stem.encode("utf-8", "replace")[:_STEM_BYTES].decode("utf-8", "ignore")
    try:
        check_name("", f"a{stem}"[1:] or "_")
    except LoomError as error:
        if error.message.code == "name.reserved":
            stem = f"_{stem}"
    return stem + suffix


def is_ignored(path: PurePosixPath) -> bool:
    """What systems leave in folders, and hidden files: not worth a word. Our own list of left-out pictures is neither."""
    if path.name == OWN_LIST:
        return False
    return any(part.startswith(".") or part.lower() in _LEFT_BY_SYSTEMS for part in path.parts)


def is_taken(path: PurePosixPath) -> bool:
    """Whether a file is a picture, a mask, a caption, a table of captions, or our own list beside them."""
    name = path.name.lower()
    return path.suffix.lower() in TAKEN or name == OWN_LIST or name.endswith(LATENT)


def is_archive(path: PurePosixPath) -> bool:
    return path.suffix.lower() == ARCHIVE


def folder_name(text: str) -> str:
    """The name of a new folder, after what was dropped."""
    name = re.sub(r"[^\w .()+-]+", "_", unicodedata.normalize("NFC", text))
    name = name.encode("utf-8", "ignore")[:_FOLDER_BYTES].decode("utf-8", "ignore").strip(" ._-")
    try:
        return check_name("", name)
    except LoomError:
        return STANDARD_NAME


class Names:
    """Paths of a folder, each once whatever a system makes of case and Unicode forms."""

    def __init__(self) -> None:
        self._keys: set[str] = set()
        self.renamed: list[str] = []

    def free(self, path: PurePosixPath) -> PurePosixPath:
        """`path`, or the first of `stem (2)`, `stem (3)`, … that is free."""
        place, n = path, 1
        while _key(place) in self._keys:
            n += 1
            place = path.with_name(f"{path.stem} ({n}){path.suffix}")
        if place != path:
            self.renamed.append(place.as_posix())
        self._keys.add(_key(place))
        return place


def _key(path: PurePosixPath) -> str:
    return unicodedata.normalize("NFC", path.as_posix()).casefold()
