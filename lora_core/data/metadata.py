"""Captions that come in tables: metadata.jsonl, .csv, .parquet or .json for a folder, or a .json beside each picture (booru exports)."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ..messages.errors import Fault, LoomError, reason_of
from ..messages.figures import figure
from ..pictures.reading import EXTENSIONS
from .captions import Caption, decoded, tidy

TABLES = (
    "metadata.jsonl",
    "metadata.csv",
    "metadata.parquet",
    "metadata.json",
    "captions.json",
    "captions.jsonl",
    "captions.csv",
    "meta_lat.json",
    "meta_clean.json",
    "meta_cap.json",
    "dataset.jsonl",
    "data.jsonl",
)
ROWS = ".jsonl"  # of any other name too, as musubi-tuner's and diffusion-pipe's users call theirs, where a folder has only one
COLUMNS = ("text", "caption", "captions", "prompt", "tags", "tag_string", "description", "edit_prompt", "instruction")
FILE_COLUMNS = (
    "file_name", "file", "image", "path", "filename", "image_path", "edited_image_file_name", "edited_image",
    "target_image", "video", "video_path",
)  # fmt: skip
_BESIDE = re.compile(r"control|condition|mask|reference|_file_name$|_path(_\d+)?$|_image$", re.IGNORECASE)
_CONTROL = re.compile(
    r"control|(^|_)cond|reference|(source|input|original|before)_?(image|img|picture|file)|^(source|input|original|before)$",
    re.IGNORECASE,
)
_TARGET = re.compile(r"edit|target|output|after|result", re.IGNORECASE)
MAX_BYTES = 512_000_000
MAX_SIDECAR_BYTES = 4_000_000


@dataclasses.dataclass
class Table:
    """The rows of one metadata file, by picture: path relative to the file's folder with forward slashes, or that path without its suffix.

    `beside`: folded paths of pictures that rows name beside their own, such as control pictures. `by_picture`: the names of its control pictures.
    """

    path: Path
    rows: dict[str, tuple[Caption, ...]]
    column: str
    used: set[str] = dataclasses.field(default_factory=set)
    beside: frozenset[str] = frozenset()
    by_picture: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def names(self, picture: Path) -> bool:
        """Whether a row is for the picture at `picture`."""
        return self._key(picture) is not None

    def captions(self, picture: Path) -> tuple[Caption, ...] | None:
        """Of the picture at `picture`; None when no row names it."""
        key = self._key(picture)
        if key is None:
            return None
        self.used.add(key)
        return self.rows[key]

    def controls(self, picture: Path) -> tuple[str, ...]:
        """The control pictures that the row of the picture at `picture` names, as it names them, with forward slashes."""
        key = self._key(picture)
        return () if key is None else self.by_picture.get(key, ())

    def _key(self, picture: Path) -> str | None:
        inside = PurePosixPath(picture.relative_to(self.path.parent).as_posix())
        return next((k for k in map(_folded, (str(inside), str(inside.with_suffix("")))) if k in self.rows), None)

    def unused(self) -> list[str]:
        return [key for key in self.rows if key not in self.used]


def tables_among(files: Iterable[Path]) -> dict[Path, Path]:
    """Folder -> its metadata file: the first kind in TABLES where it has several, else its only file of rows."""
    files = list(files)
    named: dict[Path, Path] = {}
    rows: dict[Path, list[Path]] = {}
    for file in sorted((f for f in files if f.name in TABLES), key=lambda f: TABLES.index(f.name)):
        named.setdefault(file.parent, file)
    for file in files:
        if file.suffix.lower() == ROWS and file.parent not in named:
            rows.setdefault(file.parent, []).append(file)
    return named | {folder: several[0] for folder, several in rows.items() if len(several) == 1}


def read_table(path: Path, column: str = "") -> Table:
    """The captions in a metadata file, from `column` or the first one of COLUMNS. Raises LoomError naming the file, the row or the column."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise LoomError(
                "metadata.large", file=path.name, size=figure(path.stat().st_size / 1e6), limit=MAX_BYTES // 10**6
            )
        rows = list(_records(path))
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise LoomError("metadata.unreadable", file=path.name, reason=reason_of(error, 160)) from error
    if not rows:
        return Table(path, {}, "")
    columns = list(dict.fromkeys(key for _, row in rows for key in row))
    name = column or next((c for c in COLUMNS if c in columns), "")
    if name not in columns:
        first = [*map(repr, columns[:12])]
        if not column:
            raise LoomError("metadata.no_captions", field="data.caption_column", file=path.name, columns=first)
        raise LoomError(
            "metadata.no_column", field="data.caption_column", file=path.name, column=repr(column), columns=first
        )
    captions = {_folded(normal(key, path.parent)): as_captions(row.get(name), name) for key, row in rows}
    by_picture = {_folded(normal(key, path.parent)): tuple(_controls(row)) for key, row in rows}
    beside = frozenset(_beside(rows, path.parent))
    return Table(
        path, captions, name, beside=beside, by_picture={key: names for key, names in by_picture.items() if names}
    )


def _beside(rows: Iterable[tuple[str, Mapping[str, Any]]], folder: Path) -> Iterable[str]:
    """Folded paths of the pictures that rows name in columns such as control_path, conditioning_image or mask_file_name."""
    for _, row in rows:
        for column, value in row.items():
            if _BESIDE.search(column) or _CONTROL.search(column):
                yield from (_folded(str(folder / normal(name, folder))) for name in _pictures_in(value))


