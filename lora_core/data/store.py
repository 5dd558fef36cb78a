"""Encoded pictures and texts on disk, by content: what an entry is called is a hash of everything it was made from, so it cannot be stale.

One file an entry, written beside and renamed, proven by a hash when it is opened: a killed writer leaves nothing that is used, several
processes may share one folder, and whoever comes second finds what the first one made.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import itertools
import json
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes

from ..disk.files import TEMP_PREFIX
from ..messages.message import Message

Tensors = dict[str, torch.Tensor]
MAX_OPEN = 20_000  # entries kept mapped; the system allows a process about 65,000
SPARED_S = 6 * 3600  # entries used within it are never removed
TOUCHED_EVERY_S = 1800
LEFTOVER_S = 3600  # temporary files older than this are those of a killed process
FOLDER = "cache"
_ENTRY = re.compile(r"[0-9a-f]{64}\.safetensors")


class Store(Protocol):
    """Where encoded things are kept."""

    problem: Message | None  # why it does not keep what it is given

    def get(self, key: str) -> Tensors | None:
        """The entry, or None. Tensors may be mapped from a file: read them, do not change them."""

    def put(self, key: str, tensors: Mapping[str, torch.Tensor]) -> Tensors:
        """Keeps an entry and returns it as `get` would."""


class Memory:
    """Keeps entries for as long as it lives itself."""

    def __init__(self) -> None:
        self.problem: Message | None = None
        self._entries: dict[str, Tensors] = {}

    def get(self, key: str) -> Tensors | None:
        return self._entries.get(key)

    def put(self, key: str, tensors: Mapping[str, torch.Tensor]) -> Tensors:
        self._entries[key] = {name: t.detach().cpu().clone() for name, t in tensors.items()}
        return self._entries[key]


class Disk:
    """Entries below `root`. Used from several threads; a disk that refuses costs the entry its place there, not the run."""

    def __init__(self, root: Path, limit_bytes: int):
        self.root, self._limit = root, limit_bytes
        self.problem: Message | None = None
        self._open: collections.OrderedDict[str, Tensors] = collections.OrderedDict()
        self._instead = Memory()
        self._used: set[str] = set()
        self._touched = time.monotonic()
        self._lock, self._number = threading.Lock(), itertools.count()

    def get(self, key: str) -> Tensors | None:
        with self._lock:
            if key in self._open:
                self._open.move_to_end(key)
                self._keep_alive()
                return self._open[key]
        tensors = self._mapped(key) or self._instead.get(key)
        if tensors is not None:
            self._remember(key, tensors)
        return tensors

    def put(self, key: str, tensors: Mapping[str, torch.Tensor]) -> Tensors:
        plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
        path = self._path(key)
        if (earlier := self._mapped(key)) is not None:  # another process was faster
            self._remember(key, earlier)
            return earlier
        temp = path.with_name(f"{TEMP_PREFIX}{os.getpid()}-{threading.get_ident()}-{next(self._number)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temp.write_bytes(_proven(plain))
            os.replace(temp, path)
        except OSError as error:
            _remove(temp)
            self.problem = Message.of("cache.unwritten", folder=self.root, reason=error.strerror)
            return self._instead.put(key, plain)
        except BaseException:
            _remove(temp)
            raise
        value = self._mapped(key) or self._instead.put(key, plain)
        self._remember(key, value)
        return value

    def tidy(self) -> None:
        """Removes what was not used for longest until the folder is within its limit, and what killed writers left behind."""
        now, files = time.time(), []
        for path, facts in _files(self.root):
            if path.name.startswith(TEMP_PREFIX):
                if now - facts.st_mtime > LEFTOVER_S:
                    _remove(path)
            elif _ENTRY.fullmatch(path.name):
                files.append((facts.st_mtime, facts.st_size, path))
        total = sum(size for _, size, _ in files)
        for used, size, path in sorted(files):
            if total <= self._limit or now - used < SPARED_S:
                break
            _remove(path)
            total -= size

    def _path(self, key: str) -> Path:
        return self.root / key[:2] / f"{key}.safetensors"

    def _mapped(self, key: str) -> Tensors | None:
        """The entry mapped from its file, after the file has proven whole; a damaged one is removed."""
        path = self._path(key)
        try:
            whole = _is_whole(path.read_bytes())
            if whole:
                os.utime(path)
                return load_file(path)
            _remove(path)
        except (OSError, SafetensorError, RuntimeError):
            pass  # not there, gone between two calls, or no more to be mapped
        return None

    def _remember(self, key: str, tensors: Tensors) -> None:
        with self._lock:
            self._used.add(key)
            self._open[key] = tensors
            while len(self._open) > MAX_OPEN:
                self._open.popitem(last=False)

    def _keep_alive(self) -> None:
        """Marks everything this process uses, now and then, so that no other one removes it."""
        if time.monotonic() - self._touched > TOUCHED_EVERY_S:
            self._touched = time.monotonic()
            for key in self._used:
                with contextlib.suppress(OSError):
                    os.utime(self._path(key))


def open_store(place: Path, disk: bool, limit_gb: float) -> Memory | Disk:
    """The store of runs below `place`."""
    return Disk(place / FOLDER, int(limit_gb * 1e9)) if disk else Memory()


def key_of(*parts: Any) -> str:
    """The name of an entry that was made from `parts`."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=True, default=_plain).encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    raise TypeError(f"{type(value).__name__} cannot be part of a cache key")


def _proven(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """A safetensors file that holds the hash of its own data."""
    data = safetensors_bytes(dict(tensors))
    start = 8 + int.from_bytes(data[:8], "little")
    return safetensors_bytes(dict(tensors), {"sha256": hashlib.sha256(memoryview(data)[start:]).hexdigest()})


def _is_whole(data: bytes) -> bool:
    start = 8 + int.from_bytes(data[:8], "little")
    if not 8 < start < len(data):
        return False
    try:
        return (
            json.loads(data[8:start])["__metadata__"]["sha256"] == hashlib.sha256(memoryview(data)[start:]).hexdigest()
        )
    except (ValueError, KeyError, TypeError):
        return False


def _files(root: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            with contextlib.suppress(OSError):
                yield path, path.stat()


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # another process was faster, or has it open on Windows
        path.unlink()
