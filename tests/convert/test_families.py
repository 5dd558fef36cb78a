"""The layer tables against the models of diffusers at full size, against the rules of the file formats, and what is told from names and shapes."""

import re

import pytest
import torch
from lora_cases import FAMILY_MODELS, MODELS, layers, sampled, text_layers
from lora_loom.convert import Module, read
from lora_loom.convert.detect import declared_family, detect
from lora_loom.convert.families import FAMILIES, TOYS, UNKNOWN, text
from lora_loom.convert.patterns import fill
from lora_loom.lora_core.toy import networks

ROWS = [(name, row) for name, family in FAMILIES.items() for row in family.table.rows]
CLIP = {"clip_l": 12, "clip_h": 23, "clip_g": 32}


# --- the tables by themselves -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_every_row_is_found_from_both_names_dotted_and_flat(name):
    table = FAMILIES[name].table
    for row in table.rows:
        numbers = tuple(str(7 + n) for n in range(row.diffusers.count("*")))
        ours, theirs = fill(row.diffusers, numbers), fill(row.native, numbers)
        parts = [r for r in table.rows if r.native == row.native]
        for spelled in (ours, ours.replace(".", "_")):
            found = table.find(spelled)
            assert (found.rows, found.numbers, found.native) == ((row,), numbers, False)
        for spelled in (theirs, theirs.replace(".", "_")):
            found = table.find(spelled)
            assert (list(found.rows), found.numbers) == (parts if theirs != ours else [row], numbers)
            assert found.native is (theirs != ours)


@pytest.mark.parametrize("name", FAMILIES)
def test_no_two_rows_collide(name):
    rows = FAMILIES[name].table.rows
    flat = [r.diffusers.replace(".", "_") for r in rows]
    assert len(set(flat)) == len(flat)
    native = {r.native: r.native.replace(".", "_") for r in rows}
    assert len(set(native.values())) == len(native)
    for row in rows:  # a name of the one world is never another layer's name in the other
        for other in rows:
            if row.diffusers == other.native:
                assert row is other


@pytest.mark.parametrize("name", FAMILIES)
def test_fused_rows_are_complete_and_agree(name):
    groups = {}
    for row in FAMILIES[name].table.rows:
        groups.setdefault(row.native, []).append(row)
    for rows in groups.values():
        assert [r.part for r in rows] == list(range(len(rows)))
        assert {len(r.shares) for r in rows} == {len(rows)}
        assert len({(r.shares, r.ratio, r.kernel, r.swap, r.limit) for r in rows}) == 1
        assert len({r.diffusers.count("*") for r in rows} | {rows[0].native.count("*")}) == 1


@pytest.mark.parametrize(
    ("name", "row"), [pytest.param(n, r, id=f"{n}-{r.native}") for n, r in ROWS if r.kernel is None]
)
def test_only_norms_have_no_known_kernel(name, row):
    assert re.search(r"norm|_ln$|caption_embedder.0|cap_embedder.0", row.diffusers)


# --- the models of diffusers ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_every_linear_and_convolution_layer_of_the_model_is_known_with_its_kernel(model):
    family = FAMILIES[MODELS[model][0]]
    for path, shape in layers(model).items():
        found = family.table.find(path)
        assert found is not None, path
        assert not found.native, path
        assert found.diffusers(found.rows[0]) == path
        assert found.rows[0].kernel == shape[2:], path
    natives = [fill(r.native, f.numbers) for p in layers(model) for f in [family.table.find(p)] for r in f.rows]
    shares = {p: len(family.table.find(p).rows[0].shares) for p in layers(model)}
    assert sum(1 / n for n in shares.values()) == pytest.approx(
        len(set(natives))
    )  # each native layer is either whole or absent


@pytest.mark.parametrize(
    ("model", "diffusers", "native"),
    [
        ("sd1", 282, 282), ("sd2", 282, 282), ("sdxl", 794, 794), ("flux1", 504, 314), ("sd3-medium", 341, 245), ("z-image", 276, 208),
        ("qwen-image", 846, 846), ("wan-1.3b", 307, 307), ("flux2-klein-4b", 109, 89),
    ],
)  # fmt: skip
def test_layer_counts_are_those_of_the_reference(model, diffusers, native):
    # Wan and SD3: the reference counts the 306 and 340 linear layers; the patch embedding is a convolution.
    table = FAMILIES[MODELS[model][0]].table
    assert len(layers(model)) == diffusers
    fused = sum(len(table.find(p).rows[0].shares) > 1 and table.find(p).rows[0].part > 0 for p in layers(model))
    assert diffusers - fused == native


