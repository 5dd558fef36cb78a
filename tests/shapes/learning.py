"""Job settings that teach the toy of shapes a concept in under three minutes on two CPU cores, and the score that proves it."""

from __future__ import annotations

import random
from typing import Any

from lora_loom.lora_core.backends.base import Backend
from lora_loom.lora_core.training.demo import share_shown

from . import BASE, set_folder
from .concepts import CONCEPTS
from .world import SIZE_PX

STEPS = {"object": 1200, "style": 1800, "pair": 1200, "word": 600}


def demo_job(name: str) -> dict[str, Any]:
    """The TOML job of a bundled set, as nested dicts."""
    concept, rng = CONCEPTS[name], random.Random(f"demo {name}")
    prompts = [concept.prompt(rng) for _ in range(4)] + [concept.plain(rng) for _ in range(4)]
    return {
        "name": f"toy_{name}",
        "base": BASE,
        "steps": STEPS[name],
        "batch_size": 8,
        "data": {"folder": set_folder(name), "resolution": 64, "bucket_step_px": 8},
        "adapter": {"rank": 16, "targets": "conv"},
        "optimizer": {"lr": 2e-3},
        "schedule": {"name": "cosine", "warmup_steps": 20},
        "save": {"every": 200},
        "samples": {"every": 10_000, "prompt": "\n".join(prompts), "cfg": 4.0, "steps": 20},
    }


def score(backend: Backend, name: str, pictures: int = 20, seed: int = 1000) -> tuple[float, float]:
    """(share of pictures that show the concept when the trigger is in the prompt, share when it is not), by the concept's pixel ruler."""
    concept, rng = CONCEPTS[name], random.Random(f"score {name}")
    asked = [concept.prompt(rng) for _ in range(pictures)], [concept.plain(rng) for _ in range(pictures)]
    with_trigger, without = (share_shown(backend, prompts, concept.shows, SIZE_PX, seed) for prompts in asked)
    return with_trigger, without
