"""Our nodes: thin classes that map widgets to a config and make one call into the engine. Imported only by ComfyUI."""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)


def entrypoint():
    """The extension with all nodes. An error here is logged in full first, since the host shows only its last line."""
    try:
        from .extension import LoraLoomExtension

        return LoraLoomExtension()
    except Exception:
        log.exception("LoRA Loom could not start")
        raise
