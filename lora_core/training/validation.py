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
from ..data.dataset import Dataset, Picture
from ..data.folder import scan
from ..data.latents import LatentCache, View
from ..data.shown import Shown
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
        if config.validation.concepts or config.validation.each_picture:
            raise LoomError("validation.measures_nothing", field="validation.every")
        return dataset, None
    if config.validation.folder:
        return dataset, scan(
            dataclasses.replace(
                config.data,
                folder=config.validation.folder,
                limit=0,
                regularization=False,
                controls="auto" if config.data.shows_controls else "none",
                control_path="",
            ),
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


@dataclasses.dataclass(frozen=True)
class Asked:
    """A picture to measure: an entry of a cache under a caption. `noise`: the number of its noise, which depends on nothing else."""

    cache: LatentCache
    entry: int
    caption: str
    noise: int

    @property
    def shown(self) -> Shown:
        """What the network is shown beside the caption."""
        return self.cache.shown(View(self.entry))


@torch.no_grad()
def fixed_losses(
    backend: Backend, objective: Objective, config: TrainConfig, asked: Sequence[Asked], stream: str = "probe"
) -> list[list[float]]:
    """For each of `asked` one mean squared error at each level, in the network's own target, unweighted, with the weights as they are."""
    losses: list[list[float]] = [[] for _ in asked]
    low, high = config.objective.min_timestep / TIMESTEPS, config.objective.max_timestep / TIMESTEPS
    for level in range(config.validation.levels):  # outside: of two networks each is loaded once
        u = low + (high - low) * (level + 0.5) / config.validation.levels
        for one, mine in zip(asked, losses, strict=True):
            x0, batch = _alone(one, backend.device)
            sigma = objective.of_shape(x0.shape).levels(torch.tensor([u], dtype=torch.float64))
            noise = randn_like(x0, generator(config.seed, stream, one.noise, level))
            pred = backend.predict(batch.as_given(objective.corrupt(x0, noise, sigma)), sigma, batch)
            mine.append(float(mean(mse(pred, objective.target(x0, noise, sigma), None), batch.asked)))
    return losses


def _alone(asked: Asked, device: torch.device | str) -> tuple[torch.Tensor, Batch]:
    """(its latents, the batch of this picture alone) on the device."""
    view = View(asked.entry)
    tensors, picture = asked.cache[view], asked.cache.entries[asked.entry].picture
    x0 = tensors["latent"].to(device)
    beside = tensors["beside"].to(device) if "beside" in tensors else None
    weight = torch.ones(1, device=x0.device)
    fits, shown = [asked.cache.fit(view)], asked.cache.all_shown([view])
    rates = [picture.frame_rate] if asked.cache.entries[asked.entry].moves else []
    return x0, Batch(x0, [asked.caption], fits, [picture.name], weight, None, beside, shown, rates).on(x0.device)


class Probes:
    """Fixed (picture, noise level, noise) triples of both sets; without held-out pictures of the trained ones alone.

    With `validation.each_picture` all other training pictures are measured too, which changes neither of both curves.
    """

    def __init__(self, config: TrainConfig, trained: LatentCache, held_out: LatentCache | None):
        self._config = config
        caches = {"trained": trained} if held_out is None else {"held out": held_out, "trained": trained}
        order = {name: _some(cache, config.seed) for name, cache in caches.items()}
        fewest = min(config.validation.pictures, *map(len, order.values()))
        self._sets = {name: [_asked(caches[name], order[name], n) for n in range(fewest)] for name in caches}
        self._held_out = held_out
        more = len(order["trained"]) if config.validation.each_picture and held_out is not None else fewest
        self._others = [_asked(trained, order["trained"], n) for n in range(fewest, more)]
        self.latest: list[list[float]] = []  # of the last measure: one for each of `measured` and level

    @property
    def held_out(self) -> LatentCache | None:
        return self._held_out

    @property
    def pictures(self) -> int:
        """How many of each set are measured."""
        return len(self._sets["trained"])

    def measured(self) -> list[tuple[Picture, bool]]:
        """Each picture that `measure` measures, and whether it was held out."""
        groups = ((self._sets.get("held out", []), True), (self._sets["trained"], False), (self._others, False))
        return [(one.cache.entries[one.entry].picture, held) for group, held in groups for one in group]

    def asked(self) -> list[Asked]:
        """All that is ever asked of the network."""
        return [*(one for group in self._sets.values() for one in group), *self._others]

    def losses(self, backend: Backend, objective: Objective) -> list[float]:
        """One for each picture and level with the weights as they are, of held-out pictures where there are any, else of trained ones."""
        chosen = self._sets["held out" if self._held_out is not None else "trained"]
        return _flat(fixed_losses(backend, objective, self._config, chosen))

    def measure(self, backend: Backend, objective: Objective, step: int) -> Measure:
        """The losses on both sets with the weights as they are."""
        values = {name: fixed_losses(backend, objective, self._config, group) for name, group in self._sets.items()}
        self.latest = [*values["held out"], *values["trained"]]
        self.latest += fixed_losses(backend, objective, self._config, self._others)
        held_out, trained = _flat(values["held out"]), _flat(values["trained"])
        gaps = [one - other for one, other in zip(held_out, trained, strict=True)]
        error = statistics.stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else 0.0
        return Measure(step, statistics.fmean(held_out), statistics.fmean(trained), error)


def _asked(cache: LatentCache, order: Sequence[int], place: int) -> Asked:
    """The picture at a place of the order, whose noise is that of the place."""
    return Asked(cache, order[place], cache.entries[order[place]].picture.caption, place)


def _flat(losses: Sequence[Sequence[float]]) -> list[float]:
    return [loss for of_picture in losses for loss in of_picture]


def _some(cache: LatentCache, seed: int) -> list[int]:
    """The entries of a cache in an order drawn from the seed, of which the first ones are measured."""
    order = list(range(len(cache.entries)))
    python_rng(seed, "probes").shuffle(order)
    return order


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
