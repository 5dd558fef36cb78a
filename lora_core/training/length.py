"""How many weight updates a run makes: as many as `steps` says, or what its pictures or epochs come to."""

from __future__ import annotations

import collections
import dataclasses
import math

from ..config import TrainConfig
from ..data.clips import shapes_of
from ..data.dataset import Dataset
from ..messages.message import Message
from .validation import trained_part


def batches_per_epoch(dataset: Dataset, size: int) -> int:
    """Batches of `size` pictures in which every picture is shown as often as it repeats; they never mix buckets, so the last of each is filled up."""
    counts: collections.Counter[tuple[int, int, int]] = collections.Counter()
    for picture in dataset.pictures:
        if picture.is_latent:
            counts[picture.width_px, picture.height_px, 1] += picture.repeats
        else:
            for shape in shapes_of(picture):
                counts[shape] += picture.repeats
    return sum(math.ceil(count / size) for count in counts.values())


def planned(config: TrainConfig, dataset: Dataset, processes: int = 1) -> TrainConfig:
    """The job with the number of steps that its epochs or its steps for each picture come to."""
    if config.steps_per_picture:
        return dataclasses.replace(config, steps=config.steps_per_picture * len(dataset.pictures))
    if not config.epochs:
        return config
    batches = batches_per_epoch(trained_part(dataset, config), config.batch_size * processes)
    return dataclasses.replace(config, steps=max(1, math.ceil(config.epochs * batches / config.grad_accum)))


def epochs_message(config: TrainConfig, dataset: Dataset) -> Message | None:
    """What the epochs of a planned job come to; None for one that counts steps."""
    if not config.epochs:
        return None
    count = sum(picture.repeats for picture in trained_part(dataset, config).pictures)
    return Message.of(
        "length.epochs",
        epochs=config.epochs,
        pictures=count,
        batch=config.batch_size,
        accum=config.grad_accum,
        steps=config.steps,
    )
