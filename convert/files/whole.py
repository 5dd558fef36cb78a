"""Files and folders that appear whole or not at all: written beside their place under a name of their own, durable, then renamed; names and parents are durable
too, where the system can make them so.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ..lora import FormatError

_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)  # a file system that syncs no folders says so


def temp_beside(path: Path) -> Path:
    """A name in the folder of `path` that no other writer has: not another thread, process or machine, nor one of the same number before. No ending that a
    list of models would show; what a killed process leaves is swept where runs hand their results out.
    """
    return path.with_name(f".loom-tmp-{uuid.uuid4().hex}.tmp")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file beside `path` that takes its place when the block ends well, and disappears when it does not. Durable, with ordinary permissions."""
    temp = temp_beside(path)
    try:
        _make_folders(path.parent)
        with open(temp, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temp, path)
        _fsync_folder(path.parent)
    except OSError as error:
        temp.unlink(missing_ok=True)
        held = isinstance(error, PermissionError) and path.exists()
        raise FormatError("file.held" if held else "file.unwritten", file=path, reason=error.strerror) from error
    except BaseException:
        temp.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder beside `target` that becomes it by one rename when the block ends well, and disappears when it does not. What was written into it is durable
    before the name is. Raises FormatError where the disk refuses, or something of that name appeared meanwhile.
    """
    temp = temp_beside(target)
    try:
        _make_folders(target.parent)
        temp.mkdir()
        yield temp
        _fsync_tree(temp)
        os.rename(temp, target)
        _fsync_folder(target.parent)
    except OSError as error:
        raise FormatError("file.unwritten", file=target, reason=error.strerror) from error
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def _make_folders(folder: Path) -> None:
    """`folder` and what is missing above it, each name durable."""
    missing = itertools.takewhile(lambda place: not place.is_dir(), (folder, *folder.parents))
    for place in reversed(list(missing)):
        place.mkdir(exist_ok=True)
        _fsync_folder(place.parent)


def _fsync_tree(folder: Path) -> None:
    """Makes every file in a folder durable, then the names of all."""
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            with open(Path(place, name), "r+b") as file:
                os.fsync(file.fileno())
        _fsync_folder(Path(place))


def _fsync_folder(folder: Path) -> None:
    """Makes the names inside `folder` durable, where the system can (not on Windows)."""
    if os.name == "nt":
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # a folder that may be written and not listed
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(handle)
