"""Stable Diffusion models with tiny random weights in diffusers layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from lora_loom.convert.families.unet import unet_rows
from safetensors.torch import load_file
from shapes import MODEL

TEXT = {"vocab_size": 619, "num_attention_heads": 4, "max_position_embeddings": 77, "bos_token_id": 617, "eos_token_id": 618, "pad_token_id": 618}  # fmt: skip
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
VAE = {
    "block_out_channels": (32, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "latent_channels": 4,
    "scaling_factor": 0.13,
}
_PARTS = {
    "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"], "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"], "scheduler": ["diffusers", "DDPMScheduler"],
}  # fmt: skip
_SECOND = {
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
}


def _shared(place: Path, tokenizers: tuple[str, ...], **schedule: str) -> None:
    from diffusers import AutoencoderKL, EulerDiscreteScheduler

    AutoencoderKL(**VAE).save_pretrained(place / "vae")
    EulerDiscreteScheduler(**BETAS, **schedule).save_pretrained(place / "scheduler")
    for name in tokenizers:
        shutil.copytree(MODEL / "tokenizer", place / name)


def _index(place: Path, pipeline: str, parts: dict) -> Path:
    (place / "model_index.json").write_text(json.dumps({"_class_name": pipeline, **parts}))
    return place


def sdxl(place: Path) -> Path:
    """Two text encoders, pooled text and sizes."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    text = {**TEXT, "num_hidden_layers": 3}
    CLIPTextModel(CLIPTextConfig(hidden_size=32, intermediate_size=64, **text)).save_pretrained(place / "text_encoder")
    CLIPTextModelWithProjection(
        CLIPTextConfig(hidden_size=48, intermediate_size=64, projection_dim=40, hidden_act="gelu", **text)
    ).save_pretrained(place / "text_encoder_2")
    UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(32, 64), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=(2, 4), use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=8, transformer_layers_per_block=(1, 2), projection_class_embeddings_input_dim=40 + 6 * 8, cross_attention_dim=80,
    ).save_pretrained(place / "unet")  # fmt: skip
    _shared(place, ("tokenizer", "tokenizer_2"))
    return _index(place, "StableDiffusionXLPipeline", {**_PARTS, **_SECOND})


def sd1(place: Path) -> Path:
    """One text encoder."""
    return _one_encoder(place, 32, "epsilon")


def sd2(place: Path) -> Path:
    """A text as wide as that of OpenCLIP ViT-H, by which SD2 is known."""
    return _one_encoder(place, 1024, "epsilon")


def sd2_v(place: Path) -> Path:
    """The same, predicting v."""
    return _one_encoder(place, 1024, "v_prediction")


def _one_encoder(place: Path, width: int, prediction: str) -> Path:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    CLIPTextModel(CLIPTextConfig(hidden_size=width, intermediate_size=64, num_hidden_layers=2, **TEXT)).save_pretrained(
        place / "text_encoder"
    )
    UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(32, 64), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=(2, 4), cross_attention_dim=width,
    ).save_pretrained(place / "unet")  # fmt: skip
    _shared(place, ("tokenizer",), prediction_type=prediction)
    return _index(place, "StableDiffusionPipeline", _PARTS)


MAKERS = {"sd1": sd1, "sd2": sd2, "sd2-v": sd2_v, "sdxl": sdxl}


def saved(kind: str, folder: Path) -> Path:
    """The model of that family in a folder below `folder`."""
    return MAKERS[kind](folder / kind.replace("-", "_"))


# ---- single files ------------------------------------------------------------------------------------------------------


def checkpoint(folder: Path, kind: str) -> dict[str, torch.Tensor]:
    """The weights of a folder (sd1 or sdxl) by the names that a single file of the original code has."""
    parts = {file.parent.name: load_file(file) for file in folder.glob("*/*.safetensors")}
    out = {f"model.diffusion_model.{name}": w for name, w in _unet(parts["unet"], kind == "sdxl").items()}
    out |= {f"first_stage_model.{name}": w for name, w in vae_checkpoint(parts["vae"]).items()}
    first = "conditioner.embedders.0.transformer." if kind == "sdxl" else "cond_stage_model.transformer."
    out |= {f"{first}text_model.{name.removeprefix('text_model.')}": w for name, w in parts["text_encoder"].items()}
    if kind == "sdxl":
        out |= {f"conditioner.embedders.1.model.{n}": w for n, w in _open_clip(parts["text_encoder_2"]).items()}
    return {name: w.contiguous() for name, w in out.items()}


def _unet(weights: dict[str, torch.Tensor], two: bool) -> dict[str, torch.Tensor]:
    names = {}
    for row in unet_rows(2, (1,), layers=1, pooled=two, depth=2 if two else 1):
        for n in range(2) if "*" in row.diffusers else [0]:
            names[row.diffusers.replace("*", str(n))] = row.native.replace("*", str(n))
    split = ((*name.rpartition("."), w) for name, w in weights.items())
    return {f"{names[path]}.{leaf}": w for path, _, leaf, w in split}


def vae_checkpoint(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of an AutoencoderKL by the names of the original code, of the layers that the tiny ones and the toy's have."""
    out = {}
    levels = 1 + max(int(k.split(".")[2]) for k in state if k.startswith("encoder.down_blocks."))
    attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out": "proj_out"}
    for name, value in state.items():
        part, *rest = name.split(".")
        if rest and rest[0] in ("down_blocks", "up_blocks"):
            kind = {"resnets": "block", "downsamplers": "downsample", "upsamplers": "upsample"}[rest[2]]
            tail = rest[3:] if kind == "block" else rest[4:]
            level = int(rest[1]) if rest[0] == "down_blocks" else levels - 1 - int(rest[1])
            rest = [rest[0].removesuffix("_blocks"), str(level), kind, *tail]
        elif rest and rest[0] == "mid_block" and rest[1] == "resnets":
            rest = ["mid", f"block_{int(rest[2]) + 1}", *rest[3:]]
        elif rest and rest[0] == "mid_block":
            rest = ["mid", "attn_1", attention[rest[3]], rest[-1]]
            value = value[:, :, None, None] if value.ndim == 2 else value
        elif rest and rest[0] == "conv_norm_out":
            rest = ["norm_out", *rest[1:]]
        out[".".join([part, *rest]).replace("conv_shortcut", "nin_shortcut")] = value.contiguous()
    return out


def _open_clip(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A CLIPTextModelWithProjection as OpenCLIP names it: query, key and value in one."""
    weights = {name.removeprefix("text_model."): w for name, w in weights.items()}
    plain = {
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
        "final_layer_norm.weight": "ln_final.weight",
        "final_layer_norm.bias": "ln_final.bias",
    }
    inner = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    out = {new: weights[old] for old, new in plain.items()}
    out["text_projection"] = weights["text_projection.weight"].t()
    for name, w in weights.items():
        path, _, leaf = name.removeprefix("encoder.layers.").rpartition(".")
        number, _, inside = path.partition(".")
        block = f"transformer.resblocks.{number}"
        if inside in inner:
            out[f"{block}.{inner[inside]}.{leaf}"] = w
        elif inside == "self_attn.out_proj":
            out[f"{block}.attn.out_proj.{leaf}"] = w
        elif inside == "self_attn.q_proj":
            three = [weights[name.replace("q_proj", letter)] for letter in ("q_proj", "k_proj", "v_proj")]
            out[f"{block}.attn.in_proj_{leaf}"] = torch.cat(three)
    return out
