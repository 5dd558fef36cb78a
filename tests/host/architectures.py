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

_WAN, _QWEN, _CHROMA = MODELS["Wan"][1], MODELS["QwenImage"][1], MODELS["Chroma"][1]
_UNET_SD, _UNET_XL, _FLUX1 = MODELS["SD15"][1], MODELS["SDXL"][1], MODELS["Flux"][1]
_HUNYUAN = {
    "image_model": "hunyuan_video", "in_channels": 16, "out_channels": 16, "patch_size": [1, 2, 2], "vec_in_dim": 32, "context_in_dim": 48, "hidden_size": 64,
    "mlp_ratio": 4.0, "num_heads": 2, "depth": 1, "depth_single_blocks": 1, "axes_dim": [8, 12, 12], "theta": 256, "qkv_bias": True, "byt5": False,
    "guidance_embed": True, "meanflow": False, "meanflow_sum": False, "use_cond_type_embedding": False, "vision_in_dim": None,
}  # fmt: skip
_HUNYUAN15 = {
    **_HUNYUAN,
    "patch_size": [1, 1, 1],
    "out_channels": 32,
    "vec_in_dim": None,
    "guidance_embed": False,
    "vision_in_dim": 40,
}
_COSMOS2 = {
    "image_model": "cosmos_predict2", "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16, "out_channels": 16, "patch_spatial": 2,
    "patch_temporal": 1, "model_channels": 64, "num_blocks": 1, "num_heads": 2, "concat_padding_mask": True, "crossattn_emb_channels": 48,
    "pos_emb_cls": "rope3d", "pos_emb_learnable": True, "pos_emb_interpolation": "crop", "min_fps": 1, "max_fps": 30, "use_adaln_lora": True,
    "adaln_lora_dim": 16, "extra_per_block_abs_pos_emb": False, "rope_enable_fps_modulation": False,
}  # fmt: skip
_KANDINSKY5 = {
    "image_model": "kandinsky5", "model_dim": 64, "in_visual_dim": 16, "out_visual_dim": 16, "patch_size": (1, 2, 2), "num_text_blocks": 1,
    "num_visual_blocks": 1, "in_text_dim": 48, "time_dim": 32, "ff_dim": 128, "visual_embed_dim": 132, "axes_dims": (8, 12, 12),
}  # fmt: skip

