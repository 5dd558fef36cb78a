"""ComfyUI's column of the table of formats."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import full_size
import torch
from lora_loom.convert import read, write
from lora_loom.convert.lora import Lora

spec = importlib.util.spec_from_file_location(
    "format_support", Path(__file__).parents[1] / "reference" / "format_support.py"
)
support = importlib.util.module_from_spec(spec)
spec.loader.exec_module(support)

MODEL_OF = {
    "sd1": "sd1.5", "sd2": "sd2.1", "sdxl": "sdxl", "flux1": "flux.1-dev", "chroma": "chroma", "sd3": "sd3-medium", "flux2": "flux.2-klein-4b",
    "z-image": "z-image", "lumina2": "lumina2", "qwen-image": "qwen-image", "wan": "wan2.1-1.3b",
}  # fmt: skip


def lora_over(name: str) -> Lora:
    """A rank-1 LoRA over every layer of a published model and its CLIP encoders."""
    model, text = full_size.build(name)
    named = {f"diffusion_model.{k}": s for k, s in full_size.layers(model.diffusion_model).items()}
    named |= {f"text_encoders.{k}": s for k, s in full_size.text_layers(text).items()}
    rng, state = torch.Generator().manual_seed(0), {}
    for key, shape in named.items():
        down, up = full_size.factors(shape, 1, rng)
        state |= {f"{key}.lora_A.weight": down.half(), f"{key}.lora_B.weight": up.half()}
    return read(state)


def layers_read(name: str, state: dict) -> list[int]:
    patches, _ = full_size.load(name, state)
    return [len(patches), sum(key.endswith((".lora_up.weight", ".lora_B.weight")) for key in state)]


def test_comfyui_reads_what_the_table_says():
    measured = {}
    for family in MODEL_OF:
        lora = lora_over(MODEL_OF[family])
        blocks = Lora(family, {n: m for n, m in lora.modules.items() if support.in_block(n)})
        measured[family] = {
            form: [layers_read(MODEL_OF[family], write(part, form)) for part in (blocks, lora)]
            for form in ("kohya", "comfyui", "diffusers")
        }
    support.check("ComfyUI", measured)
