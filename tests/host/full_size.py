"""Models as they are published, on the meta device (no memory), and tiny ones with the block layout of the published ones, through the host's own classes."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import architectures
import comfy.lora
import comfy.lora_convert
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models as sm
import comfy.text_encoders.flux as flux_text
import comfy.text_encoders.pixart_t5 as t5_text
import comfy.text_encoders.sd2_clip as sd2_text
import comfy.text_encoders.sd3_clip as sd3_text
import torch

State = dict[str, torch.Tensor]
META = {"device": "meta", "dtype": torch.float32}

SD1 = {
    "image_size": 32, "use_spatial_transformer": True, "legacy": False, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_heads": 8,
    "num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "use_linear_in_transformer": False, "context_dim": 768, "adm_in_channels": None,
    "use_temporal_attention": False, "disable_self_attentions": None,
}  # fmt: skip
_LINEAR_HEADS = {"num_heads": -1, "num_head_channels": 64, "use_linear_in_transformer": True}
SD2 = {**SD1, **_LINEAR_HEADS, "context_dim": 1024}
SDXL = {
    **SD1, **_LINEAR_HEADS, "context_dim": 2048, "adm_in_channels": 2816, "num_classes": "sequential", "num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_middle": 10, "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
}  # fmt: skip
REFINER = {
    **SD1, **_LINEAR_HEADS, "model_channels": 384, "context_dim": 1280, "adm_in_channels": 2560, "num_classes": "sequential",
    "transformer_depth": [0, 0, 4, 4, 4, 4, 0, 0], "transformer_depth_middle": 4, "transformer_depth_output": [0, 0, 0, 4, 4, 4, 4, 4, 4, 0, 0, 0],
}  # fmt: skip
FLUX1 = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": 768, "context_in_dim": 4096, "hidden_size": 3072, "mlp_ratio": 4.0,
    "num_heads": 24, "depth": 19, "depth_single_blocks": 38, "axes_dim": [16, 56, 56], "theta": 10000, "qkv_bias": True, "patch_size": 2,
    "guidance_embed": True, "txt_ids_dims": [],
}  # fmt: skip
CHROMA = {
    **{k: v for k, v in FLUX1.items() if k != "guidance_embed"}, "image_model": "chroma", "in_channels": 64, "out_channels": 64, "vec_in_dim": None,
    "in_dim": 64, "out_dim": 3072, "hidden_dim": 5120, "n_layers": 5,
}  # fmt: skip
KLEIN_4B = {
    **FLUX1, "image_model": "flux2", "in_channels": 128, "out_channels": 128, "vec_in_dim": None, "context_in_dim": 7680, "mlp_ratio": 3.0, "depth": 5,
    "depth_single_blocks": 20, "axes_dim": [32, 32, 32, 32], "theta": 2000, "qkv_bias": False, "ops_bias": False, "patch_size": 1, "guidance_embed": False,
    "global_modulation": True, "mlp_silu_act": True, "txt_ids_dims": [3], "default_ref_method": "index", "ref_index_scale": 10.0,
}  # fmt: skip
FLUX2_DEV = {
    **KLEIN_4B,
    "hidden_size": 6144,
    "num_heads": 48,
    "depth": 8,
    "depth_single_blocks": 48,
    "context_in_dim": 15360,
    "guidance_embed": True,
}
LUMINA2 = {
    "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 2304, "cap_feat_dim": 2304, "n_layers": 26, "qk_norm": True, "n_heads": 24,
    "n_kv_heads": 8, "axes_dims": [32, 32, 32], "axes_lens": [300, 512, 512], "rope_theta": 10000.0, "ffn_dim_multiplier": 4.0,
}  # fmt: skip
Z_IMAGE = {
    **LUMINA2, "dim": 3840, "cap_feat_dim": 2560, "n_layers": 30, "n_heads": 30, "n_kv_heads": 30, "axes_dims": [32, 48, 48], "axes_lens": [1536, 512, 512],
    "rope_theta": 256.0, "ffn_dim_multiplier": 8 / 3, "z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 32,
}  # fmt: skip
QWEN = {"image_model": "qwen_image", "in_channels": 64, "num_layers": 60}
WAN_1B = {
    "image_model": "wan2.1", "model_type": "t2v", "dim": 1536, "in_dim": 16, "out_dim": 16, "num_heads": 12, "ffn_dim": 8960, "num_layers": 30, "eps": 1e-6,
    "patch_size": (1, 2, 2), "freq_dim": 256, "window_size": (-1, -1), "qk_norm": True, "cross_attn_norm": True,
}  # fmt: skip
WAN_I2V = {
    **WAN_1B,
    "model_type": "i2v",
    "dim": 5120,
    "in_dim": 36,
    "num_heads": 40,
    "ffn_dim": 13824,
    "num_layers": 40,
}


def sd3(depth: int, patches: int, second_attention: int = 0, norm: str | None = None) -> dict[str, Any]:
    return {
        "in_channels": 16, "out_channels": 16, "patch_size": 2, "depth": depth, "input_size": None, "adm_in_channels": 2048, "num_patches": patches**2,
        "pos_embed_max_size": patches, "pos_embed_scaling_factor": None, "x_block_self_attn_layers": list(range(second_attention)), "qk_norm": norm,
        "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 64 * depth}},
    }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Published:
    """A published model. `native`: its linear and convolution layers; `split`: the same where q, k and v are layers of their own.

    `text`: the text encoders' attention and MLP layers, without T5's. `diffusers`: whether the host reads every layer under diffusers' name.
    """

    family: str
    cls: str
    config: dict[str, Any]
    native: int
    split: int
    make_text: Callable[[], Any] | None = None
    text: int = 0
    diffusers: bool = False


def _sd3_text() -> Any:
    return sd3_text.SD3ClipModel(dtype_t5=torch.float32, **META)


def _flux_text() -> Any:
    return flux_text.FluxClipModel(dtype_t5=torch.float32, **META)


MODELS = {
    "sd1.5": Published("sd1", "SD15", SD1, 282, 282, lambda: comfy.sd1_clip.SD1ClipModel(**META), 72),
    "sd2.1": Published("sd2", "SD20", SD2, 282, 282, lambda: sd2_text.SD2ClipModel(**META), 144),
    "sdxl": Published("sdxl", "SDXL", SDXL, 794, 794, lambda: comfy.sdxl_clip.SDXLClipModel(**META), 72 + 192),
    "sdxl-refiner": Published(
        "sdxl-refiner", "SDXLRefiner", REFINER, 554, 554, lambda: comfy.sdxl_clip.SDXLRefinerClipModel(**META), 192
    ),
    "flux.1-dev": Published("flux1", "Flux", FLUX1, 314, 504, _flux_text, 72, diffusers=True),
    "chroma": Published("chroma", "Chroma", CHROMA, 243, 433, lambda: t5_text.PixArtT5XXL(**META)),
    "sd3-medium": Published(
        "sd3", "SD3", sd3(24, 192), 245, 341, _sd3_text, 72 + 192, diffusers=True
    ),  # 340 linear layers and the patch convolution
    "sd3.5-medium": Published("sd3", "SD3", sd3(24, 384, 13, "rms"), 271, 393, _sd3_text, 72 + 192, diffusers=True),
    "sd3.5-large": Published("sd3", "SD3", sd3(38, 192, 0, "rms"), 385, 537, _sd3_text, 72 + 192, diffusers=True),
    "lumina2": Published("lumina2", "Lumina2", LUMINA2, 184, 244),
    "z-image": Published("z-image", "ZImage", Z_IMAGE, 208, 276, diffusers=True),
    "qwen-image": Published("qwen-image", "QwenImage", QWEN, 846, 846, diffusers=True),
    "wan2.1-1.3b": Published("wan", "WAN21_T2V", WAN_1B, 307, 307),  # 306 linear layers and the patch convolution
    "wan2.1-i2v-14b": Published("wan", "WAN21_I2V", WAN_I2V, 489, 489),
    "flux.2-klein-4b": Published("flux2", "Flux2", KLEIN_4B, 89, 109),
    "flux.2-dev": Published("flux2", "Flux2", FLUX2_DEV, 171, 203),
}

# The tiny models of `architectures`, with the block layout of the published ones where the layout decides names, and kinds of layers it lacks.
_SMALL = {"model_channels": 32, "context_dim": 48, "num_heads": 4, "num_head_channels": -1}
_SHALLOW = {
    "transformer_depth": [0, 0, 1, 1, 2, 2],
    "transformer_depth_middle": 2,
    "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2],
}
_TINY_WAN, _TINY_SD3, _TINY_LUMINA2 = (architectures.MODELS[name][1] for name in ("Wan", "SD3", "Lumina2"))
_AS_THEY_ARE = {
    "SD3": "sd3", "Flux": "flux1", "Flux2": "flux2", "Chroma": "chroma", "ZImage": "z-image", "QwenImage": "qwen-image", "Wan": "wan",
}  # fmt: skip
TINY = {  # name -> (family, row of architectures.MODELS)
    "SD15": ("sd1", ("SD15", {**SD1, **_SMALL}, (), 0, {})),
    "SD21": (
        "sd2",
        ("SD20", {**SD2, **_SMALL, "model_channels": 64}, (), 0, {}),
    ),  # the host gives its heads 64 channels
    "SDXL": ("sdxl", ("SDXL", {**SDXL, **_SMALL, **_SHALLOW}, (), 0, {})),
    "Lumina2": (
        "lumina2",
        ("Lumina2", {**_TINY_LUMINA2, "n_heads": 6, "n_kv_heads": 2, "axes_dims": [8, 4, 4]}, (), 0, {}),
    ),  # q:k:v rows are 3:1:1
    "WanI2V": ("wan", ("WAN21_I2V", {**_TINY_WAN, "model_type": "i2v", "in_dim": 36}, (), 0, {})),
    "SD3.5": ("sd3", ("SD3", {**_TINY_SD3, "x_block_self_attn_layers": [0], "qk_norm": "rms"}, (), 0, {})),
    **{name: (family, architectures.MODELS[name]) for name, family in _AS_THEY_ARE.items()},
}


@functools.cache
def build(name: str) -> tuple[Any, Any]:
    """(model, text encoders or None) of a published model, on the meta device."""
    row = MODELS[name]
    config = getattr(sm, row.cls)(dict(row.config))
    config.set_inference_dtype(torch.float32, None)
    return config.get_model({}, "", device="meta"), row.make_text() if row.make_text else None


@functools.cache
def tiny(name: str) -> Any:
    """A MODEL with seeded random weights on the CPU."""
    with patch.dict(architectures.MODELS, {name: TINY[name][1]}):
        return architectures.build(name)


TEXT_SIZES = {
    **{f"clip_{n}_model_config": {"num_hidden_layers": 3, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2} for n in "lgh"},
    "t5xxl_model_config": {"num_layers": 2, "d_model": 32, "d_ff": 64, "d_kv": 16, "num_heads": 2, "vocab_size": 64},
}  # fmt: skip


def tiny_clip(make: Callable[..., Any], **more: Any) -> Any:
    """A CLIP whose text encoders are of class `make`, small, with seeded random weights."""
    cpu = torch.device("cpu")
    with torch.inference_mode():
        model = make(device=cpu, dtype=torch.float32, model_options=TEXT_SIZES, **more)
        rng = torch.Generator().manual_seed(0)
        for p in model.parameters():
            p.copy_(0.1 * torch.randn(p.shape, generator=rng))
    clip = comfy.sd.CLIP(no_init=True)
    clip.cond_stage_model, clip.patcher = (
        model,
        comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu),
    )
    clip.tokenizer, clip.layer_idx, clip.tokenizer_options, clip.use_clip_schedule, clip.apply_hooks_to_conds = (
        None,
        None,
        {},
        False,
        None,
    )
    return clip


def layers(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Shape of the weight of every linear and convolution layer, by path."""
    kinds = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
    return {name: tuple(m.weight.shape) for name, m in model.named_modules() if isinstance(m, kinds)}


