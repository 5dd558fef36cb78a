"""Settings by config path, such as adapter.rank, as doors collect them; and the job they make with what preset and model fill in."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from ...lora_core.config import (
    BY_AUTO,
    BY_MEMORY,
    ObjectiveConfig,
    ScheduleConfig,
    TrainConfig,
    as_dict,
    parse,
)
from ...lora_core.data.dataset import Dataset
from ...lora_core.recipes import LENGTHS
from .datasets import Base, Loaded, PictureSets
from .presets import AUTO, PRESETS

SLIDER = {"steps": 500, "adapter.rank": 8, "optimizer.lr": 2e-4}  # what a slider takes by itself


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


def left_open(filled: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Of what would be filled in, the settings that `values` leave at what they are by themselves."""
    usual = {f"objective.{field.name}": field.default for field in dataclasses.fields(ObjectiveConfig)}
    return {path: value for path, value in filled.items() if values.get(path, usual[path]) == usual[path]}


def automatic(preset: str, pictures: int, values: Mapping[str, Any]) -> dict[str, Any]:
    """What a preset fills in for the job of `values`, by config path; of a slider no more than that it is to be a short one.

    The learning rate is AdamW's; other optimizers have their own usual one.
    """
    chosen = PRESETS[preset]
    filled = {
        "steps": chosen.steps(pictures),
        "adapter.rank": chosen.rank,
        "schedule.name": chosen.schedule,
        "optimizer.lr": chosen.lr,
    }
    if values.get("method") == "slider":
        filled |= {**SLIDER, "schedule.name": ScheduleConfig.name, "steps": min(SLIDER["steps"], chosen.steps(0))}
    return filled if values.get("optimizer.name", "adamw") == "adamw" else {**filled, "optimizer.lr": 0.0}


def measured(preset: str, settings: Iterable[str]) -> dict[str, Any]:
    """What the preset auto sets, by config path, where these settings are given; nothing of other presets."""
    if preset != AUTO:
        return {}
    names = {*settings}
    return {"auto": True, "auto_keeps": ", ".join(name for name in (*BY_AUTO, *LENGTHS[1:]) if name in names)}


def needs_pictures(values: Mapping[str, Any]) -> bool:
    """Whether a job of these settings, by config path, is trained on pictures: all but a slider from prompts, one from pairs too."""
    return values.get("method") != "slider" or values.get("slider.mode") == "pairs"


def job_config(
    base: str, values: Mapping[str, Any], preset: str, sets: PictureSets, model: Base
) -> tuple[TrainConfig, Dataset]:
    """The checked job of `values`, with preset and model where they say nothing, and its pictures. Raises LoomError naming the field."""
    sized = sets.sized(values.get("data.resolution", 0), model)
    if step := values.get("data.bucket_step_px"):
        sized = sized.changed(bucket_step_px=step)
    pictures = sized.opened(needed=needs_pictures(values))
    filled = automatic(preset, len(pictures.pictures), values)
    chosen = {path: value for path, value in values.items() if not path.startswith("data.")}
    if any(chosen.get(name) for name in LENGTHS):
        del filled["steps"]
    asked = PRESETS[preset]
    if asked.part and isinstance(model, Loaded):
        filled |= left_open(asked.timesteps(model.base_model(ObjectiveConfig())), chosen)
    if asked.part:
        chosen["name"] = asked.named(str(chosen.get("name", TrainConfig.name)))
    keeps = {"memory_keeps": ", ".join(name for name in BY_MEMORY if name in chosen)}
    filled |= measured(
        preset, (path for path, value in chosen.items() if value or path not in (*LENGTHS, "optimizer.lr"))
    )
    plain = over(as_dict(TrainConfig(base=base, **sized.parts())), {**filled, **keeps, **chosen})
    return parse(plain), pictures
