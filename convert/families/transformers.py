"""Diffusion transformers: diffusers paths and the paths of the models' own code. Source: the state dicts of both, and the maps of ComfyUI and diffusers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from ..patterns import Row, fused


def _stream(
    block: str,
    native: str,
    names: tuple[str, ...],
    out: tuple[str, str],
    mlp: tuple[str, str, str, str],
    limit: int,
    widening: float,
) -> list[Row]:
    """Attention and MLP of one stream of a two-stream block."""
    return [
        *fused(*(f"{block}.{n}" for n in names), native=f"{native}_attn.qkv", ratio=3, limit=limit),
        Row(f"{block}.{out[0]}", f"{native}_attn.{out[1]}", ratio=1, limit=limit),
        Row(f"{block}.{mlp[0]}", f"{native}_mlp.{mlp[2]}", ratio=widening, limit=limit),
        Row(f"{block}.{mlp[1]}", f"{native}_mlp.{mlp[3]}", limit=limit),
    ]


IMG, TXT = ("attn.to_q", "attn.to_k", "attn.to_v"), ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")


def double_blocks(gated: bool, limit: int) -> list[Row]:
    """The two-stream blocks of the Flux models. `gated`: Flux.2's MLP, whose first layer is twice as wide."""
    block, native = "transformer_blocks.*", "double_blocks.*"
    inner, wide = (("linear_in", "linear_out"), 6.0) if gated else (("net.0.proj", "net.2"), 4.0)
    return [
        *_stream(
            block,
            f"{native}.img",
            IMG,
            ("attn.to_out.0", "proj"),
            (f"ff.{inner[0]}", f"ff.{inner[1]}", "0", "2"),
            limit,
            wide,
        ),
        *_stream(
            block,
            f"{native}.txt",
            TXT,
            ("attn.to_add_out", "proj"),
            (f"ff_context.{inner[0]}", f"ff_context.{inner[1]}", "0", "2"),
            limit,
            wide,
        ),
    ]


def single_blocks(limit: int) -> list[Row]:
    """The one-stream blocks of Flux.1: q, k, v and the MLP's first layer lie in one matrix."""
    block, native = "single_transformer_blocks.*", "single_blocks.*"
    names = (*(f"{block}.{n}" for n in IMG), f"{block}.proj_mlp")
    return [
        *fused(*names, native=f"{native}.linear1", shares=(1, 1, 1, 4), ratio=7, limit=limit),
        Row(f"{block}.proj_out", f"{native}.linear2", ratio=0.2, limit=limit),
    ]


def norms(pairs: Iterable[tuple[str, str]], limit: int = 0) -> list[Row]:
    """Norm layers: their weight, and a bias where they have one."""
    return [Row(ours, theirs, kernel=None, limit=limit) for ours, theirs in pairs]


def flux_norms(double: int, single: int) -> list[Row]:
    """The norms of queries and keys in the blocks of the Flux models."""
    streams = (
        ("norm_q", "img_attn.norm.query"),
        ("norm_k", "img_attn.norm.key"),
        ("norm_added_q", "txt_attn.norm.query"),
        ("norm_added_k", "txt_attn.norm.key"),
    )
    return [
        *norms(((f"transformer_blocks.*.attn.{a}", f"double_blocks.*.{b}_norm") for a, b in streams), double),
        *norms(
            (
                (f"single_transformer_blocks.*.attn.norm_{a[0]}", f"single_blocks.*.norm.{a}_norm")
                for a in ("query", "key")
            ),
            single,
        ),
    ]


FLUX_ENDS = [Row("x_embedder", "img_in"), Row("context_embedder", "txt_in"), Row("proj_out", "final_layer.linear")]
_FLUX1_ENDS = [FLUX_ENDS[0], Row("context_embedder", "txt_in", ratio=0.75), FLUX_ENDS[2]]  # T5 has 4096 channels
NORM_OUT = Row("norm_out.linear", "final_layer.adaLN_modulation.1", ratio=2, swap="always")

