"""Further diffusion transformers: the paths of diffusers' models and of ComfyUI's. Source: the state dicts of both."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..patterns import Row, fused
from .transformers import FLUX_ENDS, IMG, NORM_OUT, TXT, double_blocks, flux_norms, norms, single_blocks


def _alike(names: Iterable[str], limit: int = 0, ratio: float = 0.0) -> list[Row]:
    """Layers that both worlds call the same."""
    return [Row(name, name, limit=limit, ratio=ratio) for name in names]


def _alike_norms(names: Iterable[str], limit: int = 0) -> list[Row]:
    return norms(((name, name) for name in names), limit)


# --- HunyuanVideo -----------------------------------------------------------------------------------------------------

_REFINER = ("context_embedder.token_refiner.refiner_blocks.*", "txt_in.individual_token_refiner.blocks.*")
HUNYUAN_VIDEO = [
    *double_blocks(gated=False, limit=20),
    *single_blocks(limit=40),
    *flux_norms(20, 40),
    Row("transformer_blocks.*.norm1.linear", "double_blocks.*.img_mod.lin", ratio=6, limit=20),
    Row("transformer_blocks.*.norm1_context.linear", "double_blocks.*.txt_mod.lin", ratio=6, limit=20),
    Row("single_transformer_blocks.*.norm.linear", "single_blocks.*.modulation.lin", ratio=3, limit=40),
    Row("x_embedder.proj", "img_in.proj", kernel=(1, 2, 2)),
    Row("proj_out", "final_layer.linear"),
    NORM_OUT,
    *(
        Row(f"time_text_embed.{a}_embedder.linear_{n}", f"{b}_in.{layer}")
        for a, b in (("timestep", "time"), ("text", "vector"), ("guidance", "guidance"))
        for n, layer in ((1, "in_layer"), (2, "out_layer"))
    ),
    Row("context_embedder.proj_in", "txt_in.input_embedder"),
    *(
        Row(f"context_embedder.time_text_embed.{a}_embedder.linear_{n}", f"txt_in.{b}_embedder.{layer}")
        for a, b in (("timestep", "t"), ("text", "c"))
        for n, layer in ((1, "in_layer"), (2, "out_layer"))
    ),
    *fused(*(f"{_REFINER[0]}.{n}" for n in IMG), native=f"{_REFINER[1]}.self_attn.qkv", ratio=3, limit=2),
    Row(f"{_REFINER[0]}.attn.to_out.0", f"{_REFINER[1]}.self_attn.proj", ratio=1, limit=2),
    Row(f"{_REFINER[0]}.ff.net.0.proj", f"{_REFINER[1]}.mlp.0", ratio=4, limit=2),
    Row(f"{_REFINER[0]}.ff.net.2", f"{_REFINER[1]}.mlp.2", limit=2),
    Row(f"{_REFINER[0]}.norm_out.linear", f"{_REFINER[1]}.adaLN_modulation.1", ratio=2, limit=2),
    *norms(((f"{_REFINER[0]}.norm{n}", f"{_REFINER[1]}.norm{n}") for n in (1, 2)), 2),
]
_ORIGINAL = (
    (r"_mod\.lin$", "_mod.linear"),
    (r"_attn\.(qkv|proj)$", r"_attn_\1"),
    (r"mlp\.0$", "mlp.fc1"),
    (r"mlp\.2$", "mlp.fc2"),
    (r"\.modulation\.lin$", ".modulation.linear"),
)


def _original(native: str) -> str:
    """What HunyuanVideo's own code calls a layer of ComfyUI's model."""
    for pattern, name in _ORIGINAL:
        native = re.sub(pattern, name, native)
    return native


def hunyuan_shared(native: str) -> str:
    """The name that ComfyUI and diffusers both read: the original one under `transformer.`, but ComfyUI's own where diffusers cuts a fused layer of
    the text refiner along its rank.
    """
    return f"diffusion_model.{native}" if native.endswith("self_attn.qkv") else f"transformer.{_original(native)}"


_ORIGINAL_ENDS = (  # further names of the original code, which neither program reads
    (r"^(time_in|guidance_in|txt_in\.t_embedder)\.in_layer$", r"\1.mlp.0"),
    (r"^(time_in|guidance_in|txt_in\.t_embedder)\.out_layer$", r"\1.mlp.2"),
    (r"^txt_in\.c_embedder\.in_layer$", "txt_in.c_embedder.linear_1"),
    (r"^txt_in\.c_embedder\.out_layer$", "txt_in.c_embedder.linear_2"),
    (r"_attn\.norm\.(q|k)\w+_norm$", r"_attn_\1_norm"),
    (r"\.norm\.(q|k)\w+_norm$", r".\1_norm"),
)


def _in_original_code(native: str) -> str:
    """What HunyuanVideo's own code calls a layer of ComfyUI's model, also where no other program does."""
    native = _original(native)
    for pattern, name in _ORIGINAL_ENDS:
        native = re.sub(pattern, name, native)
    return native


HUNYUAN_VIDEO_ALIASES = [
    Row(row.diffusers, _in_original_code(row.native), row.part, row.shares, row.ratio, row.kernel, row.swap, row.limit)
    for row in HUNYUAN_VIDEO
    if _in_original_code(row.native) != row.native
]

# --- LTX --------------------------------------------------------------------------------------------------------------


def _ltx_attention(name: str, limit: int, square: bool) -> list[Row]:
    block = f"transformer_blocks.*.{name}"
    rows = _alike((f"{block}.{n}" for n in ("to_q", "to_k", "to_v", "to_out.0")), limit, 1.0 if square else 0.0)
    return [*rows, *norms(((f"{block}.norm_{n}", f"{block}.{n}_norm") for n in "qk"), limit)]


def _timestep(ours: str, theirs: str) -> list[Row]:
    names = ("emb.timestep_embedder.linear_1", "emb.timestep_embedder.linear_2", "linear")
    return [Row(f"{ours}.{n}", f"{theirs}.{n}") for n in names]


LTX_VIDEO = [
    *_ltx_attention("attn1", 48, True),
    *_ltx_attention("attn2", 48, True),
    *_alike(["transformer_blocks.*.ff.net.0.proj"], 48, 4.0),
    *_alike(["transformer_blocks.*.ff.net.2"], 48, 0.25),
    Row("proj_in", "patchify_proj"),
    *_alike(("proj_out", "caption_projection.linear_1", "caption_projection.linear_2")),
    *_timestep("time_embed", "adaln_single"),
]
_AV_GATES = {
    "av_cross_attn_video_scale_shift": "av_ca_video_scale_shift_adaln_single",
    "av_cross_attn_audio_scale_shift": "av_ca_audio_scale_shift_adaln_single",
    "av_cross_attn_video_a2v_gate": "av_ca_a2v_gate_adaln_single",
    "av_cross_attn_audio_v2a_gate": "av_ca_v2a_gate_adaln_single",
}
_CONNECTOR = "_embeddings_connector.transformer_1d_blocks.*"
LTX_2 = [
    *LTX_VIDEO,
    *(row for name in ("audio_attn1", "audio_attn2") for row in _ltx_attention(name, 48, False)),
    *(row for name in ("audio_to_video_attn", "video_to_audio_attn") for row in _ltx_attention(name, 48, False)),
    *_alike(["transformer_blocks.*.audio_ff.net.0.proj"], 48, 4.0),
    *_alike(["transformer_blocks.*.audio_ff.net.2"], 48, 0.25),
    Row("audio_proj_in", "audio_patchify_proj"),
    *_alike(("audio_proj_out", "audio_caption_projection.linear_1", "audio_caption_projection.linear_2")),
    *_timestep("audio_time_embed", "audio_adaln_single"),
    *(row for ours, theirs in _AV_GATES.items() for row in _timestep(ours, theirs)),
    *_alike(
        f"{side}{_CONNECTOR}.{n}"
        for side in ("audio", "video")
        for n in ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2")
    ),
    *_alike_norms(f"{side}{_CONNECTOR}.attn1.{n}_norm" for side in ("audio", "video") for n in "qk"),
]

# --- HiDream ----------------------------------------------------------------------------------------------------------


def _hidream_block(block: str, text: bool, limit: int) -> list[Row]:
    streams = ("", "_t") if text else ("",)
    feed = [f"{block}.ff_i.shared_experts.w{n}" for n in (1, 2, 3)] + [f"{block}.ff_t.w{n}" for n in (1, 2, 3)] * text
    return [
        *_alike((f"{block}.attn1.to_{n}{s}" for n in ("q", "k", "v", "out") for s in streams), limit, 1.0),
        *_alike_norms((f"{block}.attn1.{n}_rms_norm{s}" for n in "qk" for s in streams), limit),
        *_alike((*feed, *(f"{block}.ff_i.experts.*.w{n}" for n in (1, 2, 3)), f"{block}.ff_i.gate"), limit),
        *_alike([f"{block}.adaLN_modulation.1"], limit, 12.0 if text else 6.0),
    ]


HIDREAM = [
    *_hidream_block("double_stream_blocks.*.block", True, 16),
    *_hidream_block("single_stream_blocks.*.block", False, 32),
    *_alike(f"{a}_embedder.{b}_embedder.linear_{n}" for a, b in (("t", "timestep"), ("p", "pooled")) for n in (1, 2)),
    *_alike(("x_embedder.proj", "final_layer.linear", "final_layer.adaLN_modulation.1", "caption_projection.*.linear")),
]

# --- Cosmos-Predict2, Anima -------------------------------------------------------------------------------------------

_PROJECTIONS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out.0": "output_proj"}
_SUBLAYERS = (("norm1", "self_attn"), ("norm2", "cross_attn"), ("norm3", "mlp"))


def _cosmos(limit: int) -> list[Row]:
    block, native = "transformer_blocks.*", "blocks.*"
    rows = []
    for ours, theirs in (("attn1", "self_attn"), ("attn2", "cross_attn")):
        for a, b in _PROJECTIONS.items():
            square = ours == "attn1" or b in ("q_proj", "output_proj")  # the text has a width of its own
            rows.append(Row(f"{block}.{ours}.{a}", f"{native}.{theirs}.{b}", ratio=1.0 if square else 0.0, limit=limit))
        rows += norms(((f"{block}.{ours}.norm_{n}", f"{native}.{theirs}.{n}_norm") for n in "qk"), limit)
    for ours, theirs in _SUBLAYERS:
        rows += [
            Row(f"{block}.{ours}.linear_{n}", f"{native}.adaln_modulation_{theirs}.{n}", limit=limit) for n in (1, 2)
        ]
    return [
        *rows,
        Row(f"{block}.ff.net.0.proj", f"{native}.mlp.layer1", ratio=4, limit=limit),
        Row(f"{block}.ff.net.2", f"{native}.mlp.layer2", ratio=0.25, limit=limit),
        *(Row(f"norm_out.linear_{n}", f"final_layer.adaln_modulation.{n}") for n in (1, 2)),
        Row("proj_out", "final_layer.linear"),
        Row("patch_embed.proj", "x_embedder.proj.1"),
        *(Row(f"time_embed.t_embedder.linear_{n}", f"t_embedder.1.linear_{n}") for n in (1, 2)),
        *norms([("time_embed.norm", "t_embedding_norm")]),
    ]


COSMOS_PREDICT2 = _cosmos(36)
_ADAPTER = "llm_adapter.blocks.*"
ANIMA = [
    *COSMOS_PREDICT2,
    *_alike(f"{_ADAPTER}.{part}.{n}_proj" for part in ("self_attn", "cross_attn") for n in "qkvo"),
    *_alike_norms(f"{_ADAPTER}.{part}.{n}_norm" for part in ("self_attn", "cross_attn") for n in "qk"),
    *_alike_norms(f"{_ADAPTER}.norm_{part}" for part in ("self_attn", "cross_attn", "mlp")),
    *_alike((f"{_ADAPTER}.mlp.0", f"{_ADAPTER}.mlp.2", "llm_adapter.embed", "llm_adapter.out_proj")),
    *_alike_norms(["llm_adapter.norm"]),
]

# --- Kandinsky 5 ------------------------------------------------------------------------------------------------------


def _kandinsky_block(kind: str, attentions: tuple[str, ...], limit: int) -> list[Row]:
    block = f"{kind}_transformer_blocks.*"
    return [
        *_alike(
            (f"{block}.{a}.{n}" for a in attentions for n in ("to_query", "to_key", "to_value", "out_layer")),
            limit,
            1.0,
        ),
        *_alike_norms((f"{block}.{a}.{n}_norm" for a in attentions for n in ("query", "key")), limit),
        *_alike(
            (
                f"{block}.{n}"
                for n in ("feed_forward.in_layer", "feed_forward.out_layer", f"{kind}_modulation.out_layer")
            ),
            limit,
        ),
    ]


KANDINSKY5 = [
    *_kandinsky_block("text", ("self_attention",), 4),
    *_kandinsky_block("visual", ("self_attention", "cross_attention"), 60),
    *_alike(f"{name}_embeddings.in_layer" for name in ("time", "text", "pooled_text", "visual")),
    *_alike(("time_embeddings.out_layer", "out_layer.modulation.out_layer", "out_layer.out_layer")),
    *_alike_norms(("text_embeddings.norm", "pooled_text_embeddings.norm")),
]

# --- AuraFlow, PixArt -------------------------------------------------------------------------------------------------

_AURA_MLP = {"linear_1": "c_fc1", "linear_2": "c_fc2", "out_projection": "c_proj"}


def _aura_flow() -> list[Row]:
    joint, double, single, one = (
        "joint_transformer_blocks.*",
        "double_layers.*",
        "single_transformer_blocks.*",
        "single_layers.*",
    )
    rows = []
    for name, letter in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "o")):
        rows.append(Row(f"{joint}.attn.{name}", f"{double}.attn.w2{letter}", ratio=1, limit=4))
        rows.append(Row(f"{single}.attn.{name}", f"{one}.attn.w1{letter}", ratio=1, limit=32))
    for name, letter in (*zip(TXT, "qkv"), ("attn.to_add_out", "o")):
        rows.append(Row(f"{joint}.{name}", f"{double}.attn.w1{letter}", ratio=1, limit=4))
    for ours, theirs in _AURA_MLP.items():
        rows.append(Row(f"{joint}.ff.{ours}", f"{double}.mlpX.{theirs}", limit=4))
        rows.append(Row(f"{joint}.ff_context.{ours}", f"{double}.mlpC.{theirs}", limit=4))
        rows.append(Row(f"{single}.ff.{ours}", f"{one}.mlp.{theirs}", limit=32))
    return [
        *rows,
        Row(f"{joint}.norm1.linear", f"{double}.modX.1", ratio=6, limit=4),
        Row(f"{joint}.norm1_context.linear", f"{double}.modC.1", ratio=6, limit=4),
        Row(f"{single}.norm1.linear", f"{one}.modCX.1", ratio=6, limit=32),
        Row("norm_out.linear", "modF.1", ratio=2, swap="always"),
        Row("context_embedder", "cond_seq_linear"),
        Row("pos_embed.proj", "init_x_linear"),
        Row("proj_out", "final_linear"),
        *(Row(f"time_step_proj.linear_{n}", f"t_embedder.mlp.{2 * n - 2}") for n in (1, 2)),
    ]


AURA_FLOW = _aura_flow()
_PIX, _PIX_NATIVE = "transformer_blocks.*", "blocks.*"
PIXART = [
    *fused(*(f"{_PIX}.attn1.to_{n}" for n in "qkv"), native=f"{_PIX_NATIVE}.attn.qkv", ratio=3, limit=28),
    Row(f"{_PIX}.attn1.to_out.0", f"{_PIX_NATIVE}.attn.proj", ratio=1, limit=28),
    Row(f"{_PIX}.attn2.to_q", f"{_PIX_NATIVE}.cross_attn.q_linear", ratio=1, limit=28),
    *fused(*(f"{_PIX}.attn2.to_{n}" for n in "kv"), native=f"{_PIX_NATIVE}.cross_attn.kv_linear", shares=(1, 1), ratio=2, limit=28),
    Row(f"{_PIX}.attn2.to_out.0", f"{_PIX_NATIVE}.cross_attn.proj", ratio=1, limit=28),
    Row(f"{_PIX}.ff.net.0.proj", f"{_PIX_NATIVE}.mlp.fc1", ratio=4, limit=28),
    Row(f"{_PIX}.ff.net.2", f"{_PIX_NATIVE}.mlp.fc2", ratio=0.25, limit=28),
    Row("pos_embed.proj", "x_embedder.proj", kernel=(2, 2)), Row("proj_out", "final_layer.linear"),
    Row("adaln_single.linear", "t_block.1", ratio=6),
    *(
        Row(f"adaln_single.emb.{a}_embedder.linear_{n}", f"{b}_embedder.mlp.{2 * n - 2}")
        for a, b in (("timestep", "t"), ("resolution", "csize"), ("aspect_ratio", "ar")) for n in (1, 2)
    ),
    *(Row(f"caption_projection.linear_{n}", f"y_embedder.y_proj.fc{n}") for n in (1, 2)),
]  # fmt: skip

# --- OmniGen2, Krea 2, Ideogram 4, ERNIE-Image, LongCat-Image ---------------------------------------------------------


def _omnigen2() -> list[Row]:
    rows = []
    for place in ("layers", "noise_refiner", "ref_image_refiner", "context_refiner"):
        block, first = f"{place}.*", "norm1" if place == "context_refiner" else "norm1.norm"
        rows += _alike((f"{block}.attn.{n}" for n in ("to_q", "to_out.0")), 32, 1.0)
        rows += _alike((f"{block}.attn.{n}" for n in ("to_k", "to_v")), 32, 1 / 3)  # 21 heads share 7 keys and values
        rows += _alike((f"{block}.feed_forward.linear_{n}" for n in (1, 2, 3)), 32)
        rows += _alike([f"{block}.norm1.linear"] * (place != "context_refiner"), 32)
        rows += _alike_norms(
            (f"{block}.{n}" for n in ("attn.norm_q", "attn.norm_k", first, "norm2", "ffn_norm1", "ffn_norm2")), 32
        )
    embedders = (f"time_caption_embed.timestep_embedder.linear_{n}" for n in (1, 2))
    return [
        *rows,
        *_alike(
            (
                *embedders,
                "time_caption_embed.caption_embedder.1",
                "x_embedder",
                "ref_image_patch_embedder",
                "norm_out.linear_1",
                "norm_out.linear_2",
            )
        ),
        *_alike_norms(["time_caption_embed.caption_embedder.0"]),
    ]


OMNIGEN2 = _omnigen2()
_KREA_ATTENTION = {"to_q": "wq", "to_k": "wk", "to_v": "wv", "to_gate": "gate", "to_out.0": "wo"}
_KREA_ENDS = {
    "img_in": "first", "time_embed.linear_1": "tmlp.0", "time_embed.linear_2": "tmlp.2", "time_mod_proj": "tproj.1",
    "txt_in.linear_1": "txtmlp.1", "txt_in.linear_2": "txtmlp.3", "text_fusion.projector": "txtfusion.projector",
    "final_layer.linear": "last.linear",
}  # fmt: skip


def _krea2(ours: str, theirs: str, limit: int, grouped: bool) -> list[Row]:
    shares = {"to_k": 0.25, "to_v": 0.25} if grouped else {}
    return [
        *(
            Row(f"{ours}.attn.{a}", f"{theirs}.attn.{b}", ratio=shares.get(a, 1.0), limit=limit)
            for a, b in _KREA_ATTENTION.items()
        ),
        *(Row(f"{ours}.ff.{n}", f"{theirs}.mlp.{n}", limit=limit) for n in ("gate", "up", "down")),
    ]


KREA2 = [
    *_krea2("transformer_blocks.*", "blocks.*", 28, True),
    *_krea2("text_fusion.layerwise_blocks.*", "txtfusion.layerwise_blocks.*", 2, False),
    *_krea2("text_fusion.refiner_blocks.*", "txtfusion.refiner_blocks.*", 2, False),
    *(Row(ours, theirs) for ours, theirs in _KREA_ENDS.items()),
]
KREA2_ALIASES = [  # as some programs write it
    Row(row.diffusers, row.diffusers.removesuffix(".0"), ratio=row.ratio, limit=row.limit)
    for row in KREA2
    if row.diffusers.endswith("to_out.0")
]
IDEOGRAM4 = [
    *fused(*(f"layers.*.attention.to_{n}" for n in "qkv"), native="layers.*.attention.qkv", ratio=3, limit=34),
    Row("layers.*.attention.to_out.0", "layers.*.attention.o", ratio=1, limit=34),
    *_alike((f"layers.*.feed_forward.w{n}" for n in (1, 2, 3)), 34),
    *_alike(["layers.*.adaln_modulation"], 34, 36.0),
    *_alike_norms(
        (
            f"layers.*.{n}"
            for n in (
                "attention.norm_q",
                "attention.norm_k",
                "attention_norm1",
                "attention_norm2",
                "ffn_norm1",
                "ffn_norm2",
            )
        ),
        34,
    ),
    *_alike(
        (
            "input_proj",
            "llm_cond_proj",
            "t_embedding.mlp_in",
            "t_embedding.mlp_out",
            "adaln_proj",
            "embed_image_indicator",
        )
    ),
    *_alike(("final_layer.linear", "final_layer.adaln_modulation")),
    *_alike_norms(["llm_cond_norm"]),
]
ERNIE_IMAGE = [
    *_alike((f"layers.*.self_attention.{n}" for n in ("to_q", "to_k", "to_v", "to_out.0")), 36, 1.0),
    *_alike((f"layers.*.mlp.{n}" for n in ("gate_proj", "up_proj", "linear_fc2")), 36),
    *_alike_norms(
        (f"layers.*.{n}" for n in ("self_attention.norm_q", "self_attention.norm_k", "adaLN_sa_ln", "adaLN_mlp_ln")), 36
    ),
    Row("x_embedder.proj", "x_embedder.proj", kernel=(1, 1)),
    *_alike(
        (
            "text_proj",
            "time_embedding.linear_1",
            "time_embedding.linear_2",
            "adaLN_modulation.1",
            "final_norm.linear",
            "final_linear",
        )
    ),
]
LONGCAT_IMAGE = [
    *double_blocks(gated=False, limit=10),
    *single_blocks(limit=20),
    *flux_norms(10, 20),
    Row("transformer_blocks.*.norm1.linear", "double_blocks.*.img_mod.lin", ratio=6, limit=10),
    Row("transformer_blocks.*.norm1_context.linear", "double_blocks.*.txt_mod.lin", ratio=6, limit=10),
    Row("single_transformer_blocks.*.norm.linear", "single_blocks.*.modulation.lin", ratio=3, limit=20),
    FLUX_ENDS[0],
    Row("context_embedder", "txt_in", ratio=3072 / 3584),
    FLUX_ENDS[2],
    NORM_OUT,
    *(
        Row(f"time_embed.timestep_embedder.linear_{n}", f"time_in.{layer}", host_name_only=True)
        for n, layer in ((1, "in_layer"), (2, "out_layer"))
    ),
]