@pytest.mark.parametrize("model", MODELS)
def test_proportions_and_block_limits_of_the_tables_are_those_of_the_models(model):
    family = FAMILIES[MODELS[model][0]]
    shapes = layers(model)
    for path, shape in shapes.items():
        found = family.table.find(path)
        row = found.rows[0]
        if row.limit:
            assert int(found.numbers[0]) < row.limit, path
        whole = shape[0] // row.shares[row.part] * sum(row.shares)
        if row.ratio:
            assert whole / shape[1] == pytest.approx(row.ratio, rel=0.02), path
    if family.context:
        assert {s[1] for p, s in shapes.items() if p.endswith(("attn2.to_k", "attn2.to_v"))} == {family.context}
    if family.hidden:
        square = {
            s[0]
            for p, s in shapes.items()
            if p.endswith(("to_out.0", "attn.to_out")) and s[0] == s[1] and "audio" not in p
        }
        assert square <= set(family.hidden)


# --- UNet names -----------------------------------------------------------------------------------------------------------------------------

_RES = {"conv1": "in_layers.2", "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection", "norm1": "in_layers.0",
        "norm2": "out_layers.0"}  # fmt: skip
_TOP = {"conv_in": "input_blocks.0.0", "conv_out": "out.2", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}  # fmt: skip


def sgm(path: str, with_attention: set[int]) -> str:
    """The SGM name of a UNet layer by the rules of the reference, two resnets a block. `with_attention`: up blocks that have it."""
    if path in _TOP:
        return _TOP[path]
    side, b, kind, i, rest = re.fullmatch(r"(down|mid|up)_blocks?(?:\.(\d))?\.(\w+?)s\.(\d)\.(.*)", path).groups()
    b, i = int(b or 0), int(i)
    if kind == "downsampler":
        return f"input_blocks.{3 * (b + 1)}.0.op"
    if kind == "upsampler":
        return f"output_blocks.{3 * b + 2}.{2 if b in with_attention else 1}.conv"
    place = {
        "down": f"input_blocks.{1 + 3 * b + i}",
        "up": f"output_blocks.{3 * b + i}",
        "mid": f"middle_block.{2 * i}",
    }[side]
    if kind == "resnet":
        return f"{place}.{_RES[rest]}" if side == "mid" else f"{place}.0.{_RES[rest]}"
    return f"middle_block.1.{rest}" if side == "mid" else f"{place}.1.{rest}"


@pytest.mark.parametrize(
    ("model", "with_attention"), [("sd1", {1, 2, 3}), ("sd2", {1, 2, 3}), ("sdxl", {0, 1}), ("sdxl-refiner", {1, 2})]
)
def test_unet_layers_have_the_sgm_names_of_the_rule(model, with_attention):
    table = FAMILIES[model].table
    names = {path: sgm(path, with_attention) for path in layers(model)}
    assert len(set(names.values())) == len(names)
    for path, native in names.items():
        found = table.find(path)
        assert fill(found.rows[0].native, found.numbers) == native
        back = table.find(native.replace(".", "_"))
        assert back.native
        assert back.diffusers(back.rows[0]) == path


@pytest.mark.parametrize(
    ("family", "native", "path"),
    [
        ("sdxl", "input_blocks_4_1_proj_in", "down_blocks.1.attentions.0.proj_in"),
        ("sdxl", "output_blocks_2_2_conv", "up_blocks.0.upsamplers.0.conv"),
        ("sdxl", "output_blocks_5_2_conv", "up_blocks.1.upsamplers.0.conv"),
        ("sd1", "output_blocks_2_1_conv", "up_blocks.0.upsamplers.0.conv"),
        ("sd1", "output_blocks_8_2_conv", "up_blocks.2.upsamplers.0.conv"),
        ("sd1", "input_blocks_6_0_op", "down_blocks.1.downsamplers.0.conv"),
        ("sdxl", "label_emb_0_2", "add_embedding.linear_2"),
        (
            "sdxl",
            "middle_block_1_transformer_blocks_9_attn2_to_out_0",
            "mid_block.attentions.0.transformer_blocks.9.attn2.to_out.0",
        ),
    ],
)
def test_unet_names_seen_in_the_wild(family, native, path):
    found = FAMILIES[family].table.find(native)
    assert found.diffusers(found.rows[0]) == path


