"""Writing so that a crash or a power cut leaves either the old or the new: temp beside the target, fsync, rename, fsync of the folder, and of its parents."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as safetensors_bytes

from .. import durable
from ..durable import fsync_folder, fsync_tree
from ..messages.errors import LoomError, NonFiniteError
from ..messages.figures import figure
from . import writers

TEMP_PREFIX = ".loom-tmp-"
LEFTOVER_S = 3600  # what a writer left behind of whom nothing is known is swept when it is older
_number = itertools.count()


def temp_beside(path: Path) -> Path:
    """A name in the folder of `path` that no other writer has: not another thread, process or machine."""
    return path.with_name(f"{TEMP_PREFIX}{writers.mark()}-{next(_number)}.tmp")


def write_bytes(path: Path, data: bytes) -> None:
    """Writes `path` atomically and durably, with ordinary permissions. Raises LoomError naming the path when the disk refuses."""
    temp = temp_beside(path)
    try:
        with open(temp, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temp, path)
        fsync_folder(path.parent)
    except OSError as error:
        _discard(temp)
        raise unwritten(path, error, len(data)) from error
    except BaseException:
        _discard(temp)
        raise


def unwritten(path: Path, error: OSError, needed_bytes: int = 0) -> LoomError:
    """What to raise when the disk refuses a file or folder."""
    free = 0
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(existing(path.parent)).free
    return LoomError(
        "disk.unwritten",
        path=path,
        reason=error.strerror or type(error).__name__,
        needed=figure(needed_bytes / 1e6),
        free=figure(free / 1e6),
    )


def write_json(path: Path, value: Any) -> None:
    write_bytes(
        path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False).encode("utf-8", "surrogateescape")
    )


def write_safetensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """A safetensors file written atomically. Refuses numbers that are not finite."""
    write_bytes(path, as_safetensors(tensors, metadata))


def as_safetensors(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a safetensors file. Raises NonFiniteError for numbers that are not finite."""
    require_finite(tensors)
    return safetensors_bytes(_apart(tensors), dict(metadata) if metadata else None)


def _apart(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous, and no two in one storage: parts of a fused layer share a matrix, which safetensors before 0.5 does not write."""
    out: dict[str, torch.Tensor] = {}
    storages: set[int] = set()
    for key, value in tensors.items():
        place = value.untyped_storage().data_ptr()
        out[key] = value.clone().contiguous() if place in storages else value.contiguous()
        storages.add(place)
    return out


def require_finite(tensors: Mapping[str, torch.Tensor]) -> None:
    for key, value in tensors.items():
        if not torch.isfinite(value).all():
            raise NonFiniteError("weights.not_finite", key=key)


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return (
            hashlib.file_digest(file, "sha256").hexdigest()
            if hasattr(hashlib, "file_digest")
            else hashlib.sha256(file.read()).hexdigest()
        )


def make_folders(folder: Path) -> None:
    """`folder` and what is missing above it, each name durable. Raises LoomError."""
    try:
        durable.make_folders(folder)
    except OSError as error:
        raise unwritten(folder, error) from error


@contextlib.contextmanager
def folder_in_one_piece(target: Path) -> Iterator[Path]:
    """A temporary folder that becomes `target` by one rename when the block ends well, and disappears when it does not.

    Whatever was written into it is durable before the name is, and so is the name when the block has ended. Raises LoomError when the disk refuses.
    """
    make_folders(target.parent)
    temp = temp_beside(target)
    try:
        temp.mkdir()
        yield temp
        fsync_tree(temp)
        os.rename(temp, target)
        fsync_folder(target.parent)
    except OSError as error:
        _discard(temp)
        raise unwritten(target, error) from error
    except BaseException:
        _discard(temp)
        raise


def sweep_temps(folder: Path) -> None:
    """Removes from `folder` what writers that are gone left behind; those that live, here or elsewhere, are not disturbed."""
    for path in folder.glob(f"{TEMP_PREFIX}*"):
        if is_leftover(path):
            _discard(path)


def is_leftover(path: Path) -> bool:
    """Whether a temporary file or folder has no writer any more. One whose writer cannot be asked counts after an hour of rest."""
    abandoned = writers.is_gone(path.name.removeprefix(TEMP_PREFIX))
    if abandoned is not None:
        return abandoned
    try:
        return time.time() - path.lstat().st_mtime > LEFTOVER_S
    except OSError:
        return False


def remove_folder(folder: Path) -> None:
    """Removes a folder so that it is never seen half deleted: it is renamed away first, durably."""
    doomed = temp_beside(folder)
    os.rename(folder, doomed)
    fsync_folder(folder.parent)
    _discard(doomed)


def _discard(path: Path) -> None:
    """Removes a file or folder, where that goes; what stays is swept later."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def is_folder(path: Path) -> bool:
    """Whether there is a folder of that name; a name that no system takes is none."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def is_file(path: Path) -> bool:
    """Whether there is a file of that name."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def existing(folder: Path) -> Path:
    """The folder itself or its nearest ancestor that exists."""
    return folder if folder.exists() else existing(folder.parent)


def require_room(folder: Path, needed_bytes: int) -> None:
    """Raises LoomError when `folder`'s disk has less than `needed_bytes` free."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise LoomError("disk.no_room", folder=folder, needed=figure(needed_bytes / 1e6), free=figure(free / 1e6))
