"""LoRA Loom: train LoRAs and embeddings on the models ComfyUI already holds.

This file is the door for ComfyUI. It imports nothing of the host until it is called, so the engine works without one.
"""

WEB_DIRECTORY = "./js"


async def comfy_entrypoint():
    """Called by ComfyUI once its own modules are ready; returns the extension with our nodes."""
    from .nodes import entrypoint

    return entrypoint()


__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
