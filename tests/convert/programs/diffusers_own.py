"""diffusers: `load_lora_weights` and `fuse_lora` of the family's own pipeline."""

from __future__ import annotations

import types
import warnings
from pathlib import Path

import diffusers
from loom_diffusers_models import TEXT, denoiser, encoder
from loom_harness import Tree, randomised

TITLE, FOLDER, VERSION = "diffusers", "diffusers", diffusers.__version__
FAMILIES = ("sd1", "sd2", "sdxl", "flux1", "chroma", "sd3", "flux2", "z-image", "lumina2", "qwen-image", "wan")
PIPELINES = {
    "sd1": "StableDiffusionPipeline", "sd2": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline", "flux1": "FluxPipeline",
    "chroma": "ChromaPipeline", "sd3": "StableDiffusion3Pipeline", "flux2": "Flux2KleinPipeline", "z-image": "ZImagePipeline",
    "lumina2": "Lumina2Pipeline", "qwen-image": "QwenImagePipeline", "wan": "WanImageToVideoPipeline",
}  # fmt: skip
OPTIONAL = {
    "return",
    "requires_safety_checker",
    "is_distilled",
    "boundary_ratio",
    "expand_timesteps",
    "force_zeros_for_empty_prompt",
    "add_watermarker",
}
KINDS_ON = ("z-image",)  # the kinds beside LoRA are tried on one model: loading takes long
NOT_AT_NARROW_WIDTH = {
    ("flux1", "kohya"),
    ("chroma", "kohya"),
}  # the reader has the widths of the published models in it
warnings.filterwarnings("ignore")


def tree(family: str) -> Tree:
    out = Tree(family, types.SimpleNamespace(parts={}))
    parts = {"unet" if family in ("sd1", "sd2", "sdxl") else "transformer": randomised(denoiser(family))}
    for component, name in TEXT.get(family, {}).items():
        parts[component] = encoder(family, name)
    for component, model in parts.items():
        if component in TEXT.get(family, {}):
            out.add_text(TEXT[family][component], model)
        else:
            out.add_denoiser(model)
    out.host.parts = parts
    return out


def load(tree: Tree, path: Path):
    cls = getattr(diffusers, PIPELINES[tree.family])
    taken = cls.__init__.__annotations__
    more = {"requires_safety_checker": False} if "requires_safety_checker" in taken else {}
    pipeline = cls(**{name: tree.host.parts.get(name) for name in taken if name not in OPTIONAL}, **more)
    before = {label: weight().detach().clone() for label, weight in tree.weights.items()}
    try:
        pipeline.load_lora_weights(str(path), adapter_name="x")
        pipeline.fuse_lora(components=[name for name in pipeline._lora_loadable_modules if name in tree.host.parts])
        return {label: weight().detach() - before[label] for label, weight in tree.weights.items()}
    finally:
        pipeline.unload_lora_weights()