def text_layers(text: torch.nn.Module | None, t5: bool = False) -> dict[str, tuple[int, ...]]:
    """As `layers`, for the attention and MLP layers of text encoders; T5's only when asked for."""
    return (
        {}
        if text is None
        else {k: s for k, s in layers(text).items() if "projection" not in k and (t5 or not k.startswith("t5xxl."))}
    )


def factors(shape: tuple[int, ...], rank: int, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """(down, up) for a weight of `shape`, such that their product is about as large as the tiny models' weights are."""
    down = torch.randn(rank, *shape[1:], generator=rng) / torch.Size(shape[1:]).numel() ** 0.5
    return down, torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=rng) / rank**0.5


@contextlib.contextmanager
def logged() -> Iterator[list[str]]:
    """The warnings and errors that the host logs meanwhile."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    try:
        yield messages
    finally:
        logging.getLogger().removeHandler(handler)


def load(name: str, state: State) -> tuple[dict[Any, Any], list[str]]:
    """(what the host's loader would patch, what it complained about) for a file on a published model."""
    model, text = build(name)
    keys = comfy.lora.model_lora_keys_unet(model, {})
    if text is not None:
        keys = comfy.lora.model_lora_keys_clip(text, keys)
    with logged() as messages:
        patches = comfy.lora.load_lora(comfy.lora_convert.convert_lora(state), keys)
    return patches, messages
