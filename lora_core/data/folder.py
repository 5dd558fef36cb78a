"""Scans training folders: pictures, captions, Kohya and Hugging Face layouts. Reads headers only; every file found is used or named with a reason."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import stat
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import ImageColor

from ..config import DataConfig, TrainConfig
from ..disk.files import is_folder
from ..messages.errors import LoomError
from ..messages.message import Message
from ..pictures.reading import EXTENSIONS, UNREADABLE, PictureError, read_header
from ..rng import derive
from .buckets import fits
from .captions import (
    MAX_CAPTION_CHARS,
    PLACEHOLDER,
    Caption,
    are_tags,
    captions_in,
    editor,
    has_word,
    lines_of,
    read_text,
)
from .companions import Companion, Companions
from .metadata import TABLES, Table, read_sidecar, read_table

MAX_REPEATS = 1000
OWN_LIST = ".lora_loom.json"  # what the dataset editor keeps in a folder: pictures left out
LATENT = ".latent.safetensors"  # a latent with its conditioning, brought in from other nodes
_KOHYA = re.compile(r"(\d+)_(.*)")
TEXTS = (".txt", ".caption")
_SPEECH = {  # what captions hold that is no text to an encoder -> the message that tells of it
    "data.placeholder": PLACEHOLDER,
    "data.wildcards_off": re.compile(r"\{[^{}|]*\|[^{}]*\}"),
    "data.wildcard_files": re.compile(r"__[\w/-]+__"),
    "data.lora_tags": re.compile(r"<(?:lora|lyco|hypernet):[^>]*>", re.IGNORECASE),
    "data.prompt_options": re.compile(r"(?:^|\s)--(?:n|w|h|d|l|s|g|ar|cfg|seed|steps)\s"),
    "data.emphasis": re.compile(r"\([^()]*:\s*\d+(?:\.\d+)?\)"),
}
_SPLITS = frozenset({"train", "test", "validation", "valid", "val", "eval", "dev"})
_UNICODE = frozenset({"utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"})


@dataclasses.dataclass(frozen=True)
class Picture:
    """One training picture. `name` is its path below the folder with forward slashes; it identifies the picture on every machine.

    `captions`: those to draw from, the first one standing for the picture. `data`: the settings of its set. `caption_file`: what they were read from,
    where that is a file beside the picture.
    """

    path: Path
    name: str
    width_px: int
    height_px: int
    captions: tuple[Caption, ...] = (Caption(""),)
    repeats: int = 1
    mask: Path | None = None
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    caption_file: Path | None = None

    @property
    def caption(self) -> str:
        return self.captions[0].text

    @property
    def is_latent(self) -> bool:
        """Whether it comes encoded, from other nodes."""
        return self.path.name.endswith(LATENT)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The pictures of a run in a fixed order, what was skipped and why, and what the user should look at.

    `class_pictures`: those of regularization sets. `excluded`: how many were left out in the dataset editor.
    """

    folder: Path
    pictures: tuple[Picture, ...]
    skipped: tuple[tuple[str, Message], ...]
    warnings: tuple[Message, ...]
    trigger: str = ""
    class_pictures: tuple[Picture, ...] = ()
    excluded: int = 0

    def messages(self) -> list[Message]:
        """How many pictures there are, what to look at, what was skipped."""
        per_epoch = sum(p.repeats for p in self.pictures)
        out = [Message.of("data.counts", pictures=len(self.pictures), per_epoch=per_epoch, skipped=len(self.skipped))]
        if self.class_pictures:
            out.append(Message.of("data.class_pictures", count=len(self.class_pictures)))
        if self.excluded:
            out.append(Message.of("data.excluded", count=self.excluded))
        skipped = [Message.of("data.skipped", name=name, reason=reason) for name, reason in self.skipped]
        return [*out, *self.warnings, *skipped]

    def summary(self) -> str:
        """The messages in English, one a line."""
        return "\n".join(map(str, self.messages()))


def open_sets(config: TrainConfig) -> Dataset:
    """The pictures of all folders of a job. Raises LoomError when a folder is missing, or when there is nothing to train on."""
    sets = config.all_sets()
    datasets = [
        scan(
            data,
            f"sets[{n - (len(sets) - len(config.sets))}].folder"
            if len(sets) > 1 and data is not config.data
            else "data.folder",
        )
        for n, data in enumerate(sets)
    ]
    out = joined(datasets)
    if not out.pictures:
        raise LoomError("data.regularization.alone", field="data.regularization")
    return out


