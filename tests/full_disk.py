"""A full disk for one file: whoever opens it for writing, or gives something its name, is told that there is no room."""

from __future__ import annotations

import errno
import os
import sys

_name: list[str] = []  # of the file that gets no room; a hook cannot be taken away again
_hooked: list[bool] = []
WRITING = os.O_WRONLY | os.O_RDWR


def _refuse(event, arguments):
    if not _name:
        return
    if event == "open" and isinstance(arguments[0], str | os.PathLike) and arguments[2] & WRITING:
        name = str(arguments[0])
    elif event == "os.rename":
        name = str(arguments[1])
    elif event == "os.mkdir":
        name = str(arguments[0])
    else:
        return
    if name.endswith(f"/{_name[0]}"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class NoRoomFor:
    """Inside, the file or folder of this name, with or without folders before it, cannot be made."""

    def __init__(self, name: str):
        self.name = name
        if not _hooked:
            _hooked.append(True)
            sys.addaudithook(_refuse)

    def __enter__(self):
        _name.append(self.name)

    def __exit__(self, *error):
        _name.clear()
