"""What a preset means for a model family and a number of pictures. A value the user sets wins over the preset."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Preset:
    """`steps` is a function of the number of pictures. Figures from the experiments in Hugging Face's LoRA training write-ups."""

    steps: Callable[[int], int]
    rank: int
    lr: float
    schedule: str


PRESETS = {
    "character": Preset(
        lambda n: min(3000, max(600, 120 * n)), 16, 1e-4, "constant"
    ),  # faces and characters: 120 steps a picture
    "style": Preset(lambda n: min(4000, max(1000, 40 * n)), 32, 1e-4, "cosine"),
    "concept": Preset(lambda n: min(3000, max(500, 100 * n)), 16, 1e-4, "cosine"),
    "quick test": Preset(lambda n: 100, 8, 2e-4, "constant"),
}
RESOLUTIONS = {"sd1": 512, "sd2": 512, "sd2-v": 768}
LARGE_RESOLUTION = 1024  # every newer family
TOY_RESOLUTION = 64


def resolution_for(family: str, context_width: int | None) -> int:
    """The resolution a family was trained at, in px."""
    if family == "sd1" and context_width is not None and context_width < 256:
        return TOY_RESOLUTION
    return RESOLUTIONS.get(family, LARGE_RESOLUTION)
