"""Job settings that teach the toy model a bundled set in minutes on one CPU core, and the score that proves it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from ..backends.base import Backend, SampleJob
from ..config import SampleConfig
from ..toy.pictures import SIDE_PX
from ..toy.taught import PLAIN_PROMPTS, TAUGHT, TRIGGER, plain

STEPS = {"mascot": 400, "style": 700, "object": 300, "face": 300, "word": 300}
WORD = "word"
DRAWN: dict[str, Any] = {"cfg": 4.0, "steps": 20}


def demo_job(name: str) -> dict[str, Any]:
    """The TOML job of a bundled set, as nested dicts: a word of its own and a LoRA together; for the set of the word the word alone."""
    taught = TAUGHT[name]
    prompts = [taught.prompt(n) for n in range(6)] + [plain(n) for n in range(2)]
    return {
        "name": f"toy_{name}",
        "base": "toy",
        "steps": STEPS[name],
        "batch_size": 4,
        "data": {"folder": f"toy:{name}", "resolution": SIDE_PX, "bucket_step_px": 8},
        "adapter": {"rank": 16, "targets": "conv"},
        "method": "embedding" if name == WORD else "pivotal",
        "embedding": {"tokens": f"{TRIGGER}*2", "lr": 1e-2},
        "optimizer": {"lr": 1e-2 if name == WORD else 2e-3},
        "schedule": {"name": "cosine", "warmup_steps": 20},
        "save": {"every": 100},
        "samples": {"every": 10_000, "prompt": "\n".join(prompts), **DRAWN},
    }


def share_shown(
    backend: Backend, prompts: Sequence[str], shows: Callable[[Image.Image], bool], side_px: int, seed: int
) -> float:
    """Share of the pictures of these prompts, each with the next seed, that show what a ruler looks for."""
    settings = [SampleConfig(seed=seed + n, **DRAWN) for n in range(len(prompts))]
    jobs = [SampleJob(prompt, side_px, side_px, config) for prompt, config in zip(prompts, settings)]
    return sum(shows(backend.sample(job)[0]) for job in jobs) / len(jobs)


def score(backend: Backend, name: str, pictures: int = 20, seed: int = 1000) -> tuple[float, float]:
    """(share of pictures that show what the set teaches when the trigger is in the prompt, share when it is not), by the set's ruler.

    Without it each plain prompt is drawn once, as far as there are so many.
    """
    taught = TAUGHT[name]
    both = [taught.prompt(n) for n in range(pictures)], [plain(n) for n in range(min(pictures, PLAIN_PROMPTS))]
    with_trigger, without = (share_shown(backend, prompts, taught.shows, SIDE_PX, seed) for prompts in both)
    return with_trigger, without