# Kin of the models above: distilled ones, those without guidance, and those that read a picture, a mask or a control input beside noise and text.
KIN: dict[str, tuple[str, dict[str, Any], tuple[int, ...], int, dict[str, Any]]] = {
    "SD15 inpaint": ("SD15", {**_UNET_SD, "in_channels": 9}, (4, 8, 8), 48, {}),
    "SDXL inpaint": ("SDXL", {**_UNET_XL, "in_channels": 9}, (4, 8, 8), 48, {"pooled": 1280}),
    "SD15 ip2p": ("SD15_instructpix2pix", {**_UNET_SD, "in_channels": 8}, (4, 8, 8), 48, {}),
    "SDXL ip2p": ("SDXL_instructpix2pix", {**_UNET_XL, "in_channels": 8}, (4, 8, 8), 48, {"pooled": 1280}),
    "SD15 depth": ("SD15", {**_UNET_SD, "in_channels": 5}, (4, 8, 8), 48, {}),
    "SD2 unCLIP": ("SD21UnclipL", {**_UNET_XL, "adm_in_channels": 1536}, (4, 8, 8), 48, {}),
    "Flux schnell": ("FluxSchnell", {**_FLUX1, "guidance_embed": False}, (16, 8, 8), 48, {"pooled": 24}),
    "Flux Fill": ("FluxInpaint", {**_FLUX1, "in_channels": 96}, (16, 8, 8), 48, {"pooled": 24}),
    "Flux Canny": ("Flux", {**_FLUX1, "in_channels": 32}, (16, 8, 8), 48, {"pooled": 24}),
    "Flux2 Klein": ("Flux2", {**MODELS["Flux2"][1], "guidance_embed": False}, (128, 4, 4), 48, {}),
    "Chroma Radiance": ("ChromaRadiance", {**_CHROMA, "image_model": "chroma_radiance", "in_channels": 3, "out_channels": 3, "patch_size": 16,
                        "nerf_hidden_size": 16, "nerf_mlp_ratio": 2, "nerf_depth": 2, "nerf_max_freqs": 4, "nerf_tile_size": 512,
                        "nerf_final_head_type": "conv", "nerf_embedder_dtype": torch.float32, "use_x0": False, "use_sequential_txt_ids": False},
                        (3, 64, 64), 48, {}),
    "HunyuanVideo": ("HunyuanVideo", _HUNYUAN, (16, 1, 8, 8), 48, {"pooled": 32}),
    "HunyuanVideo I2V": ("HunyuanVideoI2V", {**_HUNYUAN, "in_channels": 33}, (16, 1, 8, 8), 48, {"pooled": 32}),
    "SkyReels I2V": ("HunyuanVideoSkyreelsI2V", {**_HUNYUAN, "in_channels": 32}, (16, 1, 8, 8), 48, {"pooled": 32}),
    "HunyuanVideo 1.5": ("HunyuanVideo15", {**_HUNYUAN15, "in_channels": 65}, (32, 1, 8, 8), 48, {}),
    "HunyuanVideo 1.5 SR": ("HunyuanVideo15_SR_Distilled", {**_HUNYUAN15, "in_channels": 98}, (32, 1, 8, 8), 48, {}),
    "HunyuanImage refiner": ("HunyuanImage21Refiner", {**_HUNYUAN15, "in_channels": 128, "out_channels": 64}, (64, 1, 8, 8), 48, {}),
    "Kandinsky 5": ("Kandinsky5", _KANDINSKY5, (16, 1, 8, 8), 48, {"pooled": 768}),
    "Cosmos Predict2 video": ("CosmosI2VPredict2", {**_COSMOS2, "in_channels": 17}, (16, 1, 8, 8), 48, {}),
    "Cosmos Predict2 picture": ("CosmosT2IPredict2", _COSMOS2, (16, 1, 8, 8), 48, {}),
    "Qwen Layered": ("QwenImage", {**_QWEN, "use_additional_t_cond": True, "default_ref_method": "negative_index"}, (16, 1, 8, 8), 48, {}),
    "Qwen Edit 2511": ("QwenImage", {**_QWEN, "default_ref_method": "index_timestep_zero"}, (16, 1, 8, 8), 48, {}),
    "Wan 2.2 TI2V": ("WAN22_T2V", {**_WAN, "in_dim": 48, "out_dim": 48}, (48, 1, 8, 8), 48, {}),
    "Wan 2.1 I2V": ("WAN21_I2V", {**_WAN, "model_type": "i2v", "in_dim": 36}, (16, 1, 8, 8), 48, {}),
    "Wan 2.2 I2V": ("WAN21_T2V", {**_WAN, "in_dim": 36}, (16, 1, 8, 8), 48, {}),
    "Wan Fun-Control": ("WAN21_FunControl2V", {**_WAN, "model_type": "i2v", "in_dim": 48}, (16, 1, 8, 8), 48, {}),
    "Wan VACE": ("WAN21_Vace", {**_WAN, "model_type": "vace", "vace_layers": 1, "vace_in_dim": 96}, (16, 1, 8, 8), 48, {}),
    "Wan camera": ("WAN21_Camera", {**_WAN, "model_type": "camera", "in_dim": 32}, (16, 1, 8, 8), 48, {}),
    "Wan HuMo": ("WAN21_HuMo", {**_WAN, "model_type": "humo", "in_dim": 36}, (16, 1, 8, 8), 48, {}),
    "Wan S2V": ("WAN22_S2V", {**_WAN, "model_type": "s2v"}, (16, 1, 8, 8), 48, {}),
    "Wan Animate": ("WAN22_Animate", {**_WAN, "model_type": "animate", "in_dim": 36}, (16, 1, 8, 8), 48, {}),
    "Wan SCAIL": ("WAN21_SCAIL", {**_WAN, "model_type": "scail", "in_dim": 20}, (16, 1, 8, 8), 48, {}),
}  # fmt: skip