# --- transformer names, as the reference has them ---------------------------------------------------------------------------------------------

_T, _S, _D = "transformer_blocks.7.", "single_transformer_blocks.7.", "double_blocks.7."
_QKV, _ADD = ("attn.to_q", "attn.to_k", "attn.to_v"), ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
FLUX_DOUBLE = {
    f"{_D}img_attn.qkv": tuple(_T + n for n in _QKV), f"{_D}txt_attn.qkv": tuple(_T + n for n in _ADD),
    f"{_D}img_attn.proj": (f"{_T}attn.to_out.0",), f"{_D}txt_attn.proj": (f"{_T}attn.to_add_out",),
}  # fmt: skip
FLUX_MLP = {
    f"{_D}img_mlp.0": (f"{_T}ff.net.0.proj",), f"{_D}img_mlp.2": (f"{_T}ff.net.2",), f"{_D}txt_mlp.0": (f"{_T}ff_context.net.0.proj",),
    f"{_D}txt_mlp.2": (f"{_T}ff_context.net.2",), "single_blocks.7.linear1": (*(_S + n for n in _QKV), f"{_S}proj_mlp"),
    "single_blocks.7.linear2": (f"{_S}proj_out",),
}  # fmt: skip
FLUX_ENDS = {"img_in": ("x_embedder",), "txt_in": ("context_embedder",), "final_layer.linear": ("proj_out",)}
_J = "joint_blocks.7."
NATIVE = {
    "flux1": {
        **FLUX_DOUBLE, **FLUX_MLP, **FLUX_ENDS, f"{_D}img_mod.lin": (f"{_T}norm1.linear",), f"{_D}txt_mod.lin": (f"{_T}norm1_context.linear",),
        "single_blocks.7.modulation.lin": (f"{_S}norm.linear",), "final_layer.adaLN_modulation.1": ("norm_out.linear",),
        "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",), "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
        "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",), "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
    },
    "chroma": {**FLUX_DOUBLE, **FLUX_MLP, **FLUX_ENDS},
    "flux2": {
        **FLUX_DOUBLE, **FLUX_ENDS, f"{_D}img_mlp.0": (f"{_T}ff.linear_in",), f"{_D}img_mlp.2": (f"{_T}ff.linear_out",),
        f"{_D}txt_mlp.0": (f"{_T}ff_context.linear_in",), f"{_D}txt_mlp.2": (f"{_T}ff_context.linear_out",),
        "single_blocks.7.linear1": (f"{_S}attn.to_qkv_mlp_proj",), "single_blocks.7.linear2": (f"{_S}attn.to_out",),
        "double_stream_modulation_img.lin": ("double_stream_modulation_img.linear",), "single_stream_modulation.lin": ("single_stream_modulation.linear",),
        "time_in.in_layer": ("time_guidance_embed.timestep_embedder.linear_1",), "final_layer.adaLN_modulation.1": ("norm_out.linear",),
    },
    "sd3": {
        f"{_J}x_block.attn.qkv": tuple(_T + n for n in _QKV), f"{_J}context_block.attn.qkv": tuple(_T + n for n in _ADD),
        f"{_J}x_block.attn2.qkv": tuple(f"{_T}attn2.to_{n}" for n in "qkv"), f"{_J}x_block.attn2.proj": (f"{_T}attn2.to_out.0",),
        f"{_J}x_block.attn.proj": (f"{_T}attn.to_out.0",), f"{_J}context_block.attn.proj": (f"{_T}attn.to_add_out",),
        f"{_J}x_block.mlp.fc1": (f"{_T}ff.net.0.proj",), f"{_J}x_block.mlp.fc2": (f"{_T}ff.net.2",),
        f"{_J}context_block.mlp.fc1": (f"{_T}ff_context.net.0.proj",), f"{_J}context_block.mlp.fc2": (f"{_T}ff_context.net.2",),
        f"{_J}x_block.adaLN_modulation.1": (f"{_T}norm1.linear",), f"{_J}context_block.adaLN_modulation.1": (f"{_T}norm1_context.linear",),
        "final_layer.linear": ("proj_out",), "final_layer.adaLN_modulation.1": ("norm_out.linear",),
    },
    "z-image": {
        **{f"{p}.7.attention.qkv": tuple(f"{p}.7.attention.to_{n}" for n in "qkv") for p in ("layers", "noise_refiner", "context_refiner")},
        "layers.7.attention.out": ("layers.7.attention.to_out.0",), "layers.7.feed_forward.w2": ("layers.7.feed_forward.w2",),
        "layers.7.adaLN_modulation.0": ("layers.7.adaLN_modulation.0",), "final_layer.linear": ("all_final_layer.2-1.linear",),
        "final_layer.adaLN_modulation.1": ("all_final_layer.2-1.adaLN_modulation.1",), "x_embedder": ("all_x_embedder.2-1",),
        "cap_embedder.1": ("cap_embedder.1",), "t_embedder.mlp.2": ("t_embedder.mlp.2",),
    },
    "lumina2": {
        "layers.7.attention.qkv": tuple(f"layers.7.attn.to_{n}" for n in "qkv"), "layers.7.attention.out": ("layers.7.attn.to_out.0",),
        "layers.7.feed_forward.w1": ("layers.7.feed_forward.linear_1",), "layers.7.adaLN_modulation.1": ("layers.7.norm1.linear",),
    },
    "qwen-image": {n: (n,) for n in (f"{_T}attn.to_q", f"{_T}attn.to_add_out", f"{_T}img_mod.1", f"{_T}txt_mlp.net.2", "img_in", "proj_out")},
    "wan": {
        **{f"blocks.7.self_attn.{n}": (f"blocks.7.attn1.to_{n}",) for n in "qkv"}, "blocks.7.self_attn.o": ("blocks.7.attn1.to_out.0",),
        "blocks.7.cross_attn.q": ("blocks.7.attn2.to_q",), "blocks.7.cross_attn.o": ("blocks.7.attn2.to_out.0",),
        "blocks.7.cross_attn.k_img": ("blocks.7.attn2.add_k_proj",), "blocks.7.cross_attn.v_img": ("blocks.7.attn2.add_v_proj",),
        "blocks.7.ffn.0": ("blocks.7.ffn.net.0.proj",), "blocks.7.ffn.2": ("blocks.7.ffn.net.2",),
        "time_embedding.0": ("condition_embedder.time_embedder.linear_1",), "time_embedding.2": ("condition_embedder.time_embedder.linear_2",),
        "time_projection.1": ("condition_embedder.time_proj",), "text_embedding.2": ("condition_embedder.text_embedder.linear_2",),
        "head.head": ("proj_out",),
    },
}  # fmt: skip


