"""What pictures leave in a model of the first Forge's making, which reForge and Forge classic come from: patches of clones, tiling."""

from __future__ import annotations

from typing import Any

from ....lora_core.messages.message import Message
from .host import lora_extension


def untiled(model: Any) -> list[Message]:
    """Takes tiling out of the convolutions, and says so."""
    if not getattr(model, "tiling_enabled", False):
        return []
    from modules_forge.forge_util import apply_circular_forge

    apply_circular_forge(model, False)
    return [Message.of("webui.settled_tiling")]


def settled_clones(model: Any) -> list[Message]:
    """Takes the patches of the last picture's clones out of the weights, and says whether there were any."""
    from ldm_patched.modules import model_management

    networks, originals = lora_extension(), model.forge_objects_original
    present = any(patcher.patches for patcher in (model.forge_objects.unet, model.forge_objects.clip.patcher))
    if networks is not None:
        networks.load_networks([], [], [], [])
    model.forge_objects = originals.shallow_copy()
    for patcher in (originals.unet, originals.clip.patcher):
        clones = [one.model for one in model_management.current_loaded_models if patcher.is_clone(one.model)]
        if any(clone is not patcher for clone in clones):
            model_management.unload_model_clones(patcher)
    return [Message.of("webui.settled_lora")] if present else []
