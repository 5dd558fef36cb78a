"""Forge classic's text encoders: read as A1111 reads its own, by networks that its memory management has to bring where they run."""

from __future__ import annotations

import torch
from ldm_patched.modules import model_management
from modules_forge import forge_clip

from ....lora_core.adapters import AdapterSet
from ....lora_core.borrowing.aliases import replaced
from .a1111_texts import A1111Texts
from .captions import Encoded


class ClassicTexts(A1111Texts):
    """Where texts are trained, the backend loads the encoders beside the network, and the host's own loading would drive the network out again."""

    host = "Forge classic"

    def encode(self, caption: str, adapters: AdapterSet) -> Encoded:
        if not (torch.is_grad_enabled() and adapters.trains_text):
            model_management.load_model_gpu(self._model.forge_objects_original.clip.patcher)
        with replaced(forge_clip, "move_clip_to_gpu", lambda: None):
            return super().encode(caption, adapters)