@pytest.mark.parametrize(("family", "native"), [(f, n) for f, names in NATIVE.items() for n in names])
def test_native_layers_stand_for_the_diffusers_layers_of_the_reference(family, native):
    for spelled in (native, native.replace(".", "_")):
        found = FAMILIES[family].table.find(spelled)
        assert tuple(found.diffusers(r) for r in found.rows) == NATIVE[family][native]


def test_only_the_modulations_that_diffusers_reorders_change_halves():
    swapped = {(name, row.diffusers): row.swap for name, row in ROWS if row.swap}
    assert swapped == {
        ("flux1", "norm_out.linear"): "always", ("flux2", "norm_out.linear"): "always", ("sd3", "norm_out.linear"): "always",
        ("sd3", "transformer_blocks.*.norm1_context.linear"): "last", ("hunyuanvideo", "norm_out.linear"): "always",
        ("auraflow", "norm_out.linear"): "always", ("longcatimage", "norm_out.linear"): "always",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("family", "native", "shares"),
    [
        ("flux1", "single_blocks.0.linear1", (1, 1, 1, 4)),
        ("flux1", "double_blocks.0.img_attn.qkv", (1, 1, 1)),
        ("lumina2", "layers.0.attention.qkv", (3, 1, 1)),
    ],
)
def test_the_shares_of_fused_layers(family, native, shares):
    assert FAMILIES[family].table.find(native).rows[0].shares == shares


