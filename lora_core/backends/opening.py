"""The headless backend of a base model: the toy, a folder in diffusers layout, or a single file with such a folder for its configs and tokenizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import LoomError
from ..toy.model import MODEL
from . import flow, two_stage
from .diffusers_backend import DiffusersBackend
from .headless import LOCAL, Headless, stored_dtype

STABLE_DIFFUSION = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
TRANSFORMERS = {
    "StableDiffusion3Pipeline": "SD3Transformer2DModel", "FluxPipeline": "FluxTransformer2DModel", "ZImagePipeline": "ZImageTransformer2DModel",
    "QwenImagePipeline": "QwenImageTransformer2DModel",
}  # fmt: skip


def open_backend(base: str, companion: str = "", precision: str = "auto", device: str = "", base_config: str = "") -> Any:
    """Raises LoomError for what is no base model we can train, naming what is missing."""
    place = MODEL if base == "toy" else Path(base)
    if place.is_file():
        return _of_file(place, base_config, precision, device)
    if not place.is_dir():
        raise LoomError(f"base: there is no folder or file {place}; give toy, a folder in diffusers layout, or a .safetensors file.")
    name = pipeline_name(place)
    if name in two_stage.KINDS:
        return two_stage.KINDS[name](place, companion, precision, device)
    if name in flow.KINDS:
        return flow.FlowBackend(place, precision, device)
    if name and name not in STABLE_DIFFUSION and not (place / "unet").is_dir():
        known = ", ".join([*STABLE_DIFFUSION, *flow.KINDS, *two_stage.KINDS])
        raise LoomError(f"base: {place.name} is a {name}, which cannot be trained without ComfyUI; allowed are {known}.")
    return DiffusersBackend(place, precision, device)


def pipeline_name(folder: Path) -> str:
    """What model_index.json calls the pipeline of a folder; empty where there is none."""
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    return str(index.get("_class_name", "")) if isinstance(index, dict) else ""


def _of_file(file: Path, base_config: str, precision: str, device: str) -> Headless:
    if file.suffix != ".safetensors":
        raise LoomError(f"base: {file.name} is no .safetensors file; other formats can run code when they are read, convert it first.")
    folder = Path(base_config) if base_config else _cached_layout(file)
    name = pipeline_name(folder)
    try:
        if name in TRANSFORMERS:
            import diffusers

            kind = getattr(diffusers, TRANSFORMERS[name])
            dtype = Headless(precision, device, stored_dtype(file)).dtype
            network = kind.from_single_file(str(file), config=str(folder), subfolder="transformer", torch_dtype=dtype, **LOCAL)
            return flow.FlowBackend(folder, precision, device, network, dtype)
        if name in STABLE_DIFFUSION:
            import diffusers

            kind = getattr(diffusers, name)
            without = {"safety_checker": None, "feature_extractor": None, "image_encoder": None}
            return DiffusersBackend(file, precision, device, kind.from_single_file(str(file), config=str(folder), **without, **LOCAL))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise LoomError(f"base: {file.name} cannot be read as the {name} that base_config {folder.name} describes: {str(error).splitlines()[0][:200]}") from error
    known = ", ".join([*STABLE_DIFFUSION, *TRANSFORMERS])
    raise LoomError(f"base_config: {folder} describes {name or 'no pipeline (model_index.json is missing)'}; allowed are {known}.")


def _cached_layout(file: Path) -> Path:
    """The model's own repository in the Hugging Face cache, where somebody has fetched it."""
    import torch
    from diffusers.loaders.single_file_utils import fetch_diffusers_config
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        shapes = {key: torch.empty(opened.get_slice(key).get_shape(), device="meta") for key in opened.keys()}
    repo = fetch_diffusers_config(shapes)["pretrained_model_name_or_path"]
    try:
        return Path(snapshot_download(repo, local_files_only=True))
    except LocalEntryNotFoundError as error:
        raise LoomError(
            f"base_config: {file.name} holds no configs and tokenizers, and nothing is downloaded; give a folder of the same model in diffusers layout "
            f"(SD1, SD2 and SDXL need no weights in it), or fetch {repo} once with `hf download {repo}`."
        ) from error
