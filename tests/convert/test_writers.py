"""Every family in every form and back: the same layers, the same change; and the details each program needs."""

import copy
import dataclasses
import json
import re

import pytest
import torch
from lora_cases import (
    FAMILY_MODELS,
    a_b,
    dense,
    error,
    kohya,
    layers,
    loha,
    lokr,
    lora,
    random,
    sampled,
    small,
    text_layers,
)
from lora_loom.convert import TARGETS, FormatError, Lora, Module, peft_directories, read, trained, write
from lora_loom.convert.families import FAMILIES, TOYS, UNKNOWN
from lora_loom.convert.merge import weighted
from lora_loom.convert.writers import approximated
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save_file

# Both factors are rounded to float32 once where a scale is folded in: 6e-8 each, against the norm of the whole change.
ROUNDING = 1e-6
TOY = {
    f"{b}.attentions.0.{n}": s
    for b in ("down_blocks.1", "mid_block") for n, s in (("proj_in", (6, 6, 1, 1)), ("transformer_blocks.0.attn1.to_q", (6, 6)))
}  # fmt: skip
Q = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
FLAT_Q = Q.replace(".", "_")


def made(family: str, uniform: bool = True, scale_one: bool = False) -> Lora:
    """A LoRA over the first and last layer of each name of a family, 64 times smaller than it is, text encoders included."""
    shapes = TOY if family in TOYS else {n: small(s) for n, s in sampled(layers(FAMILY_MODELS[family])).items()}
    named = {f"{FAMILIES[family].component}.{n}": s for n, s in shapes.items()}
    for encoder in FAMILIES[family].encoders:
        named |= {f"{encoder.name}.{n}": small(s) for n, s in text_layers(encoder.name, 2).items()}
    modules = {}
    for n, (name, shape) in enumerate(named.items()):
        rank = 4 if uniform else 1 + n % 4
        alpha = rank if scale_one else 2.0 if uniform else (None, 0.3, 3.0, 1.0, -2.0)[n % 5]
        modules[name] = lora(*shape[:2], rank=rank, alpha=alpha, kernel=shape[2:], seed=n)
    return Lora(family, dict(sorted(modules.items())))


def same(got: dict[str, Module], wanted: dict[str, Module]) -> None:
    assert set(got) == set(wanted)
    for name, module in wanted.items():
        assert got[name].shape == module.shape, name
        assert error(dense(got[name]), dense(module)) < ROUNDING, name


@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.parametrize("target", [t for t in TARGETS if t != "peft"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_in_any_form_read_again_has_the_same_layers_and_the_same_change(family, target, uniform):
    before = made(family, uniform)
    file = write(before, target)
    assert all(v.is_contiguous() for v in file.values())
    same(read(file, family=family).modules, before.modules)


@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_peft_directories_read_again_have_every_bit(family, uniform):
    before = made(family, uniform)
    directories = peft_directories(before)
    components = {e.component for e in FAMILIES[family].encoders} | {FAMILIES[family].component}
    assert set(directories) == components
    after = {}
    names = {e.component: e.name for e in FAMILIES[family].encoders}
    for name, (file, config) in directories.items():
        given = {f"{name}.{k}": v for k, v in file.items()} if name in names else file
        after |= read(given, config=config, family=family).modules
    assert set(after) == set(before.modules)
    for name, module in before.modules.items():
        assert after[name].scale == pytest.approx(module.scale, rel=1e-12), name
        assert all(torch.equal(after[name].parts[k], v) for k, v in module.parts.items()), name


@pytest.mark.parametrize("first", ["kohya", "comfyui", "diffusers"])
@pytest.mark.parametrize("second", ["kohya", "comfyui", "diffusers"])
@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in TOYS])
def test_any_form_to_any_form_changes_nothing_but_rounding(family, first, second):
    before = made(family, uniform=False)
    middle = read(write(before, first), family=family)
    after = read(write(middle, second), family=family)
    assert set(after.modules) == set(before.modules)
    worst = max(error(dense(after.modules[n]), dense(m)) for n, m in before.modules.items())
    assert worst < ROUNDING


