"""What PEFT makes of the adapter directories written here, and what is made here of PEFT's: the weight change of every layer."""

import json
import warnings

import pytest
import tiny
import torch
from lora_loom.convert import FormatError, peft_directories, read, write
from lora_loom.convert.families import FAMILIES
from lora_loom.convert.files.jobs import open_peft
from lora_loom.convert.lora import Lora, Module, applied, delta
from peft import LoHaConfig, LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from slow_rows import mostly_slow

EXACT = tiny.EXACT
# CLIPTextModel.named_modules() has no `text_model` since transformers 5.6; CLIPTextModelWithProjection still has.
FLAT = not any(path.startswith("text_model.") for path, _ in tiny.encoder("clip_l").named_modules())


def written(lora, folder):
    """Component -> directory of its adapter, as PEFT wants it."""
    places = {}
    for part, (state, config) in peft_directories(lora, flat_clip=FLAT).items():
        places[part] = folder / part
        places[part].mkdir()
        save_file(
            {k: v.contiguous() for k, v in state.items()}, places[part] / "adapter_model.safetensors", {"format": "pt"}
        )
        (places[part] / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return places


def loaded(model, places):
    """(PEFT models by component, complaints)"""
    with tiny.overheard() as said:
        return {part: PeftModel.from_pretrained(model.models[part], place) for part, place in places.items()}, said


# --- A: our directories in PEFT ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scales", mostly_slow(["mixed", "uniform"], lambda scales: scales == "mixed"))
@pytest.mark.parametrize("family", tiny.NAMES)
def test_peft_gives_every_layer_the_change_its_factors_stand_for(family, scales, tmp_path):
    model = tiny.build(family)
    ref = tiny.reference(model, scales)
    _, said = loaded(model, written(ref.lora, tmp_path))
    assert said == []
    worst, name = tiny.worst(tiny.lora_layers(model, "default"), ref.deltas)
    assert worst <= EXACT, name


@pytest.mark.parametrize("family", tiny.NAMES)
def test_peft_finds_no_key_it_does_not_expect(family, tmp_path):
    model = tiny.build(family)
    places = written(tiny.reference(model, "uniform").lora, tmp_path)
    peft_models, _ = loaded(model, places)
    for part, peft_model in peft_models.items():
        result = set_peft_model_state_dict(peft_model, load_file(places[part] / "adapter_model.safetensors"))
        assert result.unexpected_keys == []
        assert not [key for key in result.missing_keys if "lora_" in key]


@pytest.mark.parametrize("family", ["sd1", "sdxl", "flux1"])
def test_merging_in_peft_adds_exactly_the_changes(family, tmp_path):
    model = tiny.build(family)
    ref = tiny.reference(model, "uniform")
    before = {part: {k: v.clone() for k, v in m.state_dict().items()} for part, m in model.models.items()}
    peft_models, _ = loaded(model, written(ref.lora, tmp_path))
    merged = {part: m.merge_and_unload().state_dict() for part, m in peft_models.items()}
    keys = {(part, f"{path}.weight"): name for name, (part, path) in model.layers.items()}
    for part, state in merged.items():
        assert state.keys() == before[part].keys()
        for key, value in state.items():
            change = ref.deltas.get(keys.get((part, key)))
            if change is None:
                assert torch.equal(value, before[part][key]), key
            else:  # one sum of numbers of order 1 and 10 in float32, so an absolute bound beside the relative one
                torch.testing.assert_close(
                    value, (before[part][key].double() + change).float(), rtol=1e-6, atol=1e-6, msg=key
                )


@pytest.mark.parametrize("family", ["flux1", "chroma"])
def test_a_layer_at_the_top_does_not_lend_rank_and_alpha_to_its_namesakes_in_the_blocks(family, tmp_path):
    """PEFT matches patterns and targets at the end of a path too: `proj_out` fits the last layer and one in every single block."""
    model = tiny.build(family)
    lora = tiny.factors(model, "uniform", only=lambda name: name.endswith(("proj_out", "to_q")))
    top = lora.modules["transformer.proj_out"].parts
    lora.modules["transformer.proj_out"] = Module("lora", {"down": top["down"][:2], "up": top["up"][:, :2]}, 5.0)
    loaded(model, written(lora, tmp_path))
    worst, name = tiny.worst(tiny.lora_layers(model, "default"), {n: delta(m) for n, m in lora.modules.items()})
    assert worst <= EXACT, name


@pytest.mark.parametrize("family", ["flux1", "chroma"])
def test_a_lora_on_a_layer_at_the_top_adds_no_adapter_to_its_namesakes(family, tmp_path):
    model = tiny.build(family)
    ref = tiny.reference(model, only=lambda name: name == "transformer.proj_out")
    _, said = loaded(model, written(ref.lora, tmp_path))
    assert said == []
    worst, name = tiny.worst(tiny.lora_layers(model, "default"), ref.deltas)
    assert worst <= EXACT, name


def test_clip_paths_keep_text_model_unless_asked_for_flat_ones():
    lora = tiny.factors(tiny.build("sdxl"), only=lambda name: name.startswith("clip_"))
    paths = {
        flat: {part: next(iter(state)) for part, (state, _) in peft_directories(lora, flat_clip=flat).items()}
        for flat in (False, True)
    }
    assert all(key.startswith("base_model.model.text_model.encoder.layers.") for key in paths[False].values())
    assert paths[True]["text_encoder"].startswith("base_model.model.encoder.layers.")
    assert paths[True]["text_encoder_2"].startswith("base_model.model.text_model.encoder.layers.")


# --- B: PEFT's directories here ---------------------------------------------------------------------------------------------------------


def trained(model, config, folder):
    """Every component with a PEFT adapter of this config over all layers, random factors, saved by PEFT; (deltas, directory of directories)."""
    torch.manual_seed(5)
    for part in model.models:
        paths = [path for p, path in model.layers.values() if p == part]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # not every pattern has a layer in every component, and PEFT says so
            get_peft_model(model.models[part], config(paths)).save_pretrained(folder / part)
    return tiny.lora_layers(model, "default"), folder


PATTERNS = {
    "plain": {"lora_alpha": 6.0},
    "rank pattern": {
        "lora_alpha": 6.0,
        "rank_pattern": {"attn1.to_q": 2, "attn.to_q": 2, "fc1": 3, "conv1": 5, "proj_out": 6},
    },
    "alpha pattern": {
        "lora_alpha": 6.0,
        "alpha_pattern": {
            "attn1.to_q": 9.0,
            ".*to_out.0": 1.5,
            "q_proj": 3.0,
            r"(layers|blocks)\.\d+\.attn\d?\.to_v": 2.5,
        },
    },
    "anchored patterns": {
        "lora_alpha": 6.0,
        "rank_pattern": {"^proj_out": 2, "^conv_out": 2},
        "alpha_pattern": {"^proj_out": 9.0, "^conv_out": 9.0},
    },
    "rsLoRA": {"lora_alpha": 6.0, "use_rslora": True},
    "rsLoRA with patterns": {
        "lora_alpha": 6.0,
        "use_rslora": True,
        "rank_pattern": {"to_k": 9},
        "alpha_pattern": {"to_v": 2.0},
    },
}


SAVED = [
    pytest.param(
        (family, settings), marks=() if (n + k) % 3 == 0 else pytest.mark.slow
    )  # each family and each settings twice or more in every run
    for n, family in enumerate(tiny.NAMES)
    for k, settings in enumerate(PATTERNS)
]
WITH_ENCODERS = ("sd1", "sdxl", "flux1", "lumina2")


@pytest.fixture(
    scope="module",
    params=SAVED,
    ids=lambda p: f"{p[0]}-{p[1]}",
)
def saved(request, tmp_path_factory):
    """(family, deltas, directory of directories): the denoiser, and in WITH_ENCODERS the encoders, with an adapter of these settings."""
    family, settings = request.param
    model = tiny.build(family)
    if family not in WITH_ENCODERS:
        part = FAMILIES[family].component
        model.models = {part: model.models[part]}
    folder = tmp_path_factory.mktemp("saved")
    wanted, _ = trained(
        model,
        lambda paths: LoraConfig(r=4, init_lora_weights=False, target_modules=paths, **PATTERNS[settings]),
        folder,
    )
    return family, wanted, folder


def test_an_adapter_trained_by_peft_has_the_change_peft_gives_it(saved):
    family, wanted, folder = saved
    worst, name = tiny.worst({n: delta(m) for n, m in open_peft(folder, family).modules.items()}, wanted)
    assert worst <= EXACT, name


def test_the_tensors_and_config_of_a_denoiser_are_enough(saved):
    family, wanted, folder = saved
    part = FAMILIES[family].component
    config = json.loads((folder / part / "adapter_config.json").read_text(encoding="utf-8"))
    lora = read(load_file(folder / part / "adapter_model.safetensors"), config=config, family=family)
    worst, name = tiny.worst(
        {n: delta(m) for n, m in lora.modules.items()}, {n: d for n, d in wanted.items() if n.startswith(f"{part}.")}
    )
    assert worst <= EXACT, name


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2"])
def test_the_directory_of_a_text_encoder_alone_is_read(part, tmp_path):
    """PEFT writes paths relative to the model, so only the name of the directory says which encoder it is."""
    model = tiny.build("sdxl")
    model.models = {part: model.models[part]}
    wanted, folder = trained(
        model, lambda paths: LoraConfig(r=4, lora_alpha=6.0, init_lora_weights=False, target_modules=paths), tmp_path
    )
    worst, name = tiny.worst({n: delta(m) for n, m in open_peft(folder, "sdxl").modules.items()}, wanted)
    assert worst <= EXACT, name


# --- other kinds than LoRA --------------------------------------------------------------------------------------------------------------


def with_dora(model, seed=4):
    """A LoRA with magnitudes for every layer: the norms of the base weight, moved."""
    lora, rng = tiny.factors(model, "mixed"), torch.Generator().manual_seed(seed)
    for name, module in lora.modules.items():
        weight = model.module(name).weight
        norm = weight.flatten(1).norm(dim=1) * (0.5 + torch.rand(len(weight), generator=rng))
        lora.modules[name] = module.replaced(dora=norm.reshape(-1, *[1] * (weight.ndim - 1)))
    return lora


@pytest.mark.parametrize("family", ["sd1", "sdxl", "flux1"])
def test_a_dora_directory_merges_in_peft_to_the_weight_our_formula_gives(family, tmp_path):
    model = tiny.build(family)
    lora = with_dora(model)
    wanted = {name: applied(model.module(name).weight, m) for name, m in lora.modules.items()}
    peft_models, said = loaded(model, written(lora, tmp_path))
    assert said == []
    for peft_model in peft_models.values():
        peft_model.merge_and_unload()
    worst, name = tiny.worst({n: model.module(n).weight for n in lora.modules}, wanted)
    assert worst <= 2 * EXACT, name  # a norm over up to 400 numbers and a division on top of a delta


@pytest.mark.parametrize("family", ["sd1", "sdxl", "flux1"])
def test_a_dora_trained_by_peft_is_read_with_its_magnitudes(family, tmp_path):
    model = tiny.build(family)
    bases = {name: model.module(name).weight.clone() for name in model.layers}
    torch.manual_seed(6)
    merged = {}
    for part in model.models:
        paths = [path for p, path in model.layers.values() if p == part]
        peft_model = get_peft_model(
            model.models[part],
            LoraConfig(r=4, lora_alpha=6.0, use_dora=True, init_lora_weights=False, target_modules=paths),
        )
        with torch.no_grad():
            for key, value in peft_model.named_parameters():
                if "lora_magnitude_vector" in key:
                    value.mul_(0.5 + torch.rand_like(value))
        peft_model.save_pretrained(tmp_path / part)
        peft_model.merge_and_unload()
        merged |= {name: model.module(name).weight for name, (p, _) in model.layers.items() if p == part}
    lora = open_peft(tmp_path, family)
    worst, name = tiny.worst({n: applied(bases[n], m) for n, m in lora.modules.items()}, merged)
    assert worst <= 2 * EXACT, name


def test_magnitudes_over_inputs_are_refused_for_peft():
    lora = tiny.factors(tiny.build("sd1"), only=lambda name: name.endswith("ff.net.2"))
    lora.modules = {n: m.replaced(dora=torch.ones(1, m.shape[1])) for n, m in lora.modules.items()}
    with pytest.raises(FormatError, match="inputs"):
        peft_directories(lora)


def loha_state(model, rank_of, tucker=False, seed=7):
    """A LoHa for every layer, in canonical form; convolutions flat, or with Tucker cores for kernels above 1."""
    rng, modules = torch.Generator().manual_seed(seed), {}
    for n, name in enumerate(model.layers):
        (out, into, *kernel), rank = model.module(name).weight.shape, rank_of(n)
        if tucker and any(k > 1 for k in kernel):
            shapes = {
                "hada_w1_a": (rank, out),
                "hada_w1_b": (rank, into),
                "hada_w2_a": (rank, out),
                "hada_w2_b": (rank, into),
            }
            shapes |= {"hada_t1": (rank, rank, *kernel), "hada_t2": (rank, rank, *kernel)}
        else:
            flat = into * torch.Size(kernel).numel()
            shapes = {
                "hada_w1_a": (out, rank),
                "hada_w1_b": (rank, flat),
                "hada_w2_a": (out, rank),
                "hada_w2_b": (rank, flat),
            }
        modules[name] = Module(
            "loha", {k: torch.randn(s, generator=rng) for k, s in shapes.items()}, (1.0, 6.0, None, 2.5)[n % 4]
        )
    return Lora(model.family, modules)


@pytest.mark.parametrize(
    ("family", "tucker"), [("sd1", False), ("sd1", True), ("sdxl", False), ("sdxl", True), ("flux1", False)]
)
def test_a_loha_directory_has_the_same_change_in_peft(family, tucker, tmp_path):
    model = tiny.build(family)
    lora = loha_state(model, lambda n: (4, 2, 3)[n % 3], tucker)
    _, said = loaded(model, written(lora, tmp_path))
    assert said == []
    wanted = {n: delta(m).reshape(model.module(n).weight.shape) for n, m in lora.modules.items()}
    worst, name = tiny.worst(tiny.lora_layers(model, "default"), wanted)
    assert worst <= 2 * EXACT, name  # two products, multiplied


@pytest.mark.parametrize("effective", [False, True], ids=["flat", "tucker"])
@pytest.mark.parametrize("family", ["sd1", "sdxl", "flux1"])
def test_a_loha_trained_by_peft_has_the_change_peft_gives_it(family, effective, tmp_path):
    model = tiny.build(family)
    settings = {
        "rank_pattern": {"to_q": 2, "fc1": 3},
        "alpha_pattern": {"to_k": 9.0},
        "use_effective_conv2d": effective,
    }
    wanted, folder = trained(
        model, lambda paths: LoHaConfig(r=4, alpha=6.0, init_weights=False, target_modules=paths, **settings), tmp_path
    )
    got = {n: delta(m).reshape(wanted[n].shape) for n, m in open_peft(folder, family).modules.items()}
    worst, name = tiny.worst(got, wanted)
    assert worst <= 2 * EXACT, name


# --- there and back ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["kohya", "comfyui", "diffusers"])
@pytest.mark.parametrize("family", tiny.NAMES)
def test_a_lora_taken_to_peft_and_back_keeps_every_change_in_any_other_form(family, form, tmp_path):
    ref = tiny.reference(tiny.build(family))
    written(read(write(ref.lora, form), family=family), tmp_path)
    back = read(write(open_peft(tmp_path, family), form), family=family)
    worst, name = tiny.worst({n: delta(m) for n, m in back.modules.items()}, ref.deltas)
    assert worst <= EXACT, name
