"""What the door registers with the host, again after each Reload UI."""

from __future__ import annotations

from typing import Any


def register() -> None:
    """Called by the door each time the host loads its scripts."""
    from modules import script_callbacks

    script_callbacks.on_ui_tabs(_tabs, name="lora_loom")
    script_callbacks.on_app_started(_started, name="lora_loom")


def _tabs() -> list[tuple[Any, str, str]]:
    from .tab import tabs

    return tabs()


def _started(demo: Any, app: Any) -> None:
    from .routes import add_routes

    add_routes(app)
