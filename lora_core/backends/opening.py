"""The headless backend of a base model: the toy, a folder in diffusers layout, or a single file with such a folder for its configs and tokenizers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open

from ..messages.errors import LoomError
from ..toy.model import MODEL
from . import flow, two_stage
from .diffusers_backend import DiffusersBackend, plain_name
from .headless import LOCAL, Headless
from .layout import pipeline_name

STABLE_DIFFUSION = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")


def open_backend(
    base: str, companion: str = "", precision: str = "auto", device: str = "", base_config: str = "",
    cached: Callable[[str], str | None] = lambda repo: None, name: Callable[[str, str], str] = plain_name,
) -> Any:  # fmt: skip
    """Raises LoomError for what is no base model we can train, naming what is missing.

    `cached`: where this machine keeps a repository of the Hub, or None. `name(family, path)`: what files call a layer of a UNet.
    """
    place = MODEL if base == "toy" else Path(base)
    if place.is_file():
        if place.suffix != ".safetensors":
            raise LoomError(f"base: {place.name} is no .safetensors file; other formats can run code when they are read, convert it first.")
        folder = Path(base_config) if base_config else _cached_layout(place, cached)
        return _of_file(place, folder, precision, device, name)
    if not place.is_dir():
        raise LoomError(f"base: there is no folder or file {place}; give toy, a folder in diffusers layout, or a .safetensors file.")
    pipeline = pipeline_name(place)
    if pipeline and pipeline not in (*STABLE_DIFFUSION, *flow.KINDS, *two_stage.KINDS) and not (place / "unet").is_dir():
        known = ", ".join([*STABLE_DIFFUSION, *flow.KINDS, *two_stage.KINDS])
        raise LoomError(f"base: {place.name} is a {pipeline}, which cannot be trained without ComfyUI; allowed are {known}.")
    try:
        if pipeline in two_stage.KINDS:
            return two_stage.KINDS[pipeline](place, companion, precision, device)
        if pipeline in flow.KINDS:
            return flow.FlowBackend(place, precision, device)
        return DiffusersBackend(place, precision, device, name=name)
    except (OSError, ValueError) as error:  # a part without weights, or with some that do not fit its config
        raise LoomError(f"base: {place.name} cannot be read: {str(error).splitlines()[0][:200]}") from error


def _of_file(file: Path, folder: Path, precision: str, device: str, name: Callable[[str, str], str]) -> Headless:
    pipeline = pipeline_name(folder)
    try:
        if pipeline in flow.KINDS:
            return flow.FlowBackend(folder, precision, device, file)
        if pipeline in STABLE_DIFFUSION:
            import diffusers

            kind = getattr(diffusers, pipeline)
            without = {"safety_checker": None, "feature_extractor": None, "image_encoder": None}
            return DiffusersBackend(file, precision, device, kind.from_single_file(str(file), config=str(folder), **without, **LOCAL), name)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:200]
        raise LoomError(f"base: {file.name} cannot be read as the {pipeline} that base_config {folder.name} describes: {reason}") from error
    known = ", ".join([*STABLE_DIFFUSION, *flow.KINDS])
    raise LoomError(f"base_config: {folder} describes {pipeline or 'no pipeline (model_index.json is missing)'}; allowed are {known}.")


def _cached_layout(file: Path, cached: Callable[[str], str | None]) -> Path:
    """The folder of the model's own repository, where somebody has fetched it."""
    import torch
    from diffusers.loaders.single_file_utils import fetch_diffusers_config

    with safe_open(file, "pt") as opened:
        names = opened.keys()
        shapes = {name: torch.empty(opened.get_slice(name).get_shape(), device="meta") for name in names}
    repo = fetch_diffusers_config(shapes)["pretrained_model_name_or_path"]
    place = cached(repo)
    if place is None:
        raise LoomError(
            f"base_config: {file.name} holds no configs and tokenizers, and nothing is downloaded; give a folder of the same model in diffusers layout "
            f"(SD1, SD2 and SDXL need no weights in it), or fetch {repo} once with `hf download {repo}`."
        )
    return Path(place)
