"""Which folders a run trains on, before and after it is known for which model and at which size."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol, runtime_checkable

from ...lora_core.backends.base_model import BaseModel
from ...lora_core.config import DataConfig, ObjectiveConfig, TrainConfig
from ...lora_core.data.dataset import Dataset
from ...lora_core.data.folder import Scan, dataset_of, no_pictures, open_sets, scans_of
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


@runtime_checkable
class Loaded(Protocol):
    """A model that is at hand, not its file alone."""

    def base_model(self, config: ObjectiveConfig) -> BaseModel:
        """What it was found to be."""


@dataclasses.dataclass(frozen=True)
class PictureSets:
    """How to read each folder. The pictures are sized when the run knows its resolution.

    `scans`: folders that were read already; one that changed meanwhile, or is to be read in another way, is read again.
    """

    sets: tuple[DataConfig, ...]
    scans: tuple[Scan, ...] = dataclasses.field(default=(), compare=False, repr=False)

    @staticmethod
    def of(data: DataConfig) -> PictureSets:
        """One folder, before it is known at which size it is trained."""
        return PictureSets((data,)).changed(**UNSIZED)

    @staticmethod
    def none() -> PictureSets:
        """No folder at all, for what is trained without pictures."""
        return PictureSets((DataConfig(),))

    def parts(self) -> dict[str, Any]:
        """The part of a config that says what is trained on."""
        return {"data": self.sets[0], "sets": self.sets[1:]}

    def opened(self, needed: bool = True) -> Dataset:
        """The pictures as they are now; none where no folder is named and none is `needed`."""
        config = TrainConfig(**self.parts())
        if not needed and not any(data.folder for data in config.all_sets()):
            return no_pictures(config)
        return open_sets(config, self.scans)

    def read(self) -> tuple[PictureSets, Dataset]:
        """(the same with what was read, for whoever opens it next; the pictures as they are now). Raises LoomError."""
        config = TrainConfig(**self.parts())
        scans = scans_of(config, self.scans)
        return dataclasses.replace(self, scans=tuple(scans)), dataset_of(config, scans)

    def changed(self, **values: Any) -> PictureSets:
        """With these settings in every set."""
        return dataclasses.replace(self, sets=tuple(dataclasses.replace(data, **values) for data in self.sets))

    def sized(self, resolution: int, base: Base) -> PictureSets:
        """At `resolution` px, 0 meaning what the model was made for, in buckets of 64 px; finer ones for the toy's small pictures."""
        side = resolution or resolution_for(base.family, base.context_width)
        step = base.latent_step_px if side <= TOY_RESOLUTION else USUAL_STEP_PX
        return self.changed(resolution=side, bucket_step_px=step)
