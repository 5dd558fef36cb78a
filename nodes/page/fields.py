"""Every setting as a page shows it, from the config's own table: its kind, bounds, choices and sentence, in sections."""

from __future__ import annotations

import dataclasses
import functools
import json
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...lora_core.config import TrainConfig

LOCALES = Path(__file__).resolve().parents[2] / "locales"
# What the tab asks in its first rows, what belongs to other programs, and sets beyond the first one.
ELSEWHERE = {
    "name", "base", "data.folder", "data.trigger", "steps", "memory", "memory_keeps", "samples.prompt", "trackers",
    "data.split", "data.image_column", "switch_every", "auto", "auto_keeps",
}  # fmt: skip
BASE = "base"  # the section of how a base model is opened, where the page asks for one
OF_BASE = ("base_config", "base_vae", "companion", "precision", "storage", "offload", "compile")
IN_LINES = {
    "data.control_path", "adapter.layer_rank", "adapter.layer_lr", "embedding.tokens",
    "slider.target", "slider.positive", "slider.negative", "slider.across", "slider.preserve",
}  # fmt: skip
LINES = 3  # of such a field
FIRST = "training"  # the section of settings that belong to no part
# What preset and model fill in: its value then, and the sentence that says so.
LEFT_OPEN: dict[str, tuple[int | float | str, str]] = {
    "adapter.rank": (0, "Size of the LoRA; 0 takes the preset's."),
    "optimizer.lr": (0.0, "Learning rate; 0 takes the preset's."),
    "data.resolution": (0, "Training resolution in px; 0 takes what the model was made for."),
    "schedule.name": ("auto", "How the learning rate changes during the run; auto takes the preset's."),
}


@dataclasses.dataclass(frozen=True)
class Field:
    """The setting at `path`, such as adapter.rank; `kind` is bool, int, float or str, and `choices` are empty for a free one."""

    path: str
    kind: type
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None

    @property
    def label(self) -> str:
        return self.path.rpartition(".")[2].replace("_", " ")

    @property
    def lines(self) -> int:
        """How many the field shows of a text."""
        return LINES if self.path in IN_LINES else 1

    def taken(self, value: Any) -> Any:
        """What a page's input holds, as the config takes it; None for what was left empty."""
        if value is None or (value == "" and self.kind is not str):
            return None
        return self.kind(value)


@functools.cache
def fields() -> tuple[Field, ...]:
    """All that the tab shows in its sections, in the order of the config."""
    return tuple(_open(field) for field in _fields(TrainConfig, "") if field.path not in ELSEWHERE)


def _open(field: Field) -> Field:
    """The field as the page shows it: one that preset and model fill in says so."""
    if field.path not in LEFT_OPEN:
        return field
    value, sentence = LEFT_OPEN[field.path]
    choices = (str(value), *field.choices) if field.choices else ()
    return dataclasses.replace(field, default=value, help=sentence, choices=choices)


def sections(asks_base: bool) -> Mapping[str, list[Field]]:
    """Section -> its settings; those of no part come first, before them those of the base model where the page `asks_base`."""
    table: dict[str, list[Field]] = {BASE: [], FIRST: []} if asks_base else {FIRST: []}
    for field in fields():
        section = section_of(field)
        if section in table or section != BASE:
            table.setdefault(section, []).append(field)
    return table


def section_of(field: Field) -> str:
    """The section a setting stands in."""
    return BASE if field.path in OF_BASE else field.path.rpartition(".")[0] or FIRST


def _fields(section: Any, prefix: str) -> Iterator[Field]:
    hints = typing.get_type_hints(section)
    for field in dataclasses.fields(section):
        kind, path = hints[field.name], f"{prefix}{field.name}"
        if dataclasses.is_dataclass(kind):
            yield from _fields(kind, f"{path}.")
        elif "help" in field.metadata and kind in (bool, int, float, str):
            metadata = field.metadata
            yield Field(
                path,
                kind,
                field.default,
                metadata["help"],
                tuple(metadata["choices"] or ()),
                metadata["low"],
                metadata["high"],
            )


def changed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `values` (by path, as inputs hold them) that differ from the defaults; what is left out is for preset and model to say."""
    by_path = {field.path: field for field in fields()}
    taken = {path: by_path[path].taken(value) for path, value in values.items() if path in by_path}
    return {path: value for path, value in taken.items() if value is not None and value != by_path[path].default}


@functools.cache
def translated(language: str) -> Mapping[str, str]:
    """English sentence or label -> the same in `language`, of all that nodes and the page say of settings; empty where there is none."""
    try:
        english, other = (_read(lang, "nodeDefs") for lang in ("en", language))
        beside: dict[str, str] = _read(language, "page")  # what no node shows
    except (OSError, ValueError):
        return {}
    return {**dict(_pairs(english, other)), **beside}


def _read(language: str, name: str) -> Any:
    return json.loads((LOCALES / language / f"{name}.json").read_text(encoding="utf-8"))


def _pairs(one: Any, other: Any) -> Iterator[tuple[str, str]]:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in one.keys() & other.keys():
            yield from _pairs(one[key], other[key])
    elif isinstance(one, str) and isinstance(other, str):
        yield one, other