# --- text encoders ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", ["clip_l", "clip_h", "clip_g", "t5xxl"])
def test_every_text_layer_is_found_dotted_flat_and_without_the_part_transformers_leaves_out(encoder):
    for path in text_layers(encoder, CLIP.get(encoder, 24)):
        spellings = {path, path.replace(".", "_")}
        if encoder != "t5xxl":
            spellings |= {s.removeprefix("text_model").lstrip("._") for s in spellings}
        assert {text.find(encoder, s) for s in spellings} == {path}


def test_a_clip_has_six_layers_a_block_and_the_projection():
    assert len(text_layers("clip_l", 12)) == 72
    assert len(text_layers("clip_g", 32)) == 192
    assert text.find("clip_g", "text_projection") == "text_projection"


@pytest.mark.parametrize(
    "name", ["text_model.encoder.layers.0.mlp.fc3", "encoder.block.0.layer.0.SelfAttention.q", "unet", ""]
)
def test_a_clip_has_no_other_layers(name):
    assert text.find("clip_l", name) is None


def test_a_t5_has_no_clip_layers():
    assert text.find("t5xxl", "text_model.encoder.layers.0.mlp.fc1") is None


# --- detection ------------------------------------------------------------------------------------------------------------------------------


def is_attention(path: str) -> bool:
    return bool(re.search(r"attn.*\.(to_\w+(\.0)?|add_\w_proj)$|attention\.to_\w+(\.0)?$", path)) and "mlp" not in path


SUBSETS = {
    "attention": lambda path, shape: is_attention(path),
    "blocks": lambda path, shape: bool(re.search(r"^(\w+_)?(blocks|layers|refiner)\.\d+\.", path)) and len(shape) == 2,
    "linear": lambda path, shape: len(shape) == 2,
    "all": lambda path, shape: True,
}


ALIKE = {
    "cosmos-predict2": ("anima, cosmospredict2", ()), "anima": ("anima, cosmospredict2", ()), "ltx-video-13b": ("ltxv, ltxav", ("all",)),
}  # fmt: skip


def rank_1(shape) -> Module:
    return Module("lora", {"down": torch.zeros(1, *shape[1:]), "up": torch.zeros(shape[0], 1, *[1] * len(shape[2:]))})


