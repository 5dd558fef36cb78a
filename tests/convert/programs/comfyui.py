"""ComfyUI: `comfy.sd.load_lora_for_models` on its own model classes; run with its own Python."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path

import torch
from loom_harness import FLUX, UNETS, Tree, randomised

TITLE, FOLDER = "ComfyUI", "comfyui"
FAMILIES = ("sd1", "sd2", "sdxl", "flux1", "chroma", "sd3", "flux2", "z-image", "lumina2", "qwen-image", "wan")
HOME = Path(os.environ.get("COMFYUI_DIR", "~/comfy/ComfyUI")).expanduser()
sys.path[:0] = [str(HOME)]
sys.argv[1:] = ["--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
import comfy.clip_model  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.supported_models  # noqa: E402
import comfy.text_encoders.t5  # noqa: E402
import comfy.utils  # noqa: E402
import comfyui_version  # noqa: E402

VERSION = comfyui_version.__version__

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
    "x_block_self_attn_layers": [],
    "qkv_bias": True,
    "rmsnorm": False,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 48, "out_features": 192}},
}
_FLUX = {**FLUX, "patch_size": 2, "out_channels": 16, "txt_ids_dims": []}
_CHROMA = {
    **{k: v for k, v in _FLUX.items() if k != "vec_in_dim"},
    "image_model": "chroma",
    "in_channels": 64,
    "out_channels": 64,
    "in_dim": 64,
    "out_dim": 32,
    "hidden_dim": 48,
    "n_layers": 5,
    "vec_in_dim": None,
}
_FLUX2 = {
    **_FLUX,
    "image_model": "flux2",
    "in_channels": 128,
    "out_channels": 128,
    "patch_size": 1,
    "axes_dim": [4, 4, 4, 4],
    "theta": 2000,
    "guidance_embed": True,
    "vec_in_dim": None,
    "mlp_ratio": 3.0,
    "qkv_bias": False,
    "ops_bias": False,
    "global_modulation": True,
    "mlp_silu_act": True,
    "txt_ids_dims": [3],
    "default_ref_method": "index",
    "ref_index_scale": 10.0,
    "depth": 8,
    "depth_single_blocks": 48,
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
    "rope_theta": 10000.0,
    "ffn_dim_multiplier": 4.0,
}
_Z_IMAGE = {
    **_LUMINA2,
    "dim": 128,
    "n_heads": 4,
    "n_kv_heads": 4,
    "axes_dims": [8, 12, 12],
    "rope_theta": 256.0,
    "ffn_dim_multiplier": 8 / 3,
    "z_image_modulation": True,
    "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
}
_QWEN = {
    "image_model": "qwen_image",
    "in_channels": 64,
    "out_channels": 16,
    "num_layers": 3,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 24,
    "pooled_projection_dim": 16,
    "axes_dims_rope": (4, 6, 6),
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
    "sd1": ("SD15", {**UNETS["sd1"], **_UNET, "adm_in_channels": None}), "sd2": ("SD20", {**UNETS["sd2"], **_UNET, "adm_in_channels": None}),
    "sdxl": ("SDXL", {**UNETS["sdxl"], **_UNET}), "flux1": ("Flux", {**_FLUX, "image_model": "flux", "guidance_embed": True}), "chroma": ("Chroma", _CHROMA),
    "sd3": ("SD3", _SD3), "flux2": ("Flux2", _FLUX2), "z-image": ("ZImage", _Z_IMAGE), "lumina2": ("Lumina2", _LUMINA2), "qwen-image": ("QwenImage", _QWEN),
    "wan": ("WAN21_I2V", _WAN),
}  # fmt: skip
TEXT = {
    "sd1": {"clip_l": 12},
    "sd2": {"clip_h": 23},
    "sdxl": {"clip_l": 12, "clip_g": 32},
    "flux1": {"clip_l": 12, "t5xxl": 4},
    "chroma": {"t5xxl": 4},
    "sd3": {"clip_l": 12, "clip_g": 32, "t5xxl": 4},
}
CLIP = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "hidden_act": "gelu",
    "max_position_embeddings": 77,
    "eos_token_id": 2,
    "vocab_size": 64,
}
T5 = {
    "d_model": 16,
    "d_ff": 32,
    "d_kv": 8,
    "num_heads": 2,
    "num_layers": 4,
    "vocab_size": 64,
    "dense_act_fn": "gelu_pytorch_tanh",
    "is_gated_act": True,
    "model_type": "t5",
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
        self.patcher = patcher or comfy.model_patcher.ModelPatcher(encoders, cpu, cpu)

    def clone(self) -> Clip:
        return Clip(self.cond_stage_model, self.patcher.clone())

    def add_patches(self, *args, **kwargs):
        return self.patcher.add_patches(*args, **kwargs)


def encoder(name: str, layers: int) -> torch.nn.Module:
    operations = comfy.ops.disable_weight_init
    if name == "t5xxl":
        return randomised(comfy.text_encoders.t5.T5(T5, torch.float32, "cpu", operations))
    return randomised(
        comfy.clip_model.CLIPTextModel({**CLIP, "num_hidden_layers": layers}, torch.float32, "cpu", operations)
    )


def tree(family: str) -> Tree:
    name, config = MODELS[family]
    row = getattr(comfy.supported_models, name)({**config})
    row.set_inference_dtype(torch.float32, None)
    if family == "sd2":  # the host gives its heads 64 channels
        row.unet_config["num_head_channels"] = 16
    model = randomised(row.get_model({}, "", device="cpu"))
    encoders = {name: Namespace(transformer=encoder(name, layers)) for name, layers in TEXT.get(family, {}).items()}
    cpu = torch.device("cpu")
    texts = Namespace(**encoders) if encoders else None
    out = Tree(
        family,
        types.SimpleNamespace(unet=comfy.model_patcher.ModelPatcher(model, cpu, cpu), clip=texts and Clip(texts)),
    )
    out.add_denoiser(model.diffusion_model)
    for encoder_name, module in encoders.items():
        out.add_text(encoder_name, module.transformer, projection=family == "sd3" or encoder_name == "clip_g")
    return out


def load(tree: Tree, path: Path) -> None:
    state = comfy.utils.load_torch_file(str(path), safe_load=True)
    unet, clip = comfy.sd.load_lora_for_models(tree.host.unet, tree.host.clip, state, 1.0, 1.0)
    for patcher in (unet, clip and clip.patcher):
        for key in patcher.patches if patcher else ():
            patcher.patch_weight_to_device(key)


EMBEDDINGS = ("sd1", "sd2", "sdxl", "flux1", "sd3")
KEYS = {"clip_l": "clip_l", "clip_h": "clip_h", "clip_g": "clip_g", "t5xxl": "t5xxl"}
WIDTHS = {"clip_l": 768, "clip_h": 1024, "clip_g": 1280, "t5xxl": 4096}


def embedding(family: str, path: Path) -> dict[str, torch.Tensor]:
    """What each of the family's encoders takes from a file that a prompt names."""
    from comfy import sd1_clip

    taken = {
        name: sd1_clip.load_embed(path.stem, [str(path.parent)], WIDTHS[name], KEYS[name]) for name in TEXT[family]
    }
    return {name: vectors for name, vectors in taken.items() if vectors is not None}
