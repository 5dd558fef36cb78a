"""What a layer of a host model is called in files, from the host's own key map turned around."""

from __future__ import annotations

import re
from typing import Any

import comfy.lora
import comfy.model_base

_DIFFUSERS_UNET = (
    "lora_unet_down_blocks_",
    "lora_unet_mid_block_",
    "lora_unet_up_blocks_",
    "lora_unet_conv_in",
    "lora_unet_conv_out",
    "lora_unet_time_embedding",
    "lora_unet_add_embedding",
)
_OUR_NAMES = {"flux": "flux1", "qwenimage": "qwen-image", "sdxlrefiner": "sdxl-refiner"}


def base_family(model: Any) -> str:
    """The family in the words of `convert` (sd1, sd2-v, sdxl, flux1, z-image, ...), or the host's class name in lower case."""
    if isinstance(model, comfy.model_base.SDXL):
        return "sdxl"
    plain = type(model).__name__ in ("BaseModel", "SD15_instructpix2pix", "SD21UNCLIP", "Lotus")
    if type(model.diffusion_model).__name__ == "UNetModel" and plain:
        if model.model_config.unet_config.get("context_dim") == 1024:
            return "sd2-v" if model.model_type == comfy.model_base.ModelType.V_PREDICTION else "sd2"
        return "sd1"
    if isinstance(model, comfy.model_base.Lumina2):
        return "z-image" if model.model_config.unet_config.get("z_image_modulation") else "lumina2"
    name = type(model).__name__.lower()
    return _OUR_NAMES.get(name, "wan" if name.startswith("wan") else name)


# CLIP and T5 under the names that families have for them. Of language models (Qwen, Gemma, Mistral, Llama) the blocks
# that read the text are trained; what looks at pictures and what writes answers is not.
TEXT_ENCODERS = (
    "clip_l", "clip_g", "clip_h", "t5xxl", "umt5xxl", "umt5base", "pile_t5xl", "mt5xl", "t5base",
)  # fmt: skip

_LANGUAGE_MODEL = re.compile(r"\w+\.transformer\.model\.layers\.\d+\.(self_attn|mlp)\.\w+")

# How the names of their layers begin in files: Kohya's for the SD family, the host's own path elsewhere.
_KOHYA_TEXT = {
    "sd1": ("lora_te_",),
    "sd2": ("lora_te_",),
    "sd2-v": ("lora_te_",),
    "sdxl": ("lora_te1_", "lora_te2_"),
    "sdxl-refiner": ("lora_te_",),
}
_NATIVE_TEXT = ("text_encoders.",)


def text_file_names(clip: Any, family: str) -> dict[str, str]:
    """Path below the host's text model -> name in the file, for the text encoders that can be trained: Kohya for the SD family, native elsewhere."""
    keys, suffix, names = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {}), ".weight", {}
    prefixes = _KOHYA_TEXT.get(family, _NATIVE_TEXT)
    for name, key in keys.items():
        if not isinstance(key, str) or not key.endswith(suffix) or not name.startswith(prefixes):
            continue
        path = key[: -len(suffix)]
        if path.split(".", 1)[0] not in TEXT_ENCODERS and not _LANGUAGE_MODEL.fullmatch(path):
            continue
        if prefixes != _NATIVE_TEXT or name == f"text_encoders.{path}":
            names[path] = name
    return names


def file_names(model: Any) -> dict[str, str]:
    """Path below the diffusion model -> name in the file: Kohya for the SD family (SDXL and its refiner with SGM paths), the native dotted path elsewhere."""
    keys = comfy.lora.model_lora_keys_unet(model, {})
    prefix, suffix = "diffusion_model.", ".weight"
    family = base_family(model)
    names = {}
    for name, key in keys.items():
        if not isinstance(key, str) or not key.startswith(prefix) or not key.endswith(suffix):
            continue
        path = key[len(prefix) : -len(suffix)]
        if family in ("sd1", "sd2", "sd2-v"):
            if name.startswith(_DIFFUSERS_UNET):
                names[path] = name
        elif family in ("sdxl", "sdxl-refiner"):
            if name == "lora_unet_" + path.replace(".", "_"):
                names[path] = name
        elif name == prefix + path:
            names[path] = name
    return names
