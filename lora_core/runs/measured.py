"""What a run folder says of the pictures and concepts that were measured, with no trust in what lies there."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from .bounded import as_number, as_step, as_text, read, read_json

PICTURES, CONCEPTS, THUMBNAILS = "pictures.json", "concepts.json", "thumbnails.jpg"
THUMBNAIL_PX, COLUMNS = 96, 16  # side of a cell of the thumbnails, cells in a row
MAX_BYTES, MAX_PICTURES_BYTES = 64 << 20, 64 << 20


def measured(folder: Path) -> dict[str, Any]:
    """`pictures` and `concepts` as a page takes them, None for what was not measured or is damaged."""
    return {"pictures": _pictures(folder), "concepts": _concepts(folder), "cell_px": THUMBNAIL_PX, "columns": COLUMNS}


def thumbnails(folder: Path) -> bytes:
    """The measured pictures in small, in the order of `pictures`, as JPEG; empty where there are none."""
    data = read(folder / THUMBNAILS, MAX_PICTURES_BYTES)
    return data if data[:3] == b"\xff\xd8\xff" else b""


def _pictures(folder: Path) -> dict[str, Any] | None:
    value = read_json(folder / PICTURES, MAX_BYTES)
    if not isinstance(value, dict) or not isinstance(value.get("pictures"), list):
        return None
    pictures = [
        {"name": as_text(one.get("name")), "held_out": one.get("held_out") is True}
        for one in value["pictures"]
        if isinstance(one, dict)
    ]
    rows = [(step, line) for step, row in _rows(value) if (line := _numbers(row.get("losses"), len(pictures)))]
    marks = {kind: _places(value.get(kind), len(pictures)) for kind in ("hard", "memorised")}
    return {"pictures": pictures, "rows": [{"step": s, "losses": line} for s, line in rows], **marks} if rows else None


def _concepts(folder: Path) -> dict[str, Any] | None:
    value = read_json(folder / CONCEPTS, MAX_BYTES)
    if not isinstance(value, dict) or not isinstance(value.get("words"), list):
        return None
    words = [as_text(word) for word in value["words"]]
    held = value["held_out"] if isinstance(value.get("held_out"), list) else []
    rows = []
    for step, row in _rows(value):
        lines = row.get("losses")
        table = [_numbers(line, len(words) + 1) for line in lines] if isinstance(lines, list) else []
        if len(table) == len(words) and all(table):
            rows.append({"step": step, "losses": table, "bleeds": _pairs(row.get("bleeds"), words)})
    return {"words": words, "held_out": [one is True for one in held], "rows": rows} if rows else None


def _rows(value: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    rows = value.get("rows")
    numbered = (
        [(as_step(row.get("step")), row) for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    )
    return [(step, row) for step, row in numbered if step is not None]


def _numbers(values: Any, count: int) -> list[float]:
    """So many finite numbers; none where there are others."""
    numbers = [as_number(value) for value in values] if isinstance(values, list) else []
    good = [number for number in numbers if number is not None and math.isfinite(number)]
    return good if len(good) == len(numbers) == count else []


def _places(values: Any, count: int) -> list[int]:
    places = [as_step(value) for value in values] if isinstance(values, list) else []
    return [place for place in places if place is not None and place < count]


def _pairs(values: Any, words: list[str]) -> list[list[str]]:
    pairs = values if isinstance(values, list) else []
    return [list(pair) for pair in pairs if _is_pair(pair, words)]


def _is_pair(value: Any, words: list[str]) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(word in words for word in value)
