"""Pictures that belong to other pictures and are not trained by themselves: masks, and what other trainers condition on. Known by their names alone."""

from __future__ import annotations

import enum
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from ..pictures.reading import EXTENSIONS, FILMS

MASK_ENDINGS = (".mask", "-masklabel", "_masklabel", "_mask", "-mask")  # the second one is OneTrainer's
CONDITION_ENDINGS = ("-condlabel", "_condlabel")  # OneTrainer's
ALWAYS = (".mask", "-masklabel", *CONDITION_ENDINGS)  # these are no picture's name, whether there is a picture or not
MASK_FOLDERS = ("mask", "masks", "_masks")
CONDITION_FOLDERS = (
    "control", "controls", "_controls", "control_image", "control_images", "cond", "condition", "conditions",
    "conditioning", "conditioning_data", "conditioning_image", "conditioning_images",
)  # fmt: skip
_COUNTED = re.compile(r"[_-]?\d{1,2}$")  # control_1, control_2: a folder for each of several control pictures
_NUMBERED = re.compile(r"(.+?)_(\d{1,4})")  # musubi-tuner's layers and control pictures: <name>_0, <name>_0001


class Companion(enum.Enum):
    """What a picture is beside another one."""

    MASK = "mask"
    CONDITION = "condition"


class Companions:
    """Which of `pictures` below `root` belong to others. `captioned`: those that have a caption of their own.

    `named`: pictures that a metadata file gives beside those it gives captions to.
    """

    def __init__(
        self, root: Path, pictures: Iterable[Path], captioned: Collection[Path] = (), named: Collection[Path] = ()
    ):
        self._root, self._captioned, self._named = root, captioned, named
        self._pictures = tuple(pictures)
        self._by_stem: dict[str, Path] = {}
        self._folders: dict[Path, set[str]] = {}
        for path in self._pictures:
            self._by_stem.setdefault(_stem(path), path)
            for folder in path.parents:
                if folder == root or root not in folder.parents:
                    break
                self._folders.setdefault(folder.parent, set()).add(folder.name)

    def kind(self, path: Path) -> Companion | None:
        """What `path` is beside another picture; None for a picture of its own."""
        name = path.stem.lower()
        for endings, kind in ((MASK_ENDINGS, Companion.MASK), (CONDITION_ENDINGS, Companion.CONDITION)):
            for ending in endings:
                if name.endswith(ending) and (
                    ending in ALWAYS or self._has_picture(path.with_name(path.stem[: -len(ending)]))
                ):
                    return kind
        for folders, kind in ((MASK_FOLDERS, Companion.MASK), (CONDITION_FOLDERS, Companion.CONDITION)):
            if self._owner(path, folders) is not None:
                return kind
        if (path in self._named and path not in self._captioned) or self._is_layer(path):
            return Companion.CONDITION
        return None

    def conditions(self) -> dict[Path, list[Path]]:
        """Picture -> those that it is conditioned on, as names tell, in the order of folders and numbers."""
        out: dict[Path, list[Path]] = {}
        for path in sorted(self._pictures, key=natural):
            owner = self._conditioned(path)
            if owner is not None and owner != path:
                out.setdefault(owner, []).append(path)
        return out

    def astray(self) -> set[Path]:
        """Pictures without a namesake in a folder of conditions, where others of that folder have one."""
        ownerless: dict[Path, list[Path]] = {}
        used: set[Path] = set()  # folders with a picture that has a namesake
        for path in self._pictures:
            folder = next((f for f in path.parents if self._root in f.parents and _is_for(f, CONDITION_FOLDERS)), None)
            if folder is None:
                continue
            if self._owner(path, CONDITION_FOLDERS) is None:
                ownerless.setdefault(folder, []).append(path)
            else:
                used.add(folder)
        return {path for folder in used for path in ownerless.get(folder, ())}

    def _conditioned(self, path: Path) -> Path | None:
        """The picture that `path` is a condition of by its name or folder."""
        for ending in CONDITION_ENDINGS:
            if path.stem.lower().endswith(ending):
                return self._by_stem.get(_folded(path.with_name(path.stem[: -len(ending)])))
        number = _NUMBERED.fullmatch(path.stem)
        if number is not None and self._is_layer(path):
            return self._by_stem[_folded(path.with_name(number[1]))]
        return self._owner(path, CONDITION_FOLDERS)

    def mask(self, path: Path) -> Path | None:
        """The mask of a picture: <name>.mask.png and the like beside it, or <name>.png in a folder mask beside it or beside a folder it lies in."""
        stem = path.with_suffix("")
        places = [Path(f"{stem}{ending}") for ending in MASK_ENDINGS]
        for folder in (path.parent, *path.parent.parents):
            inside = stem.relative_to(folder)
            places += [folder / name / inside for name in MASK_FOLDERS]
            if len(inside.parts) > 1:
                places += [folder / name / Path(*inside.parts[1:]) for name in MASK_FOLDERS]
            if folder == self._root:
                break
        return next((self._by_stem[key] for key in map(_folded, places) if key in self._by_stem), None)

    def _owner(self, path: Path, names: Collection[str]) -> Path | None:
        """The picture that one in a folder of one of `names` belongs to: of the same name, or without its number, beside that folder."""
        for folder in path.parents:
            if folder == self._root or self._root not in folder.parents:
                return None
            if _is_for(folder, names):
                inside = path.with_suffix("").relative_to(folder)
                for place in self._places(folder, inside):
                    if self._has_picture(place):
                        return self._by_stem[_folded(place)]
        return None

    def _places(self, folder: Path, inside: Path) -> Iterator[Path]:
        """Where the picture may lie that <folder>/<inside> belongs to."""
        number = _NUMBERED.fullmatch(inside.name)
        names = [inside, *([inside.with_name(number[1])] if number else [])]
        special = {*MASK_FOLDERS, *CONDITION_FOLDERS}
        for beside in ["", *sorted(self._folders.get(folder.parent, ()))]:
            if not _is_for(Path(beside), special):
                yield from (folder.parent / beside / name for name in names)

    def _is_layer(self, path: Path) -> bool:
        """<name>_0.png without a caption, beside <name>.png with one."""
        number = _NUMBERED.fullmatch(path.stem)
        if number is None or path in self._captioned:
            return False
        whole = self._by_stem.get(_folded(path.with_name(number[1])))
        return whole is not None and whole in self._captioned

    def _has_picture(self, stem: Path) -> bool:
        return _folded(stem) in self._by_stem


def numbered(name: str) -> str | None:
    """The name in front of _<number>; None without one."""
    number = _NUMBERED.fullmatch(name)
    return number[1] if number else None


def natural(path: Path) -> list[tuple[int, str]]:
    """A key that sorts a_2 before a_10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", _folded(path))]


def _is_for(folder: Path, names: Collection[str]) -> bool:
    """Whether a folder is called by one of `names`, or by one of those for conditions with a number behind."""
    name = folder.name.lower()
    return name in names or (_COUNTED.sub("", name) in names and _COUNTED.sub("", name) in CONDITION_FOLDERS)


def _stem(path: Path) -> str:
    return _folded(path.with_suffix("") if path.suffix.lower() in EXTENSIONS | FILMS else path)


def _folded(path: Path) -> str:
    return unicodedata.normalize("NFC", str(path)).casefold()
