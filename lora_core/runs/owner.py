"""The owner of a run folder: whoever writes into it, moves it or reads a whole of it. There is one at a time, and its lock ends with its process."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ..disk import files, locks, writers
from ..messages.errors import LoomError
from ..messages.message import Message
from .bounded import as_text, read_json

PROGRAM = "lora-loom"  # what an owner is called that names no host
FILE = "owner.lock"  # in the run folder, while it is owned
DOING = {
    "train": Message.of("owner.train"),
    "export": Message.of("owner.export"),
    "move": Message.of("owner.move"),
    "gather": Message.of("owner.gather"),
}
PATIENCE_S = {"train": 1.0, "export": 20.0, "move": 20.0, "gather": 60.0}  # how long to wait for who holds it for that
PAUSE_S = 0.05
MAX_BYTES = 4 << 10
FRESH_S = 600  # where locks are unknown, an owner on another machine counts as long as the folder changed within it
_guard = threading.Lock()
_mine: dict[str, tuple[int, Hold]] = {}  # folder -> the thread of this process that owns it


@dataclasses.dataclass
class Hold:
    """A folder that is owned. `moved` tells where it lies now."""

    folder: Path
    purpose: str
    file: IO[bytes] | None = None

    def moved(self, folder: Path) -> None:
        self.folder = folder

    def let_go(self) -> None:
        """Ends the ownership. The file goes while it is still locked, so nobody can own a file that is none any more."""
        if self.file is None:
            return
        path, file, self.file = self.folder / FILE, self.file, None
        if os.name != "nt":
            _remove(path)
        file.close()
        if os.name == "nt":  # a file that is open cannot be removed there, and that of the next owner is
            _remove(path)


@contextlib.contextmanager
def owning(folder: Path, purpose: str, program: str = PROGRAM) -> Iterator[Hold]:
    """Owns a run folder while the block runs; the thread that owns it already goes on owning it.

    `purpose`: one of DOING. `program`: what the next one is told of. Raises LoomError, which names the owner, for a folder that is in use.
    """
    key, thread = os.path.realpath(folder), threading.get_ident()
    with _guard:
        mine = _mine.get(key)
    if mine is not None and mine[0] == thread:
        yield mine[1]
        return
    hold = _taken(folder, purpose, program)
    with _guard:
        _mine[key] = (thread, hold)
    try:
        yield hold
    finally:
        with _guard:
            _mine.pop(key, None)
        hold.let_go()


@contextlib.contextmanager
def exporting(folder: Path, program: str = PROGRAM) -> Iterator[None]:
    """Owns a run folder to export from it. One that is being trained is read beside its training, which changes no save. Raises LoomError as `owning`."""
    if is_trained(folder):
        yield
        return
    with owning(folder, "export", program):
        yield


def owner_of(folder: Path) -> dict[str, str] | None:
    """Who owns the folder now: purpose, program, process, machine, since. None where nobody does or nobody can say."""
    return _record(folder) if locks.is_held(folder / FILE) else None


def is_trained(folder: Path) -> bool:
    """Whether a training owns the folder."""
    owner = owner_of(folder)
    return owner is not None and owner["purpose"] == "train"


def _taken(folder: Path, purpose: str, program: str) -> Hold:
    began = time.monotonic()
    while True:
        file = _opened(folder)
        try:
            if _is_locked(file, folder) and _is_there(file, folder / FILE):
                _sign(file, purpose, program)
                return Hold(folder, purpose, file)
        except BaseException:
            file.close()
            raise
        file.close()
        owner = _record(folder)
        if time.monotonic() - began > PATIENCE_S.get(owner["purpose"], 1.0):
            raise _refusal(folder, owner)
        time.sleep(PAUSE_S)


def _opened(folder: Path) -> IO[bytes]:
    """The lock file, made where there is none. Raises LoomError for a link and where the disk refuses it."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    try:
        file = os.fdopen(os.open(folder / FILE, flags, 0o666), "r+b")
    except FileNotFoundError as error:
        raise LoomError("run.no_folder", folder=folder) from error
    except OSError as error:
        raise files.unwritten(folder / FILE, error) from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise LoomError("run.lock_no_file", path=folder / FILE)
    return file


def _is_locked(file: IO[bytes], folder: Path) -> bool:
    """Locks the file; False when another has it."""
    try:
        locks.take(file)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: the record and the life of its process decide
        return not _seems_owned(folder)
    return True


def _is_there(file: IO[bytes], path: Path) -> bool:
    """Whether the file that was locked is still the one of that name: its last owner may have removed it in between."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.lstat(path))
    except OSError:
        return False


def _seems_owned(folder: Path) -> bool:
    """Whether the record names a process that lives; of another machine, whether the folder changed of late."""
    owner = _record(folder)
    if not owner["mark"]:
        return False
    ended = writers.is_gone(owner["mark"])
    if ended is not None:
        return not ended
    return time.time() - max(path.stat().st_mtime for path in folder.iterdir()) < FRESH_S


def _sign(file: IO[bytes], purpose: str, program: str) -> None:
    """Writes down who owns it. A full disk leaves the lock without a name, and it holds all the same."""
    record = {
        "purpose": purpose,
        "program": program,
        "process": str(os.getpid()),
        "machine": platform.node(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "mark": writers.mark(),
    }
    with contextlib.suppress(OSError):
        file.truncate(0)
        file.seek(0)
        file.write(json.dumps(record).encode())
        file.flush()


def _record(folder: Path) -> dict[str, str]:
    value = read_json(folder / FILE, MAX_BYTES)
    value = value if isinstance(value, dict) else {}
    return {key: as_text(value.get(key)) for key in ("purpose", "program", "process", "machine", "since", "mark")}


def _refusal(folder: Path, owner: dict[str, str]) -> LoomError:
    run = repr(folder.name)
    doing = DOING.get(owner["purpose"])
    if doing is None:
        return LoomError("run.owned_by_somebody", run=run)
    facts = {key: owner[key] for key in ("program", "process", "machine", "since")}
    return LoomError("run.owned", run=run, doing=doing, **facts)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
