"""Pictures that were dropped onto the tab: written to a folder of their own, ZIP files opened."""

from __future__ import annotations

import collections
import io
import re
import secrets
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from ...lora_core.data.metadata import TABLES
from ...lora_core.disk.files import write_bytes
from ...lora_core.messages.errors import LoomError
from ...lora_core.pictures.reading import EXTENSIONS, FILMS

CAPTIONS = (".txt", ".caption", ".json", ".jsonl", ".csv")
MAX_FILES, MAX_BYTES = 20_000, 8 * 2**30
PACKED = 20  # times its size that a ZIP file of pictures and captions may come to
ROOM_BYTES = 2**26  # and what any may
LONGEST_STEM = 100  # characters
_REFUSED = re.compile('[\x00-\x1f\x7f<>:"|?*\u202a-\u202e\u2066-\u2069\ud800-\udfff]')
Numbers = collections.Counter[Path]


def pictures_root(data_root: Path) -> Path:
    """Where dropped pictures lie below a host's data."""
    return data_root / "pictures"


def stored(files: Sequence[tuple[str, bytes]], data_root: Path) -> Path:
    """A new folder with these files (name, content), of ZIP files what is in them. Raises LoomError; then nothing is left."""
    folder, used = pictures_root(data_root) / secrets.token_hex(6), Numbers()
    try:
        for name, data in files:
            if name.lower().endswith(".zip"):
                _unzip(name, data, folder, used)
            elif _is_taken(name):
                write_bytes(_free(folder / _plain(PurePosixPath(name.replace("\\", "/")).name), used), data)
        if not folder.is_dir():
            raise LoomError("upload.no_pictures", field="data.folder", allowed=" ".join(sorted(EXTENSIONS | FILMS)))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def _is_taken(name: str) -> bool:
    place = PurePosixPath(name.replace("\\", "/"))
    hidden = any(part.startswith((".", "__MACOSX")) and part not in (".", "..") for part in place.parts)
    suffix = place.suffix.lower()
    return not hidden and (suffix in EXTENSIONS | FILMS or suffix in CAPTIONS or place.name in TABLES)


def _plain(part: str) -> str:
    """A file or folder name without characters that some system refuses, and of a length that every one takes."""
    stem, dot, ending = _REFUSED.sub("_", part).rpartition(".")
    return f"{stem[:LONGEST_STEM]}{dot}{ending[:LONGEST_STEM]}"


def _free(path: Path, used: Numbers) -> Path:
    """The path, with a number behind its stem where it is there already. `used`: the numbers given so far, so that none is tried twice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        used[path] += 1
        place = path if used[path] == 1 else path.with_stem(f"{path.stem}-{used[path]}")
        if not place.exists():
            return place


def _unzip(name: str, data: bytes, folder: Path, used: Numbers) -> None:
    """What of a ZIP file is a picture or a caption, with its folders (12_name counts). Nothing is written outside of `folder`."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [m for m in archive.infolist() if not m.is_dir() and _is_taken(m.filename)]
            unpacked = sum(m.file_size for m in members)
            if len(members) > MAX_FILES or unpacked > min(MAX_BYTES, ROOM_BYTES + PACKED * len(data)):
                raise LoomError("upload.zip_large", field="data.folder", name=name, files=MAX_FILES, packed=PACKED)
            for member in members:
                parts = [
                    _plain(p)
                    for p in PurePosixPath(member.filename.replace("\\", "/")).parts
                    if p not in ("/", "..", ".")
                ]
                target = folder.joinpath(*parts)
                if not target.resolve().is_relative_to(folder.resolve()):
                    continue
                write_bytes(_free(target, used), archive.read(member))
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError) as error:
        raise LoomError("upload.zip_unreadable", field="data.folder", name=name, reason=error) from error