# Models that wanted something of their own before they trained: updates in place outside of norms, latents of one dimension, in pixels or of a least size,
# a class that shares its name with another, conditioning beyond text.
_LTX = {
    "image_model": "ltxv",
    "num_layers": 2,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "cross_attention_dim": 64,
    "caption_channels": 48,
    "in_channels": 128,
}
_PIXART = {"image_model": "pixart_sigma", "num_heads": 2, "hidden_size": 64, "depth": 2, "micro_condition": False, "in_channels": 4, "input_size": 64,
           "pe_interpolation": 1, "model_max_length": 300, "caption_channels": 48, "mlp_ratio": 4}  # fmt: skip
_PIXELDIT = {"image_model": "pixeldit_t2i", "num_groups": 2, "hidden_size": 64, "pixel_hidden_size": 8, "pixel_attn_hidden_size": 64, "pixel_num_groups": 2,
             "patch_depth": 2, "pixel_depth": 1, "patch_size": 16, "txt_embed_dim": 48, "txt_max_length": 300}  # fmt: skip
_HUNYUAN_IMAGE = {
    **_HUNYUAN, "in_channels": 64, "out_channels": 64, "patch_size": [1, 1], "axes_dim": [16, 16], "vec_in_dim": None, "byt5": True, "guidance_embed": False,
}  # fmt: skip
_ACE = {"audio_model": "ace1.5", "hidden_size": 64, "text_hidden_dim": 48, "num_dit_layers": 2, "num_lyric_layers": 1, "num_timbre_layers": 1,
        "num_tokenizer_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_dim": 32, "intermediate_size": 96, "fsq_dim": 64, "encoder_hidden_size": 64,
        "encoder_intermediate_size": 96, "encoder_num_heads": 2}  # fmt: skip
_MINIMAX = {"image_model": "minimax_h3", "hidden_size": 64, "num_layers": 2, "token_refiner_num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 32,
            "ffn_hidden_size": 96, "latents_dim": 24, "audio_latents_dim": 32, "text_dim": 48, "timestep_input_dim": 32, "time_embed_hidden_size": 32,
            "time_embed_dim": 32, "rope_inv_freq_len": 4}  # fmt: skip
_HUNYUAN_3D = {"image_model": "hunyuan3d2", "in_channels": 64, "context_in_dim": 48, "hidden_size": 64, "mlp_ratio": 4.0, "num_heads": 2, "depth": 2,
               "depth_single_blocks": 2, "qkv_bias": True, "guidance_embed": False}  # fmt: skip


def _masked(rng: torch.Generator, tokens: int) -> dict[str, Any]:
    return {"attention_mask": torch.ones(1, tokens, dtype=torch.long)}


def _byt5(rng: torch.Generator, tokens: int) -> dict[str, Any]:
    return {"conditioning_byt5small": torch.randn(1, 4, 1472, generator=rng)}


_HIDREAM_O1 = {
    "image_model": "hidream_o1",
    "text_config_overrides": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
                              "head_dim": 32, "rope_dims": [8, 4, 4]},
    "vision_config_overrides": {"hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "depth": 1, "num_position_embeddings": 16},
}  # fmt: skip


def _tokens(rng: torch.Generator, tokens: int) -> dict[str, Any]:
    """As its text encoder gives them: words, and last what begins a picture and what stands for the noise level."""
    words = torch.randint(100, 1000, (tokens - 2,), generator=rng).tolist()
    return {"text_input_ids": torch.tensor([[*words, 151669, 151673]])}


def _lyrics(rng: torch.Generator, tokens: int) -> dict[str, Any]:
    return {"conditioning_lyrics": torch.randn(1, 5, 48, generator=rng)}


def _cascade_b(rng: torch.Generator, tokens: int) -> dict[str, Any]:
    return {"stable_cascade_prior": torch.randn(1, 16, 4, 4, generator=rng)}


