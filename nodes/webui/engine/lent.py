"""The loaded model of whichever WebUI this is, as a backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .host import WebUI, webui_here

if TYPE_CHECKING:
    from ....lora_core.backends.base import Backend


def lent_model() -> Backend:
    """Raises LoomError where nothing is loaded, or nothing that can be trained."""
    host = webui_here()
    if host is WebUI.FORGE:
        from .forge import ForgeBackend

        return ForgeBackend()
    if host is WebUI.REFORGE:
        from .reforge import reforge_backend

        return reforge_backend()
    from .a1111 import A1111Backend

    return A1111Backend()