def _require_short(captions: Sequence[Caption]) -> None:
    """Raises PictureError for a caption that is none."""
    longest = max((len(caption.text) for caption in captions), default=0)
    if longest > MAX_CAPTION_CHARS:
        raise PictureError("picture.caption_long", length=longest, limit=MAX_CAPTION_CHARS)


def require_captions(dataset: Dataset) -> None:
    """Refuses a set whose pictures would all be trained on empty text, unless it is allowed. Raises LoomError."""
    sets: dict[DataConfig, list[Picture]] = {}
    for picture in dataset.pictures:
        sets.setdefault(picture.data, []).append(picture)
    for data, pictures in sets.items():
        if not data.allow_empty_captions and not any(
            caption.text for picture in pictures for caption in picture.captions
        ):
            raise LoomError(
                "data.no_captions", field="data.trigger", count=len(pictures), folder=repr(Path(data.folder).name)
            )


def joined(datasets: Sequence[Dataset]) -> Dataset:
    """Several sets as one; names are told apart by the name of their folder."""
    if len(datasets) == 1:
        return datasets[0]
    labels: list[str] = []
    for dataset in datasets:
        label, n = dataset.folder.name, 2
        while label in labels:
            label, n = f"{dataset.folder.name} ({n})", n + 1
        labels.append(label)

    def named(pictures: Sequence[Picture], label: str) -> list[Picture]:
        return [dataclasses.replace(p, name=f"{label}/{p.name}") for p in pictures]

    return Dataset(
        datasets[0].folder,
        tuple(p for d, label in zip(datasets, labels, strict=True) for p in named(d.pictures, label)),
        tuple((f"{label}/{name}", why) for d, label in zip(datasets, labels, strict=True) for name, why in d.skipped),
        tuple(
            Message.of("error.about", about=label, error=line)
            for d, label in zip(datasets, labels, strict=True)
            for line in d.warnings
        ),
        next((d.trigger for d in datasets if d.trigger), ""),
        tuple(p for d, label in zip(datasets, labels, strict=True) for p in named(d.class_pictures, label)),
        sum(d.excluded for d in datasets),
    )


def scan(config: DataConfig, field: str = "data.folder", keep_excluded: bool = False) -> Dataset:
    """The dataset in `config.folder`, which came in by the setting `field`. Raises LoomError when the folder is missing or holds no usable picture.

    `keep_excluded`: also those that were left out in the dataset editor.
    """
    root = Path(config.folder)
    if not config.folder or not is_folder(root):
        raise LoomError("data.folder.missing", field=field, folder=repr(config.folder))
    try:
        ImageColor.getrgb(config.background)
    except ValueError as error:
        raise LoomError("data.background.unknown", field="data.background", colour=repr(config.background)) from error
    skipped: list[tuple[str, Message]] = []
    files = sorted(_walk(root, config.recursive, skipped), key=lambda p: p.relative_to(root).as_posix())
    out, excluded, folders = (
        _Found(config, root, files),
        set(excluded_in(root)),
        {p.name for p in root.iterdir() if p.is_dir()},
    )
    pictures: list[tuple[Picture, bool]] = []  # with whether it is one of the class
    left_out, elsewhere = 0, 0
    for path in files:
        name = path.relative_to(root).as_posix()
        if path.suffix.lower() in UNREADABLE:
            skipped.append((name, Message.of("picture.other_type", type=path.suffix.lower())))
        if not _is_picture(path) or out.belongs_to_another(path, name):
            continue
        top = name.split("/")[0] if "/" in name else ""
        if name in excluded and not keep_excluded:
            left_out += 1
        elif config.split in folders and top != config.split and top in _SPLITS:
            elsewhere += 1
        else:
            try:
                pictures.append(
                    (out.picture(path, name), config.regularization or (top == "reg" and "img" in folders))
                )  # the layout Kohya's own guide shows
            except PictureError as error:
                skipped.append((name, error.message))
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                skipped.append((name, Message.of("picture.caption_unreadable", reason=reason)))
    if config.limit:
        chosen = set(sorted((p.name for p, _ in pictures), key=lambda name: derive("limit", name))[: config.limit])
        pictures = [(p, of_class) for p, of_class in pictures if p.name in chosen]
    if not pictures:
        raise _no_pictures(field, root, files, skipped)
    warnings = out.warnings([p for p, _ in pictures])
    if elsewhere:
        warnings.append(Message.of("data.other_splits", count=elsewhere, split=config.split))
    subject = [picture for picture, is_class in pictures if not is_class]
    of_class = [picture for picture, is_class in pictures if is_class]
    return Dataset(root, tuple(subject), tuple(skipped), tuple(warnings), config.trigger, tuple(of_class), left_out)


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


