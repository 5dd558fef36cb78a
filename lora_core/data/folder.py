"""Scans a training folder: pictures, captions, Kohya repeats. Reads headers only; every file found is used or named with a reason."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path

from ..config import DataConfig
from ..errors import LoomError
from ..rng import derive
from .captions import read_caption, with_trigger
from .pictures import EXTENSIONS, PictureError, read_size

MAX_REPEATS = 1000
_KOHYA = re.compile(r"(\d+)_(.*)")


@dataclasses.dataclass(frozen=True)
class Picture:
    """One training picture. `name` is its path below the folder with forward slashes; it identifies the picture on every machine."""

    path: Path
    name: str
    width_px: int
    height_px: int
    caption: str
    repeats: int = 1
    mask: Path | None = None


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The pictures of a folder in a fixed order, what was skipped and why, and what the user should look at."""

    folder: Path
    pictures: tuple[Picture, ...]
    skipped: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    trigger: str = ""

    def summary(self) -> str:
        shown = sum(p.repeats for p in self.pictures)
        lines = [f"{len(self.pictures)} pictures, {shown} per epoch with repeats, {len(self.skipped)} skipped"]
        return "\n".join([*lines, *self.warnings, *(f"skipped {name}: {why}" for name, why in self.skipped)])


def scan(config: DataConfig, field: str = "data.folder") -> Dataset:
    """The dataset in `config.folder`, which came in by the setting `field`. Raises LoomError when the folder is missing or holds no usable picture."""
    root = Path(config.folder)
    if not config.folder or not root.is_dir():
        raise LoomError(f"{field}: there is no folder {config.folder!r}; choose one that holds your pictures.")
    pictures: list[Picture] = []
    skipped: list[tuple[str, str]] = []
    no_caption: list[str] = []
    files = sorted(_walk(root, config.recursive, skipped), key=lambda p: p.relative_to(root).as_posix())
    for path in files:
        name = path.relative_to(root).as_posix()
        if path.suffix.lower() not in EXTENSIONS or _is_mask(path, config.masks):
            continue
        repeats, concept = _kohya(path, root)
        if config.repeats:
            repeats = config.repeats
        if not 1 <= repeats <= MAX_REPEATS:
            skipped.append((name, f"its folder asks for {repeats} repeats; 1 to {MAX_REPEATS} are allowed"))
            continue
        try:
            width, height = read_size(path)
            if min(width, height) < config.bucket_step_px:
                raise PictureError(f"is {width} x {height} px, smaller than the smallest bucket ({config.bucket_step_px} px)")
            caption, found = _caption(path, config.captions, concept)
        except PictureError as error:
            skipped.append((name, str(error)))
            continue
        except OSError as error:
            skipped.append((name, f"its caption cannot be read ({error.strerror})"))
            continue
        if not found:
            no_caption.append(name)
        pictures.append(Picture(path, name, width, height, with_trigger(caption, config.trigger), repeats, _mask(path) if config.masks == "file" else None))
    if config.limit:
        chosen = set(sorted((p.name for p in pictures), key=lambda name: derive("limit", name))[: config.limit])
        pictures = [p for p in pictures if p.name in chosen]
    if not pictures:
        reasons = "; ".join(f"{name} {why}" for name, why in skipped[:3])
        raise LoomError(
            f"{field}: {root.name!r} holds no usable picture" + (f" ({reasons})" if reasons else "")
            + f"; put in pictures of type {', '.join(sorted(e[1:] for e in EXTENSIONS))}."
        )  # fmt: skip
    return Dataset(root, tuple(pictures), tuple(skipped), tuple(_warnings(config, pictures, no_caption, files)), config.trigger)


def _walk(root: Path, recursive: bool, skipped: list[tuple[str, str]]) -> Iterator[Path]:
    """Regular files below root. Links are followed only while they stay inside; each folder is entered once, so loops end.

    Folders that cannot be opened are added to `skipped`.
    """
    real_root, seen, queue = root.resolve(), set(), [root]
    while queue:
        folder = queue.pop()
        real = folder.resolve()
        if real in seen or not real.is_relative_to(real_root):
            continue
        seen.add(real)
        try:
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            skipped.append((folder.relative_to(root).as_posix(), f"cannot be opened ({error.strerror})"))
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                if recursive:
                    queue.append(Path(entry.path))
            elif entry.is_file() and Path(entry.path).resolve().is_relative_to(real_root):
                yield Path(entry.path)


def _kohya(path: Path, root: Path) -> tuple[int, str]:
    """(repeats, concept) of a picture inside a folder named like 12_my concept; (1, "") elsewhere."""
    for parent in [path.parent, *path.parent.parents]:
        match = _KOHYA.fullmatch(parent.name)
        if match:
            return int(match[1]), match[2].strip()
        if parent == root:
            break
    return 1, ""


def _caption(path: Path, source: str, concept: str) -> tuple[str, bool]:
    """(caption, found). The Kohya folder's concept stands in when no caption is found."""
    if source == "file name":
        return re.sub(r"[_\-\s]+", " ", re.sub(r"[\s_\-]*\(?\d+\)?$", "", path.stem)).strip(), True
    wanted = {"auto": (".txt", ".caption"), "none": ()}.get(source, (source,))
    for suffix in wanted:
        for candidate in (path.with_suffix(suffix), path.with_suffix(suffix.upper()), Path(f"{path}{suffix}")):
            if candidate.is_file() and (text := read_caption(candidate)):
                return text, True
    return concept, bool(concept) or source == "none"


def _is_mask(path: Path, masks: str) -> bool:
    """Masks lie beside pictures; they are not pictures to train on."""
    return path.stem.lower().endswith(".mask") or (masks == "file" and path.parent.name.lower() == "mask")


def _mask(path: Path) -> Path | None:
    """<name>.mask.png beside the picture, or mask/<name>.png."""
    places = (path.with_name(f"{path.stem}.mask.png"), path.parent / "mask" / f"{path.stem}.png")
    return next((place for place in places if place.is_file()), None)


def _warnings(config: DataConfig, pictures: list[Picture], no_caption: list[str], files: list[Path]) -> Iterator[str]:
    if no_caption:
        use = f"the trigger {config.trigger!r}" if config.trigger else "an empty caption (set a trigger word to give them one)"
        yield f"{len(no_caption)} without caption, e.g. {', '.join(no_caption[:3])}: trained with {use}"
    unmasked = [p.name for p in pictures if config.masks == "file" and p.mask is None]
    if unmasked:
        yield f"{len(unmasked)} without a mask, e.g. {', '.join(unmasked[:3])}: trained everywhere"
    small = [p.name for p in pictures if p.width_px * p.height_px < config.resolution**2]
    if small:
        yield f"{len(small)} smaller than {config.resolution} px squared, e.g. {', '.join(small[:3])}: kept at their size, not scaled up"
    stems = {(p.path.parent, p.path.stem) for p in pictures} | {(p.path.parent, p.path.name) for p in pictures}
    orphans = [f.name for f in files if f.suffix.lower() in (".txt", ".caption") and (f.parent, f.stem) not in stems]
    if orphans:
        yield f"{len(orphans)} caption files without a picture, e.g. {', '.join(orphans[:3])}"