@pytest.mark.parametrize(
    ("target", "scale_one"), [("kohya", False), ("kohya", True), ("comfyui", True), ("diffusers", True)]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_written_again_in_its_own_form_is_the_same_file(family, target, scale_one):
    # Exact because no scale has to be folded: one alpha in Kohya files, scale 1 in the others.
    file = write(made(family, scale_one=scale_one), target)
    again = write(read(file, family=family), target)
    assert set(again) == set(file)
    assert all(torch.equal(again[k], v) and again[k].dtype == v.dtype for k, v in file.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("ranks", [(4, 4), (49, 4)])
def test_files_of_one_alpha_keep_their_type_and_bits_whatever_their_ranks(dtype, ranks):
    # 49 * (1 / 49) is not 1 in floating point.
    given = {
        f"unet.{n}": lora(6, 6, rank=r, alpha=1.0, dtype=dtype) for n, r in zip((Q, Q.replace("to_q", "to_k")), ranks)
    }
    file = write(Lora("sd1", given), "kohya")
    for name, module in given.items():
        flat = f"lora_unet_{name.removeprefix('unet.').replace('.', '_')}"
        assert file[f"{flat}.lora_down.weight"].dtype == dtype
        assert torch.equal(file[f"{flat}.lora_up.weight"], module.parts["up"])
        assert file[f"{flat}.alpha"].item() == 1.0


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl", "sdxl-refiner"])
def test_kohya_files_of_the_unets_have_one_alpha_for_each_component(family):
    file = write(made(family, uniform=False), "kohya")
    alphas = {}
    for key, value in file.items():
        if key.endswith(".alpha"):
            alphas.setdefault(re.match(r"lora_(unet|te\d?)_", key)[1], set()).add(value.item())
    assert {k: len(v) for k, v in alphas.items()} == dict.fromkeys(alphas, 1)
    assert len(alphas) == 1 + len(FAMILIES[family].encoders)


def test_one_alpha_can_be_asked_for_and_refused():
    mixed = Lora("sd1", {f"unet.{Q}": lora(alpha=1.0), f"unet.{Q.replace('to_q', 'to_k')}": lora(alpha=2.0)})
    alphas = {v.item() for k, v in write(mixed, "kohya", one_alpha=False).items() if k.endswith("alpha")}
    assert alphas == {1.0, 2.0}
    flux = Lora("flux1", {f"transformer.single_transformer_blocks.{n}.proj_out": lora(alpha=1.0 + n) for n in range(2)})
    assert len({v.item() for k, v in write(flux, "kohya").items() if k.endswith("alpha")}) == 2
    assert len({v.item() for k, v in write(flux, "kohya", one_alpha=True).items() if k.endswith("alpha")}) == 1


def test_one_alpha_is_the_commonest_and_leaves_the_modules_that_have_it():
    names = [f"down_blocks.{n}.attentions.0.transformer_blocks.0.attn1.to_q" for n in range(3)]
    modules = {f"unet.{n}": lora(alpha=a, seed=i) for i, (n, a) in enumerate(zip(names, (2.0, 1.0, 1.0)))}
    file = write(Lora("sd1", modules), "kohya")
    assert {v.item() for k, v in file.items() if k.endswith("alpha")} == {1.0}
    kept = f"lora_unet_{names[1].replace('.', '_')}"
    assert torch.equal(file[f"{kept}.lora_down.weight"], modules[f"unet.{names[1]}"].parts["down"])
    same(read(file, family="sd1").modules, modules)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("target", ["diffusers", "comfyui"])
def test_files_of_a_and_b_carry_the_scale_in_the_weights_and_no_alpha(family, target):
    file = write(made(family, uniform=False), target)
    assert {k.rpartition(".lora_")[2] for k in file} == {"A.weight", "B.weight"}


@pytest.mark.parametrize(
    ("family", "target", "prefixes", "sign"),
    [
        ("sd1", "universal", {"lora_unet_", "lora_te_"}, "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"),
        ("sd2", "universal", {"lora_unet_", "lora_te_"}, "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"),
        ("sdxl", "universal", {"lora_unet_", "lora_te1_", "lora_te2_"}, "lora_unet_input_blocks_4_1_proj_in.lora_down.weight"),
        ("flux1", "universal", {"transformer.", "text_encoder.", "text_encoders.t5xxl.transformer."},
         "transformer.transformer_blocks.0.attn.to_q.lora_A.weight"),
        ("chroma", "universal", {"transformer.", "diffusion_model.", "text_encoders.t5xxl.transformer."},
         "transformer.transformer_blocks.0.attn.to_q.lora_A.weight"),
        ("sd3", "universal", {"transformer.", "text_encoder.", "text_encoder_2.", "text_encoders.t5xxl.transformer."},
         "transformer.transformer_blocks.0.attn.to_q.lora_A.weight"),
        ("z-image", "universal", {"transformer."}, "transformer.layers.0.attention.to_q.lora_A.weight"),
        ("qwen-image", "universal", {"transformer."}, "transformer.transformer_blocks.0.attn.to_q.lora_A.weight"),
        ("flux2", "universal", {"diffusion_model."}, "diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight"),
        ("wan", "universal", {"diffusion_model."}, "diffusion_model.blocks.0.self_attn.q.lora_A.weight"),
        ("flux1", "kohya", {"lora_unet_", "lora_te1_", "lora_te3_"}, "lora_unet_double_blocks_0_img_attn_qkv.alpha"),
        ("sd3", "kohya", {"lora_unet_", "lora_te1_", "lora_te2_", "lora_te3_"}, "lora_unet_joint_blocks_0_x_block_attn_qkv.alpha"),
        ("wan", "kohya", {"lora_unet_"}, "lora_unet_blocks_0_self_attn_q.alpha"),
        ("z-image", "kohya", {"lora_unet_"}, "lora_unet_layers_0_attention_qkv.alpha"),
        ("sdxl", "diffusers", {"unet.", "text_encoder.", "text_encoder_2."}, "unet.down_blocks.1.attentions.0.proj_in.lora_A.weight"),
        ("sdxl", "comfyui", {"diffusion_model.", "text_encoders.clip_l.transformer.", "text_encoders.clip_g.transformer."},
         "diffusion_model.input_blocks.4.1.proj_in.lora_A.weight"),
    ],
)  # fmt: skip
def test_each_family_has_the_names_that_its_loaders_read(family, target, prefixes, sign):
    keys = set(write(made(family), target))
    assert sign in keys
    by_length = sorted(prefixes, key=len, reverse=True)
    assert {next((p for p in by_length if k.startswith(p)), k) for k in keys} == prefixes


def test_the_text_projection_of_sd3_has_the_names_of_both_programs_in_one_file():
    keys = write(
        Lora("sd3", {"clip_g.text_projection": lora(6, 6), "clip_l.text_model.encoder.layers.0.mlp.fc1": lora(6, 6)})
    )
    assert {key.partition(".lora_")[0] for key in keys} == {
        "text_encoder_2.text_projection",  # diffusers reads this one
        "text_encoders.clip_g.transformer.text_projection",  # ComfyUI that one
        "text_encoder.text_model.encoder.layers.0.mlp.fc1",
    }


def test_clip_paths_on_disk_always_hold_text_model():
    flat = {
        f"lora_te1_encoder_layers_0_mlp_fc1.lora_{p}.weight": torch.ones(s)
        for p, s in (("down", (2, 12)), ("up", (48, 2)))
    }
    file = read(flat, family="sdxl")
    assert all("text_model_encoder" in k for k in write(file, "kohya"))
    for target in ("comfyui", "diffusers"):
        assert all("text_model.encoder" in k for k in write(file, target))


def test_sd2_text_layers_go_by_the_encoder_name_comfyui_has():
    assert any(k.startswith("text_encoders.clip_h.transformer.text_model.") for k in write(made("sd2"), "comfyui"))


@pytest.mark.parametrize("target", ["kohya", "comfyui", "diffusers"])
def test_numbers_are_written_at_the_strength_worked_out_by_hand(target):
    module = Module("lora", {"down": torch.full((2, 4), 2.0), "up": torch.full((4, 2), 3.0)}, alpha=0.5)
    file = write(Lora("sd1", {f"unet.{Q}": module}), target)
    up = next(v for k, v in file.items() if "lora_up" in k or "lora_B" in k)
    down = next(v for k, v in file.items() if "lora_down" in k or "lora_A" in k)
    scale = next((v.item() / 2 for k, v in file.items() if k.endswith("alpha")), 1.0)
    assert torch.equal(
        scale * up @ down, torch.full((4, 4), 3.0)
    )  # 2 * 3 * 2 * 0.5 / 2; the root of a quarter is exact


def test_convolutions_of_sd1_projections_stay_convolutions_and_those_of_sdxl_linear():
    for family, dims in (("sd1", 4), ("sd2", 2), ("sdxl", 2)):
        for target in ("kohya", "diffusers"):
            proj = [
                v
                for k, v in write(made(family), target).items()
                if "proj_in" in k and ("lora_up" in k or "lora_B" in k)
            ]
            assert {v.ndim for v in proj} == {dims}


def test_an_unknown_target_and_peft_as_a_file_are_refused():
    for target in ("webui", "", "peft"):
        with pytest.raises(FormatError):
            write(made("sd1"), target)


@pytest.mark.parametrize("target", ["universal", "kohya", "comfyui", "diffusers"])
@pytest.mark.parametrize("name", ["unet.strange.3.layer", "clip_g.text_model.encoder.layers.0.mlp.fc1", "strange"])
def test_a_layer_the_family_does_not_have_is_written_under_its_own_name(target, name):
    stray = lora()
    file = write(Lora("sd1", {f"unet.{Q}": lora(6, 6), name: stray}), target)
    assert torch.equal(file[f"{name}.lora_A.weight"], stray.parts["down"])
    assert torch.equal(file[f"{name}.lora_B.weight"], stray.parts["up"])
    assert len(file) > 2


def test_a_peft_directory_is_refused_for_a_layer_the_family_does_not_have():
    with pytest.raises(FormatError, match="unet.strange.3.layer.*leaves such keys out"):
        peft_directories(Lora("sd1", {f"unet.{Q}": lora(6, 6), "unet.strange.3.layer": lora()}))


@pytest.mark.parametrize("target", [t for t in TARGETS if t != "peft"])
def test_the_lora_given_is_left_as_it_is(target):
    before = made("flux1", uniform=False)
    kept = copy.deepcopy(before)
    write(before, target)
    peft_directories(before)
    assert before.modules.keys() == kept.modules.keys()
    for name, module in kept.modules.items():
        assert before.modules[name].alpha == module.alpha
        assert all(torch.equal(before.modules[name].parts[k], v) for k, v in module.parts.items())


# --- other kinds --------------------------------------------------------------------------------------------------------------------------

OTHERS = {
    "loha": loha(alpha=1.0), "lokr": lokr("full", "low", alpha=1.0), "lokr full": lokr(), "full": Module("full", {"diff": random(1, 6, 5)}),
    "full with bias": Module("full", {"diff": random(1, 6, 5), "diff_b": random(2, 6)}),
    "lora with bias": lora().replaced(diff_b=random(2, 6)),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_other_adapters_are_refused_by_diffusers_with_the_way_out(name):
    with pytest.raises(FormatError, match=f"unet.{Q}.*approximate"):
        write(Lora("sd1", {f"unet.{Q}": OTHERS[name]}), "diffusers")


@pytest.mark.parametrize("target", ["kohya", "comfyui"])
@pytest.mark.parametrize("name", OTHERS)
def test_other_adapters_keep_every_bit_in_the_forms_that_know_them(name, target):
    after = read(write(Lora("sd1", {f"unet.{Q}": OTHERS[name]}), target), family="sd1").modules[f"unet.{Q}"]
    assert after.kind == OTHERS[name].kind
    assert after.scale == OTHERS[name].scale
    assert all(torch.equal(after.parts[k], v) for k, v in OTHERS[name].parts.items())


def test_a_loha_without_alpha_gets_one_because_loaders_differ_there():
    file = write(Lora("sd1", {f"unet.{Q}": loha(rank=2)}), "kohya")
    assert file[f"lora_unet_{FLAT_Q}.alpha"].item() == 2.0


@pytest.mark.parametrize("kind", [lora, loha])
def test_a_tucker_module_keeps_its_core_in_kohya_files(kind):
    conv = "down_blocks.0.resnets.0.conv1"
    module = kind(alpha=1.0, kernel=(3, 3), tucker=True)
    after = read(write(Lora("sd1", {f"unet.{conv}": module}), "kohya"), family="sd1").modules[f"unet.{conv}"]
    assert after.parts.keys() == module.parts.keys()
    assert torch.equal(dense(after), dense(module))
    if kind is lora:
        plain = read(write(Lora("sd1", {f"unet.{conv}": module}), "diffusers"), family="sd1").modules[f"unet.{conv}"]
        assert set(plain.parts) == {"down", "up"}
        assert error(dense(plain), dense(module)) < ROUNDING


UNKNOWN_PARTS = {
    "old LyCORIS OFT": {"oft_diag": (4, 3, 3), "alpha": ()}, "GLoRA in Tucker form": {"a1.weight": (4, 2), "bm.weight": (2, 2, 3, 3), "alpha": ()},
    "PEFT OFT": {"oft_R.weight": (2, 3)}, "a bias that is replaced": {"set_weight": (4,)},
}  # fmt: skip


@pytest.mark.parametrize("name", UNKNOWN_PARTS)
@pytest.mark.parametrize("target", ["kohya", "comfyui"])
@pytest.mark.parametrize("family", ["sd1", "unknown"])
def test_parts_of_a_kind_nobody_here_knows_keep_their_exact_endings(name, target, family):
    layer = f"lora_unet_{FLAT_Q}"
    given = {
        f"{layer}.{ending}": random(1, *shape) if shape else torch.tensor(0.25)
        for ending, shape in UNKNOWN_PARTS[name].items()
    }
    written = write(read(given, family=family), target)
    (prefix,) = {
        key.split(".oft", 1)[0].split(".a1", 1)[0].split(".bm", 1)[0].split(".set", 1)[0].removesuffix(".alpha")
        for key in written
    }
    assert {key.removeprefix(f"{prefix}.") for key in written} == set(UNKNOWN_PARTS[name])
    assert all(
        torch.equal(written[f"{prefix}.{ending}"].float(), given[f"{layer}.{ending}"].float())
        for ending in UNKNOWN_PARTS[name]
    )


def test_a_norm_is_written_under_the_names_each_program_reads():
    from lycoris.modules import get_module, make_module

    norm = "mid_block.attentions.0.transformer_blocks.0.norm1"
    diff, bias = random(1, 8), random(2, 8)
    given = read(
        {f"lora_unet_{norm.replace('.', '_')}.w_norm": diff, f"lora_unet_{norm.replace('.', '_')}.b_norm": bias},
        family="sd1",
    )
    file = write(given, "kohya")
    assert {key.rpartition(".")[2] for key in file} == {"w_norm", "b_norm"}
    layer = torch.nn.LayerNorm(8)
    made = make_module(*get_module(file, f"lora_unet_{norm.replace('.', '_')}"), "x", layer)
    assert [torch.equal(a, b) for a, b in zip(made.get_diff_weight(), (diff, bias), strict=True)] == [True, True]
    native = write(given, "comfyui")
    assert {key.rpartition(".")[2] for key in native} == {"diff", "diff_b"}
    again = read(native, family="sd1").modules[f"unet.{norm}"]
    assert (again.kind, torch.equal(again.parts["diff"], diff), torch.equal(again.parts["diff_b"], bias)) == (
        "norm",
        True,
        True,
    )


def test_a_glora_keeps_the_keys_its_readers_ask_for():
    layer = f"lora_unet_{FLAT_Q}"
    given = {
        f"{layer}.{n}.weight": random(i, *shape)
        for i, (n, shape) in enumerate({"a1": (5, 2), "a2": (2, 5), "b1": (6, 2), "b2": (2, 5)}.items())
    }
    written = write(read(given | {f"{layer}.alpha": torch.tensor(1.0)}, family="sd1"), "kohya")
    assert written.keys() == {*given, f"{layer}.alpha"}
    assert all(torch.equal(written[key], given[key]) for key in given)


def test_a_weight_is_a_part_of_ia3_only_beside_on_input():
    layer = f"lora_unet_{FLAT_Q}"
    given = {f"{layer}.weight": random(1, 6), f"{layer}.on_input": torch.tensor(0)}
    assert set(write(read(given, family="sd1"), "kohya")) == set(given)
    beside = read({f"{layer}.weight": random(1, 6), **kohya(f"lora_unet_{FLAT_Q}", lora())}, family="sd1")
    assert set(beside.foreign) == {f"{layer}.weight"}


@pytest.mark.parametrize("target", ["kohya", "comfyui"])
def test_a_lokr_of_two_full_matrices_is_written_with_an_alpha_since_lycoris_asks_for_one(target):
    from lycoris.modules import get_module, make_module

    file = write(Lora("sd1", {f"unet.{Q}": lokr()}), target)
    name = next(key.removesuffix(".alpha") for key in file if key.endswith(".alpha"))
    layer = torch.nn.Linear(10, 12)
    kind, values = get_module(file, name)
    made = make_module(kind, values, name, layer)
    # float32 products of two numbers of order 1
    torch.testing.assert_close(made.get_diff_weight()[0].double(), dense(lokr()), rtol=1e-6, atol=1e-6)


def test_approximation_replaces_what_is_no_lora_and_tells_the_error_of_each():
    k, v = Q.replace("to_q", "to_k"), Q.replace("to_q", "to_v")
    dense_change = torch.diag(torch.tensor([3.0, 2.0, 1.0, 1.0]))
    given = Lora(
        "sd1",
        {
            f"unet.{Q}": lora(4, 4),
            f"unet.{k}": loha(4, 4, alpha=1.0),
            f"unet.{v}": Module("full", {"diff": dense_change}),
        },
    )
    out, errors = approximated(given, 2)
    assert set(errors) == {f"unet.{k}", f"unet.{v}"}
    assert out.modules[f"unet.{Q}"] is given.modules[f"unet.{Q}"]
    assert errors[f"unet.{v}"] == pytest.approx((2 / 15) ** 0.5, rel=1e-5)
    for name, told in errors.items():
        assert out.modules[name].rank == 2
        assert error(dense(out.modules[name]), dense(given.modules[name])) == pytest.approx(told, rel=1e-3)
    assert set(write(out, "diffusers")) == {f"unet.{n}.lora_{p}.weight" for n in (Q, k, v) for p in "AB"}


def test_approximating_a_loha_at_its_full_rank_is_exact():
    given = Lora("sd1", {f"unet.{Q}": loha(alpha=1.0)})
    out, errors = approximated(given, 4)  # a product of two matrices of rank 2
    assert errors[f"unet.{Q}"] < 1e-3
    assert error(dense(out.modules[f"unet.{Q}"]), dense(given.modules[f"unet.{Q}"])) < 1e-5


def test_approximation_refuses_dora_and_never_drops_a_bias_in_silence():
    with pytest.raises(FormatError, match=f"unet.{Q}: DoRA"):
        approximated(Lora("sd1", {f"unet.{Q}": loha().replaced(dora=torch.ones(6, 1))}), 2)
    out, _ = approximated(Lora("sd1", {f"unet.{Q}": OTHERS["full with bias"], "unet.conv_out": lora(kernel=(3, 3))}), 2)
    assert not any("diff_b" in m.parts for m in out.modules.values())
    assert any("bias of 1 layer" in str(n) for n in out.notes)


# --- DoRA ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "kernel", "kohya_shape", "peft_shape"),
    [(Q, (), (6, 1), (6,)), ("conv_in", (3, 3), (6, 1, 1, 1), (1, 6, 1, 1))],
)
def test_magnitudes_of_outputs_have_the_shape_of_each_form(path, kernel, kohya_shape, peft_shape):
    module = lora(alpha=1.0, kernel=kernel)
    module = module.replaced(dora=random(5, 6).reshape(kohya_shape))
    given = Lora("sd1", {f"unet.{path}": module})
    kohya_file, diffusers_file = write(given, "kohya"), write(given, "diffusers")
    assert kohya_file[f"lora_unet_{path.replace('.', '_')}.dora_scale"].shape == kohya_shape
    assert diffusers_file[f"unet.{path}.lora_magnitude_vector"].shape == peft_shape
    directory, config = peft_directories(given)["unet"]
    assert directory[f"base_model.model.{path}.lora_magnitude_vector"].shape == peft_shape
    assert config["use_dora"] is True
    for file, conf in ((kohya_file, None), (diffusers_file, None), (directory, config)):
        after = read(file, config=conf, family="sd1").modules[f"unet.{path}"]
        assert torch.equal(after.parts["dora"], module.parts["dora"])
        assert error(dense(after), dense(module)) < ROUNDING


def test_magnitudes_of_inputs_are_refused_where_only_outputs_are_known():
    given = Lora("sd1", {f"unet.{Q}": lora().replaced(dora=torch.ones(1, 5))})
    assert write(given, "kohya")[f"lora_unet_{FLAT_Q}.dora_scale"].shape == (1, 5)
    with pytest.raises(FormatError, match=f"unet.{Q}.*inputs"):
        write(given, "diffusers")
    with pytest.raises(FormatError, match=f"{Q}.*inputs"):
        peft_directories(given)


def test_comfyuis_names_keep_dora_with_its_alpha():
    given = Lora("sd1", {f"unet.{Q}": lora(alpha=1.0).replaced(dora=torch.ones(6, 1))})
    assert {k.rpartition(".")[2] for k in write(given, "comfyui")} == {"weight", "alpha", "dora_scale"}


def test_peft_refuses_dora_on_some_layers_only():
    given = Lora("sd1", {f"unet.{Q}": lora().replaced(dora=torch.ones(6, 1)), "unet.conv_in": lora(kernel=(3, 3))})
    with pytest.raises(FormatError, match="conv_in.*all layers or none"):
        peft_directories(given)


# --- PEFT itself --------------------------------------------------------------------------------------------------------------------------


class Net(torch.nn.Module):
    """A piece of a UNet under its real names."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv_in = torch.nn.Conv2d(4, 6, 3)
        self.conv_out = torch.nn.Conv2d(6, 4, 3)
        self.time_embedding = torch.nn.ModuleDict(
            {"linear_1": torch.nn.Linear(8, 12), "linear_2": torch.nn.Linear(12, 12)}
        )


NET = {
    "conv_in": (6, 4, 3, 3),
    "conv_out": (4, 6, 3, 3),
    "time_embedding.linear_1": (12, 8),
    "time_embedding.linear_2": (12, 12),
}


@pytest.mark.parametrize("uniform", [True, False])
def test_peft_loads_the_directory_and_has_the_same_change_in_every_layer(uniform, tmp_path):
    modules = {
        f"unet.{n}": lora(*s[:2], rank=4 if uniform else 2 + i, alpha=2.0 if uniform else 1.0 + i, kernel=s[2:], seed=i)
        for i, (n, s) in enumerate(NET.items())
    }
    file, config = peft_directories(Lora("sd1", modules))["unet"]
    save_file({k: v.contiguous() for k, v in file.items()}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    net = PeftModel.from_pretrained(Net(), str(tmp_path))
    for name, module in modules.items():
        theirs = net.base_model.model.get_submodule(name.removeprefix("unet.")).get_delta_weight("default").detach()
        assert error(theirs, dense(module)) < ROUNDING
    assert not set_peft_model_state_dict(net, file).unexpected_keys


@pytest.mark.parametrize(
    "settings",
    [
        {"lora_alpha": 8},
        {"lora_alpha": 3, "use_rslora": True},
        {"lora_alpha": 8, "alpha_pattern": {"conv_out": 2, "linear_[12]": 5}, "rank_pattern": {"conv_in": 7}},
    ],
)
def test_what_peft_saves_is_read_with_the_change_it_has_there(settings):
    config = LoraConfig(r=4, target_modules=list(NET), init_lora_weights=False, **settings)
    net = get_peft_model(Net(), config)
    modules = read(get_peft_model_state_dict(net), config=config.to_dict(), family="sd1").modules
    assert set(modules) == {f"unet.{n}" for n in NET}
    for name, module in modules.items():
        theirs = net.base_model.model.get_submodule(name.removeprefix("unet.")).get_delta_weight("default").detach()
        assert error(dense(module), theirs) < ROUNDING


def test_dora_that_peft_saves_is_read_and_written_for_peft_again():
    net = get_peft_model(
        Net(), config := LoraConfig(r=4, target_modules=list(NET), init_lora_weights=False, use_dora=True)
    )
    saved = get_peft_model_state_dict(net)
    file, ours = peft_directories(read(saved, config=config.to_dict(), family="sd1"))["unet"]
    assert ours["use_dora"] is True
    assert file.keys() == saved.keys()
    assert all(torch.equal(file[k], v) for k, v in saved.items())


def test_flat_clip_names_fit_the_modules_of_newer_transformers():
    given = made("sdxl")
    flat, usual = peft_directories(given, flat_clip=True), peft_directories(given)
    assert all("text_model." in k for k in usual["text_encoder"][0])
    assert not any("text_model." in k for k in flat["text_encoder"][0])
    assert all("text_model." in k for k in flat["text_encoder_2"][0])  # CLIPTextModelWithProjection still has it
    assert not any("text_model." in n for n in flat["text_encoder"][1]["target_modules"])


def test_kinds_peft_does_not_have_are_refused():
    for modules in (
        {f"unet.{Q}": lokr()},
        {f"unet.{Q}": Module("full", {"diff": random(1, 6, 5)})},
        {f"unet.{Q}": lora(), "unet.conv_in": loha()},
    ):
        with pytest.raises(FormatError, match="approximate"):
            peft_directories(Lora("sd1", modules))


def test_a_loha_directory_is_read_again_with_its_scale():
    given = Lora(
        "sd1", {f"unet.{Q}": loha(alpha=1.0), f"unet.{Q.replace('to_q', 'to_k')}": loha(rank=3, alpha=6.0, seed=9)}
    )
    file, config = peft_directories(given)["unet"]
    assert config["peft_type"] == "LOHA"
    same(read(file, config=config, family="sd1").modules, given.modules)


# --- unknown families and fresh runs ------------------------------------------------------------------------------------------------------


def test_keys_of_an_unknown_model_are_kept_bit_for_bit_in_every_form():
    flat = kohya("lora_unet_strange_3_layer", lora(alpha=1.0, dtype=torch.float16))
    dotted = kohya("base_model.model.strange.3.layer", lora(alpha=1.0, dtype=torch.bfloat16))
    for given in (flat, dotted):
        for target in ("universal", "kohya", "comfyui", "diffusers"):
            file = write(read(given), target)
            assert file.keys() == given.keys()
            assert all(torch.equal(file[k], v) and file[k].dtype == v.dtype for k, v in given.items())


def test_a_changed_module_of_an_unknown_model_is_spelled_anew_under_its_name():
    given = read(kohya("diffusion_model.strange.3.layer", lora(alpha=1.0)))
    changed = write(weighted(given, 0.5), "universal")
    assert set(changed) == {f"diffusion_model.strange.3.layer.lora_{x}.weight" for x in "AB"}
    ((name, before),), ((again, after),) = given.modules.items(), read(changed).modules.items()
    assert name == again
    torch.testing.assert_close(dense(after), 0.5 * dense(before))


def test_an_unknown_model_has_no_peft_directory():
    with pytest.raises(FormatError, match="family"):
        peft_directories(dataclasses.replace(made("sd1"), family=UNKNOWN))


def test_what_a_run_trained_is_written_in_the_universal_form_of_its_base():
    names = {"sd1": f"lora_unet_{FLAT_Q}", "sdxl": "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
             "flux1": "diffusion_model.double_blocks.0.img_attn.proj"}  # fmt: skip
    for base, name in names.items():
        module = lora(6, 6, rank=2, alpha=1.0)
        state = {
            f"{name}.lora_down": module.parts["down"],
            f"{name}.lora_up": module.parts["up"],
            f"{name}.alpha": torch.tensor(1.0),
        }
        file = trained(state, base)
        sign = {"flux1": "transformer.transformer_blocks.0.attn.to_out.0.lora_A.weight"}.get(
            base, f"{name}.lora_down.weight"
        )
        assert sign in file
        (got,) = read(file, family=base).modules.values()
        assert error(dense(got), dense(module)) < ROUNDING


@pytest.mark.parametrize("base", ["unknown", "hidream", "flux1"])
def test_what_a_run_trained_on_an_unknown_model_keeps_its_names(base):
    state = a_b("diffusion_model.strange.layer", lora(rank=2))
    file = trained(state, base)
    assert file.keys() == state.keys()
    assert all(torch.equal(file[k], v) for k, v in state.items())


def test_sd2_with_v_prediction_is_sd2():
    state = kohya(f"lora_unet_{FLAT_Q}", lora(alpha=1.0))
    assert trained(state, "sd2-v").keys() == state.keys()


@pytest.mark.parametrize("family", ["hunyuanvideo", "kandinsky5"])
def test_universal_calls_a_clip_of_which_diffusers_reads_nothing_as_comfyui_does(family):
    path = "text_model.encoder.layers.0.self_attn.q_proj"
    keys = write(Lora(family, {f"clip_l.{path}": lora()}))
    assert {key.rpartition(".lora_")[0] for key in keys} == {f"text_encoders.clip_l.transformer.{path}"}
