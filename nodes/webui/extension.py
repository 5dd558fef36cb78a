"""What the door registers with the host, again after each Reload UI."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def register() -> None:
    """Called by the door each time the host loads its scripts."""
    from modules import script_callbacks

    from .turns import GATE

    _call_at(script_callbacks.on_ui_tabs, _tabs)
    _call_at(script_callbacks.on_before_reload, GATE.shut_now)
    _call_at(script_callbacks.on_app_started, _started)


def _call_at(moment: Callable[..., None], callback: Callable[..., Any]) -> None:
    """By our name where the host has names for callbacks: older forks, such as Forge classic, have none."""
    named = "name" in inspect.signature(moment).parameters
    moment(callback, **({"name": "lora_loom"} if named else {}))


def _tabs() -> list[tuple[Any, str, str]]:
    from ..page.tab import ELEMENT, TITLE, Tab
    from .page import DESK

    return [(Tab(DESK).blocks(), TITLE, ELEMENT)]


def _started(demo: Any, app: Any) -> None:
    """`demo`: the host's page, None where it serves its API alone."""
    from ..page.routes import Routes
    from .engine.host import data_root
    from .page import DESK
    from .turns import GATE

    if demo is not None:  # which may serve whatever lies below the host's own folder
        demo.blocked_paths = [*(getattr(demo, "blocked_paths", None) or ()), str(data_root().resolve())]
    Routes(DESK).add_to(app)
    GATE.open_again()
