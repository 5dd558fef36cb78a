"""What the door registers with the host, again after each Reload UI."""

from __future__ import annotations

import logging
from typing import Any

log = logging.getLogger(__name__)


def register() -> None:
    """Called by the door each time the host loads its scripts."""
    from modules import script_callbacks

    script_callbacks.on_app_started(_started, name="lora_loom")


def _started(demo: Any, app: Any) -> None:
    from .routes import add_routes

    add_routes(app)
