"""SD.Next: its own loader of networks, on diffusers' models."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import types
from pathlib import Path

import diffusers.models.lora
import safetensors.torch
import torch
from loom_diffusers_models import TEXT, denoiser, encoder, learnt, with_words
from loom_harness import Tree, folder, randomised, stand_in
from rich.console import Console

TITLE, FOLDER = "SD.Next", "sdnext"
FAMILIES = ("sd1", "sd2", "sdxl", "flux1", "sd3", "lumina2", "hunyuanvideo", "ltxv", "auraflow", "pixart")
HOME = folder(FOLDER)
OPTIONS = types.SimpleNamespace(
    extra_networks_default_multiplier=1.0, lora_fuse_diffusers=False, lora_force_diffusers=False, lora_in_memory_limit=0, diffusers_offload_mode="none",
    lora_maybe_diffusers=False, lora_preferred_name="filename", lora_apply_tags=0,
)  # fmt: skip
NOT_AT_NARROW_WIDTH = {("flux1", "kohya")}  # the reader has the widths of the published model in it
NOT_RUN = {"Flux.1 in Kohya form": "its reader has the widths of the published model in it"}
TYPES = {"sd1": "sd", "sd2": "sd", "sdxl": "sdxl", "flux1": "f1", "sd3": "sd3", "lumina2": "lumina2", "hunyuanvideo": "hunyuanvideo", "ltxv": "LTXPipeline",
    "auraflow": "auraflow", "pixart": "PixArtAlphaPipeline",
}  # fmt: skip


def surroundings() -> None:
    sys.path[:0] = [str(HOME)]
    package = stand_in("modules")
    package.__path__ = [str(HOME / "modules")]
    cpu = torch.device("cpu")
    stand_in(
        "modules.shared",
        opts=OPTIONS,
        native=True,
        sd_loaded=True,
        compiled_model_state=None,
        console=Console(file=open(os.devnull, "w")),
        state=types.SimpleNamespace(interrupted=False),
    )
    stand_in(
        "modules.devices",
        cpu=cpu,
        device=cpu,
        dtype=torch.float32,
        torch_gc=lambda: None,
        inference_context=contextlib.nullcontext,
    )
    stand_in(
        "modules.sd_models",
        read_state_dict=lambda file, what="": safetensors.torch.load_file(file),
        read_metadata_from_safetensors=lambda file: {},
    )
    for name in ("sd_models_compile", "errors", "files_cache", "model_quant", "hashes", "extra_networks"):
        stand_in(f"modules.{name}")
    sys.modules["modules.extra_networks"].ExtraNetwork = type("ExtraNetwork", (), {"__init__": lambda self, name: None})
    for name, layer in (("LoRACompatibleLinear", torch.nn.Linear), ("LoRACompatibleConv", torch.nn.Conv2d)):
        if not hasattr(diffusers.models.lora, name):  # newer diffusers has left them out
            setattr(diffusers.models.lora, name, type(name, (layer,), {}))


surroundings()
from modules import shared  # noqa: E402
from modules.lora import networks  # noqa: E402
from modules.textual_inversion import textual_inversion  # noqa: E402

LISTED_IN = "its pipelines, models and scripts of videos"


def models() -> list[str]:
    pipelines = re.findall(r"'(\w+)Pipeline'", (HOME / "modules/shared_items.py").read_text(encoding="utf-8"))
    return [*pipelines, *(path.stem for path in (*HOME.glob("modules/model_*.py"), *HOME.glob("scripts/*video*.py")))]


def tree(family: str) -> Tree:
    pipeline = types.SimpleNamespace()
    out = Tree(family, pipeline)
    model = randomised(denoiser(family))
    setattr(pipeline, "unet" if family in ("sd1", "sd2", "sdxl") else "transformer", model)
    out.add_denoiser(model)
    for component, name in TEXT.get(family, {}).items():
        setattr(pipeline, component, encoder(family, name))
        out.add_text(name, getattr(pipeline, component))
    return out


def load(tree: Tree, path: Path) -> None:
    shared.sd_model, shared.sd_model_type = tree.host, TYPES[tree.family]
    networks.lora_cache.clear()
    net = networks.load_safetensors(path.stem, types.SimpleNamespace(filename=str(path), name=path.stem, sd_version=""))
    if net is None:
        return None
    net.te_multiplier, net.unet_multiplier, net.dyn_dim = 1.0, [1.0] * 3, None
    networks.loaded_networks[:] = [net]
    networks.network_activate()
    change = {label: weight().detach() for label, weight in tree.weights.items()}
    networks.loaded_networks.clear()
    networks.network_activate()
    return {label: after - tree.weights[label]().detach() for label, after in change.items()}


EMBEDDINGS = ("sd1", "sd2", "sdxl", "flux1", "sd3")


def embedding(family: str, path: Path) -> dict[str, torch.Tensor]:
    """What it puts into the encoders of the pipeline."""
    shared.opts.diffusers_enable_embed, shared.opts.diffusers_convert_embed = True, False
    shared.opts.embeddings_dir = str(path.parent)
    shared.sd_model = with_words(family)
    textual_inversion.EmbeddingDatabase().load_diffusers_embedding([str(path)])
    return learnt(family, shared.sd_model)
