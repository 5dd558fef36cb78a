"""What the door registers with the host, again after each Reload UI."""

from __future__ import annotations

from typing import Any


def register() -> None:
    """Called by the door each time the host loads its scripts."""
    from modules import script_callbacks

    from .turns import GATE

    script_callbacks.on_ui_tabs(_tabs, name="lora_loom")
    script_callbacks.on_before_reload(GATE.shut_now, name="lora_loom")
    script_callbacks.on_app_started(_started, name="lora_loom")


def _tabs() -> list[tuple[Any, str, str]]:
    from .tab import tabs

    return tabs()


def _started(demo: Any, app: Any) -> None:
    """`demo`: the host's page, None where it serves its API alone."""
    from .engine.host import data_root
    from .routes import add_routes
    from .turns import GATE

    if demo is not None:  # which may serve whatever lies below the host's own folder
        demo.blocked_paths = [*(getattr(demo, "blocked_paths", None) or ()), str(data_root().resolve())]
    add_routes(app)
    GATE.open_again()