def _controls(row: Mapping[str, Any]) -> Iterable[str]:
    """The control pictures of a row, those of columns with a number behind their name in its order."""
    for column in control_columns(list(row)):
        yield from (name.replace("\\", "/") for name in _pictures_in(row[column]))


def control_columns(columns: Sequence[str]) -> list[str]:
    """Those that hold control pictures by their names, in the order that their numbers say."""
    return sorted((c for c in columns if _CONTROL.search(c) and "mask" not in c.lower()), key=_number_of)


def target_column(columns: Sequence[str]) -> str | None:
    """The one of several columns of pictures that is trained: what is edited, not what it is made from; None where the names do not tell."""
    beside = {*control_columns(columns), *(c for c in columns if "mask" in c.lower())}
    targets = [c for c in columns if c not in beside] or list(columns)
    named = [c for c in targets if _TARGET.search(c)] or [c for c in targets if c in FILE_COLUMNS] or targets
    return named[0] if len(named) == 1 else None


def _number_of(column: str) -> int:
    number = re.search(r"(\d{1,9})$", column)
    return int(number[1]) if number else -1


def _pictures_in(value: Any) -> list[str]:
    """The names of picture files in a cell: one, or a list of them."""
    names = value if isinstance(value, list) else [value]
    return [n for n in names if isinstance(n, str) and PurePosixPath(n.replace("\\", "/")).suffix.lower() in EXTENSIONS]


def read_sidecar(path: Path, column: str = "") -> tuple[Caption, ...]:
    """The captions in the .json beside a picture, as booru downloaders write it. Raises ValueError."""
    if path.stat().st_size > MAX_SIDECAR_BYTES:
        raise Fault("caption.sidecar_large", limit=MAX_SIDECAR_BYTES // 10**6)
    try:
        value = json.loads(decoded(path.read_bytes())[0])
    except RecursionError as error:
        raise Fault("caption.sidecar_nested") from error
    if not isinstance(value, dict):
        return as_captions(value, column or "caption")
    name = column or next((c for c in COLUMNS if value.get(c)), "")
    return as_captions(value.get(name), name)


def as_captions(value: Any, column: str) -> tuple[Caption, ...]:
    """A cell as captions: a text, a list of texts or of {"text", "weight"}, or for columns of tags one text with commas."""
    if "tag" in column:
        text = ", ".join(tag for tag in _tags(value) if tag)
        return (Caption(text),) if text else ()
    if isinstance(value, str):
        return (Caption(tidy(value)),) if tidy(value) else ()
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        return ()
    out = []
    for item in value:
        if isinstance(item, str) and tidy(item):
            out.append(Caption(tidy(item)))
        elif isinstance(item, dict) and isinstance(item.get("text", item.get("caption")), str):
            weight = item.get("weight", 1.0)
            good = isinstance(weight, int | float) and not isinstance(weight, bool) and 0 <= weight < 1e9
            out.append(Caption(tidy(str(item.get("text", item.get("caption")))), float(weight) if good else 1.0))
    return tuple(c for c in out if c.text)


def _tags(value: Any) -> Iterable[str]:
    """Tags from a list, from groups of lists (e621), from "a, b" or from "long_hair 1girl" (boorus write spaces as _)."""
    if isinstance(value, dict):
        return [tag for group in value.values() for tag in _tags(group)]
    if isinstance(value, list):
        return [_spaced(item) for item in value if isinstance(item, str)]
    if not isinstance(value, str):
        return []
    return [tidy(tag) for tag in value.split(",")] if "," in value else [_spaced(tag) for tag in value.split()]


def _spaced(tag: str) -> str:
    """long_hair -> long hair; faces such as ^_^ stay."""
    return tidy(tag.replace("_", " ")) if sum(c.isalnum() for c in tag) > 2 else tidy(tag)


def _records(path: Path) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """(file, row) of every row that names a file."""
    if path.suffix == ".parquet":
        rows: Any = _parquet(path)
    else:
        text, _ = decoded(path.read_bytes())
        if path.suffix == ".csv":
            rows = list(csv.DictReader(io.StringIO(text, newline="")))
        elif path.suffix.lower() == ROWS:
            rows = [_row(line, n) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
        else:
            rows = json.loads(text)
    if isinstance(rows, dict):  # Kohya's meta files: picture -> facts; also picture -> caption
        return [(key, row if isinstance(row, dict) else {"caption": row}) for key, row in rows.items()]
    if not isinstance(rows, list):
        raise Fault("metadata.no_rows")
    out = []
    for row in rows:
        file = (
            next((row[c] for c in FILE_COLUMNS if isinstance(row.get(c), str)), None) if isinstance(row, dict) else None
        )
        if file is None:
            raise Fault("metadata.no_file_name", row=str(row)[:80])
        out.append((file, {k: v for k, v in row.items() if k not in FILE_COLUMNS and k is not None}))
    return out


def _row(line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise Fault("metadata.line", number=number, error=error) from error


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise LoomError("metadata.needs_pyarrow", file=path.name) from error
    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(str(error)) from error


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def normal(name: str, folder: Path) -> str:
    """A row's file as it is looked up: forward slashes, relative; of a path elsewhere only the file's own name."""
    name = name.replace("\\", "/").removeprefix("./")
    if name.startswith("/") or (len(name) > 1 and name[1] == ":"):
        base = folder.as_posix().rstrip("/") + "/"
        return name.removeprefix(base) if name.startswith(base) else name.rsplit("/", 1)[-1]
    return name
