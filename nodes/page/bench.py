"""The tools for files on the page: the same functions as in the terminal, on what the host lists, with results beside it and never over a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...convert.files.jobs import free_path
from ...convert.merge import quiet
from ...lora_core.messages.errors import LoomError
from ...lora_core.messages.message import Message
from ..jobs.options import TOOLS, Files, Option, Tool
from ..jobs.publishing import Shelf
from ..jobs.tools import ACTS, EMBEDDING, FOLDER, Place, Weighted, looked_at
from .desk import Desk
from .library import Library

NUMBERS = (int, float)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a tool says, line by line, and the files it wrote."""

    lines: Sequence[Message | str]
    files: Sequence[Path] = ()


def options_in(tool: Tool, values: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a tool as a page or a program gives them; what is left out has its default. Raises LoomError."""
    return {option.name: _value_of(option, values.get(option.name)) for option in tool.options}


def _value_of(option: Option, value: Any) -> Any:
    if value is None or (value == "" and option.kind is not str):
        return option.starts if option.required else option.default
    if option.many:
        return [str(one) for one in (value.split("\n") if isinstance(value, str) else value) if str(one).strip()]
    try:
        taken = option.kind(value)
    except (TypeError, ValueError) as error:
        raise LoomError("tool.value", field=option.name, value=repr(value), kind=option.kind.__name__) from error
    if option.choices and taken not in option.choices:
        raise LoomError("setting.choice", field=option.name, value=repr(value), allowed=tuple(option.choices))
    if option.kind in NUMBERS and not 0 <= taken <= 1e6:
        raise LoomError("tool.value", field=option.name, value=repr(value), kind=option.kind.__name__)
    return taken


def worked(desk: Desk, name: str, values: Mapping[str, Any]) -> Outcome:
    """Carries a tool out on what `values` names, and has the host read its lists anew. Raises LoomError and FormatError."""
    tool, library = TOOLS[name], Library(desk.host)
    options = options_in(tool, values)
    if "embed" in options:
        options["embed"] = [str(library.file(each, field="embed")) for each in options["embed"]]
    chosen = [_chosen(library, files, values.get(files.name)) for files in tool.files]
    if name == "inspect":
        return _inspected([file for group in chosen for file, _ in group], options["family"])
    everything = [file for group in chosen for file in group]
    groups = [[file] for file in everything] if tool.each else [everything]
    written = []
    for group in groups:
        place = _place(desk.host.shelf(), name, group, options)
        written += ACTS[name](group, place, options, quiet)
    desk.refresh_lists()
    lines = [line for one in written for line in (Message.of("tool.written", file=one.path), *one.notes)]
    return Outcome(lines, [one.path for one in written])


def _chosen(library: Library, files: Files, value: Any) -> list[Weighted]:
    """The files that were named, each with its factor. Raises LoomError where there is none."""
    names = value.split("\n") if isinstance(value, str) else list(value or ())
    names = [str(name).strip() for name in names if str(name).strip()]
    if not names:
        raise LoomError("tool.no_file", field=files.name)
    return [_weighted(library, files, name) for name in (names if files.many else names[:1])]


def _weighted(library: Library, files: Files, name: str) -> Weighted:
    stem, equals, number = name.rpartition("=")
    if files.weighted and equals:
        try:
            return library.file(stem, files.role, files.name), float(number)
        except ValueError:
            pass  # a name that ends so
    return library.file(name, files.role, files.name), 1.0


def _inspected(files: Sequence[Path], family: str) -> Outcome:
    return Outcome([line for file in files for line in (file.name, *looked_at(file, family)[0])])


def _place(shelf: Shelf, name: str, files: Sequence[Weighted], options: Mapping[str, Any]) -> Place:
    """Where a tool's result goes: among the host's LoRAs and embeddings, a checkpoint beside its own."""
    words = {"convert": "{to}", "resize": "rank{rank}"}
    word = words.get(name, name).format_map(options)
    source = files[1][0] if name == "extract" else files[0][0]
    stem = f"{source.name if source.is_dir() else source.stem}_{word}"

    def place(kind: str) -> Path:
        folder = shelf.embeddings if kind == EMBEDDING else shelf.loras
        return free_path(source.parent if name == "bake" else folder, stem, "" if kind == FOLDER else ".safetensors")

    return place