_REFINER = {**_UNET_XL, "adm_in_channels": 2560}
SPECIAL: dict[str, tuple[str, dict[str, Any], tuple[int, ...], int, dict[str, Any]]] = {
    "SDXL refiner": ("SDXLRefiner", _REFINER, (4, 8, 8), 48, {"pooled": 1280}),
    "LTXV": ("LTXV", _LTX, (128, 1, 8, 8), 48, {"more": _masked}),
    "LTXAV": ("LTXAV", {**_LTX, "image_model": "ltxav", "audio_in_channels": 128, "audio_cross_attention_dim": 32, "audio_attention_head_dim": 16,
                        "audio_num_attention_heads": 2}, (128, 1, 8, 8), 96, {"more": _masked}),
    "PixArt Sigma": ("PixArtSigma", _PIXART, (4, 64, 64), 48, {}),
    "PixArt alpha": ("PixArtAlpha", {**_PIXART, "image_model": "pixart_alpha", "micro_condition": True, "hidden_size": 96}, (4, 64, 40), 48, {}),
    "PixelDiT": ("PixelDiTT2I", _PIXELDIT, (3, 64, 64), 48, {"more": _masked}),
    "Cascade B": ("Stable_Cascade_B", {"stable_cascade_stage": "b", "c_cond": 32, "c_hidden": [32, 32, 32, 32], "nhead": [-1, -1, 2, 2],
                  "blocks": [[1, 1, 1, 1], [1, 1, 1, 1]], "block_repeat": [[1, 1, 1, 1], [1, 1, 1, 1]], "c_clip": 48}, (4, 32, 32), 48,
                  {"pooled": 48, "more": _cascade_b}),
    "HunyuanImage distilled": ("HunyuanImage21", {**_HUNYUAN_IMAGE, "guidance_embed": True, "meanflow": True}, (64, 8, 8), 48, {"more": _byt5}),
    "ACE-Step 1.5": ("ACEStep15", _ACE, (64, 20), 48, {"more": _lyrics}),
    "Hunyuan3D": ("Hunyuan3Dv2", _HUNYUAN_3D, (64, 32), 48, {}),
    "MiniMax H3": ("MiniMaxH3", _MINIMAX, (24, 1, 8, 8), 48, {}),
}  # fmt: skip


_FLUX1_BARE = {**_FLUX1, "guidance_embed": False, "vec_in_dim": None, "txt_ids_dims": [1, 2]}
_HUNYUAN_DIT = {"hidden_size": 64, "depth": 4, "num_heads": 2, "text_states_dim": 48, "text_states_dim_t5": 32}


def _numbers(rng: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=rng)


def _with_t5(rng: torch.Generator, tokens: int) -> dict[str, Any]:
    """What HunyuanDiT's two encoders give."""
    masks = {"attention_mask": torch.ones(1, 77).long(), "attention_mask_mt5xl": torch.ones(1, 256).long()}
    return {"conditioning_mt5xl": _numbers(rng, 1, 256, 32), **masks}


