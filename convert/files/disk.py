"""Tensors from and to the disk: in under limits and without unsafe pickles, out as safetensors in one piece, large files tensor by tensor."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import math
import os
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..lora import FormatError, State
from ..serialize import TYPE_NAMES, Layout, chunks
from .whole import new_folder, replacing

MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 50_000
MAX_MEMBERS = 200_000  # of the tables in a pickle
SHARED = 2  # times the file that its tensors may come to: some of them are stored once and named twice
MAX_DIMS = 8
MAX_VALUES = 1 << 44
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".ckpt", ".msgpack")
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
SAFE_PICKLE_TORCH = (2, 10)  # GHSA-53q9-r3pm-6pq6, CVE-2026-24747: weights_only is not a protection before
_BYTES = {name: dtype.itemsize for dtype, name in TYPE_NAMES.items()}

Header = dict[str, dict[str, Any]]


def header(path: Path) -> tuple[Header, dict[str, str]]:
    """(entries, metadata) of a safetensors file, checked: size, number and shapes of tensors, offsets within the file. Reads no tensor."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
            text = file.read(length) if length <= min(MAX_HEADER_BYTES, size - 8) else None
    except OSError as error:
        raise FormatError("file.unreadable", file=path.name, reason=error.strerror) from error
    if text is None:
        raise FormatError("file.cut_off", file=path.name, length=length)
    if (count := text.count(b'"data_offsets"')) > MAX_TENSORS:  # seen at once; reading them takes seconds
        raise FormatError("file.many_tensors", file=path.name, count=count, limit=MAX_TENSORS)
    try:
        entries = json.loads(text, object_pairs_hook=lambda pairs: _once(path.name, pairs))
    except FormatError:
        raise
    except (ValueError, RecursionError) as error:
        raise FormatError("file.header_no_json", file=path.name) from error
    if not isinstance(entries, dict):
        raise FormatError("file.header_no_table", file=path.name)
    metadata = entries.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise FormatError("file.metadata_no_text", file=path.name)
    if len(entries) > MAX_TENSORS:
        raise FormatError("file.many_tensors", file=path.name, count=len(entries), limit=MAX_TENSORS)
    for key, entry in entries.items():
        _check_entry(path, key, entry, size - 8 - length)
    return entries, metadata


