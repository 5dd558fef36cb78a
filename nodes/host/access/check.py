"""After every export: the host's own loader must match every key of the file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.lora
import comfy.lora_convert
import torch

from ....lora_core.messages.errors import LoomError


def require_matched(tensors: Mapping[str, torch.Tensor], model: Any, clip: Any = None) -> int:
    """Number of modules the host's loader matches. Raises LoomError when a key of `tensors` would be left over."""
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    if clip is not None:
        keys = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, keys)
    state = comfy.lora_convert.convert_lora(dict(tensors))
    used: set[str] = set()
    differences: set[int] = set()  # tensors that are taken as they are: changes of whole weights, norms and biases
    for loaded in comfy.lora.load_lora(state, keys, log_missing=False).values():
        used |= getattr(loaded, "loaded_keys", set())
        differences |= {id(tensor) for tensor in loaded[1]} if isinstance(loaded, tuple) else set()
    unread = [key for key, tensor in state.items() if key not in used and id(tensor) not in differences]
    if unread:
        raise LoomError("host.keys_unread", count=len(unread), key=unread[0])
    return sum(key.endswith((".lora_up.weight", ".lora_B.weight")) for key in used)