def excluded_in(folder: Path) -> list[str]:
    """Names of the pictures that were left out in the dataset editor."""
    try:
        names = json.loads((folder / OWN_LIST).read_text(encoding="utf-8"))["excluded"]
        return [name for name in names if isinstance(name, str)]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


class _Found:
    """What the files of one folder say about its pictures, and what was noticed on the way."""

    def __init__(self, config: DataConfig, root: Path, files: Sequence[Path]):
        self.config, self.root, self.files, self.edit = config, root, files, editor(config)
        self._by_name = {
            _folded(f): f for f in reversed(files)
        }  # caption files are found whatever their case and Unicode form
        self._by_name |= {str(f): f for f in files}
        wanted = config.captions in ("auto", "metadata")
        self.other_tables: list[Message] = []
        self.tables = {f.parent: table for f in _tables(files) if (table := self._table(f))} if wanted else {}
        self.used: set[Path] = set()
        self.companions = self._companions(files)
        self.masks: list[str] = []
        self.conditions: list[str] = []
        self.several_lines: list[str] = []
        self.speech: dict[str, list[str]] = {}  # code of a message -> pictures whose captions it is about
        self.encodings: dict[str, str] = {}
        self.no_caption: list[str] = []
        self.without_trigger: list[str] = []
        self.animated: list[str] = []
        self.profiles: dict[str, list[str]] = {}

    def _table(self, file: Path) -> Table | None:
        """What is no table of captions stops the scan only where captions have to come from one."""
        try:
            return read_table(file, self.config.caption_column)
        except LoomError as error:
            if self.config.captions == "metadata" or self.config.caption_column:
                raise
            self.other_tables.append(error.message)
            return None

    def _companions(self, files: Sequence[Path]) -> Companions:
        pictures = [f for f in files if f.suffix.lower() in EXTENSIONS]
        captioned = {f for f in pictures if self._has_caption(f)}
        named = {place for table in self.tables.values() for place in table.beside}
        return Companions(self.root, pictures, captioned, {f for f in pictures if _folded(f) in named})

    def _has_caption(self, path: Path) -> bool:
        """Whether a file or a row of a table is meant for this very picture; of no weight where captions come from elsewhere."""
        if self.config.captions in ("file name", "none"):
            return True
        stems = {
            _folded(Path(f"{stem}{suffix}")) for stem in (path, path.with_suffix("")) for suffix in (*TEXTS, ".json")
        }
        return bool(stems & self._by_name.keys()) or any(
            table.names(path) for folder, table in self.tables.items() if folder in path.parents
        )

    def belongs_to_another(self, path: Path, name: str) -> bool:
        """Whether a picture is another one's mask or condition, of which a note is made."""
        kind = self.companions.kind(path)
        if kind is None and self.config.masks == "file" and path.parent.name.lower() == "mask":
            kind = Companion.MASK
        if kind is not None:
            (self.masks if kind is Companion.MASK else self.conditions).append(name)
        return kind is not None

    def picture(self, path: Path, name: str) -> Picture:
        """Raises PictureError, and OSError or ValueError when its caption cannot be read."""
        config = self.config
        repeats, concept = _kohya(path, self.root)
        repeats = config.repeats or repeats
        if not 1 <= repeats <= MAX_REPEATS:
            raise PictureError("picture.repeats", repeats=repeats, limit=MAX_REPEATS)
        if path.name.endswith(LATENT):
            return _wired_latent(path, name, repeats, config)
        header = read_header(path)
        if min(header.width_px, header.height_px) < config.bucket_step_px and not config.upscale:
            raise PictureError(
                "picture.small", width=header.width_px, height=header.height_px, step=config.bucket_step_px
            )
        fits(header.width_px, header.height_px, config)
        file, captions = self._captions(path)
        captions = captions or ((Caption(concept),) if concept else ())
        _require_short(captions)
        if not captions and config.captions != "none":
            self.no_caption.append(name)
        if header.animated:
            self.animated.append(name)
        if header.profile:
            self.profiles.setdefault(header.profile, []).append(name)
        self._note_speech(name, captions)
        if (
            config.trigger
            and captions
            and not all(has_word(c.text, config.trigger) or PLACEHOLDER.search(c.text) for c in captions)
        ):
            self.without_trigger.append(name)
        edited = tuple(self.edit(c) for c in captions or (Caption(""),))
        _require_short(edited)
        mask = self.companions.mask(path) if config.masks == "file" else None
        return Picture(path, name, header.width_px, header.height_px, edited, repeats, mask, config, file)

    def _note_speech(self, name: str, captions: Sequence[Caption]) -> None:
        """Notes what captions hold that is written for other programs."""
        for code, pattern in _SPEECH.items():
            if (
                code == "data.wildcards_off"
                and self.config.wildcards
                or code == "data.placeholder"
                and self.config.trigger
            ):
                continue
            if any(pattern.search(caption.text) for caption in captions):
                self.speech.setdefault(code, []).append(name)

    def _captions(self, path: Path) -> tuple[Path | None, tuple[Caption, ...]]:
        """(the caption file that is read, captions); None where they come from elsewhere."""
        source = self.config.captions
        if source == "file name":
            return None, (Caption(re.sub(r"[_\-\s]+", " ", re.sub(r"[\s_\-]*\(?\d+\)?$", "", path.stem)).strip()),)
        for suffix in {"auto": TEXTS, "none": (), "metadata": ()}.get(source, (source,)):
            for file in self._beside(path, suffix):
                text, encoding = read_text(file, self.config.caption_encoding)
                captions, lines = captions_in(text, self.config.caption_lines), lines_of(text)
                if encoding not in _UNICODE:
                    self.encodings[file.relative_to(self.root).as_posix()] = encoding
                if captions:
                    if self.config.caption_lines == "joined" and len(lines) > 1 and not are_tags(lines):
                        self.several_lines.append(path.relative_to(self.root).as_posix())
                    return file, captions
        if source not in ("auto", "metadata"):
            return None, ()
        for file in self._beside(path, ".json"):
            if file.name not in TABLES and (captions := read_sidecar(file, self.config.caption_column)):
                return None, captions
        for folder in (path.parent, *path.parent.parents):
            if folder in self.tables and (row := self.tables[folder].captions(path)):
                return None, row
            if folder == self.root:
                break
        return None, ()

    def _beside(self, path: Path, suffix: str) -> list[Path]:
        """<name>.png.txt and <name>.txt, in whatever case; the more exact one first."""
        files = []
        for wanted in (Path(f"{path}{suffix}"), path.with_suffix(suffix)):
            file = self._by_name.get(str(wanted)) or self._by_name.get(_folded(wanted))
            if file:
                self.used.add(file)
                files.append(file)
        return files

    def warnings(self, pictures: Sequence[Picture]) -> list[Message]:
        return [*self._about_captions(pictures), *self._about_pictures(pictures), *self._about_files()]

    def _about_captions(self, pictures: Sequence[Picture]) -> Iterator[Message]:
        config = self.config
        if self.no_caption and config.trigger:
            yield _some("data.no_caption_trigger", self.no_caption, trigger=repr(config.trigger))
        elif len(self.no_caption) == len(pictures) and not (config.allow_empty_captions or config.regularization):
            yield Message.of("data.no_caption_at_all")  # what would be refused before the first step
        elif self.no_caption:
            yield _some("data.no_caption", self.no_caption)
        if self.without_trigger:
            yield _some("data.no_trigger", self.without_trigger, all=len(pictures), trigger=repr(config.trigger))
        if self.several_lines:
            yield _some("data.several_lines", self.several_lines)
        for code, names in self.speech.items():
            example = {"example": "{a|b}"} if code == "data.wildcards_off" else {}
            yield _some(code, names, **example)

    def _about_pictures(self, pictures: Sequence[Picture]) -> Iterator[Message]:
        config = self.config
        unmasked = [p.name for p in pictures if config.masks == "file" and p.mask is None]
        if unmasked:
            yield _some("data.no_mask", unmasked)
        if self.masks and config.masks != "file":
            yield _some("data.masks_unused", self.masks)
        if self.conditions:
            yield _some("data.conditions", self.conditions)
        small = [p.name for p in pictures if p.width_px * p.height_px < config.resolution**2 and not p.is_latent]
        if small:
            yield _some("data.small_scaled_up" if config.upscale else "data.small_kept", small, side=config.resolution)
        if self.animated:
            yield _some("data.animated", self.animated)
        for profile, names in self.profiles.items():
            if profile == "damaged":
                yield _some("data.profile_damaged", names)
            else:
                yield _some("data.profile_converted", names, profile=profile)

    def _about_files(self) -> Iterator[Message]:
        if self.encodings and self.config.caption_encoding == "auto":
            yield _some("data.no_unicode", list(self.encodings))
        orphans = [
            f.relative_to(self.root).as_posix()
            for f in self.files
            if f.suffix.lower() in TEXTS and f not in self.used and not self._fits_a_picture(f)
        ]
        if orphans:
            yield _some("data.orphans", orphans)
        for table in self.tables.values():
            if unused := table.unused():
                yield _some("data.rows_unused", unused, file=table.path.relative_to(self.root).as_posix())
            elif table.column:
                yield Message.of(
                    "data.captions_from", file=table.path.relative_to(self.root).as_posix(), column=table.column
                )
        for error in self.other_tables:
            yield Message.of("data.other_table", error=error)
        others = [f.relative_to(self.root).as_posix() for f in self.files if not self._known(f)]
        if others:
            yield _some("data.other_files", others)

    def _fits_a_picture(self, file: Path) -> bool:
        stems = {file.with_suffix(e) for e in EXTENSIONS} | {file.with_suffix("")}
        return any(_folded(stem) in self._by_name for stem in stems)

    def _known(self, file: Path) -> bool:
        return (
            _is_picture(file)
            or file.suffix.lower() in {*TEXTS, *UNREADABLE}
            or file.name in TABLES
            or file in self.used
        )