def _once(file: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys differ. Raises FormatError."""
    table = dict(pairs)
    if len(table) < len(pairs):
        key = collections.Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise FormatError("file.header_twice", file=file, key=key[:200])
    return table


def _check_entry(path: Path, key: str, entry: Any, room: int) -> None:
    shape, span = (entry.get("shape"), entry.get("data_offsets")) if isinstance(entry, dict) else (None, None)
    whole = all(isinstance(v, list) and all(type(n) is int and n >= 0 for n in v) for v in (shape, span))
    if (
        not whole
        or not isinstance(shape, list)
        or not isinstance(span, list)
        or len(span) != 2
        or len(shape) > MAX_DIMS
    ):
        raise FormatError("file.entry", file=path.name, key=key[:200], limit=MAX_DIMS)
    kind = entry.get("dtype")
    width = _BYTES.get(kind) if isinstance(kind, str) else None
    if width is None:
        raise FormatError("file.type", file=path.name, key=key[:200], type=repr(str(kind)[:50]))
    if math.prod(max(1, n) for n in shape) > MAX_VALUES:
        raise FormatError("file.shape", file=path.name, key=key[:200], shape=str(shape)[:80])
    if not 0 <= span[0] <= span[1] <= room or math.prod(shape) * width != span[1] - span[0]:
        raise FormatError("file.span", file=path.name, key=key[:200], begin=span[0], end=span[1], shape=shape)


def data_sha256(path: Path) -> str:
    """sha256 of the data section of a safetensors file, which is what `sshs_model_hash` in its header should be."""
    with open(path, "rb") as file:
        file.seek(8 + struct.unpack("<Q", file.read(8))[0])
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def dtype_of(name: str) -> torch.dtype:
    """The torch type of a type name in a safetensors header."""
    return next(dtype for dtype, letters in TYPE_NAMES.items() if letters == name)


def load(path: Path) -> tuple[State, dict[str, str]]:
    """(tensors, metadata) of a safetensors or torch file. Raises FormatError, and nothing else, for anything wrong with it."""
    data, metadata = load_any(path)
    if not data or not all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in data.items()):
        raise FormatError("file.no_tensors", file=path.name)
    return data, metadata


def load_any(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """As `load`, but a torch file may hold other plain values beside tensors (A1111 embeddings do)."""
    if path.suffix.lower() in PICKLE_SUFFIXES and not _starts_like_safetensors(path):
        return _load_pickle(path), {}
    entries, metadata = header(path)
    with opened(path, entries) as tensor:
        return {key: tensor(key) for key in entries}, metadata


def _starts_like_safetensors(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(9)[8:] == b"{"
    except OSError as error:
        raise FormatError("file.unreadable", file=path.name, reason=error.strerror) from error


def _load_pickle(path: Path) -> dict[str, Any]:
    version = tuple(int("".join(filter(str.isdigit, n)) or 0) for n in torch.__version__.split(".")[:2])
    if version < SAFE_PICKLE_TORCH:
        raise FormatError("file.unsafe_torch", file=path.name, version=torch.__version__)
    try:
        size = path.stat().st_size
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                unpacked = sum(info.file_size for info in archive.infolist())
            if unpacked > 2 * size + (1 << 20):  # torch stores without compression
                raise FormatError("file.unpacks_large", file=path.name, unpacked=unpacked, size=size)
        with torch.serialization.safe_globals([torch.nn.ParameterDict, torch.nn.modules.container.ParameterDict]):
            data = torch.load(path, map_location="cpu", weights_only=True)
    except FormatError:
        raise
    except Exception as error:  # noqa: BLE001  the unpickler raises whatever a damaged file leads it to
        raise FormatError("file.not_plain", file=path.name) from error
    if not isinstance(data, dict):
        raise FormatError("file.other_object", file=path.name, type=type(data).__name__)
    return _Plain(path, size).table(data, "")


class _Plain:
    """The values out of a pickle: ordinary tensors within the size of the file, tables of them as dicts, other plain values as they are.

    A small pickle may say the same object many times over, so what is taken out of it is counted.
    """

    def __init__(self, path: Path, size: int):
        self._path, self._size = path, size
        self._members, self._bytes = 0, 0

    def table(self, values: Any, above: str) -> dict[str, Any]:
        try:
            return {str(key): self._value(f"{above}{key}", value) for key, value in values.items()}
        except (AttributeError, TypeError, KeyError, RuntimeError, ValueError) as error:
            if isinstance(error, FormatError):
                raise
            raise FormatError("file.no_table_of_tensors", file=self._path.name, key=above[:200]) from error

    def _value(self, key: str, value: Any) -> Any:
        self._members += 1
        if self._members > MAX_MEMBERS:
            raise FormatError("file.many_members", file=self._path.name, limit=MAX_MEMBERS)
        if isinstance(value, (dict, torch.nn.ParameterDict)):
            return self.table(value, f"{key[:200]}.")
        if not isinstance(value, torch.Tensor):
            return value
        if (
            value.layout != torch.strided
            or value.device.type != "cpu"
            or value.is_quantized
            or value.dtype not in TYPE_NAMES
        ):
            raise FormatError(
                "file.odd_tensor",
                file=self._path.name,
                key=key[:200],
                type=value.dtype,
                layout=value.layout,
                device=value.device.type,
            )
        self._bytes += value.numel() * value.itemsize
        if value.numel() * value.itemsize > self._size or self._bytes > SHARED * self._size:
            raise FormatError("file.tensor_large", file=self._path.name, key=key[:200], count=value.numel())
        return value.detach()


@contextlib.contextmanager
def opened(path: Path, parsed: Header | None = None) -> Iterator[Callable[[str], torch.Tensor]]:
    """Reads one tensor at a time from a checked safetensors file, into memory of its own: the file is not mapped, so nothing of it stays.

    `known`: the entries `header` gave, where the caller has them already.
    """
    entries = header(path)[0] if parsed is None else parsed
    try:
        with safe_open(path, "pt"):
            pass  # the library's own checks: no holes, no overlaps, no repeated keys
    except (SafetensorError, OSError) as error:
        raise FormatError("file.not_safetensors", file=path.name, reason=error) from error
    with open(path, "rb") as file:
        start = 8 + struct.unpack("<Q", file.read(8))[0]

        def tensor(key: str) -> torch.Tensor:
            entry = entries[key]
            begin, end = entry["data_offsets"]
            dtype = dtype_of(entry["dtype"])
            if begin == end:
                return torch.empty(entry["shape"], dtype=dtype)
            data = bytearray(end - begin)
            file.seek(start + begin)
            if file.readinto(data) != len(data):
                raise FormatError("file.ends_within", file=path.name, key=key)
            return torch.frombuffer(data, dtype=dtype).reshape(entry["shape"])

        yield tensor


def save(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file in one piece; refuses numbers that are not finite. See `save_streamed`."""
    for key, value in tensors.items():
        if value.is_floating_point() and not torch.isfinite(value.float() if value.itemsize == 1 else value).all():
            raise FormatError("tensor.not_finite_unwritten", key=key)
    save_streamed(path, {k: (v.dtype, tuple(v.shape)) for k, v in tensors.items()}, tensors.__getitem__, metadata)


def save_streamed(
    path: Path, layout: Layout, tensor: Callable[[str], torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file whose tensors are asked for one after the other, wide types first as the format wants them."""
    with replacing(path) as file:
        for chunk in chunks(layout, tensor, metadata):
            file.write(chunk)


def save_folder(
    source: Path, target: Path, layout: Layout, tensor: Callable[[str], torch.Tensor], where: Mapping[str, Path]
) -> None:
    """A copy of a diffusers folder with the tensors of `layout` (`<component>/<key>`) asked for anew; appears in one piece under its name."""
    if target.exists():
        raise FormatError("file.exists", file=target.name)
    written: dict[Path, list[str]] = {}
    for key, file in where.items():
        written.setdefault(file, []).append(key)
    folders = {file.parent for file in written}
    with new_folder(target) as temp:
        for file in sorted(p for p in source.rglob("*") if p.is_file()):
            copy = temp / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if file not in written and file.parent in folders and file.suffix in _WEIGHT_SUFFIXES:
                continue  # another copy of these weights, without the change
            if file in written:
                prefix = f"{file.parent.name}/"
                tensors = {key.removeprefix(prefix): layout[key] for key in written[file]}
                save_streamed(copy, tensors, _prefixed(tensor, prefix), header(file)[1])
            else:
                shutil.copyfile(file, copy)
            os.utime(temp)  # a folder at rest for an hour counts as left behind


def _prefixed(tensor: Callable[[str], torch.Tensor], prefix: str) -> Callable[[str], torch.Tensor]:
    return lambda key: tensor(prefix + key)
