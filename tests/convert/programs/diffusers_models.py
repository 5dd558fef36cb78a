"""Models of diffusers' own classes with narrow layers, for programs that load their models by diffusers."""

from __future__ import annotations

import diffusers
import torch
from loom_harness import clip, t5

TEXT = {
    "sd1": {"text_encoder": "clip_l"}, "sd2": {"text_encoder": "clip_h"}, "sdxl": {"text_encoder": "clip_l", "text_encoder_2": "clip_g"},
    "flux1": {"text_encoder": "clip_l", "text_encoder_2": "t5xxl"}, "sd3": {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"},
    "chroma": {"text_encoder": "t5xxl"},
}  # fmt: skip
ATTENTION = {"attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 24}


def encoder(family: str, name: str) -> torch.nn.Module:
    layers = {"clip_l": 12, "clip_h": 23, "clip_g": 32, "t5xxl": 4}[name]
    return t5(16, layers) if name == "t5xxl" else clip(16, layers, family == "sd3" or name == "clip_g")


def unet(levels: int, attention: tuple[int, ...], linear: bool, **more) -> torch.nn.Module:
    has = [level in attention for level in range(levels)]
    return diffusers.UNet2DConditionModel(
        sample_size=8, layers_per_block=2, block_out_channels=(16, 24, 32, 32)[:levels], norm_num_groups=8, attention_head_dim=8, cross_attention_dim=24,
        down_block_types=tuple("CrossAttnDownBlock2D" if h else "DownBlock2D" for h in has), use_linear_projection=linear,
        up_block_types=tuple("CrossAttnUpBlock2D" if h else "UpBlock2D" for h in reversed(has)), **more,
    )  # fmt: skip


def denoiser(family: str) -> torch.nn.Module:
    two_stream = {"patch_size": 1, "in_channels": 8, "num_layers": 3, "num_single_layers": 4, **ATTENTION}
    if family in ("sd1", "sd2"):
        return unet(4, (0, 1, 2), family == "sd2")
    if family == "sdxl":
        pooled = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 80,
        }
        return unet(3, (1, 2), True, transformer_layers_per_block=(1, 2, 10), **pooled)
    if family == "flux1":
        return diffusers.FluxTransformer2DModel(
            **two_stream, pooled_projection_dim=20, guidance_embeds=True, axes_dims_rope=(4, 4, 8)
        )
    if family == "chroma":
        approximator = {"approximator_num_channels": 8, "approximator_hidden_dim": 20, "approximator_layers": 2}
        return diffusers.ChromaTransformer2DModel(**two_stream, axes_dims_rope=(4, 4, 8), **approximator)
    if family == "flux2":
        return diffusers.Flux2Transformer2DModel(
            **two_stream, timestep_guidance_channels=12, mlp_ratio=3.0, axes_dims_rope=(4, 4, 4, 4)
        )
    if family == "sd3":
        return diffusers.SD3Transformer2DModel(
            sample_size=8, in_channels=4, out_channels=4, num_layers=3, **ATTENTION, caption_projection_dim=32, pooled_projection_dim=20, pos_embed_max_size=8,
        )  # fmt: skip
    if family == "z-image":
        return diffusers.ZImageTransformer2DModel(
            in_channels=4, dim=48, n_layers=3, n_refiner_layers=2, n_heads=2, n_kv_heads=2, cap_feat_dim=24, axes_dims=[8, 8, 8], axes_lens=[32] * 3
        )  # fmt: skip
    if family == "qwen-image":
        return diffusers.QwenImageTransformer2DModel(
            in_channels=16, out_channels=4, num_layers=3, **ATTENTION, axes_dims_rope=(4, 6, 6)
        )
    if family == "lumina2":
        return diffusers.Lumina2Transformer2DModel(
            sample_size=8, in_channels=4, out_channels=4, hidden_size=96, num_layers=3, num_refiner_layers=2, num_attention_heads=6, num_kv_heads=2,
            multiple_of=8, axes_dim_rope=(4, 4, 8), axes_lens=(64, 64, 64), cap_feat_dim=24,
        )  # fmt: skip
    return diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=36, out_channels=16, text_dim=24, freq_dim=16, ffn_dim=48, num_layers=3, image_dim=20,
        added_kv_proj_dim=24,
    )  # fmt: skip
