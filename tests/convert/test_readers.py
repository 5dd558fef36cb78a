"""Every spelling of one layer gives the same canonical module with the number worked out by hand; everything that is wrong is refused by name."""

import contextlib
import json
import re

import pytest
import torch
from lora_cases import a_b, dense, error, kohya, layers, loha, lokr, lora, random
from lora_loom.convert import FormatError, Module, read, write
from lora_loom.convert.families import FAMILIES, UNKNOWN
from lora_loom.convert.writers import carried
from peft import LoKrConfig, get_peft_model
from since import since

Q = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
FLAT_Q = Q.replace(".", "_")


def state(
    name: str,
    rank: int = 2,
    alpha: float | None = None,
    down: str = "lora_down.weight",
    up: str = "lora_up.weight",
    width: int = 4,
) -> dict:
    """A layer whose change is 6 * rank * alpha / rank everywhere: every number of down is 2, every number of up is 3."""
    out = {f"{name}.{down}": torch.full((rank, width), 2.0), f"{name}.{up}": torch.full((width, rank), 3.0)}
    return out if alpha is None else {**out, f"{name}.alpha": torch.tensor(alpha)}


def only(lora) -> tuple[str, Module]:
    ((name, module),) = lora.modules.items()
    return name, module


def value(module: Module) -> float:
    """The one number the change consists of."""
    ((number,),) = dense(module).flatten().unique().reshape(-1, 1).tolist()
    return number


