"""Flow-matching models with tiny random weights in diffusers layout, as their own libraries save them."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from shapes import MODEL

CLIP = {"vocab_size": 619, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 77,
        "bos_token_id": 617, "eos_token_id": 618, "pad_token_id": 618, "projection_dim": 32}  # fmt: skip
QWEN = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 8, "max_position_embeddings": 2048}  # fmt: skip
CHAT = "{% for m in messages %}<user>{{ m['content'] }}{% endfor %}<assistant>"


def _byte_tokenizer(length: int):
    """One token for each byte; a fast tokenizer without a vocabulary file."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {
        "<pad>": 0,
        "</s>": 1,
        **{c: n + 2 for n, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))},
    }
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", model_max_length=length
    )
    made.chat_template = CHAT
    return made


def _clip(folder: Path, part: str):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    shutil.copytree(MODEL / "tokenizer", folder / f"made_tokenizer{part}")
    kind = CLIPTextModelWithProjection if part or folder.name.startswith("sd3") else CLIPTextModel
    return kind(CLIPTextConfig(**CLIP))


def _t5():
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(vocab_size=300, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu")
    )


def _vae(**settings):
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2, block_out_channels=[32, 32], norm_num_groups=8,
        layers_per_block=1, latent_channels=4, use_quant_conv=False, use_post_quant_conv=False, scaling_factor=0.36, shift_factor=0.12, **settings,
    )  # fmt: skip


def sd3(folder: Path):
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTokenizer

    transformer = SD3Transformer2DModel(
        sample_size=32, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4, joint_attention_dim=64,
        caption_projection_dim=32, pooled_projection_dim=64, pos_embed_max_size=64,
    )  # fmt: skip
    first, second = _clip(folder, ""), _clip(folder, "_2")
    words = CLIPTokenizer.from_pretrained(folder / "made_tokenizer")
    t5 = _t5()
    t5.config.d_model = 32
    wide = type(t5)(
        type(t5.config)(
            vocab_size=300, d_model=64, d_kv=8, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
        )
    )
    return StableDiffusion3Pipeline(
        transformer,
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        _vae(),
        first,
        words,
        second,
        words,
        wide,
        _byte_tokenizer(256),
    )


def flux(folder: Path, guided: bool = True):
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTokenizer

    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32,
        pooled_projection_dim=32, axes_dims_rope=(4, 4, 8), guidance_embeds=guided,
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15)
    clip = _clip(folder, "")
    return FluxPipeline(
        scheduler,
        _vae(),
        clip,
        CLIPTokenizer.from_pretrained(folder / "made_tokenizer"),
        _t5(),
        _byte_tokenizer(512),
        transformer,
    )


def z_image(folder: Path):
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
    from transformers import Qwen3Config, Qwen3Model

    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=32,
        axes_dims=[4, 6, 6],
        axes_lens=[1024, 64, 64],
    )
    with torch.no_grad():
        for p in (transformer.x_pad_token, transformer.cap_pad_token):
            p.normal_(std=0.02)
    return ZImagePipeline(
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        _vae(),
        Qwen3Model(Qwen3Config(**QWEN)),
        _byte_tokenizer(512),
        transformer,
    )


def qwen_image(folder: Path):
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    transformer = QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32,
        axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    vae = AutoencoderKLQwenImage(base_dim=16, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[False], latents_mean=[0.1, -0.2, 0.3, 0.0],
                                 latents_std=[1.1, 0.9, 1.3, 2.0])  # fmt: skip
    settings = Qwen2_5_VLConfig(
        text_config={
            **{k: v for k, v in QWEN.items() if k != "head_dim"},
            "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "num_heads": 2,
            "intermediate_size": 16,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [0],
        },
    )
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9)
    return QwenImagePipeline(
        scheduler, vae, Qwen2_5_VLForConditionalGeneration(settings), _byte_tokenizer(1100), transformer
    )


VARIANTS = {"flux1 schnell": lambda folder: flux(folder, guided=False)}
MAKERS = {"sd3": sd3, "flux1": flux, "z-image": z_image, "qwen-image": qwen_image}


def saved(kind: str, folder: Path) -> Path:
    """The model of that family in a folder."""
    torch.manual_seed(0)
    folder = folder / kind.replace("-", "_").replace(" ", "_")
    folder.mkdir(parents=True)
    pipe = {**MAKERS, **VARIANTS}[kind](folder)
    for name in ("transformer", "vae"):
        with torch.no_grad():
            for p in getattr(pipe, name).parameters():
                if p.ndim > 1:
                    p.normal_(std=0.08)
                elif not p.any():
                    p.normal_(std=0.02)
    pipe.save_pretrained(folder)
    for left in folder.glob("made_*"):
        shutil.rmtree(left)
    return folder
