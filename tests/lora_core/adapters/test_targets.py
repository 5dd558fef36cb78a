import time

import pytest
import torch
from diffusers import UNet2DConditionModel
from lora_loom.lora_core.adapters import choose_targets
from lora_loom.lora_core.adapters.targets import PRESETS, choose_text_targets
from lora_loom.lora_core.algebra.walk import weight_shape
from lora_loom.lora_core.config import AdapterConfig, TextEncoderConfig
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.lora_core.optim.groups import first_match, lines, unused
from torch import nn

SD15 = dict(
    sample_size=64, in_channels=4, out_channels=4, cross_attention_dim=768, attention_head_dim=8, layers_per_block=2,
    block_out_channels=(320, 640, 1280, 1280), norm_num_groups=32,
    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
)  # fmt: skip


@pytest.fixture(scope="module")
def sd15():
    """The layers of Stable Diffusion 1.5 at full size, without memory behind them."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD15)
    return {path: m for path, m in unet.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}


def trained(layers, chosen, rank):
    shapes = [weight_shape(layers[path]) for path in chosen]
    return sum(rank * (shape[0] + torch.Size(shape[1:]).numel()) for shape in shapes)


def test_rank_4_on_the_attention_of_sd15_trains_797184_values(sd15):
    # The count that diffusers' and cloneofsimo's LoRA of rank 4 on to_q, to_k, to_v, to_out of every attention have.
    chosen = choose_targets(sd15, AdapterConfig(rank=4))
    assert len(chosen) == 128
    assert trained(sd15, chosen, 4) == 797_184


def test_presets_of_sd15_grow_from_cross_attention_to_conv(sd15):
    sets = [
        set(choose_targets(sd15, AdapterConfig(targets=name)))
        for name in ("cross-attention", "attention", "linear", "conv")
    ]
    assert len(sets[0]) == 64
    assert all(".attn2." in path for path in sets[0])
    assert sets[0] < sets[1] < sets[2] < sets[3]
    assert all(isinstance(sd15[path], nn.Linear) for path in sets[2])
    assert any(isinstance(sd15[path], nn.Conv2d) for path in sets[3])


def test_no_preset_touches_input_output_or_time_embedding_layers(sd15):
    outside = {"conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2"}
    assert outside <= sd15.keys()
    for name in PRESETS.keys() - {"regex"}:
        assert not outside & set(choose_targets(sd15, AdapterConfig(targets=name)))


def test_attention_finds_the_layers_of_the_original_unet_and_of_flow_transformers():
    def layers(*paths):
        return {path: nn.Linear(4, 4) for path in paths}

    original = layers(
        "input_blocks.1.1.transformer_blocks.0.attn1.to_q",
        "input_blocks.1.1.transformer_blocks.0.attn2.to_out.0",
        "time_embed.0",
        "out.2",
    )
    attention = ["double_blocks.3.img_attn.qkv", "double_blocks.3.txt_attn.proj", "single_blocks.7.linear1"]
    flux = layers(*attention, "double_blocks.3.img_mlp.0", "img_in", "final_layer.linear")
    assert choose_targets(original, AdapterConfig()) == sorted(original)[:2]
    assert choose_targets(flux, AdapterConfig()) == attention


def test_include_narrows_a_preset_and_exclude_takes_away(sd15):
    narrowed = choose_targets(sd15, AdapterConfig(include=r"^mid_block\."))
    assert len(narrowed) == 8
    assert choose_targets(sd15, AdapterConfig(include=r"^mid_block\.", exclude=r"to_[kv]$")) == [
        p for p in narrowed if not p.endswith(("to_k", "to_v"))
    ]


def test_regex_alone_may_choose_any_layer(sd15):
    assert choose_targets(sd15, AdapterConfig(targets="regex", include=r"^conv_in$")) == ["conv_in"]


def test_grouped_convolutions_are_left_alone():
    layers = {"blocks.0.a": nn.Conv2d(8, 8, 3), "blocks.0.b": nn.Conv2d(8, 8, 3, groups=4)}
    assert choose_targets(layers, AdapterConfig(targets="conv")) == ["blocks.0.a"]


def test_regex_without_a_pattern_is_refused(sd15):
    with pytest.raises(LoomError, match="adapter.include: adapter.targets = regex needs a regular expression"):
        choose_targets(sd15, AdapterConfig(targets="regex"))


@pytest.mark.parametrize("field", ["include", "exclude"])
def test_a_broken_pattern_is_refused_with_its_field_and_text(sd15, field):
    with pytest.raises(LoomError, match=rf"adapter\.{field}: '\(attn' is not a valid regular expression"):
        choose_targets(sd15, AdapterConfig(**{field: "(attn"}))


def test_a_choice_that_selects_nothing_is_refused_with_an_example_path(sd15):
    with pytest.raises(LoomError, match=r"selects none of the model's \d+ layers \(a path looks like conv_in\)"):
        choose_targets(sd15, AdapterConfig(include="no_such_layer"))


def test_weight_shape_is_the_logical_shape():
    assert weight_shape(nn.Linear(3, 5)) == (5, 3)
    assert weight_shape(nn.Conv2d(4, 6, (3, 1))) == (6, 4, 3, 1)


ENDLESS = r"(\w+\.?)+!"


@pytest.mark.parametrize("field", ["include", "exclude"])
def test_a_pattern_that_re_searches_for_ages_is_answered_at_once(sd15, field):
    began = time.process_time()
    config = AdapterConfig(targets="linear", **{field: ENDLESS})
    if field == "include":
        with pytest.raises(LoomError, match="selects none of the model's"):
            choose_targets(sd15, config)
    else:
        assert choose_targets(sd15, config) == choose_targets(sd15, AdapterConfig(targets="linear"))
    plain, repeated = (
        choose_targets(sd15, AdapterConfig(targets="linear", include=pattern))
        for pattern in ("to_q$", r"(\w+\.?)+to_q$")
    )
    assert plain == repeated
    assert time.process_time() - began < 20  # seconds


def test_text_encoders_and_rules_by_layer_take_such_patterns_too():
    layers = {"clip_l.text_model.encoder.layers.0.self_attn.q_proj": nn.Linear(2, 2)}
    with pytest.raises(LoomError, match="nothing of "):
        choose_text_targets({"a" * 60 + ".self_attn.q_proj": nn.Linear(2, 2)}, TextEncoderConfig(encoders=ENDLESS))
    assert choose_text_targets(layers, TextEncoderConfig(encoders=r"(\w+_?)+l")) == list(layers)
    rules = lines("adapter.layer_lr", f"{ENDLESS} = 2\n(a+)+$ = 3")
    assert first_match(rules, "a" * 60 + "b", 1.0) == 1.0
    assert first_match(rules, "a" * 60, 1.0) == 3.0
    assert unused(rules, ["a" * 60 + "b"]) == [ENDLESS, "(a+)+$"]


def test_what_cannot_be_searched_in_bounded_time_is_refused_with_its_field():
    with pytest.raises(
        LoomError,
        match="^adapter.include: .* is not a valid regular expression .look-around together with repeats that can take very long",
    ):
        choose_targets({"a": nn.Linear(2, 2)}, AdapterConfig(targets="regex", include=ENDLESS + "(?=x)"))
