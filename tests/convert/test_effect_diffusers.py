"""What diffusers' own loaders make of the files written here, and what is made here of the files diffusers writes: the weight change of every layer.

The limits of diffusers 0.42's readers that the choice of a universal form rests on are facts of their own at the end.
"""

import itertools
import warnings

import diffusers
import pytest
import tiny
import torch
from diffusers.loaders import single_file_utils
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers
from lora_loom.convert import read, write
from lora_loom.convert.families import FAMILIES
from lora_loom.convert.lora import delta
from lora_loom.convert.patterns import fill
from peft import LoraConfig, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from slow_rows import mostly_slow

EXACT = tiny.EXACT


def loaded(model, state, folder):
    """(delta of every layer that has got a LoRA, complaints) after `load_lora_weights` of a file with this state."""
    path = folder / "lora.safetensors"
    save_file({k: v.contiguous() for k, v in state.items()}, path, {"format": "pt"})
    pipeline = model.pipeline()
    with tiny.overheard() as said:
        pipeline.load_lora_weights(str(path), adapter_name="effect")
    return tiny.lora_layers(model, "effect"), said


def unexpected(said, ref):
    """Complaints but for "no keys for this component" about components the LoRA has no layers of, which diffusers itself calls safe to ignore."""
    info = FAMILIES[ref.lora.family]
    parts = {info.encoder(part).component if info.encoder(part) else part for part in ref.lora.components()}
    return [
        text
        for text in said
        if not ("No LoRA keys associated" in text and not any(f"prefix='{part}'" in text for part in parts))
    ]


def deltas(lora):
    return {name: delta(module) for name, module in lora.modules.items()}


# --- A: our files in diffusers ----------------------------------------------------------------------------------------------------------

# What diffusers cannot take in of a form, by its own limitation; the tests at the end pin these down one by one.
UNREADABLE = {
    ("wan", "comfyui"): lambda name: name == "transformer.patch_embedding",
    ("wan", "kohya"): lambda name: "blocks." not in name,
    ("flux2", "comfyui"): lambda name: name == "transformer.norm_out.linear",
    ("flux2", "kohya"): lambda name: any(part in name for part in ("guidance_embedder", "modulation", "norm_out")),
    ("chroma", "universal"): lambda name: (
        "distilled_guidance_layer" in name
    ),  # under ComfyUI's name there, which has no other for them
    ("lumina2", "comfyui"): lambda name: not any(part in name for part in ("layers.", "refiner.")),
    ("z-image", "kohya"): lambda name: any(part in name for part in ("all_x_embedder", "all_final_layer")),
}
FORMS = [
    *((family, form) for family in tiny.NAMES for form in ("universal", "diffusers")), *((family, "kohya") for family in tiny.UNETS),
    ("qwen-image", "comfyui"), ("qwen-image", "kohya"), ("z-image", "kohya"), ("flux2", "kohya"), ("wan", "kohya"),
]  # fmt: skip


@pytest.mark.parametrize("scales", mostly_slow(["mixed", "uniform"], lambda scales: scales == "mixed"))
@pytest.mark.parametrize(("family", "form"), FORMS)
def test_diffusers_gives_every_layer_the_change_its_factors_stand_for(family, form, scales, tmp_path):
    spelling = FAMILIES[family].universal if form == "universal" else form
    unreadable = UNREADABLE.get((family, form)) or UNREADABLE.get((family, spelling), lambda name: False)
    # diffusers cuts Lumina's fused matrix into the sizes of the published model, so that one form needs its width.
    model = tiny.build(family, "real" if (family, spelling) == ("lumina2", "comfyui") else "tiny")
    ref = tiny.reference(model, scales, only=lambda name: not unreadable(name))
    got, said = loaded(model, write(ref.lora, form), tmp_path)
    assert unexpected(said, ref) == []
    worst, name = tiny.worst(got, ref.deltas)
    assert worst <= EXACT, name


