"""Configurations of the published models with narrow layers, once for all programs that build them by such names."""

from __future__ import annotations

from typing import Any

# Of the WebUIs that read checkpoints by shape.
_SD1 = {
    "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_heads": 4, "num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1, "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "use_linear_in_transformer": False, "context_dim": 24, "use_spatial_transformer": True,
}  # fmt: skip
_LINEAR = {"num_heads": -1, "num_head_channels": 16, "use_linear_in_transformer": True}
UNETS: dict[str, dict[str, Any]] = {
    "sd1": _SD1,
    "sd2": {**_SD1, **_LINEAR},
    "sdxl": {
        **_SD1, **_LINEAR, "adm_in_channels": 40, "num_classes": "sequential", "num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4],
        "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_middle": 10, "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    },
}  # fmt: skip
FLUX: dict[str, Any] = {
    "in_channels": 16, "vec_in_dim": 20, "context_in_dim": 24, "hidden_size": 32, "mlp_ratio": 4.0, "num_heads": 2, "depth": 19,
    "depth_single_blocks": 38, "axes_dim": [4, 4, 8], "theta": 10000, "qkv_bias": True,
}  # fmt: skip
SD3: dict[str, Any] = {
    "in_channels": 16, "depth": 3, "num_patches": 16, "pos_embed_max_size": 4, "adm_in_channels": 40,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 48, "out_features": 192}},
}  # fmt: skip

# Text encoders of a family -> their blocks, as many as the published CLIPs have; T5 has four of its own.
ENCODERS: dict[str, dict[str, int]] = {
    "sd1": {"clip_l": 12}, "sd2": {"clip_h": 23}, "sdxl": {"clip_l": 12, "clip_g": 32}, "flux1": {"clip_l": 12, "t5xxl": 4}, "chroma": {"t5xxl": 4},
    "sd3": {"clip_l": 12, "clip_g": 32, "t5xxl": 4}, "hunyuanvideo": {"clip_l": 12}, "ltxv": {"t5xxl": 4},
    "hidream": {"clip_l": 12, "clip_g": 32, "t5xxl": 4}, "kandinsky5": {"clip_l": 12}, "pixart": {"t5xxl": 4},
}  # fmt: skip
WIDTHS = {"clip_l": 768, "clip_h": 1024, "clip_g": 1280, "t5xxl": 4096}  # of the vectors of an embedding


def projects(family: str, encoder: str) -> bool:
    """Whether this family's CLIP has a projection; some programs give every one a projection."""
    return family in ("sd3", "hidream") or encoder == "clip_g"


