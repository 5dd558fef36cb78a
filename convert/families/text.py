"""Text encoders, by the name ComfyUI gives them. On disk a CLIP path always holds `text_model.`, which newer transformers leave out of module names."""

from __future__ import annotations

import re

from ..patterns import Found, Row, Table, fused

_T5_LAYER = (
    *(f"layer.0.SelfAttention.{n}" for n in "qkvo"),
    *(f"layer.1.DenseReluDense.{n}" for n in ("wi_0", "wi_1", "wo")),
)
_OPENCLIP = {"attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
_BLOCK, _OPEN_BLOCK = "text_model.encoder.layers.*", "transformer.resblocks.*"
CLIP = Table(
    [
        *fused(
            *(f"{_BLOCK}.self_attn.{n}_proj" for n in "qkv"), native=f"{_OPEN_BLOCK}.attn.in_proj"
        ),  # OpenCLIP, in single-file checkpoints
        *(Row(f"{_BLOCK}.{ours}", f"{_OPEN_BLOCK}.{theirs}") for theirs, ours in _OPENCLIP.items()),
        *(Row(f"{_BLOCK}.layer_norm{n}", f"{_OPEN_BLOCK}.ln_{n}", kernel=None) for n in (1, 2)),
        Row("text_model.final_layer_norm", "ln_final", kernel=None),
        Row("text_model.embeddings.token_embedding", "token_embedding"),
        Row("text_model.embeddings.position_embedding", "text_model.embeddings.position_embedding"),
        Row("text_projection", "text_projection"),
    ]
)
T5 = Table(
    [
        *(Row(n, n) for n in (f"encoder.block.*.{n}" for n in _T5_LAYER)),
        *(Row(n, n, kernel=None) for n in (f"encoder.block.*.layer.{i}.layer_norm" for i in (0, 1))),
        Row(
            "encoder.block.*.layer.0.SelfAttention.relative_attention_bias",
            "encoder.block.*.layer.0.SelfAttention.relative_attention_bias",
        ),
        Row("encoder.final_layer_norm", "encoder.final_layer_norm", kernel=None),
        Row("shared", "shared"),
    ]
)
KOHYA_PROJECTIONS = {
    ("lora_te1", "text_projection"),
    ("lora_te2", "text_projection"),
}  # what ComfyUI reads of them beside blocks
_IN_BLOCKS = re.compile(r"text_model\.encoder\.layers\.\d+\.(?:self_attn|mlp)\.\w+")
TABLES = {"clip_l": CLIP, "clip_g": CLIP, "clip_h": CLIP, "t5xxl": T5}
WIDTHS = {"clip_l": 768, "clip_h": 1024, "clip_g": 1280, "t5xxl": 4096}


def in_blocks(path: str) -> bool:
    """Whether a CLIP's layer is one of those that every program's LoRA reader knows: attention and MLP of a block."""
    return _IN_BLOCKS.fullmatch(path) is not None


def layer(encoder: str, name: str) -> Found | None:
    """The layer of a text encoder called `name`: dotted or flat, with or without `text_model`, in transformers' or OpenCLIP's words."""
    table = TABLES[encoder]
    row = table.find(name)
    return table.find(f"text_model.{name}") if row is None and table is CLIP else row


def find(encoder: str, name: str) -> str | None:
    """Its canonical path, for a name in transformers' words."""
    row = layer(encoder, name)
    return row.diffusers(row.rows[0]) if row and len(row.rows) == 1 else None