@pytest.mark.parametrize("family", tiny.UNETS)
def test_a_kohya_file_with_the_alphas_it_was_trained_with_is_misread_by_diffusers(family, tmp_path):
    """Why one alpha for each component is the default: with `one_alpha=False` attention layers get the commonest alpha."""
    model = tiny.build(family)
    ref = tiny.reference(model)
    got, said = loaded(model, write(ref.lora, "kohya", one_alpha=False), tmp_path)
    wrong = [name for name, want in ref.deltas.items() if tiny.error(got[name], want) > EXACT]
    assert len(wrong) > len(ref.deltas) / 4
    assert any("alpha_pattern keys" in text for text in said)


@pytest.mark.parametrize("family", ["sd1", "sdxl", "flux1", "wan"])
def test_a_lora_over_a_few_layers_adds_adapters_to_these_alone(family, tmp_path):
    model = tiny.build(family)
    names = [
        name
        for name in model.layers
        if name.endswith(("to_q", "q_proj", "self_attn.out_proj", "x_embedder", "conv_in"))
    ]
    ref = tiny.reference(model, only=names.__contains__)
    got, said = loaded(model, write(ref.lora), tmp_path)
    assert unexpected(said, ref) == []
    assert tiny.worst(got, ref.deltas)[0] <= EXACT


def test_the_last_layer_of_flux_does_not_bring_its_namesakes_in_the_blocks_along(tmp_path):
    """PEFT says that the name `proj_out` would also match those; it loads no adapter into them."""
    model, ref = _only("flux1", "transformer.proj_out")
    got, _ = loaded(model, write(ref.lora), tmp_path)
    assert tiny.worst(got, ref.deltas)[0] <= EXACT


def test_the_projection_of_the_second_text_encoder_reaches_diffusers(tmp_path):
    model = tiny.build("sdxl")
    model.layers["clip_g.text_projection"] = "text_encoder_2", "text_projection"
    ref = tiny.reference(model, "uniform", only=lambda name: name.startswith(("unet.mid_block", "clip_")))
    for form in ("kohya", "diffusers"):
        model = tiny.build("sdxl")
        model.layers["clip_g.text_projection"] = "text_encoder_2", "text_projection"
        got, said = loaded(model, write(ref.lora, form), tmp_path)
        assert said == []
        assert tiny.worst(got, ref.deltas)[0] <= EXACT


def probe(columns):
    """Columns to multiply a change of weights with: full-width matrices are compared by their products, and rows keep their places."""
    return torch.randn(columns, 8, generator=torch.Generator().manual_seed(columns), dtype=torch.float64)


def probed(down, up, scale=1.0):
    down, up = down.double().flatten(1), up.double().flatten(1)
    return scale * (up @ (down @ probe(down.shape[1])))


def test_the_kohya_form_of_flux_gives_diffusers_the_blocks_at_the_published_width(tmp_path):
    """diffusers cuts `linear1` at 3072 rows, so this needs the real width."""
    lora = tiny.factors(tiny.on_meta("flux1"), only=lambda name: "blocks." in name)
    wanted = {name: probed(m.parts["down"], m.parts["up"], m.scale) for name, m in lora.modules.items()}
    save_file(write(lora, "kohya"), tmp_path / "flux.safetensors")
    state = diffusers.FluxPipeline.lora_state_dict(str(tmp_path / "flux.safetensors"))
    names = [key.removesuffix(".lora_A.weight") for key in state if key.endswith(".lora_A.weight")]
    assert len(state) == 2 * len(names)
    worst, name = tiny.worst(
        {n: probed(state[f"{n}.lora_A.weight"], state[f"{n}.lora_B.weight"]) for n in names}, wanted
    )
    assert worst <= EXACT, name


class Checkpoint(dict):
    """A native checkpoint of weights alone: biases and norms that a converter asks for are zeros. Its converters work in place, so a copy is itself."""

    def __missing__(self, key):
        return torch.zeros(6 * 3072 + 3072)

    def pop(self, key, *default):
        return super().pop(key) if key in self else default[0] if default else self[key]

    def copy(self):
        return self


CONVERTERS = {
    "flux1": single_file_utils.convert_flux_transformer_checkpoint_to_diffusers, "chroma": single_file_utils.convert_chroma_transformer_checkpoint_to_diffusers,
    "sd3": single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers, "flux2": single_file_utils.convert_flux2_transformer_checkpoint_to_diffusers,
    "z-image": single_file_utils.convert_z_image_transformer_checkpoint_to_diffusers, "lumina2": single_file_utils.convert_lumina2_to_diffusers,
    "wan": single_file_utils.convert_wan_transformer_to_diffusers,
}  # fmt: skip


