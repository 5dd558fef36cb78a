"""Files we write, in every spelling the host reads, loaded by the host's own loader: no key left over, and the weights change as they should.

Key tests run on the published architectures on the meta device; effect tests on tiny models of the host with random weights.
"""

from __future__ import annotations

import functools
import math
import re

import comfy.sd
import comfy.utils
import full_size
import pytest
import torch
from comfy.sd1_clip import SD1ClipModel
from comfy.sdxl_clip import SDXLClipModel
from comfy.text_encoders.flux import FluxClipModel
from comfy.text_encoders.sd2_clip import SD2ClipModel
from comfy.text_encoders.sd3_clip import SD3ClipModel
from full_size import MODELS, TINY, State
from lora_loom.convert import read, trained, write
from lora_loom.convert.families import FAMILIES
from lora_loom.convert.lora import Module, applied, delta

STRENGTH = 0.7
# The host adds the change to the weight in float32 and we take the weight away again, so each element of the change carries a rounding error of
# up to 2^-24 = 6e-8 of the weight, which is about as large as the change; multiplying the factors adds a few times 6e-8 more.
EXACT = 1e-6


# --- keys: published architectures on the meta device ------------------------------------------------------------------------------------


@functools.cache
def native_file(name: str, t5: bool = False) -> State:
    """A rank-1 LoRA over every layer of a published model, by the host's native names."""
    model, text = full_size.build(name)
    rng = torch.Generator().manual_seed(0)
    named = {f"diffusion_model.{k}": s for k, s in full_size.layers(model.diffusion_model).items()}
    for key, shape in full_size.text_layers(text, t5).items():
        named[f"text_encoders.{key}"] = shape
    state = {}
    for key, shape in named.items():
        down, up = full_size.factors(shape, 1, rng)
        state |= {f"{key}.lora_A.weight": down.half(), f"{key}.lora_B.weight": up.half()}
    return state


@functools.cache
def lora_of(name: str, t5: bool = False):
    return read(native_file(name, t5))


def modules_in(state: State) -> list[str]:
    return [key for key in state if key.endswith((".lora_up.weight", ".lora_B.weight"))]


def weights_of(name: str, t5: bool = False) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights that a file over all layers has to reach, by the host's key."""
    model, text = full_size.build(name)
    denoiser = {f"diffusion_model.{k}.weight": s for k, s in full_size.layers(model.diffusion_model).items()}
    return denoiser | {f"{k}.weight": s for k, s in full_size.text_layers(text, t5).items()}


def require_whole(name: str, state: State, modules: int, t5: bool = False) -> None:
    """Every module of the file is loaded, every layer is reached, and each pair of factors fits its weight or its slice of it."""
    patches, messages = full_size.load(name, state)
    assert messages == []
    assert (len(modules_in(state)), len(patches)) == (modules, modules)
    shapes = weights_of(name, t5)
    covered = dict.fromkeys(shapes, 0)
    for target, adapter in patches.items():
        key, offset = (target, None) if isinstance(target, str) else (target[0], target[1])
        rows = offset[2] if offset else shapes[key][0]
        up, down = adapter.weights[:2]
        assert (up.shape[0], down[0].numel()) == (rows, math.prod(shapes[key][1:])), target
        covered[key] += rows
    assert covered == {key: shape[0] for key, shape in shapes.items()}


@pytest.mark.parametrize("name", MODELS)
def test_a_native_file_is_recognised_without_doubt(name):
    row, lora = MODELS[name], lora_of(name)
    assert (lora.family, lora.notes, lora.source) == (row.family, [], "comfyui")
    assert len(modules_in(native_file(name))) == row.native + row.text
    assert len(lora.modules) == row.split + row.text


@pytest.mark.parametrize("target", ["kohya", "comfyui", "diffusers"])
@pytest.mark.parametrize("name", MODELS)
def test_every_spelling_we_write_is_recognised_without_doubt(name, target):
    again = read(write(lora_of(name), target))
    assert (again.family, again.notes, again.source) == (MODELS[name].family, [], target)
    assert again.modules.keys() == lora_of(name).modules.keys()