# Further families that are trained. "mask": the text comes with an attention mask; "more": what else its encoders give, by (rng, tokens).
MORE: dict[str, tuple[str, dict[str, Any], tuple[int, ...], int, dict[str, Any]]] = {
    "SD2": ("SD20", {**_UNET_SD, "model_channels": 64, "use_linear_in_transformer": True}, (4, 8, 8), 48, {}),
    "SDXL refiner": ("SDXLRefiner", {**_UNET_XL, "adm_in_channels": 2560}, (4, 8, 8), 48, {"pooled": 1280}),
    "SD3.5 medium": ("SD3", {**MODELS["SD3"][1], "x_block_self_attn_layers": [0], "qk_norm": "rms"}, (16, 8, 8), 48, {"pooled": 24}),
    "Stable Cascade C": ("Stable_Cascade_C", {"stable_cascade_stage": "c", "c_cond": 32, "c_hidden": [32, 32], "nhead": [2, 2], "blocks": [[1, 1], [1, 1]],
                         "c_clip_text": 48, "c_clip_text_pooled": 48}, (16, 8, 8), 48, {"pooled": 48}),
    "AuraFlow": ("AuraFlow", {"max_seq": 64, "cond_seq_dim": 48, "n_double_layers": 1, "n_layers": 2, "dim": 64, "n_heads": 2, "global_conddim": 64},
                 (4, 8, 8), 48, {}),
    "HunyuanDiT": ("HunyuanDiT", {**_HUNYUAN_DIT, "image_model": "hydit"}, (4, 8, 8), 48, {"pooled": 24, "tokens": 77, "more": _with_t5}),
    "HunyuanDiT 1.0": ("HunyuanDiT1", {**_HUNYUAN_DIT, "image_model": "hydit1", "size_cond": True, "use_style_cond": True}, (4, 8, 8), 48,
                       {"pooled": 24, "tokens": 77, "more": _with_t5}),
    "HiDream": ("HiDream", {"image_model": "hidream", "attention_head_dim": 128, "axes_dims_rope": [64, 32, 32], "caption_channels": [48, 48],
                "max_resolution": [128, 128], "in_channels": 16, "llama_layers": [0, 1, 2], "num_attention_heads": 1, "num_routed_experts": 4,
                "num_activated_experts": 2, "num_layers": 1, "num_single_layers": 1, "out_channels": 16, "patch_size": 2, "text_emb_dim": 48}, (16, 8, 8), 48,
                {"pooled": 48, "more": lambda rng, tokens: {"conditioning_llama3": _numbers(rng, 1, 3, tokens, 48)}}),
    "LongCat": ("LongCatImage", _FLUX1_BARE, (16, 8, 8), 48, {}),
    "Ovis": ("FluxSchnell", {**_FLUX1_BARE, "yak_mlp": True, "txt_norm": True}, (16, 8, 8), 48, {}),
    "Lens": ("Lens", {"image_model": "lens", "in_channels": 128, "out_channels": 32, "num_layers": 2, "attention_head_dim": 32, "num_attention_heads": 2,
             "enc_hidden_dim": 48, "axes_dims_rope": (8, 12, 12), "multi_layer_encoder_feature": False, "selected_layer_index": (0,)}, (128, 4, 4), 48,
             {"mask": True}),
    "HunyuanImage 2.1": ("HunyuanImage21", _HUNYUAN_IMAGE, (64, 8, 8), 48,
                         {"more": lambda rng, tokens: {"conditioning_byt5small": _numbers(rng, 1, 4, 1472)}}),
    "Cosmos 1": ("CosmosT2V", {"image_model": "cosmos", "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16, "out_channels": 16,
                 "patch_spatial": 2, "patch_temporal": 1, "model_channels": 64, "block_config": "FA-CA-MLP", "concat_padding_mask": True,
                 "pos_emb_cls": "rope3d", "pos_emb_learnable": False, "pos_emb_interpolation": "crop", "block_x_format": "THWBD", "affline_emb_norm": True,
                 "use_adaln_lora": True, "adaln_lora_dim": 16, "num_blocks": 2, "num_heads": 2, "extra_per_block_abs_pos_emb": True,
                 "rope_h_extrapolation_ratio": 1.0, "rope_w_extrapolation_ratio": 1.0, "rope_t_extrapolation_ratio": 2.0,
                 "extra_per_block_abs_pos_emb_type": "learnable", "crossattn_emb_channels": 48}, (16, 1, 8, 8), 48, {}),
    "Anima": ("Anima", {**_COSMOS2, "image_model": "anima", "crossattn_emb_channels": 1024}, (16, 1, 8, 8), 1024,
              {"more": lambda rng, tokens: {"t5xxl_ids": torch.randint(1, 32000, (tokens,), generator=rng), "t5xxl_weights": torch.ones(tokens)}}),
    "HiDream O1": ("HiDreamO1", _HIDREAM_O1, (3, 64, 64), 1, {"more": _tokens}),
    "Z-Image in pixels": ("ZImagePixelSpace", {**MODELS["ZImage"][1], "image_model": "zimage_pixel", "patch_size": 16, "in_channels": 3,
                          "decoder_hidden_size": 32, "decoder_num_res_blocks": 1, "decoder_max_freqs": 2, "decoder_in_channels": 768}, (3, 64, 64), 48, {}),
    "Z-Image Omni": ("ZImage", {**MODELS["ZImage"][1], "siglip_feat_dim": 32}, (16, 8, 8), 48, {"mask": True}),
    "NewBie": ("Lumina2", {**MODELS["Lumina2"][1], "clip_text_dim": 24}, (16, 8, 8), 48, {"pooled": 24, "mask": True}),
    "OmniGen2": ("Omnigen2", {"image_model": "omnigen2", "axes_dim_rope": [16, 8, 8], "axes_lens": [1024, 1664, 1664], "ffn_dim_multiplier": None,
                 "hidden_size": 64, "in_channels": 16, "multiple_of": 64, "norm_eps": 1e-5, "num_attention_heads": 2, "num_kv_heads": 1, "num_layers": 2,
                 "num_refiner_layers": 1, "out_channels": None, "patch_size": 2, "text_feat_dim": 48, "timestep_scale": 1000.0}, (16, 8, 8), 48, {"mask": True}),
    "Boogu": ("Boogu", {"image_model": "boogu", "hidden_size": 64, "num_layers": 2, "num_double_stream_layers": 1, "num_refiner_layers": 1,
              "num_attention_heads": 2, "num_kv_heads": 1, "multiple_of": 64, "axes_dim_rope": (16, 8, 8), "instruction_feat_dim": 48}, (16, 8, 8), 48,
              {"mask": True}),
    "Mage-Flow": ("MageFlow", {"image_model": "mage_flow", "in_channels": 128, "num_layers": 2, "attention_head_dim": 32, "num_attention_heads": 2,
                  "joint_attention_dim": 48, "axes_dims_rope": (8, 12, 12)}, (128, 4, 4), 48, {}),
    "JoyImage": ("JoyImage", {"image_model": "joyimage", "hidden_size": 64, "num_attention_heads": 2, "text_dim": 48, "num_layers": 2,
                 "rope_dim_list": [8, 12, 12], "theta": 10000}, (16, 1, 8, 8), 48, {}),
    "Ideogram 4": ("Ideogram4", {"image_model": "ideogram4", "in_channels": 128, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 32,
                   "intermediate_size": 96, "adaln_dim": 32, "llm_features_dim": 48, "rope_theta": 5000000, "mrope_section": (6, 5, 5), "norm_eps": 1e-5},
                   (128, 4, 4), 48, {}),
    "Krea 2": ("Krea2", {"image_model": "krea2", "features": 64, "tdim": 32, "txtdim": 16, "heads": 2, "kvheads": 1, "multiplier": 4, "layers": 2, "patch": 2,
               "channels": 16, "txtlayers": 3, "txtheads": 2, "txtkvheads": 2}, (16, 1, 8, 8), 48, {}),
    "Kandinsky 5 picture": ("Kandinsky5Image", {**_KANDINSKY5, "visual_embed_dim": 64}, (16, 8, 8), 48, {"pooled": 768}),
    "ERNIE-Image": ("ErnieImage", {"image_model": "ernie", "hidden_size": 64, "num_attention_heads": 2, "num_layers": 2, "ffn_hidden_size": 96,
                    "text_in_dim": 48, "rope_axes_dim": (8, 12, 12)}, (128, 4, 4), 48, {}),
}  # fmt: skip

