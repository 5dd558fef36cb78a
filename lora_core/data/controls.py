"""Which control pictures each picture of a folder has: by the rows of a metadata file, by names beside it, or by the names in folders elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..config import DataConfig
from ..disk.files import is_folder
from ..messages.errors import LoomError
from ..messages.message import Message
from ..pictures.reading import EXTENSIONS
from .companions import Companions, natural, numbered
from .metadata import Table, normal
from .walk import folded, walk


class ControlFolder:
    """A folder that the settings name: its pictures by their path in it without suffix, and by that without a number behind."""

    def __init__(self, place: Path):
        self.place, self.files = place, tuple(control_files(place))
        self._exact: dict[str, Path] = {}
        self._counted: dict[str, list[Path]] = {}
        for path in sorted(self.files, key=natural):
            stem = path.relative_to(place).with_suffix("")
            self._exact.setdefault(folded(stem), path)
            if (name := numbered(stem.name)) is not None:
                self._counted.setdefault(folded(stem.with_name(name)), []).append(path)

    def of(self, inside: Path, targets: Iterable[str] = ()) -> list[Path]:
        """Those for the picture at `inside` its own folder: of its name, then of its name and a number that no other of `targets` is called by.

        Folders in front of the name count only where there is something at that place.
        """
        stem = inside.with_suffix("")
        for n in range(len(stem.parts)):
            part = Path(*stem.parts[n:])
            key = folded(part)
            counted = [
                p
                for p in self._counted.get(key, ())
                if folded(p.relative_to(self.place).with_suffix("")) not in targets
            ]
            if named := [*([self._exact[key]] if key in self._exact else []), *counted]:
                return named
        return []


class Controls:
    """Those of the pictures below `root`, as far as the settings ask for them. Raises LoomError for a folder that is none."""

    def __init__(
        self,
        config: DataConfig,
        root: Path,
        files: Sequence[Path],
        companions: Companions,
        tables: Mapping[Path, Table],
    ):
        self._root, self._tables = root, tables
        self._by_name = {folded(f): f for f in reversed(files) if f.suffix.lower() in EXTENSIONS}
        self._folders = [ControlFolder(place) for place in control_places(config, root)]
        inside = {p for folder in self._folders for p in folder.files if root in p.parents}
        auto = config.controls == "auto"
        self._named = companions.conditions() if auto else {}
        self._apart = inside | (companions.astray() if auto else set())
        apart = {folded(p) for p in self._apart}
        self._targets = {
            folded(f.relative_to(root).with_suffix("")) for f in self._by_name.values() if folded(f) not in apart
        }
        self._auto = auto

    def is_one(self, path: Path) -> bool:
        """Whether a picture below the root lies where only control pictures do."""
        return path in self._apart

    def of(self, path: Path) -> tuple[Path, ...]:
        """The control pictures of the picture at `path`, in order."""
        named = self._from_table(path) or self._named.get(path, [])
        elsewhere = [p for folder in self._folders for p in folder.of(path.relative_to(self._root), self._targets)]
        return tuple(dict.fromkeys([*named, *(p for p in elsewhere if p != path)]))

    def unused(self, conditions: Iterable[str]) -> list[str]:
        """Names of control pictures that belong to no picture of the folder; `conditions`: those known by their own names."""
        targets = [path for path in self._by_name.values() if path not in self._apart]
        used = {control for path in targets for control in self.of(path)}
        every = {
            *self._apart,
            *(p for folder in self._folders for p in folder.files),
            *(self._root / c for c in conditions),
        }
        return [self._name(p) for p in sorted(every - used, key=natural)]

    def _name(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix() if self._root in path.parents else path.name

    def _from_table(self, path: Path) -> list[Path]:
        """Those that the row of a metadata file names and that are there: below the root, or by their name in a folder of the settings."""
        for folder in (path.parent, *path.parent.parents):
            if folder in self._tables and (names := self._tables[folder].controls(path)):
                return [p for name in names if (p := self._place(name, folder)) is not None] if self._auto else []
            if folder == self._root:
                break
        return []

    def _place(self, name: str, folder: Path) -> Path | None:
        place = self._by_name.get(folded(folder / normal(name, folder)))
        return place or next((p for f in self._folders for p in f.files if p.name == Path(name).name), None)


def control_places(config: DataConfig, root: Path) -> list[Path]:
    """The folders of `control_path`; relative ones are looked for in `root` first. Raises LoomError for what is no folder."""
    places = []
    for line in config.control_folders:
        place = root / line if is_folder(root / line) else Path(line)
        if not is_folder(place):
            raise LoomError("data.control_path.missing", field="data.control_path", folder=repr(line))
        places.append(place)
    return places


def control_files(place: Path) -> list[Path]:
    skipped: list[tuple[str, Message]] = []
    return [path for path in walk(place, True, skipped) if path.suffix.lower() in EXTENSIONS]