SAME_ATTENTION = {"flux.1-dev", "chroma"}  # their blocks are the same size, so a file of blocks alone fits both


@pytest.mark.parametrize("name", MODELS)
def test_an_attention_only_file_is_recognised(name):
    words = ("attn", "attention.", "linear1", "linear2")
    state = {
        k: v
        for k, v in native_file(name).items()
        if k.startswith("diffusion_model.") and any(word in k for word in words)
    }
    lora = read(state)
    assert lora.family == ("flux1" if name in SAME_ATTENTION else MODELS[name].family)
    assert len(lora.notes) == (name in SAME_ATTENTION)


@pytest.mark.parametrize("target", ["kohya", "comfyui"])
@pytest.mark.parametrize("name", MODELS)
def test_comfyui_reads_every_module_of_the_native_spellings(name, target):
    require_whole(name, write(lora_of(name), target), MODELS[name].native + MODELS[name].text)


@pytest.mark.parametrize("name", MODELS)
def test_comfyui_reads_every_module_of_the_universal_file(name):
    row = MODELS[name]
    layers = row.split if FAMILIES[row.family].universal == "diffusers" else row.native
    require_whole(name, write(lora_of(name)), layers + row.text)


@pytest.mark.parametrize("name", [name for name, row in MODELS.items() if row.diffusers])
def test_comfyui_reads_every_module_of_the_diffusers_file(name):
    require_whole(name, write(lora_of(name), "diffusers"), MODELS[name].split + MODELS[name].text)


@pytest.mark.parametrize("target", ["universal", "kohya", "comfyui"])
@pytest.mark.parametrize("name", ["flux.1-dev", "chroma", "sd3-medium"])
def test_comfyui_reads_t5_layers(name, target):
    row, family = MODELS[name], FAMILIES[MODELS[name].family]
    split = (family.universal if target == "universal" else target) == "diffusers"
    require_whole(
        name, write(lora_of(name, t5=True), target), (row.split if split else row.native) + row.text + 24 * 7, t5=True
    )


def test_the_counts_the_field_knows():
    """278 and 788 layers lie in the blocks of the two UNets; 340 and 306 are the linear layers alone."""
    outside = ("input_blocks.0.0", "out.2", "time_embed.", "label_emb.")
    counts = {}
    for name in ("sd1.5", "sdxl", "sd3-medium", "wan2.1-1.3b"):
        shapes = full_size.layers(full_size.build(name)[0].diffusion_model)
        counts[name] = sum(not k.startswith(outside) for k in shapes), sum(len(s) == 2 for s in shapes.values())
    assert (counts["sd1.5"][0] + 72, counts["sdxl"][0] + 72 + 192) == (350, 1052)
    assert (counts["sd3-medium"][1] + 96, counts["wan2.1-1.3b"][1]) == (
        340,
        306,
    )  # 48 times q, k, v for one fused layer


def loaded_of(name: str, state: State) -> list[str]:
    """Modules of the file that the host does read, by their names."""
    _, messages = full_size.load(name, state)
    left = {message.removeprefix("lora key not loaded: ") for message in messages}
    assert left <= set(state)
    return [key for key in modules_in(state) if key not in left]


@pytest.mark.parametrize(
    ("name", "attention", "rest"), [("sd1.5", 128, 282 - 128), ("sd2.1", 128, 282 - 128), ("sdxl", 560, 234)]
)
def test_comfyui_reads_no_attention_layer_of_a_diffusers_unet_file(name, attention, rest):
    state = {k: v for k, v in write(lora_of(name), "diffusers").items() if k.startswith("unet.")}
    assert sum(".to_" in key for key in modules_in(state)) == attention
    loaded = loaded_of(name, state)
    assert [key for key in loaded if ".to_" in key] == []
    assert len(loaded) == rest


@pytest.mark.parametrize(("name", "modules"), [("wan2.1-1.3b", 307), ("wan2.1-i2v-14b", 489), ("lumina2", 244)])
def test_comfyui_reads_nothing_of_a_diffusers_file_for(name, modules):
    state = write(lora_of(name), "diffusers")
    assert len(modules_in(state)) == modules
    assert loaded_of(name, state) == []


