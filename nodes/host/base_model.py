"""What a base model of the host is, asked of the model itself, never of a file's name: whether it embeds guidance."""

from __future__ import annotations

from typing import Any

from torch import nn

TRAINING_GUIDANCE = 1.0  # guidance-distilled models (Flux.1-dev) are trained at 1, as sd-scripts and ai-toolkit do


def training_guidance(model: Any) -> float | None:
    """The guidance a model is trained at; None where it embeds none: it is then trained at the host's default, as it is sampled (Chroma: 0)."""
    layer = getattr(model.diffusion_model, "guidance_in", None)
    embeds = (layer is not None and not isinstance(layer, nn.Identity)) or bool(model.model_config.unet_config.get("guidance_embed"))
    return TRAINING_GUIDANCE if embeds else None
