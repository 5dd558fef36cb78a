"""The headless backend of a base model: the toy, a folder in diffusers layout, or a single file with such a folder for its configs and tokenizers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from ..compat import needed
from ..disk.files import is_file, is_folder
from ..messages.blame import blamed
from ..messages.errors import LoomError
from ..messages.message import Message
from ..toy.model import MODEL
from .base_model import require_plain_file, require_unscaled
from .diffusers_backend import DiffusersBackend
from .flow import FLOW_FAMILIES, FlowBackend
from .headless import Headless
from .kandinsky import KandinskyDecoder, KandinskyPrior
from .layout import LOCAL, pipeline_name, stored_names
from .marks import (
    marks_of_file,
    marks_of_folder,
    require_discrete_file,
    require_discrete_scheduler,
    scheduler_config,
)
from .pipelines import plain_name, refusal
from .whole import class_named, filling, read_whole, require_filled
from .wuerstchen import WuerstchenDecoder, WuerstchenPrior

# What model_index.json calls a pipeline -> what lends its model.
ONE_NETWORK: dict[str, Callable[[Path, str, str], Headless]] = {
    "StableDiffusionPipeline": DiffusersBackend,
    "StableDiffusionXLPipeline": DiffusersBackend,
    **dict.fromkeys(FLOW_FAMILIES, FlowBackend),
}
TWO_STAGES: dict[str, Callable[[Path, str, str, str], Headless]] = {  # these take the folder of the other stage as well
    "KandinskyV22PriorPipeline": KandinskyPrior,
    "KandinskyV22Pipeline": KandinskyDecoder,
    "WuerstchenPriorPipeline": WuerstchenPrior,
    "WuerstchenDecoderPipeline": WuerstchenDecoder,
}
_REFINER = "conditioner.embedders.0.model.ln_final.weight"  # its first text encoder is what the base has as its second
_MARKS = {  # in the names that a checkpoint of the SD family has for each network
    "unet": ("input_blocks.", "down_blocks."),
    "vae": ("first_stage_model.", "decoder.mid"),
    "text_encoder": ("cond_stage_model.", "conditioner.embedders.0."),
    "text_encoder_2": ("conditioner.embedders.1.",),
}


def open_backend(
    base: str,
    companion: str = "",
    precision: str = "auto",
    device: str = "",
    base_config: str = "",
    cached: Callable[[str], str | None] = lambda repo: None,
) -> Headless:
    """Raises LoomError for what is no base model we can train, naming what is missing, packages too.

    `cached`: where this machine keeps a repository of the Hub, or None.
    """
    for package in ("diffusers", "transformers"):
        needed(package)
    place = MODEL if base == "toy" else Path(base)
    if is_file(place):
        if companion:
            raise LoomError("companion.idle", field="companion", file=place.name, kind=Message.of("base.single_file"))
        return _of_file(place, Path(base_config) if base_config else None, cached, precision, device)
    if not is_folder(place):
        raise LoomError("base.missing", field="base", place=place)
    name, allowed = plain_name(pipeline_name(place)), [*ONE_NETWORK, *TWO_STAGES]
    if name and name not in allowed:
        raise refusal(name, place.name, allowed)
    if base_config:
        raise LoomError("base_config.idle", field="base_config", file=place.name)
    if companion and name not in TWO_STAGES:
        kind = name or "StableDiffusionPipeline"
        raise LoomError("companion.idle", field="companion", file=place.name, kind=kind)
    require_unscaled(place.name, stored_names(place))
    with blamed("base.unreadable", "base", memory="base.no_memory", file=place.name):
        if name in TWO_STAGES:
            return TWO_STAGES[name](place, companion, precision, device)
        backend = ONE_NETWORK.get(name, DiffusersBackend)(place, precision, device)
        backend.marks = marks_of_folder(place)
        return backend


def _of_file(
    file: Path, folder: Path | None, cached: Callable[[str], str | None], precision: str, device: str
) -> Headless:
    if file.suffix != ".safetensors":
        raise LoomError("base.not_safetensors", field="base", file=file.name)
    with blamed("base.unreadable", "base", memory="base.no_memory", file=file.name), safe_open(file, "pt") as opened:
        names = set(opened.keys())
        require_unscaled(file.name, names)
        require_discrete_file(file, names)
        if _REFINER in names:
            raise LoomError("base.refiner", field="base", file=file.name)
        require_plain_file(names, lambda name: opened.get_slice(name).get_shape())
    folder = folder or _cached_layout(file, cached)
    name, allowed = plain_name(pipeline_name(folder)), list(ONE_NETWORK)
    if not name:
        raise LoomError("base_config.no_pipeline", field="base_config", folder=folder, allowed=allowed)
    if name not in ONE_NETWORK:
        raise LoomError(
            "base_config.other_pipeline", field="base_config", folder=folder, pipeline=name, allowed=allowed
        )
    with blamed("base.other_kind", "base", memory="base.no_memory", file=file.name, kind=name, folder=folder.name):
        backend = _read(file, folder, name, precision, device)
    backend.marks = marks_of_file(file)
    return backend


def _read(file: Path, folder: Path, name: str, precision: str, device: str) -> Headless:
    """A single file by the pipeline of its folder."""
    if name in FLOW_FAMILIES:
        return FlowBackend(folder, precision, device, file)
    import diffusers

    needed("accelerate")  # without it diffusers leaves random numbers where the file has none
    networks = _networks_beside(file, folder)
    without = {"safety_checker": None, "feature_extractor": None, "image_encoder": None}
    with filling(file, name):
        pipe = getattr(diffusers, name).from_single_file(str(file), config=str(folder), **without, **networks, **LOCAL)
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            require_filled(part, file)
    require_discrete_scheduler(folder, scheduler_config(folder))
    return DiffusersBackend(file, precision, device, pipe)


def _networks_beside(file: Path, folder: Path) -> dict[str, Any]:
    """What the file has nothing of and the folder has the weights of, read whole: a checkpoint of the UNet alone takes the rest from there."""
    networks, names = {}, _shapes(file).keys()
    for part, marks in _MARKS.items():
        kind = class_named(folder, part)
        if kind is None or any(mark in name for name in names for mark in marks):
            continue
        if not any((folder / part).glob("*.safetensors")):
            values = {"part": part, "kind": pipeline_name(folder), "folder": folder.name}
            raise LoomError("base.no_part", field="base", file=file.name, **values)
        networks[part] = read_whole(kind, folder / part, torch.float32, "base_config")
    return networks


def _shapes(file: Path) -> dict[str, torch.Tensor]:
    """A file's tensors without their values, as diffusers looks at them."""
    with safe_open(file, "pt") as opened:
        names = opened.keys()
        return {name: torch.empty(opened.get_slice(name).get_shape(), device="meta") for name in names}


def _cached_layout(file: Path, cached: Callable[[str], str | None]) -> Path:
    """The folder of the model's own repository, where somebody has fetched it."""
    from diffusers.loaders.single_file_utils import fetch_diffusers_config

    repo = fetch_diffusers_config(_shapes(file))["pretrained_model_name_or_path"]
    place = cached(repo)
    if place is None:
        raise LoomError("base_config.empty", field="base_config", file=file.name, repo=repo)
    return Path(place)