_SMALL = {"hidden_act": "gelu", "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
CLIP: dict[str, Any] = {**_SMALL, "max_position_embeddings": 77, "eos_token_id": 2, "vocab_size": 64}
A1111_CLIP: dict[str, Any] = {**_SMALL, "num_hidden_layers": 3}
T5: dict[str, Any] = {
    "d_model": 16, "d_ff": 32, "d_kv": 8, "num_heads": 2, "num_layers": 4, "vocab_size": 64, "dense_act_fn": "gelu_pytorch_tanh", "is_gated_act": True,
    "model_type": "t5",
}  # fmt: skip

# --- configurations as ComfyUI and its kin read them off a checkpoint ------------------------------------------------------------------------

_UNET = {"image_size": 32, "use_temporal_attention": False, "disable_self_attentions": None, "legacy": False}
_FLUX = {**FLUX, "patch_size": 2, "out_channels": 16, "txt_ids_dims": []}
_WITHOUT_VECTOR = {k: v for k, v in _FLUX.items() if k != "vec_in_dim"}
_LUMINA2 = {
    "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "cap_feat_dim": 24, "dim": 96, "n_layers": 4, "n_refiner_layers": 2, "n_heads": 6,
    "n_kv_heads": 2, "qk_norm": True, "axes_dims": [4, 4, 8], "axes_lens": [64, 64, 64], "rope_theta": 10000.0, "ffn_dim_multiplier": 4.0,
}  # fmt: skip
_WAN = {
    "image_model": "wan2.1", "model_type": "i2v", "patch_size": (1, 2, 2), "text_len": 16, "in_dim": 36, "dim": 32, "ffn_dim": 64, "freq_dim": 16,
    "text_dim": 24, "out_dim": 16, "num_heads": 2, "num_layers": 4, "window_size": (-1, -1), "qk_norm": True, "cross_attn_norm": True, "eps": 1e-6,
}  # fmt: skip
_COSMOS2 = {
    "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16, "out_channels": 16, "patch_spatial": 2, "patch_temporal": 1,
    "model_channels": 32, "num_blocks": 3, "num_heads": 2, "concat_padding_mask": True, "crossattn_emb_channels": 24, "pos_emb_cls": "rope3d",
    "pos_emb_learnable": True, "pos_emb_interpolation": "crop", "min_fps": 1, "max_fps": 30, "use_adaln_lora": True, "adaln_lora_dim": 8,
    "extra_per_block_abs_pos_emb": False, "rope_enable_fps_modulation": False,
}  # fmt: skip
_LTX = {
    "image_model": "ltxv", "num_layers": 3, "attention_head_dim": 16, "num_attention_heads": 2, "cross_attention_dim": 32, "caption_channels": 24,
    "in_channels": 128,
}  # fmt: skip
# family -> (name of the program's own class, what it reads off a checkpoint)
HOST: dict[str, tuple[str, dict[str, Any]]] = {
    "sd1": ("SD15", {**UNETS["sd1"], **_UNET, "adm_in_channels": None}),
    "sd2": ("SD20", {**UNETS["sd2"], **_UNET, "adm_in_channels": None}),
    "sdxl": ("SDXL", {**UNETS["sdxl"], **_UNET}),
    "flux1": ("Flux", {**_FLUX, "image_model": "flux", "guidance_embed": True}),
    "chroma": ("Chroma", {
        **_WITHOUT_VECTOR, "image_model": "chroma", "in_channels": 64, "out_channels": 64, "in_dim": 64, "out_dim": 32, "hidden_dim": 48, "n_layers": 5,
        "vec_in_dim": None,
    }),
    "sd3": ("SD3", {
        **SD3, "input_size": None, "patch_size": 2, "pos_embed_scaling_factor": None, "x_block_self_attn_layers": [], "qkv_bias": True, "rmsnorm": False,
    }),
    "flux2": ("Flux2", {
        **_FLUX, "image_model": "flux2", "in_channels": 128, "out_channels": 128, "patch_size": 1, "axes_dim": [4, 4, 4, 4], "theta": 2000,
        "guidance_embed": True, "vec_in_dim": None, "mlp_ratio": 3.0, "qkv_bias": False, "ops_bias": False, "global_modulation": True, "mlp_silu_act": True,
        "txt_ids_dims": [3], "default_ref_method": "index", "ref_index_scale": 10.0, "depth": 8, "depth_single_blocks": 48,
    }),
    "z-image": ("ZImage", {
        **_LUMINA2, "dim": 128, "n_heads": 4, "n_kv_heads": 4, "axes_dims": [8, 12, 12], "rope_theta": 256.0, "ffn_dim_multiplier": 8 / 3,
        "z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 32,
    }),
    "lumina2": ("Lumina2", _LUMINA2),
    "qwen-image": ("QwenImage", {
        "image_model": "qwen_image", "in_channels": 64, "out_channels": 16, "num_layers": 3, "attention_head_dim": 16, "num_attention_heads": 2,
        "joint_attention_dim": 24, "pooled_projection_dim": 16, "axes_dims_rope": (4, 6, 6),
    }),
    "wan": ("WAN21_I2V", _WAN),
    "hunyuanvideo": ("HunyuanVideo", {
        "image_model": "hunyuan_video", "in_channels": 16, "out_channels": 16, "patch_size": [1, 2, 2], "vec_in_dim": 20, "context_in_dim": 24,
        "hidden_size": 32, "mlp_ratio": 4.0, "num_heads": 2, "depth": 3, "depth_single_blocks": 3, "axes_dim": [4, 4, 8], "theta": 256, "qkv_bias": True,
        "byt5": False, "guidance_embed": True, "meanflow": False, "meanflow_sum": False, "use_cond_type_embedding": False, "vision_in_dim": None,
    }),
    "ltxv": ("LTXV", _LTX),
    "ltxav": ("LTXAV", {
        **_LTX, "image_model": "ltxav", "audio_in_channels": 128, "audio_cross_attention_dim": 16, "audio_attention_head_dim": 8,
        "audio_num_attention_heads": 2, "connector_attention_head_dim": 8, "connector_num_attention_heads": 4,
    }),
    "hidream": ("HiDream", {
        "image_model": "hidream", "attention_head_dim": 16, "axes_dims_rope": [8, 4, 4], "caption_channels": [24, 24], "max_resolution": [128, 128],
        "in_channels": 16, "llama_layers": [0, 1], "num_attention_heads": 2, "num_routed_experts": 4, "num_activated_experts": 2, "num_layers": 2,
        "num_single_layers": 2, "out_channels": 16, "patch_size": 2, "text_emb_dim": 24,
    }),
    "anima": ("Anima", {**_COSMOS2, "image_model": "anima"}),
    "cosmospredict2": ("CosmosT2IPredict2", {**_COSMOS2, "image_model": "cosmos_predict2"}),
    "kandinsky5": ("Kandinsky5", {
        "image_model": "kandinsky5", "model_dim": 32, "in_visual_dim": 16, "out_visual_dim": 16, "patch_size": (1, 2, 2), "num_text_blocks": 2,
        "num_visual_blocks": 3, "in_text_dim": 24, "time_dim": 16, "ff_dim": 64, "visual_embed_dim": 132, "axes_dims": (4, 6, 6),
    }),
    "auraflow": ("AuraFlow", {"max_seq": 64, "cond_seq_dim": 24, "n_double_layers": 2, "n_layers": 5, "dim": 32, "n_heads": 2, "global_conddim": 32}),
    "pixart": ("PixArtAlpha", {
        "image_model": "pixart_alpha", "num_heads": 2, "hidden_size": 96, "depth": 3, "micro_condition": True, "in_channels": 4, "input_size": 64,
        "pe_interpolation": 1, "model_max_length": 300, "caption_channels": 24, "mlp_ratio": 4,
    }),
    "omnigen2": ("Omnigen2", {
        "image_model": "omnigen2", "axes_dim_rope": [8, 4, 4], "axes_lens": [1024, 1664, 1664], "ffn_dim_multiplier": None, "hidden_size": 48,
        "in_channels": 16, "multiple_of": 32, "norm_eps": 1e-5, "num_attention_heads": 3, "num_kv_heads": 1, "num_layers": 3, "num_refiner_layers": 2,
        "out_channels": None, "patch_size": 2, "text_feat_dim": 24, "timestep_scale": 1000.0,
    }),
    "krea2": ("Krea2", {
        "image_model": "krea2", "features": 64, "tdim": 32, "txtdim": 16, "heads": 2, "kvheads": 1, "multiplier": 4, "layers": 3, "patch": 2,
        "channels": 16, "txtlayers": 3, "txtheads": 2, "txtkvheads": 2,
    }),
    "ideogram4": ("Ideogram4", {
        "image_model": "ideogram4", "in_channels": 128, "num_layers": 3, "num_attention_heads": 2, "attention_head_dim": 32, "intermediate_size": 96,
        "adaln_dim": 32, "llm_features_dim": 48, "rope_theta": 5000000, "mrope_section": (6, 5, 5), "norm_eps": 1e-5,
    }),
    "ernieimage": ("ErnieImage", {
        "image_model": "ernie", "hidden_size": 64, "num_attention_heads": 2, "num_layers": 3, "ffn_hidden_size": 96, "text_in_dim": 24,
        "rope_axes_dim": (8, 12, 12),
    }),
    "longcatimage": ("LongCatImage", {
        **_WITHOUT_VECTOR, "image_model": "flux", "guidance_embed": False, "vec_in_dim": None, "txt_ids_dims": [1, 2], "depth": 3, "depth_single_blocks": 4,
    }),
}  # fmt: skip
