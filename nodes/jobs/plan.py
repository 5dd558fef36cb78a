"""What a run will do, said before its first step: base, pictures, length, size and rate and from where each comes, what earlier runs like it took."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...convert.files.checkpoints import checkpoint, family_of
from ...lora_core.backends.marks import marks_of_file
from ...lora_core.config import TrainConfig, as_dict
from ...lora_core.data.clips import shapes_of
from ...lora_core.data.dataset import Dataset
from ...lora_core.messages.errors import Problem
from ...lora_core.messages.message import Message
from ...lora_core.optim.optimizers import filled
from ...lora_core.runs.estimates import Estimate, estimate
from ...lora_core.training.auto import kept
from ...lora_core.training.length import batches_per_epoch, planned
from ...lora_core.training.memory import Weights, decided
from ...lora_core.training.validation import trained_part
from .time_left import Plan, forecast

MOST_NOTES = 3
MOST_BYTES = 2
_BYTES = {"F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1}
_NETWORK, _BESIDE = (
    "model.diffusion_model.",
    ("first_stage_model.", "cond_stage_model.", "conditioner.", "text_encoder", "vae."),
)
_TEXT_WIDTH = "attn2.to_k.weight"  # (channels, width of the text) of an SD UNet


@dataclasses.dataclass(frozen=True)
class UnloadedBase:
    """What a model file tells before it is loaded. `notes`: what its name and its marks say."""

    family: str
    context_width: int | None = None
    file: str = ""
    notes: tuple[Message, ...] = ()
    latent_step_px: int = 8
    weights: Weights = Weights(0, 0)


def base_of_file(path: Path) -> UnloadedBase:
    """From the file's header alone. Raises Problem for what is no model that is known."""
    with checkpoint(path) as (layout, _, _):
        family = family_of(layout).name
        weights = _weights(layout)
        width = next((shape[1] for key, (_, shape) in layout.items() if key.endswith(_TEXT_WIDTH)), None)
    sign = marks_of_file(path).distilled
    notes = () if sign is None else (Message.of("base.distilled", field="base", sign=sign),)
    return UnloadedBase(family, width, path.name, notes, weights=weights)


def _weights(layout: Mapping[str, tuple[str, tuple[int, ...]]]) -> Weights:
    """The network's part of a model file, as it lies on a GPU: hosts load what is stored in four bytes in two."""
    inside = [key for key in layout if key.startswith(_NETWORK)] or [k for k in layout if not k.startswith(_BESIDE)]
    sizes = [(math.prod(shape), _BYTES.get(kind, MOST_BYTES)) for kind, shape in map(layout.__getitem__, inside)]
    return Weights(sum(values for values, _ in sizes), sum(values * size for values, size in sizes))


def plan(
    config: TrainConfig, pictures: Dataset, base: UnloadedBase, sources: Mapping[str, str], root: Path
) -> dict[str, Any]:
    """What the page shows of a checked job. `sources`: config path -> who decided it (you, settings, preset, model).

    `root`: where runs lie, of which one like this tells time and memory.
    """
    decided_job, memory = decided(config, base.family, base.weights)
    job = filled(planned(decided_job, pictures))
    trained = trained_part(pictures, job)
    per_epoch = batches_per_epoch(trained, job.batch_size) / job.grad_accum
    cost = estimate(root, job, base.family, base.file)
    values = {
        "steps": job.steps,
        "adapter.rank": job.adapter.rank if job.trains_lora else None,
        "optimizer.lr": None if _finds_rate(job) else job.optimizer.lr,
        "data.resolution": job.data.resolution,
    }
    notes = [*([Message.of("auto.will")] if job.auto else []), *base.notes, *pictures.messages()[1:]]
    return {
        "base": {"file": base.file, "family": base.family},
        "pictures": len(pictures.pictures),
        "uncaptioned": sum(not picture.caption for picture in pictures.pictures),
        "trigger": pictures.trigger,
        "buckets": _buckets(trained),
        "epochs": round(job.steps / per_epoch, 1) if per_epoch else None,
        "rows": [{"path": p, "value": v, "source": sources.get(p, "")} for p, v in values.items() if v is not None],
        "cost": cost
        and {"seconds": _seconds(job, cost, len(trained.pictures)), "bytes": cost.peak_bytes, "run": cost.run},
        "memory": memory and memory.as_json(),
        "notes": [note.as_json() for note in notes[:MOST_NOTES]],
        "more_notes": max(0, len(notes) - MOST_NOTES),
        "problem": None,
    }


def _finds_rate(job: TrainConfig) -> bool:
    return job.auto and "optimizer.lr" not in kept(job)


def _seconds(job: TrainConfig, cost: Estimate, pictures: int) -> float:
    return forecast(Plan.of(job.steps, as_dict(job)), cost, pictures)


def refused(error: Problem) -> dict[str, Any]:
    """What the page shows of a job that would not begin."""
    return {"problem": error.message.as_json()}


def _buckets(dataset: Dataset) -> list[list[int]]:
    """(width, height, pictures, and frames of clips) of each size that is trained, the fullest first."""
    counts: collections.Counter[tuple[int, int, int]] = collections.Counter()
    for picture in dataset.pictures:
        if picture.is_latent:
            counts[picture.width_px, picture.height_px, 1] += 1
        else:
            counts.update(shapes_of(picture))
    return [
        [width, height, count, *([frames] if frames > 1 else [])]
        for (width, height, frames), count in counts.most_common()
    ]
