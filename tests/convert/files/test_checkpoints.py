"""Whole checkpoints, small but with the names of the real ones: what is baked in is what a sum by hand gives, and what is extracted is what was baked.

Where each layer lies in each layout is written down here by hand (`Place`); nothing of the package's tables is used to find it.
"""

import contextlib
import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lora_cases import dense, error, kohya, loha, lora, random
from lora_loom.convert import FormatError, Lora, Module, detect, loaders, patterns, read
from lora_loom.convert.families import FAMILIES
from lora_loom.convert.files import checkpoints
from lora_loom.convert.files.checkpoints import bake, checkpoint, extract, family_of
from lora_loom.convert.files.disk import load, save, save_folder
from lora_loom.convert.files.jobs import Options, Size, Taken, bake_file, extract_file, open_lora, write_lora
from lora_loom.convert.scales import unapplied
from lora_loom.convert.writers import write as kohya_write
from safetensors.torch import save_file


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a layer is stored: key, shape of its weight, first row in a fused matrix of so many rows, whether its halves are exchanged."""

    key: str
    shape: tuple[int, ...]
    start: int = 0
    rows: int = 0
    swap: bool = False

    def taken(self, stored: torch.Tensor) -> torch.Tensor:
        """The layer's own weight."""
        part = stored[self.start : self.start + self.shape[0]]
        return torch.cat([part[len(part) // 2 :], part[: len(part) // 2]]) if self.swap else part

    def put(self, stored: torch.Tensor, weight: torch.Tensor) -> None:
        stored[self.start : self.start + self.shape[0]] = (
            torch.cat([weight[len(weight) // 2 :], weight[: len(weight) // 2]]) if self.swap else weight
        )


def unet(prefix: str, context: int, conv_proj: bool) -> dict[str, Place]:
    one = (1, 1) if conv_proj else ()
    block, up = (
        f"{prefix}input_blocks.4.1",
        f"{prefix}output_blocks.3.1" if conv_proj or context == 1024 else f"{prefix}output_blocks.0.1",
    )
    ours, ours_up = (
        "unet.down_blocks.1.attentions.0",
        "unet.up_blocks.1.attentions.0" if context != 2048 else "unet.up_blocks.0.attentions.0",
    )
    return {
        f"{ours}.proj_in": Place(f"{block}.proj_in.weight", (16, 16, *one)),
        f"{ours}.transformer_blocks.0.attn1.to_q": Place(f"{block}.transformer_blocks.0.attn1.to_q.weight", (16, 16)),
        f"{ours}.transformer_blocks.0.attn2.to_k": Place(
            f"{block}.transformer_blocks.0.attn2.to_k.weight", (16, context)
        ),
        f"{ours}.transformer_blocks.0.ff.net.0.proj": Place(
            f"{block}.transformer_blocks.0.ff.net.0.proj.weight", (24, 16)
        ),
        f"{ours_up}.transformer_blocks.0.attn1.to_out.0": Place(
            f"{up}.transformer_blocks.0.attn1.to_out.0.weight", (16, 16)
        ),
        "unet.down_blocks.1.resnets.0.conv1": Place(f"{prefix}input_blocks.4.0.in_layers.2.weight", (16, 8, 3, 3)),
        "unet.mid_block.resnets.1.time_emb_proj": Place(f"{prefix}middle_block.2.emb_layers.1.weight", (16, 20)),
        "unet.conv_norm_out": Place(f"{prefix}out.0.weight", (16,)),
    }


def clip(prefix: str, encoder: str) -> dict[str, Place]:
    """A CLIP in transformers' words."""
    layer = "text_model.encoder.layers.1"
    shapes = {f"self_attn.{n}_proj": (12, 12) for n in ("q", "k", "v", "out")} | {
        "mlp.fc1": (48, 12),
        "mlp.fc2": (12, 48),
    }
    return {f"{encoder}.{layer}.{n}": Place(f"{prefix}{layer}.{n}.weight", s) for n, s in shapes.items()}


def open_clip(prefix: str, encoder: str) -> dict[str, Place]:
    """A CLIP in OpenCLIP's words, with q, k and v in one matrix."""
    ours, theirs = f"{encoder}.text_model.encoder.layers.1", f"{prefix}transformer.resblocks.1"
    fused = {
        f"{ours}.self_attn.{n}_proj": Place(f"{theirs}.attn.in_proj_weight", (12, 12), 12 * i, 36)
        for i, n in enumerate("qkv")
    }
    return fused | {
        f"{ours}.self_attn.out_proj": Place(f"{theirs}.attn.out_proj.weight", (12, 12)), f"{ours}.mlp.fc1": Place(f"{theirs}.mlp.c_fc.weight", (48, 12)),
        f"{ours}.mlp.fc2": Place(f"{theirs}.mlp.c_proj.weight", (12, 48)),
    }  # fmt: skip


def flux(prefix: str) -> dict[str, Place]:
    h, double, single = 8, "transformer.transformer_blocks.0", "transformer.single_transformer_blocks.1"
    out = {}
    for stream, names in (("img", ("to_q", "to_k", "to_v")), ("txt", ("add_q_proj", "add_k_proj", "add_v_proj"))):
        out |= {
            f"{double}.attn.{n}": Place(f"{prefix}double_blocks.0.{stream}_attn.qkv.weight", (h, h), h * i, 3 * h)
            for i, n in enumerate(names)
        }
    out |= {
        f"{single}.attn.{n}": Place(f"{prefix}single_blocks.1.linear1.weight", (h, h), h * i, 7 * h)
        for i, n in enumerate(("to_q", "to_k", "to_v"))
    }
    return out | {
        f"{single}.proj_mlp": Place(f"{prefix}single_blocks.1.linear1.weight", (4 * h, h), 3 * h, 7 * h),
        f"{single}.proj_out": Place(f"{prefix}single_blocks.1.linear2.weight", (h, 5 * h)),
        f"{double}.attn.to_out.0": Place(f"{prefix}double_blocks.0.img_attn.proj.weight", (h, h)),
        f"{double}.ff.net.0.proj": Place(f"{prefix}double_blocks.0.img_mlp.0.weight", (4 * h, h)),
        f"{double}.norm1.linear": Place(f"{prefix}double_blocks.0.img_mod.lin.weight", (6 * h, h)),
        "transformer.x_embedder": Place(f"{prefix}img_in.weight", (h, 4)),
        "transformer.time_text_embed.guidance_embedder.linear_1": Place(
            f"{prefix}guidance_in.in_layer.weight", (h, 20)
        ),
        "transformer.norm_out.linear": Place(f"{prefix}final_layer.adaLN_modulation.1.weight", (2 * h, h), swap=True),
        "transformer.proj_out": Place(f"{prefix}final_layer.linear.weight", (4, h)),
    }


def t5(prefix: str) -> dict[str, Place]:
    names = ("layer.0.SelfAttention.q", "layer.1.DenseReluDense.wo")
    return {f"t5xxl.encoder.block.3.{n}": Place(f"{prefix}encoder.block.3.{n}.weight", (10, 10)) for n in names}


def foldered(places: dict[str, Place], components: dict[str, str]) -> dict[str, Place]:
    """The same layers in a diffusers folder: under their canonical names, each a matrix of its own."""
    out = {}
    for name, place in places.items():
        part, path = name.split(".", 1)
        out[name] = Place(f"{components[part]}/{path}.weight", place.shape)
    return out


_DENOISER = "model.diffusion_model."
LAYOUTS: dict[str, tuple[str, dict[str, Place]]] = {
    "sd1": ("sd1", unet(_DENOISER, 768, True) | clip("cond_stage_model.transformer.", "clip_l")),
    "sd2": ("sd2", unet(_DENOISER, 1024, False) | open_clip("cond_stage_model.model.", "clip_h")),
    "sdxl": (
        "sdxl",
        unet(_DENOISER, 2048, False) | clip("conditioner.embedders.0.transformer.", "clip_l") | open_clip("conditioner.embedders.1.model.", "clip_g"),
    ),
    "flux1": ("flux1", flux("") | clip("text_encoders.clip_l.transformer.", "clip_l") | t5("text_encoders.t5xxl.transformer.")),
    "flux1-prefixed": ("flux1", flux(_DENOISER)),
}  # fmt: skip
LAYOUTS |= {
    "sd1-folder": ("sd1", foldered(LAYOUTS["sd1"][1], {"unet": "unet", "clip_l": "text_encoder"})),
    "sdxl-folder": (
        "sdxl",
        foldered(LAYOUTS["sdxl"][1], {"unet": "unet", "clip_l": "text_encoder", "clip_g": "text_encoder_2"}),
    ),
    "flux1-folder": (
        "flux1",
        foldered(
            LAYOUTS["flux1"][1], {"transformer": "transformer", "clip_l": "text_encoder", "t5xxl": "text_encoder_2"}
        ),
    ),
}
# Layers of other parts, and kinds of tensors that no LoRA touches.
EXTRA = {
    "first_stage_model.decoder.conv_in.weight": random(90, 4, 4, 3, 3),
    "first_stage_model.position": torch.arange(7),
}


def weights(
    layout: str, dtype: torch.dtype = torch.float32, seed: int = 0, biases: bool = True
) -> dict[str, torch.Tensor]:
    """A checkpoint in a layout; every fused matrix and every second layer has a bias."""
    out: dict[str, torch.Tensor] = {}
    for n, place in enumerate(LAYOUTS[layout][1].values()):
        if place.key not in out:
            rows = place.rows or place.shape[0]
            out[place.key] = random(seed + n, rows, *place.shape[1:], dtype=dtype)
            if biases and (place.rows or n % 2 == 0):
                out[bias_of(place.key)] = random(seed + 500 + n, rows, dtype=dtype)
    if layout.endswith("folder"):
        return out
    return out | {k: v.to(dtype) if v.is_floating_point() else v for k, v in EXTRA.items()}


def bias_of(key: str) -> str:
    return key.removesuffix("weight") + "bias"


def write(path: Path, state: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Path:
    """A single file, or a diffusers folder for keys with a `/`."""
    if not any("/" in key for key in state):
        save(path, state, metadata)
        return path
    for part in {key.partition("/")[0] for key in state}:
        name = "model" if part.startswith("text") else "diffusion_pytorch_model"
        save(
            path / part / f"{name}.safetensors",
            {k.partition("/")[2]: v for k, v in state.items() if k.startswith(f"{part}/")},
            {"format": "pt"},
        )
        (path / part / "config.json").write_text("{}")
    (path / "model_index.json").write_text('{"_class_name": "Pipeline"}')
    (path / "vae").mkdir()
    save(path / "vae" / "diffusion_pytorch_model.safetensors", EXTRA)
    return path


def stored(path: Path) -> dict[str, torch.Tensor]:
    """What is in a file or folder, by key."""
    if path.is_file():
        return load(path)[0]
    return {
        f"{file.parent.name}/{k}": v
        for file in path.rglob("*.safetensors")
        for k, v in load(file)[0].items()
        if file.parent.name != "vae"
    }


def a_lora(
    layout: str, rank: int = 2, seed: int = 0, alpha: float | None = 1.0, only: str = "", biases: bool = False
) -> Lora:
    """A LoRA over every layer of a layout whose name contains `only`; a full difference over norms."""
    family, places = LAYOUTS[layout]
    modules = {}
    for n, (name, place) in enumerate(places.items()):
        if only not in name:
            continue
        if len(place.shape) == 1:
            modules[name] = Module("full", {"diff": 0.1 * random(seed + n, *place.shape)})
        else:
            modules[name] = lora(*place.shape[:2], rank=rank, alpha=alpha, kernel=place.shape[2:], seed=seed + n)
        if biases and (place.rows or n % 2 == 0):
            modules[name] = modules[name].replaced(diff_b=random(seed + 700 + n, place.shape[0]))
    return Lora(family, modules)


def by_hand(before: dict[str, torch.Tensor], layout: str, loras: list[tuple[Lora, float]]) -> dict[str, torch.Tensor]:
    """The checkpoint with the LoRAs added, in float64: base + strength * change, for DoRA the rescaled weight in place of base + change."""
    out = {k: v.double() for k, v in before.items()}
    for one, strength in loras:
        for name, module in one.modules.items():
            place = LAYOUTS[layout][1][name]
            if module.kind != "full" or "diff" in module.parts:
                base = place.taken(out[place.key])
                change = dense(module).reshape(base.shape)
                if "dora" in module.parts:
                    new = base + change
                    kept = (
                        0 if module.parts["dora"].shape[0] > 1 else 1
                    )  # the dimension that has a magnitude for each index
                    norm = new.square().sum([d for d in range(base.ndim) if d != kept], keepdim=True).sqrt()
                    change = new / norm * module.parts["dora"].double().reshape(norm.shape) - base
                place.put(out[place.key], base + strength * change)
            if "diff_b" in module.parts:
                key = bias_of(place.key)
                place.put(out[key], place.taken(out[key]) + strength * module.parts["diff_b"].double())
    return out


def same(got: dict[str, torch.Tensor], before: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> int:
    """Asserts types, untouched bits, and every changed weight; returns how many tensors changed."""
    assert set(got) == set(before)
    changed = 0
    for key, old in before.items():
        assert (got[key].dtype, got[key].shape) == (old.dtype, old.shape), key
        if torch.equal(wanted[key], old.double()):
            assert torch.equal(got[key].view(torch.uint8), old.view(torch.uint8)), key
            continue
        changed += 1
        # Half a unit in the last place of the stored type, and float32 arithmetic on sums of numbers of order 1 to 10 before it.
        torch.testing.assert_close(
            got[key].double(),
            wanted[key],
            rtol=torch.finfo(old.dtype).eps / 2 * 1.001,
            atol=3e-6,
            msg=lambda m, k=key: f"{k}: {m}",
        )
    return changed


def digest(path: Path) -> dict[str, str]:
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


# --- baking -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_family_of_a_checkpoint_is_told_by_its_layers(layout, tmp_path):
    path = write(tmp_path / "base.safetensors", weights(layout))
    with checkpoint(path) as (entries, _, _):
        assert family_of(entries).name == LAYOUTS[layout][0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_weight_is_base_plus_strength_times_change_and_others_keep_their_bits(layout, dtype, tmp_path):
    before = weights(layout, dtype)
    source, target = write(tmp_path / "base.safetensors", before), tmp_path / "baked.safetensors"
    loras = [(a_lora(layout, biases=True), 0.75)]
    kept = digest(source)
    counts = bake(source, target, loras)
    changed = same(stored(target), before, by_hand(before, layout, loras))
    assert changed == counts.changed >= len({p.key for p in LAYOUTS[layout][1].values()})
    assert counts.tensors == len(before)
    assert digest(source) == kept


@pytest.mark.parametrize("layout", ["sd1", "sdxl", "flux1", "sd1-folder"])
def test_two_loras_are_added_at_their_strengths(layout, tmp_path):
    before = weights(layout, torch.float16)
    source = write(tmp_path / "base.safetensors", before)
    loras = [(a_lora(layout, rank=3, alpha=None), 0.5), (a_lora(layout, seed=300, alpha=-4.0), -1.25)]
    bake(source, tmp_path / "baked.safetensors", loras)
    same(stored(tmp_path / "baked.safetensors"), before, by_hand(before, layout, loras))


@pytest.mark.parametrize(
    ("layout", "only"),
    [
        ("sd2", "k_proj"),
        ("sdxl", "q_proj"),
        ("sdxl", "v_proj"),
        ("flux1", "to_v"),
        ("flux1", "proj_mlp"),
        ("flux1", "to_q"),
    ],
)
def test_a_lora_over_part_of_a_fused_matrix_changes_only_its_rows(layout, only, tmp_path):
    before, one = weights(layout), a_lora(layout, only=only)
    bake(write(tmp_path / "base.safetensors", before), tmp_path / "baked.safetensors", [(one, 1.0)])
    same(stored(tmp_path / "baked.safetensors"), before, by_hand(before, layout, [(one, 1.0)]))


def test_parts_of_a_fused_matrix_may_have_ranks_and_alphas_of_their_own(tmp_path):
    names = [
        n for n in LAYOUTS["flux1"][1] if n.startswith("transformer.single_transformer_blocks") and "proj_out" not in n
    ]
    shapes = [LAYOUTS["flux1"][1][n].shape for n in names]
    modules = {
        n: lora(*s, rank=1 + i, alpha=(None, 2.0, -3.0, 0.5)[i], seed=i) for i, (n, s) in enumerate(zip(names, shapes))
    }
    before, one = weights("flux1"), Lora("flux1", modules)
    bake(write(tmp_path / "base.safetensors", before), tmp_path / "baked.safetensors", [(one, 0.5)])
    assert same(stored(tmp_path / "baked.safetensors"), before, by_hand(before, "flux1", [(one, 0.5)])) == 1


Q, CONV = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", "unet.down_blocks.1.resnets.0.conv1"
OUT0 = "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0"
PROJ = "unet.down_blocks.1.attentions.0.proj_in"
FC1, QUERY = (f"clip_l.text_model.encoder.layers.1.{n}" for n in ("mlp.fc1", "self_attn.q_proj"))


def kron(shape: tuple[int, ...]) -> Module:
    """A LoKr over a layer whose sides are multiples of 4."""
    parts = {
        "lokr_w1": random(1, 4, 4),
        "lokr_w2_a": random(2, shape[0] // 4, 2),
        "lokr_w2_b": random(3, 2, shape[1] // 4),
    }
    return Module("lokr", parts, 3.0)


def flat(module: Module) -> dict[str, Module]:
    """A module over the convolution as LyCORIS writes it, (out, rank) and (rank, in * 9), read from a file."""
    return read(kohya("lora_unet_down_blocks_1_resnets_0_conv1", module), family="sd1").modules


ADAPTERS = {
    "loha": {Q: loha(16, 16, 2, 0.5), PROJ: loha(16, 16, 2, 1.0), FC1: loha(48, 12, 3), CONV: loha(16, 8, 2, 0.5, (3, 3), tucker=True)},
    "loha over a convolution": flat(loha(16, 8, 2, 0.5, (3, 3))),
    "lokr": {Q: kron((16, 16)), FC1: kron((48, 12))},
    "lokr of two matrices": {Q: Module("lokr", {"lokr_w1": random(1, 4, 2), "lokr_w2": random(2, 4, 8)})},
    "lokr over a convolution": flat(Module("lokr", {"lokr_w1": random(1, 4, 2), "lokr_w2_a": random(2, 4, 3), "lokr_w2_b": random(3, 3, 4 * 9)}, 1.0)),
    "tucker": {CONV: lora(16, 8, 3, 2.0, (3, 3), tucker=True)},
    "full": {Q: Module("full", {"diff": random(4, 16, 16)}), CONV: Module("full", {"diff": random(5, 16, 8, 3, 3)})},
    "bias": {OUT0: Module("full", {"diff_b": random(6, 16)})},
    "dora over outputs": {Q: lora(16, 16, 2, 1.0).replaced(dora=random(7, 16, 1).abs() + 0.5),
        CONV: lora(16, 8, 2, 1.0, (3, 3)).replaced(dora=random(8, 16, 1, 1, 1))},
    "dora over inputs": {Q: lora(16, 16, 2, 1.0).replaced(dora=random(7, 1, 16).abs() + 0.5),
        CONV: lora(16, 8, 2, 1.0, (3, 3)).replaced(dora=random(8, 1, 8, 1, 1))},
    "dora of a loha": {FC1: loha(48, 12, 2, 1.0).replaced(dora=random(9, 48, 1).abs())},
}  # fmt: skip


@pytest.mark.parametrize("strength", [1.0, -0.4])
@pytest.mark.parametrize("name", ADAPTERS)
def test_every_kind_of_adapter_is_baked_by_its_definition(name, strength, tmp_path):
    before, one = weights("sd1"), Lora("sd1", ADAPTERS[name])
    bake(write(tmp_path / "base.safetensors", before), tmp_path / "baked.safetensors", [(one, strength)])
    assert same(stored(tmp_path / "baked.safetensors"), before, by_hand(before, "sd1", [(one, strength)])) == len(
        ADAPTERS[name]
    )


def of_lycoris(module: Module, weight: torch.Tensor) -> torch.Tensor:
    """The changed weight after LyCORIS' own module."""
    from lycoris.modules import get_module, make_module
    from lycoris.modules.ia3 import IA3Module

    layer = (
        torch.nn.Linear(*weight.shape[::-1])
        if weight.ndim == 2
        else torch.nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2:])
    )
    layer.weight.data.copy_(weight)
    if module.kind == "ia3":  # its loader passes one value too many
        made = IA3Module("x", layer, train_on_input=bool(module.parts["on_input"]))
        made.weight.data.copy_(module.parts["weight"])
    else:
        made = make_module(
            *get_module(kohya_write(Lora("unknown", {"lora_x": module}), "kohya"), "lora_x"), "lora_x", layer
        )
    return made.get_merged_weight()[0].detach()


RELATIVE = {
    "oft": {Q: Module("oft", {"oft_blocks": 0.3 * random(1, 4, 4, 4)}), CONV: Module("oft", {"oft_blocks": 0.3 * random(2, 8, 2, 2)})},
    "oft with rescale": {Q: Module("oft", {"oft_blocks": 0.3 * random(1, 4, 4, 4), "rescale": 1 + 0.2 * random(5, 16, 1)})},
    "boft": {Q: Module("boft", {"oft_blocks": 0.3 * random(1, 3, 4, 4, 4)}), CONV: Module("boft", {"oft_blocks": 0.3 * random(2, 4, 8, 2, 2)})},
    "glora": {Q: Module("glora", {"a1": random(1, 16, 2), "a2": random(2, 2, 16), "b1": random(3, 16, 2), "b2": random(4, 2, 16)}, 1.0),
        CONV: Module("glora", {"a1": random(1, 8, 2, 1, 1), "a2": random(2, 2, 8, 1, 1), "b1": random(3, 16, 2, 1, 1), "b2": random(4, 2, 8, 3, 3)}, 1.0)},
    "ia3": {Q: Module("ia3", {"weight": random(1, 16), "on_input": torch.tensor(0.0)}),
        CONV: Module("ia3", {"weight": random(1, 1, 16, 1, 1), "on_input": torch.tensor(0.0)})},
    "ia3 on inputs": {Q: Module("ia3", {"weight": random(1, 16), "on_input": torch.tensor(1.0)}),
        CONV: Module("ia3", {"weight": random(1, 1, 8, 1, 1), "on_input": torch.tensor(1.0)})},
}  # fmt: skip


@pytest.mark.parametrize("name", RELATIVE)
def test_kinds_that_depend_on_the_weight_are_baked_as_lycoris_merges_them(name, tmp_path):
    before = {key: value.float() for key, value in weights("sd1").items()}
    bake(
        write(tmp_path / "base.safetensors", before),
        tmp_path / "baked.safetensors",
        [(Lora("sd1", RELATIVE[name]), 1.0)],
    )
    after = stored(tmp_path / "baked.safetensors")
    places = LAYOUTS["sd1"][1]
    changed = {places[layer].key: module for layer, module in RELATIVE[name].items()}
    assert {key for key in before if not torch.equal(before[key], after[key])} == changed.keys()
    for key, module in changed.items():
        # float32 on both sides; a rotation solves a small system
        torch.testing.assert_close(after[key], of_lycoris(module, before[key]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", RELATIVE)
def test_a_strength_that_programs_disagree_on_is_refused_and_others_are_part_of_the_change(name, tmp_path):
    before, one = {key: value.float() for key, value in weights("sd1").items()}, Lora("sd1", RELATIVE[name])
    base = write(tmp_path / "base.safetensors", before)
    if "oft" in name:
        with pytest.raises(
            FormatError, match=r"weight: strength 0.5 is not defined for B?OFT alike in all programs; use 1"
        ):
            bake(base, tmp_path / "half.safetensors", [(one, 0.5)])
        assert not (tmp_path / "half.safetensors").exists()
        return
    bake(base, tmp_path / "half.safetensors", [(one, 0.5)])
    bake(base, tmp_path / "whole.safetensors", [(one, 1.0)])
    half, whole = stored(tmp_path / "half.safetensors"), stored(tmp_path / "whole.safetensors")
    for key in before:
        torch.testing.assert_close(half[key] - before[key], (whole[key] - before[key]) / 2, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strength", [1.0, 0.3])
def test_dora_loha_and_full_differences_over_fused_matrices_are_baked_by_their_definitions(strength, tmp_path):
    names = [f"transformer.transformer_blocks.0.attn.{n}" for n in ("to_q", "to_k", "to_v")]
    texts = [f"transformer.transformer_blocks.0.attn.{n}" for n in ("add_q_proj", "add_k_proj", "add_v_proj")]
    single = [
        f"transformer.single_transformer_blocks.1.{n}" for n in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    ]
    places = LAYOUTS["flux1"][1]
    modules = {
        n: lora(8, 8, 2, 1.0, seed=i).replaced(dora=random(40 + i, 8, 1).abs() + 0.5) for i, n in enumerate(names)
    }
    modules |= {
        n: Module("full", {"diff": random(50 + i, 8, 8), "diff_b": random(60 + i, 8)}) for i, n in enumerate(texts)
    }
    modules |= {n: loha(*places[n].shape, rank=2, alpha=float(1 + i), seed=70 + i) for i, n in enumerate(single)}
    modules["transformer.norm_out.linear"] = lora(16, 8, 2, 1.0).replaced(dora=random(80, 16, 1).abs() + 0.5)
    before, one = weights("flux1"), Lora("flux1", modules)
    bake(write(tmp_path / "base.safetensors", before), tmp_path / "baked.safetensors", [(one, strength)])
    assert same(stored(tmp_path / "baked.safetensors"), before, by_hand(before, "flux1", [(one, strength)])) == 5


def test_a_lora_of_strength_zero_changes_no_bit(tmp_path):
    before = weights("sd1", torch.float16)
    bake(write(tmp_path / "base.safetensors", before), tmp_path / "baked.safetensors", [(a_lora("sd1"), 0.0)])
    after = stored(tmp_path / "baked.safetensors")
    assert all(torch.equal(after[k], v) for k, v in before.items())


def test_a_file_of_mixed_types_keeps_each(tmp_path):
    before = {
        k: v.to((torch.float16, torch.bfloat16, torch.float32)[n % 3]) if v.is_floating_point() else v
        for n, (k, v) in enumerate(weights("sd1").items())
    }
    loras = [(a_lora("sd1", biases=True), 1.0)]
    bake(write(tmp_path / "base.safetensors", before), tmp_path / "baked.safetensors", loras)
    same(stored(tmp_path / "baked.safetensors"), before, by_hand(before, "sd1", loras))


def test_small_types_that_no_lora_touches_are_copied(tmp_path):
    before = weights("sd1") | {"first_stage_model.small.weight": random(1, 4, 4).to(torch.float8_e4m3fn)}
    bake(
        write(tmp_path / "base.safetensors", before),
        tmp_path / "baked.safetensors",
        [(a_lora("sd1", only="attn1"), 1.0)],
    )
    after = stored(tmp_path / "baked.safetensors")["first_stage_model.small.weight"]
    assert torch.equal(after.view(torch.uint8), before["first_stage_model.small.weight"].view(torch.uint8))


@pytest.fixture
def lora_file(tmp_path):
    return write_lora(a_lora("sd1"), tmp_path / "style.safetensors", Options(dtype="fp32")).path


def test_the_header_keeps_what_it_says_names_what_was_merged_and_drops_stale_hashes(lora_file, tmp_path):
    said = {"modelspec.title": "base", "sshs_model_hash": "x", "modelspec.hash_sha256": "y", "own": "z"}
    source = write(tmp_path / "base.safetensors", weights("sd1"), said)
    written = bake_file(source, [(lora_file, 0.5)], tmp_path / "baked.safetensors")
    _, metadata = load(written.path)
    assert metadata == {"modelspec.title": "base", "own": "z", "modelspec.merged_from": "base, style (0.5)"}
    assert any("tensors changed" in str(note) for note in written.notes)


# --- folders ------------------------------------------------------------------------------------------------------------------------------


def test_a_folder_is_written_as_a_folder_of_the_same_files(tmp_path):
    before = weights("sdxl-folder", torch.float16)
    source, target = write(tmp_path / "model", before), tmp_path / "baked"
    bake(source, target, [(a_lora("sdxl-folder"), 1.0)])
    assert {str(p.relative_to(target)) for p in target.rglob("*")} == {
        str(p.relative_to(source)) for p in source.rglob("*")
    }
    for name in ("model_index.json", "unet/config.json", "vae/diffusion_pytorch_model.safetensors"):
        assert (target / name).read_bytes() == (source / name).read_bytes()
    assert load(target / "unet" / "diffusion_pytorch_model.safetensors")[1] == {"format": "pt"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["baked", "model"]


def sharded(folder: Path) -> list[str]:
    """Divides a folder's UNet over two files with an index, as diffusers does with large ones."""
    state, _ = load(folder / "unet" / "diffusion_pytorch_model.safetensors")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    names, place = [f"diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)], {}
    for n, name in enumerate(names):
        part = {k: v for i, (k, v) in enumerate(sorted(state.items())) if i % 2 == n}
        save(folder / "unet" / name, part, {"format": "pt"})
        place |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 1}, "weight_map": place}
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    return names


def test_a_folder_of_several_weight_files_is_baked_file_by_file(tmp_path):
    before = weights("sd1-folder", torch.float16)
    source, target = write(tmp_path / "model", before), tmp_path / "baked"
    names = sharded(source)
    loras = [(a_lora("sd1-folder"), 0.5)]
    bake(source, target, loras)
    same(stored(target), before, by_hand(before, "sd1-folder", loras))
    for name in names:
        assert set(load(target / "unet" / name)[0]) == set(load(source / "unet" / name)[0])


def test_an_index_that_names_a_missing_file_or_is_none_is_refused(tmp_path):
    source = write(tmp_path / "model", weights("sd1-folder"))
    names = sharded(source)
    (source / "unet" / names[1]).unlink()
    with pytest.raises(FormatError, match=names[1]):
        bake(source, tmp_path / "baked", [(a_lora("sd1-folder"), 1.0)])
    index = source / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    for text in ("no json", "[]", '{"weight_map": 3}'):
        index.write_text(text)
        with pytest.raises(FormatError, match=index.name):
            bake(source, tmp_path / "baked", [(a_lora("sd1-folder"), 1.0)])
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_the_full_weights_are_read_where_an_fp16_variant_lies_beside_them(tmp_path):
    before = weights("sd1-folder")
    source = write(tmp_path / "model", before)
    unet_ = {k.removeprefix("unet/"): v for k, v in before.items() if k.startswith("unet/")}
    save(source / "unet" / "diffusion_pytorch_model.fp16.safetensors", {k: (7 * v).half() for k, v in unet_.items()})
    save(source / "unet" / "diffusion_pytorch_model.non_ema.safetensors", {k: -v for k, v in unet_.items()})
    loras = [(a_lora("sd1-folder"), 0.5)]
    bake(source, tmp_path / "baked", loras)
    got, wanted = (
        load(tmp_path / "baked" / "unet" / "diffusion_pytorch_model.safetensors")[0],
        by_hand(before, "sd1-folder", loras),
    )
    same(got, unet_, {k.removeprefix("unet/"): v for k, v in wanted.items() if k.startswith("unet/")})


def test_a_folder_with_the_fp16_variant_alone_is_read(tmp_path):
    before = weights("sd1-folder", torch.float16)
    source = write(tmp_path / "model", before)
    for file in source.rglob("*.safetensors"):
        file.rename(file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))
    loras = [(a_lora("sd1-folder"), 0.5)]
    bake(source, tmp_path / "baked", loras)
    same(stored(tmp_path / "baked"), before, by_hand(before, "sd1-folder", loras))
    assert (tmp_path / "baked" / "unet" / "diffusion_pytorch_model.fp16.safetensors").exists()


@pytest.mark.parametrize(("make", "says"), [
    (lambda p: p.mkdir(), "neither a safetensors file nor a diffusers folder"), (lambda p: None, "neither a safetensors file nor a diffusers folder"),
    (lambda p: p.write_bytes(b"rubbish"), "not a safetensors file|safetensors only"),
])  # fmt: skip
def test_what_is_no_checkpoint_is_refused_by_name(make, says, tmp_path):
    make(tmp_path / "base")
    with pytest.raises(FormatError, match=f"base.*({says})"):
        bake(tmp_path / "base", tmp_path / "baked.safetensors", [(a_lora("sd1"), 1.0)])


# --- refusals -----------------------------------------------------------------------------------------------------------------------------


def without(layout: str, part: str) -> dict[str, torch.Tensor]:
    return {k: v for k, v in weights(layout).items() if part not in k}


def eighths() -> dict[str, torch.Tensor]:
    return {k: v.to(torch.float8_e4m3fn) if k.endswith("attn1.to_q.weight") else v for k, v in weights("sd1").items()}


REFUSALS = {
    "family": (lambda: weights("sd1"), lambda: a_lora("sdxl"), "checkpoint is Stable Diffusion 1.x, the LoRA is for sdxl"),
    "no model": (lambda: {"a.weight": random(1, 4, 4)}, lambda: a_lora("sd1"), "any model family this program knows"),
    "missing text encoder": (lambda: without("sd1", "cond_stage"), lambda: a_lora("sd1"), "6 modules of the LoRA have no layer in this checkpoint.*clip_l"),
    "missing layer": (lambda: without("sd1", "attn1.to_q"), lambda: a_lora("sd1"), "1 module .*attn1.to_q"),
    "missing bias": (lambda: weights("sd1", biases=False), lambda: Lora("sd1", ADAPTERS["bias"]), "to_out.0.bias: is changed by the LoRA, but is not in the"),
    "outputs": (lambda: weights("sd1"), lambda: Lora("sd1", {Q: lora(20, 16)}), r"attn1.to_q.weight: has the shape \(16, 16\), the LoRA is for \(20, 16\)"),
    "inputs": (lambda: weights("sd1"), lambda: Lora("sd1", {Q: lora(16, 20)}), r"attn1.to_q.weight: has the shape"),
    "bias shape": (lambda: weights("sd1"), lambda: Lora("sd1", {OUT0: Module("full", {"diff_b": random(1, 12)})}), r"to_out.0.bias: has the shape \(16,\)"),
    "kernel": (lambda: weights("sd1"), lambda: Lora("sd1", {CONV: Module("full", {"diff": random(1, 16, 8, 1, 1)})}), r"in_layers.2.weight: has the shape"),
    "small type": (eighths, lambda: a_lora("sd1"), "attn1.to_q.weight: is stored as torch.float8_e4m3fn"),
    "overflow": (lambda: weights("sd1", torch.float16), lambda: Lora("sd1", {Q: lora(16, 16, alpha=1e7)}), "attn1.to_q.weight: would hold .* not finite"),
    "not a number": (lambda: weights("sd1"), lambda: Lora("sd1", {Q: Module("full", {"diff": torch.full((16, 16), float("nan"))})}), "not finite"),
    "no form": (lambda: weights("sd1"), lambda: Lora("sd1", {Q: Module("other", {"oft_blocks": random(1, 2, 3, 3)})}), "to_q: has parts that cannot be baked"),
    "lokr over a fused matrix": (lambda: weights("flux1"), lambda: Lora("flux1", {"transformer.transformer_blocks.0.attn.to_q": kron((8, 8))}), "img_attn.qkv"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_baked_is_refused_and_leaves_nothing(name, tmp_path):
    make, lora_of, says = REFUSALS[name]
    source = write(tmp_path / "base.safetensors", make())
    kept = digest(source)
    with pytest.raises(FormatError, match=says):
        bake(source, tmp_path / "baked.safetensors", [(lora_of(), 1.0)])
    assert [p.name for p in tmp_path.iterdir()] == ["base.safetensors"]
    assert digest(source) == kept


def test_a_folder_whose_result_is_not_finite_leaves_nothing(tmp_path):
    source = write(tmp_path / "model", weights("sd1-folder", torch.float16))
    with pytest.raises(FormatError, match="not finite"):
        bake(source, tmp_path / "baked", [(Lora("sd1", {QUERY: lora(12, 12, alpha=1e7)}), 1.0)])
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_the_checkpoint_itself_is_never_the_target(lora_file, tmp_path):
    source = write(tmp_path / "base.safetensors", weights("sd1"))
    (tmp_path / "link.safetensors").symlink_to(source)
    kept = digest(source)
    for target in (source, tmp_path / "sub" / ".." / "base.safetensors", tmp_path / "link.safetensors"):
        (tmp_path / "sub").mkdir(exist_ok=True)
        with pytest.raises(FormatError, match="is the checkpoint itself"):
            bake_file(source, [(lora_file, 1.0)], target, overwrite=True)
    assert digest(source) == kept


def test_an_existing_target_is_replaced_only_when_told(lora_file, tmp_path):
    source, target = write(tmp_path / "base.safetensors", weights("sd1")), tmp_path / "baked.safetensors"
    target.write_bytes(b"mine")
    with pytest.raises(FormatError, match="baked.safetensors: exists already"):
        bake_file(source, [(lora_file, 1.0)], target)
    assert target.read_bytes() == b"mine"
    bake_file(source, [(lora_file, 1.0)], target, overwrite=True)
    assert set(stored(target)) == set(weights("sd1"))


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_existing_folder_is_never_replaced(overwrite, lora_file, tmp_path):
    source = write(tmp_path / "model", weights("sd1-folder"))
    (tmp_path / "baked").mkdir()
    with pytest.raises(FormatError, match="baked: exists already"):
        bake_file(source, [(lora_file, 1.0)], tmp_path / "baked", overwrite)
    assert list((tmp_path / "baked").iterdir()) == []


class Stop(BaseException):
    """An interrupt that is no Exception, as ComfyUI's is."""


@pytest.mark.parametrize("kind", [KeyboardInterrupt, Stop, RuntimeError])
@pytest.mark.parametrize("layout", ["sd1", "sd1-folder"])
def test_a_stop_in_the_middle_leaves_the_source_and_nothing_else(layout, kind, tmp_path):
    source = write(tmp_path / "base.safetensors", weights(layout))
    kept, told = digest(source), []

    def stop(done, total, key):
        told.append((done, total))
        if done == 5:
            raise kind

    with pytest.raises(kind):
        bake(source, tmp_path / "baked.safetensors", [(a_lora(layout), 1.0)], progress=stop)
    assert told == [(n, 14) for n in range(6)]
    assert [p.name for p in tmp_path.iterdir()] == ["base.safetensors"]
    assert digest(source) == kept


STREAMING = """
import importlib.util, sys
from pathlib import Path
root, folder = Path(sys.argv[1]), Path(sys.argv[2])
spec = importlib.util.spec_from_file_location("lora_loom", root / "__init__.py", submodule_search_locations=[str(root)])
module = importlib.util.module_from_spec(spec)
sys.modules["lora_loom"] = module
spec.loader.exec_module(module)
import torch
torch.set_num_threads(1)
from lora_loom.convert.files.checkpoints import bake
from lora_loom.convert import Lora, Module
def kb(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field))
layer = "clip_l.text_model.encoder.layers.{}.mlp.fc1"
module = Module("lora", {"down": torch.ones(2, 1024), "up": torch.ones(512, 2)}, 1.0)
loras = [(Lora("sd1", {layer.format(n): module for n in range(200)}), 1.0)]
bake(folder / "small.safetensors", folder / "baked.safetensors", [(Lora("sd1", {layer.format(0): module}), 1.0)])  # loads the libraries' code
before = kb("VmRSS")
bake(folder / "base.safetensors", folder / "baked.safetensors", loras)
print(kb("VmHWM") - before)
"""


def test_a_large_checkpoint_is_never_held_in_memory(root, tmp_path):
    state = {
        f"cond_stage_model.transformer.text_model.encoder.layers.{n}.mlp.fc1.weight": torch.zeros(512, 1024).half()
        for n in range(200)
    }
    state["model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"] = torch.zeros(
        320, 768
    ).half()
    save(tmp_path / "base.safetensors", state)
    save(
        tmp_path / "small.safetensors", {k: v for k, v in state.items() if ".layers.0." in k or "diffusion_model" in k}
    )
    size = (tmp_path / "base.safetensors").stat().st_size
    assert size > 200e6
    ran = subprocess.run(
        [sys.executable, "-c", STREAMING, str(root), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "baked.safetensors").stat().st_size >= size
    grown = int(ran.stdout) * 1024
    assert grown < 100e6, f"{grown / 1e6:.0f} MB for a file of {size / 1e6:.0f} MB"


# --- extraction ---------------------------------------------------------------------------------------------------------------------------

# Weights of order 1 to 10 in float32 hold a change of order 1 to 1e-7 of them, which is a millionth of the change; the SVD of a dozen rows adds a little.
EXTRACTED = 1e-4


def tuned_pair(layout: str, one: Lora, tmp_path: Path, dtype: torch.dtype = torch.float32) -> tuple[Path, Path]:
    base = write(tmp_path / "base.safetensors", weights(layout, dtype))
    bake(base, tmp_path / "tuned.safetensors", [(one, 1.0)])
    return base, tmp_path / "tuned.safetensors"


def matrices(one: Lora) -> dict[str, torch.Tensor]:
    """Dense changes of the layers a LoRA can hold."""
    return {n: dense(m) for n, m in one.modules.items() if len(m.shape) > 1}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_lora_baked_and_extracted_with_enough_rank_is_the_same_change(layout, tmp_path):
    one = a_lora(layout)
    outcome = extract(*tuned_pair(layout, one, tmp_path), rank=8)  # four parts of rank 2 in one fused matrix
    wanted = matrices(one)
    assert set(outcome.lora.modules) == set(one.modules)
    assert outcome.lora.family == LAYOUTS[layout][0]
    for name, change in wanted.items():
        assert outcome.lora.modules[name].shape == change.shape, name
        assert error(dense(outcome.lora.modules[name]), change) < EXTRACTED, name
    assert outcome.error < 1e-3  # the root of the rounding of a difference of squares


def rest(changes: list[torch.Tensor], rank: int) -> float:
    """Relative error of the best approximation of each matrix, over all of them (Eckart and Young)."""
    spectra = [torch.linalg.svdvals(c.flatten(1)) for c in changes]
    return float((sum(s[rank:].square().sum() for s in spectra) / sum(s.square().sum() for s in spectra)) ** 0.5)


@pytest.mark.parametrize("rank", [1, 3])
def test_a_limited_rank_is_the_best_approximation_and_its_error_is_told(rank, tmp_path):
    one = a_lora("sd1", rank=6)
    outcome = extract(*tuned_pair("sd1", one, tmp_path), rank=rank)
    wanted = matrices(one)
    for name, change in wanted.items():
        made = outcome.lora.modules[name]
        got = error(dense(made), change)
        assert made.rank == rank
        assert got == pytest.approx(rest([change], rank), rel=1e-3)
        assert outcome.errors[name] == pytest.approx(got, rel=1e-3)
    assert outcome.error == pytest.approx(rest(list(wanted.values()), rank), rel=1e-3)


def test_the_told_error_over_fused_matrices_is_that_of_the_whole(tmp_path):
    one = a_lora("flux1", rank=3)
    outcome = extract(*tuned_pair("flux1", one, tmp_path), rank=4)
    wanted = matrices(one)
    lost = sum(float((dense(outcome.lora.modules[n]) - c).square().sum()) for n, c in wanted.items())
    assert outcome.error == pytest.approx(
        (lost / sum(float(c.square().sum()) for c in wanted.values())) ** 0.5, rel=1e-3
    )


def test_the_told_error_of_a_part_of_a_fused_matrix_is_that_of_the_part(tmp_path):
    names = [f"transformer.transformer_blocks.0.attn.to_{n}" for n in "qkv"]
    one = Lora(
        "flux1", {n: lora(8, 8, 3, alpha=3.0 * 10**i, seed=i) for i, n in enumerate(names)}
    )  # v changes a hundred times as much as q
    outcome = extract(*tuned_pair("flux1", one, tmp_path), rank=3)
    for name in names:
        assert outcome.errors[name] == pytest.approx(
            error(dense(outcome.lora.modules[name]), dense(one.modules[name])), rel=1e-2
        )


def test_energy_stops_at_the_rank_that_keeps_the_share(tmp_path):
    u, v = torch.linalg.qr(random(1, 16, 4)).Q, torch.linalg.qr(random(2, 16, 4)).Q
    module = Module("lora", {"down": (v * torch.tensor([3.0, 2.0, 1.0, 1.0])).t().contiguous(), "up": u})
    pair = tuned_pair("sd1", Lora("sd1", {Q: module}), tmp_path)
    for energy, rank in ((0.5, 1), (0.8, 2), (0.9, 3), (0.95, 4)):  # shares 9/15, 13/15, 14/15, 1
        outcome = extract(*pair, rank=8, energy=energy)
        assert outcome.lora.modules[Q].rank == rank
        assert 1 - outcome.errors[Q] ** 2 >= energy - 1e-5  # float32 singular values
    assert extract(*pair, rank=2, energy=0.95).lora.modules[Q].rank == 2


def test_convolutions_have_a_rank_of_their_own(tmp_path):
    outcome = extract(*tuned_pair("sd1", a_lora("sd1", rank=6), tmp_path), rank=4, conv_rank=2)
    assert outcome.lora.modules[CONV].rank == 2
    assert {outcome.lora.modules[n].rank for n in (Q, PROJ, FC1)} == {4}


def test_text_encoders_can_be_left_out(tmp_path):
    one = a_lora("sdxl")
    outcome = extract(*tuned_pair("sdxl", one, tmp_path), rank=8, text_encoders=False)
    assert set(outcome.lora.modules) == {n for n in one.modules if n.startswith("unet.")}


def test_layers_that_did_not_change_are_left_out(tmp_path):
    one = a_lora("sd1", only="attn")
    pair = tuned_pair("sd1", one, tmp_path)
    assert set(extract(*pair, rank=4).lora.modules) == set(one.modules)
    weak = Lora("sd1", {Q: lora(16, 16, alpha=2e-9), QUERY: lora(12, 12)})
    (tmp_path / "weak").mkdir()
    assert set(extract(*tuned_pair("sd1", weak, tmp_path / "weak"), rank=4, min_change=1e-3).lora.modules) == {QUERY}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_changes_of_norms_and_biases_are_extracted_as_they_are(layout, tmp_path):
    one = a_lora(layout, biases=True)
    made = extract(*tuned_pair(layout, one, tmp_path), rank=8).lora.modules
    changed = {
        (name, part): value
        for name, m in one.modules.items()
        for part, value in m.parts.items()
        if part.startswith("diff")
    }
    assert len(changed) > 5
    assert {(name, part) for name, m in made.items() for part in m.parts if part.startswith("diff")} == {*changed}
    for (name, part), value in changed.items():
        torch.testing.assert_close(made[name].parts[part], value, rtol=0, atol=1e-5)  # a difference of sums of order 1


@pytest.mark.parametrize("layout", ["sd1", "sdxl", "flux1"])
def test_a_layer_of_which_the_bias_alone_changed_is_that_change(layout, tmp_path):
    whole = a_lora(layout, biases=True)
    biases = {n: Module("full", {"diff_b": m.parts["diff_b"]}) for n, m in whole.modules.items() if "diff_b" in m.parts}
    made = extract(*tuned_pair(layout, Lora(whole.family, biases), tmp_path), rank=8).lora.modules
    assert made.keys() == biases.keys()
    for name, module in biases.items():
        assert made[name].parts.keys() == {"diff_b"} or len(made[name].shape) == 1
        torch.testing.assert_close(made[name].parts["diff_b"], module.parts["diff_b"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("order", ["file first", "folder first"])
def test_biases_are_extracted_between_a_file_and_a_folder_of_one_model(order, tmp_path):
    name = "transformer.norm_out.linear"  # whose halves are exchanged in a file
    in_folder, in_file = weights("flux1-folder", biases=False), weights("flux1", biases=False)
    for layer, place in LAYOUTS["flux1"][1].items():
        place.put(in_file[place.key], in_folder[LAYOUTS["flux1-folder"][1][layer].key])
    for layout, state in (("flux1", in_file), ("flux1-folder", in_folder)):
        place, bias = LAYOUTS[layout][1][name], random(31, LAYOUTS[layout][1][name].shape[0])
        state[bias_of(place.key)] = place.taken(bias)
    file, folder = write(tmp_path / "file.safetensors", in_file), write(tmp_path / "folder", in_folder)
    base, other = (file, folder) if order == "file first" else (folder, file)
    change = random(32, 16)
    one = Lora("flux1", {name: Module("full", {"diff_b": change})})
    bake(other, tmp_path / f"tuned{other.suffix}", [(one, 1.0)])
    made = extract(base, tmp_path / f"tuned{other.suffix}", rank=4).lora.modules
    assert made.keys() == {name}
    torch.testing.assert_close(made[name].parts["diff_b"], change, rtol=0, atol=1e-5)


def extracted(tmp_path, layout="sd1", target="kohya", choice="auto"):
    """(notes as text, modules read back) of a file extracted from a pair of which norms and biases changed too."""
    out = tmp_path / "made.safetensors"
    pair = tuned_pair(layout, a_lora(layout, biases=True), tmp_path)
    written = extract_file(pair, out, Options(target, "fp32"), Size(8), Taken(norms_biases=choice))
    return " ".join(map(str, written.notes)), open_lora(out).modules


def beside(modules):
    """Parts beside matrices that modules of a file have: "diff" of norms, "diff_b" of biases."""
    return {part for m in modules.values() for part in m.parts if part.startswith("diff")}


MATRIX = {  # what a program was seen to do: kind -> what becomes of it
    "none stops": {"one": {"norm": "exact", "bias": "exact"}, "two": {"norm": "nothing", "bias": "nothing"}},
    "one stops": {"one": {"norm": "exact", "bias": "exact"}, "two": {"norm": "exact", "bias": "raises"}},
    "nobody reads": {"one": {"norm": "nothing", "bias": "nothing"}, "two": {}},
    "by layer": {"one": {"norm": "exact", "bias": {"linear": "exact", "conv": "raises"}}, "two": {}},
}


@pytest.mark.parametrize(
    ("matrix", "choice", "kept"),
    [
        ("none stops", "auto", {"diff", "diff_b"}), ("one stops", "auto", {"diff"}), ("nobody reads", "auto", set()), ("by layer", "auto", {"diff"}),
        ("one stops", "keep", {"diff", "diff_b"}), ("nobody reads", "keep", {"diff", "diff_b"}), ("none stops", "leave", set()),
    ],
)  # fmt: skip
def test_norms_and_biases_are_kept_where_a_program_reads_them_and_none_stops(
    matrix, choice, kept, tmp_path, monkeypatch
):
    cells = {
        program: {"families": {"sd1": {"kohya": {"layers": [5, 5], "unread": [], "kinds": kinds}}}}
        for program, kinds in MATRIX[matrix].items()
    }
    monkeypatch.setattr(loaders, "measured", lambda: cells)
    notes, modules = extracted(tmp_path, choice=choice)
    assert beside(modules) == kept
    assert notes.count("are in the file") == len(kept)
    assert notes.count("are left out") == 2 - len(kept)
    assert ("two" in notes) == (matrix == "one stops")  # who stops is named, whether they were kept or not


def test_a_form_without_a_place_for_norms_is_not_changed_for_them_unless_that_is_asked(tmp_path):
    notes, modules = extracted(tmp_path, "flux1", "universal")
    assert not beside(modules)
    assert notes.count("no place for them") == 1  # the made-up Flux.1 has biases and no norms
    (tmp_path / "kept").mkdir()
    notes, modules = extracted(tmp_path / "kept", "flux1", "universal", "keep")
    assert beside(modules) == {"diff_b"}
    assert "ComfyUI" in notes


def test_a_choice_that_is_none_is_refused_with_those_there_are(tmp_path):
    with pytest.raises(FormatError, match="'all' is no choice.*auto, keep, leave"):
        extracted(tmp_path, choice="all")


def test_a_difference_of_norms_alone_that_is_left_out_is_told(tmp_path):
    norm = "unet.conv_norm_out"
    pair = tuned_pair("sd1", Lora("sd1", {norm: a_lora("sd1").modules[norm]}), tmp_path)
    with pytest.raises(FormatError, match="Only norms and biases differ"):
        extract_file(pair, tmp_path / "made.safetensors", Options(), Size(4), Taken(norms_biases="leave"))
    extract_file(pair, tmp_path / "made.safetensors", Options(), Size(4), Taken(norms_biases="keep"))
    assert open_lora(tmp_path / "made.safetensors").modules.keys() == {norm}


def matrices_only(one: Lora) -> dict[str, Module]:
    return {n: m for n, m in one.modules.items() if len(m.shape) > 1}


@pytest.mark.parametrize("order", ["file first", "folder first"])
@pytest.mark.parametrize("layout", ["sd1", "sdxl", "flux1"])
def test_a_folder_and_a_file_of_one_model_give_the_whole_lora_or_are_refused(layout, order, tmp_path):
    # The same weights in both layouts, so what the tuned one holds more is exactly the LoRA.
    one = a_lora(layout, only="attn")
    in_folder, in_file = weights(f"{layout}-folder", biases=False), weights(layout, biases=False)
    for name, place in LAYOUTS[layout][1].items():
        place.put(in_file[place.key], in_folder[LAYOUTS[f"{layout}-folder"][1][name].key])
    file, folder = write(tmp_path / "file.safetensors", in_file), write(tmp_path / "folder", in_folder)
    base, other = (file, folder) if order == "file first" else (folder, file)
    tuned = tmp_path / f"tuned{other.suffix}"
    bake(other, tuned, [(one, 1.0)])
    try:
        made = extract(base, tuned, rank=8).lora.modules
    except FormatError:
        assert layout != "sd1"  # nothing is fused or exchanged there
        return
    assert set(made) == set(one.modules)
    assert all(error(dense(made[n]), dense(m)) < EXTRACTED for n, m in one.modules.items())


def test_different_families_are_refused_with_both_named(tmp_path):
    one, two = write(tmp_path / "one.safetensors", weights("sd1")), write(tmp_path / "two.safetensors", weights("sdxl"))
    with pytest.raises(FormatError, match="Stable Diffusion 1.x.*Stable Diffusion XL"):
        extract(one, two, rank=4)


def test_different_shapes_are_refused_with_the_layer_named(tmp_path):
    state = weights("sd1")
    one = write(tmp_path / "one.safetensors", state)
    key = LAYOUTS["sd1"][1][Q].key
    two = write(tmp_path / "two.safetensors", {**state, key: random(1, 20, 16)})
    with pytest.raises(FormatError, match=r"attn1.to_q.weight: has the shape \(20, 16\), in the base \(16, 16\)"):
        extract(one, two, rank=4)


def test_equal_checkpoints_have_nothing_to_extract(tmp_path):
    one, two = (write(tmp_path / f"{n}.safetensors", weights("sd1")) for n in "ab")
    with pytest.raises(FormatError, match="nothing to extract"):
        extract(one, two, rank=4)


def test_numbers_that_are_not_finite_are_refused_with_the_layer_named(tmp_path):
    state, key = weights("sd1"), LAYOUTS["sd1"][1][Q].key
    one = write(tmp_path / "one.safetensors", state)
    save_file({**state, key: state[key] / 0}, tmp_path / "two.safetensors")
    with pytest.raises(FormatError, match="attn1.to_q.weight: holds numbers that are not finite"):
        extract(one, tmp_path / "two.safetensors", rank=4)


@pytest.mark.parametrize("given", [{"rank": 0}, {"rank": 4, "conv_rank": -1}])
def test_ranks_that_are_none_are_refused(given, tmp_path):
    path = write(tmp_path / "one.safetensors", weights("sd1"))
    with pytest.raises(FormatError, match="rank"):
        extract(path, path, **given)


@pytest.mark.parametrize("energy", [0.0, -1.0, 95.0])
def test_shares_that_are_none_are_refused(energy, tmp_path):
    with pytest.raises(FormatError, match="energy"):
        extract(*tuned_pair("sd1", a_lora("sd1"), tmp_path), rank=4, energy=energy)


def test_a_stop_while_extracting_is_passed_on_and_nothing_is_written(tmp_path):
    pair = tuned_pair("sd1", a_lora("sd1"), tmp_path)

    def stop(done, total, key):
        if done == 2:
            raise Stop

    with pytest.raises(Stop):
        extract_file(pair, tmp_path / "made.safetensors", Options(), Size(4), progress=stop)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base.safetensors", "tuned.safetensors"]


def test_an_extracted_lora_baked_again_gives_the_tuned_checkpoint(tmp_path):
    base, tuned = tuned_pair("sdxl", Lora("sdxl", matrices_only(a_lora("sdxl"))), tmp_path)
    extract_file((base, tuned), tmp_path / "made.safetensors", Options(dtype="fp32"), Size(8))
    bake(base, tmp_path / "again.safetensors", [(open_lora(tmp_path / "made.safetensors"), 1.0)])
    again, wanted = stored(tmp_path / "again.safetensors"), stored(tuned)
    for key, value in wanted.items():
        torch.testing.assert_close(again[key], value, rtol=0, atol=1e-4)  # changes of order 1 to 10, each back to 1e-5


def test_a_small_change_of_an_fp16_checkpoint_is_found_as_far_as_its_type_holds_it(tmp_path):
    one = Lora("sd1", {Q: lora(16, 16, rank=2, alpha=0.2)})
    outcome = extract(*tuned_pair("sd1", one, tmp_path, torch.float16), rank=2)
    assert (
        error(dense(outcome.lora.modules[Q]), dense(one.modules[Q])) < 0.01
    )  # each weight is rounded to 11 bits, the change is a tenth of it


# --- what it costs --------------------------------------------------------------------------------------------------------------------------


def many_layers(count: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """As many attention layers as no model has."""
    names = (f"model.diffusion_model.input_blocks.{n}.1.transformer_blocks.0.attn1.to_q.weight" for n in range(count))
    return dict.fromkeys(names, (torch.float16, (2, 2)))


def test_a_layer_is_looked_up_in_the_tables_that_may_have_it_and_not_in_those_of_all_families(monkeypatch):
    taken_apart, asked = [], []
    split, found = patterns.split_numbers.__wrapped__, patterns.Table.find_form
    monkeypatch.setattr(detect, "split_numbers", lambda name: taken_apart.append(name) or split(name))
    monkeypatch.setattr(patterns.Table, "find_form", lambda *args: asked.append(args) or found(*args))
    for layout in (
        many_layers(300),
        {f"model.diffusion_model.odd.{n}.mixer.weight": (torch.float16, (2, 2)) for n in range(300)},
    ):
        with pytest.raises(FormatError):
            family_of(layout)
    assert len(taken_apart) == 600
    assert {args[0] for args in asked} < {family.table for family in FAMILIES.values()}
    assert len(asked) <= 300 * 6  # six of the families are UNets


class Key(str):
    """A name that counts how often it is compared with another."""

    compared = 0
    __hash__ = str.__hash__

    def __eq__(self, other):
        Key.compared += 1
        return str.__eq__(self, other)


def test_baking_looks_for_no_name_among_all_others(tmp_path, monkeypatch):
    sides = {"transformer_blocks.{}.attn.to_out.0": "img_attn", "transformer_blocks.{}.attn.to_add_out": "txt_attn"}
    weights = {f"double_blocks.{n}.{side}.proj.weight": torch.zeros(4, 4) for n in range(19) for side in sides.values()}
    weights |= {f"vae.{n}.weight": torch.zeros(1) for n in range(4000)}
    modules = {f"transformer.{name.format(n)}": low_rank() for n in range(19) for name in sides}
    source = write(tmp_path / "base.safetensors", weights)
    plainly = checkpoints.checkpoint

    @contextlib.contextmanager
    def counting(path):
        with plainly(path) as (layout, tensor, where):
            yield {Key(key): value for key, value in layout.items()}, tensor, where

    monkeypatch.setattr(checkpoints, "checkpoint", counting)
    Key.compared = 0
    bake(source, tmp_path / "baked.safetensors", [(Lora("flux1", modules), 1.0)])
    assert Key.compared < 20 * len(weights)  # they are sorted; a look through all changed ones for each would be 38


def low_rank() -> Module:
    return Module("lora", {"down": torch.ones(1, 4), "up": torch.ones(4, 1)}, 1.0)


def test_a_mark_of_scaled_weights_is_no_reason_to_look_through_all_others(counted):
    work = []
    for count in (200, 800):
        layout = {f"block.{n}.scaled_fp8": (torch.float8_e4m3fn, (0,)) for n in range(count)}
        layout |= {f"block.{n}.a.weight": (torch.float8_e4m3fn, (2, 2)) for n in range(count)}
        marked, _, calls = counted(lambda layout=layout: unapplied(layout, {}))
        assert len(marked) == count
        work.append(calls)
    assert work[1] < 5 * work[0]


def test_a_folder_of_many_files_is_written_with_work_in_step_with_their_number(tmp_path, counted):
    work = []
    for count in (20, 80):
        unet = tmp_path / f"{count}" / "unet"
        unet.mkdir(parents=True)
        for n in range(count):
            save_file({f"{n}.weight": torch.zeros(1)}, unet / f"model-{n}.safetensors")
        with checkpoint(unet.parent) as (layout, tensor, where):
            written = (unet.parent, tmp_path / f"{count} again", layout, tensor, where)
            work.append(counted(lambda written=written: save_folder(*written))[2])
    assert work[1] < 4.5 * work[0]
