"""Modules, models and dense changes that the tests of convert share. `dense` is written from the definitions of each adapter, in float64,
and shares no code with the package.
"""

from __future__ import annotations

import functools
import re

import diffusers
import torch
from lora_loom.convert import Module

TEXT_LAYERS = {
    "clip": tuple(
        f"text_model.encoder.layers.{{}}.{n}" for n in (*(f"self_attn.{x}_proj" for x in ("q", "k", "v", "out")), "mlp.fc1", "mlp.fc2")
    ),
    "t5": (
        *(f"encoder.block.{{}}.layer.0.SelfAttention.{x}" for x in "qkvo"),
        *(f"encoder.block.{{}}.layer.1.DenseReluDense.{x}" for x in ("wi_0", "wi_1", "wo")),
    ),
}  # fmt: skip
TEXT_WIDTHS = {"clip_l": (768, 3072), "clip_h": (1024, 4096), "clip_g": (1280, 5120), "t5xxl": (4096, 10240)}
_SDXL_BLOCKS = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}
_REFINER_BLOCKS = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}
_POOLED = {"addition_embed_type": "text_time", "addition_time_embed_dim": 256, "use_linear_projection": True}
_SD3 = {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536}
# Model -> (family, class, config) of the published models at full size.
MODELS = {
    "sd1": ("sd1", "UNet2DConditionModel", {"cross_attention_dim": 768}),
    "sd2": ("sd2", "UNet2DConditionModel", {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}),
    "sdxl": ("sdxl", "UNet2DConditionModel", {
        "block_out_channels": (320, 640, 1280), "transformer_layers_per_block": (1, 2, 10), "attention_head_dim": (5, 10, 20), "cross_attention_dim": 2048,
        "projection_class_embeddings_input_dim": 2816, **_SDXL_BLOCKS, **_POOLED,
    }),
    "sdxl-refiner": ("sdxl-refiner", "UNet2DConditionModel", {
        "block_out_channels": (384, 768, 1536, 1536), "transformer_layers_per_block": 4, "attention_head_dim": (6, 12, 24, 24), "cross_attention_dim": 1280,
        "projection_class_embeddings_input_dim": 2560, **_REFINER_BLOCKS, **_POOLED,
    }),
    "flux1": ("flux1", "FluxTransformer2DModel", {"guidance_embeds": True}),
    "chroma": ("chroma", "ChromaTransformer2DModel", {}),
    "flux2": ("flux2", "Flux2Transformer2DModel", {}),
    "flux2-klein-4b": ("flux2", "Flux2Transformer2DModel", {
        "num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680, "guidance_embeds": False,
    }),
    "z-image": ("z-image", "ZImageTransformer2DModel", {}),
    "lumina2": ("lumina2", "Lumina2Transformer2DModel", {}),
    "qwen-image": ("qwen-image", "QwenImageTransformer2DModel", {}),
    "wan-t2v": ("wan", "WanTransformer3DModel", {}),
    "wan-1.3b": ("wan", "WanTransformer3DModel", {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}),
    "wan-i2v": ("wan", "WanTransformer3DModel", {"in_channels": 36, "added_kv_proj_dim": 5120, "image_dim": 1280}),
    "sd3-medium": ("sd3", "SD3Transformer2DModel", _SD3),
    "sd3.5-medium": ("sd3", "SD3Transformer2DModel", {**_SD3, "qk_norm": "rms_norm", "dual_attention_layers": tuple(range(13))}),
    "sd3.5-large": ("sd3", "SD3Transformer2DModel", {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "qk_norm": "rms_norm"}),
    "hunyuan-video": ("hunyuanvideo", "HunyuanVideoTransformer3DModel", {}),
    "ltx-video": ("ltxv", "LTXVideoTransformer3DModel", {}),
    "ltx-video-13b": ("ltxv", "LTXVideoTransformer3DModel", {"num_layers": 48, "attention_head_dim": 128, "cross_attention_dim": 4096}),
    "ltx-2": ("ltxav", "LTX2VideoTransformer3DModel", {}),
    "hidream": ("hidream", "HiDreamImageTransformer2DModel", {
        "patch_size": 2, "in_channels": 16, "out_channels": 16, "caption_channels": [4096, 4096], "llama_layers": list(range(48)),
    }),
    "cosmos-predict2": ("cosmospredict2", "CosmosTransformer3DModel", {"num_attention_heads": 16, "in_channels": 17}),
    "cosmos-predict2-14b": ("cosmospredict2", "CosmosTransformer3DModel", {"num_attention_heads": 40, "num_layers": 36, "in_channels": 17}),
    "anima": ("anima", "CosmosTransformer3DModel", {"num_attention_heads": 16, "in_channels": 16}),
    "kandinsky5": ("kandinsky5", "Kandinsky5Transformer3DModel", {"model_dim": 1792, "time_dim": 512, "ff_dim": 7168}),
    "auraflow": ("auraflow", "AuraFlowTransformer2DModel", {}),
    "pixart": ("pixart", "PixArtTransformer2DModel", {}),
    "krea2": ("krea2", "Krea2Transformer2DModel", {}),
    "ideogram4": ("ideogram4", "Ideogram4Transformer2DModel", {}),
    "ernie": ("ernieimage", "ErnieImageTransformer2DModel", {}),
    "omnigen2": ("omnigen2", "", {}),
    "longcat": ("longcatimage", "LongCatImageTransformer2DModel", {"num_layers": 10, "num_single_layers": 20}),
}  # fmt: skip
# A model of each family, to take layers from.
FAMILY_MODELS = {MODELS[m][0]: m for m in reversed(MODELS)} | {"wan": "wan-i2v", "sd3": "sd3.5-medium"}


