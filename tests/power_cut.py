"""What a power cut may leave: the file operations of a block are recorded, and every state is made that the system may find at its next start.

The model is POSIX's, which promises less than most file systems keep. What fsync has not settled may be lost: of a file any part of its content,
of a folder any of its names, each for itself and in any order. What lay below the folder at the beginning is durable.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock

NAMES = ("mkdir", "rename", "replace", "unlink", "remove", "rmdir")


class Moment(NamedTuple):
    """Between two operations. Inodes: what the folder shows, what is durable of it; `said`: what the block had promised by then."""

    shown: dict[int, dict[str, int]]  # folder -> its names
    durable: dict[int, dict[str, int]]
    contents: dict[int, bytes]  # file -> what it shows
    durable_contents: dict[int, bytes]
    said: object


class Recorder:
    """Records below `root` while its block runs. `said`: what the block promises, set by whoever runs in it."""

    def __init__(self, root: Path):
        self.root, self.said = root, None
        self.moments: list[Moment] = []
        self._kept: dict[
            tuple[int, int], int
        ] = {}  # (device, inode) -> an open handle, so that no number is used twice
        self._durable: dict[int, dict[str, int]] = {}
        self._durable_contents: dict[int, bytes] = {}
        self._read: dict[tuple[int, int, int], bytes] = {}  # (inode, size, time) -> content
        self._files: set[int] = set()  # every file there ever was: a name may outlive it that nothing has settled
        self._top = 0

    def __enter__(self) -> Recorder:
        shown, contents = self._look()
        self._durable, self._durable_contents = dict(shown), dict(contents)
        self._patches = contextlib.ExitStack()
        for name in NAMES:
            self._patches.enter_context(mock.patch.object(os, name, self._noted(getattr(os, name))))
        self._patches.enter_context(mock.patch.object(os, "fsync", self._synced(os.fsync)))
        return self

    def __exit__(self, *error: object) -> None:
        self._patches.close()
        self._note()
        for handle in self._kept.values():
            os.close(handle)

    def _noted(self, call):
        def run(*arguments, **keywords):
            self._note()  # as it lies before the operation: what was written since the last one is in it
            result = call(*arguments, **keywords)
            self._note()
            return result

        return run

    def _synced(self, call):
        def run(file):
            handle = file if isinstance(file, int) else file.fileno()
            self._note()
            call(handle)
            inode = os.fstat(handle).st_ino
            shown, contents = self._look()
            if inode in shown:
                self._durable[inode] = dict(shown[inode])
            elif inode in contents:
                self._durable_contents[inode] = contents[inode]
            self._note()

        return run

    def _note(self) -> None:
        shown, contents = self._look()
        moment = Moment(shown, dict(self._durable), contents, dict(self._durable_contents), self.said)
        if not self.moments or moment != self.moments[-1]:
            self.moments.append(moment)

    def _look(self) -> tuple[dict[int, dict[str, int]], dict[int, bytes]]:
        shown: dict[int, dict[str, int]] = {}
        contents: dict[int, bytes] = {}
        waiting = [self.root]
        while waiting:
            place = waiting.pop()
            names = shown.setdefault(self._inode(place), {})
            for entry in os.scandir(place):
                path = Path(entry.path)
                names[entry.name] = self._inode(path)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(path)
                else:
                    contents[names[entry.name]] = self._content(path)
                    self._files.add(names[entry.name])
        self._top = self._inode(self.root)
        return shown, contents

    def _content(self, path: Path) -> bytes:
        facts = path.lstat()
        key = (facts.st_ino, facts.st_size, facts.st_mtime_ns)
        if key not in self._read:
            self._read[key] = path.read_bytes()
        return self._read[key]

    def _inode(self, path: Path) -> int:
        handle = os.open(path, os.O_RDONLY)
        facts = os.fstat(handle)  # of what was opened: another thread may have put another file there since
        if self._kept.setdefault((facts.st_dev, facts.st_ino), handle) != handle:
            os.close(handle)
        return facts.st_ino

    def states(self, into: Path, rng: random.Random, each: int = 3, every: int = 1) -> Iterator[tuple[Path, object]]:
        """(a folder as the system may find it after a cut, what had been promised by then), of every `every`th moment.

        Each moment gives its two extremes and `each` drawn states between them.
        """
        number, seen = itertools.count(), set()
        for moment in self.moments[::every]:
            for lost in (lambda: True, lambda: False, *[lambda: rng.random() < 0.5] * each):
                tree = _tree(moment, self._top, self._files, lost, rng)
                key = (repr(moment.said), tuple(sorted(tree.items(), key=lambda item: item[0])))
                if key in seen:
                    continue
                seen.add(key)
                folder = into / str(next(number))
                for path, data in tree.items():
                    place = folder / path
                    (place if data is None else place.parent).mkdir(parents=True, exist_ok=True)
                    if data is not None:
                        place.write_bytes(data)
                folder.mkdir(parents=True, exist_ok=True)
                yield folder, moment.said
                shutil.rmtree(folder)


def _tree(moment: Moment, top: int, files: set[int], lost, rng: random.Random) -> dict[str, bytes | None]:
    """Path -> content, None for a folder; `lost()` decides for each name and content that nothing has settled."""
    out: dict[str, bytes | None] = {}
    waiting = [("", top)]
    while waiting:
        above, inode = waiting.pop()
        now, then = moment.shown.get(inode, {}), moment.durable.get(inode, {})
        for name in sorted({*now, *then}):
            entry = now.get(name) if now.get(name) == then.get(name) or not lost() else then.get(name)
            if entry is None:
                continue
            path = f"{above}{name}"
            if entry in files:
                out[path] = _content(moment, entry, lost, rng)
            else:
                out[path] = None
                waiting.append((f"{path}/", entry))
    return out


def _content(moment: Moment, inode: int, lost, rng: random.Random) -> bytes:
    settled, shown = moment.durable_contents.get(inode), moment.contents.get(inode)
    if shown is None or shown == settled:
        return settled if settled is not None else b""
    if not lost():
        return shown
    return rng.choice([settled or b"", b"", shown[: len(shown) // 2], bytes(len(shown))])
