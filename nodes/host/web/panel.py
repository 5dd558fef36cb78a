"""ComfyUI's side of the panel in a node: events through its server, what a node is told of itself, and how its `execute` ends."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import comfy.model_management
import psutil
import torch

from ....lora_core.messages.errors import message_of
from ...jobs.panel import Panel, PanelHost, Panels
from ..access.paths import runs_root
from .live import Cancelled
from .routes import server

EVENT = "lora_loom.panel"
WAITING_EVENTS = 32  # of the server, above which ours are left out


def _send(event: dict[str, Any]) -> None:
    host = server()
    if host is not None and host.messages.qsize() < WAITING_EVENTS:
        host.send_sync(EVENT, event)


def memory_used() -> dict[str, Any] | None:
    """What this process holds of the device it trains on, in bytes; None where nobody can say."""
    device = comfy.model_management.get_torch_device()
    try:
        if device.type == "cuda":
            return {
                "of": "GPU",
                "used": torch.cuda.memory_reserved(device),
                "total": torch.cuda.get_device_properties(device).total_memory,
            }
        return {"of": "RAM", "used": psutil.Process().memory_info().rss, "total": psutil.virtual_memory().total}
    except (RuntimeError, OSError, psutil.Error):  # a figure must not end a run
        return None


COMFYUI = PanelHost(runs_root, _send, memory_used)
PANELS = Panels(COMFYUI)


def panel_of(node: str | None) -> Panel | None:
    """The panel of the node that runs now."""
    return PANELS.running(str(node))


def workflow_of(hidden: Any) -> dict[str, Any] | None:
    """The graph a node was queued from, as the page sends it along; None where it was queued without one."""
    info = hidden.extra_pnginfo if isinstance(hidden.extra_pnginfo, dict) else {}
    return workflow if isinstance(workflow := info.get("workflow"), dict) else None


def begin(hidden: Any) -> Panel:
    """A new panel for the node that starts now, with the values of its widgets as it was queued."""
    node = str(hidden.unique_id)
    mine = hidden.prompt.get(node, {}) if isinstance(hidden.prompt, dict) else {}
    inputs = {
        key: value for key, value in mine.get("inputs", {}).items() if isinstance(value, str | int | float | bool)
    }
    return PANELS.begin(node, str((workflow_of(hidden) or {}).get("id") or ""), mine.get("class_type", ""), inputs)


def on_panel(execute: Callable[..., Any]) -> Callable[..., Any]:
    """Shows in the node's panel what its `execute` does, and how it ends."""

    @functools.wraps(execute)
    def watched(cls: Any, *args: Any, **kwargs: Any) -> Any:
        panel = begin(cls.hidden)
        try:
            out = execute(cls, *args, **kwargs)
        except Cancelled:
            panel.changed(status="paused" if panel.outcome == "paused" else "cancelled", doing={})
            raise
        except BaseException as error:
            panel.changed(status="failed", doing={}, error=message_of(error).as_json())
            raise
        panel.changed(status="stopped" if panel.outcome == "stopped" else "finished", doing={})
        return out

    return watched