@functools.cache
def layers(model: str) -> dict[str, tuple[int, ...]]:
    """Path -> weight shape of every linear and convolution layer of a full-size model."""
    if model == "omnigen2":
        return _omnigen2()
    _, kind, config = MODELS[model]
    with torch.device("meta"):
        net = getattr(diffusers, kind)(**config)
    kinds = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Conv3d)
    return {name: tuple(layer.weight.shape) for name, layer in net.named_modules() if isinstance(layer, kinds)}


def _omnigen2() -> dict[str, tuple[int, ...]]:
    """diffusers has no OmniGen2. Sizes of its published model: 21 heads of 120, which share 7 keys and values."""
    wide, few, inner = 2520, 840, 10240
    block = {
        "attn.to_q": (wide, wide),
        "attn.to_k": (few, wide),
        "attn.to_v": (few, wide),
        "attn.to_out.0": (wide, wide),
    }
    block |= {f"feed_forward.linear_{n}": (wide, inner) if n == 2 else (inner, wide) for n in (1, 2, 3)}
    counts = {"layers": 32, "noise_refiner": 2, "context_refiner": 2, "ref_image_refiner": 2}
    out = {
        f"{place}.{n}.{name}": shape
        for place, count in counts.items()
        for n in range(count)
        for name, shape in block.items()
    }
    out |= {
        f"{place}.{n}.norm1.linear": (4 * wide, 1024)
        for place, count in counts.items()
        if place != "context_refiner"
        for n in range(count)
    }
    ends = {
        "x_embedder": (wide, 64),
        "ref_image_patch_embedder": (wide, 64),
        "norm_out.linear_1": (wide, 1024),
        "norm_out.linear_2": (64, wide),
    }
    return {**out, **ends, "time_caption_embed.caption_embedder.1": (wide, 2048)}


def text_layers(encoder: str, count: int = 12) -> dict[str, tuple[int, int]]:
    """Path -> weight shape of every layer of a text encoder."""
    width, inner = TEXT_WIDTHS[encoder]
    out = {}
    for n in range(count):
        for pattern in TEXT_LAYERS["t5" if encoder == "t5xxl" else "clip"]:
            wide = pattern.endswith(("fc1", "wi_0", "wi_1"))
            narrow = pattern.endswith(("fc2", "wo"))
            out[pattern.format(n)] = (inner, width) if wide else (width, inner) if narrow else (width, width)
    return out