def test_comfyui_reads_104_of_109_modules_of_a_diffusers_flux_2_file():
    state = write(lora_of("flux.2-klein-4b"), "diffusers")
    left = {
        key.removesuffix(".lora_B.weight") for key in set(modules_in(state)) - set(loaded_of("flux.2-klein-4b", state))
    }
    assert len(modules_in(state)) == 109
    assert left == {
        *(f"transformer.double_stream_modulation_{n}.linear" for n in ("img", "txt")), "transformer.single_stream_modulation.linear",
        *(f"transformer.time_guidance_embed.timestep_embedder.linear_{n}" for n in (1, 2)),
    }  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_what_a_run_exports_is_the_universal_file(name):
    exported, universal = trained(native_file(name), MODELS[name].family), write(lora_of(name))
    assert exported.keys() == universal.keys()
    assert all(torch.equal(exported[key], universal[key]) for key in universal)


def test_a_run_on_a_model_without_a_table_exports_what_the_host_reads():
    state = trained(native_file("flux.1-dev"), "no-such-family")
    require_whole("flux.1-dev", state, 314 + 72)


def test_comfyui_reads_the_text_projection_of_sdxl():
    down, up = full_size.factors((1280, 1280), 1, torch.Generator().manual_seed(0))
    name = "text_encoders.clip_g.transformer.text_projection"
    lora = read({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up})
    for target in ("kohya", "comfyui"):
        patches, messages = full_size.load("sdxl", write(lora, target))
        assert (list(patches), messages) == (["clip_g.transformer.text_projection.weight"], [])


# --- effects: tiny models with weights ----------------------------------------------------------------------------------------------------


