"""Writing so that a crash leaves either the old file or the new one: temp beside the target, fsync, rename, fsync of the folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as safetensors_bytes

from ..messages.errors import LoomError, NonFiniteError

TEMP_PREFIX = ".loom-tmp-"


def write_bytes(path: Path, data: bytes) -> None:
    """Writes `path` atomically and durably, with ordinary permissions. Raises LoomError naming the path when the disk refuses."""
    temp = path.with_name(f"{TEMP_PREFIX}{os.getpid()}-{path.name}")
    try:
        with open(temp, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temp, path)
        fsync_folder(path.parent)
    except OSError as error:
        temp.unlink(missing_ok=True)
        free = shutil.disk_usage(existing(path.parent)).free
        raise LoomError(
            "disk.unwritten",
            path=path,
            reason=error.strerror,
            needed=f"{len(data) / 1e6:.1f}",
            free=f"{free / 1e6:.1f}",
        ) from error
    except BaseException:
        temp.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    write_bytes(
        path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False).encode("utf-8", "surrogateescape")
    )


def write_safetensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """A safetensors file written atomically. Refuses numbers that are not finite."""
    require_finite(tensors)
    write_bytes(path, safetensors_bytes(_apart(tensors), dict(metadata) if metadata else None))


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


def fsync_folder(folder: Path) -> None:
    """Makes a rename inside `folder` durable, where the system allows it (not on Windows)."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def folder_in_one_piece(target: Path) -> Iterator[Path]:
    """A temporary folder that becomes `target` by one rename when the block ends well, and disappears when it does not."""
    temp = target.with_name(f"{TEMP_PREFIX}{os.getpid()}-{target.name}")
    shutil.rmtree(temp, ignore_errors=True)
    temp.mkdir(parents=True)
    try:
        yield temp
        fsync_folder(temp)
        os.rename(temp, target)
        fsync_folder(target.parent)
    except BaseException:
        shutil.rmtree(temp, ignore_errors=True)
        raise


def sweep_temps(folder: Path) -> None:
    """Removes what a killed process left behind in `folder`."""
    for path in folder.glob(f"{TEMP_PREFIX}*"):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def existing(folder: Path) -> Path:
    """The folder itself or its nearest ancestor that exists."""
    return folder if folder.exists() else existing(folder.parent)


def require_room(folder: Path, needed_bytes: int) -> None:
    """Raises LoomError when `folder`'s disk has less than `needed_bytes` free."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise LoomError("disk.no_room", folder=folder, needed=f"{needed_bytes / 1e6:.0f}", free=f"{free / 1e6:.0f}")
