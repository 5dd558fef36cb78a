"""Files that are well-formed and lie: patterns that never end, weights of no size a model has, adapters that changed their base, unknown models."""

import json

import pytest
import torch
from lora_loom.convert import FormatError, Lora, Module, read, write
from lora_loom.convert.detect import detect
from lora_loom.convert.families import UNKNOWN
from lora_loom.convert.fuse import split
from lora_loom.convert.lora import delta
from lora_loom.convert.metadata import converted_metadata
from lora_loom.convert.name_patterns import NamePatterns
from lora_loom.convert.report import inspect
from lora_loom.convert.writers import approximated

Q = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


def ab(name, out=16, into=16, rank=2):
    return {f"{name}.lora_A.weight": torch.ones(rank, into), f"{name}.lora_B.weight": torch.ones(out, rank)}


@pytest.mark.parametrize("pattern", ["([a-z_0-9.]+)+!", "(a*)*b", ".*a.*b.*c", "(x+x+)+y", "a" * 5000, "(" * 300])
def test_a_pattern_in_a_header_cannot_hold_up_reading(pattern, hang_guard):
    header = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 4, "unet.alpha_pattern": {pattern: 1}})}
    with hang_guard(), pytest.raises(FormatError, match="adapter_config.json"):
        read(ab(Q), header)


@pytest.mark.parametrize(
    "config",
    [{"unet.alpha_pattern": [1]}, {"unet.alpha_pattern": "x"}, {"unet.lora_alpha": 10**400}, {"unet.lora_alpha": "4"}],
)
def test_a_config_of_other_types_is_refused_in_words(config):
    with pytest.raises(FormatError, match="adapter_config.json"):
        read(ab(Q), {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 4, **config})})


def test_a_header_nested_without_end_is_refused_in_words():
    with pytest.raises(FormatError, match="is not JSON"):
        read(ab(Q), {"lora_adapter_metadata": "[" * 100_000})


HUGE = {
    "loha": {
        "hada_w1_a": (200_000, 1),
        "hada_w1_b": (1, 200_000),
        "hada_w2_a": (200_000, 1),
        "hada_w2_b": (1, 200_000),
    },
    "lokr": {"lokr_w1": (1000, 1000), "lokr_w2": (1000, 1000)},
    "tucker": {
        "lora_down.weight": (1, 200_000, 1, 1),
        "lora_up.weight": (200_000, 1, 1, 1),
        "lora_mid.weight": (1, 1, 1, 1),
    },
    "lora": {"lora_down.weight": (1, 400_000), "lora_up.weight": (4, 1)},
}


@pytest.mark.parametrize("kind", HUGE)
def test_factors_that_stand_for_a_weight_no_model_has_are_refused(kind):
    with pytest.raises(FormatError, match="which no model has"):
        read({f"lora_unet_x.{part}": torch.zeros(shape) for part, shape in HUGE[kind].items()})


@pytest.mark.parametrize("start", ["pissa", "PiSSA_niter_16", "olora", "corda", "loftq"])
def test_an_adapter_that_changed_its_base_is_refused(start):
    with pytest.raises(FormatError, match="changed the base weights"):
        read(ab(Q), {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 4, "unet.init_lora_weights": start})})


@pytest.mark.parametrize("parts", [{"diff_b": torch.zeros(7)}, {"dora_scale": torch.zeros(5, 1)}])
def test_parts_for_another_number_of_outputs_are_refused(parts):
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    loha = {f"{name}.hada_w{n}_{x}": torch.ones(*s) for n in (1, 2) for x, s in (("a", (16, 2)), ("b", (2, 16)))}
    with pytest.raises(FormatError, match=r"values|dora_scale"):
        read({**loha, **{f"{name}.{k}": v for k, v in parts.items()}})


def test_8_bit_factors_are_read_and_written_as_numbers():
    state = {k: v.to(torch.float8_e4m3fn) for k, v in ab(Q).items()}
    module = read(state).modules[Q]
    assert torch.equal(delta(module), torch.full((16, 16), 2.0))
    assert inspect(read(state)).modules == 1


# --- models without a table ------------------------------------------------------------------------------------------------------------


def larger_flux(two_stream: int, one_stream: int):
    """Blocks as Flux has them, but more of them: HunyuanVideo has 20 and 40."""
    state = {}
    for n in range(two_stream):
        state |= ab(f"transformer.transformer_blocks.{n}.attn.to_q", 3072, 3072, 1)
        state |= ab(f"transformer.transformer_blocks.{n}.norm1.linear", 18432, 3072, 1)
    for n in range(one_stream):
        state |= ab(f"transformer.single_transformer_blocks.{n}.attn.to_q", 3072, 3072, 1)
    return state


def test_a_model_with_more_blocks_than_the_family_has_is_not_taken_for_it():
    lora = read(larger_flux(25, 50))
    assert lora.family == UNKNOWN
    assert "note.other_model" in [note.code for note in lora.notes]
    assert write(lora).keys() == larger_flux(25, 50).keys()
    assert read(larger_flux(20, 40)).family == "hunyuanvideo"


