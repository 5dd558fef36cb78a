"""Forge: its built-in Lora extension and its patcher, on its own model classes."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import torch
from loom_harness import Tree, clip_config, folder, randomised, stand_in
from loom_small_models import ENCODERS, FLUX, SD3, T5, UNETS, projects
from transformers import CLIPTextModel

TITLE, FOLDER = "Forge", "forge"
FAMILIES = ("sd1", "sd2", "sdxl", "flux1", "chroma", "sd3")
HOME = folder(FOLDER)
REPOSITORIES = {
    "sd1": "runwayml/stable-diffusion-v1-5",
    "sd2": "stabilityai/stable-diffusion-2-1",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "flux1": "black-forest-labs/FLUX.1-dev",
    "chroma": "Chroma",
    "sd3": "stabilityai/stable-diffusion-3-medium-diffusers",
}

sys.path[:0] = [str(HOME / "extensions-builtin" / "sd_forge_lora"), str(HOME)]
sys.argv[1:] = ["--always-cpu", "--all-in-fp32"]
stand_in("modules")
for surrounding in ("shared", "sd_models", "errors", "scripts", "hashes", "cache"):
    stand_in(f"modules.{surrounding}")
import networks  # noqa: E402  the extension's own module
from backend.modules.k_model import KModel  # noqa: E402
from backend.nn.clip import IntegratedCLIP  # noqa: E402
from backend.nn.t5 import IntegratedT5  # noqa: E402
from backend.patcher import lora  # noqa: E402
from backend.patcher.clip import CLIP  # noqa: E402
from backend.patcher.unet import UnetPatcher  # noqa: E402

LISTED_IN = "backend.loader, possible_models"


def models() -> list[str]:
    return re.search(r"possible_models = \[(.*?)\]", (HOME / "backend/loader.py").read_text(encoding="utf-8"))[1].split(
        ", "
    )


def denoiser(family: str) -> tuple[torch.nn.Module, dict]:
    """(model, its configuration as the guesser of checkpoints gives it)."""
    if family in UNETS:
        from backend.nn.unet import IntegratedUNet2DConditionModel

        config = {**UNETS[family]}
        model = IntegratedUNet2DConditionModel.from_config(config)
        model._internal_dict = config
        return model, config
    if family == "flux1":
        from backend.nn.flux import IntegratedFluxTransformer2DModel

        config = {**FLUX, "guidance_embed": True}
        model = IntegratedFluxTransformer2DModel(**config)
    elif family == "chroma":
        from backend.nn.chroma import IntegratedChromaTransformer2DModel

        config = {**FLUX, "guidance_out_dim": 32, "guidance_hidden_dim": 48, "guidance_n_layers": 5}
        model = IntegratedChromaTransformer2DModel(**config)
    else:
        from backend.nn.mmditx import MMDiTX

        config = {**SD3}
        model = MMDiTX(input_size=None, **config)
    model.config = config
    return model, config


def text(family: str) -> dict[str, torch.nn.Module]:
    out = {}
    for encoder, layers in ENCODERS[family].items():
        clip = encoder != "t5xxl"
        out[encoder] = randomised(
            IntegratedCLIP(CLIPTextModel, clip_config(16, layers), add_text_projection=True)
            if clip
            else IntegratedT5(T5)
        )
    return out


def tree(family: str) -> Tree:
    model, config = denoiser(family)
    randomised(model)
    model.storage_dtype = model.computation_dtype = torch.float32
    k_model = KModel(
        model, None, k_predictor=object(), config=types.SimpleNamespace(huggingface_repo=REPOSITORIES[family])
    )
    cpu = torch.device("cpu")
    encoders = text(family)
    out = Tree(family, types.SimpleNamespace(unet=UnetPatcher(k_model, cpu, cpu), clip=CLIP(encoders, {})))
    out.add_denoiser(model)
    for encoder, module in encoders.items():
        out.add_text(encoder, module, prefix="transformer.", projection=projects(family, encoder))
    return out


def load(tree: Tree, path: Path) -> None:
    for function in (lora.model_lora_keys_unet, lora.model_lora_keys_clip):  # they keep the names of earlier models
        function.__defaults__[0].clear()
    networks.load_lora_state_dict.cache_clear()
    state = networks.load_lora_state_dict(str(path))
    unet, clip = networks.load_lora_for_models(tree.host.unet, tree.host.clip, state, 1.0, 1.0, filename=str(path))
    unet.lora_loader.refresh(unet.lora_patches, force_refresh=True)
    clip.patcher.lora_loader.refresh(clip.patcher.lora_patches, force_refresh=True)
    change = {label: weight().detach().clone() for label, weight in tree.weights.items()}
    tree.host.unet.lora_loader.refresh({}, force_refresh=True)
    tree.host.clip.patcher.lora_loader.refresh({}, force_refresh=True)
    return {label: after - tree.weights[label]().detach() for label, after in change.items()}


EMBEDDINGS = ("sd1", "sd2", "sdxl", "flux1", "sd3")
SHAPES = {
    "sd1": 768,
    "sd2": 1024,
    "sdxl": 2048,
    "flux1": 768,
    "sd3": 768,
}  # as its engines ask for them, of the first CLIP


def embedding(family: str, path: Path) -> dict[str, torch.Tensor]:
    """The vectors of the word it registers for a file."""
    from backend.text_processing import textual_inversion

    database = textual_inversion.EmbeddingDatabase(lambda words, **more: {"input_ids": [[1]]}, SHAPES[family])
    database.load_from_file(str(path), path.name)
    if path.stem not in database.word_embeddings:
        return {}
    vectors = database.word_embeddings[path.stem].vec
    return vectors if isinstance(vectors, dict) else {"clip_h" if family == "sd2" else "clip_l": vectors}
