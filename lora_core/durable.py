"""Names and files that a power cut does not take back. What writes, in the engine and in the formats, says in its own words where a disk refuses."""

from __future__ import annotations

import errno
import itertools
import os
from pathlib import Path

NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)  # a file system that syncs no folders says so


def make_folders(folder: Path) -> None:
    """`folder` and what is missing above it, each name durable. Raises OSError."""
    missing = itertools.takewhile(lambda place: not place.is_dir(), (folder, *folder.parents))
    for place in reversed(list(missing)):
        place.mkdir(exist_ok=True)
        fsync_folder(place.parent)


def fsync_folder(folder: Path) -> None:
    """Makes the names inside `folder` durable, where the system can (not on Windows). Raises OSError when the disk fails."""
    if os.name == "nt":
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # a folder that may be written and not listed
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise
    finally:
        os.close(handle)


def fsync_tree(folder: Path) -> None:
    """Makes every file in a folder durable, then the names of all. Raises OSError."""
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            with open(Path(place, name), "r+b") as file:
                os.fsync(file.fileno())
        fsync_folder(Path(place))