A_B = {"down": "lora_A.weight", "up": "lora_B.weight"}
SPELLINGS = {
    "kohya": state(f"lora_unet_{FLAT_Q}"),
    "kohya in sgm names": state("lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q"),
    "kohya with two underscores": state(f"lora_unet__{FLAT_Q}"),
    "comfyui node": state("diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q"),
    "checkpoint names": state("model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q"),
    "comfyui A/B": state("diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q", **A_B),
    "diffusers": state(f"unet.{Q}", **A_B),
    "diffusers without .weight": state(f"unet.{Q}", down="lora_A", up="lora_B"),
    "diffusers adapter name": state(f"unet.{Q}", down="lora_A.default.weight", up="lora_B.default.weight"),
    "diffusers named adapter": state(f"unet.{Q}", down="lora_A.my_style_2.weight", up="lora_B.my_style_2.weight"),
    "bare path": state(Q, **A_B),
    "training scripts": state(f"unet.{Q}", down="lora.down.weight", up="lora.up.weight"),
    "training scripts linear": state(
        f"unet.{Q}", down="lora_linear_layer.down.weight", up="lora_linear_layer.up.weight"
    ),
    "old attention processors": {
        f"{Q.removesuffix('to_q')}processor.to_q_lora.down.weight": torch.full((2, 4), 2.0),
        f"{Q.removesuffix('to_q')}processor.to_q_lora.up.weight": torch.full((4, 2), 3.0),
    },
    "old attention processors with unet": {
        f"unet.{Q.removesuffix('to_q')}processor.to_q_lora.down.weight": torch.full((2, 4), 2.0),
        f"unet.{Q.removesuffix('to_q')}processor.to_q_lora.up.weight": torch.full((4, 2), 3.0),
    },
    "processor and A/B": state(f"unet.{Q.removesuffix('to_q')}processor.to_q", **A_B),
    "peft": state(f"base_model.model.{Q}", **A_B),
    "peft adapter name": state(f"base_model.model.{Q}", down="lora_A.default.weight", up="lora_B.default.weight"),
    "peft after the component": state(f"unet.base_model.model.{Q}", **A_B),
    "peft doubled": state(f"base_model.model.base_model.model.{Q}", **A_B),
    "peft around a component": state(f"base_model.model.unet.base_model.model.{Q}", **A_B),
    "compiled": state(f"_orig_mod.{Q}", **A_B),
    "compiled component": state(f"unet._orig_mod.{Q}", **A_B),
    "data parallel": state(f"module.{Q}", **A_B),
    "data parallel, compiled, peft": state(f"module._orig_mod.base_model.model.{Q}", **A_B),
    "simpletuner": state(f"lycoris_{FLAT_Q}"),
    "bare A and B": {f"{Q}.A": torch.full((4, 2), 2.0), f"{Q}.B": torch.full((2, 4), 3.0)},
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_a_layer_is_the_same_module(spelling):
    name, module = only(read(SPELLINGS[spelling], family="sd1"))
    assert (name, module.kind, set(module.parts)) == (f"unet.{Q}", "lora", {"down", "up"})
    assert module.shape == (4, 4)
    assert (module.rank, module.scale) == (2, 1.0)  # no alpha: alpha is the rank
    assert value(module) == 12.0  # 2 * 3, summed over rank 2


@pytest.mark.parametrize("spelling", [s for s in SPELLINGS if s != "bare A and B"])
@pytest.mark.parametrize(("alpha", "number"), [(1.0, 6.0), (4.0, 24.0), (-1.0, -6.0), (0.0, 12.0)])
def test_alpha_counts_in_every_spelling(spelling, alpha, number):
    name = next(iter(SPELLINGS[spelling])).rpartition("to_q")[0] + "to_q"
    _, module = only(read({**SPELLINGS[spelling], f"{name}.alpha": torch.tensor(alpha)}, family="sd1"))
    assert value(module) == number


@pytest.mark.parametrize("dtype", [torch.int64, torch.float16, torch.bfloat16, torch.float64])
def test_alpha_may_have_any_type_and_one_dimension(dtype):
    given = {**state(f"lora_unet_{FLAT_Q}"), f"lora_unet_{FLAT_Q}.alpha": torch.tensor([1], dtype=dtype)}
    assert value(only(read(given, family="sd1"))[1]) == 6.0


def test_out_projections_of_old_attention_processors_are_the_first_layer_of_to_out():
    base = "up_blocks.1.attentions.0.transformer_blocks.0.attn2.processor"
    old = {f"{base}.to_out_lora.down.weight": torch.ones(2, 4), f"{base}.to_out_lora.up.weight": torch.ones(4, 2)}
    assert only(read(old, family="sd1"))[0] == "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0"


def test_onetrainer_and_comfyui_names_of_a_transformer():
    for name in (
        "lora_transformer_transformer_blocks_0_attn_to_q",
        "lycoris_transformer_blocks_0_attn_to_q",
        "transformer.transformer_blocks.0.attn.to_q",
    ):
        assert only(read(state(name), family="flux1"))[0] == "transformer.transformer_blocks.0.attn.to_q"


def test_mixed_ranks_and_alphas_each_count_for_their_own_layer():
    up = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_k"
    mixed = {**state(f"lora_unet_{FLAT_Q}", rank=2, alpha=1.0), **state(f"lora_unet_{up}", rank=4, alpha=8.0)}
    modules = read(mixed, family="sd1").modules
    assert {n.rpartition(".")[2]: (m.rank, m.alpha, value(m)) for n, m in modules.items()} == {
        "to_q": (2, 1.0, 6.0),
        "to_k": (4, 8.0, 48.0),
    }


def test_a1111_scale_counts_in_place_of_alpha():
    given = {**state(f"lora_unet_{FLAT_Q}", alpha=1.0), f"lora_unet_{FLAT_Q}.scale": torch.tensor(0.25)}
    assert value(only(read(given, family="sd1"))[1]) == 3.0


def test_a1111_scale_zero_is_no_effect():
    given = {**state(f"lora_unet_{FLAT_Q}", alpha=1.0), f"lora_unet_{FLAT_Q}.scale": torch.tensor(0.0)}
    assert value(only(read(given, family="sd1"))[1]) == 0.0


def test_bare_a_and_b_stand_for_x_times_a_times_b():
    a, b = torch.arange(8.0).view(4, 2), torch.tensor([[1.0, 0.0, 2.0, 0.0], [0.0, 3.0, 0.0, 1.0]])
    _, module = only(read({f"{Q}.A": a, f"{Q}.B": b}, family="sd1"))
    assert torch.equal(dense(module).float(), (a @ b).t())  # a layer's weight is (out, in)


def test_bare_a_and_b_warn_that_their_scale_is_unknown():
    notes = read(SPELLINGS["bare A and B"], family="sd1").notes
    assert any("scale 1 is assumed" in str(n) for n in notes)


# --- kernels ------------------------------------------------------------------------------------------------------------------------------

CONV = {
    "conv3x3": ("down_blocks_0_resnets_0_conv1", (3, 3)),
    "stride": ("down_blocks_0_downsamplers_0_conv", (3, 3)),
    "conv1x1": ("down_blocks_1_resnets_0_conv_shortcut", (1, 1)),
    "proj": ("mid_block_attentions_0_proj_in", (1, 1)),
}


@pytest.mark.parametrize("kind", CONV)
def test_convolutions_keep_their_kernel(kind):
    name, kernel = CONV[kind]
    module = lora(alpha=1.0, kernel=kernel)
    got = only(read(kohya(f"lora_unet_{name}", module), family="sd1"))[1]
    assert got.shape == (6, 5, *kernel)
    assert torch.equal(got.parts["down"], module.parts["down"])
    assert got.parts["up"].shape == (6, 2, 1, 1)


@pytest.mark.parametrize("kind", CONV)
def test_convolutions_saved_flat_by_comfyuis_node_get_their_kernel_back(kind):
    name, kernel = CONV[kind]
    module = lora(alpha=1.0, kernel=kernel)
    flat = Module("lora", {k: v.flatten(1) for k, v in module.parts.items()}, 1.0)
    got = only(read(kohya(f"lora_unet_{name}", flat), family="sd1"))[1]
    assert torch.equal(got.parts["down"], module.parts["down"])
    assert got.parts["up"].shape == (6, 2, 1, 1)


@pytest.mark.parametrize("stored", [(), (1, 1)])
@pytest.mark.parametrize(("family", "kernel"), [("sd1", (1, 1)), ("sd2", ()), ("sdxl", ())])
def test_projections_are_convolutions_in_sd1_and_linear_in_sd2_and_sdxl_however_they_were_stored(
    family, kernel, stored
):
    module = lora(alpha=1.0, kernel=stored)
    got = only(read(kohya("lora_unet_mid_block_attentions_0_proj_in", module), family=family))[1]
    assert got.shape == (6, 5, *kernel)
    assert torch.equal(dense(got).flatten(), dense(module).flatten())


def test_a_kernel_the_layer_cannot_have_is_refused():
    for name, kernel in ((FLAT_Q, (3, 3)), ("mid_block_attentions_0_proj_in", (3, 3))):
        with pytest.raises(FormatError, match=rf"lora_unet_{name}: lora_down is 2x5x3x3"):
            read(kohya(f"lora_unet_{name}", lora(kernel=kernel)), family="sd1")
    with pytest.raises(FormatError, match="lora_unet_conv_in: lora_down is 2x5"):  # 5 numbers are no 3x3 kernels
        read(kohya("lora_unet_conv_in", lora()), family="sd1")


@pytest.mark.parametrize("module", [lora(alpha=1.0, kernel=(3, 3), tucker=True), loha(alpha=1.0, kernel=(3, 3), tucker=True),
                                    lokr("full", "tucker", alpha=1.0, kernel=(3, 3)), lokr("low", "full", alpha=1.0, kernel=(3, 3))])  # fmt: skip
def test_other_adapters_of_convolutions_are_read(module):
    got = only(read(kohya("lora_unet_down_blocks_0_resnets_0_conv1", module), family="sd1"))[1]
    assert got.kind == module.kind
    assert torch.equal(dense(got), dense(module))


@pytest.mark.parametrize(
    "module", [loha(), loha(alpha=1.0), lokr("full", "low", alpha=1.0), lokr("low", "low", alpha=0.5), lokr(alpha=7.0)]
)
def test_other_adapters_of_linear_layers_are_read(module):
    got = only(read(kohya(f"lora_unet_{FLAT_Q}", module), family="sd1"))[1]
    assert got.kind == module.kind
    assert torch.equal(dense(got), dense(module))


def test_full_differences_are_read_under_lycoris_names_too():
    diff, bias = random(1, 6, 5), random(2, 6)
    got = only(read({f"lora_unet_{FLAT_Q}.diff": diff, f"lora_unet_{FLAT_Q}.diff_b": bias}, family="sd1"))[1]
    assert (got.kind, set(got.parts)) == ("full", {"diff", "diff_b"})
    assert torch.equal(dense(got), diff.double())


def test_norm_layers_that_lycoris_trained_are_read():
    norm = "lora_unet_mid_block_attentions_0_transformer_blocks_0_norm1"
    given = {f"{norm}.w_norm": torch.ones(1280), f"{norm}.b_norm": torch.zeros(1280), **state(f"lora_unet_{FLAT_Q}")}
    for family in ("sd1", ""):
        module = read(given, family=family).modules["unet.mid_block.attentions.0.transformer_blocks.0.norm1"]
        assert (module.kind, set(module.parts)) == ("norm", {"diff", "diff_b"})


def test_a_bias_alone_is_a_full_difference():
    got = read({**state(f"lora_unet_{FLAT_Q}"), "lora_unet_conv_in.diff_b": torch.ones(320)}).modules["unet.conv_in"]
    assert (got.kind, set(got.parts)) == ("full", {"diff_b"})


@pytest.mark.parametrize(("given", "scale"), [({"alpha": 8.0}, 2.0), ({"alpha": 1.0}, 0.25), ({}, 1.0)])
def test_a_bias_of_the_upper_factor_is_a_change_of_the_layers_bias_at_the_scale_of_the_module(given, scale):
    name, bias = f"unet.{Q}", torch.arange(5.0)
    kept = {f"{name}.{part}": torch.tensor(value) for part, value in given.items()}
    factors = {
        f"{name}.lora_A.weight": torch.ones(4, 3),
        f"{name}.lora_B.weight": torch.ones(5, 4),
        f"{name}.lora_B.bias": bias,
    }
    got = read({**factors, **kept}, family="sd1").modules[f"unet.{Q}"]
    torch.testing.assert_close(got.parts["diff_b"], bias * scale, rtol=0, atol=0)
    both = read({**factors, **kept, f"{name}.diff_b": torch.ones(5)}, family="sd1").modules[f"unet.{Q}"]
    torch.testing.assert_close(both.parts["diff_b"], bias * scale + 1, rtol=0, atol=0)


# --- PEFT ---------------------------------------------------------------------------------------------------------------------------------


def test_a_peft_config_gives_the_scale_and_without_it_the_scale_is_one():
    given = state(f"base_model.model.{Q}", rank=4, **A_B)
    assert value(only(read(given, family="sd1"))[1]) == 24.0
    assert value(only(read(given, config={"lora_alpha": 8, "r": 4}, family="sd1"))[1]) == 48.0
    assert (
        value(only(read(given, config={"lora_alpha": 8, "r": 16}, family="sd1"))[1]) == 48.0
    )  # the rank is the tensor's


def test_rslora_divides_by_the_root_of_the_rank():
    given = state(f"base_model.model.{Q}", rank=4, **A_B)
    module = only(read(given, config={"lora_alpha": 3, "r": 4, "use_rslora": True}, family="sd1"))[1]
    assert module.scale == 1.5
    assert value(module) == 36.0  # 6 * 4 * 3 / sqrt(4)


def test_alpha_in_the_file_wins_over_the_config():
    given = state(f"base_model.model.{Q}", rank=2, alpha=1.0, **A_B)
    assert value(only(read(given, config={"lora_alpha": 100}, family="sd1"))[1]) == 6.0


def test_a_lora_alpha_of_zero_in_a_peft_config_is_no_effect():
    # Only in Kohya files does zero mean "as rank"; peft computes 0 / r.
    assert (
        value(only(read(state(f"base_model.model.{Q}", **A_B), config={"lora_alpha": 0, "r": 2}, family="sd1"))[1])
        == 0.0
    )


NAMES = ["down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0", Q,
         "up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_q", "mid_block.resnets.0.conv1", "up_blocks.1.resnets.1.conv1"]  # fmt: skip
PATTERNS = [
    {}, {"to_q": 7}, {"attn1.to_q": 7, "to_q": 5}, {"to_q": 5, "attn1.to_q": 7}, {r"down_blocks\.0\..*": 7}, {r"down_blocks.*": 7, Q: 3}, {"o_q": 7},
    {r".*attn[12]\.to_q": 7}, {r"(up|mid)_blocks?\..*conv1": 7, "conv1": 9}, {"^mid_block.*": 7}, {r"resnets\.\d\.conv1": 9}, {"to_out.0": 2, "to_out": 4},
]  # fmt: skip


@pytest.mark.parametrize("patterns", PATTERNS, ids=lambda p: " ".join(p) or "none")
@since("peft", "0.14", "get_pattern_key")
def test_alpha_patterns_match_the_layers_that_peft_matches(patterns):
    given = {}
    for name in NAMES:
        kernel = (3, 3) if name.endswith("conv1") else ()
        given |= a_b(f"base_model.model.{name}", lora(kernel=kernel))
    modules = read(given, config={"lora_alpha": 1, "alpha_pattern": patterns}, family="sd1").modules
    from peft.utils.other import get_pattern_key

    theirs = {name: float(patterns.get(get_pattern_key(patterns.keys(), name), 1)) for name in NAMES}
    assert {n.removeprefix("unet."): m.alpha for n, m in modules.items()} == theirs


def test_the_copy_of_the_config_that_diffusers_keeps_in_the_header_counts_for_each_component():
    text = "text_model.encoder.layers.0.mlp.fc1"
    given = {**state(f"unet.{Q}", rank=4, **A_B), **state(f"text_encoder.{text}", rank=4, **A_B)}
    header = {
        "unet.r": 4,
        "unet.lora_alpha": 8,
        "unet.alpha_pattern": {},
        "text_encoder.r": 4,
        "text_encoder.lora_alpha": 3,
        "text_encoder.use_rslora": True,
    }
    modules = read(given, {"format": "pt", "lora_adapter_metadata": json.dumps(header)}, family="sd1").modules
    assert value(modules[f"unet.{Q}"]) == 48.0
    assert value(modules[f"clip_l.{text}"]) == 36.0
    modules = read(
        given, {"lora_adapter_metadata": json.dumps({"unet.r": 4, "unet.lora_alpha": 8})}, family="sd1"
    ).modules
    assert value(modules[f"clip_l.{text}"]) == 24.0  # nothing is said about it: scale 1


@pytest.mark.parametrize(
    "header",
    [
        "not json",
        "[1, 2]",
        "3",
        "null",
        '"text"',
        '{"unet.lora_alpha": "x"}',
        '{"unet.lora_alpha": [1]}',
        '{"unet.lora_alpha": NaN}',
    ],
)
def test_a_damaged_copy_of_the_config_is_refused_or_ignored_but_nothing_else_happens(header):
    try:
        module = only(read(state(f"unet.{Q}", **A_B), {"lora_adapter_metadata": header}, family="sd1"))[1]
    except FormatError:
        return
    assert value(module) == 12.0


@pytest.mark.parametrize(
    "config",
    [
        {"lora_alpha": float("nan")},
        {"lora_alpha": "8"},
        {"lora_alpha": [8]},
        {"lora_alpha": 8, "alpha_pattern": {"(": 1}},
    ],
)
def test_a_config_with_a_damaged_scale_is_refused(config):
    with pytest.raises(FormatError, match=r"adapter_config\.json"):
        read(state(f"base_model.model.{Q}", **A_B), config=config, family="sd1")


class Net(torch.nn.Module):
    """A piece of a UNet under its real names, for peft."""

    def __init__(self):
        super().__init__()
        self.conv_in = torch.nn.Conv2d(4, 6, 3)
        self.time_embedding = torch.nn.ModuleDict(
            {"linear_1": torch.nn.Linear(64, 64), "linear_2": torch.nn.Linear(64, 36)}
        )


@pytest.mark.parametrize(("rank", "both", "parts"), [(64, False, {"lokr_w1", "lokr_w2"}), (2, False, {"lokr_w1", "lokr_w2_a", "lokr_w2_b"}),
                                                     (2, True, {"lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"})])  # fmt: skip
@since("peft", "0.14", "LoKr is scaled by alpha / r")
def test_a_lokr_of_peft_keeps_the_effect_it_has_in_peft(rank, both, parts):
    # peft multiplies alpha / r even where both factors are full and there is no rank to read; WebUIs ignore alpha there.
    config = LoKrConfig(
        r=rank, alpha=3 * rank, target_modules=["linear_1", "linear_2"], decompose_both=both, init_weights=False
    )
    torch.manual_seed(0)
    net = get_peft_model(Net(), config)
    saved = {k.replace(".default", ""): v.detach() for k, v in net.state_dict().items() if "lokr_" in k}
    modules = read(saved, config=config.to_dict(), family="sd1").modules
    assert len(modules) == 2
    for name, module in modules.items():
        if name.endswith("1"):
            assert set(module.parts) == parts
        layer = net.base_model.model.get_submodule(name.removeprefix("unet."))
        assert error(dense(module), layer.get_delta_weight("default").detach()) < 1e-6  # float32 sums in another order


# --- DoRA ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    ["dora_scale", "lora_magnitude_vector", "lora_magnitude_vector.weight", "lora_magnitude_vector.default.weight"],
)
@pytest.mark.parametrize("shape", [(6,), (6, 1)])
def test_magnitudes_of_linear_outputs_become_a_column(key, shape):
    got = only(read({**a_b(f"unet.{Q}", lora()), f"unet.{Q}.{key}": torch.arange(6.0).reshape(shape)}, family="sd1"))[1]
    assert torch.equal(got.parts["dora"], torch.arange(6.0)[:, None])


