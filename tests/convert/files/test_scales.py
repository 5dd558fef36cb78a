"""Checkpoints whose weights mean something only together with scales beside them: a plain factor is applied, everything else is refused."""

import json

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
    "an unreadable note": ("{layer}.weight_scale", "{layer}.comfy_quant"), "input scale alone": ("{layer}.input_scale",),
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
    state = scaled(weights("sd1"), "an unreadable note", place_of(TEXT).key)
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
    source = write(tmp_path / "base", {**state, f"{key.removesuffix('.weight')}.weight_scale_inv": random(1, 1)})
    with pytest.raises(FormatError, match="^base: its weights are quantised with scales"):
        extract(source, plain, rank=4)


PLAIN = {
    "old": ("scale_weight", False, {}), "old with an input scale": ("scale_weight", False, {"scale_input": torch.tensor(3.0)}),
    "new": ("weight_scale", False, {"comfy_quant": {"format": "float8_e4m3fn"}}),
    "new by rows": ("weight_scale", True, {"comfy_quant": {"format": "float8_e4m3fn"}}),
    "ModelOpt": ("weight_scale", False, {"input_scale": torch.tensor(2.0)}),
}  # fmt: skip


def in_fp8(state, keys, spelling):
    """`state` with the weights `keys` as fp8 and a factor, each spread over the whole range of fp8."""
    name, by_rows, more = PLAIN[spelling]
    out = (
        {**state, "model.diffusion_model.scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn)}
        if name == "scale_weight"
        else dict(state)
    )
    for key in keys:
        weight, layer = state[key].float(), key.removesuffix(".weight")
        scale = (weight.abs().flatten(1).amax(1, keepdim=True) if by_rows else weight.abs().max()) / 448
        out |= {key: (weight / scale).to(torch.float8_e4m3fn), f"{layer}.{name}": scale}
        for extra, value in more.items():
            out[f"{layer}.{extra}"] = (
                value if torch.is_tensor(value) else torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)
            )
    return out


def numbers(state, spelling):
    """The checkpoint that an fp8 one stands for."""
    name, _, more = PLAIN[spelling]
    out = {}
    for key, value in state.items():
        if key.endswith((f".{name}", "scaled_fp8", *(f".{extra}" for extra in more))):
            continue
        scale = state.get(f"{key.removesuffix('.weight')}.{name}")
        out[key] = value if scale is None else value.float() * scale
    return out


def linear_keys(state):
    return [
        place.key for name, place in LAYOUTS["sd1"][1].items() if ".attn1.to_" in name and state[place.key].ndim == 2
    ]


@pytest.mark.parametrize("spelling", PLAIN)
@pytest.mark.parametrize("side", ["base", "tuned"])
def test_extract_applies_a_plain_factor(spelling, side, tmp_path):
    files, exact = {}, {}
    for name, seed in (("base", 0), ("tuned", 3)):
        state = weights("sd1", seed=seed)
        stored_state = in_fp8(state, linear_keys(state), spelling) if name == side else state
        files[name] = write(tmp_path / f"{name}.safetensors", stored_state)
        exact[name] = write(
            tmp_path / f"{name}-exact.safetensors", numbers(stored_state, spelling) if name == side else state
        )
    found, wanted = (extract(place["base"], place["tuned"], rank=4) for place in (files, exact))
    assert found.lora.modules.keys() == wanted.lora.modules.keys()
    for name, module in wanted.lora.modules.items():
        for part, value in module.parts.items():
            assert torch.equal(found.lora.modules[name].parts[part], value), (name, part)


@pytest.mark.parametrize("spelling", PLAIN)
def test_bake_rounds_only_what_it_changes_and_says_how_much_that_took(spelling, tmp_path):
    state = weights("sd1")
    before = in_fp8(state, linear_keys(state), spelling)
    source, out, lora = (
        write(tmp_path / "base.safetensors", before),
        tmp_path / "out.safetensors",
        a_lora("sd1", only="unet."),
    )
    baked = bake(source, out, [(lora, 1.0)])
    after, wanted = stored(out), by_hand(numbers(before, spelling), "sd1", [(lora, 1.0)])
    assert after.keys() == before.keys()
    changed = {LAYOUTS["sd1"][1][name].key for name in lora.modules}
    assert baked.rounded == len(changed & set(linear_keys(state))) > 0
    for key in linear_keys(state):
        scale = after[f"{key.removesuffix('.weight')}.{PLAIN[spelling][0]}"]
        apart = (after[key].float() * scale - wanted[key].float()).abs()
        assert (apart <= wanted[key].abs().float() / 16 + scale * 2**-9).all(), (
            key
        )  # half a step of three bits, and of the smallest numbers
    assert 0 < baked.rounding < 0.5


def test_a_bake_of_nothing_leaves_every_byte(tmp_path):
    state = weights("sd1")
    before = in_fp8(state, linear_keys(state), "old")
    source, out = write(tmp_path / "base.safetensors", before), tmp_path / "out.safetensors"
    bake(source, out, [(a_lora("sd1", only="unet."), 0.0)])
    after = stored(out)
    for key, value in before.items():
        assert torch.equal(after[key].reshape(-1).view(torch.uint8), value.reshape(-1).view(torch.uint8)), key


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