def sampled(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The first and the last layer of each name, block numbers aside."""
    ends: dict[str, list[str]] = {}
    for name in shapes:
        ends.setdefault(re.sub(r"\d+", "#", name), []).append(name)
    keep = {n for names in ends.values() for n in (names[0], names[-1])}
    return {n: s for n, s in shapes.items() if n in keep}


def small(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A weight shape 64 times smaller in both directions, so that the proportions between layers stay."""
    return (*(max(1, n // 64) for n in shape[:2]), *shape[2:])


# --- modules ------------------------------------------------------------------------------------------------------------------------------


def random(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def lora(out=6, into=5, rank=2, alpha=None, kernel=(), tucker=False, seed=0, dtype=torch.float32) -> Module:
    ones = [1] * len(kernel)
    parts = {
        "down": random(seed, rank, into, *(ones if tucker else kernel), dtype=dtype),
        "up": random(seed + 1000, out, rank, *ones, dtype=dtype),
    }
    if tucker:
        parts["mid"] = random(seed + 2000, rank, rank, *kernel, dtype=dtype)
    return Module("lora", parts, alpha)


def loha(out=6, into=5, rank=2, alpha=None, kernel=(), tucker=False, seed=0) -> Module:
    parts = {}
    for n in (1, 2):
        a, b = (
            ((rank, out), (rank, into))
            if tucker
            else ((out, rank), (rank, into * int(torch.tensor(kernel).prod()) if kernel else into))
        )
        parts |= {f"hada_w{n}_a": random(seed + n, *a), f"hada_w{n}_b": random(seed + 10 + n, *b)}
        if tucker:
            parts[f"hada_t{n}"] = random(seed + 20 + n, rank, rank, *kernel)
    return Module("loha", parts, alpha)


def lokr(one="full", two="full", rank=2, alpha=None, kernel=(), seed=0) -> Module:
    """A (3*4) x (2*5) layer; `one`, `two`: full, low (two factors) or, for the second, tucker."""
    parts = (
        {"lokr_w1": random(seed, 3, 2)}
        if one == "full"
        else {"lokr_w1_a": random(seed, 3, rank), "lokr_w1_b": random(seed + 1, rank, 2)}
    )
    if two == "full":
        parts["lokr_w2"] = random(seed + 2, 4, 5, *kernel)
    elif two == "low":
        parts |= {"lokr_w2_a": random(seed + 3, 4, rank), "lokr_w2_b": random(seed + 4, rank, 5)}
    else:
        parts |= {
            "lokr_w2_a": random(seed + 3, rank, 4),
            "lokr_w2_b": random(seed + 4, rank, 5),
            "lokr_t2": random(seed + 5, rank, rank, *kernel),
        }
    return Module("lokr", parts, alpha)


def dense(module: Module) -> torch.Tensor:
    """The change of the weight, float64, from the definition of the adapter."""
    p = {k: v.detach().double() for k, v in module.parts.items()}
    if module.kind == "lora":
        rank = p["down"].shape[0]
        up = p["up"].reshape(len(p["up"]), -1)
        if "mid" in p:
            full = torch.einsum("nm...,in,mj->ij...", p["mid"], up, p["down"].reshape(rank, -1))
        else:
            full = torch.einsum("ir,r...->i...", up, p["down"])
        return full * (module.alpha / rank if module.alpha else 1.0)
    if module.kind == "loha":
        rank = p["hada_w1_b"].shape[0]
        halves = []
        for n in (1, 2):
            a, b = p[f"hada_w{n}_a"], p[f"hada_w{n}_b"]
            halves.append(
                torch.einsum("ij...,ip,jr->pr...", p[f"hada_t{n}"], a, b)
                if f"hada_t{n}" in p
                else torch.einsum("ir,rj->ij", a, b)
            )
        return halves[0] * halves[1] * (module.alpha / rank if module.alpha else 1.0)
    if module.kind == "lokr":
        ranks = [p[k].shape[0] for k in ("lokr_w1_b", "lokr_w2_b") if k in p]
        one = p["lokr_w1"] if "lokr_w1" in p else torch.einsum("ir,rj->ij", p["lokr_w1_a"], p["lokr_w1_b"])
        if "lokr_w2" in p:
            two = p["lokr_w2"]
        elif "lokr_t2" in p:
            two = torch.einsum("ij...,ip,jr->pr...", p["lokr_t2"], p["lokr_w2_a"], p["lokr_w2_b"])
        else:
            two = torch.einsum("ir,rj->ij", p["lokr_w2_a"], p["lokr_w2_b"])
        full = torch.zeros(
            one.shape[0] * two.shape[0], one.shape[1] * two.shape[1], *two.shape[2:], dtype=torch.float64
        )
        for i in range(one.shape[0]):
            for j in range(one.shape[1]):
                full[i * two.shape[0] : (i + 1) * two.shape[0], j * two.shape[1] : (j + 1) * two.shape[1]] = (
                    one[i, j] * two
                )
        return full * (module.alpha / ranks[0] if module.alpha and ranks else 1.0)
    return p["diff"]


def error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Norm of the difference over norm of what was wanted."""
    assert got.shape == wanted.shape
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


# --- files --------------------------------------------------------------------------------------------------------------------------------

KOHYA = {"down": "lora_down.weight", "up": "lora_up.weight", "mid": "lora_mid.weight", "dora": "dora_scale"}
PEFT = {"down": "lora_A.weight", "up": "lora_B.weight"}


def kohya(name: str, module: Module) -> dict[str, torch.Tensor]:
    """The keys of one module in Kohya's spelling."""
    out = {f"{name}.{KOHYA.get(k, k)}": v for k, v in module.parts.items()}
    return out if module.alpha is None else {**out, f"{name}.alpha": torch.tensor(float(module.alpha))}


def a_b(name: str, module: Module) -> dict[str, torch.Tensor]:
    """The keys of one LoRA module in PEFT's spelling."""
    return {f"{name}.{PEFT[k]}": v for k, v in module.parts.items()}