@pytest.mark.parametrize(
    ("key", "shape"),
    [("dora_scale", (6, 1, 1, 1)), ("lora_magnitude_vector", (1, 6, 1, 1)), ("lora_magnitude_vector", (6,))],
)
def test_magnitudes_of_convolution_outputs_stand_on_the_first_axis(key, shape):
    conv = "down_blocks.0.resnets.0.conv1"
    got = only(
        read(
            {**a_b(f"unet.{conv}", lora(kernel=(3, 3))), f"unet.{conv}.{key}": torch.arange(6.0).reshape(shape)},
            family="sd1",
        )
    )[1]
    assert torch.equal(got.parts["dora"], torch.arange(6.0)[:, None, None, None])


def test_magnitudes_of_inputs_stay_a_row_and_both_kinds_warn():
    row = {**a_b(f"unet.{Q}", lora()), f"unet.{Q}.dora_scale": torch.ones(1, 5)}
    lora_in = read(row, family="sd1")
    assert only(lora_in)[1].parts["dora"].shape == (1, 5)
    assert any("DoRA over inputs" in str(n) for n in lora_in.notes)
    lora_out = read({**a_b(f"unet.{Q}", lora()), f"unet.{Q}.dora_scale": torch.ones(6, 1)}, family="sd1")
    assert any("DoRA over outputs" in str(n) for n in lora_out.notes)


