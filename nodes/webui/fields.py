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
    "name", "base", "base_config", "companion", "data.folder", "data.trigger", "steps", "checkpointing", "samples.prompt", "precision", "storage", "offload",
    "compile", "trackers", "data.split", "data.image_column", "adapter.start_from", "auto_fit",
}  # fmt: skip
FIRST = "training"  # the section of settings that belong to no part


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

    def taken(self, value: Any) -> Any:
        """What a page's input holds, as the config takes it; None for what was left empty."""
        if value is None or (value == "" and self.kind is not str):
            return None
        return self.kind(value)


@functools.cache
def fields() -> tuple[Field, ...]:
    """All that the tab shows in its sections, in the order of the config."""
    return tuple(field for field in _fields(TrainConfig, "") if field.path not in ELSEWHERE)


def sections() -> Mapping[str, list[Field]]:
    """Section -> its settings; those of no part come first."""
    table: dict[str, list[Field]] = {FIRST: []}
    for field in fields():
        table.setdefault(field.path.rpartition(".")[0] or FIRST, []).append(field)
    return table


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
        tables = [
            json.loads((LOCALES / lang / "nodeDefs.json").read_text(encoding="utf-8")) for lang in ("en", language)
        ]
    except (OSError, ValueError):
        return {}
    return dict(_pairs(*tables))


def _pairs(one: Any, other: Any) -> Iterator[tuple[str, str]]:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in one.keys() & other.keys():
            yield from _pairs(one[key], other[key])
    elif isinstance(one, str) and isinstance(other, str):
        yield one, other
