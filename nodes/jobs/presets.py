"""What a preset means for a model family and a number of pictures. A value the user sets wins over the preset."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from ...lora_core.backends.base_model import BaseModel, Expert
from ...lora_core.backends.marks import WAN_BOUNDARY, WAN_I2V_BOUNDARY
from ...lora_core.training.auto import longest


@dataclasses.dataclass(frozen=True)
class Preset:
    """`steps` is a function of the number of pictures. Figures from the experiments in Hugging Face's LoRA training write-ups.

    `part`: of a model whose noise levels several networks share, the code of the one that is trained: its range is set, and its files' names end in it.
    """

    steps: Callable[[int], int]
    rank: int
    lr: float
    schedule: str
    part: str = ""

    def named(self, name: str) -> str:
        """The name of a run, with its network at the end where several have a part of the levels."""
        end = f"_{self.part}"
        return name if not self.part or name.endswith(end) else f"{name}{end}"

    def timesteps(self, base: BaseModel) -> dict[str, Any]:
        """The range of noise levels that this network is asked for, by config path."""
        if not self.part:
            return {}
        low, high = _RANGES[self.part](base)
        return {"objective.min_timestep": low, "objective.max_timestep": high}


def _of_expert(part: str) -> Callable[[BaseModel], tuple[int, int]]:
    def timesteps(base: BaseModel) -> tuple[int, int]:
        expert, usual = base.expert, WAN_I2V_BOUNDARY if base.further else WAN_BOUNDARY
        border = usual if expert is None else expert.low or expert.high
        low, high = (border, 1.0) if part == "high_noise" else (0.0, border)
        return Expert(f"expert.{part}", low, high).range_of(base.shift or 1.0)

    return timesteps


# SDXL's refiner was trained on the last fifth of the way to the picture.
_RANGES: dict[str, Callable[[BaseModel], tuple[int, int]]] = {
    "high_noise": _of_expert("high_noise"),
    "low_noise": _of_expert("low_noise"),
    "refiner": lambda base: (0, 200),
}


AUTO = "auto"  # the preset that measures what is left open


def _concept(n: int) -> int:
    return min(3000, max(500, 100 * n))


PRESETS = {
    "character": Preset(
        lambda n: min(3000, max(600, 120 * n)), 16, 1e-4, "constant"
    ),  # faces and characters: 120 steps a picture
    "style": Preset(lambda n: min(4000, max(1000, 40 * n)), 32, 1e-4, "cosine"),
    "concept": Preset(_concept, 16, 1e-4, "cosine"),
    "quick test": Preset(lambda n: 100, 8, 2e-4, "constant"),
    "Wan 2.2 high noise": Preset(_concept, 16, 1e-4, "cosine", "high_noise"),
    "Wan 2.2 low noise": Preset(_concept, 16, 1e-4, "cosine", "low_noise"),
    "SDXL refiner": Preset(_concept, 16, 1e-4, "cosine", "refiner"),
    AUTO: Preset(longest, 16, 0.0, "constant"),
}
RESOLUTIONS = {"sd1": 512, "sd2": 512, "sd2-v": 768}
LARGE_RESOLUTION = 1024  # every newer family
TOY_RESOLUTION = 128
SHAPES_RESOLUTION, SHAPES_WIDTH = 64, 64  # of the toy of 0.1.0


def resolution_for(family: str, context_width: int | None) -> int:
    """The resolution a family was trained at, in px."""
    if family == "sd1" and context_width is not None and context_width < 256:
        return SHAPES_RESOLUTION if context_width <= SHAPES_WIDTH else TOY_RESOLUTION
    return RESOLUTIONS.get(family, LARGE_RESOLUTION)