def random_file(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> tuple[State, dict[str, torch.Tensor]]:
    """(a LoRA of mixed ranks and alphas over the named layers, the change of each layer at strength 1, in float64).

    Alphas stay near their rank, and one in five is missing, so every change is about as large as its weight.
    """
    rng = torch.Generator().manual_seed(seed)
    state, wanted = {}, {}
    for n, (key, shape) in enumerate(shapes.items()):
        rank = (1, 2, 4, 5)[n % 4]
        down, up = full_size.factors(shape, rank, rng)
        alpha = (None, 0.5 * rank, 1.0 * rank, 3.0, 2.5)[n % 5]
        state |= {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}
        if alpha is not None:
            state[f"{key}.alpha"] = torch.tensor(alpha)
        scale = 1.0 if alpha is None else alpha / rank
        wanted[key] = scale * (up.double().flatten(1) @ down.double().flatten(1)).view(shape)
    return state, wanted


def snapshot(patcher) -> State:
    return {key: value.clone() for key, value in patcher.model_state_dict().items()}


def patched(patcher, state: State, clip=None) -> tuple[State, State]:
    """(weights before, weights with the file at STRENGTH) of a model, or of a clip where one is given, as the host makes them.

    Asserts that the host complains about nothing and takes everything back afterwards.
    """
    before = snapshot(clip.patcher if clip else patcher)
    with torch.inference_mode(), full_size.logged() as messages:
        changed, changed_clip = comfy.sd.load_lora_for_models(patcher, clip, state, STRENGTH, STRENGTH)
        after = applied_by_host(changed_clip.patcher if clip else changed)
    assert messages == []
    restored = snapshot(clip.patcher if clip else patcher)
    assert all(torch.equal(before[key], restored[key]) for key in before)
    return before, after


def applied_by_host(patcher) -> State:
    cpu = torch.device("cpu")
    try:
        patcher.patch_model(device_to=cpu)
        return snapshot(patcher)
    finally:
        patcher.unpatch_model(device_to=cpu)


def require_changes(before: State, after: State, wanted: dict[str, torch.Tensor], tolerance: float = EXACT) -> None:
    """The weights named in `wanted` changed by STRENGTH times that, no other tensor changed."""
    assert wanted.keys() <= before.keys()
    wrong = {}
    for key, old in before.items():
        if key not in wanted:
            assert torch.equal(old, after[key]), key
            continue
        whole = STRENGTH * wanted[key].double().reshape(old.shape)
        error = float((after[key].double() - old.double() - whole).norm() / whole.norm())
        if not error <= tolerance:
            wrong[key] = error
    assert wrong == {}


def as_weights(wanted: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{key}.weight": value for key, value in wanted.items()}


def targets_of(family: str) -> list[str]:
    """What the host reads whole on a model without text encoders."""
    return [
        "universal",
        "kohya",
        "comfyui",
        *(["diffusers"] if family in {row.family for row in MODELS.values() if row.diffusers} else []),
    ]


EACH = [(name, target) for name in TINY for target in targets_of(TINY[name][0])]


@pytest.mark.parametrize(("name", "target"), EACH)
def test_a_native_file_changes_every_weight_as_trained(name, target):
    patcher = full_size.tiny(name)
    shapes = {f"diffusion_model.{k}": s for k, s in full_size.layers(patcher.model.diffusion_model).items()}
    state, wanted = random_file(shapes)
    before, after = patched(patcher, write(read(state, family=TINY[name][0]), target))
    require_changes(before, after, as_weights(wanted))


def flux1_names(name: str) -> bool:
    """Whether the host's map, which holds the names of several Flux models at once, means Flux.1 by this one."""
    return re.search(r"\.linear_(in|out)\.|to_qkv_mlp_proj|^single_.*attn\.to_out\.weight$", name) is None


def flux2_names(name: str) -> bool:
    return re.search(r"\.net\.|proj_mlp|^time_text_embed\.|^single_.*(proj_out|to_[qkv])\.weight$", name) is None


def host_map(name: str) -> dict[str, tuple[str, tuple[int, int, int] | None, bool]]:
    """diffusers layer -> (native weight, slice, whether the halves of its rows change places), in the host's words; for Lumina2 and Wan in ours."""
    patcher, (family, row) = full_size.tiny(name), TINY[name]
    config, shapes = row[1], full_size.layers(patcher.model.diffusion_model)
    if family in ("sd1", "sd2", "sdxl"):
        table = {
            k: v for k, v in comfy.utils.unet_to_diffusers(config).items() if not k.startswith("class_embedding.")
        }  # a second name of add_embedding
    elif family == "sd3":
        table = comfy.utils.mmdit_to_diffusers(config)
    elif family in ("flux1", "chroma", "flux2"):
        wanted = flux2_names if family == "flux2" else flux1_names
        table = {k: v for k, v in comfy.utils.flux_to_diffusers(config).items() if wanted(k)}
    elif family == "z-image":
        table = comfy.utils.z_image_to_diffusers(config)
    elif family == "lumina2":
        table = lumina2_map(list(shapes), config["dim"] // config["n_heads"])
    elif family == "wan":
        table = {f"{wan_name(k)}.weight": f"{k}.weight" for k in shapes}
    else:
        table = {f"{k}.weight": f"{k}.weight" for k in shapes}
    out = {}
    for key, to in table.items():
        native, offset, function = (to, None, None) if isinstance(to, str) else (*to, None)[:3]
        layer = native.removesuffix(".weight")
        if key.endswith(".weight") and layer in shapes:
            out[key.removesuffix(".weight")] = layer, offset, function is not None
    return out


def lumina2_map(shapes: list[str], head: int) -> dict:
    """By diffusers' convert_lumina2_to_diffusers: 6 query heads, then 2 key and 2 value heads, in one matrix."""
    ends = {
        "x_embedder": "x_embedder", "final_layer.adaLN_modulation.1": "norm_out.linear_1", "final_layer.linear": "norm_out.linear_2",
        "cap_embedder.1": "time_caption_embed.caption_embedder.1", "t_embedder.mlp.0": "time_caption_embed.timestep_embedder.linear_1",
        "t_embedder.mlp.2": "time_caption_embed.timestep_embedder.linear_2",
    }  # fmt: skip
    inner = (
        ("attention.out", "attn.to_out.0"),
        ("feed_forward.w", "feed_forward.linear_"),
        ("adaLN_modulation.1", "norm1.linear"),
    )
    table: dict = {}
    for native in shapes:
        if native.endswith("attention.qkv"):
            block = native.removesuffix("attention.qkv")
            for n, start, heads in (("q", 0, 6), ("k", 6, 2), ("v", 8, 2)):
                table[f"{block}attn.to_{n}.weight"] = f"{native}.weight", (0, start * head, heads * head)
            continue
        name = ends.get(native) or functools.reduce(lambda text, pair: text.replace(*pair), inner, native)
        table[f"{name}.weight"] = f"{native}.weight"
    return table


WAN_NAMES = {
    **{f"self_attn.{ours}": f"attn1.{theirs}" for ours, theirs in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0"))},
    **{f"cross_attn.{ours}": f"attn2.{theirs}" for ours, theirs in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0"))},
    "cross_attn.k_img": "attn2.add_k_proj", "cross_attn.v_img": "attn2.add_v_proj", "ffn.0": "ffn.net.0.proj", "ffn.2": "ffn.net.2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1", "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1", "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj", "patch_embedding": "patch_embedding", "head.head": "proj_out",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj", "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
}  # fmt: skip


def wan_name(native: str) -> str:
    """By diffusers' convert_wan_transformer_to_diffusers."""
    block = re.match(r"blocks\.\d+\.|", native)[0]
    return block + WAN_NAMES[native.removeprefix(block)]


def split_file(name: str) -> tuple[State, dict[str, torch.Tensor], set[str]]:
    """(a LoRA over the diffusers layers, the change of each native weight, diffusers layers the host's map lacks)."""
    patcher, family = full_size.tiny(name), FAMILIES[TINY[name][0]]
    native = full_size.layers(patcher.model.diffusion_model)
    table = host_map(name)
    shapes = {
        f"{family.component}.{k}": ((offset[2], *native[to][1:]) if offset else native[to])
        for k, (to, offset, _) in table.items()
    }
    state, changes = random_file(shapes, seed=1)
    wanted = {}
    for key, (to, offset, swap) in table.items():
        change = changes[f"{family.component}.{key}"]
        whole = wanted.setdefault(f"diffusion_model.{to}.weight", torch.zeros(native[to], dtype=torch.float64))
        start = offset[1] if offset else 0
        whole[start : start + len(change)] += change.roll(len(change) // 2, 0) if swap else change
    return state, wanted, set(native) - {to for to, _, _ in table.values()}


# Layers without a name in the host's map of diffusers names.
NOT_IN_HOST_MAP = {
    "Flux2": {"double_stream_modulation_img.lin", "double_stream_modulation_txt.lin", "single_stream_modulation.lin", "time_in.in_layer", "time_in.out_layer",
              "guidance_in.in_layer", "guidance_in.out_layer"},
    "Chroma": {f"distilled_guidance_layer.{n}" for n in ("in_proj", "out_proj", *(f"layers.{i}.{side}_layer" for i in (0, 1) for side in ("in", "out")))},
}  # fmt: skip


@pytest.mark.parametrize(("name", "target"), EACH)
def test_a_diffusers_file_changes_every_weight_as_trained(name, target):
    """Separate q, k, v of different rank and scale become one fused layer; the modulation halves change places."""
    state, wanted, missing = split_file(name)
    assert missing == NOT_IN_HOST_MAP.get(name, set())
    before, after = patched(full_size.tiny(name), write(read(state, family=TINY[name][0]), target))
    require_changes(before, after, wanted)


@pytest.mark.parametrize("name", [name for name in TINY if "diffusers" in targets_of(TINY[name][0])])
def test_a_conversion_does_what_the_original_does(name):
    """The file itself, alphas and all, through the host's loader, against each of our spellings of it."""
    state, _, _ = split_file(name)
    patcher, lora = full_size.tiny(name), read(state, family=TINY[name][0])
    before, original = patched(patcher, state)
    for target in targets_of(lora.family):
        _, after = patched(patcher, write(lora, target))
        changes = {
            key: (original[key].double() - old.double()) / STRENGTH
            for key, old in before.items()
            if not torch.equal(old, original[key])
        }
        require_changes(before, after, changes, 2 * EXACT)  # both sides are rounded


# --- other kinds of modules, on the tiny SD1.5 --------------------------------------------------------------------------------------------


def lokr(
    out: int, fan: int, rank: int, rng: torch.Generator, factored: str, kernel: tuple[int, ...] = ()
) -> dict[str, torch.Tensor]:
    """LoKr factors of 4 x 4 and out/4 x fan/4, the named ones as a product of two."""
    rand = lambda *shape: torch.randn(*shape, generator=rng) / shape[-1] ** 0.5
    one = {"lokr_w1_a": rand(4, rank), "lokr_w1_b": rand(rank, 4)} if "1" in factored else {"lokr_w1": rand(4, 4)}
    out, fan = out // 4, fan // 4
    if "2" in factored:
        return one | {"lokr_w2_a": rand(out, rank), "lokr_w2_b": rand(rank, fan * math.prod(kernel))}
    return one | {"lokr_w2": rand(out, fan, *kernel)}


def other_kinds(rng: torch.Generator) -> dict[str, Module]:
    """One module of every kind and form, by the diffusers path of a layer of the tiny SD1.5 (32 to 128 channels, 1x1 projections)."""
    rand = lambda *shape: torch.randn(*shape, generator=rng) / shape[-1] ** 0.5
    loha = lambda out, fan, rank: {
        f"hada_w{n}_{p}": rand(*((out, rank) if p == "a" else (rank, fan))) for n in (1, 2) for p in "ab"
    }
    block = "down_blocks.0.attentions.0.transformer_blocks.0"
    return {
        "down_blocks.0.resnets.0.conv1": Module("lora", {"down": rand(4, 32, 3, 3), "up": rand(32, 4, 1, 1)}, 2.0),
        "down_blocks.0.resnets.0.conv2": Module("lora", {"down": rand(4, 32, 1, 1), "mid": rand(4, 4, 3, 3), "up": rand(32, 4, 1, 1)}, 3.0),
        "down_blocks.1.resnets.0.conv2": Module("lora", {"down": rand(8, 64, 1, 1), "mid": rand(8, 8, 3, 3), "up": rand(64, 8, 1, 1)}),
        "down_blocks.0.downsamplers.0.conv": Module("lora", {"down": rand(2, 32, 3, 3), "up": rand(32, 2, 1, 1)}, 1.0),
        "down_blocks.1.resnets.0.conv_shortcut": Module("lora", {"down": rand(2, 32, 1, 1), "up": rand(64, 2, 1, 1)}, 5.0),
        f"{block}.attn1.to_q": Module("loha", loha(32, 32, 3), 1.5),
        f"{block}.attn2.to_k": Module("loha", loha(32, 48, 2)),
        "down_blocks.0.resnets.1.conv1": Module("loha", loha(32, 32 * 9, 4), 8.0),
        "down_blocks.0.resnets.1.conv2": Module(
            "loha",
            {**{f"hada_t{n}": rand(4, 4, 3, 3) for n in (1, 2)}, **{f"hada_w{n}_{p}": rand(4, 32) for n in (1, 2) for p in "ab"}},
            2.0,
        ),
        f"{block}.attn1.to_k": Module("lokr", lokr(32, 32, 2, rng, ""), None),
        f"{block}.attn1.to_v": Module("lokr", lokr(32, 32, 2, rng, "2"), 1.0),
        f"{block}.attn1.to_out.0": Module("lokr", lokr(32, 32, 3, rng, "12"), 2.0),
        f"{block}.attn2.to_q": Module("lokr", lokr(32, 32, 3, rng, "1"), 4.0),
        "down_blocks.1.resnets.1.conv1": Module("lokr", lokr(64, 64, 4, rng, "", (3, 3)), None),
        "down_blocks.1.resnets.1.conv2": Module("lokr", lokr(64, 64, 4, rng, "2", (3, 3)), 2.0),
        "mid_block.resnets.0.conv1": Module("full", {"diff": rand(128, 128, 3, 3)}),
    }  # fmt: skip


IN_FILE = {"down": "lora_down.weight", "up": "lora_up.weight", "mid": "lora_mid.weight", "dora": "dora_scale"}


def file_of(modules: dict[str, Module], name_of) -> State:
    state = {}
    for path, module in modules.items():
        state |= {f"{name_of(path)}.{IN_FILE.get(part, part)}": value for part, value in module.parts.items()}
        if module.alpha is not None:
            state[f"{name_of(path)}.alpha"] = torch.tensor(module.alpha)
    return state


def native_name(path: str) -> str:
    table = comfy.utils.unet_to_diffusers(TINY["SD15"][1][1])
    return f"diffusion_model.{table[f'{path}.weight'].removesuffix('.weight')}"


@pytest.mark.parametrize("spelling", ["kohya", "comfyui"])
@pytest.mark.parametrize("target", ["universal", "kohya", "comfyui"])
def test_every_kind_of_module_changes_its_weight_by_its_delta(spelling, target):
    modules = other_kinds(torch.Generator().manual_seed(2))
    names = {"kohya": lambda path: f"lora_unet_{path.replace('.', '_')}", "comfyui": native_name}[spelling]
    lora = read(file_of(modules, names), family="sd1")
    assert {name.removeprefix("unet."): m.kind for name, m in lora.modules.items()} == {
        path: m.kind for path, m in modules.items()
    }
    wanted = {f"{native_name(path)}.weight": delta(module) for path, module in modules.items()}
    before, after = patched(full_size.tiny("SD15"), write(lora, target))
    require_changes(before, after, wanted)


def test_the_host_gives_the_original_file_the_same_delta():
    """Without our writer in between: the host's reading of the file is the reference for `delta`."""
    modules = other_kinds(torch.Generator().manual_seed(2))
    before, after = patched(full_size.tiny("SD15"), file_of(modules, native_name))
    require_changes(before, after, {f"{native_name(path)}.weight": delta(module) for path, module in modules.items()})


def test_comfyui_skips_a_tucker_lokr():
    """Its Kronecker product asks for a view of an einsum's result, which has no such view; the layer stays as it is, with an error in the log."""
    rng, path = torch.Generator().manual_seed(5), "down_blocks.2.resnets.0.conv2"
    parts = {"lokr_w1": torch.randn(4, 4, generator=rng), "lokr_t2": torch.randn(4, 4, 3, 3, generator=rng)}
    parts |= {f"lokr_w2_{p}": torch.randn(4, 32, generator=rng) for p in "ab"}
    lora = read(file_of({path: Module("lokr", parts, 3.0)}, native_name), family="sd1")
    assert delta(lora.modules[f"unet.{path}"]).shape == (128, 128, 3, 3)
    patcher = full_size.tiny("SD15")
    before = snapshot(patcher)
    with torch.inference_mode(), full_size.logged() as messages:
        changed, _ = comfy.sd.load_lora_for_models(patcher, None, write(lora, "kohya"), STRENGTH, 0)
        after = applied_by_host(changed)
    assert len(messages) == 1
    assert messages[0].startswith(f"ERROR lokr {native_name(path)}.weight view size is not compatible")
    assert all(torch.equal(before[key], after[key]) for key in before)


def dora_file(axis: str) -> tuple[State, Module, str]:
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    rng = torch.Generator().manual_seed(3)
    down, up = full_size.factors((32, 48), 4, rng)
    magnitudes = 0.5 + torch.rand((32, 1) if axis == "output" else (1, 48), generator=rng)
    module = Module("lora", {"down": down, "up": up, "dora": magnitudes}, 2.0)
    state = file_of({path: module}, lambda path: f"lora_unet_{path.replace('.', '_')}")
    return state, module, f"{native_name(path)}.weight"


def test_the_note_on_dora_over_outputs_is_true_of_comfyui():
    state, module, key = dora_file("output")
    lora = read(state, family="sd1")
    assert [str(note) for note in lora.notes] == [
        "DoRA over outputs: PEFT and LyCORIS apply it as trained; ComfyUI and Forge divide by another norm (the change differs by 20 to 80 %); "
        "A1111 norms over inputs; diffusers ignores dora_scale."
    ]
    before, after = patched(full_size.tiny("SD15"), write(lora, "kohya"))
    asked = applied(before[key], module, STRENGTH) - before[key]
    assert (after[key] - before[key] - asked).norm() > 0.05 * asked.norm()
    assert all(torch.equal(before[k], after[k]) for k in before if k != key)


def test_the_note_on_dora_over_inputs_is_true_of_comfyui():
    state, module, key = dora_file("input")
    lora = read(state, family="sd1")
    assert [str(note) for note in lora.notes] == [
        "DoRA over inputs: exact in ComfyUI, Forge and A1111; PEFT has no such form; diffusers ignores dora_scale."
    ]
    for target in ("kohya", "comfyui"):
        before, after = patched(full_size.tiny("SD15"), write(lora, target))
        asked = (applied(before[key], module, STRENGTH) - before[key]) / STRENGTH
        require_changes(before, after, {key: asked}, 5 * EXACT)  # the norm, its eps and one more rounding on both sides


# --- files of the host's own trainer ------------------------------------------------------------------------------------------------------


def train_lora_file(algorithm: str, biases: bool) -> State:
    """What the host's "Train LoRA" node hands to "Save LoRA" for the tiny SD1.5, with random numbers in place of trained ones."""
    import comfy_extras.nodes_train as nodes_train

    with torch.inference_mode(False):
        patcher = full_size.tiny("SD15").clone()
        state, _ = nodes_train._setup_lora_adapters(patcher, {}, algorithm, torch.float32, 4)
    rng = torch.Generator().manual_seed(4)
    out = {}
    for key, value in state.items():
        if key.endswith((".diff", ".diff_b")) and not biases:
            continue
        scale = value.shape[-1] ** 0.5 if value.ndim > 1 else 10.0
        out[key] = value.detach().clone() if key.endswith(".alpha") else torch.randn(value.shape, generator=rng) / scale
    return out


@pytest.mark.parametrize("biases", [False, True], ids=["weights", "as-saved"])
@pytest.mark.parametrize("algorithm", ["LoRA", "LoHa", "LoKr"])
@pytest.mark.parametrize("target", ["kohya", "comfyui"])
def test_a_file_of_the_hosts_own_trainer_keeps_its_effect(algorithm, target, biases):
    """Its convolutions are saved flat, without metadata; as saved it also holds differences of norms and biases."""
    state = train_lora_file(algorithm, biases)
    patcher = full_size.tiny("SD15")
    before, original = patched(patcher, state)
    changed = {key for key, old in before.items() if not torch.equal(old, original[key])}
    layers = full_size.layers(patcher.model.diffusion_model)
    assert {f"diffusion_model.{name}.weight" for name in layers} <= changed
    assert biases == any(key.endswith(".bias") for key in changed)
    _, after = patched(patcher, write(read(state, family="sd1"), target))
    wanted = {key: (original[key].double() - before[key].double()) / STRENGTH for key in changed}
    require_changes(before, after, wanted, 2 * EXACT)  # both sides are rounded


# --- text encoders ------------------------------------------------------------------------------------------------------------------------

T5 = {"dtype_t5": torch.float32}
TEXT = {
    "sd1": (SD1ClipModel, {}),
    "sd2": (SD2ClipModel, {}),
    "sdxl": (SDXLClipModel, {}),
    "flux1": (FluxClipModel, T5),
    "sd3": (SD3ClipModel, T5),
}


@pytest.mark.parametrize(
    ("family", "target"), [(family, target) for family in TEXT for target in ("universal", "kohya", "comfyui")]
)
def test_a_file_changes_every_text_encoder_weight_as_trained(family, target):
    make, more = TEXT[family]
    clip = full_size.tiny_clip(make, **more)
    t5 = target != "universal"  # what becomes of T5 there is a test of its own
    shapes = full_size.text_layers(clip.cond_stage_model, t5)
    state, wanted = random_file({f"text_encoders.{key}": shape for key, shape in shapes.items()})
    before, after = patched(None, write(read(state, family=family), target), clip)
    require_changes(before, after, {f"{key}.weight": wanted[f"text_encoders.{key}"] for key in shapes})
