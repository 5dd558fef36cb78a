"""Models of diffusers' own classes with narrow layers, for programs that load their models by diffusers."""

from __future__ import annotations

import types

import diffusers
import torch
from loom_harness import clip, t5
from loom_small_models import ENCODERS, WIDTHS, projects
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel

TEXT = {
    "sd1": {"text_encoder": "clip_l"}, "sd2": {"text_encoder": "clip_h"}, "sdxl": {"text_encoder": "clip_l", "text_encoder_2": "clip_g"},
    "flux1": {"text_encoder": "clip_l", "text_encoder_2": "t5xxl"}, "sd3": {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"},
    "chroma": {"text_encoder": "t5xxl"}, "hunyuanvideo": {"text_encoder_2": "clip_l"}, "ltxv": {"text_encoder": "t5xxl"},
    "hidream": {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"}, "kandinsky5": {"text_encoder_2": "clip_l"},
    "pixart": {"text_encoder": "t5xxl"},
}  # fmt: skip
ATTENTION = {"attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 24}


def encoder(family: str, name: str) -> torch.nn.Module:
    layers = ENCODERS[family][name]
    return t5(16, layers) if name == "t5xxl" else clip(16, layers, projects(family, name))


def unet(levels: int, attention: tuple[int, ...], linear: bool, **more) -> torch.nn.Module:
    has = [level in attention for level in range(levels)]
    return diffusers.UNet2DConditionModel(
        sample_size=8, layers_per_block=2, block_out_channels=(16, 24, 32, 32)[:levels], norm_num_groups=8, attention_head_dim=8, cross_attention_dim=24,
        down_block_types=tuple("CrossAttnDownBlock2D" if h else "DownBlock2D" for h in has), use_linear_projection=linear,
        up_block_types=tuple("CrossAttnUpBlock2D" if h else "UpBlock2D" for h in reversed(has)), **more,
    )  # fmt: skip


def with_words(family: str) -> types.SimpleNamespace:
    """A pipeline's text encoders with the published widths and hardly a layer, each with a tokenizer of a word: what an embedding is put into."""
    pipeline = types.SimpleNamespace()
    for component, name in TEXT[family].items():
        width = WIDTHS[name]
        if name == "t5xxl":
            config = T5Config(vocab_size=8, d_model=width, d_kv=2, d_ff=2, num_layers=1, num_heads=1)
            encoder = T5EncoderModel(config)
        else:
            encoder = CLIPTextModel(
                CLIPTextConfig(
                    vocab_size=8, hidden_size=width, intermediate_size=2, num_hidden_layers=1, num_attention_heads=1
                )
            )
        words = CLIPTokenizer(vocab={"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}, merges=[])
        setattr(pipeline, component, encoder)
        setattr(pipeline, component.replace("text_encoder", "tokenizer"), words)
    return pipeline


def learnt(family: str, pipeline: types.SimpleNamespace, count: int = 2) -> dict[str, torch.Tensor]:
    """The vectors that the encoders have for `zog`, `zog_1`, ...; those that know no such words are left out."""
    out = {}
    for component, name in TEXT[family].items():
        words = getattr(pipeline, component.replace("text_encoder", "tokenizer"))
        known = words.get_vocab()
        numbers = [known[word] for word in ["zog", *(f"zog_{n}" for n in range(1, count))] if word in known]
        if len(numbers) == count:
            out[name] = getattr(pipeline, component).get_input_embeddings().weight.detach()[numbers]
    return out


NEWER = {  # family -> (class, configuration)
    "hunyuanvideo": ("HunyuanVideoTransformer3DModel", {
        "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 3, "num_single_layers": 3, "text_embed_dim": 24, "pooled_projection_dim": 20,
        "rope_axes_dim": (4, 4, 8),
    }),
    "ltxv": ("LTXVideoTransformer3DModel", {
        "num_attention_heads": 2, "attention_head_dim": 16, "cross_attention_dim": 32, "num_layers": 3, "caption_channels": 24,
    }),
    "ltxav": ("LTX2VideoTransformer3DModel", {
        "num_attention_heads": 2, "attention_head_dim": 16, "cross_attention_dim": 32, "num_layers": 3, "caption_channels": 24,
        "audio_num_attention_heads": 2, "audio_attention_head_dim": 8, "audio_cross_attention_dim": 16,
    }),
    "hidream": ("HiDreamImageTransformer2DModel", {
        "patch_size": 2, "in_channels": 16, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
        "caption_channels": [24, 24], "text_emb_dim": 24, "axes_dims_rope": (8, 4, 4), "llama_layers": [0, 1], "out_channels": 16,
    }),
    "anima": ("CosmosTransformer3DModel", {
        "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 3, "text_embed_dim": 24, "adaln_lora_dim": 8, "extra_pos_embed_type": None,
    }),
    "cosmospredict2": ("CosmosTransformer3DModel", {
        "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 3, "text_embed_dim": 24, "adaln_lora_dim": 8, "extra_pos_embed_type": None,
    }),
    "kandinsky5": ("Kandinsky5Transformer3DModel", {
        "in_visual_dim": 16, "out_visual_dim": 16, "in_text_dim": 24, "in_text_dim2": 20, "time_dim": 16, "model_dim": 32, "ff_dim": 64,
        "num_text_blocks": 2, "num_visual_blocks": 3, "axes_dims": (4, 6, 6),
    }),
    "auraflow": ("AuraFlowTransformer2DModel", {
        "num_mmdit_layers": 2, "num_single_dit_layers": 5, "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 24,
        "caption_projection_dim": 32, "pos_embed_max_size": 64,
    }),
    "pixart": ("PixArtTransformer2DModel", {
        "num_attention_heads": 2, "attention_head_dim": 48, "num_layers": 3, "cross_attention_dim": 96, "caption_channels": 24, "sample_size": 128,
        "use_additional_conditions": True,
    }),
    "krea2": ("Krea2Transformer2DModel", {
        "in_channels": 64, "num_layers": 3, "attention_head_dim": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 96,
        "timestep_embed_dim": 32, "text_hidden_dim": 16, "num_text_layers": 3, "text_num_attention_heads": 2, "text_num_key_value_heads": 2,
        "text_intermediate_size": 40, "axes_dims_rope": (8, 12, 12),
    }),
    "ideogram4": ("Ideogram4Transformer2DModel", {
        "num_layers": 3, "attention_head_dim": 32, "num_attention_heads": 2, "intermediate_size": 96, "adaln_dim": 32, "llm_features_dim": 48,
        "mrope_section": (6, 5, 5),
    }),
    "ernieimage": ("ErnieImageTransformer2DModel", {
        "hidden_size": 64, "num_attention_heads": 2, "num_layers": 3, "ffn_hidden_size": 96, "text_in_dim": 24, "rope_axes_dim": (8, 12, 12),
    }),
    "longcatimage": ("LongCatImageTransformer2DModel", {
        "num_layers": 3, "num_single_layers": 4, "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 24, "pooled_projection_dim": 20,
        "axes_dims_rope": [4, 4, 8],
    }),
}  # fmt: skip


def denoiser(family: str, depth: int = 10) -> torch.nn.Module:
    """`depth`: transformer blocks at SDXL's lowest level."""
    if family in NEWER:
        cls, config = NEWER[family]
        return getattr(diffusers, cls)(**config)
    two_stream = {"patch_size": 1, "in_channels": 8, "num_layers": 3, "num_single_layers": 4, **ATTENTION}
    if family in ("sd1", "sd2"):
        return unet(4, (0, 1, 2), family == "sd2")
    if family == "sdxl":
        pooled = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 80,
        }
        return unet(3, (1, 2), True, transformer_layers_per_block=(1, 2, depth), **pooled)
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