def spelled(model: str, subset: str, spelling: str) -> dict[str, Module]:
    """Rank 1 modules with the real sizes of a model, named as a file of that spelling has them."""
    family = FAMILIES[MODELS[model][0]]
    chosen = sampled({p: s for p, s in layers(model).items() if SUBSETS[subset](p, s)})
    out = {}
    for path, shape in chosen.items():
        if spelling in ("diffusers", "lycoris"):
            out[f"{family.component}.{path}" if spelling == "diffusers" else f"lycoris_{path.replace('.', '_')}"] = (
                rank_1(shape)
            )
            continue
        found = family.table.find(path)
        row = found.rows[0]
        native = fill(row.native, found.numbers)
        whole = rank_1((shape[0] // row.shares[row.part] * sum(row.shares), *shape[1:]))
        out[f"diffusion_model.{native}" if spelling == "comfyui" else f"lora_unet_{native.replace('.', '_')}"] = whole
    if spelling == "kohya" and not family.native_kohya:
        return {f"lora_unet_{p.replace('.', '_')}": rank_1(s) for p, s in chosen.items()}
    return out


@pytest.mark.parametrize("spelling", ["diffusers", "lycoris", "comfyui", "kohya"])
@pytest.mark.parametrize("subset", SUBSETS)
@pytest.mark.parametrize("model", MODELS)
def test_the_family_is_told_from_names_and_shapes(model, subset, spelling):
    modules = spelled(model, subset, spelling)
    family, doubt = detect(modules, {})
    if model == "chroma" and subset in ("attention", "blocks"):
        assert family == "flux1"  # the same layers in the same sizes: only the header or the user can tell
        assert "flux1, chroma" in str(doubt)
        assert detect(modules, {"ss_base_model_version": "chroma"}) == ("chroma", None)
    elif model == "flux1" and subset == "attention":
        assert family == "flux1"  # Chroma has the same layers, which `doubt` says
    elif model in ALIKE:
        rivals, alone = ALIKE[model]  # the same layers in the same sizes, which `doubt` says
        assert (family, f"{rivals}" in str(doubt) or subset in alone) == (rivals.split(", ")[0], True)
        assert detect(modules, {"ss_base_model_version": MODELS[model][0]})[0] == MODELS[model][0]
    else:
        assert (family, doubt) == (MODELS[model][0], None)


@pytest.mark.parametrize("spelling", ["diffusers", "comfyui"])
@pytest.mark.parametrize(
    ("width", "family"), [(768, "sd1"), (1024, "sd2"), (2048, "sdxl"), (128, "emoji"), (64, "toy")]
)
def test_unets_are_told_by_the_width_of_the_text_they_read(width, family, spelling):
    # Layer names that all of these UNets have.
    name = {"diffusers": "unet.down_blocks.1.attentions.0", "comfyui": "diffusion_model.input_blocks.4.1"}[spelling]
    if family in TOYS:
        name = {"diffusers": "unet.down_blocks.1.attentions.0", "comfyui": "diffusion_model.input_blocks.3.1"}[spelling]
    found = detect(
        {
            f"{name}.transformer_blocks.0.attn2.to_k": rank_1((640, width)),
            f"{name}.transformer_blocks.0.attn2.to_q": rank_1((640, 640)),
        },
        {},
    )
    assert found == (family, None)


def test_shapes_are_trusted_over_a_header_that_disagrees():
    assert detect(spelled("sdxl", "attention", "kohya"), {"ss_base_model_version": "sd_v1"})[0] == "sdxl"
    assert (
        detect(spelled("sd1", "attention", "kohya"), {"ss_base_model_version": "sdxl_base_v1-0", "ss_v2": "True"})[0]
        == "sd1"
    )
    assert (
        detect(spelled("flux1", "all", "diffusers"), {"modelspec.architecture": "stable-diffusion-3-medium/lora"})[0]
        == "flux1"
    )


def test_flux_blocks_in_the_narrow_subset_of_sd3_names_are_told_by_their_width():
    names = ["attn.to_q", "attn.to_k", "attn.add_q_proj", "attn.to_out.0", "ff_context.net.0.proj"]
    for width, family in ((3072, "flux1"), (1536, "sd3"), (2432, "sd3")):
        modules = {
            f"transformer.transformer_blocks.3.{n}": rank_1((width * (4 if "ff" in n else 1), width)) for n in names
        }
        assert detect(modules, {})[0] == family


def test_attention_layers_of_the_two_stream_blocks_alone_fit_flux_and_qwen_so_neither_is_taken_without_doubt():
    modules = {
        f"transformer.transformer_blocks.{b}.attn.{n}": rank_1((3072, 3072))
        for b in range(19)
        for n in ("to_q", "to_k", "add_q_proj", "to_out.0")
    }
    family, doubt = detect(modules, {})
    assert family in ("flux1", "qwen-image")
    assert doubt
    assert detect(modules, {"ss_base_model_version": "flux1"})[0] == "flux1"
    assert detect(modules | {"transformer.transformer_blocks.0.img_mlp.net.2": rank_1((3072, 12288))}, {}) == (
        "qwen-image",
        None,
    )


def test_names_nobody_knows_are_an_unknown_family():
    family, doubt = detect({"diffusion_model.strange.3.layer": rank_1((4, 4))}, {})
    assert family == UNKNOWN
    assert "everything is kept" in str(doubt)


def test_a_layer_beyond_the_published_models_is_of_no_known_family():
    family, doubt = detect({"diffusion_model.double_blocks.99.img_attn.qkv": rank_1((9216, 3072))}, {})
    assert family == UNKNOWN
    assert doubt.code == "note.other_model"


@pytest.mark.parametrize(
    ("names", "metadata", "family"),
    [
        ({"lora_te_text_model_encoder_layers_0_self_attn_q_proj": 768}, {}, "sd1"),
        ({"lora_te_text_model_encoder_layers_0_self_attn_q_proj": 1024}, {}, "sd2"),
        ({"text_encoder.text_model.encoder.layers.0.self_attn.q_proj": 1024}, {}, "sd2"),
        ({"lora_te1_text_model_encoder_layers_0_mlp_fc1": 768, "lora_te2_text_model_encoder_layers_31_mlp_fc1": 1280}, {}, "sdxl"),
        ({"text_encoder_2.text_model.encoder.layers.31.mlp.fc1": 1280}, {}, "sdxl"),
        ({"text_encoders.clip_g.transformer.text_model.encoder.layers.31.mlp.fc1": 1280}, {}, "sdxl"),
        ({"lora_te1_text_model_encoder_layers_0_mlp_fc1": 768, "lora_te3_encoder_block_0_layer_0_SelfAttention_q": 4096}, {}, "flux1"),
        ({"lora_te1_text_model_encoder_layers_0_mlp_fc1": 768, "lora_te2_encoder_block_0_layer_0_SelfAttention_q": 4096}, {}, "flux1"),
        ({"lora_te1_text_model_encoder_layers_0_mlp_fc1": 768, "lora_te2_text_model_encoder_layers_0_mlp_fc1": 1280,
          "lora_te3_encoder_block_0_layer_0_SelfAttention_q": 4096}, {}, "sd3"),
        ({"lora_te1_text_model_encoder_layers_0_mlp_fc1": 768}, {"ss_base_model_version": "sdxl_base_v1-0"}, "sdxl"),
        ({"lora_te1_text_model_encoder_layers_0_mlp_fc1": 768}, {"modelspec.architecture": "flux-1-dev/lora"}, "flux1"),
    ],
)  # fmt: skip
def test_files_with_text_encoder_layers_only(names, metadata, family):
    state = {}
    for name, width in names.items():
        state |= {f"{name}.lora_down.weight": torch.zeros(1, width), f"{name}.lora_up.weight": torch.zeros(width, 1)}
    assert read(state, metadata).family == family


def test_a_file_with_clip_l_alone_is_doubted():
    assert "sd1 is assumed" in str(detect({"lora_te_text_model_encoder_layers_0_mlp_fc1": rank_1((3072, 768))}, {})[1])


@pytest.mark.parametrize(
    ("metadata", "family"),
    [
        ({}, ""), ({"ss_base_model_version": "sd_v1"}, "sd1"), ({"ss_base_model_version": "sd_v2_v"}, "sd2"),
        ({"ss_v2": "True"}, "sd2"), ({"ss_v2": "False"}, ""),
        ({"ss_base_model_version": "sdxl_base_v1-0"}, "sdxl"), ({"ss_base_model_version": "flux1"}, "flux1"), ({"ss_base_model_version": "chroma"}, "chroma"),
        ({"ss_base_model_version": "lumina2"}, "lumina2"), ({"modelspec.architecture": "stable-diffusion-v1/lora"}, "sd1"),
        ({"modelspec.architecture": "stable-diffusion-v2-768-v/lora"}, "sd2"), ({"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}, "sdxl"),
        ({"modelspec.architecture": "stable-diffusion-3-medium/lora"}, "sd3"), ({"modelspec.architecture": "flux-1-schnell/lora"}, "flux1"),
        ({"modelspec.architecture": "Qwen-Image/lora"}, "qwen-image"), ({"modelspec.architecture": "wan2.1/lora"}, "wan"),
        ({"ss_base_model_version": "something else"}, ""),
    ],
)  # fmt: skip
def test_headers_name_families_in_the_words_of_kohya_and_the_model_spec(metadata, family):
    assert declared_family(metadata) == family


def test_the_bundled_toy_is_a_family_of_its_own_by_every_layer_it_has():
    with torch.device("meta"):
        unet = networks.new_unet()
    shapes = {
        n: tuple(m.weight.shape) for n, m in unet.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)
    }
    assert detect({f"unet.{name}": rank_1(shape) for name, shape in shapes.items()}, {}) == ("emoji", None)
    attention = {name: shape for name, shape in shapes.items() if ".attn" in name}
    assert detect({f"unet.{name}": rank_1(shape) for name, shape in attention.items()}, {}) == ("emoji", None)


def test_every_family_has_a_model_here():
    assert {*FAMILY_MODELS, *TOYS} == set(FAMILIES)
