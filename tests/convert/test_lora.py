import pytest
import torch
from lora_loom.convert import FormatError, cast, is_lora, to_file
from lora_loom.convert.lora import KOHYA_PREFIXES, describe, modules


def module(name, rank=4, alpha=None, out=6, into=5, kernel=(), seed=0):
    rng = torch.Generator().manual_seed(seed)
    state = {
        f"{name}.lora_down": torch.randn(rank, into, *kernel, generator=rng),
        f"{name}.lora_up": torch.randn(out, rank, *[1] * len(kernel), generator=rng),
    }
    return state if alpha is None else {**state, f"{name}.alpha": torch.tensor(float(alpha))}


def delta(down, up, scale):
    return scale * up.double().flatten(1) @ down.double().flatten(1)


@pytest.mark.parametrize("prefix", KOHYA_PREFIXES)
@pytest.mark.parametrize("alpha", [None, 4.0, 1.0, 0.1, 7.0])
def test_kohya_names_keep_both_factors_bit_for_bit_and_carry_alpha(prefix, alpha):
    name = f"{prefix}mid_block_attentions_0_proj_in"
    state = module(name, alpha=alpha)
    out = to_file(state)
    assert set(out) == {f"{name}.lora_down.weight", f"{name}.lora_up.weight", f"{name}.alpha"}
    assert torch.equal(out[f"{name}.lora_down.weight"], state[f"{name}.lora_down"])
    assert torch.equal(out[f"{name}.lora_up.weight"], state[f"{name}.lora_up"])
    assert out[f"{name}.alpha"].item() == torch.tensor(4.0 if alpha is None else alpha).item()


@pytest.mark.parametrize("kernel", [(), (3, 3)])
@pytest.mark.parametrize("alpha", [None, 4.0, 1.0, 0.1, 7.0, -2.0, 0.0])
def test_dotted_names_fold_alpha_over_rank_into_the_factors(alpha, kernel):
    name = "diffusion_model.double_blocks.0.img_attn.qkv"
    state = module(name, alpha=alpha, kernel=kernel)
    out = to_file(state)
    assert set(out) == {f"{name}.lora_A.weight", f"{name}.lora_B.weight"}
    before = delta(state[f"{name}.lora_down"], state[f"{name}.lora_up"], (4.0 if alpha is None else alpha) / 4)
    after = delta(out[f"{name}.lora_A.weight"], out[f"{name}.lora_B.weight"], 1.0)
    # Each factor is rounded once to float32 when the root of the scale is multiplied in; four products of order 1 are summed.
    torch.testing.assert_close(after, before, rtol=1e-6, atol=1e-6)
    assert out[f"{name}.lora_A.weight"].shape == state[f"{name}.lora_down"].shape


def test_a_scale_of_one_is_folded_without_touching_a_bit():
    state = module("diffusion_model.x", alpha=4.0)
    out = to_file(state)
    assert torch.equal(out["diffusion_model.x.lora_A.weight"], state["diffusion_model.x.lora_down"])
    assert torch.equal(out["diffusion_model.x.lora_B.weight"], state["diffusion_model.x.lora_up"])


def test_an_extreme_scale_keeps_both_factors_within_half_precision():
    state = module("diffusion_model.x", rank=1, alpha=4096.0)
    small, lost = cast(to_file(state), "fp16")
    assert lost == 0
    assert all(torch.isfinite(v).all() for v in small.values())


def test_a_kohya_file_read_again_gives_the_same_modules():
    state = {**module("lora_unet_a", alpha=2.0), **module("lora_te_b", rank=2, kernel=(3, 3))}
    again = to_file(to_file(state))
    assert all(torch.equal(v, again[k]) for k, v in to_file(state).items())
    assert again.keys() == to_file(state).keys()


def test_the_input_is_left_as_it_is():
    state = module("diffusion_model.x", alpha=2.0)
    copies = {k: v.clone() for k, v in state.items()}
    to_file(state)
    cast(state, "fp16")
    assert state.keys() == copies.keys()
    assert all(torch.equal(state[k], v) and state[k].dtype == torch.float32 for k, v in copies.items())


def test_half_precision_factors_come_out_as_float32():
    out = to_file({k: v.half() for k, v in module("lora_unet_a", alpha=2.0).items()})
    assert {v.dtype for v in out.values()} == {torch.float32}


@pytest.mark.parametrize("kind", ["lora_down", "lora_up"])
def test_an_incomplete_module_is_refused_by_name(kind):
    state = module("lora_unet_a", alpha=2.0)
    del state[f"lora_unet_a.{kind}"]
    with pytest.raises(FormatError, match="lora_unet_a: has .* but needs both lora_down and lora_up"):
        to_file(state)


@pytest.mark.parametrize("key", ["lora_unet_a.hada_w1_a", "lora_unet_a.lora_mid.weight", "lora_unet_a.dora_scale", "lora_unet_a.lora_down.bias", "emb_params"])
def test_an_unknown_key_is_refused_by_name(key):
    with pytest.raises(FormatError) as caught:
        to_file({**module("lora_unet_a"), key: torch.zeros(1)})
    assert str(caught.value).startswith(f"{key}: ")


def test_modules_give_rank_where_alpha_is_missing():
    found = modules({**module("lora_unet_a", rank=3), **module("lora_unet_b", rank=3, alpha=1.5)})
    assert {name: alpha for name, (_, _, alpha) in found.items()} == {"lora_unet_a": 3.0, "lora_unet_b": 1.5}


@pytest.mark.parametrize(("dtype", "kind"), [("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_cast_rounds_every_factor_once(dtype, kind):
    state = to_file(module("lora_unet_a", alpha=2.0))
    out, lost = cast(state, dtype)
    assert lost == 0
    for key in ("lora_unet_a.lora_down.weight", "lora_unet_a.lora_up.weight"):
        assert torch.equal(out[key], state[key].to(kind))


def test_overflow_is_refused_by_key_and_fits_where_the_range_is_larger():
    state = {"lora_unet_a.lora_up.weight": torch.tensor([1.0, 70_000.0])}
    with pytest.raises(FormatError, match="lora_unet_a.lora_up.weight: holds values that do not fit fp16; save as fp32 or bf16"):
        cast(state, "fp16")
    assert cast(state, "bf16")[1] == 0


def test_the_share_of_values_that_became_zero_is_counted():
    state = {"a.lora_up.weight": torch.tensor([1e-9, 0.0, 1.0, 1.0, 1.0])}
    assert cast(state, "fp16")[1] == 0.25
    assert cast(state, "bf16")[1] == 0.0
    assert cast({}, "fp16") == ({}, 0.0)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("alpha", [0.1, 257.0, 1 / 3])
def test_alpha_stays_exact_in_every_file_type(dtype, alpha):
    state = to_file(module("lora_unet_a", alpha=alpha))
    assert float(cast(state, dtype)[0]["lora_unet_a.alpha"]) == state["lora_unet_a.alpha"].item()


def test_describe_gives_rank_and_alpha_of_both_forms():
    assert describe(to_file(module("lora_unet_a", rank=3, alpha=1.5))) == (3, 1.5)
    assert describe(to_file(module("diffusion_model.a", rank=3, alpha=1.5))) == (3, 3.0)  # the scale lies in the weights: alpha = rank
    assert describe({}) == (0, 0.0)


def test_a_lora_is_told_from_other_files():
    assert is_lora(to_file(module("lora_unet_a")))
    assert is_lora(to_file(module("diffusion_model.a")))
    assert not is_lora({"emb_params": torch.zeros(1), "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(1)})