@pytest.mark.parametrize("form", ["comfyui", "kohya"])
@pytest.mark.parametrize("family", CONVERTERS)
def test_native_files_hold_what_diffusers_makes_of_a_native_checkpoint(family, form):
    """Names, order of fused rows and swapped halves of the native form, against the code that converts the models themselves, at their real widths."""
    model = tiny.on_meta(family)
    lora = tiny.factors(model)
    wanted = {name: probed(m.parts["down"], m.parts["up"], m.scale) for name, m in lora.modules.items()}
    dotted = {f"lora_unet_{k.replace('.', '_')}": k for k in native_paths(model)}
    checkpoint, state = Checkpoint(), write(lora, form)
    for key in state:
        if key.endswith((".lora_A.weight", ".lora_down.weight")):
            name = key.rsplit(".", 2)[0]
            up = state[f"{name}.lora_B.weight"] if form == "comfyui" else state[f"{name}.lora_up.weight"]
            scale = 1.0 if form == "comfyui" else float(state[f"{name}.alpha"]) / up.shape[1]
            path = name.removeprefix("diffusion_model.") if form == "comfyui" else dotted[name]
            checkpoint[f"{path}.weight"] = probed(state[key], up, scale)
    converted = CONVERTERS[family](checkpoint)
    got = {
        name: converted[f"{name.removeprefix('transformer.')}.weight"]
        for name in wanted
        if f"{name.removeprefix('transformer.')}.weight" in converted
    }
    worst, name = tiny.worst(got, wanted)
    assert worst <= EXACT, name


def native_paths(model):
    """Native path of every layer, from the table under test: only used to undo the flattening of Kohya names."""
    table = FAMILIES[model.family].table
    found = [table.find(path) for part, path in model.layers.values() if part == FAMILIES[model.family].component]
    return {fill(f.rows[0].native, f.numbers) for f in found}


@pytest.mark.parametrize("family", tiny.UNETS)
def test_sgm_names_of_a_unet_are_those_diffusers_makes_of_an_original_checkpoint(family):
    unet, table = tiny.build(family).models["unet"], FAMILIES[family].table
    checkpoint, number_of = {}, {}
    for path, module in unet.named_modules():
        if getattr(module, "weight", None) is not None:
            found = table.find(path)
            native = f"model.diffusion_model.{fill(found.rows[0].native, found.numbers)}"
            number_of[f"{path}.weight"] = len(checkpoint)
            checkpoint[f"{native}.weight"] = torch.full(module.weight.shape, float(len(checkpoint)))
            if module.bias is not None:
                checkpoint[f"{native}.bias"] = module.bias
    converted = single_file_utils.convert_ldm_unet_checkpoint(checkpoint, dict(unet.config))
    assert {key: int(value.flatten()[0]) for key, value in converted.items() if key.endswith(".weight")} == number_of


# --- B: diffusers' files here -----------------------------------------------------------------------------------------------------------


def trained_by_peft(model, **settings):
    """Adds an adapter with random factors to every layer, as a training script of diffusers does; (deltas, layers by component)."""
    torch.manual_seed(5)
    for part, component in model.models.items():
        paths = [path for p, path in model.layers.values() if p == part]
        ranks = {path: 3 for path in paths[1::5]}
        config = LoraConfig(
            r=4, lora_alpha=6.0, init_lora_weights=False, target_modules=paths, rank_pattern=ranks, **settings
        )
        inject_adapter_in_model(
            config, component, "default"
        )  # what add_adapter of both libraries calls, each behind a demand for a PEFT version of its own
    return tiny.lora_layers(model, "default"), {
        part: get_peft_model_state_dict(m, adapter_name="default") for part, m in model.models.items()
    }


