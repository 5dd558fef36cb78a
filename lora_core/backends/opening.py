"""The headless backend of a base model: the toy, a folder in diffusers layout, or a single file with such a folder for its configs and tokenizers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..compat import needed
from ..disk.files import is_file, is_folder
from ..messages.errors import LoomError, reason_of
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
        return _of_file(place, Path(base_config) if base_config else None, cached, precision, device)
    if not is_folder(place):
        raise LoomError("base.missing", field="base", place=place)
    name = pipeline_name(place)
    if name and name not in (*ONE_NETWORK, *TWO_STAGES) and not (place / "unet").is_dir():
        pipelines = ", ".join([*ONE_NETWORK, *TWO_STAGES])
        raise LoomError("base.kind", field="base", file=place.name, kind=name, allowed=pipelines)
    require_unscaled(place.name, stored_names(place))
    try:
        if name in TWO_STAGES:
            return TWO_STAGES[name](place, companion, precision, device)
        backend = ONE_NETWORK.get(name, DiffusersBackend)(place, precision, device)
        backend.marks = marks_of_folder(place)
        return backend
    except (OSError, ValueError) as error:  # a part without weights, or with some that do not fit its config
        raise LoomError("base.unreadable", field="base", file=place.name, reason=reason_of(error)) from error


def _of_file(
    file: Path, folder: Path | None, cached: Callable[[str], str | None], precision: str, device: str
) -> Headless:
    if file.suffix != ".safetensors":
        raise LoomError("base.not_safetensors", field="base", file=file.name)
    try:
        with safe_open(file, "pt") as opened:
            require_unscaled(file.name, opened.keys())
            require_discrete_file(file, opened.keys())
            require_plain_file(set(opened.keys()), lambda name: opened.get_slice(name).get_shape())
    except (SafetensorError, OSError) as error:
        raise LoomError("base.unreadable", field="base", file=file.name, reason=reason_of(error)) from error
    folder = folder or _cached_layout(file, cached)
    name = pipeline_name(folder)
    try:
        if name in ONE_NETWORK:
            backend = _read(file, folder, name, precision, device)
            backend.marks = marks_of_file(file)
            return backend
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = reason_of(error)
        raise LoomError(
            "base.other_kind", field="base", file=file.name, kind=name, folder=folder.name, reason=reason
        ) from error
    allowed = list(ONE_NETWORK)
    if not name:
        raise LoomError("base_config.no_pipeline", field="base_config", folder=folder, allowed=allowed)
    raise LoomError("base_config.other_pipeline", field="base_config", folder=folder, pipeline=name, allowed=allowed)


def _read(file: Path, folder: Path, name: str, precision: str, device: str) -> Headless:
    """A single file by the pipeline of its folder."""
    if name in FLOW_FAMILIES:
        return FlowBackend(folder, precision, device, file)
    import diffusers

    without = {"safety_checker": None, "feature_extractor": None, "image_encoder": None}
    pipe = getattr(diffusers, name).from_single_file(str(file), config=str(folder), **without, **LOCAL)
    require_discrete_scheduler(folder, scheduler_config(folder))
    return DiffusersBackend(file, precision, device, pipe)


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
        raise LoomError("base_config.empty", field="base_config", file=file.name, repo=repo)
    return Path(place)