FLUX1 = [
    *double_blocks(gated=False, limit=19),
    *single_blocks(limit=38),
    Row("transformer_blocks.*.norm1.linear", "double_blocks.*.img_mod.lin", ratio=6, limit=19),
    Row("transformer_blocks.*.norm1_context.linear", "double_blocks.*.txt_mod.lin", ratio=6, limit=19),
    Row("single_transformer_blocks.*.norm.linear", "single_blocks.*.modulation.lin", ratio=3, limit=38),
    *flux_norms(19, 38),
    *_FLUX1_ENDS,
    NORM_OUT,
    *(
        Row(f"time_text_embed.{a}_embedder.linear_{n}", f"{b}_in.{layer}")
        for a, b in (("timestep", "time"), ("text", "vector"), ("guidance", "guidance"))
        for n, layer in ((1, "in_layer"), (2, "out_layer"))
    ),
]
# XLabs' and USO's adapters of the queries, keys and values in a one-stream block, without the MLP that shares their
# matrix.
FLUX1_ALIASES = [
    *fused(*(f"single_transformer_blocks.*.{n}" for n in IMG), native="single_blocks.*.linear1_qkv", ratio=3, limit=38),
]
CHROMA = [
    *double_blocks(gated=False, limit=19),
    *single_blocks(limit=38),
    *flux_norms(19, 38),
    *_FLUX1_ENDS,
    Row("distilled_guidance_layer.norms.*", "distilled_guidance_layer.norms.*", kernel=None, host_name_only=True),
    *(
        Row(f"distilled_guidance_layer.{n}", f"distilled_guidance_layer.{n}", host_name_only=True)
        for n in ("in_proj", "out_proj")
    ),
    Row(
        "distilled_guidance_layer.layers.*.linear_1", "distilled_guidance_layer.layers.*.in_layer", host_name_only=True
    ),
    Row(
        "distilled_guidance_layer.layers.*.linear_2", "distilled_guidance_layer.layers.*.out_layer", host_name_only=True
    ),
]
FLUX2 = [
    *double_blocks(gated=True, limit=8),
    Row("single_transformer_blocks.*.attn.to_qkv_mlp_proj", "single_blocks.*.linear1", ratio=9, limit=48),
    Row("single_transformer_blocks.*.attn.to_out", "single_blocks.*.linear2", ratio=0.25, limit=48),
    *flux_norms(8, 48),
    *FLUX_ENDS,
    NORM_OUT,
    Row("double_stream_modulation_img.linear", "double_stream_modulation_img.lin", ratio=6),
    Row("double_stream_modulation_txt.linear", "double_stream_modulation_txt.lin", ratio=6),
    Row("single_stream_modulation.linear", "single_stream_modulation.lin", ratio=3),
    *(
        Row(f"time_guidance_embed.{a}_embedder.linear_{n}", f"{b}_in.{layer}")
        for a, b in (("timestep", "time"), ("guidance", "guidance"))
        for n, layer in ((1, "in_layer"), (2, "out_layer"))
    ),
]


