"""Settings by config path, such as adapter.rank, as doors collect them; and the job they make with what preset and model fill in."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from ...lora_core.config import TrainConfig, as_dict, parse
from ...lora_core.data.folder import Dataset
from ...lora_core.recipes import LENGTHS
from .datasets import Base, PictureSets
from .presets import PRESETS


def over(config: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`config` (nested) with these values in it, by config path. A length among them replaces one that is said otherwise."""
    out = copy.deepcopy(dict(config))
    if any(values.get(name) for name in LENGTHS):
        out |= {name: 0 for name in LENGTHS if name != "steps"}
    for path, value in values.items():
        *sections, leaf = path.split(".")
        place = out
        for section in sections:
            place = place[section]
        place[leaf] = value
    return out


def automatic(preset: str, pictures: int, optimizer: str) -> dict[str, Any]:
    """What a preset fills in, by config path. Its learning rate is AdamW's; other optimizers have their own usual one."""
    chosen = PRESETS[preset]
    return {
        "steps": chosen.steps(pictures),
        "adapter.rank": chosen.rank,
        "schedule.name": chosen.schedule,
        "optimizer.lr": chosen.lr if optimizer == "adamw" else 0.0,
    }


def job_config(
    base: str, values: Mapping[str, Any], preset: str, sets: PictureSets, model: Base
) -> tuple[TrainConfig, Dataset]:
    """The checked job of `values`, with preset and model where they say nothing, and its pictures. Raises LoomError naming the field."""
    sized = sets.sized(values.get("data.resolution", 0), model)
    if step := values.get("data.bucket_step_px"):
        sized = sized.changed(bucket_step_px=step)
    pictures = sized.opened()
    filled = automatic(preset, len(pictures.pictures), values.get("optimizer.name", "adamw"))
    chosen = {path: value for path, value in values.items() if not path.startswith("data.")}
    if any(chosen.get(name) for name in LENGTHS):
        del filled["steps"]
    plain = over(as_dict(TrainConfig(base=base, **sized.parts())), {**filled, **chosen})
    return parse(plain), pictures
