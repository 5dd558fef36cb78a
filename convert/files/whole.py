"""Files and folders that appear whole or not at all: written beside their place under a name of their own, durable, then renamed; names and parents are durable
too, where the system can make them so.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ...lora_core.durable import fsync_folder, fsync_tree, make_folders
from ..lora import FormatError


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
        make_folders(path.parent)
        with open(temp, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temp, path)
        fsync_folder(path.parent)
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
        make_folders(target.parent)
        temp.mkdir()
        yield temp
        fsync_tree(temp)
        os.rename(temp, target)
        fsync_folder(target.parent)
    except OSError as error:
        raise FormatError("file.unwritten", file=target, reason=error.strerror) from error
    finally:
        shutil.rmtree(temp, ignore_errors=True)
