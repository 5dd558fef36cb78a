"""Checkpoints whose weights mean something only together with scales beside them: nothing is extracted from them or baked into them as if they were numbers."""

import pytest
import torch
from lora_cases import random
from lora_loom.convert import FormatError
from lora_loom.convert.files.checkpoints import bake, extract
from lora_loom.convert.files.jobs import bake_file
from lora_loom.convert.scales import scaled_layers
from lora_loom.lora_core.backends.base_model import scaled_keys
from test_checkpoints import LAYOUTS, a_lora, by_hand, same, stored, weights, write

LAYER = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
TEXT = "clip_l.text_model.encoder.layers.1.self_attn.q_proj"
SPELLINGS = {
    "scaled fp8": ("{layer}.scale_weight", "model.diffusion_model.scaled_fp8"), "with an input scale": ("{layer}.scale_weight", "{layer}.scale_input"),
    "new spelling": ("{layer}.weight_scale", "{layer}.comfy_quant"), "input scale alone": ("{layer}.input_scale",),
    "mark alone": ("model.diffusion_model.scaled_fp8",),
    "nvfp4": ("{layer}.weight_scale", "{layer}.weight_scale_2", "{layer}.pre_quant_scale"), "blocks": ("{layer}.weight_scale_inv",),
    "bitsandbytes 4 bit": ("{layer}.weight.absmax", "{layer}.weight.quant_map", "{layer}.weight.quant_state.bitsandbytes__nf4"),
    "bitsandbytes 8 bit": ("{layer}.SCB", "{layer}.weight_format"), "quanto": ("{layer}.weight._data", "{layer}.weight._scale"),
    "gptq": ("{layer}.qweight", "{layer}.qzeros"), "svdquant": ("{layer}.wscales",),
}  # fmt: skip


def place_of(name, layout="sd1"):
    return next(place for key, place in LAYOUTS[layout][1].items() if key.endswith(name))


def scaled(state, spelling, key):
    """`state` with the weight of one layer in fp8 and its scales beside it, as the programs that make such files write them."""
    names = [name.format(layer=key.removesuffix(".weight")) for name in SPELLINGS[spelling]]
    return {**state, key: state[key].to(torch.float8_e4m3fn), **{name: torch.ones(1) for name in names}}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("side", ["base", "tuned"])
def test_extract_refuses_a_scaled_checkpoint_and_names_a_key(spelling, side, tmp_path):
    plain, key = weights("sd1"), place_of(LAYER).key
    other = scaled(weights("sd1", seed=3), spelling, key)
    files = {
        name: write(tmp_path / f"{name}.safetensors", other if name == side else plain) for name in ("base", "tuned")
    }
    with pytest.raises(
        FormatError,
        match=rf"^{side}.safetensors: its weights are quantised with scales beside them .such as .*give the fp16, bf16 or fp32",
    ):
        extract(files["base"], files["tuned"], rank=4)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_bake_refuses_a_scaled_checkpoint_whatever_the_lora_changes_and_writes_nothing(spelling, tmp_path):
    source = write(tmp_path / "base.safetensors", scaled(weights("sd1"), spelling, place_of(LAYER).key))
    with pytest.raises(FormatError, match="^base.safetensors: its weights are quantised with scales"):
        bake(source, tmp_path / "out.safetensors", [(a_lora("sd1", only="proj_in"), 1.0)])
    with pytest.raises(FormatError, match="^base.safetensors: its weights are quantised with scales"):
        bake_file(source, [], tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_a_scaled_text_encoder_hinders_only_what_changes_it(tmp_path):
    state = scaled(weights("sd1"), "new spelling", place_of(TEXT).key)
    source, out = write(tmp_path / "base.safetensors", state), tmp_path / "out.safetensors"
    lora = a_lora("sd1", only="unet.")
    bake(source, out, [(lora, 1.0)])
    assert same(stored(out), state, by_hand(state, "sd1", [(lora, 1.0)])) > 0
    with pytest.raises(FormatError, match="^base.safetensors: its weights are quantised with scales"):
        bake(source, tmp_path / "second.safetensors", [(a_lora("sd1"), 1.0)])
    assert extract(source, out, rank=4, text_encoders=False).lora.modules
    with pytest.raises(FormatError, match="^base.safetensors: its weights are quantised with scales"):
        extract(source, out, rank=4)


def test_a_scaled_diffusers_folder_is_refused(tmp_path):
    state, key = weights("sd1-folder"), place_of(LAYER, "sd1-folder").key
    plain = write(tmp_path / "plain", weights("sd1-folder", seed=3))
    source = write(tmp_path / "base", {**state, f"{key.removesuffix('.weight')}.weight_scale": random(1, 1)})
    with pytest.raises(FormatError, match="^base: its weights are quantised with scales"):
        extract(source, plain, rank=4)


def test_plain_checkpoints_have_no_scales():
    assert not any(scaled_layers(weights(layout)) for layout in LAYOUTS)


def test_both_rooms_know_the_same_spellings():
    names = [name.format(layer="a.b") for spelling in SPELLINGS.values() for name in spelling] + [
        "scaled_fp8",
        "a.scale_shift_table",
        "a.scale",
        "a.weight",
    ]
    assert [bool(scaled_keys([name])) for name in names] == [bool(scaled_layers([name])) for name in names]