def test_a_width_no_published_model_has_is_told():
    family, doubt = detect(
        {
            "transformer.transformer_blocks.0.attn.to_q": Module(
                "lora", {"down": torch.ones(1, 1152), "up": torch.ones(1152, 1)}
            )
        },
        {},
    )
    assert doubt
    assert family != "flux1" or "family" in str(doubt)


def test_names_that_mostly_fit_no_family_are_kept():
    state = {k: v for n in range(9) for k, v in ab(f"transformer.odd_blocks.{n}.mixer").items()} | ab(
        "transformer.proj_out"
    )
    lora = read(state)
    assert lora.family == UNKNOWN
    assert write(lora).keys() == state.keys()


def test_a_stray_key_can_be_left_out_and_is_counted():
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    state = {
        f"{name}.lora_down.weight": torch.ones(2, 16),
        f"{name}.lora_up.weight": torch.ones(16, 2),
        "lora_te_logit_scale": torch.tensor(1.0),
    }
    assert any("logit_scale" in str(note) for note in read(state).notes)
    lora = read(state, drop_unknown=True)
    assert len(lora.modules) == 1
    assert any("1 key or layer" in str(note) and "logit_scale" in str(note) for note in lora.notes)


def test_wan_files_with_trained_norms_are_read():
    state = ab("diffusion_model.blocks.0.self_attn.q", 1536, 1536) | {
        "diffusion_model.blocks.0.self_attn.norm_q.diff": torch.ones(1536),
        "diffusion_model.blocks.0.norm3.diff_b": torch.ones(1536),
    }
    lora = read(state)
    assert lora.family == "wan"
    assert write(lora, "comfyui").keys() == state.keys()


# --- nothing lost ----------------------------------------------------------------------------------------------------------------------


def test_flat_loha_over_a_convolution_becomes_a_convolution_lora():
    rng = torch.Generator().manual_seed(0)
    sizes = {"hada_w1_a": (32, 2), "hada_w1_b": (2, 16 * 9), "hada_w2_a": (32, 2), "hada_w2_b": (2, 16 * 9)}
    name = "lora_unet_down_blocks_0_resnets_0_conv1"
    lora = read({f"{name}.{k}": torch.randn(*s, generator=rng) for k, s in sizes.items()}, family="sd1")
    small, errors = approximated(lora, 4)  # a product of two matrices of rank 2 has rank 4
    module = small.modules["unet.down_blocks.0.resnets.0.conv1"]
    assert tuple(module.parts["down"].shape) == (4, 16, 3, 3)
    assert max(errors.values()) < 1e-3
    wanted = delta(lora.modules["unet.down_blocks.0.resnets.0.conv1"])
    assert wanted.shape == (32, 16, 3, 3)
    torch.testing.assert_close(delta(module), wanted, rtol=1e-4, atol=1e-4)  # four singular values, found in float32


def test_shares_without_weights_keep_their_bias_change_and_magnitudes():
    up = torch.zeros(12, 2)
    up[:4] = 1.0
    parts = {"down": torch.ones(2, 5), "up": up, "diff_b": torch.arange(12.0), "dora": torch.arange(12.0)[:, None]}
    pieces = split(Module("lora", parts), (1, 1, 1))
    assert [p.parts["diff_b"].tolist() for p in pieces] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert [p.parts["dora"].flatten().tolist() for p in pieces] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    torch.testing.assert_close(torch.cat([delta(p) for p in pieces]), up @ parts["down"])


def test_only_the_file_s_own_spelling_gets_a_verdict():
    kohya = write(Lora("sd1", {Q: Module("lora", {"down": torch.ones(2, 16), "up": torch.ones(16, 2)})}), "kohya")
    assert str(inspect(read(kohya, family="sd1")).loaders["A1111"]) == "all"
    other = {k.replace("lora_unet_", "lycoris_"): v for k, v in kohya.items()}
    assert inspect(read(other, family="sd1")).loaders == {}


def test_captions_of_other_trainers_stay_out_of_a_converted_header():
    old = {"ss_tag_frequency": "{}", "ss_datasets": "[]", "workflow": "{}"}
    new = converted_metadata(old, write(read(ab(Q))), "x", "sd1")
    assert not old.keys() & new.keys()


def value_of(name, patterns, default):
    return NamePatterns(patterns).value(name, default)


def test_a_pattern_in_an_adapter_config_over_a_very_long_name_is_answered_at_once():
    assert value_of("a" * 20_000, {"a*b*": 1, "a*a*b": 2}, 3) == 1
    assert value_of("a" * 20_000 + ".d", {"a*b*": 1, "a*a*c": 2}, 3) == 3
    assert value_of("blocks.12.attn.to_q", {r"blocks\.\d+\.attn": 1, "to_q": 2}, 3) == 2