def _some(code: str, names: Sequence[str], **values: Any) -> Message:
    """A message about `count` files, the first of them by `names`."""
    return Message.of(code, count=len(names), names=[*names[:3]], **values)


def _folded(path: Path) -> str:
    return unicodedata.normalize("NFC", str(path)).casefold()


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS or path.name.endswith(LATENT)


def _tables(files: Sequence[Path]) -> list[Path]:
    """The metadata file of each folder; the first kind in TABLES where it has several."""
    tables: dict[Path, Path] = {}
    for file in sorted((f for f in files if f.name in TABLES), key=lambda f: TABLES.index(f.name)):
        tables.setdefault(file.parent, file)
    return list(tables.values())


def _wired_latent(path: Path, name: str, repeats: int, config: DataConfig) -> Picture:
    """A latent that came over a wire; its file says its size in px, and what stands for its text."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            facts = file.metadata() or {}
        return Picture(
            path,
            name,
            int(facts["width_px"]),
            int(facts["height_px"]),
            (Caption(facts["caption"]),),
            repeats,
            None,
            config,
        )
    except (SafetensorError, KeyError, ValueError) as error:
        raise PictureError("picture.no_latent", reason=error) from error


def _walk(root: Path, recursive: bool, skipped: list[tuple[str, Message]]) -> Iterator[Path]:
    """Regular files below root. Links are followed only while they stay inside; each folder is entered once, so loops end.

    Folders that cannot be opened, links that lead out, and pictures that are no regular files are added to `skipped`.
    """
    real_root, seen, queue = root.resolve(), set(), [root]
    while queue:
        folder = queue.pop()
        real = folder.resolve()
        if real in seen:
            continue
        if not real.is_relative_to(real_root):
            skipped.append((folder.relative_to(root).as_posix(), Message.of("picture.link_outside")))
            continue
        seen.add(real)
        try:
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            skipped.append((folder.relative_to(root).as_posix(), Message.of("picture.unopened", reason=error.strerror)))
            continue
        for entry in entries:
            path = Path(entry.path)
            if entry.name.startswith("."):
                continue
            try:
                kind = entry.stat().st_mode  # of what a link leads to
            except OSError as error:
                skipped.append(
                    (path.relative_to(root).as_posix(), Message.of("picture.unopened", reason=error.strerror))
                )
                continue
            if stat.S_ISDIR(kind):
                if recursive:
                    queue.append(path)
            elif entry.is_symlink() and not path.resolve().is_relative_to(real_root):
                skipped.append((path.relative_to(root).as_posix(), Message.of("picture.link_outside")))
            elif stat.S_ISREG(kind):
                yield path
            elif _is_picture(path):
                skipped.append((path.relative_to(root).as_posix(), Message.of("picture.no_file")))


def _kohya(path: Path, root: Path) -> tuple[int, str]:
    """(repeats, concept) of a picture inside a folder named like 12_my concept, up to MAX_REPEATS; (1, "") elsewhere."""
    for parent in [path.parent, *path.parent.parents]:
        match = _KOHYA.fullmatch(parent.name)
        if match and int(match[1]) <= MAX_REPEATS:  # 2024_summer is a year
            return int(match[1]), match[2].strip()
        if parent == root:
            break
    return 1, ""