# --- text encoders ------------------------------------------------------------------------------------------------------------------------

CLIP, T5 = "text_model.encoder.layers.0.self_attn.q_proj", "encoder.block.0.layer.0.SelfAttention.q"


@pytest.mark.parametrize(
    ("family", "prefix", "path", "encoder"),
    [
        ("sd1", "lora_te_", CLIP, "clip_l"), ("sd1", "lora_te1_", CLIP, "clip_l"), ("sd1", "text_encoder.", CLIP, "clip_l"),
        ("sd1", "text_encoders.clip_l.transformer.", CLIP, "clip_l"), ("sd1", "text_encoders.clip_l.", CLIP, "clip_l"),
        ("sd2", "lora_te_", CLIP, "clip_h"), ("sd2", "text_encoder.", CLIP, "clip_h"), ("sd2", "text_encoders.clip_h.transformer.", CLIP, "clip_h"),
        ("sdxl", "lora_te1_", CLIP, "clip_l"), ("sdxl", "lora_te2_", CLIP, "clip_g"), ("sdxl", "text_encoder_2.", CLIP, "clip_g"),
        ("sdxl", "text_encoder.", CLIP, "clip_l"), ("sdxl", "text_encoders.clip_g.transformer.", CLIP, "clip_g"),
        ("sdxl", "lora_te2_", "text_projection", "clip_g"),
        ("sd3", "lora_te1_", CLIP, "clip_l"), ("sd3", "lora_te2_", CLIP, "clip_g"), ("sd3", "lora_te3_", T5, "t5xxl"), ("sd3", "text_encoder_3.", T5, "t5xxl"),
        ("flux1", "lora_te1_", CLIP, "clip_l"), ("flux1", "lora_te3_", T5, "t5xxl"), ("flux1", "lora_te2_", T5, "t5xxl"),
        ("flux1", "text_encoder.", CLIP, "clip_l"), ("flux1", "text_encoder_2.", T5, "t5xxl"), ("flux1", "text_encoders.t5xxl.transformer.", T5, "t5xxl"),
        ("chroma", "text_encoder.", T5, "t5xxl"), ("sdxl-refiner", "text_encoder_2.", CLIP, "clip_g"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("without", [False, True])
def test_text_encoder_slots_mean_the_encoder_of_the_family(family, prefix, path, encoder, without):
    spelled = path.removeprefix("text_model.") if without else path
    name = f"{prefix}{spelled.replace('.', '_') if prefix.startswith('lora_') else spelled}"
    denoiser = FAMILIES[family].component
    assert only(read(state(name, alpha=1.0), family=family))[0] == f"{encoder}.{path}"
    assert denoiser not in {name.partition(".")[0] for name in read(state(name), family=family).modules}


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("sd1", "lora_te2_text_model_encoder_layers_0_mlp_fc1"), ("sd1", "text_encoder_3.encoder.block.0.layer.0.SelfAttention.q"),
        ("sd1", "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q"), ("qwen-image", "lora_te1_text_model_encoder_layers_0_mlp_fc1"),
        ("flux1", "lora_te2_text_model_encoder_layers_0_mlp_fc1"), ("sdxl", "lora_te2_text_model_encoder_layers_0_mlp_fc9"),
    ],
)  # fmt: skip
def test_text_layers_the_family_does_not_have_are_carried_and_told_by_name(family, name):
    beside = {
        "flux1": "transformer.x_embedder",
        "qwen-image": "transformer.img_in",
        "sdxl": "unet.time_embedding.linear_2",
    }.get(family, "unet.time_embedding.linear_1")
    lora_ = read({**state(beside, **A_B), **state(name)}, family=family)
    assert any(name in str(note) for note in lora_.notes)
    assert state(name).keys() <= write(lora_).keys()
    with pytest.raises(FormatError, match=re.escape(name)):
        read(state(name), family=family)  # and nothing else: the file is for another model


# --- refusals -----------------------------------------------------------------------------------------------------------------------------

GOOD = state(f"lora_unet_{FLAT_Q}", alpha=1.0)
DOWN, UP, ALPHA = GOOD
NAN, INF = float("nan"), float("inf")


def changed(**parts) -> dict:
    """GOOD with parts replaced; None takes one out."""
    keys = {"down": DOWN, "up": UP, "alpha": ALPHA}
    out = {**GOOD, **{keys.get(k, f"lora_unet_{FLAT_Q}.{k}"): v for k, v in parts.items()}}
    return {k: v for k, v in out.items() if v is not None}


LAYER = f"lora_unet_{FLAT_Q}"
REFUSED = {
    "two adapters": ({**state(f"unet.{Q}", down="lora_A.one.weight", up="lora_B.one.weight"),
                      **state(f"unet.{Q}", down="lora_A.two.weight", up="lora_B.two.weight")}, f"unet.{Q}.lora_A.two.weight"),
    "two endings": ({**GOOD, f"{LAYER}.lora_A.weight": torch.ones(2, 4)}, f"{LAYER}.lora_A.weight"),
    "no down": (changed(down=None), LAYER),
    "no up": (changed(up=None), LAYER),
    "alpha alone": ({**GOOD, "lora_unet_conv_in.alpha": torch.tensor(1.0)}, "lora_unet_conv_in"),
    "ranks differ": (changed(up=torch.ones(4, 3)), LAYER),
    "transposed": (changed(down=torch.ones(4, 2)), LAYER),
    "one-dimensional": (changed(down=torch.ones(8)), LAYER),
    "a number": (changed(down=torch.tensor(2.0)), LAYER),
    "six dimensions": (changed(down=torch.ones(2, 4, 1, 1, 1, 1)), LAYER),
    "up with a kernel": (changed(up=torch.ones(4, 2, 3, 3)), LAYER),
    "rank 0": (changed(down=torch.ones(0, 4), up=torch.ones(4, 0)), LAYER),
    "no inputs": (changed(down=torch.ones(2, 0)), LAYER),
    "no outputs": (changed(up=torch.ones(0, 2)), LAYER),
    "rank 70000": (changed(down=torch.ones(70000, 1), up=torch.ones(1, 70000)), LAYER),
    "nan weight": (changed(down=torch.tensor([[NAN, 1.0, 1.0, 1.0]] * 2)), LAYER),
    "inf weight": (changed(up=torch.full((4, 2), INF)), LAYER),
    "nan in half": (changed(up=torch.full((4, 2), NAN, dtype=torch.float16)), LAYER),
    "nan in fp8": (changed(up=torch.full((4, 2), NAN).to(torch.float8_e4m3fn)), LAYER),
    "nan alpha": (changed(alpha=torch.tensor(NAN)), ALPHA),
    "inf alpha": (changed(alpha=torch.tensor(-INF)), ALPHA),
    "two alphas": (changed(alpha=torch.ones(2)), ALPHA),
    "no alpha in alpha": (changed(alpha=torch.ones(0)), ALPHA),
    "nan scale": (changed(scale=torch.tensor(NAN)), LAYER),
    "empty scale": (changed(scale=torch.ones(0)), LAYER),
    "int8 weight": (changed(down=torch.ones(2, 4, dtype=torch.int8)), LAYER),
    "int64 weight": (changed(up=torch.ones(4, 2, dtype=torch.int64)), LAYER),
    "bool weight": (changed(up=torch.ones(4, 2, dtype=torch.bool)), LAYER),
    "complex weight": (changed(up=torch.ones(4, 2, dtype=torch.complex64)), LAYER),
    "two spellings": ({**GOOD, **state(f"unet.{Q}", **A_B)}, LAYER),
    "two spellings, native": ({**GOOD, **state("lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q")}, "lora_unet_middle_block_1"),
    "dora of another size": (changed(dora_scale=torch.ones(3, 1)), LAYER),
    "dora nan": (changed(dora_scale=torch.full((4, 1), NAN)), LAYER),
    "loha incomplete": ({k: v for k, v in kohya(LAYER, loha()).items() if "w2_b" not in k}, LAYER),
    "loha one core": ({k: v for k, v in kohya(LAYER, loha(kernel=(3, 3), tucker=True)).items() if "hada_t2" not in k}, LAYER),
    "loha ranks differ": ({**kohya(LAYER, loha()), f"{LAYER}.hada_w1_b": torch.ones(3, 5)}, LAYER),
    "loha sizes differ": ({**kohya(LAYER, loha()), f"{LAYER}.hada_w2_a": torch.ones(7, 2)}, LAYER),
    "loha a number": ({**kohya(LAYER, loha(alpha=1.0)), f"{LAYER}.hada_w1_b": torch.tensor(1.0)}, LAYER),
    "lokr incomplete": ({k: v for k, v in kohya(LAYER, lokr("low", "full")).items() if "w1_b" not in k}, LAYER),
    "lokr half": ({f"{LAYER}.lokr_w1": torch.ones(2, 2)}, LAYER),
    "lokr ranks differ": ({**kohya(LAYER, lokr("low", "full")), f"{LAYER}.lokr_w1_b": torch.ones(3, 2)}, LAYER),
    "lokr a number": ({**kohya(LAYER, lokr("low", "full", alpha=1.0)), f"{LAYER}.lokr_w1_b": torch.tensor(1.0)}, LAYER),
    "bare ranks differ": ({f"{Q}.A": torch.ones(4, 2), f"{Q}.B": torch.ones(3, 4)}, Q),
    "tucker core of another rank": (
        {**kohya("lora_unet_conv_in", lora(kernel=(3, 3), tucker=True)), "lora_unet_conv_in.lora_mid.weight": torch.ones(3, 3, 3, 3)},
        "lora_unet_conv_in",
    ),
    "tucker core without a kernel": ({**kohya("lora_unet_conv_in", lora(kernel=(3, 3), tucker=True)), "lora_unet_conv_in.lora_mid.weight": torch.tensor(1.0)},
                                     "lora_unet_conv_in"),
    "a number as difference": ({f"{LAYER}.diff": torch.tensor(1.0), "lora_unet_conv_in.diff_b": torch.ones(3)}, LAYER),
    "an empty difference": ({f"{LAYER}.diff": torch.ones(4, 0)}, LAYER),
}  # fmt: skip


CARRIED = {
    "unknown key": {**GOOD, "strange.weight": torch.ones(1)},
    "optimizer state": {**GOOD, "optimizer_state": torch.ones(1)},
    "unknown ending": {**GOOD, f"{LAYER}.lora_left.weight": torch.ones(1)},
    "extra part": changed(hada_w1_a=torch.ones(4, 2)),
    "unknown layer": {**GOOD, **state("lora_unet_mid_block_attentions_7_to_q")},
    "bare a alone": {f"{Q}.A": torch.ones(4, 2)},
    "a part of a kind beside a LoRA's": changed(oft_R=torch.ones(3)),
    "numbers of any type": {**GOOD, "counts": torch.ones(3, dtype=torch.int16), "flag": torch.ones(1, dtype=torch.bool)},
    "fp8 of an unknown kind": {**GOOD, "lora_unet_conv_in.set_weight": torch.ones(4).to(torch.float8_e4m3fn)},
}  # fmt: skip


@pytest.mark.parametrize("family", ["sd1", ""])
@pytest.mark.parametrize("case", CARRIED)
@pytest.mark.parametrize("target", ["universal", "kohya", "comfyui", "diffusers"])
def test_what_nobody_knows_is_carried_with_its_key_and_its_bytes_and_told(case, family, target):
    given = CARRIED[case]
    lora_ = read(given, family=family)
    unknown = carried(lora_)
    file = write(lora_, target)
    assert unknown
    assert unknown <= given.keys()
    for key in unknown:
        assert (file[key].dtype, file[key].shape) == (given[key].dtype, given[key].shape)
        assert torch.equal(file[key].reshape(-1).view(torch.uint8), given[key].reshape(-1).view(torch.uint8))
    assert any("kept as they are" in str(note) or "kept as it is" in str(note) for note in lora_.notes)


@pytest.mark.parametrize("family", ["sd1", ""])
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_refused_by_its_key(case, family):
    given, key = REFUSED[case]
    with pytest.raises(FormatError, match=re.escape(key)):
        read(given, family=family)


@pytest.mark.parametrize("family", ["flux1", ""])
@pytest.mark.parametrize("part", ["diff", "diff_b"])
def test_a_damaged_difference_of_a_fused_or_reordered_layer_is_refused_by_its_key(part, family):
    for layer in ("double_blocks.0.img_attn.qkv", "final_layer.adaLN_modulation.1"):
        with pytest.raises(FormatError, match=re.escape(layer)):
            read({f"diffusion_model.{layer}.{part}": torch.tensor(1.0)}, family=family)


def test_a_block_number_of_thousands_of_digits_is_no_layer_of_any_family():
    name = f"diffusion_model.double_blocks.{'9' * 5000}.img_attn.qkv"
    given = {f"{name}.lora_A.weight": torch.ones(1, 4), f"{name}.lora_B.weight": torch.ones(12, 1)}
    assert read(given).family == UNKNOWN
    with pytest.raises(FormatError, match="double_blocks"):
        read(given, family="flux1")


def test_no_tensors_at_all_are_refused():
    for given in ({}, {"bundle_emb.zog.clip_l": torch.ones(1, 768)}):
        with pytest.raises(FormatError, match="no tensors"):
            read(given)


def test_an_unknown_family_is_refused_with_the_known_ones():
    with pytest.raises(FormatError, match="'sd9'.*sd1, sd2, sdxl"):
        read(GOOD, family="sd9")


def test_a_layer_of_another_family_is_refused_when_the_family_is_given():
    with pytest.raises(FormatError, match=f"{LAYER}.*family"):
        read(GOOD, family="flux1")


def test_names_of_an_unknown_model_are_kept():
    given = state("diffusion_model.strange.layer", alpha=1.0, **A_B)
    lora_ = read(given)
    assert lora_.family == UNKNOWN
    assert only(lora_)[0] == "diffusion_model.strange.layer"
    assert value(only(lora_)[1]) == 6.0


def test_a_key_of_a_million_characters_cannot_hold_up_reading(hang_guard):
    for key in ("a" * 1_000_000, "module." * 150_000 + "x.lora_up.weight", ".A" * 500_000, "_lora.down" * 100_000):
        with hang_guard(), contextlib.suppress(FormatError):  # what goes back and forth over such a key takes hours
            assert carried(read({key: torch.ones(1)})) == {key}


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_every_floating_type_is_read(dtype):
    modules = read({k: v.to(dtype) if not k.endswith("alpha") else v for k, v in GOOD.items()}, family="sd1").modules
    assert value(modules[f"unet.{Q}"]) == 6.0


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_fused_layers_of_every_floating_type_are_read(dtype):
    given = {"diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight": torch.full((2, 4), 2.0).to(dtype),
             "diffusion_model.double_blocks.0.img_attn.qkv.lora_B.weight": torch.full((12, 2), 3.0).to(dtype)}  # fmt: skip
    modules = read(given, family="flux1").modules
    assert [value(m) for m in modules.values()] == [12.0] * 3


def test_the_input_is_left_as_it_is():
    given = {**GOOD, "bundle_emb.zog.clip_l": torch.ones(1, 768)}
    before = {k: v.clone() for k, v in given.items()}
    metadata = {"ss_steps": "3"}
    read(given, metadata)
    assert metadata == {"ss_steps": "3"}
    assert list(given) == list(before)
    assert all(torch.equal(given[k], v) for k, v in before.items())


def test_bundled_embeddings_are_taken_out_and_told():
    lora_ = read(
        {**GOOD, "bundle_emb.zog.clip_l": torch.ones(2, 768), "bundle_emb.old.string_to_param.*": torch.ones(1, 768)},
        family="sd1",
    )
    assert set(lora_.embeddings) == {"zog", "old"}
    assert set(lora_.modules) == {f"unet.{Q}"}
    assert any("zog, old" in str(n) for n in lora_.notes)


@pytest.mark.parametrize(
    ("key", "form"),
    [(f"lora_unet_{FLAT_Q}", "kohya"), (f"unet.{Q}", "diffusers"), (f"base_model.model.{Q}", "peft"),
     ("diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q", "comfyui")],
)  # fmt: skip
def test_the_spelling_a_file_came_in_is_remembered(key, form):
    assert read(state(key), family="sd1").source == form


def test_every_layer_of_every_unet_is_read_from_its_kohya_name():
    for family in ("sd1", "sd2", "sdxl"):
        given = {}
        for path, shape in layers(family).items():
            given |= kohya(f"lora_unet_{path.replace('.', '_')}", lora(2, 2, 1, kernel=shape[2:]))
        assert {n.removeprefix("unet.") for n in read(given, family=family).modules} == set(layers(family))


@pytest.mark.parametrize("family", ["hunyuanvideo", "kandinsky5"])
@pytest.mark.parametrize("prefix", ["lora_te1_", "lora_te2_", "text_encoder_2.", "text_encoders.clip_l.transformer."])
def test_the_clip_beside_a_language_model_is_read_whichever_way_it_is_counted(family, prefix):
    path = "text_model.encoder.layers.3.self_attn.q_proj"
    name = prefix + (path.replace(".", "_") if prefix.startswith("lora") else path)
    state = {f"{name}.lora_down.weight": torch.ones(2, 8), f"{name}.lora_up.weight": torch.ones(8, 2)}
    assert read(state, family=family).modules.keys() == {f"clip_l.{path}"}


@pytest.mark.parametrize(
    ("original", "ours"),
    [
        ("time_in.mlp.0", "time_text_embed.timestep_embedder.linear_1"), ("guidance_in.mlp.2", "time_text_embed.guidance_embedder.linear_2"),
        ("txt_in.t_embedder.mlp.2", "context_embedder.time_text_embed.timestep_embedder.linear_2"),
        ("txt_in.c_embedder.linear_1", "context_embedder.time_text_embed.text_embedder.linear_1"),
        ("double_blocks.1.img_mlp.fc1", "transformer_blocks.1.ff.net.0.proj"), ("single_blocks.2.modulation.linear", "single_transformer_blocks.2.norm.linear"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("flat", [True, False])
def test_hunyuan_videos_own_names_are_read(original, ours, flat):
    name = f"lora_unet_{original.replace('.', '_')}" if flat else f"transformer.{original}"
    state = {f"{name}.lora_down.weight": torch.ones(2, 8), f"{name}.lora_up.weight": torch.ones(8, 2)}
    assert read(state, family="hunyuanvideo").modules.keys() == {f"transformer.{ours}"}


@pytest.mark.parametrize(
    ("original", "ours"),
    [("double_blocks.0.txt_attn_k_norm", "transformer_blocks.0.attn.norm_added_k"), ("single_blocks.1.q_norm", "single_transformer_blocks.1.attn.norm_q")],
)  # fmt: skip
def test_hunyuan_videos_own_names_of_norms_are_read(original, ours):
    state = {f"diffusion_model.{original}.diff": torch.ones(8)}
    assert read(state, family="hunyuanvideo").modules.keys() == {f"transformer.{ours}"}


@pytest.mark.parametrize("number", [1, 2, 3])
def test_chromas_t5_is_read_whichever_way_it_is_counted(number):
    name = f"lora_te{number}_encoder_block_2_layer_0_SelfAttention_q"
    state = {f"{name}.lora_down.weight": torch.ones(2, 8), f"{name}.lora_up.weight": torch.ones(8, 2)}
    assert read(state, family="chroma").modules.keys() == {"t5xxl.encoder.block.2.layer.0.SelfAttention.q"}


def test_the_copy_of_the_config_in_a_file_of_one_model_counts_for_all_its_layers():
    """As diffusers' `save_lora_adapter` writes it: keys and config without the component."""
    name = "double_layers.0.attn.w1q"
    given = {f"{name}.lora_A.weight": torch.ones(4, 8), f"{name}.lora_B.weight": torch.ones(8, 4)}
    header = {"lora_alpha": 2, "r": 4, "alpha_pattern": {}, "peft_type": "LORA"}
    (module,) = read(given, {"lora_adapter_metadata": json.dumps(header)}, family="auraflow").modules.values()
    assert module.scale == 0.5


def test_a_lokr_over_a_fused_layer_that_cannot_be_divided_is_carried_as_it_is_and_read_again():
    fused, plain_layer = "lora_unet_double_blocks_0_img_attn_qkv", "lora_unet_double_blocks_0_img_mlp_0"
    state = {
        f"{fused}.lokr_w1": random(1, 4, 4), f"{fused}.lokr_w2": random(2, 24, 8),
        f"{plain_layer}.lokr_w1": random(3, 4, 4), f"{plain_layer}.lokr_w2": random(4, 32, 8),
    }  # fmt: skip
    lora = read(state, family="flux1")
    assert any(
        "Kept under the names of the model's own code: 1 module of kind lokr" in str(note) for note in lora.notes
    )
    assert lora.modules[fused].kind == "lokr"
    for form in ("kohya", "comfyui", "universal"):
        written = write(lora, form)
        assert torch.equal(written[f"{fused}.lokr_w2"], state[f"{fused}.lokr_w2"])
        assert read(written, family="flux1").modules.keys() == lora.modules.keys()
    assert read(state, family="flux1", drop_unknown=True).modules.keys() == lora.modules.keys()
