"""Our nodes: thin classes that map widgets to a config and make one call into the engine. Imported only by ComfyUI."""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)
OLDEST_HOST = (0, 4, 0)


def entrypoint():
    """The extension with all nodes. An error here is logged in full first, since the host shows only its last line."""
    try:
        require_host()
        from .extension import LoraLoomExtension

        return LoraLoomExtension()
    except Exception:
        log.exception("LoRA Loom could not start")
        raise


def require_host() -> None:
    """Raises RuntimeError with one sentence when ComfyUI is older than what the engine needs."""
    try:
        from comfyui_version import __version__ as found
    except ImportError:  # hosts that do not tell
        return
    numbers = tuple(int(part) if part.isdigit() else 0 for part in found.split(".")[:3])
    if numbers < OLDEST_HOST:
        oldest = ".".join(map(str, OLDEST_HOST))
        raise RuntimeError(f"LoRA Loom needs ComfyUI {oldest} or newer, this is {found}; update ComfyUI.")
