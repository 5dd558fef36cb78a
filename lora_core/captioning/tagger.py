"""Taggers of the WD14 kind: a network as ONNX, and a table that names each of its answers. Nothing of the file is run but its operators."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..compat import needed
from ..messages.errors import LoomError, reason_of

TABLE = "selected_tags.csv"
GENERAL, CHARACTER = "0", "4"  # categories of the table; 9 are ratings, which are no words for a caption
GENERAL_BAR, CHARACTER_BAR = 0.35, 0.85  # shares from which a tag counts, as the makers of these taggers use them
MAX_TAGS = 200_000
MAX_TABLE_BYTES = 50_000_000


@dataclasses.dataclass(frozen=True)
class Tag:
    name: str
    category: str


def table_of(file: Path) -> Path | None:
    """The table of an ONNX file: of the same name, or the one of its folder."""
    beside = [file.with_suffix(".csv"), file.parent / TABLE]
    return next((table for table in beside if table.is_file()), None)


def read_table(file: Path) -> list[Tag]:
    """The tags in their order, written as captions write them. Raises LoomError."""
    try:
        if file.stat().st_size > MAX_TABLE_BYTES:
            raise LoomError("captioning.table_large", file=file.name, limit=MAX_TABLE_BYTES // 10**6)
        with file.open(encoding="utf-8-sig", newline="") as lines:
            rows = csv.DictReader(lines)
            tags = [Tag(spoken(row["name"]), row["category"].strip()) for row in rows]
    except (OSError, ValueError, csv.Error, KeyError, TypeError, AttributeError) as error:
        raise LoomError("captioning.no_table", file=file.name, reason=reason_of(error)) from error
    if not 0 < len(tags) <= MAX_TAGS:
        raise LoomError("captioning.table_rows", file=file.name, rows=len(tags), limit=MAX_TAGS)
    return tags


def spoken(name: str) -> str:
    """long_hair -> long hair; faces made of signs, as ^_^, stay as they are."""
    return name.replace("_", " ").strip() if sum(letter.isalnum() for letter in name) > 2 else name.strip()


class Tagger:
    """Fulfils base.Captioner. `character`: whether names of characters are among its tags."""

    writes_tags = True

    def __init__(self, file: Path, bar: float = GENERAL_BAR, character: bool = True):
        """Opens `file` and its table. Raises LoomError: without the package, for what is no tagger, for a table of another one."""
        table = table_of(file)
        if table is None:
            raise LoomError("captioning.table_missing", file=file.name, table=TABLE)
        self._tags, self._bar, self._character = read_table(table), bar, character
        runtime = needed("onnxruntime")
        preferred = ("CUDAExecutionProvider", "CPUExecutionProvider")
        providers = [name for name in preferred if name in runtime.get_available_providers()]
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        try:
            self._session: Any = runtime.InferenceSession(str(file), options, providers=providers)
        except Exception as error:  # of the runtime's own kinds, which differ between versions
            raise LoomError("captioning.no_model", file=file.name, reason=reason_of(error)) from error
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        shape, answers = list(inputs[0].shape), outputs[0].shape[-1] if outputs[0].shape else 0
        if (
            len(inputs) != 1
            or len(shape) != 4
            or shape[3] != 3
            or not isinstance(shape[1], int)
            or shape[1] != shape[2]
        ):
            raise LoomError("captioning.other_input", file=file.name, shape=" x ".join(map(str, shape)))
        if answers != len(self._tags):
            raise LoomError(
                "captioning.other_table", file=file.name, answers=str(answers), table=table.name, rows=len(self._tags)
            )
        self._input, self._output, self._side = inputs[0].name, outputs[0].name, int(shape[1])

    def caption(self, image: Image.Image, instruction: str) -> str:
        """Tags between commas, the surest first; characters before the rest."""
        shares = self.shares(image)
        order = np.argsort(-shares, kind="stable")
        named = [n for n in order if self._tags[n].category == CHARACTER and shares[n] >= CHARACTER_BAR]
        general = [n for n in order if self._tags[n].category == GENERAL and shares[n] >= self._bar]
        return ", ".join(self._tags[n].name for n in [*(named if self._character else []), *general])

    def shares(self, image: Image.Image) -> np.ndarray:
        """How sure the network is of each tag of its table, in [0, 1], float32 of shape (tags,)."""
        batch = padded(image, self._side)[None]
        answer = np.asarray(self._session.run([self._output], {self._input: batch})[0], np.float32).reshape(-1)
        if not np.isfinite(answer).all():
            raise LoomError("captioning.not_finite")
        inside = answer.min() >= 0 and answer.max() <= 1
        return answer if inside else 1 / (1 + np.exp(-np.clip(answer, -60, 60)))


def padded(image: Image.Image, side_px: int) -> np.ndarray:
    """The whole picture on white, square: float32 of shape (side, side, 3), blue first, 0 to 255, as these networks were trained."""
    square = Image.new("RGB", (max(image.size),) * 2, "white")
    square.paste(image, ((square.width - image.width) // 2, (square.height - image.height) // 2))
    small = square.resize((side_px, side_px), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(small, np.float32)[:, :, ::-1])
