"""Pictures that a page sends: kept apart until all are there, then a training folder that appears whole or not at all.

A drop is known by its name and its list of files: the same drop again goes on where the last one was cut off. What lies below the training folders already
is asked for by size, then by hash, and copied there instead of being sent.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ...lora_core.config import DataConfig
from ...lora_core.data.dataset import Dataset
from ...lora_core.data.folder import scan
from ...lora_core.disk.files import folder_in_one_piece, make_folders, require_room, sha256, write_json
from ...lora_core.messages.errors import LoomError
from ...lora_core.messages.message import Message
from .archives import Archive, without_wrapper
from .arrivals import Names, folder_name, inside, is_archive, is_ignored, is_taken
from .requests import Refused

STAGING = ".lora_loom_uploads"
PLAN, FILES = "plan.json", "files"
MAX_FILES, MAX_BYTES = 20_000, 2**40
MAX_CLAIMS = 1000  # in one request
KEPT_S = 7 * 24 * 3600  # how long what a page left behind can be gone on with
MAX_LOOKED_AT = 500_000  # files below the training folders
NAMED = 3  # files that a sentence names
PLAIN_FOLDERS = frozenset({"img", "images", "reg", "mask", "masks", "train", "test", "validation", "valid", "val"})
_ID = re.compile(r"[0-9a-f]{32}")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a page wants to send: the new folder's name, path and bytes of each file. `others`: files that do not belong there."""

    name: str
    files: tuple[tuple[str, int], ...]
    others: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        text = json.dumps([self.name, self.files], ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    @property
    def total_bytes(self) -> int:
        return sum(size for _, size in self.files)


@dataclasses.dataclass(frozen=True)
class Part:
    """Bytes of a file: its number in the plan, where they begin, how many they are."""

    index: int
    offset: int
    length: int


def planned(name: Any, files: Any) -> tuple[Plan, list[int]]:
    """The plan of a page that lists [path, bytes] of each file, and the numbers in that list of those to be sent. Raises Refused."""
    if not isinstance(name, str) or not isinstance(files, list) or not all(_is_file(file) for file in files):
        raise Refused(400, "upload.request")
    if len(files) > MAX_FILES:
        raise Refused(413, "upload.many", count=len(files), limit=MAX_FILES)
    chosen: list[int] = []
    others: list[str] = []
    for n, (text, _) in enumerate(files):
        path = inside(text)
        if path is None:
            raise Refused(400, "upload.outside", name=repr(text[:200]))
        if is_ignored(path):
            continue
        if is_taken(path) or is_archive(path):
            chosen.append(n)
        else:
            others.append(path.as_posix())
    if not chosen:
        raise Refused(400, "upload.nothing", names=others[:NAMED])
    plan = Plan(folder_name(name), tuple((files[n][0], files[n][1]) for n in chosen), tuple(others))
    if plan.total_bytes > MAX_BYTES:
        raise Refused(413, "upload.request")
    return plan, chosen


def _is_file(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    path, size = value
    return isinstance(path, str) and len(path) <= 4000 and type(size) is int and 0 <= size <= MAX_BYTES


class Uploads:
    """What pages are sending below `root()`, the folder of all training folders."""

    def __init__(self, root: Callable[[], Path]):
        self._root = root
        self._locks: collections.defaultdict[str, threading.Lock] = collections.defaultdict(threading.Lock)
        self._naming = threading.Lock()
        self._candidates: dict[str, dict[int, list[Path]]] = {}  # of an upload: size -> files of that size

    def begin(self, plan: Plan) -> dict[str, Any]:
        """{"id", "have": [[index, bytes], ...]}: of which files bytes may be here already, which a page then claims by their hash."""
        root, place = self._root(), self._place(plan.id)
        self._sweep()
        with self._locks[plan.id]:
            make_folders(place / FILES)
            write_json(place / PLAN, dataclasses.asdict(plan))
            present = self._staged(place, plan)
            require_room(root, plan.total_bytes - sum(present))
            sizes = {size for n, (_, size) in enumerate(plan.files) if present[n] < size}
            candidates = self._candidates[plan.id] = _by_size(root, sizes)
        have = [
            [n, present[n] or size]
            for n, (_, size) in enumerate(plan.files)
            if present[n] or (size and candidates.get(size))
        ]
        return {"id": plan.id, "have": have}

    def claim(self, key: Any, claims: Any) -> list[list[int]]:
        """[index, bytes] of each file, of which as many bytes are here now. `claims`: [index, bytes, SHA-256 of these bytes], as the page has them."""
        plan, place = self._opened(key)
        if not isinstance(claims, list) or len(claims) > MAX_CLAIMS or not all(_is_claim(c, plan) for c in claims):
            raise Refused(400, "upload.request")
        with self._locks[plan.id]:
            return [[n, self._fetched(plan, place, n, count, digest)] for n, count, digest in claims]

    def _fetched(self, plan: Plan, place: Path, n: int, count: int, digest: str) -> int:
        """How many bytes of a file are here: those staged if they are the claimed ones, else those of an equal file elsewhere."""
        staged, size = place / FILES / str(n), plan.files[n][1]
        if staged.is_file():
            if staged.stat().st_size == count and sha256(staged) == digest:
                return count
            staged.unlink()
        if count != size:
            return 0
        for candidate in self._candidates.get(plan.id, {}).get(size, ()):
            with contextlib.suppress(OSError):  # gone meanwhile
                if sha256(candidate) == digest:
                    shutil.copyfile(candidate, staged)
                    return size
        return 0

    def append(self, key: Any, parts: Sequence[Part], body: memoryview) -> None:
        """Puts bytes behind those that are here. Raises Refused where they do not fit."""
        plan, place = self._opened(key)
        if sum(part.length for part in parts) != len(body):
            raise Refused(400, "upload.request")
        with self._locks[plan.id]:
            if not place.is_dir():
                raise Refused(404, "upload.gone")
            begin = 0
            for part in parts:
                self._append(plan, place, part, body[begin : begin + part.length])
                begin += part.length

    @staticmethod
    def _append(plan: Plan, place: Path, part: Part, data: memoryview) -> None:
        if not 0 <= part.index < len(plan.files) or part.offset + part.length > plan.files[part.index][1]:
            raise Refused(400, "upload.request")
        with (place / FILES / str(part.index)).open("ab") as file:
            if file.tell() != part.offset:
                raise Refused(409, "upload.order")
            file.write(data)

    def finish(self, key: Any) -> dict[str, Any]:
        """Makes the training folder: {"folder", "pictures", "captions", "notes"}.

        Raises Refused while files are missing, LoomError where there is no picture; then nothing is left.
        """
        plan, place = self._opened(key)
        with self._locks[plan.id]:
            missing = [n for n, (_, size) in enumerate(plan.files) if _size(place / FILES / str(n)) < size]
            if missing:
                raise Refused(409, "upload.incomplete", count=len(missing))
            try:
                return self._built(plan, place)
            finally:
                self._forget(plan.id)

    def _built(self, plan: Plan, place: Path) -> dict[str, Any]:
        notes = _Notes(plan)
        with self._naming:
            target, namesakes = _free_folder(self._root(), plan.name)
            try:
                with folder_in_one_piece(target) as folder:
                    _fill(folder, plan, place / FILES, notes)
                    dataset = _scanned(folder, plan.name)
                    for namesake in namesakes:
                        if _same_files(folder, namesake):
                            raise _Same(namesake)
            except _Same as same:
                target = same.folder
                notes.add("upload.same", folder=target.name)
            else:
                if target.name != plan.name:
                    notes.add("upload.name_taken", folder=plan.name, name=target.name)
        return {
            "folder": target.name,
            "pictures": len(dataset.pictures),
            "captions": sum(bool(picture.caption) for picture in dataset.pictures),
            "notes": [*notes.as_json(), *_about(dataset)],
        }

    def cancel(self, key: Any) -> None:
        """Removes what has come of an upload; one that is not there is cancelled already."""
        if isinstance(key, str) and _ID.fullmatch(key):
            with self._locks[key]:
                self._forget(key)

    def _forget(self, key: str) -> None:
        shutil.rmtree(self._place(key), ignore_errors=True)
        self._candidates.pop(key, None)
        with contextlib.suppress(OSError):  # others are under way
            self._place(key).parent.rmdir()

    def _place(self, key: str) -> Path:
        return self._root() / STAGING / key

    def _opened(self, key: Any) -> tuple[Plan, Path]:
        if not isinstance(key, str) or not _ID.fullmatch(key):
            raise Refused(400, "upload.request")
        place = self._place(key)
        try:
            value = json.loads((place / PLAN).read_text(encoding="utf-8"))
            files = tuple((str(path), int(size)) for path, size in value["files"])
            return Plan(value["name"], files, tuple(value["others"])), place
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Refused(404, "upload.gone") from error

    @staticmethod
    def _staged(place: Path, plan: Plan) -> list[int]:
        """How many bytes of each file an earlier, interrupted upload of the same files has left here."""
        sizes_here = []
        for n, (_, size) in enumerate(plan.files):
            file = place / FILES / str(n)
            if _size(file) > size:
                file.unlink()
            sizes_here.append(_size(file))
        return sizes_here

    def _sweep(self) -> None:
        """Removes what pages left behind long ago."""
        for place in [*(self._root() / STAGING).glob("*")]:
            with contextlib.suppress(OSError):
                newest = max(path.stat().st_mtime for path in (place, place / FILES) if path.exists())
                if _ID.fullmatch(place.name) and time.time() - newest > KEPT_S:
                    shutil.rmtree(place, ignore_errors=True)


class _Notes:
    """What a person is told of an upload beside its result."""

    def __init__(self, plan: Plan):
        self._messages: list[Message] = []
        self.others = [*plan.others]
        self.damaged: list[str] = []
        self.names = Names()

    def add(self, code: str, **values: Any) -> None:
        self._messages.append(Message.of(code, **values))

    def as_json(self) -> list[dict[str, Any]]:
        lists = {
            "upload.others": self.others,
            "upload.damaged": self.damaged,
            "upload.renamed": self.names.renamed,
        }
        remarks = [Message.of(code, count=len(names), names=names[:NAMED]) for code, names in lists.items() if names]
        return [message.as_json() for message in (*self._messages, *remarks)]


def _about(dataset: Dataset) -> list[dict[str, Any]]:
    """The pictures that cannot be used, each with its reason, the first of them."""
    return [Message.of("data.skipped", name=name, reason=reason).as_json() for name, reason in dataset.skipped[:20]]


def _fill(folder: Path, plan: Plan, staged: Path, notes: _Notes) -> None:
    """Moves what has come to where it belongs below the new folder, archives unpacked."""
    archives = []
    for n, (text, size) in enumerate(plan.files):
        path = inside(text)
        if path is None:
            raise Refused(400, "upload.outside", name=repr(text[:200]))
        if is_archive(path):
            archives.append((path, staged / str(n)))
            continue
        target = _made(folder, notes.names.free(path))
        if size:
            os.replace(staged / str(n), target)
        else:
            target.touch()
    for path, file in archives:
        below = PurePosixPath() if len(plan.files) == 1 else path.with_suffix("")
        with Archive(file, path.name) as archive:
            _unpack(archive, folder, below, notes)


def _unpack(archive: Archive, folder: Path, below: PurePosixPath, notes: _Notes) -> None:
    require_room(folder, archive.unpacked_bytes)
    kept = [entry for entry in archive.entries if not is_ignored(entry.path)]
    for entry in without_wrapper(kept, PLAIN_FOLDERS):
        if not is_taken(entry.path):
            notes.others.append(f"{archive.name}: {entry.path.as_posix()}")
            continue
        place = notes.names.free(below / entry.path)
        if not archive.unpack(entry, _made(folder, place)):
            notes.damaged.append(place.as_posix())


def _made(folder: Path, path: PurePosixPath) -> Path:
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


class _Same(Exception):
    """The new folder is not needed: the same files lie in `folder`."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.folder = folder


def _scanned(folder: Path, name: str) -> Dataset:
    """The pictures of a folder that will be called `name`. Raises LoomError where there are none that can be used."""
    try:
        return scan(DataConfig(folder=str(folder)), "")
    except LoomError as error:
        message = error.message
        raise LoomError(message.code, **{**message.values, "folder": repr(name)}) from error


def _free_folder(root: Path, name: str) -> tuple[Path, list[Path]]:
    """(the first of `name`, `name (2)`, … that nothing has, whatever its case is; the folders that have the ones before)."""
    taken = {path.name.casefold(): path for path in root.iterdir()}
    namesakes: list[Path] = []
    free = name
    while (other := taken.get(free.casefold())) is not None:
        namesakes.append(other)
        free = f"{name} ({len(namesakes) + 1})"
    return root / free, namesakes


def _same_files(one: Path, two: Path) -> bool:
    """Whether two folders hold the same files with the same bytes."""
    if not two.is_dir():
        return False
    left, right = _tree(one), _tree(two)
    return left == right and all(sha256(one / name) == sha256(two / name) for name in left)


def _tree(folder: Path) -> dict[str, int]:
    files = (Path(place, name) for place, _, names in os.walk(folder) for name in names)
    return {file.relative_to(folder).as_posix(): file.lstat().st_size for file in files}


def _size(file: Path) -> int:
    """Bytes of a file; 0 where there is none."""
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _by_size(root: Path, sizes: Iterable[int]) -> dict[int, list[Path]]:
    """Files of these sizes below the training folders. Links are not followed."""
    lengths, out, count = set(sizes) - {0}, collections.defaultdict(list), 0
    if not lengths:
        return {}
    for branch, folders, names in os.walk(root):
        folders[:] = [folder for folder in folders if not folder.startswith(".")]
        for name in names:
            count += 1
            path = Path(branch, name)
            with contextlib.suppress(OSError):
                facts = path.lstat()
                if facts.st_size in lengths and not path.is_symlink():
                    out[facts.st_size].append(path)
        if count > MAX_LOOKED_AT:
            break
    return dict(out)


def _is_claim(value: Any, plan: Plan) -> bool:
    if not isinstance(value, list) or len(value) != 3:
        return False
    n, count, digest = value
    if type(n) is not int or not 0 <= n < len(plan.files) or type(count) is not int:
        return False
    return 0 < count <= plan.files[n][1] and isinstance(digest, str) and bool(re.fullmatch(r"[0-9a-f]{64}", digest))
