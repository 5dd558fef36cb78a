"""The host's own CLIP classes for several families, as wide as the real ones but shallow, with seeded random weights."""

from __future__ import annotations

import functools
import io
from typing import Any

import comfy.sd
import comfy.supported_models_base
import torch

SHALLOW = {f"{name}_model_config": {"num_hidden_layers": 3} for name in ("clip_l", "clip_g", "clip_h")}
T5 = {
    "t5xxl_model_config": {"num_layers": 1, "d_model": 64, "d_ff": 96, "d_kv": 8, "num_heads": 4, "vocab_size": 32128}
}


KIN = {"d_model": 64, "d_ff": 96, "d_kv": 8, "num_heads": 4, "num_layers": 1}  # of T5 under the names of other families
_LM = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
T5 |= {f"{name}_model_config": _LM for name in ("qwen3_4b", "gemma2_2b")}
T5 |= {"umt5xxl_model_config": KIN, "pile_t5xl_model_config": KIN}


@functools.cache
def pieces() -> torch.Tensor:
    """A tokenizer of the kind that checkpoints of umT5 bring with them, of a few words."""
    import sentencepiece

    model = io.BytesIO()
    words = ["a cat on the moon", "two words and more red green blue circle square", "dog house tree with a hat"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words), model_writer=model, vocab_size=60, pad_id=0, eos_id=1, unk_id=2, bos_id=3,
        hard_vocab_limit=False, minloglevel=9,
    )  # fmt: skip
    return torch.frombuffer(bytearray(model.getvalue()), dtype=torch.uint8)


def target(family: str) -> Any:
    from comfy import sd1_clip, sdxl_clip
    from comfy.text_encoders import aura_t5, flux, lumina2, sd2_clip, sd3_clip, wan, z_image

    return comfy.supported_models_base.ClipTarget(
        *{
            "sd1": (sd1_clip.SD1Tokenizer, sd1_clip.SD1ClipModel),
            "sd2": (sd2_clip.SD2Tokenizer, sd2_clip.SD2ClipModel),
            "sdxl": (sdxl_clip.SDXLTokenizer, sdxl_clip.SDXLClipModel),
            "sd3": (sd3_clip.SD3Tokenizer, sd3_clip.sd3_clip(clip_l=True, clip_g=True, t5=False)),
            "flux1": (flux.FluxTokenizer, flux.flux_clip()),
            "wan": (wan.WanT5Tokenizer, wan.te()),
            "z-image": (z_image.ZImageTokenizer, z_image.te()),
            "lumina2": (lumina2.LuminaTokenizer, lumina2.te()),
            "auraflow": (aura_t5.AuraT5Tokenizer, aura_t5.AuraT5Model),
        }[family]
    )


def build(family: str, seed: int = 0) -> Any:
    """A host CLIP, made inside inference mode as the executor does."""
    with torch.inference_mode():
        options = {"dtype": torch.float32, **SHALLOW, **T5}
        brought = {"spiece_model": pieces()} if family in ("wan", "lumina2") else {}
        clip = comfy.sd.CLIP(
            target(family), embedding_directory=[], model_options=options, disable_dynamic=True, tokenizer_data=brought
        )
        rng = torch.Generator().manual_seed(seed)
        for name, p in clip.cond_stage_model.named_parameters():
            scale = (
                0.02
                if "embedding" in name or "shared" in name
                else 0.5 / max(1, p.numel() // max(1, len(p) if p.ndim else 1)) ** 0.5
            )
            p.copy_(
                1.0 + 0.1 * torch.randn(p.shape, generator=rng)
                if p.ndim == 1 and name.endswith("weight")
                else torch.randn(p.shape, generator=rng) * scale
            )
    return clip
