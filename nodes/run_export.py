"""A run's result, or one of its saves, where ComfyUI lists LoRAs and embeddings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ..convert import is_lora
from ..convert.embedding import is_embedding, read_embedding
from ..convert.files.disk import load
from ..lora_core.config import as_dict
from ..lora_core.messages.errors import LoomError
from ..lora_core.pictures.reading import PictureError, open_rgb
from ..lora_core.runs import listing
from ..lora_core.runs.folders import config_of
from ..lora_core.runs.owner import exporting
from .host.access.api import host_version
from .host.access.paths import embedding_folders, lora_folders
from .jobs.exports import base_of, saved
from .run_checkpoints import contents
from .save import SaveEmbedding, SaveLora
from .sockets import EmbeddingSocket, LoraWeights

OWN_FOLDER = "output/loras"


def export_run(folder: Path, save: str | int) -> list[str]:
    """Writes a run's result or one of its saves where ComfyUI lists LoRAs and embeddings, by the Save nodes, never over a file. Returns their labels.

    A run that is being trained is read beside its training, which changes no save; for all others the export owns the folder.
    """
    with exporting(folder, host_version()):
        return _exported(folder, save)


def _exported(folder: Path, save: str | int) -> list[str]:
    name = folder.name
    if save == "result":
        lora, embeddings, step = result_of(folder)
    else:
        saves = saved(folder, save)
        name, step = f"{folder.name}_{'best' if saves.best else f'step{saves.step}'}", saves.step
        lora, named = contents(folder, saves)
        embeddings = {name + stem.removeprefix(folder.name): embedding for stem, embedding in named.items()}
    written = []
    if lora:
        place = next((label for label in lora_folders() if label != OWN_FOLDER), OWN_FOLDER)
        written.append((place, SaveLora.execute(lora, name, place, "fp16", preview=picture_of(folder, step)).args[0]))
    for stem, embedding in embeddings.items():
        place = next(iter(embedding_folders()))
        written.append((place, SaveEmbedding.execute(embedding, stem, place, "webui", "new number").args[0]))
    return [f"{place}/{Path(path).name}" for place, path in written]


def result_of(folder: Path) -> tuple[LoraWeights, dict[str, EmbeddingSocket], int]:
    """The result files of a run: its LoRA, its embeddings, the steps it was trained."""
    results = listing.read_run(folder).results
    if not results:
        raise LoomError("save.no_result", field="save", run=folder.name)
    config, lora, embeddings, step = config_of(folder), LoraWeights({}, "", {}), {}, 0
    for file in results:
        tensors, metadata = load(folder / file)
        if is_embedding(tensors):
            embeddings[Path(file).stem] = EmbeddingSocket(read_embedding(tensors))
        elif is_lora(tensors) or not lora:
            number = metadata.get("ss_steps", "")
            step = int(number) if number.isdigit() and len(number) < 13 else 0
            facts = {"config": as_dict(config), "step": step} if step else {}
            pictures = metadata.get("ss_num_train_images", "")
            facts |= {"repeats": [int(pictures)]} if pictures.isdigit() and len(pictures) < 13 else {}
            lora = LoraWeights(tensors, base_of(folder, {}), facts)
    if lora and embeddings:
        lora.facts["triggers"] = list(embeddings)
    return lora, embeddings, step


def picture_of(folder: Path, step: int) -> torch.Tensor | None:
    """The sample picture drawn last up to this step, as an IMAGE; None where there is none that can be read."""
    drawn_until = {at: path for at, path in listing.pictures(folder).items() if 0 < at <= step}
    if not drawn_until:
        return None
    try:
        return torch.from_numpy(np.asarray(open_rgb(drawn_until[max(drawn_until)]), np.float32) / 255.0)[None]
    except PictureError:
        return None
