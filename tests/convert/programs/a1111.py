"""A1111: its built-in Lora extension, on the model classes it uses (ldm, sgm, OpenCLIP, and its own SD3). Weights are changed as before a picture."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import tempfile
import types
from pathlib import Path

import safetensors.torch
import torch
from loom_harness import Tree, clip, folder, open_clip, randomised, stand_in
from loom_small_models import A1111_CLIP

TITLE, FOLDER = "A1111", "a1111"
FAMILIES = ("sd1", "sd2", "sdxl", "sd3")
HOME = folder(FOLDER)

OPTIONS = types.SimpleNamespace(
    lora_functional=False,
    lora_in_memory_limit=0,
    lora_bundled_ti_to_infotext=False,
    lora_preferred_name="Filename",
    sd3_enable_t5=False,
)


def surroundings() -> None:
    """What the extension imports of the WebUI and does not need for loading."""
    sys.path[:0] = [
        str(HOME / "extensions-builtin" / "Lora"),
        str(folder("stablediffusion")),
        str(folder("generative-models")),
    ]
    package = stand_in("modules")
    package.__path__ = [str(HOME / "modules")]
    cpu = torch.device("cpu")
    stand_in(
        "modules.shared",
        opts=OPTIONS,
        cmd_opts=types.SimpleNamespace(lora_dir=tempfile.gettempdir(), lyco_dir_backcompat="", no_half=True),
        sd_model=None,
    )
    stand_in("modules.devices", cpu=cpu, device=cpu, dtype=torch.float32, torch_gc=lambda: None)
    stand_in(
        "modules.sd_models",
        read_state_dict=lambda file: safetensors.torch.load_file(file),
        read_metadata_from_safetensors=lambda file: {},
    )
    for name in (
        "errors",
        "scripts",
        "sd_hijack",
        "images",
        "sd_samplers",
        "sd_hijack_checkpoint",
        "hashes",
        "cache",
        "patches",
        "textual_inversion",
        "textual_inversion.textual_inversion",
    ):
        stand_in(f"modules.{name}")
    stand_in("gradio")
    stand_in("k_diffusion").external = types.SimpleNamespace(DiscreteSchedule=torch.nn.Module)
    for name in ("pytorch_lightning", "sgm", "sgm.models"):
        if name not in sys.modules:
            stand_in(name)
    sys.modules["sgm"].__path__ = [str(folder("generative-models") / "sgm")]
    for name in ("sgm.modules", "sgm.modules.encoders.modules"):
        stand_in(name)
    sys.modules["sgm.modules"].__path__ = [str(folder("generative-models") / "sgm" / "modules")]


surroundings()
import networks  # noqa: E402  the extension's own module
from modules import shared  # noqa: E402

networks.extra_network_lora = types.SimpleNamespace(errors={})


LISTED_IN = "modules.sd_models_config"


def models() -> list[str]:
    return re.findall(
        r"^config_(\w+)", (HOME / "modules/sd_models_config.py").read_text(encoding="utf-8"), re.MULTILINE
    )


class Namespace(torch.nn.Module):
    """A module that only holds others."""

    def __init__(self, **members):
        super().__init__()
        for name, member in members.items():
            setattr(self, name, member)


NARROW = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": 2,
    "use_spatial_transformer": True,
    "context_dim": 24,
    "legacy": False,
}


def unet(family: str) -> torch.nn.Module:
    if family == "sdxl":
        from sgm.modules.diffusionmodules.openaimodel import UNetModel

        # The commit that A1111 names asks for more than later ones.
        taken = inspect.signature(UNetModel.__init__).parameters
        return UNetModel(
            **{k: v for k, v in NARROW.items() if k in taken}, attention_resolutions=[4, 2], channel_mult=[1, 2, 4],
            num_head_channels=16, use_linear_in_transformer=True, transformer_depth=[1, 2, 10], num_classes="sequential", adm_in_channels=40,
        )  # fmt: skip
    from ldm.modules.diffusionmodules.openaimodel import UNetModel

    linear = family == "sd2"
    heads = {"num_head_channels": 16} if linear else {"num_heads": 4}
    return UNetModel(
        **NARROW, attention_resolutions=[4, 2, 1], channel_mult=[1, 2, 4, 4], transformer_depth=1, use_linear_in_transformer=linear, **heads
    )  # fmt: skip


def sd3() -> tuple[torch.nn.Module, torch.nn.Module]:
    """(model, text encoders) with three blocks; A1111 takes the width from the depth."""
    from modules.models.sd3 import other_impls, sd3_impls

    p = "model.diffusion_model."
    shapes = {
        "x_embedder.proj.weight": (192, 16, 2, 2),
        "pos_embed": (1, 16, 192),
        "y_embedder.mlp.0.weight": (192, 40),
        "context_embedder.weight": (192, 48),
    }
    state = {p + name: torch.zeros(shape) for name, shape in shapes.items()}
    model = sd3_impls.BaseModel(state_dict=state, prefix=p, device="cpu", dtype=torch.float32)
    with torch.no_grad():
        clip_g = other_impls.SDXLClipG(A1111_CLIP, device="cpu", dtype=torch.float32)
        clip_l = other_impls.SDClipModel(
            layer="last", device="cpu", dtype=torch.float32, textmodel_json_config=A1111_CLIP
        )
    return model, Namespace(clip_g=clip_g, clip_l=clip_l)


def tree(family: str) -> Tree:
    host = types.SimpleNamespace(is_sdxl=family == "sdxl")
    out = Tree(family, host)
    if family == "sd3":
        from modules.models.sd3.sd3_model import SD3Inferencer

        host.model, host.cond_stage_model = (randomised(m) for m in sd3())
        host.diffusers_weight_mapping = types.MethodType(SD3Inferencer.diffusers_weight_mapping, host)
        out.add_denoiser(host.model.diffusion_model)
        for encoder in ("clip_l", "clip_g"):
            out.add_text(encoder, getattr(host.cond_stage_model, encoder), prefix="transformer.")
    else:
        host.model = Namespace(diffusion_model=randomised(unet(family)))
        out.add_denoiser(host.model.diffusion_model)
        if family == "sd1":
            host.cond_stage_model = types.SimpleNamespace(wrapped=Namespace(transformer=clip(16, 12)))
            out.add_text("clip_l", host.cond_stage_model.wrapped.transformer)
        elif family == "sd2":
            host.cond_stage_model = types.SimpleNamespace(wrapped=Namespace(model=open_clip(16, 24)))
            out.add_text("clip_h", host.cond_stage_model.wrapped.model)
        else:
            embedders = [Namespace(transformer=clip(16, 12)), Namespace(model=open_clip(32, 32)), Namespace()]
            host.conditioner = types.SimpleNamespace(embedders=[types.SimpleNamespace(wrapped=e) for e in embedders])
            out.add_text("clip_l", embedders[0].transformer)
            out.add_text("clip_g", embedders[1].model)
    shared.sd_model = host
    networks.assign_network_names_to_compvis_modules(host)
    return out


def load(tree: Tree, path: Path) -> None:
    shared.sd_model = tree.host
    on_disk = types.SimpleNamespace(filename=str(path), name=path.stem)
    net = networks.load_network(path.stem, on_disk)
    net.te_multiplier = net.unet_multiplier = 1.0
    networks.loaded_networks[:] = [net]
    patched = torch.nn.Linear | torch.nn.Conv2d | torch.nn.GroupNorm | torch.nn.LayerNorm | torch.nn.MultiheadAttention
    inside = {
        id(m.out_proj) for m in tree.host.network_layer_mapping.values() if isinstance(m, torch.nn.MultiheadAttention)
    }
    for module in tree.host.network_layer_mapping.values():
        if (
            isinstance(module, patched) and id(module) not in inside
        ):  # the forward of a projection inside is never called
            networks.network_apply_weights(module)
            networks.network_reset_cached_weight(module)


EMBEDDINGS = ("sd1", "sd2", "sdxl", "sd3")
SHAPES = {
    "sd1": 768,
    "sd2": 1024,
    "sdxl": 2048,
    "sd3": 2048,
}  # what its models answer when asked for the shape of a vector


def embedding(family: str, path: Path) -> dict[str, torch.Tensor]:
    """The vectors of the word it registers for a file."""
    for name in ("textual_inversion", "textual_inversion.textual_inversion"):
        sys.modules.pop(f"modules.{name}", None)
    stand_in("modules.textual_inversion").__path__ = [str(HOME / "modules" / "textual_inversion")]
    stand_in("modules.textual_inversion.dataset")
    textual_inversion = importlib.import_module("modules.textual_inversion.textual_inversion")
    shared.sd_model = types.SimpleNamespace(cond_stage_model=types.SimpleNamespace(tokenize=lambda words: [[1]]))
    database = textual_inversion.EmbeddingDatabase()
    database.expected_shape = SHAPES[family]
    database.load_from_file(str(path), path.name)
    if path.stem not in database.word_embeddings:
        return {}
    vectors = database.word_embeddings[path.stem].vec
    return vectors if isinstance(vectors, dict) else {"clip_h" if family == "sd2" else "clip_l": vectors}