def saved_by_diffusers(model, layers, folder, metadata):
    """(tensors, metadata) of the file that `save_lora_weights` writes."""
    header = _collate_lora_metadata(model.models) if metadata else {}
    type(model.pipeline()).save_lora_weights(
        folder, **{f"{part}_lora_layers": state for part, state in layers.items()}, **header
    )
    with safe_open(folder / "pytorch_lora_weights.safetensors", "pt") as file:
        return load_file(folder / "pytorch_lora_weights.safetensors"), file.metadata()


@pytest.mark.parametrize("family", tiny.NAMES)
def test_a_file_saved_by_diffusers_is_read_with_the_scale_in_its_header(family, tmp_path):
    model = tiny.build(family)
    wanted, layers = trained_by_peft(model)
    lora = read(*saved_by_diffusers(model, layers, tmp_path, metadata=True), family=family)
    worst, name = tiny.worst(deltas(lora), wanted)
    assert worst <= EXACT, name


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_the_mixed_spelling_of_diffusers_sd_training_scripts_is_read(family, tmp_path):
    """They save `convert_state_dict_to_diffusers(...)`: `.lora.down` for attention, `.lora_linear_layer` for text, `lora_A` for the rest."""
    model = tiny.build(family)
    wanted, layers = trained_by_peft(model)
    layers = {part: convert_state_dict_to_diffusers(state) for part, state in layers.items()}
    state, metadata = saved_by_diffusers(model, layers, tmp_path, metadata=True)
    for ending in (".to_q.lora.down.weight", "q_proj.lora_linear_layer.down.weight", "conv_in.lora_A.weight"):
        assert any(key.endswith(ending) for key in state)
    worst, name = tiny.worst(deltas(read(state, metadata, family=family)), wanted)
    assert worst <= EXACT, name


@pytest.mark.parametrize(
    "settings",
    [{"use_rslora": True}, {"alpha_pattern": {"attn1.to_k": 9.0, "to_out.0": 1.5, "^conv_in": 2.0, "fc1": 3.0}}],
)
@pytest.mark.parametrize("family", ["sd1", "flux1"])
def test_rslora_and_alpha_patterns_in_the_header_are_followed(family, settings, tmp_path):
    model = tiny.build(family)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not every pattern has a layer in every component, and PEFT says so
        wanted, layers = trained_by_peft(model, **settings)
    lora = read(*saved_by_diffusers(model, layers, tmp_path, metadata=True), family=family)
    worst, name = tiny.worst(deltas(lora), wanted)
    assert worst <= EXACT, name


@pytest.mark.parametrize("family", ["sd1", "flux1"])
def test_without_a_header_the_scale_is_one_as_diffusers_itself_takes_it(family, tmp_path):
    model = tiny.build(family)
    _, layers = trained_by_peft(model)
    state, metadata = saved_by_diffusers(model, layers, tmp_path, metadata=False)
    theirs, _ = loaded(tiny.build(family), state, tmp_path)
    worst, name = tiny.worst(deltas(read(state, metadata, family=family)), theirs)
    assert worst <= EXACT, name


@pytest.mark.parametrize("family", ["sd1", "sdxl", "flux1", "sd3"])
def test_a_lora_that_diffusers_loaded_and_saved_again_is_read_unchanged(family, tmp_path):
    """diffusers then puts `^` before the names in its patterns."""
    model = tiny.build(family)
    ref = tiny.reference(model)
    path = tmp_path / "lora.safetensors"
    save_file(write(ref.lora, "diffusers"), path)
    model.pipeline().load_lora_weights(str(path), adapter_name="default")
    layers = {part: get_peft_model_state_dict(m, adapter_name="default") for part, m in model.models.items()}
    lora = read(*saved_by_diffusers(model, layers, tmp_path, metadata=True), family=family)
    worst, name = tiny.worst(deltas(lora), ref.deltas)
    assert worst <= EXACT, name


_OLD_TEXT = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}


def _attn_processor(name):
    """The keys of diffusers before 0.18 for an attention layer of the UNet."""
    head, _, layer = name.removesuffix(".0").rpartition(".")
    return f"{head}.processor.{layer}_lora.{{}}.weight"


def _old_text(name):
    head, _, layer = name.rpartition(".")
    return f"{head}.{_OLD_TEXT[layer]}_lora.{{}}.weight"


