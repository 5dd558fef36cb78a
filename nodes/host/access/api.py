"""The ComfyUI API we build nodes on, through a shim: keywords an older host does not know are dropped, so its nodes still load."""

from __future__ import annotations

import dataclasses
import inspect
import math
from typing import Any

from comfy_api.latest import ComfyExtension, io, ui

__all__ = ["ComfyExtension", "Widget", "host_version", "io", "make_input", "make_output", "schema", "ui", "widgets_of"]


def host_version() -> str:
    """The host by name, with its version where it tells."""
    try:
        from comfyui_version import __version__
    except ImportError:
        return "ComfyUI"
    return f"ComfyUI {__version__}"


def _known(call: Any, keywords: dict[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(call).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return keywords
    return {k: v for k, v in keywords.items() if k in parameters}


def schema(**keywords: Any) -> io.Schema:
    """An io.Schema of what this host understands."""
    return io.Schema(**_known(io.Schema, keywords))


def make_input(kind: Any, name: str, **keywords: Any) -> Any:
    """`kind.Input(name, ...)` of what this host understands."""
    return kind.Input(name, **_known(kind.Input.__init__, keywords))


def make_output(kind: Any, name: str, **keywords: Any) -> Any:
    return kind.Output(**_known(kind.Output.__init__, {"display_name": name, **keywords}))


@dataclasses.dataclass(frozen=True)
class Widget:
    """What a node says of one of its widgets. `kind`: the host's name of its type. `listed`: its value comes as a list, from a node that takes lists."""

    name: str
    kind: str
    low: float = -math.inf
    high: float = math.inf
    options: tuple[str, ...] = ()
    listed: bool = False


WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


def widgets_of(node: Any) -> list[Widget]:
    """The widgets of a node class as they are now: the choices of files follow the folders. Inputs that are wires alone are left out."""
    described = node.define_schema()
    listed = bool(getattr(described, "is_input_list", False))
    out = []
    for entry in described.inputs:
        kind = entry.get_io_type()
        if kind not in WIDGET_TYPES or getattr(entry, "force_input", None):
            continue
        low, high = getattr(entry, "min", None), getattr(entry, "max", None)
        out.append(
            Widget(
                entry.id,
                kind,
                -math.inf if low is None else low,
                math.inf if high is None else high,
                tuple(getattr(entry, "options", None) or ()),
                listed,
            )
        )
    return out
