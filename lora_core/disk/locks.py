"""Who is writing: a lock on a file that dies with its process, so a killed run is never taken for one that goes on."""

from __future__ import annotations

import contextlib
import os
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
    import msvcrt

_FAR = 2**31 - 2  # a byte nobody reads: Windows keeps others away from what is locked
_TRIES, _PAUSE_S = 20, 0.05
_held: weakref.WeakSet[IO[Any]] = weakref.WeakSet()


def _let_go_in_child() -> None:
    """A forked child has the files of its parent; a lock must not outlive the process that took it, in a child that knows nothing of it."""
    for file in list(_held):
        buffered = getattr(file, "buffer", file)
        with contextlib.suppress(OSError):
            getattr(buffered, "raw", buffered).close()  # a thread that is not here may hold the lock of what buffers it
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)


def hold(file: IO[Any]) -> None:
    """Marks an open file as being written until it is closed. Does nothing where the file system knows no locks, or another process holds it."""
    for _ in range(_TRIES):  # somebody may be looking just now
        try:
            take(file)
            return
        except BlockingIOError:
            time.sleep(_PAUSE_S)
        except OSError:
            return


def take(file: IO[Any]) -> None:
    """Locks an open file until it is closed or this process ends. Raises BlockingIOError when another has it, OSError where no locks are known."""
    _lock(file, shared=False)
    _held.add(file)


def is_held(path: Path) -> bool | None:
    """Whether somebody holds the file; None where that cannot be found out."""
    try:
        with open(path, "rb") as file:
            _lock(file, shared=True)
            _unlock(file)
        return False
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    except OSError:
        return None


def _lock(file: IO[Any], shared: bool) -> None:
    """Raises BlockingIOError when another holds it."""
    if fcntl is not None:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        return
    try:
        _at(file, lambda: msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1))  # type: ignore[attr-defined]
    except PermissionError as error:
        raise BlockingIOError(str(error)) from error


def _unlock(file: IO[Any]) -> None:
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_UN)
        return
    with contextlib.suppress(OSError):
        _at(file, lambda: msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1))  # type: ignore[attr-defined]


def _at(file: IO[Any], act: Callable[[], None]) -> None:
    """Runs `act` with the file's position at the byte that is locked."""
    before = file.tell()
    file.seek(_FAR)
    try:
        act()
    finally:
        file.seek(before)
