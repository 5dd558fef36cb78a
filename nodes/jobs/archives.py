"""ZIP files of strangers: bounded in entries, bytes and memory, and without a way out of the folder they are unpacked to."""

from __future__ import annotations

import dataclasses
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from ...lora_core.disk.files import require_room
from ...lora_core.messages.errors import LoomError
from .arrivals import inside

MAX_ENTRIES = 20_000
MAX_DIRECTORY = 8_000_000  # bytes of the list of entries, which is read as a whole
HARMLESS_BYTES, MAX_RATIO = 1_000_000_000, 100  # pictures hardly shrink: more than both of these is no set of pictures
CHUNK = 1 << 20
_UTF8_FLAG, _ENCRYPTED_FLAG = 0x800, 0x1
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    ValueError,
    NotImplementedError,
    RuntimeError,
    MemoryError,
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A file in an archive and where it belongs below the folder the archive is unpacked to."""

    info: zipfile.ZipInfo
    path: PurePosixPath


class TooLarge(Exception):
    """The list of entries is longer than one that belongs to a training folder."""


class _Damaged(Exception):
    """An entry cannot be read."""


class _Bounded:
    """A file of which no more than `limit` bytes are read at once, so that a list of entries of any length costs nothing."""

    def __init__(self, file: BinaryIO, limit: int):
        self._file, self._limit = file, limit

    def read(self, size: int = -1) -> bytes:
        if size > self._limit or size < 0:
            position = self._file.tell()
            rest = self._file.seek(0, 2) - position
            self._file.seek(position)
            if (min(size, rest) if size >= 0 else rest) > self._limit:
                raise TooLarge
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True


class Archive:
    """A ZIP file whose entries were looked at before one of them is unpacked. Close it after use."""

    def __init__(self, path: Path, name: str):
        """`name`: what the user calls the file. Raises LoomError for what is no ZIP file, and for a hostile one."""
        self.name, self._file = name, path.open("rb")
        try:
            self._zip = self._opened()
            self.entries = [*self._checked()]
            self._require_honest_size(path)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _opened(self) -> zipfile.ZipFile:
        try:
            # It has all of IO that is asked for.
            opened = zipfile.ZipFile(_Bounded(self._file, MAX_DIRECTORY))  # type: ignore[arg-type]
        except TooLarge as error:
            raise LoomError("zip.entries", name=self.name, limit=MAX_ENTRIES) from error
        except _BROKEN as error:
            raise LoomError("zip.damaged", name=self.name) from error
        if len(opened.infolist()) > MAX_ENTRIES:
            raise LoomError("zip.entries", name=self.name, limit=MAX_ENTRIES)
        return opened

    def _checked(self) -> Iterator[Entry]:
        for info in self._zip.infolist():
            name = _name(info)
            path = inside(name.rstrip("/"))
            if path is None:
                raise LoomError("zip.outside", name=self.name, entry=repr(name[:200]))
            mode = info.external_attr >> 16
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise LoomError("zip.link", name=self.name, entry=repr(name[:200]))
            if info.flag_bits & _ENCRYPTED_FLAG:
                raise LoomError("zip.password", name=self.name)
            if not name.endswith("/") and not stat.S_ISDIR(mode):
                yield Entry(info, path)

    def _require_honest_size(self, path: Path) -> None:
        if self.unpacked_bytes > max(HARMLESS_BYTES, MAX_RATIO * path.stat().st_size):
            raise LoomError("zip.bomb", name=self.name, size=f"{self.unpacked_bytes / 1e9:.3g}")

    @property
    def unpacked_bytes(self) -> int:
        return sum(entry.info.file_size for entry in self.entries)

    def unpack(self, entry: Entry, target: Path) -> bool:
        """Writes an entry; False, and no file, where it is damaged. Raises LoomError when the disk has no room."""
        require_room(target.parent, entry.info.file_size)
        try:
            with target.open("xb") as file:
                for chunk in self._content(entry):
                    file.write(chunk)
        except _Damaged:
            target.unlink(missing_ok=True)
            return False
        return True

    def _content(self, entry: Entry) -> Iterator[bytes]:
        try:
            with self._zip.open(entry.info) as source:
                while chunk := source.read(CHUNK):
                    yield chunk
        except (TooLarge, *_BROKEN) as error:
            raise _Damaged from error


def _name(info: zipfile.ZipInfo) -> str:
    """The name as it was written: programs that leave the mark of UTF-8 out write it all the same."""
    name = info.orig_filename
    if info.flag_bits & _UTF8_FLAG:
        return name
    try:
        return name.encode("cp437").decode("utf-8")
    except UnicodeError:
        return name


def without_wrapper(entries: list[Entry], plain: frozenset[str]) -> list[Entry]:
    """The entries without the one folder all of them lie in, unless its name says something (`plain`: names that do)."""
    tops = {entry.path.parts[0] for entry in entries}
    if len(tops) != 1 or any(len(entry.path.parts) < 2 for entry in entries):
        return entries
    top = next(iter(tops))
    if top.lower() in plain or top.split("_", 1)[0].isdigit():
        return entries
    return [Entry(entry.info, PurePosixPath(*entry.path.parts[1:])) for entry in entries]