# Model classes of the host whose network is another's: smaller UNets of the kind of SDXL, distilled or causal Wan, kin that read more than text.
FURTHER: dict[str, tuple[str, dict[str, Any], tuple[int, ...], int, dict[str, Any]]] = {
    "SSD-1B": ("SSD1B", _UNET_XL, (4, 8, 8), 48, {"pooled": 1280}),
    "Segmind Vega": ("Segmind_Vega", _UNET_XL, (4, 8, 8), 48, {"pooled": 1280}),
    "KOALA 700M": ("KOALA_700M", _UNET_XL, (4, 8, 8), 48, {"pooled": 1280}),
    "KOALA 1B": ("KOALA_1B", _UNET_XL, (4, 8, 8), 48, {"pooled": 1280}),
    "Wan causal": ("WAN21_CausalAR_T2V", _WAN, (16, 1, 8, 8), 48, {}),
    "Mochi": ("GenmoMochi", {"image_model": "mochi_preview", "patch_size": 2, "in_channels": 12, "hidden_size_x": 64, "hidden_size_y": 32, "depth": 2,
              "num_heads": 2, "mlp_ratio_x": 192.0, "mlp_ratio_y": 4.0, "learn_sigma": False, "use_t5": True, "t5_feat_dim": 48, "t5_token_length": 16,
              "attend_to_padding": False, "timestep_scale": 1000.0, "use_extended_posenc": True, "posenc_preserve_area": True, "rope_theta": 10000.0,
              "qk_norm": True, "qkv_bias": False, "out_bias": True, "patch_embed_bias": True}, (12, 1, 8, 8), 48, {"mask": True}),
    "Cosmos 1 video": ("CosmosI2V", {**MORE["Cosmos 1"][1], "in_channels": 17}, (16, 1, 8, 8), 48, {}),
    "Wan 2.2 camera": ("WAN22_Camera", {**_WAN, "model_type": "camera_2.2", "in_dim": 36}, (16, 1, 8, 8), 48, {}),
    "Wan FlowRVS": ("WAN21_FlowRVS", {**_WAN, "model_type": "flow_rvs"}, (16, 1, 8, 8), 48, {}),
    "SD2 unCLIP H": ("SD21UnclipH", {**_UNET_XL, "adm_in_channels": 2048}, (4, 8, 8), 48, {}),
    "Hunyuan3D mini": ("Hunyuan3Dv2mini", _HUNYUAN_3D, (64, 32), 48, {}),
    "CogVideoX": ("CogVideoX_T2V", {"image_model": "cogvideox", "num_attention_heads": 2, "attention_head_dim": 32, "in_channels": 16, "out_channels": 16,
                  "time_embed_dim": 32, "text_embed_dim": 48, "num_layers": 1, "use_rotary_positional_embeddings": True}, (16, 1, 8, 8), 48, {}),
}  # fmt: skip
FURTHER_TRAINED = ["SSD-1B", "Segmind Vega", "KOALA 700M", "KOALA 1B", "Wan causal", "Mochi"]