def _sd3() -> list[Row]:
    rows = [
        Row("pos_embed.proj", "x_embedder.proj", kernel=(2, 2)),
        Row("context_embedder", "context_embedder"),
        Row("proj_out", "final_layer.linear"),
        NORM_OUT,
        *(Row(f"time_text_embed.timestep_embedder.linear_{n}", f"t_embedder.mlp.{2 * n - 2}") for n in (1, 2)),
        *(Row(f"time_text_embed.text_embedder.linear_{n}", f"y_embedder.mlp.{2 * n - 2}") for n in (1, 2)),
    ]
    block = "transformer_blocks.*"
    streams = (
        ("x_block", IMG, "attn.to_out.0", "ff", "norm1"),
        ("context_block", TXT, "attn.to_add_out", "ff_context", "norm1_context"),
    )
    for stream, names, out, mlp, norm in streams:
        native = f"joint_blocks.*.{stream}"
        rows += fused(*(f"{block}.{n}" for n in names), native=f"{native}.attn.qkv", ratio=3, limit=38)
        rows += [
            Row(f"{block}.{out}", f"{native}.attn.proj", ratio=1, limit=38),
            Row(f"{block}.{mlp}.net.0.proj", f"{native}.mlp.fc1", ratio=4, limit=38),
            Row(f"{block}.{mlp}.net.2", f"{native}.mlp.fc2", limit=38),
            Row(
                f"{block}.{norm}.linear",
                f"{native}.adaLN_modulation.1",
                limit=38,
                swap="last" if stream == "context_block" else "",
            ),
        ]
    rows += fused(
        *(f"{block}.attn2.to_{n}" for n in "qkv"), native="joint_blocks.*.x_block.attn2.qkv", ratio=3, limit=38
    )
    rows.append(Row(f"{block}.attn2.to_out.0", "joint_blocks.*.x_block.attn2.proj", ratio=1, limit=38))
    scaled = (
        ("attn.norm_", "x_block.attn"),
        ("attn.norm_added_", "context_block.attn"),
        ("attn2.norm_", "x_block.attn2"),
    )
    rows += norms(((f"{block}.{a}{n}", f"joint_blocks.*.{b}.ln_{n}") for a, b in scaled for n in "qk"), 38)
    return rows


SD3 = _sd3()


@dataclasses.dataclass(frozen=True)
class _NextDit:
    """What differs between Lumina2 and Z-Image. `norms`: diffusers' names of the two around the attention."""

    attention: str
    shares: tuple[int, ...]
    mlp: str
    widening: float
    modulation: tuple[str, str]
    norms: tuple[str, str]


def _next_dit(kind: _NextDit, ends: list[Row]) -> list[Row]:
    """The blocks of Lumina2 and Z-Image, which share their code."""
    attention, shares, mlp, widening, modulation, around = dataclasses.astuple(kind)
    rows = list(ends)
    for place in ("layers", "noise_refiner", "context_refiner"):
        block = f"{place}.*"
        names = tuple(f"{block}.{attention}.to_{n}" for n in "qkv")
        rows += fused(*names, native=f"{block}.attention.qkv", shares=shares, ratio=sum(shares) / shares[0], limit=30)
        rows.append(Row(f"{block}.{attention}.to_out.0", f"{block}.attention.out", ratio=1, limit=30))
        rows += [
            Row(
                f"{block}.feed_forward.{mlp}{n}",
                f"{block}.feed_forward.w{n}",
                ratio=(widening, 0, widening)[n - 1],
                limit=30,
            )
            for n in (1, 2, 3)
        ]
        rows.append(Row(f"{block}.{modulation[0]}", f"{block}.{modulation[1]}", limit=30))
        rows += norms(((f"{block}.{attention}.norm_{n}", f"{block}.attention.{n}_norm") for n in "qk"), 30)
        rows += norms(((f"{block}.ffn_norm{n}", f"{block}.ffn_norm{n}") for n in (1, 2)), 30)
        first, second = (f"{name}.norm" if place != "context_refiner" and name == "norm1" else name for name in around)
        rows += norms(
            ((f"{block}.{first}", f"{block}.attention_norm1"), (f"{block}.{second}", f"{block}.attention_norm2")), 30
        )
    return rows