OLD = {
    "attention processors": (lambda name: ".attn" in name and name.startswith("unet."), _attn_processor),
    "lora.down": (lambda name: name.startswith("unet."), lambda name: f"{name}.lora.{{}}.weight"),
    "lora_linear_layer": (lambda name: name.startswith("clip_"), lambda name: f"{name}.lora_linear_layer.{{}}.weight"),
    "text attention processors": (lambda name: name.startswith("clip_") and "self_attn" in name, _old_text),
}


@pytest.mark.parametrize("spelling", OLD)
def test_older_spellings_of_diffusers_are_read_as_diffusers_reads_them(spelling, tmp_path):
    chosen, key = OLD[spelling]
    model = tiny.build("sdxl")
    ref = tiny.reference(model, only=chosen)
    encoders = {e.name: e.component for e in FAMILIES["sdxl"].encoders}
    state = {}
    for name, module in ref.lora.modules.items():
        part, _, path = name.partition(".")
        place = key(f"{encoders.get(part, part)}.{path}")
        state |= {place.format("down"): module.parts["down"], place.format("up"): module.parts["up"]}
    theirs, _ = loaded(model, state, tmp_path)
    assert theirs.keys() == ref.deltas.keys()
    worst, name = tiny.worst(deltas(read(state, family="sdxl")), theirs)
    assert worst <= EXACT, name


# --- any form to any other --------------------------------------------------------------------------------------------------------------

SPELLINGS = ("universal", "kohya", "comfyui", "diffusers")


@pytest.mark.parametrize("scales", mostly_slow(["mixed", "uniform"], lambda scales: scales == "mixed"))
@pytest.mark.parametrize("family", tiny.NAMES)
def test_a_lora_taken_from_form_to_form_keeps_every_change(family, scales):
    ref = tiny.reference(tiny.build(family), scales)
    for first, second in itertools.product(SPELLINGS, repeat=2):
        once = read(write(ref.lora, first), family=family)
        twice = read(write(once, second), family=family)
        for step, lora in ((first, once), (f"{first} to {second}", twice)):
            worst, name = tiny.worst(deltas(lora), ref.deltas)
            assert worst <= EXACT, (step, name)


@pytest.mark.parametrize("family", tiny.NAMES)
def test_a_lora_over_parts_of_fused_layers_keeps_every_change(family):
    """Only q and v: the native form has to leave the rows of k alone, and reading it back must not invent a k."""
    ref = tiny.reference(
        tiny.build(family), only=lambda name: name.endswith(("to_q", "to_v", "add_v_proj", "proj_mlp", "ff.net.2"))
    )
    for form in SPELLINGS:
        worst, name = tiny.worst(deltas(read(write(ref.lora, form), family=family)), ref.deltas)
        assert worst <= EXACT, (form, name)


# --- limits of diffusers' readers -------------------------------------------------------------------------------------------------------


def _only(family, *names, width="tiny"):
    model = tiny.build(family, width)
    assert set(names) <= model.layers.keys()
    return model, tiny.reference(model, only=lambda name: name in names)


def test_diffusers_reads_the_final_modulation_of_native_flux2_files_with_its_halves_exchanged(tmp_path):
    """It swaps them when it converts the model (the test above holds our rows against that), but not for a LoRA."""
    name = "transformer.norm_out.linear"
    model, ref = _only("flux2", name, "transformer.transformer_blocks.0.attn.to_out.0")
    got, said = loaded(model, write(ref.lora, "comfyui"), tmp_path)
    assert said == []
    assert tiny.error(got[name], ref.deltas[name]) > 1
    half = len(got[name]) // 2
    assert tiny.error(got[name].roll(half, 0), ref.deltas[name]) <= EXACT


@pytest.mark.parametrize(
    "name", ["double_stream_modulation_img.linear", "time_guidance_embed.guidance_embedder.linear_1", "norm_out.linear"]
)
def test_diffusers_drops_layers_outside_the_blocks_from_kohya_files_of_flux2(name, tmp_path):
    name = f"transformer.{name}"
    model, ref = _only("flux2", name, "transformer.transformer_blocks.0.attn.to_out.0")
    got, _ = loaded(model, write(ref.lora, "kohya"), tmp_path)
    assert name not in got


