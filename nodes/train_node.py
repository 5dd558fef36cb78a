"""What the nodes that train have alike: the wires of a base model, new run or old, and a LoRA that the host is known to read back."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..convert import trained
from ..convert.embedding import read_embedding
from ..convert.loaders import readers_of
from ..lora_core.algebra.kinds import KINDS
from ..lora_core.algebra.walk import weight_shape
from ..lora_core.backends.base import Backend
from ..lora_core.config import TrainConfig
from ..lora_core.data.dataset import Dataset
from ..lora_core.messages.errors import LoomError
from ..lora_core.training.build import chosen_layers
from ..lora_core.training.trainer import Result
from .host.access.api import io, make_input, schema
from .host.access.check import require_matched
from .host.engine.backend import HostBackend
from .sockets import CATEGORY, EmbeddingSocket
from .training import job_of, started_from, train
from .widgets import inputs, row

NEW, LAST = "new run", "continue last"
RESUME = make_input(
    io.Combo, "resume", options=[NEW, LAST], default=NEW, advanced=True,
    tooltip="continue last continues where the latest run of this name was saved, exactly as if it had never stopped.",
)  # fmt: skip
RESOLUTION = row(
    "data.resolution", automatic=True, default=0, min=0, zero="auto", step=8, tooltip="Training resolution in px; 0 takes what the model was made for."
)  # fmt: skip
CONTINUED = make_input(
    io.LoraModel, "lora", optional=True, tooltip="A LoRA to continue from instead of starting at zero. Its ranks are kept."
)  # fmt: skip
VISION = make_input(
    io.ClipVision, "clip_vision", optional=True,
    tooltip="For models that film from a first frame and see it through CLIP Vision (Wan 2.1 image to video, HunyuanVideo 1.5): what Load CLIP Vision loads.",
)  # fmt: skip


def base_inputs(clip: str = "The text encoder of the base model.") -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE; `clip`: the tooltip of the second."""
    return (
        make_input(io.Model, "model", tooltip="The base model. It is not copied and not changed."),
        make_input(io.Clip, "clip", tooltip=clip),
        make_input(io.Vae, "vae", tooltip="The VAE of the base model."),
    )


def train_schema(table: Sequence[Any], **said: Any) -> io.Schema:
    """The schema of a node that trains with the widgets of `table`; `said`: what it says of itself."""
    hidden = [io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo]
    return schema(category=CATEGORY, is_output_node=True, hidden=hidden, inputs=inputs(table), **said)


class TrainNode(io.ComfyNode):
    @classmethod
    def fingerprint_inputs(cls, resume: str = NEW, **_: Any) -> str:
        """A new run with equal inputs is not trained again; continuing always does something."""
        return str(time.time_ns()) if resume == LAST else ""


def run_of_lora(
    hidden: Any,
    base: tuple[Any, Any],
    backend: HostBackend,
    job: tuple[TrainConfig, Dataset],
    resume: str,
    lora: dict | None = None,
) -> tuple[Result, list[Path]]:
    """Trains a LoRA, from a wired one or from zero, on the wired MODEL and CLIP `base`. Returns (result, its files).

    Raises LoomError before the first step when the host could not read back what will be written.
    """
    config, pictures = job
    start = started_from(lora, backend, config)
    require_matched(trained(empty_lora(backend, config), backend.family), *base)
    result, paths = train(hidden, job_of(backend, config, pictures, start), resume == LAST)
    require_matched(result.tensors, *base)
    return result, paths


def empty_lora(backend: Backend, config: TrainConfig) -> dict[str, torch.Tensor]:
    """The names this run will write, with empty weights: what the host cannot read back is found before training. Raises LoomError for kinds it never reads."""
    layers, texts = chosen_layers(config, backend)
    kind = KINDS[config.adapter.algorithm]
    readers = readers_of(kind.name)
    if readers and "ComfyUI" not in readers:
        raise LoomError("adapter.not_in_comfyui", field="adapter.algorithm", kind=kind.title, readers=readers)
    state = {}
    for name, layer in {**layers, **texts}.items():
        shape = weight_shape(layer)
        if len(shape) == 1:
            state[f"{name}.diff"] = torch.zeros(shape)
        else:
            state[f"{name}.lora_down"] = torch.zeros(1, *shape[1:])
            state[f"{name}.lora_up"] = torch.zeros(shape[0], 1, *[1] * (len(shape) - 2))
    return state


def embeddings_of(result: Result, paths: list[Path]) -> dict[str, EmbeddingSocket]:
    """The word of each embedding a run has written -> its vectors."""
    stems = list(result.products)[-len(paths) :] if paths else []
    return {
        path.stem: EmbeddingSocket(read_embedding(result.products[stem][0]))
        for stem, path in zip(stems, paths, strict=True)
    }