# Models of the tables above whose file says what they were made for: its name is the one thing that tells them.
BY_FILE: dict[str, tuple[str, str]] = {
    "HunyuanVideo v2 I2V": ("HunyuanVideo", "hunyuan_video_v2_replace_image_to_video_i2v.safetensors")
}

# All that are trained from noise and text alone.
TRAINED = [
    *MODELS, "Flux schnell", "Flux2 Klein", "Chroma Radiance", "HunyuanVideo", "HunyuanVideo 1.5", "Kandinsky 5", "Cosmos Predict2 picture", "Wan 2.2 TI2V",
    *MORE, *FURTHER_TRAINED,
]  # fmt: skip


TABLES = (MODELS, KIN, SPECIAL, MORE, FURTHER)


def row_of(name: str) -> tuple[str, dict[str, Any], tuple[int, ...], int, dict[str, Any]]:
    of = BY_FILE[name][0] if name in BY_FILE else name
    return next(table[of] for table in TABLES if of in table)


def build(name: str, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any) -> Any:
    """A MODEL (ModelPatcher) with seeded random weights, made inside inference mode as the executor does."""
    cls, unet_config, _, _, _ = row_of(name)
    with torch.inference_mode():
        config = getattr(sm, cls)({**unet_config, **changes})
        if "model_channels" not in unet_config:  # UNets take the number of heads from their class, as headless ones do
            config.unet_config.update({**unet_config, **changes})  # some other classes put the published sizes back
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
        cpu = torch.device("cpu")
        patcher = comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)
        if name in BY_FILE:
            patcher.cached_patcher_init = (None, (BY_FILE[name][1],))  # as the host's loaders leave it
        return patcher


def conditioning(name: str, seed: int, tokens: int = 6) -> list:
    """One [[text, extras]] conditioning with random numbers."""
    _, _, _, width, extras = row_of(name)
    rng, tokens = torch.Generator().manual_seed(seed), extras.get("tokens", tokens)
    beside: dict[str, Any] = {"pooled_output": None}
    if "pooled" in extras:
        beside["pooled_output"] = torch.randn(1, extras["pooled"], generator=rng)
    text = torch.randn(1, tokens, width, generator=rng)
    if extras.get("mask"):
        beside["attention_mask"] = torch.ones(1, tokens, dtype=torch.long)
    if "more" in extras:
        beside |= extras["more"](rng, tokens)
    return [[text, beside]]
