"""The ComfyUI API we build nodes on, through a shim: keywords an older host does not know are dropped, so its nodes still load."""

from __future__ import annotations

import inspect
from typing import Any

from comfy_api.latest import ComfyExtension, io, ui

__all__ = ["ComfyExtension", "host_version", "io", "make_input", "make_output", "schema", "ui"]


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
