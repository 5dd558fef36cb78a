"""reForge: its built-in Lora extension hands the file to ldm_patched; its own model classes, text encoders of transformers' under its names."""

from __future__ import annotations

import sys
import tempfile
import types
from pathlib import Path

import torch
from loom_harness import FLUX, UNETS, Tree, clip, folder, randomised, stand_in, t5

TITLE, FOLDER = "reForge", "reforge"
FAMILIES = ("sd1", "sd2", "sdxl", "flux1", "chroma", "sd3", "lumina2", "wan")
HOME = folder(FOLDER)

sys.path[:0] = [str(HOME / "extensions-builtin" / "Lora"), str(HOME)]
stand_in("modules")
stand_in(
    "modules.shared",
    opts=types.SimpleNamespace(),
    cmd_opts=types.SimpleNamespace(lora_dir=tempfile.gettempdir(), lyco_dir_backcompat=""),
)
for surrounding in (
    "sd_models",
    "errors",
    "scripts",
    "hashes",
    "cache",
    "paths",
    "devices",
    "patches",
    "models",
    "models.sd3",
):
    stand_in(f"modules.{surrounding}")
stand_in("modules.models.sd3.mmdit", QkvLinear=torch.nn.Linear)
for absent in ("gradio", "av", "torchaudio", "torchsde", "kornia"):
    stand_in(absent)
from ldm_patched.modules import args_parser  # noqa: E402

args_parser.args.always_cpu = True
import networks  # noqa: E402  the extension's own module
from ldm_patched.modules import model_patcher, supported_models  # noqa: E402

_UNET = {"image_size": 32, "use_temporal_attention": False, "disable_self_attentions": None, "legacy": False}
_SD3 = {
    "in_channels": 16,
    "depth": 3,
    "num_patches": 16,
    "pos_embed_max_size": 4,
    "adm_in_channels": 40,
    "input_size": None,
    "patch_size": 2,
    "pos_embed_scaling_factor": None,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 48, "out_features": 192}},
}
_FLUX = {**FLUX, "patch_size": 2, "out_channels": 16}
_CHROMA = {
    **{k: v for k, v in _FLUX.items() if k != "vec_in_dim"},
    "image_model": "chroma",
    "in_dim": 64,
    "out_dim": 32,
    "hidden_dim": 48,
    "n_layers": 5,
}
_LUMINA2 = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 16,
    "cap_feat_dim": 24,
    "dim": 96,
    "n_layers": 4,
    "n_refiner_layers": 2,
    "n_heads": 6,
    "n_kv_heads": 2,
    "qk_norm": True,
    "axes_dims": [4, 4, 8],
    "axes_lens": [64, 64, 64],
    "ffn_dim_multiplier": 4.0,
}
_WAN = {
    "image_model": "wan2.1",
    "model_type": "i2v",
    "patch_size": (1, 2, 2),
    "text_len": 16,
    "in_dim": 36,
    "dim": 32,
    "ffn_dim": 64,
    "freq_dim": 16,
    "text_dim": 24,
    "out_dim": 16,
    "num_heads": 2,
    "num_layers": 4,
    "window_size": (-1, -1),
    "qk_norm": True,
    "cross_attn_norm": True,
    "eps": 1e-6,
}
MODELS = {
    "sd1": ("SD15", {**UNETS["sd1"], **_UNET, "adm_in_channels": None}),
    "sd2": ("SD20", {**UNETS["sd2"], **_UNET, "adm_in_channels": None, "num_head_channels": 16}),
    "sdxl": ("SDXL", {**UNETS["sdxl"], **_UNET}), "flux1": ("Flux", {**_FLUX, "image_model": "flux", "guidance_embed": True}), "chroma": ("Chroma", _CHROMA),
    "sd3": ("SD3", _SD3), "lumina2": ("Lumina2", _LUMINA2), "wan": ("WAN21_I2V", _WAN),
}  # fmt: skip
TEXT = {
    "sd1": {"clip_l": 12},
    "sd2": {"clip_h": 23},
    "sdxl": {"clip_l": 12, "clip_g": 32},
    "flux1": {"clip_l": 12, "t5xxl": 4},
    "chroma": {"t5xxl": 4},
    "sd3": {"clip_l": 12, "clip_g": 32, "t5xxl": 4},
}


class Namespace(torch.nn.Module):
    """A module that only holds others."""

    def __init__(self, **members):
        super().__init__()
        for name, member in members.items():
            setattr(self, name, member)


class Clip:
    """What the loader asks of a CLIP: its encoders' names, a patcher, a clone."""

    def __init__(self, encoders: torch.nn.Module, patcher=None):
        cpu = torch.device("cpu")
        self.cond_stage_model = encoders
        self.patcher = patcher or model_patcher.ModelPatcher(encoders, cpu, cpu)

    def clone(self) -> Clip:
        return Clip(self.cond_stage_model, self.patcher.clone())

    def add_patches(self, *args, **kwargs):
        return self.patcher.add_patches(*args, **kwargs)


def tree(family: str) -> Tree:
    name, config = MODELS[family]
    row = getattr(supported_models, name)({**config})
    row.set_inference_dtype(torch.float32, None)
    if family == "sd2":  # the host gives its heads 64 channels
        row.unet_config["num_head_channels"] = 16
    model = row.get_model({}, "", device="cpu")
    randomised(model)
    encoders = {}
    for encoder, layers in TEXT.get(family, {}).items():
        projection = family == "sd3" or encoder == "clip_g"
        encoders[encoder] = Namespace(
            transformer=t5(16, layers) if encoder == "t5xxl" else clip(16, layers, projection)
        )
    cpu = torch.device("cpu")
    texts = Namespace(**encoders) if encoders else None
    out = Tree(
        family, types.SimpleNamespace(unet=model_patcher.ModelPatcher(model, cpu, cpu), clip=texts and Clip(texts))
    )
    out.add_denoiser(model.diffusion_model)
    for encoder, module in encoders.items():
        out.add_text(encoder, module.transformer)
    return out


def load(tree: Tree, path: Path) -> None:
    networks.load_lora_state_dict.cache_clear()
    state = networks.load_lora_state_dict(str(path))
    unet, clip = networks.load_lora_for_models(tree.host.unet, tree.host.clip, state, 1.0, 1.0, filename=str(path))
    for patcher in (unet, clip and clip.patcher):
        for key in patcher.patches if patcher else ():
            patcher.patch_weight_to_device(key)
