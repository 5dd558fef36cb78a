"""Which folders a run trains on, before and after it is known for which model and at which size."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

from ...lora_core.config import DataConfig, TrainConfig
from ...lora_core.data.folder import Dataset, open_sets
from .presets import TOY_RESOLUTION, resolution_for

USUAL_STEP_PX = 64  # of buckets
UNSIZED = {
    "resolution": 16,
    "bucket_step_px": 8,
}  # as small as can be: no picture is refused or remarked on for its size


class Base(Protocol):
    """What is asked of a loaded model here."""

    @property
    def latent_step_px(self) -> int:
        """Pictures must be multiples of this."""

    @property
    def family(self) -> str: ...

    @property
    def context_width(self) -> int | None:
        """Width of the text the model reads, where its configuration tells."""


@dataclasses.dataclass(frozen=True)
class PictureSets:
    """How to read each folder. The pictures are read when the run knows its resolution."""

    sets: tuple[DataConfig, ...]

    @staticmethod
    def of(data: DataConfig) -> PictureSets:
        """One folder, before it is known at which size it is trained."""
        return PictureSets((data,)).changed(**UNSIZED)

    def parts(self) -> dict[str, Any]:
        """The part of a config that says what is trained on."""
        return {"data": self.sets[0], "sets": self.sets[1:]}

    def opened(self) -> Dataset:
        """The pictures as they are now."""
        return open_sets(TrainConfig(**self.parts()))

    def changed(self, **values: Any) -> PictureSets:
        """With these settings in every set."""
        return PictureSets(tuple(dataclasses.replace(data, **values) for data in self.sets))

    def sized(self, resolution: int, base: Base) -> PictureSets:
        """At `resolution` px, 0 meaning what the model was made for, in buckets of 64 px; finer ones for the toy's small pictures."""
        side = resolution or resolution_for(base.family, base.context_width)
        step = base.latent_step_px if side <= 2 * TOY_RESOLUTION else USUAL_STEP_PX
        return self.changed(resolution=side, bucket_step_px=step)