Z_IMAGE = _next_dit(
    _NextDit("attention", (1, 1, 1), "w", 8 / 3, ("adaLN_modulation.0", "adaLN_modulation.0"), ("attention_norm1", "attention_norm2")),
    [
        Row("cap_embedder.0", "cap_embedder.0", kernel=None),
        Row("all_x_embedder.2-1", "x_embedder"), Row("all_final_layer.2-1.linear", "final_layer.linear"),
        Row("all_final_layer.2-1.adaLN_modulation.1", "final_layer.adaLN_modulation.1"),
        Row("cap_embedder.1", "cap_embedder.1"),
        *(Row(f"t_embedder.mlp.{n}", f"t_embedder.mlp.{n}") for n in (0, 2)),
    ],
)  # fmt: skip
LUMINA2 = _next_dit(
    _NextDit(
        "attn", (3, 1, 1), "linear_", 4, ("norm1.linear", "adaLN_modulation.1"), ("norm1", "norm2")
    ),  # grouped queries: 24 heads share 8 keys and values
    [
        Row("time_caption_embed.caption_embedder.0", "cap_embedder.0", kernel=None),
        Row("x_embedder", "x_embedder"),
        Row("norm_out.linear_1", "final_layer.adaLN_modulation.1"),
        Row("norm_out.linear_2", "final_layer.linear"),
        Row("time_caption_embed.caption_embedder.1", "cap_embedder.1"),
        *(Row(f"time_caption_embed.timestep_embedder.linear_{n}", f"t_embedder.mlp.{2 * n - 2}") for n in (1, 2)),
    ],
)

_QWEN = {
    **dict.fromkeys((*IMG, *TXT, "attn.to_out.0", "attn.to_add_out"), 1.0),
    **dict.fromkeys(("img_mod.1", "txt_mod.1"), 6.0),
    **dict.fromkeys(("img_mlp.net.0.proj", "txt_mlp.net.0.proj"), 4.0),
    **dict.fromkeys(("img_mlp.net.2", "txt_mlp.net.2"), 0.25),
}
QWEN = [
    *(
        Row(f"transformer_blocks.*.{n}", f"transformer_blocks.*.{n}", ratio=ratio, limit=60)
        for n, ratio in _QWEN.items()
    ),
    *(Row(n, n) for n in ("img_in", "txt_in", "norm_out.linear", "proj_out")),
    Row("txt_norm", "txt_norm", kernel=None),
    *norms(
        ((name, name) for name in (f"transformer_blocks.*.attn.norm_{n}" for n in ("q", "k", "added_q", "added_k"))), 60
    ),
    *(Row(n, n) for n in (f"time_text_embed.timestep_embedder.linear_{i}" for i in (1, 2))),
]

_WAN_ATTENTION = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "o", "add_k_proj": "k_img", "add_v_proj": "v_img"}
WAN = [
    *(Row(f"blocks.*.attn1.{a}", f"blocks.*.self_attn.{b}", ratio=1, limit=40) for a, b in list(_WAN_ATTENTION.items())[:4]),
    *(Row(f"blocks.*.attn2.{a}", f"blocks.*.cross_attn.{b}", ratio=1, limit=40) for a, b in _WAN_ATTENTION.items()),
    *(Row(f"blocks.*.attn1.norm_{p}", f"blocks.*.self_attn.norm_{p}", kernel=None, limit=40) for p in "qk"),
    *(Row(f"blocks.*.attn2.norm_{p}", f"blocks.*.cross_attn.norm_{p}", kernel=None, limit=40) for p in "qk"),
    Row("blocks.*.attn2.norm_added_k", "blocks.*.cross_attn.norm_k_img", kernel=None, limit=40),
    Row("blocks.*.norm2", "blocks.*.norm3", kernel=None, limit=40),
    Row("blocks.*.ffn.net.0.proj", "blocks.*.ffn.0", limit=40), Row("blocks.*.ffn.net.2", "blocks.*.ffn.2", limit=40),
    Row("patch_embedding", "patch_embedding", kernel=(1, 2, 2)), Row("proj_out", "head.head"),
    *(Row(f"condition_embedder.{kind}_embedder.linear_{n}", f"{kind}_embedding.{2 * n - 2}") for kind in ("time", "text") for n in (1, 2)),
    Row("condition_embedder.time_proj", "time_projection.1"),
    *norms((f"condition_embedder.image_embedder.norm{n}", f"img_emb.proj.{place}") for n, place in ((1, 0), (2, 4))),
    Row("condition_embedder.image_embedder.ff.net.0.proj", "img_emb.proj.1"),
    Row("condition_embedder.image_embedder.ff.net.2", "img_emb.proj.3"),
]  # fmt: skip
