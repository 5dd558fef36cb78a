"""The host's own way to put a LoRA on a model and its text encoders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.sd
import torch


def with_lora(model: Any, clip: Any, tensors: Mapping[str, torch.Tensor], strength: float = 1.0) -> tuple[Any, Any]:
    """Clones of a MODEL and a CLIP with a LoRA on both at one strength. What is None stays None."""
    return comfy.sd.load_lora_for_models(model, clip, dict(tensors), strength, strength)
