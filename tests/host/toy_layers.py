"""The layers of the bundled toy as its file has them, and random LoRAs on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open

FILE = (
    Path(__file__).resolve().parents[2] / "lora_core" / "toy" / "model" / "unet" / "diffusion_pytorch_model.safetensors"
)


def toy_lora(layers: Sequence[str], rank: int = 4, seed: int = 0, size: float = 0.2) -> dict[str, torch.Tensor]:
    """A random LoRA on those layers, by their diffusers names, in the spelling of kohya; its weights have the deviation `size`."""
    rng, state = torch.Generator().manual_seed(seed), {}
    with safe_open(FILE, framework="pt") as file:
        for layer in layers:
            rows, columns = file.get_slice(f"{layer}.weight").get_shape()
            name = f"lora_unet_{layer.replace('.', '_')}"
            state[f"{name}.lora_down.weight"] = size * torch.randn(rank, columns, generator=rng)
            state[f"{name}.lora_up.weight"] = size * torch.randn(rows, rank, generator=rng)
    return state
