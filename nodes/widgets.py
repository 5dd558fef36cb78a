"""One table for widgets: a row names a config field, and schema, job and the fields of error messages follow from it.

Default, bounds and tooltip are the config field's own unless a row changes them. The order of rows is the order in which saved workflows hold
their values: new rows go at the end.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from ..lora_core.config import BY_MEMORY, TrainConfig, as_dict, parse
from .host.access.api import io, make_input
from .host.access.paths import file_names_in
from .jobs.settings import over

NO_FILE = "none"
FOREVER = 2**53 - 1  # the largest whole number a page can count to


@dataclasses.dataclass(frozen=True)
class Row:
    """A widget for the config field at `path`, such as adapter.rank, called `name`.

    `automatic`: at its default the widget leaves the value to preset and model. `moved`: it stands on a settings node now; it stays for older
    workflows, whose values lie by position, and is not shown unless one of them uses it. `changes` override what the field says of itself.
    """

    path: str
    name: str
    advanced: bool = False
    automatic: bool = False
    moved: bool = False
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def default(self) -> Any:
        return self.changes.get("default", field_at(self.path)[1].default)

    def input(self) -> Any:
        """The input of a node's schema."""
        kind, field = field_at(self.path)
        keywords: dict[str, Any] = {
            "default": field.default,
            "tooltip": field.metadata["help"],
            "advanced": self.advanced or self.moved,
            "zero": field.metadata["zero"],
        }
        if self.moved:
            keywords["extra_dict"] = {"hidden": True}
        if field.metadata["choices"]:
            keywords["options"] = list(field.metadata["choices"])
            return make_input(io.Combo, self.name, **{**keywords, **self.changes})
        if kind in (int, float):
            keywords |= {"min": field.metadata["low"], "max": field.metadata["high"]}
        if kind is int:
            keywords["max"] = min(int(field.metadata["high"]), FOREVER)
            return make_input(io.Int, self.name, **{**keywords, **self.changes})
        if kind is float:
            return make_input(io.Float, self.name, **{"step": 0.01, **keywords, **self.changes})
        return make_input(io.Boolean if kind is bool else io.String, self.name, **{**keywords, **self.changes})


@dataclasses.dataclass(frozen=True)
class LoraRow(Row):
    """A widget for a config field that names a LoRA: one of those the host lists, or none."""

    def input(self) -> Any:
        options, tooltip = [NO_FILE, *file_names_in("loras")], field_at(self.path)[1].metadata["help"]
        keywords = {"options": options, "default": NO_FILE, "tooltip": tooltip, "advanced": self.advanced}
        return make_input(io.Combo, self.name, **{**keywords, **self.changes})


def row(
    path: str, name: str = "", advanced: bool = False, automatic: bool = False, moved: bool = False, **changes: Any
) -> Row:
    """The row of a config field; its widget is called like the field unless `name` says otherwise."""
    return Row(path, name or path.rpartition(".")[2], advanced, automatic, moved, changes)


def widget(path: str, name: str = "", advanced: bool = False, **changes: Any) -> Any:
    """The input for a config field on a node that makes no job of its widgets."""
    return row(path, name, advanced, **changes).input()


def field_at(path: str) -> tuple[type, dataclasses.Field]:
    """(type, field) of a config path such as adapter.rank."""
    section: Any = TrainConfig
    *sections, leaf = path.split(".")
    for name in sections:
        section = typing.get_type_hints(section)[name]
    field = next(f for f in dataclasses.fields(section) if f.name == leaf)
    return typing.get_type_hints(section)[leaf], field


def inputs(table: Iterable[Any]) -> list[Any]:
    """The inputs of a schema, of a table of rows and of inputs that stand for no config field."""
    return [entry.input() if isinstance(entry, Row) else entry for entry in table]


def rows(table: Iterable[Any]) -> list[Row]:
    return [entry for entry in table if isinstance(entry, Row)]


def settings(
    table: Iterable[Any], widgets: Mapping[str, Any], automatic: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Config path -> value, of a node's widgets. What a row leaves to preset and model comes from `automatic`, by config path.

    A widget that an older workflow does not have keeps the field's own default.
    """
    values: dict[str, Any] = {}
    for entry in rows(table):
        if entry.name not in widgets:
            continue
        value = widgets[entry.name]
        if isinstance(entry, LoraRow) and value == NO_FILE:
            value = ""
        left_open = entry.automatic and value == entry.default
        values[entry.path] = (automatic or {}).get(entry.path, value) if left_open else value
    return values


def paths_set(table: Iterable[Any], widgets: Mapping[str, Any], wired: Mapping[str, Any]) -> set[str]:
    """Config paths that a person has set: widgets that are not at their default, and everything wired from settings nodes."""
    return {row.path for row in rows(table) if widgets.get(row.name, row.default) != row.default} | {*wired}


def job(*layers: Mapping[str, Any], **fixed: Any) -> TrainConfig:
    """The checked config of `fixed` fields with each layer (config path -> value) over the one before. Raises LoomError naming the field.

    The first layer are a node's own widgets, which at their default leave to the choice of memory what that decides.
    """
    usual = as_dict(TrainConfig(base="ComfyUI", **fixed))
    values: Mapping[str, Any] = usual
    for number, layer in enumerate(layers):
        names = [name for name in BY_MEMORY if name in layer and (number or layer[name] != usual[name])]
        values = over(values, {**layer, "memory_keeps": ", ".join([values["memory_keeps"], *names]).strip(", ")})
    return parse(dict(values))


def widget_names(tables: Iterable[Iterable[Any]]) -> dict[str, tuple[str, ...]]:
    """Config path -> names its widget has on nodes of ours, for the page to find the field an error is about."""
    names: dict[str, dict[str, None]] = {}
    for table in tables:
        for entry in rows(table):
            names.setdefault(entry.path, {})[entry.name] = None
    return {path: tuple(widgets) for path, widgets in names.items()}
