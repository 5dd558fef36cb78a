"""What the files of a folder say about each of its pictures: header, captions, mask. Nothing here depends on the size pictures are trained at."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from ..config import DataConfig
from ..messages.errors import LoomError
from ..messages.message import Message
from ..pictures.films import Film, is_frame_folder, read_film
from ..pictures.reading import EXTENSIONS, FILMS, Header, PictureError, read_header
from .captions import (
    MAX_CAPTION_CHARS,
    MAX_CAPTIONS,
    PLACEHOLDER,
    Caption,
    are_tags,
    captions_of,
    editor,
    has_word,
    lines_of,
    read_text,
)
from .clips import clips_of, cuts_of, lengths
from .companions import Companion, Companions
from .controls import Controls
from .dataset import LATENT, Picture
from .metadata import TABLES, Table, read_sidecar, read_table, tables_among
from .walk import MAX_REPEATS, folded, kohya

TEXTS = (".txt", ".caption")
FRAMES = ".frames"  # how a folder of frames may be called
SPEECH = {  # what captions hold that is no text to an encoder -> the message that tells of it
    "data.placeholder": PLACEHOLDER,
    "data.wildcards_off": re.compile(r"\{[^{}|]*\|[^{}]*\}"),
    "data.wildcard_files": re.compile(r"__[\w/-]+__"),
    "data.lora_tags": re.compile(r"<(?:lora|lyco|hypernet):[^>]*>", re.IGNORECASE),
    "data.prompt_options": re.compile(r"(?:^|\s)--(?:n|w|h|d|l|s|g|ar|cfg|seed|steps)\s"),
    "data.emphasis": re.compile(r"\([^()]*:\s*\d+(?:\.\d+)?\)"),
}
_UNICODE = frozenset({"utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"})


@dataclasses.dataclass
class Seen:
    """One picture file: the picture it holds, or the `error` that leaves it out. `size_px`: (width, height), where the header was read.

    `notes`: codes of the messages it is named in; `speech`: those about what its captions hold. `encodings`: its caption files that are not Unicode.
    """

    name: str
    of_class: bool = False
    picture: Picture | None = None
    error: Message | None = None
    size_px: tuple[int, int] | None = None
    profile: str = ""
    notes: set[str] = dataclasses.field(default_factory=set)
    speech: list[str] = dataclasses.field(default_factory=list)
    encodings: list[str] = dataclasses.field(default_factory=list)


class Reader:
    """Reads the pictures among `files` below `root`. `masks`, `conditions`: names of those that belong to another picture, as far as they were asked for."""

    def __init__(self, config: DataConfig, root: Path, files: Sequence[Path]):
        self.config, self.root, self.files, self.edit = config, root, files, editor(config)
        # Caption files are found whatever their case and Unicode form.
        self._by_name = {folded(f): f for f in reversed(files)}
        self._by_name |= {str(f): f for f in files}
        self.other_tables: list[Message] = []
        self.tables = self._tables() if config.captions in ("auto", "metadata") else {}
        self.used: set[Path] = set()
        self.companions = self._companions(files)
        self.controls = Controls(config, root, files, self.companions, self.tables) if config.shows_controls else None
        self.masks: list[str] = []
        self.conditions: list[str] = []

    def _tables(self) -> dict[Path, Table]:
        tables = {folder: self._table(file) for folder, file in tables_among(self.files).items()}
        return {folder: table for folder, table in tables.items() if table}

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
        pictures = [f for f in files if f.suffix.lower() in EXTENSIONS | FILMS]
        captioned = {f for f in pictures if self._has_caption(f)}
        named = {place for table in self.tables.values() for place in table.beside}
        return Companions(self.root, pictures, captioned, {f for f in pictures if folded(f) in named})

    def _has_caption(self, path: Path) -> bool:
        """Whether a file or a row of a table is meant for this very picture; of no weight where captions come from elsewhere."""
        if self.config.captions in ("file name", "none"):
            return True
        stems = {
            folded(Path(f"{stem}{suffix}")) for stem in (path, path.with_suffix("")) for suffix in (*TEXTS, ".json")
        }
        if stems & self._by_name.keys():
            return True
        return any(table.names(path) for folder, table in self.tables.items() if folder in path.parents)

    def belongs_to_another(self, path: Path, name: str) -> bool:
        """Whether a picture is another one's mask or condition, of which a note is made."""
        kind = self.companions.kind(path)
        if kind is None and self.config.masks == "file" and path.parent.name.lower() == "mask":
            kind = Companion.MASK
        if self.controls is not None and self.controls.is_one(path):
            return True
        if kind is not None:
            (self.masks if kind is Companion.MASK else self.conditions).append(name)
        return kind is not None

    def clip_folders(self) -> set[Path]:
        """Folders of frames that are one clip each, where clips are trained: called <name>.frames, or with a caption of their own."""
        if not lengths(self.config):
            return set()
        folders = {f.parent for f in self.files if f.suffix.lower() in EXTENSIONS} - {self.root}
        named = {f for f in folders if f.suffix.lower() == FRAMES or self._has_own_caption(f)}
        return {f for f in named if is_frame_folder(f)}

    def _has_own_caption(self, folder: Path) -> bool:
        """<folder>.txt and the like, or a row of a table above it."""
        if any(folded(Path(f"{folder}{suffix}")) in self._by_name for suffix in (*TEXTS, ".json")):
            return True
        return any(table.names(folder) for place, table in self.tables.items() if place in folder.parents)

    def fits_a_picture(self, file: Path) -> bool:
        """Whether a caption file is named like a picture or a sub-folder of the folder."""
        if file.with_suffix("").is_dir() or file.with_suffix(FRAMES).is_dir():
            return True
        stems = {file.with_suffix(e) for e in EXTENSIONS | FILMS} | {file.with_suffix("")}
        return any(folded(stem) in self._by_name for stem in stems)

    def read(self, path: Path, name: str, of_class: bool) -> Seen:
        """The picture at `path`; what is wrong with it is its error."""
        seen = Seen(name, of_class)
        try:
            seen.picture = self._picture(path, seen)
        except PictureError as error:
            seen.error = error.message
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            seen.error = Message.of("picture.caption_unreadable", reason=reason)
        return seen

    def _picture(self, path: Path, seen: Seen) -> Picture:
        """Raises PictureError, and OSError or ValueError when its caption cannot be read."""
        config = self.config
        repeats, concept = kohya(path, self.root)
        repeats = config.repeats or repeats
        if not 1 <= repeats <= MAX_REPEATS:
            raise PictureError("picture.repeats", repeats=repeats, limit=MAX_REPEATS)
        if path.name.endswith(LATENT):
            return _wired_latent(path, seen.name, repeats, config)
        moves = path.suffix.lower() in FILMS or path.is_dir()
        header = None if moves else read_header(path)
        film = self._film(path, header, seen)
        measured = film or header
        assert measured is not None
        seen.size_px = measured.width_px, measured.height_px
        file, captions = self._captions(path, seen)
        captions = captions or ((Caption(concept),) if concept else ())
        _require_short(captions)
        if not captions and config.captions != "none":
            seen.notes.add("data.no_caption")
        if header is not None:
            seen.profile = header.profile
        seen.speech = self._speech(captions)
        if config.trigger and captions and not all(self._names_trigger(caption.text) for caption in captions):
            seen.notes.add("data.no_trigger")
        edited = tuple(self.edit(c) for c in captions or (Caption(""),))
        _require_short(edited)
        mask = self.companions.mask(path) if "file" in (config.masks, config.input_mask) else None
        controls = self.controls.of(path) if self.controls is not None else ()
        if self.controls is not None and not controls:
            seen.notes.add("data.no_control")
        clips = () if film is None else tuple(clips_of(film, cuts_of(path, film, config), config))
        return Picture(path, seen.name, *seen.size_px, edited, repeats, mask, config, file, controls, film, clips)

    def _film(self, path: Path, header: Header | None, seen: Seen) -> Film | None:
        """What is to be cut into clips; None for a still picture, and for a moving one where pictures alone are trained. Raises PictureError."""
        takes_films = bool(lengths(self.config))
        if header is None and not takes_films:
            raise PictureError("picture.film")
        if header is not None and header.animated and not takes_films:
            seen.notes.add("data.animated")
        if header is not None and not (header.animated and takes_films):
            return None
        film = read_film(path)
        if film.sound:
            seen.notes.add("data.sound")
        if film.rate and self.config.frame_rate > 1.2 * film.rate:
            seen.notes.add("data.slow_films")
        return film

    def _names_trigger(self, text: str) -> bool:
        return bool(has_word(text, self.config.trigger) or PLACEHOLDER.search(text))

    def _speech(self, captions: Sequence[Caption]) -> list[str]:
        """Codes for what captions hold that is written for other programs."""
        understood = {"data.wildcards_off": self.config.wildcards, "data.placeholder": bool(self.config.trigger)}
        patterns = {code: pattern for code, pattern in SPEECH.items() if not understood.get(code)}
        texts = [caption.text for caption in captions]
        return [code for code, pattern in patterns.items() if any(map(pattern.search, texts))]

    def _captions(self, path: Path, seen: Seen) -> tuple[Path | None, tuple[Caption, ...]]:
        """(the caption file that is read, captions); None where they come from elsewhere."""
        source = self.config.captions
        if source == "file name":
            return None, (Caption(re.sub(r"[_\-\s]+", " ", re.sub(r"[\s_\-]*\(?\d+\)?$", "", path.stem)).strip()),)
        for suffix in {"auto": TEXTS, "none": (), "metadata": ()}.get(source, (source,)):
            for file in self._beside(path, suffix):
                text, encoding = read_text(file, self.config.caption_encoding)
                lines = lines_of(text)
                if self.config.caption_lines == "alternatives":
                    _require_few(len(lines))
                captions = captions_of(lines, self.config.caption_lines)
                if encoding not in _UNICODE:
                    seen.encodings.append(file.relative_to(self.root).as_posix())
                if captions:
                    if self.config.caption_lines == "joined" and len(lines) > 1 and not are_tags(lines):
                        seen.notes.add("data.several_lines")
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
        for place in (Path(f"{path}{suffix}"), path.with_suffix(suffix)):
            file = self._by_name.get(str(place)) or self._by_name.get(folded(place))
            if file:
                self.used.add(file)
                files.append(file)
        return files


def _require_few(count: int) -> None:
    """Raises PictureError where there are more captions than anybody chooses from."""
    if count > MAX_CAPTIONS:
        raise PictureError("picture.many_captions", count=count, limit=MAX_CAPTIONS)


def _require_short(captions: Sequence[Caption]) -> None:
    """Raises PictureError for captions that are none."""
    _require_few(len(captions))
    longest = max((len(caption.text) for caption in captions), default=0)
    if longest > MAX_CAPTION_CHARS:
        raise PictureError("picture.caption_long", length=longest, limit=MAX_CAPTION_CHARS)


def _wired_latent(path: Path, name: str, repeats: int, config: DataConfig) -> Picture:
    """A latent that came over a wire; its file says its size in px, and what stands for its text."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            facts = file.metadata() or {}
        width_px, height_px = int(facts["width_px"]), int(facts["height_px"])
        return Picture(path, name, width_px, height_px, (Caption(facts["caption"]),), repeats, None, config)
    except (SafetensorError, KeyError, ValueError) as error:
        raise PictureError("picture.no_latent", reason=error) from error
