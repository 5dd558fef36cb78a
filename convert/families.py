"""Telling base models apart by the shapes and names in a LoRA file."""

from __future__ import annotations

from collections.abc import Mapping

import torch

_UNET_BY_TEXT_WIDTH = {768: "sd1", 1024: "sd2", 2048: "sdxl", 64: "sd1"}  # 64: the bundled toy


def guess_base(state: Mapping[str, torch.Tensor]) -> str:
    """sd1, sd2, sdxl or flux1 from the inputs of cross-attention keys and block names; "unknown" when nothing fits."""
    for key, value in state.items():
        if "attn2_to_k.lora_down" in key or "attn2.to_k.lora_A" in key:
            return _UNET_BY_TEXT_WIDTH.get(value.shape[1], "unknown")
    names = " ".join(state)
    if "lora_unet_input_blocks" in names:
        return "sdxl"
    return "flux1" if "double_blocks" in names and "single_blocks" in names else "unknown"