def test_diffusers_refuses_a_kohya_file_with_text_encoder_layers_but_no_attention_output(tmp_path):
    """It tells the spelling by `to_out_lora`; the diffusers form of the same layers is read."""
    names = [
        "clip_l.text_model.encoder.layers.0.self_attn.q_proj",
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
    ]
    model, ref = _only("sd1", *names)
    with pytest.raises(ValueError, match="infer state dict type"):
        loaded(model, write(ref.lora, "kohya"), tmp_path)
    got, said = loaded(tiny.build("sd1"), write(ref.lora, "diffusers"), tmp_path)
    assert said == []
    assert tiny.worst(got, ref.deltas)[0] <= EXACT


def test_diffusers_refuses_a_native_wan_file_with_the_patch_embedding(tmp_path):
    model, ref = _only("wan", "transformer.patch_embedding", "transformer.blocks.0.attn1.to_q")
    with pytest.raises(ValueError, match="patch_embedding"):
        loaded(model, write(ref.lora, "comfyui"), tmp_path)


def test_diffusers_refuses_a_kohya_wan_file_with_layers_outside_the_blocks(tmp_path):
    model = tiny.build("wan")
    ref = tiny.reference(model, only=lambda name: "blocks." in name or name == "transformer.proj_out")
    with pytest.raises(IndexError):
        loaded(model, write(ref.lora, "kohya"), tmp_path)


def test_diffusers_refuses_a_kohya_wan_file_without_all_layers_of_a_block(tmp_path):
    model, ref = _only("wan", "transformer.blocks.0.attn1.to_q")
    with pytest.raises(KeyError):
        loaded(model, write(ref.lora, "kohya"), tmp_path)


def test_diffusers_refuses_a_native_lumina_file_without_all_layers_of_a_block(tmp_path):
    model, ref = _only("lumina2", *(f"transformer.layers.0.attn.to_{n}" for n in "qkv"), width="real")
    with pytest.raises(KeyError, match="attention.out"):
        loaded(model, write(ref.lora, "comfyui"), tmp_path)


def test_diffusers_refuses_a_native_lumina_file_with_layers_outside_the_blocks(tmp_path):
    model = tiny.build("lumina2", "real")
    ref = tiny.reference(model, only=lambda name: any(part in name for part in ("layers.", "refiner.", "x_embedder")))
    with pytest.raises(ValueError, match="x_embedder"):
        loaded(model, write(ref.lora, "comfyui"), tmp_path)


def test_diffusers_does_not_find_the_attention_of_native_z_image_files(tmp_path):
    model = tiny.build("z-image")
    ref = tiny.reference(model)
    got, said = loaded(model, write(ref.lora, "comfyui"), tmp_path)
    lost = {name for name in ref.deltas if ".attention." in name} | {name for name in ref.deltas if "all_" in name}
    assert ref.deltas.keys() - got.keys() == lost
    assert any("unexpected" in text or "did not match" in text for text in said)


@pytest.mark.parametrize(
    ("family", "form"),
    [
        *((f, "comfyui") for f in ("sd1", "sd2", "sdxl", "flux1", "chroma", "sd3")),
        ("sd3", "kohya"),
        ("lumina2", "kohya"),
    ],
)
def test_diffusers_has_no_reader_for_this_form(family, form, tmp_path):
    model = tiny.build(family)
    got, said = loaded(model, write(tiny.reference(model).lora, form), tmp_path)
    assert got == {}
    assert any("No LoRA keys associated" in text for text in said)


@pytest.mark.parametrize(
    "name", ["x_embedder", "context_embedder", "time_text_embed.text_embedder.linear_1", "norm_out.linear", "proj_out"]
)
def test_diffusers_drops_layers_outside_the_blocks_from_kohya_files_of_flux(name, tmp_path):
    model, ref = _only("flux1", f"transformer.{name}", "transformer.transformer_blocks.0.attn.to_out.0")
    got, _ = loaded(model, write(ref.lora, "kohya"), tmp_path)
    assert got.keys() == {"transformer.transformer_blocks.0.attn.to_out.0"}
