"""Tiny random models of the host's own architectures, built through its own config classes."""

from __future__ import annotations

from typing import Any

import comfy.model_patcher
import comfy.supported_models as sm
import torch

UNET = {
    "image_size": 32, "use_spatial_transformer": True, "legacy": False, "in_channels": 4, "out_channels": 4, "model_channels": 32,
    "num_res_blocks": [1, 1], "channel_mult": [1, 2], "transformer_depth": [1, 1], "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1, "use_temporal_attention": False, "disable_self_attentions": None,
}  # fmt: skip
FLUX = {
    "in_channels": 4, "out_channels": 4, "vec_in_dim": 24, "context_in_dim": 48, "hidden_size": 64, "mlp_ratio": 4.0, "num_heads": 2,
    "depth": 2, "depth_single_blocks": 2, "axes_dim": [8, 12, 12], "theta": 10000, "qkv_bias": True, "patch_size": 2,
}  # fmt: skip

# name -> (config class, unet_config, latent shape without batch, text width, text tokens, conditioning extras)
MODELS: dict[str, tuple[str, dict[str, Any], tuple[int, ...], int, dict[str, Any]]] = {
    "SD15": ("SD15", {**UNET, "context_dim": 48, "adm_in_channels": None, "use_linear_in_transformer": False}, (4, 8, 8), 48, {}),
    "SDXL": ("SDXL", {**UNET, "model_channels": 64, "context_dim": 48, "adm_in_channels": 2816, "num_classes": "sequential", "use_linear_in_transformer": True}, (4, 8, 8), 48, {"pooled": 1280}),
    "SD3": ("SD3", {"in_channels": 16, "pos_embed_scaling_factor": None, "depth": 2, "pos_embed_max_size": 16, "adm_in_channels": 24, "patch_size": 2,
                    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 48, "out_features": 128}}, "num_patches": 256,
                    "qkv_bias": True, "rmsnorm": False, "x_block_self_attn_layers": []}, (16, 8, 8), 48, {"pooled": 24}),
    "Flux": ("Flux", {**FLUX, "image_model": "flux", "in_channels": 16, "out_channels": 16, "guidance_embed": True, "txt_ids_dims": []}, (16, 8, 8), 48, {"pooled": 24}),
    "Flux2": ("Flux2", {**FLUX, "image_model": "flux2", "in_channels": 128, "out_channels": 128, "patch_size": 1, "axes_dim": [8, 8, 8, 8], "theta": 2000,
                        "guidance_embed": True, "vec_in_dim": None, "mlp_ratio": 3.0, "qkv_bias": False, "ops_bias": False, "global_modulation": True,
                        "mlp_silu_act": True, "txt_ids_dims": [3], "default_ref_method": "index", "ref_index_scale": 10.0},
              (128, 4, 4), 48, {}),
    "Chroma": ("Chroma", {**{k: v for k, v in FLUX.items() if k != "vec_in_dim"}, "image_model": "chroma", "in_channels": 64, "out_channels": 64, "in_dim": 64, "out_dim": 64, "hidden_dim": 64, "n_layers": 2,
                          "txt_ids_dims": [], "vec_in_dim": None}, (16, 8, 8), 48, {}),
    "Lumina2": ("Lumina2", {"image_model": "lumina2", "patch_size": 2, "in_channels": 16, "cap_feat_dim": 48, "dim": 96, "n_layers": 2, "n_refiner_layers": 1,
                            "n_heads": 4, "n_kv_heads": 2, "qk_norm": True, "axes_dims": [8, 8, 8], "axes_lens": [64, 64, 64], "rope_theta": 10000.0,
                            "ffn_dim_multiplier": 4.0}, (16, 8, 8), 48, {}),
    "ZImage": ("ZImage", {"image_model": "lumina2", "patch_size": 2, "in_channels": 16, "cap_feat_dim": 48, "dim": 256, "n_layers": 2, "n_refiner_layers": 1,
                          "n_heads": 8, "n_kv_heads": 8, "qk_norm": True, "axes_dims": [8, 12, 12], "axes_lens": [64, 64, 64], "rope_theta": 256.0,
                          "ffn_dim_multiplier": 8.0 / 3.0, "z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 32}, (16, 8, 8), 48, {}),
    "QwenImage": ("QwenImage", {"image_model": "qwen_image", "in_channels": 64, "out_channels": 16, "num_layers": 2, "attention_head_dim": 32,
                                "num_attention_heads": 2, "joint_attention_dim": 48, "pooled_projection_dim": 32, "axes_dims_rope": (8, 12, 12)},
                  (16, 1, 8, 8), 48, {}),
    "Wan": ("WAN21_T2V", {"image_model": "wan2.1", "model_type": "t2v", "patch_size": (1, 2, 2), "text_len": 16, "in_dim": 16, "dim": 64, "ffn_dim": 128,
                          "freq_dim": 32, "text_dim": 48, "out_dim": 16, "num_heads": 2, "num_layers": 2, "window_size": (-1, -1), "qk_norm": True,
                          "cross_attn_norm": True, "eps": 1e-6}, (16, 1, 8, 8), 48, {}),
}  # fmt: skip


def build(name: str, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any) -> Any:
    """A MODEL (ModelPatcher) with seeded random weights, made inside inference mode as the executor does."""
    cls, unet_config, _, _, _ = MODELS[name]
    with torch.inference_mode():
        config = getattr(sm, cls)({**unet_config, **changes})
        config.set_inference_dtype(dtype, None)
        model = config.get_model({}, "", device=torch.device("cpu"))
        rng = torch.Generator().manual_seed(seed)
        for key, p in model.diffusion_model.named_parameters():
            scale = 0.6 / max(1, p.numel() // max(1, len(p))) ** 0.5 if p.ndim > 1 else 0.1
            base = 1.0 if p.ndim == 1 and key.endswith(("weight", "scale")) else 0.0
            p.copy_(base + scale * torch.randn(p.shape, generator=rng))
        for value in model.diffusion_model.buffers():  # some hold whatever was in memory until a checkpoint fills them
            if value.is_floating_point():
                value.copy_(0.1 * torch.randn(value.shape, generator=rng))
        return comfy.model_patcher.ModelPatcher(model, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))


def conditioning(name: str, seed: int, tokens: int = 6) -> list:
    """One [[text, extras]] conditioning with random numbers."""
    _, _, _, width, extras = MODELS[name]
    rng = torch.Generator().manual_seed(seed)
    pooled = {"pooled_output": torch.randn(1, extras["pooled"], generator=rng)} if "pooled" in extras else {"pooled_output": None}
    return [[torch.randn(1, tokens, width, generator=rng), pooled]]
