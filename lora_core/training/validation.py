"""Validation that can be compared: the same pictures, noise levels and noise every time, held-out pictures beside as many trained ones.

A training loss is mostly noise about which levels were drawn. Here nothing is drawn anew, so a difference between two steps is one of the weights;
and both sets meet the same levels and noise, so what separates the two curves is that the one set was trained on.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

import torch

from ..backends.base import Backend
from ..config import TrainConfig
from ..data.batches import Batch
from ..data.folder import Dataset, Picture, scan
from ..data.latents import LatentCache, View
from ..events import Measure
from ..losses import mean, mse
from ..messages.errors import LoomError
from ..objectives import TIMESTEPS, Objective
from ..rng import generator, python_rng, randn_like


def split(dataset: Dataset, config: TrainConfig) -> tuple[Dataset, Dataset | None]:
    """(pictures to train on, pictures to validate on). The second is None when validation is off."""
    if not config.validation.every:
        if config.validation.patience or config.validation.restore_best:
            raise LoomError("validation.never", field="validation.every")
        return dataset, None
    if config.validation.folder:
        return dataset, scan(
            dataclasses.replace(config.data, folder=config.validation.folder, limit=0, regularization=False),
            "validation.folder",
        )
    count = _held_count(dataset, config)
    if count >= len(dataset.pictures):
        raise LoomError(
            "validation.one_picture", field="validation.every", folder=dataset.folder.name, count=len(dataset.pictures)
        )
    held = _held(dataset, config)
    return _only(dataset, [p for p in dataset.pictures if p not in held]), _only(
        dataset, [p for p in dataset.pictures if p in held]
    )


def trained_part(dataset: Dataset, config: TrainConfig) -> Dataset:
    """The first part of `split`, without a look at a folder to validate on."""
    if not config.validation.every or config.validation.folder:
        return dataset
    held = _held(dataset, config)
    return _only(dataset, [p for p in dataset.pictures if p not in held])


def _held_count(dataset: Dataset, config: TrainConfig) -> int:
    return max(1, round(config.validation.share * len(dataset.pictures)))


def _held(dataset: Dataset, config: TrainConfig) -> set[Picture]:
    """The pictures held out, drawn from the seed."""
    order = list(dataset.pictures)
    python_rng(config.seed, "held out").shuffle(order)
    return set(order[: _held_count(dataset, config)])


def _only(dataset: Dataset, pictures: Sequence) -> Dataset:
    return dataclasses.replace(dataset, pictures=tuple(pictures))


class Probes:
    """Fixed (picture, noise level, noise) triples of both sets."""

    def __init__(self, config: TrainConfig, trained: LatentCache, held_out: LatentCache, device: torch.device | str):
        count = config.validation.pictures
        self._config, self._device = config, device
        self._sets = {
            "held out": (held_out, _some(held_out, count, config.seed)),
            "trained": (trained, _some(trained, count, config.seed)),
        }
        fewest = min(len(chosen) for _, chosen in self._sets.values())
        self._sets = {name: (cache, chosen[:fewest]) for name, (cache, chosen) in self._sets.items()}

    def captions(self) -> list[str]:
        return [cache.entries[i].picture.caption for cache, chosen in self._sets.values() for i in chosen]

    @torch.no_grad()
    def measure(self, backend: Backend, objective: Objective, step: int) -> Measure:
        """The losses with the weights as they are."""
        values = {name: self._losses(backend, objective, cache, chosen) for name, (cache, chosen) in self._sets.items()}
        gaps = [one - other for one, other in zip(values["held out"], values["trained"], strict=True)]
        error = statistics.stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else 0.0
        return Measure(step, statistics.fmean(values["held out"]), statistics.fmean(values["trained"]), error)

    def _losses(self, backend: Backend, objective: Objective, cache: LatentCache, chosen: Sequence[int]) -> list[float]:
        """One mean squared error for each picture and level, in the network's own target, unweighted. Noise depends on the place in the list alone."""
        config, out = self._config, []
        low, high = config.objective.min_timestep / TIMESTEPS, config.objective.max_timestep / TIMESTEPS
        for place, index in enumerate(chosen):
            view = View(index)
            tensors, picture = cache[view], cache.entries[index].picture
            x0, beside = (
                tensors["latent"].to(self._device),
                tensors["beside"].to(self._device) if "beside" in tensors else None,
            )
            for level in range(config.validation.levels):
                u = low + (high - low) * (level + 0.5) / config.validation.levels
                sigma = objective.levels(torch.tensor([u], dtype=torch.float64))
                noise = randn_like(x0, generator(config.seed, "probe", place, level))
                batch = Batch(
                    x0,
                    [picture.caption],
                    [cache.fit(view)],
                    [picture.name],
                    torch.ones(1, device=x0.device),
                    None,
                    beside,
                )
                pred = backend.predict(objective.corrupt(x0, noise, sigma), sigma, batch)
                out.append(float(mean(mse(pred, objective.target(x0, noise, sigma), None))))
        return out


def _some(cache: LatentCache, count: int, seed: int) -> list[int]:
    order = list(range(len(cache.entries)))
    python_rng(seed, "probes").shuffle(order)
    return order[:count]


@dataclasses.dataclass
class History:
    """All measures of a run, and which of them is the best."""

    measures: list[Measure] = dataclasses.field(default_factory=list)

    @property
    def best(self) -> Measure | None:
        """The lowest held-out loss; the earlier of two that are equal."""
        return min(self.measures, key=lambda m: m.held_out) if self.measures else None

    def since_best(self) -> int:
        """How many measures have followed the best one."""
        return len(self.measures) - 1 - self.measures.index(self.best) if self.best else 0

    def as_list(self) -> list[list[float]]:
        return [list(dataclasses.astuple(m)) for m in self.measures]

    @staticmethod
    def from_list(rows: Sequence[Sequence[float]]) -> History:
        return History([Measure(int(row[0]), *row[1:]) for row in rows])
