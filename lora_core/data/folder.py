"""Scans training folders: pictures, captions, Kohya and Hugging Face layouts. Reads headers only; every file found is used or named with a reason."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import ImageColor

from ..config import DataConfig, TrainConfig
from ..disk.files import is_folder
from ..messages.errors import LoomError
from ..messages.message import Message
from ..pictures.reading import EXTENSIONS, UNREADABLE, PictureError
from ..rng import derive
from .buckets import fits
from .controls import control_files, control_places
from .dataset import Dataset, joined
from .metadata import TABLES
from .reader import Reader, Seen
from .remarks import remarks
from .walk import OWN_LIST, excluded_in, is_picture, walk

SIZES = ("resolution", "bucket_step_px")  # the settings that a scan does not depend on
SETTLED_S = 2.0  # a file changed later than this before it was read may change once more without its times telling
State = dict[Path, tuple[int, int, int, int] | None]  # file -> its number, size and times; None for a folder
_SPLITS = frozenset({"train", "test", "validation", "valid", "val", "eval", "dev"})


@dataclasses.dataclass(frozen=True)
class Scan:
    """A folder looked through once, from which its dataset follows at any size: `seen` in the order of names.

    `skipped`: what is no picture file of the folder. `left_out`: how many the dataset editor leaves out; `elsewhere`: how many are of another split.
    `state`: what the files were like when they were read; None where that cannot be told from a later change.
    """

    config: DataConfig
    reader: Reader
    seen: tuple[Seen, ...]
    skipped: tuple[tuple[str, Message], ...]
    left_out: int
    elsewhere: int
    state: State | None

    def serves(self, config: DataConfig) -> bool:
        """Whether a scan by these settings would read the same again."""
        if self.state is None or dataclasses.replace(self.config, **{n: getattr(config, n) for n in SIZES}) != config:
            return False
        root = self.reader.root
        if not is_folder(root) or not all(map(is_folder, control_places(self.config, root))):
            return False
        files = [*walk(root, config.recursive, []), *_controls_elsewhere(config, root)]
        return self.state == _state(root, files)

    def dataset(self, config: DataConfig, field: str) -> Dataset:
        """The pictures at the size of `config`. Raises LoomError where there are none."""
        root, skipped = self.reader.root, list(self.skipped)
        large, pictures = [], []  # the latter with whether it is one of the class
        for seen in self.seen:
            error = _too_small(seen, config)
            if error is None:
                large.append(seen)
                error = seen.error
            if error is not None:
                skipped.append((seen.name, error))
            elif seen.picture is not None:
                pictures.append((dataclasses.replace(seen.picture, data=config), seen.of_class))
        if config.limit:
            order = sorted((p.name for p, _ in pictures), key=lambda name: derive("limit", name))
            chosen = set(order[: config.limit])
            pictures = [(p, of_class) for p, of_class in pictures if p.name in chosen]
        if not pictures:
            raise _no_pictures(field, root, self.reader.files, skipped)
        warnings = remarks(config, self.reader, large, [p for p, _ in pictures])
        if self.elsewhere:
            warnings.append(Message.of("data.other_splits", count=self.elsewhere, split=config.split))
        subject = tuple(picture for picture, is_class in pictures if not is_class)
        of_class = tuple(picture for picture, is_class in pictures if is_class)
        return Dataset(root, subject, tuple(skipped), tuple(warnings), config.trigger, of_class, self.left_out)


def _too_small(seen: Seen, config: DataConfig) -> Message | None:
    """What is said of a picture that fills no bucket. Raises LoomError for settings of buckets that make no sense."""
    if seen.size_px is None:
        return None
    width, height = seen.size_px
    if min(width, height) < config.bucket_step_px and not config.upscale:
        return PictureError("picture.small", width=width, height=height, step=config.bucket_step_px).message
    fits(width, height, config)
    return None


def open_sets(config: TrainConfig, known: Sequence[Scan] = ()) -> Dataset:
    """The pictures of all folders of a job; those that one of the `known` scans serves are not read again.

    Raises LoomError when a folder is missing, or when there is nothing to train on. A job that needs no pictures has none.
    """
    return dataset_of(config, scans_of(config, known)) if config.needs_pictures else no_pictures(config)


def no_pictures(config: TrainConfig) -> Dataset:
    """What a job that learns from prompts alone has for pictures."""
    return Dataset(Path(), (), (), (), config.data.trigger)


def scans_of(config: TrainConfig, known: Sequence[Scan] = ()) -> list[Scan]:
    """A scan of each folder of a job, a known one where it serves. Raises LoomError when a folder is missing."""
    out = []
    for data, field in _named_sets(config):
        serving = next((scan for scan in known if scan.serves(data)), None)
        out.append(serving or look_through(data, field))
    return out


def dataset_of(config: TrainConfig, scans: Sequence[Scan]) -> Dataset:
    """The pictures of a job from a scan of each of its folders. Raises LoomError when there is nothing to train on."""
    out = joined([scan.dataset(data, field) for scan, (data, field) in zip(scans, _named_sets(config), strict=True)])
    if not out.pictures:
        raise LoomError("data.regularization.alone", field="data.regularization")
    return out


def _named_sets(config: TrainConfig) -> list[tuple[DataConfig, str]]:
    """(settings of a folder, the setting that names it) of each folder of a job."""
    sets = config.all_sets()
    if len(sets) < 2:
        return [(data, "data.folder") for data in sets]
    first = len(sets) - len(config.sets)
    return [(data, "data.folder" if n < first else f"sets[{n - first}].folder") for n, data in enumerate(sets)]


def scan(config: DataConfig, field: str = "data.folder", keep_excluded: bool = False) -> Dataset:
    """The dataset in `config.folder`, which came in by the setting `field`. Raises LoomError when the folder is missing or holds no usable picture.

    `keep_excluded`: also those that were left out in the dataset editor.
    """
    return look_through(config, field, keep_excluded).dataset(config, field)


def look_through(config: DataConfig, field: str = "data.folder", keep_excluded: bool = False) -> Scan:
    """Reads what `config.folder` holds, for a dataset of any size. Raises LoomError for a folder that is none."""
    root = Path(config.folder)
    if not config.folder or not is_folder(root):
        raise LoomError("data.folder.missing", field=field, folder=repr(config.folder))
    try:
        ImageColor.getrgb(config.background)
    except ValueError as error:
        raise LoomError("data.background.unknown", field="data.background", colour=repr(config.background)) from error
    skipped: list[tuple[str, Message]] = []
    files = sorted(walk(root, config.recursive, skipped), key=lambda p: p.relative_to(root).as_posix())
    state = _state(root, [*files, *_controls_elsewhere(config, root)], time.time() - SETTLED_S)
    reader, excluded = Reader(config, root, files), set(excluded_in(root))
    folders = {p.name for p in root.iterdir() if p.is_dir()}
    seen: list[Seen] = []
    left_out, elsewhere = 0, 0
    as_clips = reader.clip_folders()
    files_and_clips = [f for f in files if f.parent not in as_clips] + sorted(as_clips)
    for path in sorted(files_and_clips, key=lambda p: p.relative_to(root).as_posix()):
        name = path.relative_to(root).as_posix()
        if path.suffix.lower() in UNREADABLE:
            seen.append(Seen(name, error=Message.of("picture.other_type", type=path.suffix.lower())))
        if path not in as_clips and (not is_picture(path) or reader.belongs_to_another(path, name)):
            continue
        top = name.split("/")[0] if "/" in name else ""
        if name in excluded and not keep_excluded:
            left_out += 1
        elif config.split in folders and top != config.split and top in _SPLITS:
            elsewhere += 1
        else:
            # The second is the layout that Kohya's own guide shows.
            of_class = config.regularization or (top == "reg" and "img" in folders)
            seen.append(reader.read(path, name, of_class))
    return Scan(config, reader, tuple(seen), tuple(skipped), left_out, elsewhere, state)


def _controls_elsewhere(config: DataConfig, root: Path) -> list[Path]:
    """The control pictures that lie outside of the folder."""
    return [
        path
        for place in control_places(config, root)
        if root not in (place, *place.parents)
        for path in control_files(place)
    ]


def _state(root: Path, files: Sequence[Path], before_s: float = float("inf")) -> State | None:
    """What shows a change of any of `files`, or of the folders in `root`; None where one is newer than `before_s`, seconds of the epoch."""
    out: State = {place: None for place in root.iterdir() if place.is_dir()}
    for path in (*files, root / OWN_LIST):
        try:
            facts = os.stat(path)
        except OSError:
            continue
        if facts.st_mtime > before_s:
            return None
        out[path] = facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns
    return out


def _no_pictures(field: str, root: Path, files: Sequence[Path], skipped: Sequence[tuple[str, Message]]) -> LoomError:
    """Why a folder holds nothing to train on: shards of a dataset, pictures that cannot be used, or no picture at all."""
    types = sorted(e[1:] for e in EXTENSIONS)
    shards = sum(f.suffix == ".parquet" and f.name not in TABLES for f in files)
    if shards:
        return LoomError("data.folder.shards", field=field, folder=repr(root.name), shards=shards, types=types)
    if not skipped:
        return LoomError("data.folder.no_pictures", field=field, folder=repr(root.name), types=types)
    reasons = [Message.of("picture.of", name=name, error=reason) for name, reason in skipped[:3]]
    return LoomError("data.folder.none_usable", field=field, folder=repr(root.name), reasons=reasons, types=types)
